"""Correction clicks guided by the prediction's errors, for all rows at once on their device (rounds 1 to T of PHPG).

A row's click is chosen by one of several heuristics, because users differ: the middle of the largest error, anywhere in
an error, at an error's border, displaced by a shaky hand, somewhere in the truth whether it is wrong there or not, or
just outside the object. Where a click takes away what has spilled over into another organ of the same slice, that organ
gets the same click as a positive one.

Source: the specification in the project's notes on PHPG (Wang et al., ISBI 2025); "anywhere in an error" and "10 % from
the truth" are SAM2's own training (Ravi et al. 2024, arXiv 2408.00714).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.training.behaviours import WORKING_GRID, Draws, to_input_pixels
from SAM2AssistLib.training.regions_on_device import around, at_pixels, deepest, erosion_depth, pick

HEURISTICS: dict[str, float] = {
    "centre": 0.35,
    "anywhere": 0.25,
    "border": 0.10,
    "displaced": 0.15,
    "from truth": 0.10,
    "just outside": 0.05,
}
"""Share of each heuristic. "just outside" is a positive click that misses the object by a little."""
MISS_REACH = 2
"""In cells of the working grid: how far outside a click may be that misses."""
SHAKE_LOW, SHAKE_HIGH = 2.0, 4.0
"""Standard deviation in input pixels of a displaced click."""


def correction_clicks(
    logits: Tensor, masks: Tensor, groups: Tensor, draws: Draws, shares: Mapping[str, float] = HEURISTICS
) -> tuple[Tensor, Tensor]:
    """Click once per row where its mask is wrong, and let neighbours share the clicks that concern them.

    Parameters
    ----------
    logits : (N, 1, h, w) of the masks so far, gated where the object is taken to be absent.
    masks : (N, S, S) bool, the truth; an empty one is an absent object.
    groups : (N,) int64; rows of one number are regions of one slice under one behaviour, and share clicks.
    draws : of the rows.
    shares : of the heuristics.

    Returns
    -------
    points (N, 2, 2) as (x, y) in input pixels and labels (N, 2): first the row's own click, 1 where something is
    missing and 0 where there is too much, then a neighbour's click that lies in this row's object (1), or padding (-1).
    """
    size = masks.shape[-1]
    factor = max(2, size // WORKING_GRID)
    grid = (size // factor,) * 2
    predicted = F.interpolate(logits.float(), size=grid, mode="bilinear", align_corners=False)[:, 0] > 0
    truth = F.avg_pool2d(masks.float()[:, None], factor)[:, 0] >= 0.5
    kind = _choose(draws, shares)
    region, positive = _where(predicted, truth, kind)
    places = pick(region, draws.uniform(1)[:, 0])
    points = to_input_pixels(places, factor)
    spread = SHAKE_LOW + (SHAKE_HIGH - SHAKE_LOW) * draws.uniform(1)
    points = points + torch.where(kind["displaced"][:, None], spread * draws.normal(2), 0.0)
    labels = torch.where(kind["anywhere"] | kind["from truth"], at_pixels(truth, places), positive).long()
    shared_points, shared_labels = _shared(points, labels, places, truth, groups, draws)
    return (
        torch.stack([points, shared_points], dim=1).clamp(0, size - 1),
        torch.stack([labels, shared_labels], dim=1),
    )


def _choose(draws: Draws, shares: Mapping[str, float]) -> dict[str, Tensor]:
    edges = torch.tensor([shares.get(name, 0.0) for name in HEURISTICS], device=draws.device).cumsum(0)
    place = torch.searchsorted(edges / edges[-1], draws.uniform(1)[:, 0], right=True)
    return {name: place == number for number, name in enumerate(HEURISTICS)}


def _where(predicted: Tensor, truth: Tensor, kind: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return from where each row's click is picked (N, h, w), and whether it is positive (N,)."""
    missing, excess = truth & ~predicted, predicted & ~truth
    both = erosion_depth(torch.cat([missing, excess]))
    depth_missing, depth_excess = both.chunk(2)
    positive = depth_missing.flatten(1).amax(1) >= depth_excess.flatten(1).amax(1)
    chosen = torch.where(positive[:, None, None], missing, excess)
    depth = torch.where(positive[:, None, None], depth_missing, depth_excess)
    region = deepest(chosen, depth)
    present = truth.flatten(1).any(1)
    for name, other in (
        ("anywhere", missing | excess),
        ("border", depth == 1),
        ("from truth", torch.where(present[:, None, None], truth, ~truth)),
    ):
        region = torch.where(kind[name][:, None, None], other, region)
    misses = kind["just outside"] & positive
    region = torch.where(misses[:, None, None], around(truth, MISS_REACH), region)
    # Nothing is wrong (or nothing lies around): one more click inside, or outside of what is absent.
    nothing = ~region.flatten(1).any(1)
    region = torch.where(nothing[:, None, None], torch.where(present[:, None, None], truth, ~truth), region)
    return region, torch.where(nothing, present, positive)


def _shared(
    points: Tensor, labels: Tensor, places: Tensor, truth: Tensor, groups: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Give each row one of the negative clicks of its group that lie in its object, if there is one."""
    holds = truth[:, places[:, 1], places[:, 0]]  # (N, N): does object q hold the click of row r
    wanted = holds & (labels == 0)[None] & (groups[:, None] == groups[None])
    order = draws.uniform(1)[:, 0]
    which = torch.where(wanted, order[None], -1.0).argmax(1)
    found = wanted.any(1)
    return torch.where(found[:, None], points[which], 0.0), torch.where(found, 1, -1)
