"""``sam2assist demo``: the whole path on a phantom, or on a CT of one's own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import SimpleITK as sitk
import typer
from rich.table import Table

from SAM2AssistLib.cli.arguments import AsJson, Device, Model
from SAM2AssistLib.cli.auto import follow
from SAM2AssistLib.cli.console import own_command, print_json, propagate_with_progress, stdout, tell, working
from SAM2AssistLib.cli.results import (
    AXIS_LETTERS,
    Stopwatch,
    masks_of,
    notes_on,
    report_on,
    slicer_advice,
    table_of,
    window_as_json,
)
from SAM2AssistLib.cli.segment import check_model, check_prompt_path
from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.atomic import atomic_path, is_same_file, make_folder
from SAM2AssistLib.io.itk_image import image_of
from SAM2AssistLib.io.segmentation import check_output_path, write_segmentation
from SAM2AssistLib.prompts import SegmentPrompts, read_prompt_file, write_prompt_file
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from SAM2AssistLib.engine.session import Session

DEMO_SEED = 23
"""Of the phantom, the first from 20 on that shows all of `DEMO_ORGANS`. Training draws from 4 million upwards,
so this phantom has never been trained on."""
DEMO_SHAPE_KJI, DEMO_SPACING_IJK = (48, 224, 224), (1.6, 1.6, 5.0)
DEMO_CLICKS = 3
AUTO = "Auto-Segment"
DEMO_ORGANS = ("liver", "spleen", "kidney_right", "kidney_left", "aorta", "stomach", "tumor", "vertebrae")

NOT_NAMED = (
    "The regions are numbered, not named: the demo clicked into large homogeneous ones and knows no organs; give "
    "prompts of your own with --prompts FILE.json."
)

CT_FILE, PROMPT_FILE = "ct.nrrd", "prompts.json"
SEGMENTATION_FILE, PREVIEW_FILE = "segmentation.seg.nrrd", "preview.png"


@dataclass(frozen=True, eq=False)
class _Task:
    """What the demo segments.

    Attributes
    ----------
    volume : the CT.
    requests : prompts of each segment; where Auto-Segment comes first, for what it does not find.
    references : the truth by name, where it is known.
    """

    volume: CTVolume
    requests: tuple[SegmentPrompts, ...]
    references: dict[str, NDArray[np.bool_]]


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")] = Path("demo-output"),
    ct: Annotated[
        Path | None,
        typer.Option("--ct", metavar="IMAGE", help="Your own CT, file or DICOM folder, instead of a phantom."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts for --ct; proposed if not given.")
    ] = None,
    corrections: Annotated[
        int | None,
        typer.Option(
            "--corrections", min=0, help=f"Simulated clicks for each organ of the phantom ({DEMO_CLICKS} if not given)."
        ),
    ] = None,
    model: Model = "mini",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Auto-Segment a CT phantom, box what that does not know, correct it by simulated clicks, and show how it went."""
    if prompts is not None:
        check_prompt_path(prompts)
        if ct is None:
            raise InputError("The phantom has prompts of its own; name the CT that yours belong to with --ct IMAGE.")
    if corrections is not None and ct is not None:
        raise InputError("Simulated clicks need a truth to click by, which your CT has not; leave --corrections out.")
    check_model(model)
    make_folder(out)
    check_output_path(out / SEGMENTATION_FILE)
    _check_keeps(out, [given for given in (ct, prompts) if given is not None])
    with working("Making the phantom" if ct is None else "Reading the image"):
        task = _phantom_task() if ct is None else _own_task(ct, prompts)
    by_itself = prompts is None and _knows_organs(model)
    tell(task.volume.warnings)
    clock, scores = Stopwatch(), list[dict[str, float]]()
    with working(f"Loading {model}"):
        from SAM2AssistLib.engine.loading import load_engine

        engine = load_engine(model, device)
    clock.lap("load")
    with engine.open(task.volume) as session:
        found = _auto_segment(session, task) if by_itself else frozenset()
        clock.lap(AUTO)
        task = task if task.requests else replace(task, requests=_requests_for(session))
        _segment(session, [r for r in task.requests if r.name not in found])
        clock.lap("boxes" if ct is None else "prompts")
        if task.references:
            scores.append(_scores(session, task))
            for turn in range(DEMO_CLICKS if corrections is None else corrections):
                _correct(session, task)
                scores.append(_scores(session, task))
                clock.lap(_clicks(turn + 1))
        report = report_on(session)
        with working(f"Writing to {out}"):
            files, notes = _write(out, session, task, prompts)
    if ct is not None and prompts is None and not found:
        notes.append(NOT_NAMED)
    tell(notes)
    if as_json:
        print_json(
            {
                "auto_segmented": sorted(found),
                "dice": scores,
                "axis": AXIS_LETTERS[session.axis],
                "window": window_as_json(session.window),
                "segments": report,
                "seconds": clock.laps,
                "files": files,
                "warnings": [*task.volume.warnings, *notes],
            }
        )
        return
    _show(task, found, scores, report, clock)
    _tell_what_next(out, ct, prompts)


def _phantom_task() -> _Task:
    from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice
    from SAM2AssistLib.training.phantoms import make_phantom

    phantom = make_phantom(DEMO_SEED, DEMO_SHAPE_KJI, DEMO_SPACING_IJK)
    names = [name for name in DEMO_ORGANS if name in phantom.names]
    references = {name: phantom.labels == phantom.names[name] for name in names}
    requests = tuple(SegmentPrompts(name, (), (box_on_middle_slice(mask),)) for name, mask in references.items())
    return _Task(phantom.volume, requests, references)


def _own_task(ct: Path, prompts: Path | None) -> _Task:
    volume = CTVolume.read(ct)
    return _Task(volume, () if prompts is None else read_prompt_file(prompts, volume), {})


def _knows_organs(model: str) -> bool:
    from SAM2AssistLib.prompting.self_prompt import has_embedded_adapter

    return has_embedded_adapter(model)


def _auto_segment(session: Session, task: _Task) -> frozenset[str]:
    """Find what the embedded adapter knows, on a phantom of the organs whose truth is shown; return what was found."""
    from SAM2AssistLib.prompting.auto import auto_segment
    from SAM2AssistLib.prompting.self_prompt import load_finder

    prompter = load_finder(session.engine, None)
    wanted = [name for name in prompter.classes if not task.references or name in task.references]
    last = follow(auto_segment(session, adapter=prompter, classes=wanted))
    return frozenset(verdict.name for verdict in last.verdicts if verdict.present)


def _requests_for(session: Session) -> tuple[SegmentPrompts, ...]:
    """Return prompts for a CT that came without: a box around each organ that was found, else proposals."""
    from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice
    from SAM2AssistLib.prompting.proposals import propose_prompts

    found = [(segment.name, session.mask(segment)) for segment in session.segments]
    boxes = tuple(SegmentPrompts(name, (), (box_on_middle_slice(mask),)) for name, mask in found if mask.any())
    return boxes or propose_prompts(session.volume)


def _segment(session: Session, requests: Sequence[SegmentPrompts]) -> None:
    with working("Reading the prompted slices"):
        for request in requests:
            session.add_prompts(request)
    propagate_with_progress(session)


def _scores(session: Session, task: _Task) -> dict[str, float]:
    from SAM2AssistLib.overlap import dice

    return {s.name: round(dice(session.mask(s), task.references[s.name]), 4) for s in session.segments}


def _correct(session: Session, task: _Task) -> None:
    """Let the simulated user click once for each organ, then propagate what changed."""
    from SAM2AssistLib.evaluation.simulated_user import correction_click

    spacing_kji = task.volume.spacing_ijk[::-1]
    with working("Looking for the largest errors"):
        for handle in session.segments:
            click = correction_click(session.mask(handle), task.references[handle.name], spacing_kji)
            if click is not None:
                session.place_point(handle, click)
    propagate_with_progress(session)


def _check_keeps(out: Path, given: Sequence[Path]) -> None:
    """Refuse to replace what no earlier demo has left, which are all four files.

    Raises
    ------
    OutputError
        If some of them are there but not all, other than those that were given, which stay as they are.
    """
    results = [out / name for name in (CT_FILE, PROMPT_FILE, SEGMENTATION_FILE, PREVIEW_FILE)]
    there = [path for path in results if path.exists()]
    others = [path for path in there if not any(is_same_file(path, own) for own in given)]
    if others and len(there) < len(results):
        raise OutputError(f"{others[0]} is there and not from an earlier demo; choose another folder with --out.")


def _write(out: Path, session: Session, task: _Task, own_prompts: Path | None) -> tuple[dict[str, str], list[str]]:
    """Write the four files; return their paths by what they hold, and notes for the user."""
    from SAM2AssistLib.io.preview import write_preview

    masks = masks_of(session)
    notes = [*write_segmentation(out / SEGMENTATION_FILE, masks, task.volume), *notes_on(masks, task.volume)]
    write_preview(out / PREVIEW_FILE, task.volume, masks, window=session.window)
    if own_prompts is None or not is_same_file(out / PROMPT_FILE, own_prompts):
        write_prompt_file(out / PROMPT_FILE, task.requests, task.volume)
    _write_ct(out / CT_FILE, task.volume)
    names = {"ct": CT_FILE, "prompts": PROMPT_FILE, "segmentation": SEGMENTATION_FILE, "preview": PREVIEW_FILE}
    return {what: str(out / name) for what, name in names.items()}, notes


def _write_ct(path: Path, volume: CTVolume) -> None:
    if volume.source is not None and is_same_file(path, volume.source):
        return  # the user's own file stays as it is
    with atomic_path(path) as part:
        try:
            sitk.WriteImage(image_of(volume.array, volume.ijk_to_lps), str(part), useCompression=True)
        except RuntimeError as error:  # SimpleITK has no finer class for a full disk
            raise OutputError(f"{path} cannot be written; check the free space.") from error


def _clicks(count: int) -> str:
    return f"{count} click" + "s" * (count > 1)


def _show(
    task: _Task,
    found: frozenset[str],
    scores: Sequence[dict[str, float]],
    report: Sequence[dict[str, Any]],
    clock: Stopwatch,
) -> None:
    shape = " x ".join(str(n) for n in reversed(task.volume.shape_kji))
    parts = "; ".join(f"{what} {seconds:.1f} s" for what, seconds in clock.laps.items())
    stdout().print(_dice_table(found, scores, report) if scores else table_of(report))
    stdout().print(f"{shape} voxels, {len(report)} segments; {parts}.", soft_wrap=True)


def _dice_table(found: frozenset[str], scores: Sequence[dict[str, float]], report: Sequence[dict[str, Any]]) -> Table:
    first = "Auto-Segment, or one box where it knows no such organ," if found else "one box,"
    table = Table("Segment", "Begun by", title=f"Dice of each organ after {first} then after each simulated click")
    for turn in range(len(scores)):
        table.add_column(_clicks(turn) if turn else "first", justify="right")
    table.add_column("Volume (ml)", justify="right")
    for row in report:
        begun_by = AUTO if row["name"] in found else "one box"
        table.add_row(row["name"], begun_by, *(f"{s[row['name']]:.3f}" for s in scores), f"{row['volume_ml']:.1f}")
    table.add_section()
    table.add_row("mean", "", *(f"{np.mean(list(s.values())):.3f}" for s in scores))
    return table


def _tell_what_next(out: Path, ct: Path | None, prompts: Path | None) -> None:
    command = own_command()
    image, given, result, picture = (
        shlex.quote(str(path))
        for path in (ct or out / CT_FILE, prompts or out / PROMPT_FILE, out / "result.seg.nrrd", out / "result.png")
    )
    lines = [
        "",
        f"Results are in {out}:",
        f"  {CT_FILE} and {SEGMENTATION_FILE}   the image and its segments",
        f"  {PREVIEW_FILE}   the segmentation at a glance",
        f"  {PROMPT_FILE}   the prompts, to be edited",
        slicer_advice(out / CT_FILE, out / SEGMENTATION_FILE),
        "",
        "To segment it again from the prompts in that file, after editing them:"
        if ct
        else "With a CT of your own, a file or a DICOM folder, put its path and your prompts in the places of these:",
        f"  {command} segment {image} --prompts {given} -o {result} --preview {picture}",
    ]
    if ct is None:
        lines += [
            "Or let the demo find the organs in it:",
            f"  {command} demo --ct CT --out {shlex.quote(str(out))}-ct",
        ]
    for line in lines:
        stdout().print(line, soft_wrap=True)
