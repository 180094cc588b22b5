"""A click is heeded where it points, whatever a network makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MARGIN, SPREAD = 3.0, 3.0
"""Logits by which the place of a click is on the click's side at least, and cells over which a mask that did not heed
it is pulled to that side, one standard deviation. Chosen on training cases: Dice after one, two and three clicks on a
box 0.779, 0.802 and 0.817, against 0.769, 0.790 and 0.804 without."""


def heeded(logits: Tensor, clicks: Sequence[tuple[float, float, bool]]) -> Tensor:
    """Pull logits to the side of the clicks that they do not heed: there, and less and less around.

    What is nearly decided gives way in a wide circle, what is certain only at the click itself. Without it a user who
    sees no answer clicks again, and a network that was not moved by one click is hardly ever moved by three.

    Parameters
    ----------
    logits : (h, w) of a slice.
    clicks : (row, column, positive) on that grid, oldest first; where two contradict each other, the newer one holds.

    Returns
    -------
    (h, w) logits, the same ones if all clicks are heeded.
    """
    height, width = logits.shape
    for row, column, positive in clicks:
        top, left = min(max(int(row), 0), height - 2), min(max(int(column), 0), width - 2)
        sign = 1.0 if positive else -1.0
        # All that a click's pixel is interpolated from.
        lacking = MARGIN - float((sign * logits[top : top + 2, left : left + 2]).min())
        if lacking > 0:
            down = torch.arange(height, device=logits.device) - row
            across = torch.arange(width, device=logits.device) - column
            away = (down.abs() - 1).clamp_min(0)[:, None] ** 2 + (across.abs() - 1).clamp_min(0)[None] ** 2
            logits = logits + sign * lacking * torch.exp(-away / (2 * SPREAD**2))
    return logits
