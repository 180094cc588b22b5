"""One orientation for all volumes: axial slices from feet to head, rows to the back, columns to the patient's left.

The readers keep the voxel grid as the file has it, and files differ. To a head that has learned where the liver lies,
or to a support case, a mirrored grid is another patient. Here a volume is seen in one orientation without a copy, and
what was found there is brought back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from SAM2AssistLib.engine.views import View
from SAM2AssistLib.volume import CTVolume


@dataclass(frozen=True)
class Orientation:
    """How the array (k, j, i) of a volume is turned to (superior, posterior, left).

    Attributes
    ----------
    axes : for superior, posterior and left, the array axis of the volume that runs along it.
    flips : whether that axis runs the other way.
    shape_kji : of the volume as it is.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape_kji: tuple[int, int, int]

    @classmethod
    def of(cls, volume: CTVolume) -> Orientation:
        """Find the turn of a volume, oblique ones to the nearest axes."""
        z, y, x = (volume.array_axis_of(view) for view in ("axial", "coronal", "sagittal"))
        # LPS: z superior, y posterior, x left; array axis a is voxel axis 2 - a.
        down, forward, right = (
            bool(volume.ijk_to_lps[component, 2 - axis] < 0) for component, axis in ((2, z), (1, y), (0, x))
        )
        return cls((z, y, x), (down, forward, right), volume.shape_kji)

    @property
    def axis(self) -> int:
        """Array axis of the volume along which its axial slices are stacked."""
        return self.axes[0]

    def turned(self, array: NDArray) -> NDArray:
        """Turn an array (k, j, i) to (superior, posterior, left), as a view."""
        selection = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array.transpose(self.axes)[selection]

    def turn(self, volume: CTVolume) -> CTVolume:
        """Turn a volume; its voxels are not copied."""
        array = self.turned(volume.array)
        matrix = np.eye(4)
        corner = np.zeros(3)
        for place, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            column = volume.ijk_to_lps[:3, 2 - axis]
            matrix[:3, 2 - place] = -column if flip else column
            corner[2 - axis] = self.shape_kji[axis] - 1 if flip else 0
        matrix[:3, 3] = volume.lps_from_index_ijk(corner)
        return replace(volume, array=array, ijk_to_lps=matrix, dicom_files=())

    def slice_back(self, index: int) -> int:
        """Tell which slice of the volume, along `axis`, an axial slice is."""
        return self.shape_kji[self.axis] - 1 - index if self.flips[0] else index

    def position_back(self, row: float, column: float) -> tuple[float, float]:
        """Bring a position on an axial slice back to (row, column) of the slice of the volume."""
        turned = []
        for value, axis, flip in zip((row, column), self.axes[1:], self.flips[1:], strict=True):
            turned.append((axis, self.shape_kji[axis] - 1 - value if flip else value))
        first, second = sorted(turned)
        return first[1], second[1]

    def view_back(self, view: View) -> View:
        """Bring a view of axial slices back."""
        low = self.position_back(view.row, view.column)
        high = self.position_back(view.row + view.rows - 1, view.column + view.columns - 1)
        corner, end = np.minimum(low, high), np.maximum(low, high)
        rows, columns = (end - corner + 1).astype(int)
        return View(int(corner[0]), int(corner[1]), int(rows), int(columns))

    def map_back(self, values: Tensor) -> Tensor:
        """Bring a map of an axial slice, (..., h, w) seen through a view, back to the view of `view_back`."""
        flipped = values.flip([d for d, flip in zip((-2, -1), self.flips[1:], strict=True) if flip])
        return flipped.transpose(-2, -1) if self.axes[1] > self.axes[2] else flipped
