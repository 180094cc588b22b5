"""``sam2assist models``: which models there are, and getting, verifying and removing their weights.

The commands raise `SAM2AssistError`; the console script turns it into one sentence on stderr and exit code 2. With
``--json`` one JSON object goes to stdout and nothing else; progress goes to stderr.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from SAM2AssistLib.cli.arguments import AsJson
from SAM2AssistLib.cli.console import print_json, stderr, stdout
from SAM2AssistLib.engine import catalogue, store
from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.errors import ModelError

models_app = typer.Typer(help="List, fetch, verify and remove model weights.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name from 'sam2assist models list'.")]


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models, their licences, and which of them are on this computer."""
    if as_json:
        print_json({"cache": str(store.cache_folder()), "models": [_as_dict(spec) for spec in catalogue.CATALOGUE]})
        return
    console = stdout()
    table = Table()
    for heading, justify in (("Name", "left"), ("Input", "right"), ("Parameters", "right"), ("Size", "right")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("Licence")
    table.add_column("Here")
    for spec in catalogue.CATALOGUE:
        table.add_row(
            spec.name,
            f"{spec.image_size}²",
            f"{spec.parameters / 1e6:.1f} M",
            _megabytes(_size(spec)),
            spec.licence,
            _whereabouts(spec),
        )
    console.print(table)
    console.print(f"Fetched weights are kept in {store.cache_folder()}", soft_wrap=True)


@models_app.command("fetch")
def fetch_model(
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="PATH", help="Use this copy of the weights; nothing is downloaded.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again, even if verified weights are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Get the weights of a model, from its publisher or from a file you have, and verify them."""
    spec = catalogue.find_model(name)
    if spec.embedded:
        raise ModelError(f"The weights of {spec.name} come with the package, so there is nothing to fetch.")
    if store.is_present(spec) and not force and file is None:
        with _progress(f"Verifying {spec.name}") as report:
            path = store.verify(spec, report)
        done = "was there already and is verified"
    elif file is not None:
        with _progress(f"Verifying {file.name}") as report:
            path = store.place(spec, file, report)
        done = "was copied and is verified"
    else:
        stderr().print(f"{spec.title}: licence {spec.licence}, from {spec.url}", soft_wrap=True)
        with _progress(f"Fetching {spec.name}") as report:
            path = store.fetch(spec, report)
        done = "was fetched and is verified"
    if as_json:
        print_json(_as_dict(spec))
    else:
        stdout().print(f"{spec.name} {done}: {path}", soft_wrap=True)


@models_app.command("verify")
def verify_models(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all that are here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the SHA-256 of weights and compare it with the published, pinned or embedded value."""
    specs = [catalogue.find_model(name) for name in names or ()]
    specs = specs or [spec for spec in catalogue.CATALOGUE if store.is_present(spec)]
    faults: dict[str, str] = {}
    for spec in specs:
        try:
            with _progress(f"Verifying {spec.name}") as report:
                store.verify(spec, report)
        except ModelError as error:
            faults[spec.name] = str(error)
    if as_json:
        results = [(spec.name, spec.name not in faults, faults.get(spec.name)) for spec in specs]
        models = [{"name": name, "verified": verified, "reason": reason} for name, verified, reason in results]
        print_json({"verified": not faults, "models": models})
    else:
        for spec in specs:
            stdout().print(f"{spec.name}: {'not verified' if spec.name in faults else 'verified'}")
        if not specs:
            stdout().print("No weights are on this computer.")
    if faults:
        raise ModelError(" ".join(faults.values()))


@models_app.command("remove")
def remove_model(name: NameArgument, as_json: AsJson = False) -> None:
    """Delete fetched weights and tell the bytes freed."""
    spec = catalogue.find_model(name)
    freed = store.remove(spec)
    if as_json:
        print_json({"name": spec.name, "freed_bytes": freed})
    else:
        stdout().print(f"{spec.name} was removed; {freed:,} bytes are free again.")


def _as_dict(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "image_size": spec.image_size,
        "parameters": spec.parameters,
        "size_bytes": _size(spec),
        "licence": spec.licence,
        "source": spec.source,
        "url": spec.url,
        "sha256": store.expected_sha256(spec) if store.is_present(spec) or not spec.embedded else None,
        "embedded": spec.embedded,
        "present": store.is_present(spec),
        "path": str(store.weights_path(spec)),
        "note": spec.note,
    }


def _size(spec: ModelSpec) -> int | None:
    if spec.size_bytes is not None:
        return spec.size_bytes
    return store.weights_path(spec).stat().st_size if store.is_present(spec) else None


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.0f} MB"


def _whereabouts(spec: ModelSpec) -> str:
    if not store.is_present(spec):
        return "missing" if spec.embedded else "no"
    return "yes, embedded" if spec.embedded else "yes"


@contextmanager
def _progress(title: str) -> Iterator[store.Progress]:
    """Show a bar on stderr while it is a terminal; yield the function that moves it."""
    title_and_bar = (TextColumn("{task.description}", markup=False), BarColumn())
    columns = (*title_and_bar, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
