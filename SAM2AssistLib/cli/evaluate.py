"""``sam2assist evaluate``: a model and labelled CTs in, a report with figures, tables and pictures out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from SAM2AssistLib.cli.arguments import Adapter, AsJson, Device, Model
from SAM2AssistLib.cli.console import SECONDS_BETWEEN_LINES, print_json, say, stderr, stdout, tell, undisturbed, working
from SAM2AssistLib.cli.segment import check_model
from SAM2AssistLib.errors import Cancelled, InputError
from SAM2AssistLib.evaluation.cases import check_structures, find_cases

PROTOCOLS = ("cvpr25", "clicks", "human", "auto", "support", "synapse8", "btcv13", "flare22")


def evaluate(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="A folder of CTs with references.")],
    protocol: Annotated[str, typer.Option("--protocol", metavar="NAME", help=", ".join(PROTOCOLS) + ".")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="For the report; a run broken off is resumed.")],
    part: Annotated[str | None, typer.Option("--part", metavar="PART", help="Of splits.json, such as test.")] = None,
    case: Annotated[list[str] | None, typer.Option("--case", metavar="NAME", help="Only this one; repeatable.")] = None,
    structure: Annotated[
        list[str] | None, typer.Option("--structure", metavar="NAME", help="Only this one; repeatable.")
    ] = None,
    least_voxels: Annotated[
        int, typer.Option("--least-voxels", min=1, metavar="N", help="Of a structure, to be clicked on.")
    ] = 500,
    clicks: Annotated[
        int | None, typer.Option("--clicks", min=0, max=100, metavar="N", help="Corrections; else the protocol's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, max=100, metavar="N", help="Repetitions of what is random.")
    ] = None,
    peers: Annotated[
        str, typer.Option("--peers", metavar="LIST", help="Compare with: all, or some of sam2,growcut,walker.")
    ] = "",
    peer_clicks: Annotated[
        str, typer.Option("--peer-clicks", metavar="same|own", help="Peers get our clicks, or each corrects its own.")
    ] = "same",
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="DIR", help="Score the results in these files instead.")
    ] = None,
    supports: Annotated[
        int, typer.Option("--supports", min=1, metavar="N", help="Support cases in a draw (protocol support).")
    ] = 1,
    support_part: Annotated[
        str | None, typer.Option("--support-part", metavar="PART", help="Of splits.json, that supports come from.")
    ] = None,
    model: Model = "mini",
    adapter: Adapter = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled CTs by a published protocol, and write a report."""
    if protocol not in PROTOCOLS:
        raise InputError(f"There is no protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}.")
    if peer_clicks not in ("same", "own"):
        raise InputError(f"Peers cannot get '{peer_clicks}' clicks; choose --peer-clicks same or own.")
    check_model(model, adapter)
    if find_spec("monai") is None:
        raise InputError("Measuring needs MONAI, which is not installed; pip install 'sam2assist[evaluate]'.")
    notes: list[str] = []
    cases = find_cases(data, part, case or (), notes)
    check_structures(cases, structure or ())

    with working(f"Loading {model}"):
        from SAM2AssistLib.evaluation.measurements import Request, measurement
        from SAM2AssistLib.evaluation.peers import check_peers
        from SAM2AssistLib.evaluation.seen import note_on

        request = Request(
            data=data,
            protocol=protocol,
            out=out,
            part=part,
            cases=tuple(case or ()),
            structures=tuple(structure or ()),
            least_voxels=least_voxels,
            clicks=clicks,
            seeds=seeds,
            peers=tuple(check_peers(peers)),
            same_clicks=peer_clicks == "same",
            predictions=predictions,
            supports=supports,
            support_part=support_part,
            model=model,
            adapter=adapter,
            device=device,
        )
        job = measurement(request, cases)
    notes += [note_on(job.seen)] if job.seen else []
    tell(notes)
    begun = time.perf_counter()
    try:
        with _progress() as show:
            for step in job.run():
                new = [note for warning in step.warnings if (note := f"{step.case}: {warning}") not in notes]
                tell(new)
                notes += new
                show(step.share, step.new_share, f"{step.case} {step.structure}".strip())
    except KeyboardInterrupt:
        with undisturbed():
            job.write(complete=False)
        raise Cancelled(f"Cancelled; what was measured is in {out}, and the same command goes on from there.") from None
    with working("Drawing the report"):
        content = job.write(complete=True)
    if "not_named" in content:
        from SAM2AssistLib.evaluation.organ_report import notes_on

        tell(notes_on(content))
    if find_spec("matplotlib") is None:
        tell(["The report has no pictures because matplotlib is missing; pip install 'sam2assist[evaluate]'."])
    if as_json:
        seconds = round(time.perf_counter() - begun, 1)
        print_json({**content, "report": str(out / "report.md"), "seconds": seconds, "warnings": notes})
        return
    stdout().print(_table_of_methods(content) if "methods" in content else _table_of_organs(content))
    stdout().print(f"{out / 'report.md'} written.", soft_wrap=True)


def _table_of_methods(content: dict[str, Any]) -> Table:
    methods = content["methods"]
    steps = len(next(iter(methods.values()))["dsc"])
    table = Table(Column("Mean Dice", no_wrap=True), box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("First", *(f"+{n}" for n in range(1, steps)), "NSD", "Trials"):
        table.add_column(heading, justify="right")
    for name, found in methods.items():
        scores = (f"{s['mean']:.3f}" for s in found["dsc"])
        table.add_row(name, *scores, f"{found['nsd_final']:.3f}", str(found["trials"]))
    return table


def _table_of_organs(content: dict[str, Any]) -> Table:
    table = Table(Column("Organ", no_wrap=True), box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("Dice", "NSD 2 mm", "HD95 (mm)", "Missed", "Invented"):
        table.add_column(heading, justify="right")
    for name, found in [*content["summary"]["organs"].items(), ("mean", content["summary"]["mean"])]:
        scores = ("–" if found[key] is None else f"{found[key]:.3f}" for key in ("dsc", "nsd"))
        distance = "–" if found["hd95_mm"] is None else f"{found['hd95_mm']:.1f}"
        table.add_row(name, *scores, distance, f"{found['missed']:g}", f"{found['invented']:g}")
    return table


@contextmanager
def _progress() -> Iterator[Callable[[float, float, str], None]]:
    """Show the share of the work that is done and the time that is left: a bar on a terminal, else lines."""
    console = stderr()
    begun = time.monotonic()
    if console.is_interactive:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("Measuring", total=1.0)
            yield lambda share, _, what: bar.update(task, completed=share, description=what)
        return
    due = begun + SECONDS_BETWEEN_LINES

    def show(share: float, new_share: float, what: str) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due = now + SECONDS_BETWEEN_LINES
        left = f", about {(now - begun) / new_share * (1 - share) / 60:.0f} min left" if new_share > 0 else ""
        say(f"Measured: {what} ({100 * share:.0f} %{left})")

    yield show
