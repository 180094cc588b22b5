"""Something to segment: a phantom as long as wanted, with the masks of as many structures as wanted on one slice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.volume import CTVolume

SEED = 11
DISTINCT_SLICES = 200
"""A longer scene goes to and fro through these: what is timed does not depend on there being more."""
COARSE = 128
"""Pixels to a side that a phantom is made with, which takes its time; in larger scenes they are repeated."""
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
    array, labels, names = _phantom(min(slices, DISTINCT_SLICES), min(size, COARSE))
    order, pixel_mm = _to_and_fro(len(array), slices), BODY_MM / size
    volume = CTVolume.from_array(
        _enlarged(array, size)[order], (pixel_mm, pixel_mm, SLICE_MM), np.diag([pixel_mm, pixel_mm, SLICE_MM, 1.0])
    )
    index = slices // 2
    shown = _enlarged(labels[order[index]], size)
    least = LEAST_PIXELS * (size / 256) ** 2
    alone = [shown == n for n in names if (shown == n).sum() >= least]
    pairs = [a | b for n, a in enumerate(alone) for b in alone[:n]]
    return Scene(volume, index, np.array((alone + pairs)[:objects]))


@lru_cache(maxsize=1)
def _phantom(slices: int, side: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Make voxels in HU and labels, (slices, side, side) both, and which labels there are."""
    pixel_mm = BODY_MM / side
    phantom = make_phantom(SEED, (slices, side, side), (pixel_mm, pixel_mm, SLICE_MM))
    return phantom.volume.array, phantom.labels, tuple(phantom.names.values())


def _enlarged(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bring slices (..., rows, columns) to a size by repeating pixels."""
    nearest = np.arange(size) * pixels.shape[-1] // size
    return pixels[..., nearest[:, None], nearest]


def _to_and_fro(distinct: int, count: int) -> np.ndarray:
    there_and_back = np.concatenate([np.arange(distinct), np.arange(distinct - 2, 0, -1)])
    return np.resize(there_and_back, count)
