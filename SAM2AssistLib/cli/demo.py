"""``sam2assist demo``: the whole path on a phantom, or on a CT of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import SimpleITK as sitk
import typer
from rich.table import Table

from SAM2AssistLib.cli.console import print_json, propagate_with_progress, stderr, tell, working
from SAM2AssistLib.cli.segment import Stopwatch, masks_of, report_on
from SAM2AssistLib.errors import OutputError
from SAM2AssistLib.io.atomic import atomic_path
from SAM2AssistLib.io.segmentation import write_segmentation
from SAM2AssistLib.prompts import SegmentPrompts, read_prompt_file, write_prompt_file
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from SAM2AssistLib.engine.session import Session

DEMO_SEED = 20
"""Of the phantom. Training draws its seeds from 10^11 upwards, so this phantom has never been trained on."""
DEMO_SHAPE_KJI, DEMO_SPACING_IJK = (48, 224, 224), (1.6, 1.6, 5.0)
DEMO_ORGANS = ("liver", "spleen", "kidney_right", "kidney_left", "aorta", "stomach", "tumor", "vertebrae")


@dataclass(frozen=True, eq=False)
class _Task:
    """What the demo segments.

    Attributes
    ----------
    volume : the CT.
    requests : first prompts of each segment.
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
    corrections: Annotated[int, typer.Option("--corrections", min=0, help="Simulated clicks for each organ.")] = 3,
    model: Annotated[str, typer.Option("--model", help="A name from 'sam2assist models list'.")] = "mini",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Segment a CT phantom from one box per organ, correct it with simulated clicks, and show how well it went."""
    _make_folder(out)
    with working("Making the phantom" if ct is None else "Reading the image"):
        task = _phantom_task() if ct is None else _own_task(ct, prompts)
    tell(task.volume.warnings)
    from SAM2AssistLib.engine.loading import load_engine

    with working(f"Loading {model}"):
        engine = load_engine(model, device)
    clock = Stopwatch()
    scores: list[dict[str, float]] = []
    with engine.open(task.volume) as session:
        for request in task.requests:
            session.add_prompts(request)
        propagate_with_progress(session)
        clock.lap("first result")
        if task.references:
            scores.append(_scores(session, task))
            for turn in range(corrections):
                _correct(session, task)
                scores.append(_scores(session, task))
                clock.lap(f"correction {turn + 1}")
        report = report_on(session)
        _write(out, session, task)
    files = {name: str(out / name) for name in ("ct.nrrd", "prompts.json", "segmentation.seg.nrrd", "preview.png")}
    if as_json:
        print_json({"dice": scores, "segments": report, "seconds": clock.laps, "files": files})
        return
    _show(task, scores, report, clock)
    _tell_what_next(out, own=ct is not None)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {out} cannot be made ({error.strerror}); choose another with --out.") from error


def _phantom_task() -> _Task:
    from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice
    from SAM2AssistLib.training.phantoms import make_phantom

    phantom = make_phantom(DEMO_SEED, DEMO_SHAPE_KJI, DEMO_SPACING_IJK)
    names = [name for name in DEMO_ORGANS if name in phantom.names]
    references = {name: phantom.labels == phantom.names[name] for name in names}
    requests = tuple(SegmentPrompts(name, (), (box_on_middle_slice(mask),)) for name, mask in references.items())
    return _Task(phantom.volume, requests, references)


def _own_task(ct: Path, prompts: Path | None) -> _Task:
    from SAM2AssistLib.prompting.proposals import propose_prompts

    volume = CTVolume.read(ct)
    requests = propose_prompts(volume) if prompts is None else read_prompt_file(prompts, volume)
    return _Task(volume, requests, {})


def _scores(session: Session, task: _Task) -> dict[str, float]:
    from SAM2AssistLib.evaluation.metrics import dice

    return {s.name: round(dice(session.mask(s), task.references[s.name]), 4) for s in session.segments}


def _correct(session: Session, task: _Task) -> None:
    """Let the simulated user click once for each organ, then propagate what changed."""
    from SAM2AssistLib.evaluation.simulated_user import correction_click

    spacing_kji = task.volume.spacing_ijk[::-1]
    for handle in session.segments:
        click = correction_click(session.mask(handle), task.references[handle.name], spacing_kji)
        if click is not None:
            session.place_point(handle, click)
    propagate_with_progress(session)


def _write(out: Path, session: Session, task: _Task) -> None:
    from SAM2AssistLib.io.preview import write_preview

    masks = masks_of(session)
    tell(write_segmentation(out / "segmentation.seg.nrrd", masks, task.volume))
    write_preview(out / "preview.png", task.volume, masks)
    write_prompt_file(out / "prompts.json", task.requests, task.volume)
    with atomic_path(out / "ct.nrrd") as path:
        sitk.WriteImage(_as_image(task.volume), str(path), useCompression=True)


def _as_image(volume: CTVolume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array)
    matrix, spacing = volume.ijk_to_lps, volume.spacing_ijk
    image.SetSpacing(spacing)
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / np.array(spacing)).ravel().tolist())
    return image


def _show(task: _Task, scores: Sequence[dict[str, float]], report: Sequence[dict[str, Any]], clock: Stopwatch) -> None:
    table = Table(title="Dice of each organ" if scores else "Segments")
    table.add_column("Segment")
    if scores:
        for turn in range(len(scores)):
            heading = "one box" if turn == 0 else f"{turn} click" + "s" * (turn > 1)
            table.add_column(heading, justify="right")
    table.add_column("Volume (ml)", justify="right")
    for row in report:
        table.add_row(row["name"], *(f"{s[row['name']]:.3f}" for s in scores), f"{row['volume_ml']:.0f}")
    if scores:
        table.add_section()
        table.add_row("mean", *(f"{np.mean(list(s.values())):.3f}" for s in scores), "")
    console = stderr()
    console.print(table)
    shape = " x ".join(str(n) for n in reversed(task.volume.shape_kji))
    console.print(f"{shape} voxels, {len(report)} segments; seconds: {json.dumps(clock.laps)}", markup=False)


def _tell_what_next(out: Path, *, own: bool) -> None:
    lines = [
        f"Results in {out}: ct.nrrd, segmentation.seg.nrrd (open both in 3D Slicer), preview.png, prompts.json.",
        "With boxes and points of your own (prompts.json shows how they are written):"
        if own
        else "The same with your own CT, a file or a DICOM folder:  make demo CT=path,  or with prompts of your own:",
        f"  sam2assist segment CT -o result.seg.nrrd --prompts {out / 'prompts.json'} --preview result.png",
    ]
    for line in lines:
        stderr().print(line, soft_wrap=True, markup=False)
