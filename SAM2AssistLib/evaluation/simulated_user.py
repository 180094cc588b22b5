"""A simulated user with a reference in mind: one box to begin with, then clicks where the mask is most wrong.

The click is that of the CVPR 2025 challenge on interactive segmentation: in the largest connected error, where it is
deepest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt

_TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours


def box_on_middle_slice(reference: NDArray[np.bool_], axis: int = 0) -> BoxPrompt:
    """Draw the box of a reference on its middle slice.

    Parameters
    ----------
    reference : bool (k, j, i).
    axis : array axis (0 = k, 1 = j, 2 = i) in which the box is flat.

    Raises
    ------
    InputError
        If the reference is empty.
    """
    others = tuple(a for a in range(3) if a != axis)
    present = np.flatnonzero(reference.any(axis=others))
    if not len(present):
        raise InputError("The reference is empty; a box can only be drawn around something.")
    middle = int(present[len(present) // 2])
    low, high = np.empty(3), np.empty(3)
    section = np.take(reference, middle, axis=axis)
    low[axis] = high[axis] = middle
    for place, other in enumerate(others):
        seen = np.flatnonzero(section.any(axis=1 - place))
        low[other], high[other] = seen[0], seen[-1]
    return BoxPrompt(_ijk(low), _ijk(high), axis)


def correction_click(
    mask: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_kji: tuple[float, float, float]
) -> PointPrompt | None:
    """Click in the middle of the largest error: positive where something is missing, negative where there is too much.

    Parameters
    ----------
    mask, reference : bool (k, j, i).
    spacing_kji : mm, in which depth is measured.

    Returns
    -------
    The click, or None if nothing is wrong.
    """
    wrong = mask ^ reference
    components, count = ndimage.label(wrong, structure=_TOUCHING)
    if not count:
        return None
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    box = ndimage.find_objects(components)[largest - 1]
    region = np.pad(components[box] == largest, 1)
    depth = ndimage.distance_transform_edt(region, sampling=spacing_kji)
    place = np.array(np.unravel_index(int(depth.argmax()), region.shape)) - 1
    index_kji = place + np.array([part.start for part in box])
    return PointPrompt(_ijk(index_kji), bool(reference[tuple(index_kji)]))


def _ijk(index_kji: np.ndarray) -> tuple[float, float, float]:
    return float(index_kji[2]), float(index_kji[1]), float(index_kji[0])
