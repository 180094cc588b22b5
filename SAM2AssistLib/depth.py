"""How deep in a mask a place lies: where a user who means it would click."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def depth_in(mask: NDArray[np.bool_], spacing: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Return how far each element of a mask lies from the nearest one outside it, which begins right beyond the array.

    Parameters
    ----------
    mask : bool, in any number of dimensions.
    spacing : between elements along each axis, for example in mm; 1 if not given.

    Returns
    -------
    In the units of the spacing and the shape of the mask; 0 outside of it.
    """
    depth = np.zeros(mask.shape)
    for part in ndimage.find_objects(mask.astype(np.uint8)):
        sampling = None if spacing is None else tuple(spacing)
        inner = ndimage.distance_transform_edt(np.pad(mask[part], 1), sampling=sampling)
        depth[part] = np.asarray(inner)[(slice(1, -1),) * mask.ndim]
    return depth


def deepest_in(mask: NDArray[np.bool_], spacing: Sequence[float] | None = None) -> tuple[int, ...]:
    """Return the index of the deepest element of a mask that is not empty, the first one of several; see `depth_in`."""
    return tuple(int(n) for n in np.unravel_index(int(depth_in(mask, spacing).argmax()), mask.shape))
