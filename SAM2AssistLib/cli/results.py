"""What the commands tell of a result: how long it took, what is in it, and what the user should look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from SAM2AssistLib.engine.store import expected_sha256
from SAM2AssistLib.io.algorithm import Algorithm, adapter_sha256
from SAM2AssistLib.io.atomic import atomic_path, ending_of
from SAM2AssistLib.io.named_mask import NamedMask, bounding_box
from SAM2AssistLib.io.segmentation import DICOM_ENDING, LABEL_MAP_ENDINGS, prompts_path_of, write_segmentation
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt, SegmentPrompts, prompt_file_content, prompt_file_text

if TYPE_CHECKING:
    from SAM2AssistLib.engine.catalogue import ModelSpec
    from SAM2AssistLib.engine.segment import PlacedPrompt
    from SAM2AssistLib.engine.session import Session
    from SAM2AssistLib.volume import CTVolume, Window

AXIS_LETTERS = ("k", "j", "i")

# Neighbours share a few voxels along their border; an overlap beyond both of these is told of.
_OVERLAP_ML = 0.5
_OVERLAP_PART = 0.05


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


def prompts_of(session: Session) -> list[SegmentPrompts]:
    """Return points and boxes of a session, whoever placed them; painted slices have no place in a prompt file."""
    margin = 0.5 if session.engine.options.whole_voxels else 0.0  # by which `place_box` has widened the boxes
    found = []
    for handle in session.segments:
        axis, points, boxes = session.segment_axis(handle), list[PointPrompt](), list[BoxPrompt]()
        for placed in session.prompts(handle):
            if not len(placed.points):
                continue
            low, high = placed.points.min(axis=0), placed.points.max(axis=0)
            if placed.is_box:
                first, last = _slices_of_box(placed)
                corners = (np.insert(low + margin, axis, first), np.insert(high - margin, axis, last))
                low_ijk, high_ijk = (_within(session.volume, corner) for corner in corners)
                boxes.append(BoxPrompt(low_ijk, high_ijk, axis if first == last else None))
            else:
                place = _within(session.volume, np.insert(low, axis, placed.index))
                points.append(PointPrompt(place, placed.says_present))
        if points or boxes:
            found.append(SegmentPrompts(handle.name, tuple(points), tuple(boxes)))
    return found


def _slices_of_box(placed: PlacedPrompt) -> tuple[int, int]:
    """First and last slice of a box in a prompt file.

    One in three dimensions is drawn on its middle slice. Auto-Segment draws it where it is surest: in three dimensions
    such a box would come back on another slice than the one that it fits.
    """
    return placed.reach if placed.reach is not None and placed.is_on_middle else (placed.index, placed.index)


def _within(volume: CTVolume, index_kji: NDArray[np.float64]) -> tuple[float, float, float]:
    """A position (k, j, i) as voxel indices (i, j, k) from the first voxel to the last."""
    k, j, i = np.clip(index_kji, 0, np.array(volume.shape_kji) - 1.0).tolist()
    return i, j, k


def write_result(
    output: Path,
    masks: Sequence[NamedMask],
    requests: Sequence[SegmentPrompts],
    session: Session,
    made_with: Algorithm,
    **how: object,
) -> tuple[str, ...]:
    """Write a result; a DICOM-SEG with its prompts inside and, as a prompt file, beside it.

    Parameters
    ----------
    output : Path
    masks : sequence of NamedMask
    requests : sequence of SegmentPrompts
        That led to it.
    session : Session
        In which it was made.
    made_with : Algorithm
    **how
        What else it takes to make it again, kept with the prompts.

    Returns
    -------
    tuple of str
        Sentences for the user about what the format could not hold.
    """
    if ending_of(output) != DICOM_ENDING:
        return write_segmentation(output, masks, session.volume)
    told = {
        **made_with.made_with,
        "axis": AXIS_LETTERS[session.axis],
        "window": window_as_json(session.window),
        **how,
    }
    text = prompt_file_text(prompt_file_content(requests, session.volume, made_with=told))
    notes = write_segmentation(output, masks, session.volume, algorithm=made_with, prompts_json=text)
    with atomic_path(prompts_path_of(output)) as part:
        part.write_text(text, encoding="utf-8")
    return notes


def algorithm_of(spec: ModelSpec, adapter: Path | None = None, *, is_automatic: bool = False) -> Algorithm:
    """Describe, for DICOM objects, the program with a model and an adapter; `is_automatic` if nobody prompted."""
    return Algorithm(
        is_automatic=is_automatic,
        model=spec.name,
        model_sha256=expected_sha256(spec) or "",
        adapter=adapter.resolve().name if adapter else "",
        adapter_sha256=adapter_sha256(adapter) if adapter else "",
    )


def report_on(session: Session) -> list[dict[str, Any]]:
    """Describe each segment: axis, voxels, volume in ml, slices along its axis, and mean confidence over these."""
    rows = []
    for handle in session.segments:
        mask, axis = session.mask(handle), session.segment_axis(handle)
        shown = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        confidence = session.confidence(handle)
        values = [confidence[int(k)] for k in shown if int(k) in confidence]
        voxels = int(mask.sum())
        rows.append(
            {
                "name": handle.name,
                "axis": AXIS_LETTERS[axis],
                "voxels": voxels,
                "volume_ml": round(voxels * _millilitres(session.volume), 2),
                "slices": len(shown),
                "confidence": round(float(np.mean(values)), 3) if values else 0.0,
            }
        )
    return rows


def window_as_json(window: Window) -> dict[str, float]:
    """Return a window as JSON tells it, in HU."""
    return {"level": float(window.level), "width": float(window.width)}


def table_of(report: Sequence[dict[str, Any]]) -> Table:
    """Lay the rows of `report_on` out for a terminal."""
    table = Table("Segment")
    for heading in ("Volume (ml)", "Slices", "Confidence"):
        table.add_column(heading, justify="right")
    for row in report:
        table.add_row(row["name"], f"{row['volume_ml']:.1f}", str(row["slices"]), f"{row['confidence']:.2f}")
    return table


def notes_on(masks: Sequence[NamedMask], volume: CTVolume) -> list[str]:
    """Tell of segments that came out empty, and of those that have more than a little in common; one sentence each."""
    boxes = {named.name: bounding_box(named.mask) for named in masks}
    notes = [f"'{name}' is empty; check where its prompts are." for name, box in boxes.items() if box is None]
    sizes = {named.name: int(np.count_nonzero(named.mask)) for named in masks}
    for first, second in combinations((named for named in masks if sizes[named.name]), 2):
        common = _common_voxels(first, second, boxes)
        ml = common * _millilitres(volume)
        if ml >= _OVERLAP_ML and common >= _OVERLAP_PART * min(sizes[first.name], sizes[second.name]):
            notes.append(
                f"{ml:.{0 if ml >= 10 else 1}f} ml belong to both '{first.name}' and '{second.name}'; if that is not "
                "meant, give one of them a negative point there."
            )
    return notes


def _common_voxels(first: NamedMask, second: NamedMask, boxes: dict[str, tuple[slice, slice, slice] | None]) -> int:
    one, other = boxes[first.name], boxes[second.name]
    if one is None or other is None:
        return 0
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return int(np.count_nonzero(first.mask[both] & second.mask[both]))


def _millilitres(volume: CTVolume) -> float:
    """Volume of a voxel."""
    return float(np.prod(volume.spacing_ijk)) / 1000


def slicer_advice(image: Path, segmentation: Path) -> str:
    """Say how to look at a result in 3D Slicer."""
    if ending_of(segmentation) == DICOM_ENDING:
        return (
            f"In 3D Slicer, with the extension QuantitativeReporting: Add DICOM Data for {image} and for "
            f"{segmentation}, then load both."
        )
    is_label_map = ending_of(segmentation) in LABEL_MAP_ENDINGS
    result = f"{segmentation} (as Segmentation, with Show Options)" if is_label_map else str(segmentation)
    how = f"Add DICOM Data for {image}, Add Data for {result}" if image.is_dir() else f"Add Data, {image} and {result}"
    return f"In 3D Slicer: {how}; then Show 3D in the module Segmentations."
