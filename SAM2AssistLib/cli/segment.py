"""``sam2assist segment``: a CT and prompts in, a segmentation out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from SAM2AssistLib.cli.arguments import Adapter, AsJson, Device, HUWindow, Image, Model, Output, Preview, Series
from SAM2AssistLib.cli.console import print_json, propagate_with_progress, say, stdout, tell, undisturbed, working
from SAM2AssistLib.cli.refine import check_refined_path, place, read_refined, take_over, with_codes_of
from SAM2AssistLib.cli.results import (
    AXIS_LETTERS,
    Stopwatch,
    algorithm_of,
    masks_of,
    notes_on,
    report_on,
    slicer_advice,
    table_of,
    window_as_json,
    write_result,
)
from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.adapter import check_adapter_files
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.store import file_sha256
from SAM2AssistLib.errors import Cancelled, InputError, ModelError, OutputError
from SAM2AssistLib.io.atomic import check_place, is_same_file
from SAM2AssistLib.io.segmentation import check_before_segmenting, check_output_path, written_files
from SAM2AssistLib.prompts import SegmentPrompts, read_prompt_file
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.session import Session


def segment(
    image: Image,
    output: Output,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Points and boxes (JSON; see the README).")
    ] = None,
    model: Model = "mini",
    adapter: Adapter = None,
    device: Device = "auto",
    series: Series = None,
    refine: Annotated[
        Path | None,
        typer.Option("--refine", metavar="SEGMENTATION", help="Start from this one; prompts correct its segments."),
    ] = None,
    axis: Annotated[
        str, typer.Option("--axis", metavar="k|j|i", help="Axis of the voxel grid along which masks travel.")
    ] = "k",
    window: HUWindow = None,
    preview: Preview = None,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="On Ctrl-C or SIGTERM, write the slices that are finished.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Segment a CT from prompts: each mask starts at its prompts and travels slice to slice through the volume."""
    # What costs nothing to find out comes first, so that nobody waits for the sentence that the name was misspelt.
    travel, chosen_window = parse_axis(axis), None if window is None else parse_window(window)
    prompt_file = check_prompt_path(prompts)
    check_keeps_inputs(output, image, prompt_file)
    if refine is not None:
        check_refined_path(refine)
        check_keeps_inputs(output, image, refine, "segmentation")
    check_output_path(output)
    if preview is not None:
        check_preview_path(preview)
    check_model(model, adapter)

    clock = Stopwatch()
    with working("Reading the image"):
        volume = CTVolume.read(image, series=series)
        refined, lost = ([], []) if refine is None else read_refined(refine, volume)
        requests = read_prompt_file(prompt_file, volume, finished=[named.name for named in refined])
        check_before_segmenting(output, volume)
    tell([*volume.warnings, *lost])
    clock.lap("read")
    with working(f"Loading {model}"):
        from SAM2AssistLib.engine.loading import load_engine

        engine = load_engine(model, device, adapter)
    clock.lap("load")
    with engine.open(volume, axis=travel, window=chosen_window) as session:
        foreign = notes_on_window(session)
        tell(foreign)
        made_with = algorithm_of(engine.spec, adapter)
        how = {} if refine is None else {"refined_sha256": file_sha256(refine)}

        def write() -> list[str]:
            masks = with_codes_of(refined, masks_of(session))
            return [*write_result(output, masks, requests, session, made_with, **how), *notes_on(masks, volume)]

        try:
            take_over(session, refined)
            _run(session, requests, clock)
        except KeyboardInterrupt:
            _end_early(session, output, write, keep_partial=keep_partial)
        masks, report = masks_of(session), report_on(session)
    with working(f"Writing {output.name}"):
        notes = write()
        if preview is not None:
            from SAM2AssistLib.io.preview import write_preview

            write_preview(preview, volume, masks, window=session.window)
    clock.lap("write")
    tell(notes)
    if as_json:
        print_json(
            {
                "output": str(output),
                "preview": None if preview is None else str(preview),
                "model": engine.spec.name,
                "device": str(engine.model.device),
                "axis": AXIS_LETTERS[session.axis],
                "window": window_as_json(session.window),
                "segments": report,
                "seconds": clock.laps,
                "warnings": [*volume.warnings, *lost, *foreign, *notes],
            }
        )
        return
    stdout().print(table_of(report))
    seconds = clock.laps["prompts"] + clock.laps["propagate"]
    stdout().print(f"{output} written; {seconds:.1f} s on {engine.model.device} after loading.", soft_wrap=True)
    stdout().print(slicer_advice(image, output), soft_wrap=True)


def parse_axis(letter: str) -> int:
    """Return the array axis (0 = k, 1 = j, 2 = i) of a letter.

    Raises
    ------
    InputError
        If it is none of the three.
    """
    if letter.lower() not in AXIS_LETTERS:
        raise InputError(f"There is no axis '{letter}'; choose --axis k, j or i.")
    return AXIS_LETTERS.index(letter.lower())


def parse_window(text: str) -> Window:
    """Read a window as a preset's name or as LEVEL/WIDTH in HU.

    Raises
    ------
    InputError
        If it is neither.
    """
    if text.lower() in WINDOW_PRESETS:
        return WINDOW_PRESETS[text.lower()]
    level, _, width = text.partition("/")
    try:
        numbers = float(level), float(width)
    except ValueError:
        raise InputError(f"'{text}' is no window; give LEVEL/WIDTH in HU or {' or '.join(WINDOW_PRESETS)}.") from None
    return Window(*numbers)


def notes_on_window(session: Session) -> list[str]:
    """Tell of a window that is not the one that the adapter was trained with; in one sentence, if at all."""
    from SAM2AssistLib.engine.loading import looks_like_hounsfield

    own, chosen = session.engine.trained_window, session.window
    if own is None or own == chosen or not looks_like_hounsfield(session.volume):
        return []
    trained = f"{own.level:g}/{own.width:g}"
    return [
        f"The adapter was trained with the window {trained} and sees this image through {chosen.level:g}/"
        f"{chosen.width:g}; if that is not meant, leave --window out."
    ]


def check_keeps_inputs(output: Path, image: Path, other: Path, what_other: str = "prompt file") -> None:
    """Refuse to write a result, or the names of its labels, over what it is made from.

    Raises
    ------
    OutputError
        If two of them are the same file.
    """
    for path in written_files(output):
        for what, given in (("image", image), (what_other, other)):
            if is_same_file(path, given):
                raise OutputError(
                    f"{path.name} is the {what} itself and would be lost; choose another name for the result."
                )


def check_preview_path(path: Path) -> None:
    """Refuse a picture that could not be written, before any work is done.

    Raises
    ------
    OutputError
        If the ending is not .png, the folder is missing or may not be written to, or a folder has that name.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"The preview {path.name} would not be a PNG; give it the ending .png.")
    check_place(path)


def check_prompt_path(path: Path | None) -> Path:
    """Return the path of a prompt file that is there.

    Raises
    ------
    InputError
        If none was given, or there is no such file.
    """
    if path is None:
        raise InputError("There are no prompts to segment from; name a file with --prompts FILE.json.")
    if not path.is_file():
        raise InputError(f"There is no prompt file '{path}'; check the path after --prompts.")
    return path


def check_model(model: str, adapter: Path | None = None) -> None:
    """Refuse a model or an adapter that is not there; whether they are intact is seen when they are loaded.

    Raises
    ------
    ModelError
        If there is no such model, its weights are not on this computer, or the folder holds no adapter.
    """
    spec = find_model(model)
    if not store.is_present(spec):
        raise ModelError(store.missing_message(spec))
    if adapter is not None:
        check_adapter_files(adapter)


def _run(session: Session, requests: Sequence[SegmentPrompts], clock: Stopwatch) -> None:
    with working("Reading the prompted slices"):
        for request in requests:
            place(session, request)
    clock.lap("prompts")
    propagate_with_progress(session)
    clock.lap("propagate")


def _end_early(session: Session, output: Path, write: Callable[[], list[str]], *, keep_partial: bool) -> None:
    if not keep_partial:
        raise Cancelled(
            f"Cancelled; {output.name} was not written; to keep the slices finished by then, use --keep-partial."
        )
    with undisturbed():
        if not any(session.confidence(handle) for handle in session.segments):
            raise Cancelled(f"Cancelled before any slice was finished; {output.name} was not written.")
        say(f"Writing the slices finished so far to {output}.")
        tell(write())
    raise Cancelled(f"Cancelled; the slices finished so far are in {output}.")
