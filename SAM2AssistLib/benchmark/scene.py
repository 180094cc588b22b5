"""Something to segment: a phantom as long as wanted, with the masks of as many structures as wanted on one slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.volume import CTVolume

SEED = 11
DISTINCT_VOXELS = 200 * 256 * 256
"""A scene with more voxels goes to and fro through this many: what is timed does not depend on there being more."""
BODY_MM, SLICE_MM = 384.0, 1.5
LEAST_PIXELS = 30


@dataclass(frozen=True, eq=False)
class Scene:
    """A volume and masks on its middle slice.

    Attributes
    ----------
    volume : to segment; square slices.
    index : of the slice that the masks lie on.
    masks : (N, rows, columns) bool, none empty.
    """

    volume: CTVolume
    index: int
    masks: np.ndarray


def make_scene(slices: int, size: int, objects: int) -> Scene:
    """Make a scene; the same arguments give the same one.

    Parameters
    ----------
    slices, size : length of the volume, and side of its slices in pixels.
    objects : masks wanted. Where the slice has fewer structures, pairs of them follow.
    """
    pixel_mm = BODY_MM / size
    distinct = min(slices, DISTINCT_VOXELS // size**2)
    phantom = make_phantom(SEED, (distinct, size, size), (pixel_mm, pixel_mm, SLICE_MM))
    order = _to_and_fro(distinct, slices)
    volume = CTVolume.from_array(
        phantom.volume.array[order], (pixel_mm, pixel_mm, SLICE_MM), np.diag([pixel_mm, pixel_mm, SLICE_MM, 1.0])
    )
    index = slices // 2
    labels = phantom.labels[order[index]]
    least = LEAST_PIXELS * (size / 256) ** 2
    alone = [labels == n for n in phantom.names.values() if (labels == n).sum() >= least]
    pairs = [a | b for n, a in enumerate(alone) for b in alone[:n]]
    return Scene(volume, index, np.array((alone + pairs)[:objects]))


def _to_and_fro(distinct: int, count: int) -> np.ndarray:
    there_and_back = np.concatenate([np.arange(distinct), np.arange(distinct - 2, 0, -1)])
    return np.resize(there_and_back, count)
