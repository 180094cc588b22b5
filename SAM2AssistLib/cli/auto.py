"""``sam2assist auto``: a CT in, organs out, without a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from SAM2AssistLib.cli.arguments import AsJson, Device, HUWindow, Image, Model, Output, Preview, Series
from SAM2AssistLib.cli.console import print_json, say, stderr, stdout, tell, undisturbed, working
from SAM2AssistLib.cli.pairs import parted
from SAM2AssistLib.cli.results import (
    Stopwatch,
    algorithm_of,
    masks_of,
    notes_on,
    prompts_of,
    report_on,
    slicer_advice,
    window_as_json,
    write_result,
)
from SAM2AssistLib.cli.segment import (
    check_keeps_inputs,
    check_model,
    check_preview_path,
    notes_on_window,
    parse_window,
)
from SAM2AssistLib.engine.store import file_sha256
from SAM2AssistLib.errors import Cancelled, InputError
from SAM2AssistLib.io.segmentation import check_before_segmenting, check_keeps_series, check_output_path
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.session import Session
    from SAM2AssistLib.prompting.auto import AutoStep, ClassVerdict
    from SAM2AssistLib.prompting.support import Support, SupportCase

STAGES = {
    "support": "Reading support cases",
    "features": "Reading slices",
    "search": "Looking for the classes",
    "prompts": "Prompting",
    "propagation": "Propagating",
    "edges": "Settling on edges",
    "corrections": "Correcting",
    "done": "Done",
}


def auto(
    image: Image,
    output: Output,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", metavar="DIR", help="Its self-prompt head finds, or that of the package if it has none."
        ),
    ] = None,
    support: Annotated[
        list[str] | None,
        typer.Option("--support", metavar="IMAGE MASK", help="A finished case to go by; may be given several times."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="A case of the support library; may be given several times."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="A,B,...", help="Which to look for; if not given, all.")
    ] = None,
    corrections: Annotated[
        int, typer.Option("--corrections", min=0, help="Rounds of corrections that the engine makes itself.")
    ] = 0,
    model: Model = "mini",
    device: Device = "auto",
    series: Series = None,
    window: HUWindow = None,
    preview: Preview = None,
    as_json: AsJson = False,
) -> None:
    """Segment a CT without a prompt: by a trained adapter, or "like these finished cases"."""
    chosen_window = None if window is None else parse_window(window)
    wanted = None if classes is None else _class_names(classes)
    pairs = [(Path(a), Path(b)) for a, b in map(parted, support or [])]
    check_output_path(output)
    check_keeps_inputs(output, image, image)
    for support_image, mask in pairs:
        check_keeps_inputs(output, support_image, mask, "support mask")
    if preview is not None:
        check_preview_path(preview)
    check_model(model, adapter)
    names = _known_cases(case or [])

    clock = Stopwatch()
    with working("Reading the image"):
        volume = CTVolume.read(image, series=series)
        check_before_segmenting(output, volume)
        read = [_support(*pair) for pair in pairs]
        for finished in read:
            check_keeps_series(output, finished.volume)
    warnings = _told(volume.warnings, read)
    clock.lap("read")
    with working(f"Loading {model}"):
        from SAM2AssistLib.engine.loading import load_engine

        engine = load_engine(model, device, adapter)
    clock.lap("load")
    with engine.open(volume, window=chosen_window) as session:
        kept = _library_cases(session, names)
        opened = _told(notes_on_window(session), kept)
        verdicts = _run(session, adapter, [*read, *kept], wanted, corrections)
        clock.lap("auto")
        masks, report = masks_of(session), report_on(session)
        requests = prompts_of(session)
    notes: list[str] = []
    if masks:
        with working(f"Writing {output.name}"):
            made_with = algorithm_of(engine.spec, _adapter_used(adapter, model), is_automatic=True)
            # And not their names, which may be of patients.
            support_sha256 = [file_sha256(mask) for mask in (*(mask for _, mask in pairs), *_library_masks(names))]
            told = write_result(
                output, masks, requests, session, made_with,
                command="auto", classes=[v.name for v in verdicts], corrections=corrections, support=support_sha256,
            )  # fmt: skip
            notes += [*told, *notes_on(masks, volume)]
            if preview is not None:
                from SAM2AssistLib.io.preview import write_preview

                write_preview(preview, volume, masks, window=session.window)
    else:
        notes = [_nothing_found(len(verdicts), image, output)]
    clock.lap("write")
    tell(notes)
    if as_json:
        print_json(
            {
                "output": str(output) if masks else None,
                "preview": str(preview) if masks and preview is not None else None,
                "model": engine.spec.name,
                "device": str(engine.model.device),
                "window": window_as_json(session.window),
                "classes": [
                    {"name": v.name, "present": v.present, "confidence": round(v.confidence, 3)} for v in verdicts
                ],
                "segments": report,
                "seconds": clock.laps,
                "warnings": [*warnings, *opened, *notes],
            }
        )
        return
    stdout().print(_table(verdicts, report))
    if masks:
        stdout().print(f"{output} written; {clock.laps['auto']:.1f} s on {engine.model.device}.", soft_wrap=True)
        stdout().print(slicer_advice(image, output), soft_wrap=True)


def _nothing_found(classes: int, image: Path, output: Path) -> str:
    left = "is still that of an earlier run" if output.exists() else "was not written"
    return f"Nothing found of the {classes} classes in {image.absolute().name}; {output.name} {left}."


def _adapter_used(adapter: Path | None, model: str) -> Path | None:
    """The adapter that Auto-Segment works with; support cases are compared with the help of the one in the package."""
    from SAM2AssistLib.prompting.self_prompt import embedded_adapter, has_embedded_adapter

    if adapter is None and has_embedded_adapter(model):
        return embedded_adapter(model)
    return adapter


def _class_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InputError("There is no class after --classes; give names separated by commas, such as liver,spleen.")
    return names


def _support(image: Path, mask: Path) -> SupportCase:
    from SAM2AssistLib.prompting.support import read_support

    return read_support(image, mask)


def _told(notes: Sequence[str], cases: Sequence[SupportCase | Support]) -> list[str]:
    """Tell notes, and those of support cases after them, each sentence once; returns them all."""
    found = list(dict.fromkeys([*notes, *(note for case in cases for note in case.notes)]))
    tell(found)
    return found


def _known_cases(names: list[str]) -> list[str]:
    if names:
        from SAM2AssistLib.prompting.support_library import SupportLibrary

        library = SupportLibrary()
        for name in names:
            library.entry(name)  # raises for one that is not there
    return names


def _library_cases(session: Session, names: list[str]) -> list[Support]:
    if not names:
        return []
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    with working("Reading the support library"):
        library = SupportLibrary()
        return [library.prepare(session.engine, name, session.window) for name in names]


def _library_masks(names: list[str]) -> list[Path]:
    if not names:
        return []
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    return [SupportLibrary().masks_file(name) for name in names]


def _run(
    session: Session,
    adapter: Path | None,
    cases: list[SupportCase | Support],
    wanted: tuple[str, ...] | None,
    corrections: int,
) -> tuple[ClassVerdict, ...]:
    from SAM2AssistLib.prompting.auto import auto_segment

    steps = auto_segment(session, adapter=adapter, support=cases, classes=wanted, corrections=corrections)
    return follow(steps).verdicts


def follow(steps: Iterator[AutoStep]) -> AutoStep:
    """Go through all steps with progress on stderr; returns the last one.

    Raises
    ------
    Cancelled
        At Ctrl-C.
    """
    try:
        return _last_of(steps)
    except KeyboardInterrupt:
        with undisturbed():
            raise Cancelled("Cancelled; no file was written.") from None


def _last_of(steps: Iterator[AutoStep]) -> AutoStep:
    console, last = stderr(), None
    if not console.is_interactive:
        for step in steps:
            if last is None or last.stage != step.stage:
                say(f"{STAGES[step.stage]}")
            last = step
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            for step in steps:
                bar.update(task, description=STAGES[step.stage], completed=step.done, total=step.total)
                last = step
    assert last is not None
    return last


def _table(verdicts: tuple[ClassVerdict, ...], report: list[dict[str, Any]]) -> Table:
    table = Table("Class")
    for heading in ("Found", "Volume (ml)", "Slices", "Confidence"):
        table.add_column(heading, justify="right")
    rows = {row["name"]: row for row in report}
    for verdict in verdicts:
        row = rows.get(verdict.name)
        shown = (f"{row['volume_ml']:.1f}", str(row["slices"])) if row else ("", "")
        table.add_row(verdict.name, "yes" if verdict.present else "no", *shown, f"{verdict.confidence:.2f}")
    return table
