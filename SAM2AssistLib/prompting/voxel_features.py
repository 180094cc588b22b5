"""Features of all slices of a volume at once: what a head with context along z works on.

They are read slice by slice through one view, thinned to a fixed grid and kept as half precision in host memory: with
`mini` a quarter of a megabyte per slice, so that 600 slices take 160 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.views import View

if TYPE_CHECKING:
    from SAM2AssistLib.engine.plane import Plane

GRID = 64
"""Side of the finest level that is kept. `mini` has no finer one; larger models are thinned to it."""


@dataclass(frozen=True, eq=False)
class VoxelFeatures:
    """Features of N neighbouring slices.

    Attributes
    ----------
    levels : from coarse to fine, (N, C, h, w) float16 in host memory.
    view : through which all slices were seen.
    distance_mm : from slice to slice.
    """

    levels: tuple[Tensor, ...]
    view: View
    distance_mm: float

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.levels[0])

    @property
    def size_bytes(self) -> int:
        """Bytes that they take."""
        return sum(level.nbytes for level in self.levels)

    def part(self, first: int, last: int) -> VoxelFeatures:
        """Return the slices from ``first`` up to ``last``, excluded; nothing is copied."""
        return VoxelFeatures(tuple(level[first:last] for level in self.levels), self.view, self.distance_mm)


def read_features(plane: Plane, view: View, batch: int = 4) -> Iterator[VoxelFeatures | int]:
    """Encode all slices of a plane through one view.

    Parameters
    ----------
    plane : slices of a volume along an axis, with their encoder.
    view : the same for all slices.
    batch : slices between two yields.

    Yields
    ------
    The number of slices that are done, as often as a batch is; last the features of all.
    """
    levels: list[Tensor] | None = None
    for first in range(0, plane.slices, batch):
        indices = range(first, min(first + batch, plane.slices))
        for k, found in zip(indices, plane.network.features_of([(k, view) for k in indices]), strict=True):
            thinned = [_thinned(level) for level in (found.plain, found.middle, found.fine)]
            if levels is None:
                levels = [torch.empty((plane.slices, *t.shape), dtype=torch.float16) for t in thinned]
            for kept, level in zip(levels, thinned, strict=True):
                kept[k] = level
        yield min(first + batch, plane.slices)
    assert levels is not None
    yield VoxelFeatures(tuple(levels), view, plane.distance_mm)


def _thinned(level: Tensor) -> Tensor:
    if level.shape[-1] > GRID:
        level = F.adaptive_avg_pool2d(level[None].float(), GRID)[0]
    return level.to("cpu", torch.float16)
