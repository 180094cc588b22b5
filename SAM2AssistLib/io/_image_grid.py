"""Where a DICOM image or a frame of one lies: DICOM PS3.3 C.7.6.2 Image Plane, C.7.6.16.2 functional groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

# Classes whose geometry is told frame by frame: enhanced CT, legacy converted enhanced CT, enhanced MR.
ENHANCED_CLASSES = frozenset(
    {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.4.1"}
)


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Where an image lies: DICOM PS3.3 C.7.6.2.1.1.

    Attributes
    ----------
    position_lps : ndarray, shape (3,)
        Centre of the first pixel in LPS mm (ImagePositionPatient).
    direction_i, direction_j : ndarray, shape (3,)
        LPS unit vectors along a row and along a column (ImageOrientationPatient).
    row_spacing, column_spacing : float
        Distance of rows and of columns in mm (PixelSpacing).
    """

    position_lps: NDArray[np.float64]
    direction_i: NDArray[np.float64]
    direction_j: NDArray[np.float64]
    row_spacing: float
    column_spacing: float

    @property
    def normal_lps(self) -> NDArray[np.float64]:
        """LPS unit vector across the image, on the side that makes (i, j, normal) right-handed."""
        normal = np.cross(self.direction_i, self.direction_j)
        return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)

    @property
    def numbers(self) -> NDArray[np.float64]:
        """What the slices of a stack have in common, in one array."""
        return np.concatenate([self.direction_i, self.direction_j, [self.row_spacing, self.column_spacing]])


def is_enhanced(dataset: Dataset) -> bool:
    """Whether the geometry of an object is told frame by frame."""
    return str(dataset.get("SOPClassUID") or "") in ENHANCED_CLASSES


def grid_of(dataset: Dataset) -> ImageGrid | None:
    """Where a single-frame image lies, None if that is not told or impossible."""
    return _grid(dataset, dataset, dataset)


def frame_grids(dataset: Dataset) -> list[ImageGrid] | None:
    """Where each frame of an image with functional groups lies; None if that is not told or impossible for one.

    Parameters
    ----------
    dataset : Dataset
        Enhanced image or segmentation with its functional groups.
    """
    grids: list[ImageGrid] = []
    for frame in range(len(dataset.get("PerFrameFunctionalGroupsSequence") or [])):
        grid = _grid(
            functional_group(dataset, frame, "PlanePositionSequence"),
            functional_group(dataset, frame, "PlaneOrientationSequence"),
            functional_group(dataset, frame, "PixelMeasuresSequence"),
        )
        if grid is None:
            return None
        grids.append(grid)
    return grids or None


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """The item of a functional group for a frame (from 0): its own, else the one that all frames share, else empty."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for place in (dataset.PerFrameFunctionalGroupsSequence[frame], *shared):
        if place.get(keyword):
            item: Dataset = place[keyword].value[0]
            return item
    return Dataset()


def values_of(dataset: Dataset, keyword: str) -> list[object]:
    """Values of an element that may be absent, empty, single or multiple."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def text_in(dataset: Dataset, keyword: str) -> str:
    """The text of an element, "" if there is none; a backslash that somebody typed into it divides it."""
    value = dataset.get(keyword) or ""
    return ("/".join(map(str, value)) if isinstance(value, MultiValue) else str(value)).strip()


def _grid(positioned: Dataset, oriented: Dataset, measured: Dataset) -> ImageGrid | None:
    position, orientation, spacing = (
        np.array([float(str(value)) for value in values_of(holder, keyword)])
        for holder, keyword in (
            (positioned, "ImagePositionPatient"),
            (oriented, "ImageOrientationPatient"),
            (measured, "PixelSpacing"),
        )
    )
    if (position.size, orientation.size, spacing.size) != (3, 6, 2):
        return None
    directions = orientation.reshape(2, 3)
    if not np.all(np.isfinite(np.concatenate([position, orientation, spacing]))) or np.any(spacing <= 0):
        return None
    # Orientation is often written with few decimals, so a length of nearly 1 is brought to 1.
    lengths = np.linalg.norm(directions, axis=1)
    if np.any(np.abs(lengths - 1) > 0.01) or abs(float(directions[0] @ directions[1])) > 0.01:
        return None
    direction_i = directions[0] / lengths[0]
    direction_j = directions[1] - (directions[1] @ direction_i) * direction_i
    return ImageGrid(
        position_lps=position,
        direction_i=direction_i,
        direction_j=direction_j / np.linalg.norm(direction_j),
        row_spacing=float(spacing[0]),
        column_spacing=float(spacing[1]),
    )
