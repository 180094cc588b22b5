"""Prompts drawn into SAM2's low-resolution mask prompt.

A point given as a token alone takes a small network long to understand: trained from scratch, it stays on a plateau on
which it ignores its prompts. The same prompt drawn as a picture into the mask prompt, which every SAM2 has, is
understood at once. Models whose catalogue entry says ``dense_prompts`` are trained and used with both.
"""

from __future__ import annotations

import torch
from torch import Tensor

BOX_INSIDE, BOX_OUTSIDE = 2.0, -6.0
CLICK_HEIGHT, CLICK_SIGMA_CELLS = 8.0, 2.0
LOGIT_LIMIT = 10.0
"""Earlier logits are held within this range, so that a click's bump can always outweigh them locally."""
CELL_PIXELS = 4
"""The mask prompt has a quarter of the input's resolution."""


def draw_prompts(
    image_size: int, points: Tensor | None, labels: Tensor | None, previous: Tensor | None
) -> Tensor | None:
    """Draw prompts as mask logits.

    Parameters
    ----------
    image_size : side S of the network's input in pixels.
    points, labels : (B, P, 2) as (x, y) in input pixels and (B, P) with 1 positive, 0 negative, 2 and 3 the corners of
        a box,
        -1 padding; or None.
    previous : (B, 1, S/4, S/4) logits of the mask so far, or None.

    Returns
    -------
    (B, 1, S/4, S/4), or None if there is neither a prompt nor a mask.
    """
    drawn = None if previous is None else previous.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    if points is None or labels is None:
        return drawn
    cells = image_size // CELL_PIXELS
    centres = torch.arange(cells, device=points.device, dtype=torch.float32)
    xy = (points.float() + 0.5) / CELL_PIXELS - 0.5  # (B, P, 2) in cells
    dx = centres[None, None] - xy[..., :1]  # (B, P, cells)
    dy = centres[None, None] - xy[..., 1:]
    sign = (labels == 1).float() - (labels == 0).float()
    height_y = torch.exp(-(dy**2) / (2 * CLICK_SIGMA_CELLS**2)) * sign[..., None] * CLICK_HEIGHT
    height_x = torch.exp(-(dx**2) / (2 * CLICK_SIGMA_CELLS**2))
    # A Gaussian is separable: the sum over the clicks is one matrix product.
    result = height_y.transpose(1, 2) @ height_x  # (B, cells, cells)
    result = result + _boxes(centres, xy, labels)
    return result[:, None] if drawn is None else result[:, None] + drawn


def _boxes(centres: Tensor, xy: Tensor, labels: Tensor) -> Tensor:
    low = torch.where((labels == 2)[..., None], xy, torch.inf).amin(dim=1)  # (B, 2)
    high = torch.where((labels == 3)[..., None], xy, -torch.inf).amax(dim=1)
    has_box = torch.isfinite(low).all(dim=1) & torch.isfinite(high).all(dim=1)
    in_x = (centres[None] >= low[:, :1] - 0.5) & (centres[None] <= high[:, :1] + 0.5)  # (B, cells)
    in_y = (centres[None] >= low[:, 1:] - 0.5) & (centres[None] <= high[:, 1:] + 0.5)
    inside = in_y[:, :, None] & in_x[:, None, :]
    drawn = inside.float() * (BOX_INSIDE - BOX_OUTSIDE) + BOX_OUTSIDE
    return torch.where(has_box[:, None, None], drawn, 0.0)
