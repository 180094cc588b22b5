"""What the readers of files and of DICOM series have in common: quiet ITK, and doubts about the values of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import has_text_name, shown

# A CT in Hounsfield units shows fat (-100) or air (-1000) somewhere; what never comes below this is on another scale.
_LOWEST_HU_ABOVE = -50

# Labels fit in one byte, so an image with larger values is none.
_MAX_LABEL = 255

# With this many values or fewer an image is a mask: a CT clipped to the narrowest window in use, 80 HU, has 81.
_FEW_VALUES = 3

# Share of equal neighbours within slices, without those at the lowest or highest value: up to 0.05 in CT clipped to a
# window, up to 0.35 in CT squeezed to 8 bits, 0.8 in a map of 62 organs (measured on 9 CT volumes).
_LABEL_EQUAL_SHARE = 0.5


def check_name(path: Path) -> None:
    """Refuse a path that is no text, of which ITK ends the process; raises InputError."""
    if not has_text_name(path):
        raise InputError(f"The path {shown(path)} is no text in UTF-8; rename the file or its folder.")


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings off stderr, where one sentence of ours is expected, and restore them afterwards."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def scale_warnings(name: str, array: NDArray[Any]) -> tuple[str, ...]:
    """One sentence that begins with the name of the image if its values are hardly Hounsfield units, else nothing."""
    low, high = array.min(), array.max()
    if not low > _LOWEST_HU_ABOVE:
        return ()
    return (
        f"{name} does not look like CT in Hounsfield units: its values go from {low:g} to {high:g}, but fat and air "
        "are far below 0.",
    )


def is_label_map(array: NDArray[Any]) -> bool:
    """Whether voxels look like labels of regions rather than like a CT.

    Parameters
    ----------
    array : ndarray, shape (k, j, i)
        Finite or not; any real type.

    Returns
    -------
    bool
        True if all values are whole numbers from 0 to 255, more than one of them occurs, and either there are three at
        most or neighbours mostly have the same value. A CT that was clipped to a window from 0 HU up fails the latter,
        because noise makes neighbours differ.
    """
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= _MAX_LABEL and low != high):
        return False
    labels = array.astype(np.uint8)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        return False
    if np.count_nonzero(np.bincount(labels.reshape(-1))) <= _FEW_VALUES:
        return True
    return _share_of_equal_neighbours(labels, int(low), int(high)) >= _LABEL_EQUAL_SHARE


def _share_of_equal_neighbours(labels: NDArray[np.uint8], low: int, high: int) -> float:
    """Share of equal pairs of neighbours along j and i; pairs at the lowest or the highest value do not count."""
    equal = counted = 0
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:, :, :-1], labels[:, :, 1:])):
        same = first == second
        flat = int(np.count_nonzero(same & ((first == low) | (first == high))))
        equal += int(np.count_nonzero(same)) - flat
        counted += same.size - flat
    return equal / max(counted, 1)
