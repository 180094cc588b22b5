"""A click changes what it points at: the rest of the slice keeps the mask that it had.

This is the progressive merge of FocalClick (Chen et al., CVPR 2022, section 3.3). A network that decodes a whole slice
again for one click redraws edges that were right already, and each click costs what an earlier one has gained.
"""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

TOUCH = 2
"""Cells around the click in which a changed region has to begin to be the one that was meant."""
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
