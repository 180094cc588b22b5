"""Clicks for a CT of which nothing is known: into the middle of what is large and homogeneous.

This knows no anatomy. It serves the demonstration on a user's own CT, where solid organs are what it finds.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompts import PointPrompt, SegmentPrompts
from SAM2AssistLib.volume import CTVolume

GRID_MM = 4.0
SOFT_TISSUE_HU = (20.0, 250.0)
FLAT_HU_PER_MM = 3.0
"""Steeper than this is an edge; within a smoothed organ the slope stays below."""
LEAST_DEPTH_MM = 8.0


def propose_prompts(volume: CTVolume, most: int = 4) -> tuple[SegmentPrompts, ...]:
    """Propose one click for each of the largest homogeneous soft-tissue regions.

    Parameters
    ----------
    volume : a CT in HU.
    most : regions at most.

    Raises
    ------
    InputError
        If there is none; the sentence says to give prompts instead.
    """
    spacing = np.array(volume.spacing_ijk[::-1])
    # Every n-th voxel first, so that no wider copy is made of a large volume; what is left out is finer than half the
    # grid, and the smoothing below is wider still.
    step = np.maximum(1, np.floor(GRID_MM / 2 / spacing)).astype(int)
    coarse = volume.array[:: step[0], :: step[1], :: step[2]].astype(np.float32)
    hu = ndimage.zoom(coarse, np.minimum(1.0, spacing * step / GRID_MM), order=1)
    # zoom lays the first and the last voxel of both grids on one another.
    pitch = step * (np.array(coarse.shape) - 1) / np.maximum(np.array(hu.shape) - 1, 1)
    cell = spacing * np.array(volume.shape_kji) / np.array(hu.shape)
    smooth = ndimage.gaussian_filter(hu, 3.0 / cell)
    if min(smooth.shape) < 2:
        raise InputError("The volume is too thin to find regions in; give prompts with --prompts FILE.json.")
    slope = np.sqrt(sum((g / c) ** 2 for g, c in zip(np.gradient(smooth), cell, strict=True)))
    flat = (smooth > SOFT_TISSUE_HU[0]) & (smooth < SOFT_TISSUE_HU[1]) & (slope < FLAT_HU_PER_MM)
    depth = ndimage.distance_transform_edt(flat, sampling=cell)
    requests: list[SegmentPrompts] = []
    while len(requests) < most and depth.max() >= LEAST_DEPTH_MM:
        place = np.array(np.unravel_index(int(depth.argmax()), depth.shape))
        index = np.round(place * pitch)
        click = PointPrompt((float(index[2]), float(index[1]), float(index[0])), True)
        requests.append(SegmentPrompts(f"region {len(requests) + 1}", (click,), ()))
        # The rest of the same region is not proposed again.
        components, _ = ndimage.label(depth > 0.4 * depth.max())
        depth[components == components[tuple(place)]] = 0
        grid = np.indices(depth.shape).reshape(3, -1).T
        near = np.linalg.norm((grid - place) * cell, axis=1) < 40.0
        depth.reshape(-1)[near] = 0
    if not requests:
        raise InputError("No large homogeneous region was found to click into; give prompts with --prompts FILE.json.")
    return tuple(requests)
