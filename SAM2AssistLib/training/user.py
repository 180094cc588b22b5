"""A simulated user for training: first prompts and correction clicks for many objects at once.

The first edition: boxes as loose as people draw them, clicks in the middle or anywhere inside, corrections in the
middle of the larger error or anywhere in it. All positions are (x, y) in input pixels, as SAM2's prompt encoder takes
them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.depth import deepest_in

BOX_JITTER, BOX_JITTER_LIMIT = 0.1, 20.0
"""SAM2's own training noise: each edge moves by up to 10 % of the box's side, and by 20 pixels at most."""
ERROR_GRID = 128
"""Errors are searched at half the input's resolution: the distance transform is the slow part."""


def boxes_around(masks: Tensor, rng: np.random.Generator, jitter: float = BOX_JITTER) -> Tensor:
    """Draw a jittered box around each mask.

    Parameters
    ----------
    masks : (N, S, S) bool, none empty.

    Returns
    -------
    (N, 2, 2) float: top left and bottom right as (x, y).
    """
    size = masks.shape[-1]
    boxes = np.empty((len(masks), 2, 2), np.float32)
    for row, mask in zip(boxes, masks.numpy(), strict=True):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        low, high = np.array([xs[0], ys[0]], float), np.array([xs[-1], ys[-1]], float)
        reach = np.minimum((high - low + 1) * jitter, BOX_JITTER_LIMIT)
        row[0] = np.clip(low + rng.uniform(-1, 1, 2) * reach, 0, size - 1)
        row[1] = np.clip(high + rng.uniform(-1, 1, 2) * reach, row[0], size - 1)
    return torch.from_numpy(boxes)


def clicks_inside(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """Click once into each mask, in its middle or anywhere; (N, S, S) bool -> (N, 2) float."""
    return torch.from_numpy(np.stack([_pick(mask, rng) for mask in masks.numpy()]).astype(np.float32))


def _pick(region: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Choose the deepest or any pixel of a region that is not empty, as (x, y)."""
    if rng.random() < 0.5:
        row, col = deepest_in(region)
        return float(col), float(row)
    rows, cols = np.nonzero(region)
    choice = rng.integers(len(rows))
    return float(cols[choice]), float(rows[choice])


def first_prompts(masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Prompt each object once: with a box, with a click, or (in some batches) with both.

    Parameters
    ----------
    masks : (N, S, S) bool, none empty.

    Returns
    -------
    points (N, P, 2) and labels (N, P): 1 positive, 2 and 3 box corners, -1 padding. P differs from call to call.
    """
    count = len(masks)
    boxes, clicks = boxes_around(masks, rng), clicks_inside(masks, rng)
    behaviour = rng.random()
    if behaviour < 0.35:
        return boxes, torch.tensor([[2, 3]]).repeat(count, 1)
    if behaviour < 0.5:
        return clicks[:, None], torch.ones(count, 1, dtype=torch.long)
    points = torch.cat([boxes, clicks[:, None]], 1)
    labels = torch.tensor([[2, 3, 1]]).repeat(count, 1)
    kinds = torch.from_numpy(rng.random(count))
    labels[kinds < 0.45, :2] = -1  # a click alone
    labels[kinds > 0.7, 2] = -1  # a box alone
    points[labels == -1] = 0
    return points, labels


def correction_clicks(logits: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Click once per object where its mask is wrong.

    Parameters
    ----------
    logits : (N, 1, S/4, S/4) of the mask so far.
    masks : (N, S, S) bool, the truth.

    Returns
    -------
    points (N, 1, 2) and labels (N, 1): 1 where something is missing, 0 where there is too much. A perfect mask gets
    one more click inside (outside, if the object is absent).
    """
    size = masks.shape[-1]
    scale = size / ERROR_GRID
    grid = (ERROR_GRID, ERROR_GRID)
    predicted = F.interpolate(logits, size=grid, mode="bilinear", align_corners=False)[:, 0] > 0
    truth = F.interpolate(masks[:, None].float(), size=grid, mode="area")[:, 0] > 0.5
    missing, excess = (truth & ~predicted).numpy(), (predicted & ~truth).numpy()
    points = np.empty((len(masks), 1, 2), np.float32)
    labels = np.empty((len(masks), 1), np.int64)
    for n in range(len(masks)):
        positive = missing[n].sum() > excess[n].sum()
        region = missing[n] if positive else excess[n]
        if not region.any():
            positive = bool(truth[n].any())
            region = truth[n].numpy() if positive else ~truth[n].numpy()
        x, y = _pick(region, rng)
        points[n, 0] = (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5
        labels[n, 0] = int(positive)
    return torch.from_numpy(points), torch.from_numpy(labels)
