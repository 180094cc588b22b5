"""How people prompt: the behaviours from which the first prompt of every region is drawn (round 0 of PHPG).

Boxes are drawn tight, jittered or loose; clicks are set in the middle, anywhere inside or at the border; some draw a
box and click, some scribble. The shares and the box noise are those of the specification in the project's notes on the
papers: the noise is SAM2's own (10 % of the side, at most 20 pixels), the kinds of clicks are ScribblePrompt's (Wong et
al. 2024, arXiv 2312.07381). All rows are made at once, on the device of their masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.regions_on_device import at_pixels, bounding_boxes, deepest, erosion_depth, pick

BEHAVIOURS: dict[str, float] = {
    "tight box": 0.15,
    "jittered box": 0.20,
    "loose box": 0.10,
    "centre click": 0.15,
    "interior click": 0.15,
    "border click": 0.10,
    "box and click": 0.10,
    "scribble": 0.05,
}
"""Share of each behaviour in round 0."""

JITTER, JITTER_LIMIT = 0.1, 20.0
LOOSE_LOW, LOOSE_HIGH = 0.10, 0.25
STROKE_POINTS = 6
SLOTS = 2 + STROKE_POINTS
"""Points of a row: two corners and a stroke, of which a click is the first; what is not used is padding."""
WORKING_GRID = 256
"""Clicks are searched on a grid of at most this side, and of at most half the input's: erosions are the slow part."""


class Draws:
    """Uniform random numbers of rows, each row with a source of its own.

    Parameters
    ----------
    keys : of each row: whole numbers from 0 up that name it (seed, epoch, sample, region, ...).
    device : where the numbers are wanted.
    """

    def __init__(self, keys: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> None:
        self._sources = [np.random.default_rng(list(key)) for key in keys]
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._sources)

    def uniform(self, count: int) -> Tensor:
        """Draw the next numbers of every row, (N, count) float32 in [0, 1)."""
        drawn = np.stack([source.random(count, np.float32) for source in self._sources])
        return torch.from_numpy(drawn).to(self.device)

    def normal(self, count: int) -> Tensor:
        """Draw the next normally distributed numbers of every row, (N, count) float32."""
        drawn = np.stack([source.standard_normal(count, np.float32) for source in self._sources])
        return torch.from_numpy(drawn).to(self.device)


@dataclass(frozen=True)
class PointPrompts:
    """Prompts of N rows as SAM2's prompt encoder takes them.

    Attributes
    ----------
    points : (N, P, 2) as (x, y) in input pixels.
    labels : (N, P): 1 positive, 0 negative, 2 and 3 box corners, -1 padding.
    """

    points: Tensor
    labels: Tensor

    def and_then(self, points: Tensor, labels: Tensor) -> PointPrompts:
        """Return these with further ones behind them."""
        return PointPrompts(torch.cat([self.points, points], 1), torch.cat([self.labels, labels], 1))


def checked_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of behaviours that occur, adding up to 1.

    Raises
    ------
    InputError
        If there is an unknown behaviour, a negative share, or none above 0.
    """
    unknown = next((name for name in shares if name not in BEHAVIOURS), None)
    if unknown is not None:
        raise InputError(f"There is no behaviour {unknown!r}; choose from {', '.join(BEHAVIOURS)}.")
    total = sum(shares.values())
    if min(shares.values(), default=0) < 0 or total <= 0:
        raise InputError("The shares of the behaviours have to be 0 or more, and one of them above 0.")
    return {name: share / total for name, share in shares.items() if share > 0}


def choose_behaviours(draws: Draws, per_region: int, shares: Mapping[str, float]) -> Tensor:
    """Choose different behaviours for each region, each as likely as its share says.

    Parameters
    ----------
    draws : of the regions, R of them.
    per_region : b; where there are fewer behaviours, they repeat.
    shares : see `BEHAVIOURS`.

    Returns
    -------
    (R, b) int64, places in `BEHAVIOURS`.
    """
    shares = checked_shares(shares)
    weights = torch.tensor([shares.get(name, 0.0) for name in BEHAVIOURS], device=draws.device)
    # The largest of log(share) plus Gumbel noise are a draw without replacement.
    noise = -torch.log(-torch.log(draws.uniform(len(BEHAVIOURS)).clamp(1e-7, 1 - 1e-7)))
    order = (weights.log() + noise).argsort(dim=1, descending=True, stable=True)[:, : len(shares)]
    return order.repeat(1, -(-per_region // len(shares)))[:, :per_region]


def first_prompts(masks: Tensor, behaviours: Tensor, draws: Draws) -> PointPrompts:
    """Prompt every row once.

    Parameters
    ----------
    masks : (N, S, S) bool, none empty.
    behaviours : (N,) places in `BEHAVIOURS`.
    draws : of the rows.

    Returns
    -------
    PointPrompts
        `SLOTS` points per row.
    """
    kind = {name: behaviours == place for place, name in enumerate(BEHAVIOURS)}
    size = masks.shape[-1]
    points = torch.zeros(len(masks), SLOTS, 2, device=masks.device)
    labels = torch.full((len(masks), SLOTS), -1, dtype=torch.long, device=masks.device)

    with_box = kind["tight box"] | kind["jittered box"] | kind["loose box"] | kind["box and click"]
    points[:, :2] = _boxes(masks, kind["tight box"], kind["loose box"], draws)
    labels[:, 0], labels[:, 1] = torch.where(with_box, 2, -1), torch.where(with_box, 3, -1)

    regions, factor = on_working_grid(masks)
    stroke = _stroke(regions, draws)  # (N, STROKE_POINTS, 2) and its first point anywhere inside
    inside = torch.stack([at_pixels(regions, stroke[:, n]) for n in range(STROKE_POINTS)], dim=1)
    depth = erosion_depth(regions)
    centre = pick(deepest(regions, depth), draws.uniform(1)[:, 0])
    border = pick(depth == 1, draws.uniform(1)[:, 0])
    stroke[:, 0] = torch.where(kind["centre click"][:, None], centre, stroke[:, 0])
    stroke[:, 0] = torch.where(kind["border click"][:, None], border, stroke[:, 0])
    clicked = ~with_box | kind["box and click"]
    used = inside & kind["scribble"][:, None]
    used[:, 0] = clicked
    points[:, 2:] = to_input_pixels(stroke, factor).clamp(0, size - 1)
    labels[:, 2:] = torch.where(used, 1, -1)
    points[labels == -1] = 0
    return PointPrompts(points, labels)


def on_working_grid(masks: Tensor) -> tuple[Tensor, int]:
    """Thin masks for picking, so that no part of a thin one is lost; returns them and the factor."""
    size = masks.shape[-1]
    factor = max(2, size // WORKING_GRID)
    return F.max_pool2d(masks.float()[:, None], factor)[:, 0] > 0, factor


def to_input_pixels(places: Tensor, factor: int) -> Tensor:
    """Return the middles of working-grid pixels (..., 2) in input pixels."""
    return (places.float() + 0.5) * factor - 0.5


def _boxes(masks: Tensor, tight: Tensor, loose: Tensor, draws: Draws) -> Tensor:
    """Draw each row's box: as it is, 10 to 25 % larger on every side, or with SAM2's jitter; (N, 2, 2)."""
    boxes = bounding_boxes(masks)
    side = boxes[:, 1] - boxes[:, 0] + 1
    chance = draws.uniform(4).view(-1, 2, 2)
    jitter = (2 * chance - 1) * (side * JITTER).clamp_max(JITTER_LIMIT)[:, None]
    growth = (LOOSE_LOW + (LOOSE_HIGH - LOOSE_LOW) * chance) * side[:, None]
    outward = torch.tensor([-1.0, 1.0], device=masks.device)[None, :, None]
    moved = torch.where(loose[:, None, None], outward * growth, jitter)
    moved = torch.where(tight[:, None, None], 0.0, moved)
    result = (boxes + moved).clamp(0, masks.shape[-1] - 1)
    # Jitter may turn a box of few pixels inside out.
    return torch.stack([result.amin(1), result.amax(1)], dim=1)


def _stroke(regions: Tensor, draws: Draws) -> Tensor:
    """Draw a slightly wavering line from one pixel of each region to another; (N, STROKE_POINTS, 2) int64."""
    size = regions.shape[-1]
    chance = draws.uniform(2)
    start, end = pick(regions, chance[:, 0]), pick(regions, chance[:, 1])
    way = torch.linspace(0, 1, STROKE_POINTS, device=regions.device)[None, :, None]
    waver = draws.normal(2 * STROKE_POINTS).view(-1, STROKE_POINTS, 2)
    waver[:, 0] = 0  # the first point stays inside
    line = start[:, None] * (1 - way) + end[:, None] * way + waver
    return line.round().long().clamp(0, size - 1)
