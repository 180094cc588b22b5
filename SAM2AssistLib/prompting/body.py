"""The frame that patients share: a square around the body, so that an organ is at about the same place in all of them.

Scans differ in their field of view and patients in their size. A support case and a new volume, or the phantoms a head
was trained on and a patient, become comparable when each is seen through a view that fits its own body.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from SAM2AssistLib.engine.views import View, square_around, whole_slice
from SAM2AssistLib.volume import CTVolume

BODY_HU = -300.0
"""Between fat (about -110) and air or lung; the lungs are inside the skin and do not matter to the box."""
COARSE_MM = 6.0
THIN_MM = 14.0
"""Tables, wires and sheets are thinner than this and are opened away; no trunk and no thigh is."""
DEEP = 0.5
"""Columns count from this share of the deepest one on: arms beside the trunk are less deep, and are left out."""
MARGIN = 1.2
"""Of an elliptic trunk, the columns that count are 0.87 of its width; the view shows all of it and some air."""
MOST_SLICES = 48
"""Slices looked at; the frame is the median over them."""


def body_view(volume: CTVolume, axis: int = 0) -> View:
    """Choose the square view that fits the body, one for all slices along an axis.

    Parameters
    ----------
    volume : in HU; for what is not in HU (nothing below `BODY_HU`), the whole slice is returned.
    axis : array axis (0 = k, 1 = j, 2 = i) of the slices.

    Returns
    -------
    A square in mm, centred on the median box of the body.
    """
    shape = tuple(n for a, n in enumerate(volume.shape_kji) if a != axis)
    spacing_mm = volume.slice_spacing(axis)
    count = volume.shape_kji[axis]
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_SLICES)).round().astype(int))
    boxes = [box for k in chosen if (box := _body_box(volume.slice_hu(axis, int(k)), spacing_mm)) is not None]
    if not boxes or int(volume.array.min()) > BODY_HU:
        return whole_slice((shape[0], shape[1]), spacing_mm)
    row, column, row_end, column_end = np.median(np.array(boxes), axis=0)
    side_mm = MARGIN * max((row_end - row) * spacing_mm[0], (column_end - column) * spacing_mm[1])
    return square_around(((row + row_end - 1) / 2, (column + column_end - 1) / 2), float(side_mm), spacing_mm)


def _body_box(hu: NDArray[np.int16], spacing_mm: tuple[float, float]) -> tuple[int, int, int, int] | None:
    """First row and column and those after the last, in pixels of the slice; None without a body."""
    steps = [max(1, int(COARSE_MM / spacing)) for spacing in spacing_mm]
    tissue = hu[:: steps[0], :: steps[1]] > BODY_HU
    reach = [max(1, round(THIN_MM / 2 / (step * spacing))) for step, spacing in zip(steps, spacing_mm, strict=True)]
    tissue = ndimage.binary_opening(ndimage.binary_fill_holes(tissue), np.ones([2 * r + 1 for r in reach], bool))
    components, found = ndimage.label(tissue)
    if not found:
        return None
    sizes = np.bincount(components.ravel())[1:]
    # Two legs are both the patient; a pillow or an arm rest is far smaller.
    keep = np.isin(components, 1 + np.flatnonzero(sizes >= 0.25 * sizes.max()))
    depth = keep.sum(axis=0)
    columns = np.flatnonzero(depth >= DEEP * depth.max())
    rows = np.flatnonzero(keep[:, columns].any(axis=1))
    return (
        int(rows[0] * steps[0]),
        int(columns[0] * steps[1]),
        int(min(hu.shape[0], (rows[-1] + 1) * steps[0])),
        int(min(hu.shape[1], (columns[-1] + 1) * steps[1])),
    )
