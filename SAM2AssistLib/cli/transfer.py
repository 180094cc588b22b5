"""``sam2assist pull`` and ``sam2assist push``: series from a DICOM server, and results to it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from SAM2AssistLib.cli.arguments import AsJson
from SAM2AssistLib.cli.console import SECONDS_BETWEEN_LINES, print_json, say, stderr, stdout, working
from SAM2AssistLib.errors import InputError

if TYPE_CHECKING:
    from SAM2AssistLib.transfer.archive import Archive, TransferStep

Url = Annotated[str | None, typer.Option("--dicomweb", metavar="URL", help="A DICOMweb service.")]
Aet = Annotated[str | None, typer.Option("--aet", metavar="TITLE", help="Title of a server with --host and --port.")]
Host = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Its host.")]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, metavar="PORT", help="Its port.")]
OwnAet = Annotated[str, typer.Option("--own-aet", metavar="TITLE", help="What this program is called there.")]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS with --host; files from SAM2ASSIST_TLS_*.")]


def pull_command(
    study: Annotated[str, typer.Option("--study", metavar="UID", help="StudyInstanceUID of the study.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the series.")],
    series: Annotated[
        str | None, typer.Option("--series", metavar="NUMBER|UID", help="Which series, where the study has several.")
    ] = None,
    dicomweb: Url = None,
    aet: Aet = None,
    host: Host = None,
    port: Port = None,
    own_aet: OwnAet = "SAM2ASSIST",
    move_port: Annotated[
        int | None,
        typer.Option("--move-port", min=1, max=65535, metavar="PORT", help="Wait here for C-MOVE; else C-GET."),
    ] = None,
    tls: Tls = False,
    as_json: AsJson = False,
) -> None:
    """Fetch one series from a DICOM server into a new folder. Credentials come from the environment or keyring."""
    from SAM2AssistLib.transfer.archive import choose
    from SAM2AssistLib.transfer.moving import check_landing, pull

    check_study(study)
    check_landing(output)
    archive = _archive(dicomweb, aet, host, port, own_aet, move_port, tls)
    with working(f"Asking {archive.name}"):
        chosen = choose(archive.series_of(study), series, archive.name)
    done = _show("Pulling", pull(archive, chosen, output))
    if as_json:
        print_json({"output": str(output), "images": done, "modality": chosen.modality, "server": archive.name})
        return
    stdout().print(f"Series {chosen} is in {output}: {_count(done)}.", soft_wrap=True)


def push_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM files, or folders of them.")],
    dicomweb: Url = None,
    aet: Aet = None,
    host: Host = None,
    port: Port = None,
    own_aet: OwnAet = "SAM2ASSIST",
    tls: Tls = False,
    as_json: AsJson = False,
) -> None:
    """Send DICOM files to a server, and make sure that they are there."""
    from SAM2AssistLib.transfer.moving import push

    archive = _archive(dicomweb, aet, host, port, own_aet, None, tls)
    done = _show("Pushing", push(archive, files)) // 2
    if as_json:
        print_json({"sent": done, "confirmed": done, "server": archive.name})
        return
    stdout().print(f"Sent {_count(done)} to {archive.name}, which was asked afterwards and has all.", soft_wrap=True)


def check_study(uid: str) -> None:
    """Refuse what is no UID (PS3.5, 9.1): to a server, an empty one and one with wildcards mean studies of anybody.

    Raises
    ------
    InputError
        If it has other characters than digits and dots, or none.
    """
    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        raise InputError("What follows --study is no StudyInstanceUID, which consists of digits and dots; check it.")


def _count(objects: int) -> str:
    return "1 object" if objects == 1 else f"{objects} objects"


def _archive(
    dicomweb: str | None,
    aet: str | None,
    host: str | None,
    port: int | None,
    own_aet: str,
    move_port: int | None,
    tls: bool,
) -> Archive:
    if dicomweb is not None:
        if (aet, host, port) != (None, None, None):
            raise InputError("Two servers are named; give either --dicomweb, or --aet with --host and --port.")
        from SAM2AssistLib.transfer.dicomweb import DicomWebArchive

        return DicomWebArchive(dicomweb)
    if aet is None or host is None or port is None:
        raise InputError("No server is named; give --dicomweb URL, or --aet TITLE with --host HOST and --port PORT.")
    for title in (aet, own_aet):
        if not 0 < len(title.strip()) <= 16 or "\\" in title or not (title.isascii() and title.isprintable()):
            raise InputError(f"'{title}' is no application entity title, which has 1 to 16 plain letters.")
    from SAM2AssistLib.transfer.dimse import DimseArchive, Peer

    return DimseArchive(Peer(host, port, aet, own_aet, move_port, tls))


def _show(title: str, steps: Iterator[TransferStep]) -> int:
    """Run a transfer with progress on stderr, and give how far it came."""
    console, done, due = stderr(), 0, time.monotonic() + SECONDS_BETWEEN_LINES
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        for step in steps:
            done = step.done
            bar.update(task, completed=step.done, total=step.total)
            if not console.is_terminal and time.monotonic() >= due:
                say(f"{title}: {step.done}" + (f" of {step.total}" if step.total else ""))
                due = time.monotonic() + SECONDS_BETWEEN_LINES
    return done
