"""How well a mask agrees with a reference: surfaces within a tolerance, and the 95th percentile of distances.

Surfaces and distances are MONAI's (``monai.metrics``). Two of the functions differ from MONAI's own on purpose, because
published tables were made by other programs: `hausdorff95` joins the distances of both directions before it takes the
percentile, as medpy's ``hd95`` does, and `surface_dice` weighs by surface area, as DeepMind's ``surface-distance`` does
(Nikolov et al., 2018), which the FLARE 2022 and CVPR 2025 challenges use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.io.named_mask import bounding_box

Mask = NDArray[np.bool_]


def surface_dice(mask: Mask, reference: Mask, spacing_kji: Sequence[float], tolerance_mm: float) -> float:
    """Return the share of both surfaces that lies within a tolerance of the other one (NSD), in [0, 1].

    Parameters
    ----------
    mask, reference : bool (k, j, i).
    spacing_kji : voxel size in mm along the array axes.
    tolerance_mm : distance at which surfaces count as the same.

    Returns
    -------
    1 if both are empty, 0 if one of them is.
    """
    if not mask.any() or not reference.any():
        return float(not mask.any() and not reference.any())
    import torch
    from monai.metrics import compute_surface_dice

    both = np.stack(_cropped(mask, reference))
    rows = torch.from_numpy(both)[:, None, None]  # (2, 1, 1, k, j, i)
    score = compute_surface_dice(
        rows[0], rows[1], [tolerance_mm], include_background=True, spacing=list(spacing_kji), use_subvoxels=True
    )
    return float(score)


def hausdorff95(mask: Mask, reference: Mask, spacing_kji: Sequence[float] = (1.0, 1.0, 1.0)) -> float:
    """Return the 95th percentile of the distances between the surfaces, from either to the other, all taken together.

    Parameters
    ----------
    mask, reference : bool (k, j, i), neither empty.
    spacing_kji : voxel size in mm along the array axes; without it the distance is in voxels, as if they were cubes.

    Raises
    ------
    ValueError
        If one of them is empty: there is no distance then, and which number to print is the protocol's to say.
    """
    if not mask.any() or not reference.any():
        raise ValueError("a surface distance needs two masks that are not empty")
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    edges, others = get_mask_edges(*_cropped(mask, reference), crop=False)
    spacing = list(spacing_kji)
    there = get_surface_distance(edges, others, distance_metric="euclidean", spacing=spacing)
    back = get_surface_distance(others, edges, distance_metric="euclidean", spacing=spacing)
    return float(np.percentile(np.hstack([there, back]), 95))


def largest_distance_mm(shape_kji: Sequence[int], spacing_kji: Sequence[float]) -> float:
    """Return the diagonal of a volume in mm: no two surfaces in it are further apart, so it is what a miss costs."""
    return math.dist([n * s for n, s in zip(shape_kji, spacing_kji, strict=True)], [0.0, 0.0, 0.0])


def _cropped(*masks: Mask) -> list[Mask]:
    """Cut masks to the box that holds all of them, with a rim of one voxel, so that no surface lies on the border."""
    box = bounding_box(reduce(np.logical_or, masks))
    assert box is not None
    return [np.pad(mask[box], 1) for mask in masks]
