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

from SAM2AssistLib.depth import depth_in
from SAM2AssistLib.engine.random_walk import FIXED, PRIOR_WEIGHT, passages, walk_to_end
from SAM2AssistLib.engine.sharpening import ALIKE, CLICK_MM, COARSE_STEPS, COARSE_TOLERANCE, ROOM_MM, disc

Mask = NDArray[np.bool_]

MOST_MM = 30.0
"""Radius of what a positive click makes certain at most; at least it is `CLICK_MM`, as is that of what goes."""
LOBE_SHARE = 1.2
"""A negative click takes away a disc of this radius, compared with the largest around it that is still in the mask."""
MIDDLE_SHARE = 0.95
"""A click that lies as deep in the mask as any pixel, but for this share, may mean that nothing of it is right."""
MASK_ODDS = 3.0
"""Log odds of what is shown, to the walk. Chosen, as the others, on 254 positive and 285 negative clicks on training
cases, see Resources/Docs/evaluation.md."""


def is_middle(depth: NDArray[np.float64], pixel: tuple[int, int]) -> bool:
    """Whether a pixel (row, column) lies in the very middle of a mask; see `depth_in`."""
    return bool(depth[pixel] >= MIDDLE_SHARE * depth.max() > 0)


def without_lobe(shown: Mask, depth: NDArray[np.float64], pixel: tuple[int, int], spacing_mm: Sequence[float]) -> Mask:
    """Take away the part of a mask that a negative click lies in.

    Parameters
    ----------
    shown : (rows, columns).
    depth : (rows, columns), its `depth_in` mm.
    pixel : (row, column) of the click.
    spacing_mm : of the pixels, (rows, columns).

    Returns
    -------
    (rows, columns), a part of what is shown without the pixel.
    """
    lobe, part = disc(pixel, max(CLICK_MM, LOBE_SHARE * float(depth[pixel])), shown.shape, spacing_mm)
    left = shown.copy()
    left[part] &= ~lobe
    return left


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
    radius = float(np.clip(depth_in(said & ~shown, spacing_mm)[pixel], CLICK_MM, MOST_MM))
    reach = [int((radius + ROOM_MM) / step) + 1 for step in spacing_mm]
    part = tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(pixel, reach, strict=True))
    click = (pixel[0] - part[0].start, pixel[1] - part[1].start)
    before, image = shown[part], np.ascontiguousarray(grey[part])
    certain = np.zeros_like(before)
    around, covered = disc(click, radius, before.shape, spacing_mm)
    certain[covered] = around & (abs(image[covered] - image[click]) <= ALIKE)
    added = _walked(before, certain, image, spacing_mm) & said[part] & ~before
    added[click] = True
    pieces, _ = ndimage.label(added)
    whole = shown.copy()
    whole[part] |= pieces == pieces[click]
    return whole


def _walked(before: Mask, certain: Mask, image: NDArray[np.float32], spacing_mm: Sequence[float]) -> Mask:
    odds = torch.where(torch.from_numpy(before), MASK_ODDS, -MASK_ODDS)
    target, force = odds.sigmoid(), torch.full(odds.shape, PRIOR_WEIGHT)
    target[certain], force[certain] = 1.0, FIXED
    # One slice by itself: the distance to the next does not matter.
    ways = passages(torch.from_numpy(image)[None], (np.inf, *spacing_mm))
    found = walk_to_end(ways, target[None], force[None], target[None], steps=COARSE_STEPS, tolerance=COARSE_TOLERANCE)
    return (found[0] > 0.5).numpy()  # noqa: PLR2004 - as probable as not
