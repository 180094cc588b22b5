"""A click is heeded where it points, and changes what it points at: the rest of the slice keeps the mask that it had.

The latter is the progressive merge of FocalClick (Chen et al., CVPR 2022, section 3.3). A network that decodes a whole
slice again for one click redraws edges that were right already, and each click costs what an earlier one has gained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor

TOUCH = 2
"""Cells around the click in which a changed region has to begin to be the one that was meant."""
MARGIN, SPREAD = 3.0, 3.0
"""Logits by which the place of a click is on the click's side at least, and cells over which a mask that did not heed
it is pulled to that side, one standard deviation. Chosen on training cases: Dice after one, two and three clicks on a
box 0.779, 0.802 and 0.817, against 0.769, 0.790 and 0.804 without."""
GENTLE_MARGIN, GENTLE_SPREAD = 1.0, 2.0
"""The same where Auto-Segment has had a part: its errors are narrow, and as wide a circle would take off what is
right."""
_AROUND = ndimage.generate_binary_structure(2, 2)


def merged_around(before: Tensor, after: Tensor, cell: tuple[float, float]) -> Tensor:
    """Take over from new logits the changed region that a click points at.

    Parameters
    ----------
    before, after : (h, w) logits of the slice in the same view, without and with the click.
    cell : (row, column) of the click on that grid.

    Returns
    -------
    (h, w) logits. All of ``after`` where no changed region is near the click: whoever clicks into a mask that is there
    means something else than this place.
    """
    changed = ((before > 0) != (after > 0)).cpu().numpy()
    regions, count = ndimage.label(changed, _AROUND)
    rows, columns = (slice(max(0, round(c) - TOUCH), round(c) + TOUCH + 1) for c in cell)
    meant = {int(n) for n in regions[rows, columns].ravel() if n}
    if not meant or len(meant) == count:
        return after
    kept = ndimage.binary_dilation(sum(regions == n for n in meant) > 0, _AROUND)
    others = ndimage.binary_dilation(changed, _AROUND) & ~kept
    # Where neither has changed sides, the newer logits are no worse; only the other regions go back.
    return torch.where(torch.from_numpy(others).to(after.device), before, after)


def heeded(
    logits: Tensor, clicks: Sequence[tuple[float, float, bool]], margin: float = MARGIN, spread: float = SPREAD
) -> Tensor:
    """Pull logits to the side of the clicks that they do not heed: there, and less and less around.

    What is nearly decided gives way in a wide circle, what is certain only at the click itself. Without it a user who
    sees no answer clicks again, and a network that was not moved by one click is hardly ever moved by three.

    Parameters
    ----------
    logits : (h, w) of a slice.
    clicks : (row, column, positive) on that grid, oldest first; where two contradict each other, the newer one holds.
    margin, spread : see `MARGIN`.

    Returns
    -------
    (h, w) logits, the same ones if all clicks are heeded.
    """
    height, width = logits.shape
    for row, column, positive in clicks:
        top, left = min(max(int(row), 0), height - 2), min(max(int(column), 0), width - 2)
        sign = 1.0 if positive else -1.0
        # All that a click's pixel is interpolated from.
        lacking = margin - float((sign * logits[top : top + 2, left : left + 2]).min())
        if lacking > 0:
            down = torch.arange(height, device=logits.device) - row
            across = torch.arange(width, device=logits.device) - column
            away = (down.abs() - 1).clamp_min(0)[:, None] ** 2 + (across.abs() - 1).clamp_min(0)[None] ** 2
            logits = logits + sign * lacking * torch.exp(-away / (2 * spread**2))
    return logits
