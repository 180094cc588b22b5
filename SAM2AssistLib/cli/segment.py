"""``sam2assist segment``: a CT and prompts in, a segmentation out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from SAM2AssistLib.cli.console import print_json, propagate_with_progress, stderr, tell, working
from SAM2AssistLib.errors import Cancelled, InputError, OutputError
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import check_output_path, write_segmentation
from SAM2AssistLib.prompts import read_prompt_file
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.session import Session

AXES = {"k": 0, "j": 1, "i": 2}


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file, or a folder with a DICOM series.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help=".seg.nrrd, or a label map .nii.gz, .nrrd or .mha.")
    ],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Points and boxes (JSON; see the README).")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="A name from 'sam2assist models list'.")] = "mini",
    adapter: Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="A LoRA adapter.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    series: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="Which series, where a folder holds several.")
    ] = None,
    axis: Annotated[
        str, typer.Option("--axis", help="Along which axis of the voxel grid masks travel: k (slices), j or i.")
    ] = "k",
    window: Annotated[
        str | None, typer.Option("--window", metavar="W", help="A preset such as abdomen, or LEVEL/WIDTH in HU.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option("--preview", metavar="PNG", help="Write a picture of slices with outlines, too.")
    ] = None,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="On Ctrl-C, write the slices that are finished.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Segment a CT from prompts: each mask starts at its prompts and travels slice to slice through the volume."""
    check_output_path(output)
    if preview is not None:
        check_preview_path(preview)
    if prompts is None:
        raise InputError("There are no prompts to segment from; name a file with --prompts FILE.json.")
    if axis not in AXES:
        raise InputError(f"There is no axis {axis!r}; choose --axis k, j or i.")
    chosen_window = None if window is None else parse_window(window)
    clock = Stopwatch()
    with working("Reading the image"):
        volume = CTVolume.read(image, series=series)
    tell(volume.warnings)
    requests = read_prompt_file(prompts, volume)
    clock.lap("read")
    with working(f"Loading {model}"):
        from SAM2AssistLib.engine.loading import load_engine

        engine = load_engine(model, device, adapter)
    clock.lap("load")
    with engine.open(volume, axis=AXES[axis], window=chosen_window) as session:
        try:
            for request in requests:
                session.add_prompts(request)
            clock.lap("prompts")
            propagate_with_progress(session)
        except KeyboardInterrupt:
            _write_partial(session, output, volume, keep_partial=keep_partial)
        clock.lap("propagate")
        masks = masks_of(session)
        tell(write_segmentation(output, masks, volume))
        clock.lap("write")
        if preview is not None:
            from SAM2AssistLib.io.preview import write_preview

            write_preview(preview, volume, masks, window=chosen_window)
        report = report_on(session)
    if as_json:
        print_json(
            {
                "output": str(output),
                "model": engine.spec.name,
                "device": str(engine.model.device),
                "segments": report,
                "seconds": clock.laps,
                "warnings": list(volume.warnings),
            }
        )
        return
    _print_table(report)
    seconds = clock.laps["prompts"] + clock.laps["propagate"]
    stderr().print(
        f"{output} written; {seconds:.1f} s on {engine.model.device} after loading.", soft_wrap=True, markup=False
    )


class Stopwatch:
    """Seconds of each part of a command."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def masks_of(session: Session) -> list[NamedMask]:
    """Return the masks of a session by name."""
    return [NamedMask(s.name, session.mask(s)) for s in session.segments]


def report_on(session: Session) -> list[dict[str, Any]]:
    """Describe each segment: voxels, volume in ml, slices, and mean confidence over these."""
    millilitres = float(np.prod(session.volume.spacing_ijk)) / 1000
    rows = []
    for handle in session.segments:
        mask, axis = session.mask(handle), session.segment_axis(handle)
        shown = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        confidence = session.confidence(handle)
        values = [confidence[int(k)] for k in shown if int(k) in confidence]
        rows.append(
            {
                "name": handle.name,
                "voxels": int(mask.sum()),
                "volume_ml": round(int(mask.sum()) * millilitres, 2),
                "slices": len(shown),
                "confidence": round(float(np.mean(values)), 3) if values else 0.0,
            }
        )
    return rows


def parse_window(text: str) -> Window:
    """Read a window as a preset's name or as LEVEL/WIDTH in HU.

    Raises
    ------
    InputError
        If it is neither.
    """
    if text in WINDOW_PRESETS:
        return WINDOW_PRESETS[text]
    level, slash, width = text.partition("/")
    try:
        if slash:
            return Window(float(level), float(width))
    except ValueError:
        pass
    raise InputError(f"{text!r} is no window; give LEVEL/WIDTH in HU or one of {', '.join(WINDOW_PRESETS)}.")


def check_preview_path(path: Path) -> None:
    """Refuse a picture that could not be written, before any work is done.

    Raises
    ------
    OutputError
        If the ending is not .png or the folder is missing.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"The preview {path.name} would not be a PNG; give it the ending .png.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} for the preview; make it first.")


def _write_partial(session: Session, output: Path, volume: CTVolume, *, keep_partial: bool) -> None:
    if not keep_partial:
        raise Cancelled(
            f"Cancelled; {output.name} was not written. To keep the slices finished by then, "
            "run again with --keep-partial."
        )
    session.cancel()
    masks = masks_of(session)
    if not any(m.mask.any() for m in masks):
        raise Cancelled("Cancelled before any slice was finished; nothing was written.")
    write_segmentation(output, masks, volume)
    raise Cancelled(f"Cancelled; the slices finished so far are in {output}.")


def _print_table(report: list[dict[str, Any]]) -> None:
    table = Table()
    for heading in ("Segment", "Volume (ml)", "Slices", "Confidence"):
        table.add_column(heading, justify="left" if heading == "Segment" else "right")
    for row in report:
        table.add_row(row["name"], f"{row['volume_ml']:.1f}", str(row["slices"]), f"{row['confidence']:.2f}")
    stderr().print(table)
