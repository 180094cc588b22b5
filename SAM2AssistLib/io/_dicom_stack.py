"""Slices above one another: their order, whether they form an even and rectangular grid, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import ImageHeader
from SAM2AssistLib.io._image_grid import ImageGrid
from SAM2AssistLib.volume import MAX_SHEAR_COSINE

# Images closer than this are at the same position.
SAME_POSITION_MM = 0.01

# Slices that are off an even grid by less, in mm or in parts of their distance, were rounded in writing.
_EVEN_WITHIN_MM = 0.01
_EVEN_WITHIN_PART = 0.01

# By how much a slice distance may be smaller or larger than the usual one before the series is refused: beyond this,
# interpolated slices would look different from acquired ones.
_UNEVEN_WITHIN_PART = 0.25

# A distance this near to 2, 3, ... times the usual one is a gap where slices are missing.
_MULTIPLE_WITHIN = 0.15

# Sideways slip of slices that rounding of positions explains.
_SLIP_WITHIN_MM = 0.05


@dataclass(frozen=True)
class Stack:
    """Images of one grid in the order of their position along the normal of the slices.

    Attributes
    ----------
    headers : tuple of ImageHeader
        One for each slice.
    normal_lps : ndarray, shape (3,)
        Unit vector across the slices: cross product of the directions of rows and columns, so the grid is right-handed.
    distances : ndarray, shape (n,)
        Positions along the normal in mm, ascending.
    """

    headers: tuple[ImageHeader, ...]
    normal_lps: NDArray[np.float64]
    distances: NDArray[np.float64]

    @property
    def step(self) -> float:
        """Mean distance of slices in mm."""
        return float(self.distances[-1] - self.distances[0]) / (len(self.distances) - 1)

    @property
    def even_distances(self) -> NDArray[np.float64]:
        """Positions of an even grid from the first slice to the last, in mm along the normal."""
        return np.asarray(self.distances[0] + self.step * np.arange(len(self.distances)), dtype=np.float64)

    @property
    def is_even(self) -> bool:
        """Whether the slices lie on the even grid but for rounding."""
        allowed = max(_EVEN_WITHIN_MM, _EVEN_WITHIN_PART * self.step)
        return bool(np.abs(self.distances - self.even_distances).max() <= allowed)


def stacked(folder: Path, images: Sequence[ImageHeader]) -> Stack:
    """Sort images along their normal, and make sure that they are above one another and not twice the same."""
    if len(images) < 2:
        raise InputError(f"The series in '{folder.name}' has one slice only; a volume of several is needed.")
    normal = grid_of(images[0]).normal_lps
    positions = np.array([grid_of(header).position_lps for header in images])
    order = np.argsort(positions @ normal, kind="stable")
    stack = Stack(tuple(images[index] for index in order), normal, (positions @ normal)[order])
    gaps = np.diff(stack.distances)
    if gaps.min() < SAME_POSITION_MM:
        first = int(np.argmin(gaps))
        names = " and ".join(header.path.name for header in stack.headers[first : first + 2])
        raise InputError(
            f"The series in '{folder.name}' has two images at {_place(stack, stack.distances[first])} ({names}), as in "
            "a series of several time points; keep one image for each position."
        )
    _refuse_tilted(folder, stack, positions[order])
    return stack


def _refuse_tilted(folder: Path, stack: Stack, positions: NDArray[np.float64]) -> None:
    """Refuse slices that are shifted sideways against one another, as a tilted gantry makes them."""
    along = stack.distances - stack.distances[0]
    slip = positions - positions[0] - along[:, None] * stack.normal_lps
    if np.linalg.norm(slip, axis=1).max() <= max(_SLIP_WITHIN_MM, MAX_SHEAR_COSINE * along[-1]):
        return
    angle = np.degrees(np.arctan2(np.linalg.norm(slip[-1]), along[-1]))
    raise InputError(
        f"The series in '{folder.name}' was scanned with a tilted gantry ({angle:.1f} degrees), so its slices slip "
        "sideways and form no rectangular grid; convert it with a tool that corrects the tilt, for example dcm2niix."
    )


def refuse_uneven(folder: Path, stack: Stack) -> None:
    """Refuse missing slices and strongly uneven distances."""
    gaps = np.diff(stack.distances)
    # The lower of two middle values, so that of two distances the smaller is the usual one.
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    ratios = gaps / usual
    for index, ratio in enumerate(ratios):
        missing = round(float(ratio)) - 1
        if missing >= 1 and abs(ratio - missing - 1) <= _MULTIPLE_WITHIN:
            first = _place(stack, stack.distances[index] + gaps[index] / (missing + 1))
            what = f"a slice is missing at {first}" if missing == 1 else f"{missing} slices are missing from {first} on"
            raise InputError(
                f"The series in '{folder.name}' has a gap: {what} (usual distance {usual:.2f} mm); copy all its files."
            )
    worst = int(np.argmax(np.abs(ratios - 1)))
    if abs(ratios[worst] - 1) > _UNEVEN_WITHIN_PART:
        raise InputError(
            f"The series in '{folder.name}' has uneven slice distances, {gaps[worst]:.2f} mm at "
            f"{_place(stack, stack.distances[worst])} where {usual:.2f} mm is usual; resample it to even slices first."
        )


def _place(stack: Stack, distance: float) -> str:
    """Give the position of a slice as a user finds it in the headers: "z = 12.0 mm" in axial slices."""
    first = grid_of(stack.headers[0]).position_lps
    position = first + (distance - stack.distances[0]) * stack.normal_lps
    axis = int(np.argmax(np.abs(stack.normal_lps)))
    return f"{'xyz'[axis]} = {position[axis]:.1f} mm"


def resampled(voxels: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """Interpolate linearly between the two nearest slices at each position of the even grid."""
    even = np.empty_like(voxels)
    for index, distance in enumerate(stack.even_distances):
        upper = int(np.clip(np.searchsorted(stack.distances, distance), 1, len(stack.distances) - 1))
        low, high = stack.distances[upper - 1], stack.distances[upper]
        part = np.float32(np.clip((distance - low) / (high - low), 0.0, 1.0))
        even[index] = np.rint(voxels[upper - 1] * (1 - part) + voxels[upper] * part)
    return even


def geometry(stack: Stack) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Matrix from voxel indices (i, j, k) to LPS mm, and spacing along i, j and k in mm."""
    grid = grid_of(stack.headers[0])
    spacing = (grid.column_spacing, grid.row_spacing, stack.step)
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([grid.direction_i, grid.direction_j, stack.normal_lps]) * np.array(spacing)
    matrix[:3, 3] = grid.position_lps
    return matrix, spacing


def grid_of(header: ImageHeader) -> ImageGrid:
    """Give the grid of a header for which it was made sure that there is one."""
    assert header.grid is not None
    return header.grid
