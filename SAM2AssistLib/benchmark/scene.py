"""Something to segment: a phantom as long as wanted, with a box around each of as many structures as wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.volume import CTVolume

SEED = 11
DISTINCT_SLICES = 48
"""A longer scene goes to and fro through these: what is timed does not depend on there being more."""
BODY_MM, SLICE_MM = 384.0, 4.0
LEAST_PIXELS = 30


@dataclass(frozen=True, eq=False)
class Scene:
    """A volume and boxes on its middle slice.

    Attributes
    ----------
    volume : to segment; square slices.
    index : of the slice that the boxes lie on.
    boxes_xy : (N, 4) first column, first row, last column, last row.
    """

    volume: CTVolume
    index: int
    boxes_xy: np.ndarray

    def corners_ras(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Give two opposite corners of a box; (3,) RAS mm each."""
        x0, y0, x1, y1 = self.boxes_xy[number]
        corners = self.volume.ras_from_index_ijk([[x0, y0, self.index], [x1, y1, self.index]])
        return corners.min(axis=0), corners.max(axis=0)


def make_scene(slices: int, size: int, objects: int) -> Scene:
    """Make a scene; the same arguments give the same one.

    Parameters
    ----------
    slices, size : length of the volume, and side of its slices in pixels.
    objects : boxes wanted. Where the slice has fewer structures, boxes around pairs of them follow.
    """
    pixel_mm = BODY_MM / size
    phantom = make_phantom(SEED, (min(slices, DISTINCT_SLICES), size, size), (pixel_mm, pixel_mm, SLICE_MM))
    order = _to_and_fro(len(phantom.labels), slices)
    volume = CTVolume.from_array(
        phantom.volume.array[order], (pixel_mm, pixel_mm, SLICE_MM), np.diag([pixel_mm, pixel_mm, SLICE_MM, 1.0])
    )
    index = slices // 2
    labels = phantom.labels[order[index]]
    least = LEAST_PIXELS * (size / 256) ** 2
    boxes = [_box(labels == n) for n in phantom.names.values() if (labels == n).sum() >= least]
    pairs = [_around(a, b) for n, a in enumerate(boxes) for b in boxes[:n]]
    return Scene(volume, index, np.array((boxes + pairs)[:objects], np.float32))


def _to_and_fro(distinct: int, count: int) -> np.ndarray:
    there_and_back = np.concatenate([np.arange(distinct), np.arange(distinct - 2, 0, -1)])
    return np.resize(there_and_back, count)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def _around(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int, int, int]:
    (a, b, c, d), (e, f, g, h) = one, other
    return min(a, e), min(b, f), max(c, g), max(d, h)
