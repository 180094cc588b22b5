"""Focus: what is small in its slice is seen through a crop of its own.

At 256 pixels an aorta in a whole abdominal slice is three cells of the feature grid wide. Seen through a crop it is a
larger object, at the same cost. The crop follows the mask: where the mask comes close
to the crop's edge, the crop moves or grows until it has room again.
"""

from __future__ import annotations

import numpy as np

from SAM2AssistLib.engine.views import View, square_around, whole_slice

ROOM = 2.4
"""The crop's side as a multiple of the object's. Training clips are cut at 1.5 times the object and more."""
LEAST_SIDE_MM = 200.0
"""Smaller crops show texture rather than anatomy. Dice of five organs from one box, on a training CT and on held-out
phantoms: 0.43 and 0.67 with 60 mm, 0.52 and 0.77 with 160 mm, 0.56 and 0.79 with 200 mm."""
WHOLE_FROM = 0.8
"""A crop of this share of the whole slice gains nothing."""
MARGIN = 0.06
"""A mask nearer to the crop's edge than this share of its side has outgrown it."""


class Focus:
    """Chooses views of slices of one shape.

    Parameters
    ----------
    shape : (rows, columns) of the slices.
    spacing_mm : (row, column) spacing.
    """

    def __init__(self, shape: tuple[int, int], spacing_mm: tuple[float, float]) -> None:
        self.shape, self.spacing_mm = shape, spacing_mm
        self.whole = whole_slice(shape, spacing_mm)
        self._whole_side_mm = max(shape[0] * spacing_mm[0], shape[1] * spacing_mm[1])

    def around(self, low: tuple[float, float], high: tuple[float, float], least_mm: float = LEAST_SIDE_MM) -> View:
        """Choose the view for an object between two corners (row, column), both included."""
        centre = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
        extent_mm = max((b - a + 1) * s for a, b, s in zip(low, high, self.spacing_mm, strict=True))
        side_mm = max(least_mm, ROOM * extent_mm)
        if side_mm >= WHOLE_FROM * self._whole_side_mm:
            return self.whole
        return square_around(centre, side_mm, self.spacing_mm)

    def around_mask(self, mask: np.ndarray, view: View | None = None) -> View:
        """Choose the view for a mask (rows, columns) bool that is not empty, not smaller than a view it had before."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        least_mm = LEAST_SIDE_MM if view is None else view.rows * self.spacing_mm[0]
        return self.around((rows[0], columns[0]), (rows[-1], columns[-1]), least_mm)

    def outgrown(self, mask: np.ndarray, view: View) -> bool:
        """Tell whether a mask comes close to an edge of its view beyond which the slice goes on."""
        if view == self.whole or not mask.any():
            return False
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        for first, last, start, length, count in (
            (rows[0], rows[-1], view.row, view.rows, self.shape[0]),
            (columns[0], columns[-1], view.column, view.columns, self.shape[1]),
        ):
            margin = MARGIN * length
            if start > 0 and first < start + margin:
                return True
            if start + length < count and last >= start + length - margin:
                return True
        return False
