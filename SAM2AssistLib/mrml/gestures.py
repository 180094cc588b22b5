"""What a user draws in the views, independent of nodes, and how it becomes the engine's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from SAM2AssistLib.depth import deepest_in
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.words import translator
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.segment import PlacedPrompt

_ = translator(__file__)

DECIMALS = 6
"""Positions are kept to a nanometer, so that a node that is made again has the same prompt."""

SCRIBBLE_POINTS = 8
"""A scribble becomes so many clicks at most; SAM2 gains nothing from more on one slice."""

FLAT_BELOW_VOXELS = 0.75
"""A box thinner than this across the slices is meant for one slice."""


SOLID_BOX = "solid box"
"""What is placed by the tool for boxes in three dimensions; as a gesture it is a box like any other."""


class Kind(Enum):
    """The kinds of gestures."""

    POINT = "point"
    BOX = "box"
    SCRIBBLE = "scribble"
    LASSO = "lasso"


@dataclass(frozen=True)
class Gesture:
    """One gesture; equal ones are the same prompt.

    Attributes
    ----------
    kind : what was drawn.
    positive : in the segment, or outside of it; boxes and lassos are always positive.
    points_ras : RAS mm in the volume's own coordinates: the click; the eight corners of a box; the points along a
        scribble or a lasso.
    """

    kind: Kind
    positive: bool
    points_ras: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, kind: Kind, points_ras: ArrayLike, *, positive: bool = True) -> Gesture:
        """Make one of an array (3,) or (n, 3)."""
        rounded = np.asarray(points_ras, np.float64).reshape(-1, 3).round(DECIMALS) + 0.0  # -0.0 becomes 0.0
        return cls(kind, positive, tuple((float(x), float(y), float(z)) for x, y, z in rounded))

    def prompts(self, volume: CTVolume, axis: int) -> list[PointPrompt | BoxPrompt]:
        """Say it in the engine's words.

        Parameters
        ----------
        volume : in whose coordinates it is.
        axis : array axis (0 = k, 1 = j, 2 = i) along which the segment is propagated.

        Raises
        ------
        InputError
            If it lies outside the volume.
        """
        index_ijk = volume.index_ijk_from_ras(np.array(self.points_ras))
        if self.kind is Kind.BOX:
            return [box_around(volume, index_ijk, axis)]
        if self.kind is Kind.LASSO:
            return lasso_prompts(volume, index_ijk, axis)
        if self.kind is Kind.SCRIBBLE:
            index_ijk = _spread(index_ijk, SCRIBBLE_POINTS)
        return [PointPrompt((float(i), float(j), float(k)), self.positive) for i, j, k in index_ijk]


def changed_alike(
    before: Sequence[Gesture], after: Sequence[Gesture], others: Sequence[Gesture]
) -> tuple[Gesture, ...]:
    """Change other gestures as some have changed: without those that went, and with those that came."""
    kept = [gesture for gesture in others if gesture in after or gesture not in before]
    return (*kept, *(gesture for gesture in after if gesture not in before and gesture not in kept))


def gesture_of(prompt: PlacedPrompt, axis: int, volume: CTVolume) -> Gesture | None:
    """Say a prompt of the engine as the gesture a user would have made; None for an edited slice."""
    if not len(prompt.points):
        return None
    corners = prompt.points
    if prompt.is_box:  # its eight corners, in the order in which an ROI's are read
        (row0, column0), (row1, column1) = prompt.points
        corners = np.array([(r, c) for r in (row0, row1) for c in (column0, column1) for _ in range(2)])
    index_kji = np.insert(corners.astype(float), axis, prompt.index, axis=1)
    points = volume.ras_from_index_ijk(index_kji[:, ::-1])
    kind = Kind.BOX if prompt.is_box else Kind.POINT
    return Gesture.of(kind, points, positive=bool(prompt.labels[0] != 0))


def box_around(volume: CTVolume, corners_ijk: NDArray[np.float64], axis: int) -> BoxPrompt:
    """Make the smallest box of voxels around corners (n, 3), clipped to the volume.

    It lies on one slice where it is flat; in an oblique volume that can be so only across the segment's own axis.

    Raises
    ------
    InputError
        If it lies outside the volume or has no size.
    """
    low, high = corners_ijk.min(axis=0), corners_ijk.max(axis=0)
    last = np.array(volume.shape_kji[::-1]) - 1.0
    if (high < -0.5).any() or (low > last + 0.5).any():
        raise InputError(_("The box lies outside the volume; draw it on the image."))
    flat = [a for a in (axis, *({0, 1, 2} - {axis})) if high[2 - a] - low[2 - a] < FLAT_BELOW_VOXELS]
    if len(flat) > 1:
        raise InputError(_("The box is a line; draw it from one corner of the structure to the opposite one."))
    low, high = low.clip(0, last), high.clip(0, last)
    if flat:
        across = 2 - flat[0]
        low[across] = high[across] = np.floor((low[across] + high[across]) / 2 + 0.5).clip(0, last[across])
    return BoxPrompt(_three(low), _three(high), flat[0] if flat else None)


def lasso_prompts(volume: CTVolume, index_ijk: NDArray[np.float64], axis: int) -> list[PointPrompt | BoxPrompt]:
    """Read a lasso as the box around it and a click where it is widest, on the slice it was drawn on.

    A lasso drawn in another view (or an oblique one) says where the segment is, but bounds it on no single slice: it
    is read as clicks inside of it.

    Raises
    ------
    InputError
        If it encloses nothing or lies outside the volume.
    """
    from skimage.draw import polygon2mask  # not part of Slicer, which imports this file before the first run

    across = 2 - axis
    thickness = float(np.ptp(index_ijk[:, across]))
    if thickness >= FLAT_BELOW_VOXELS + 1:
        middle = index_ijk.mean(axis=0)
        inner = _spread(middle + 0.5 * (index_ijk - middle), SCRIBBLE_POINTS // 2)
        return [PointPrompt(_three(point), True) for point in (middle, *inner)]
    index = float(np.floor(np.median(index_ijk[:, across]) + 0.5))
    flat = index_ijk.copy()
    flat[:, across] = index
    box = box_around(volume, flat, axis)
    rows_columns = np.delete(flat[:, ::-1], axis, axis=1)
    shape = tuple(n for a, n in enumerate(volume.shape_kji) if a != axis)
    inside = polygon2mask(shape, rows_columns)
    if not inside.any():
        raise InputError(_("The lasso encloses no pixel; draw it around the structure."))
    deepest = np.insert(np.array(deepest_in(inside), float), axis, index)
    return [box, PointPrompt(_three(deepest[::-1]), True)]


def _spread(points: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Choose so many of the points at most, evenly."""
    if len(points) <= count:
        return points
    return points[np.linspace(0, len(points) - 1, count).round().astype(int)]


def _three(point: NDArray[np.float64]) -> tuple[float, float, float]:
    i, j, k = (float(number) for number in point)
    return i, j, k
