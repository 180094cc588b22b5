"""Confidence by slice as a thin picture, for the module's panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Red, yellow and green as color-blind readers can tell them apart by brightness too.
_UNSURE, _HALF, _SURE = np.array([200, 40, 40]), np.array([240, 200, 60]), np.array([90, 180, 110])
_UNSEEN = np.array([70, 70, 70])
_PROMPTED = np.array([255, 255, 255])
TICK = 0.3
"""Share of the strip's height that the mark of a prompted slice takes."""
SURE_FROM, UNSURE_BELOW = 0.9, 0.5


def strip_ppm(values: NDArray[np.floating], width: int, height: int, prompted: Sequence[int] = ()) -> bytes:
    """Draw a confidence, one per slice, from the first slice on the left to the last on the right.

    Parameters
    ----------
    values : (slices,) from 0 to 1; NaN is gray, for slices that nothing is known of.
    width, height : pixels.
    prompted : slices with a prompt; a white mark stands above them.

    Returns
    -------
    The picture as a binary portable pixmap (PPM), which Qt reads.
    """
    share = np.clip((values - UNSURE_BELOW) / (SURE_FROM - UNSURE_BELOW), 0, 1)[:, None]
    colors = np.where(share < 0.5, _UNSURE + (_HALF - _UNSURE) * 2 * share, _HALF + (_SURE - _HALF) * (2 * share - 1))
    colors[np.isnan(values)] = _UNSEEN
    # The least sure slice of those that share a pixel is the one to show.
    edges = np.linspace(0, len(values), width + 1)
    columns = []
    for first, last in zip(edges, edges[1:], strict=False):
        chosen = np.arange(int(first), max(int(np.ceil(last)), int(first) + 1)).clip(0, len(values) - 1)
        known = chosen[~np.isnan(values[chosen])]
        columns.append(colors[known[np.argmin(values[known])]] if len(known) else _UNSEEN)
    picture = np.repeat(np.array(columns).round().astype(np.uint8)[None], height, axis=0)
    for index in prompted:
        first = int(index * width / len(values))
        picture[: round(TICK * height), first : max(first + 2, int((index + 1) * width / len(values)))] = _PROMPTED
    return f"P6 {width} {height} 255\n".encode() + picture.tobytes()
