"""A click on a mask that is there corrects it around the click; the rest stays as it is shown.

A network that decodes a whole slice again for one click redraws what was right already, and to a click that says "not
here" it often answers that the object is nowhere. What the click is about is seen better in what is shown: the lobe of
the mask that it lies in, or the part that is lacking. So the network is asked what it would add, but not what it would
change elsewhere, as in the progressive merge of FocalClick (Chen et al., CVPR 2022, section 3.3); and the edges of what
is added are those of a random walk (`random_walk`). What other slices learn of a click is decided in `plane`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from SAM2AssistLib.engine.random_walk import FIXED, passages, walk_to_end

Mask = NDArray[np.bool_]

LEAST_MM, MOST_MM = 3.0, 30.0
"""Radius of what a click takes away at least, and of what it makes certain at least and at most."""
LOBE_SHARE = 1.2
"""A negative click takes away a disc of this radius, compared with the largest around it that is still in the mask."""
MIDDLE_SHARE = 0.95
"""A click that lies as deep in the mask as any pixel, but for this share, may mean that nothing of it is right."""
ALIKE = 0.25
"""How much the grey value of what a positive click makes certain may differ from its own, of a window of 1."""
ROOM_MM = 15.0
"""How far beyond that a mask may grow."""
MASK_ODDS, MASK_FORCE = 3.0, 0.02
"""Log odds of what is shown, and the force by which it holds, see `random_walk`. Chosen, as the others, on 300 positive
and 381 negative clicks on training cases, see Resources/Docs/evaluation.md."""
STEPS, TOLERANCE = 120, 1e-3


def depth_mm(mask: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Return how far each pixel (rows, columns) of a mask lies within it; 0 outside of it."""
    depth = np.zeros(mask.shape)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        # Beyond the image nothing is known to be the object.
        inner = ndimage.distance_transform_edt(np.pad(mask[part], 1), sampling=tuple(spacing_mm))
        depth[part] = np.asarray(inner)[1:-1, 1:-1]
    return depth


def is_middle(depth: NDArray[np.float64], pixel: tuple[int, int]) -> bool:
    """Whether a pixel (row, column) lies in the very middle of a mask; see `depth_mm`."""
    return bool(depth[pixel] >= MIDDLE_SHARE * depth.max() > 0)


def without_lobe(shown: Mask, depth: NDArray[np.float64], pixel: tuple[int, int], spacing_mm: Sequence[float]) -> Mask:
    """Take away the part of a mask that a negative click lies in.

    Parameters
    ----------
    shown : (rows, columns).
    depth : (rows, columns), its `depth_mm`.
    pixel : (row, column) of the click.
    spacing_mm : of the pixels, (rows, columns).

    Returns
    -------
    (rows, columns), a part of what is shown without the pixel.
    """
    radius = max(LEAST_MM, LOBE_SHARE * float(depth[pixel]))
    return shown & ~_disc(shown.shape, pixel, radius, spacing_mm)


def with_part(
    shown: Mask, said: Mask, pixel: tuple[int, int], grey: NDArray[np.float32], spacing_mm: Sequence[float]
) -> Mask:
    """Add the part that a positive click lies in.

    Parameters
    ----------
    shown : (rows, columns).
    said : what the network makes of the click, of the same shape; nothing beyond it is added, but for the pixel.
    pixel : (row, column) of the click.
    grey : (rows, columns) grey values in [0, 1].
    spacing_mm : of the pixels, (rows, columns).

    Returns
    -------
    (rows, columns), what is shown with the pixel and more.
    """
    radius = float(np.clip(depth_mm(said & ~shown, spacing_mm)[pixel], LEAST_MM, MOST_MM))
    reach = [int((radius + ROOM_MM) / step) + 1 for step in spacing_mm]
    part = tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(pixel, reach, strict=True))
    click = (pixel[0] - part[0].start, pixel[1] - part[1].start)
    before, image = shown[part], np.ascontiguousarray(grey[part])
    certain = _disc(before.shape, click, radius, spacing_mm) & (abs(image - image[click]) <= ALIKE)
    certain[click] = True
    added = _walked(before, certain, image, spacing_mm) & said[part] & ~before
    added[click] = True
    pieces, _ = ndimage.label(added)
    whole = shown.copy()
    whole[part] |= pieces == pieces[click]
    return whole


def _walked(before: Mask, certain: Mask, image: NDArray[np.float32], spacing_mm: Sequence[float]) -> Mask:
    odds = torch.where(torch.from_numpy(before), MASK_ODDS, -MASK_ODDS)
    target, force = odds.sigmoid(), torch.full(odds.shape, MASK_FORCE)
    target[certain], force[certain] = 1.0, FIXED
    # One slice by itself: the distance to the next does not matter.
    ways = passages(torch.from_numpy(image)[None], (np.inf, *spacing_mm))
    found = walk_to_end(ways, target[None], force[None], target[None], steps=STEPS, tolerance=TOLERANCE)
    return (found[0] > 0.5).numpy()  # noqa: PLR2004 - as probable as not


def _disc(shape: Sequence[int], centre: tuple[int, int], radius_mm: float, spacing_mm: Sequence[float]) -> Mask:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    row_mm, column_mm = (rows - centre[0]) * spacing_mm[0], (columns - centre[1]) * spacing_mm[1]
    inside: Mask = row_mm**2 + column_mm**2 <= radius_mm**2
    return inside
