"""A random walk with a prior: what a network says of every voxel is settled along the edges of the image.

A network draws masks whose edges are a cell of its grid off, loses what is thin, and hears a click as one opinion among
many. A random walker (Grady, IEEE TPAMI 2006) stops at the edges of the image and takes seeds at their word, but knows
nothing of organs. Grady's walk with prior models (CVPR 2005, section 3) has both: each voxel is drawn to its
neighbours, the more the more alike they look, and with a small force to what the network has said of it. It is the
solution of one sparse linear system.

Besides the network, the grey values have their say, as in GrabCut (Rother et al., SIGGRAPH 2004): what looks like most
of the segment so far is more probably segment. Where inside and outside look alike, that says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

INSIDE, OUTSIDE = 1, 2
"""Seed values; 0 is what is to be found out."""
CONTRAST = 2000.0
"""How much a step in grey (1 is the whole window) keeps a walker from crossing it."""
LEAST_PASSAGE = 1e-4
"""What passes through the strongest edge, compared with none at all."""
PRIOR_WEIGHT = 0.02
"""Force towards the prior, compared with that between two equal neighbours."""
PRIOR_LIMIT = 7.0
"""Log odds beyond which no prior is believed."""
GREY_WEIGHT = 1.0
"""How much the log odds of the grey values count beside the network's."""
GREY_BINS, GREY_LIMIT = 40, 3.0
REACH_MM = 12.0
"""How far around the segment its surroundings are looked at in-plane for what they look like."""
NEARLY = 0.3
"""Probability from which a voxel counts as the segment's when its surroundings are looked at."""
SEED_SHARE = 20.0
"""How many voxels a seeded one counts for when it is looked at what the segment looks like."""
BREATH = 4
FIXED = 1e3
"""Force towards what is certain."""


def passages(image: Tensor, spacing_mm: Sequence[float]) -> list[Tensor]:
    """Tell how easily a walker passes between neighbours.

    Parameters
    ----------
    image : (k, j, i) grey values in [0, 1].
    spacing_mm : (k, j, i); across thick slices fewer pass.

    Returns
    -------
    For each axis the passages between its neighbours, one fewer along that axis.
    """
    least = min(spacing_mm)
    return [
        (torch.diff(image, dim=axis).square_().mul_(-CONTRAST).exp_().add_(LEAST_PASSAGE)).mul_((least / step) ** 2)
        for axis, step in enumerate(spacing_mm)
    ]


def grey_odds(image: Tensor, prior: Tensor, seeds: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Tell how much more each grey value is that of the segment than that of what lies around it.

    Parameters
    ----------
    image : (k, j, i) in [0, 1].
    prior : (k, j, i) probability of the segment.
    seeds : (k, j, i).
    spacing_mm : (k, j, i).

    Returns
    -------
    Log odds by grey value, (`GREY_BINS` + 1); look them up with `grey_bins`.
    """
    segment, others = shares(prior, seeds, surroundings(prior, spacing_mm))
    bins = grey_bins(image).flatten()
    inside, outside = (_smooth_histogram(bins, weight.flatten()) for weight in (segment, others))
    return (inside / outside).log_().clamp_(-GREY_LIMIT, GREY_LIMIT)


def surroundings(prior: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Tell which voxels are in a segment or around it.

    Parameters
    ----------
    prior : (k, j, i) probability of the segment.
    spacing_mm : (k, j, i).

    Returns
    -------
    (k, j, i) bool.
    """
    rows, columns = (max(1, round(REACH_MM / s)) for s in spacing_mm[1:])
    down = F.max_pool2d(prior[:, None], (2 * rows + 1, 1), 1, (rows, 0))
    return F.max_pool2d(down, (1, 2 * columns + 1), 1, (0, columns))[:, 0] > NEARLY


def shares(prior: Tensor, seeds: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """Tell how much voxels count when it is looked at what a segment looks like, and what lies around it.

    Parameters
    ----------
    prior, seeds, around : probability of the segment, seeds, and how much voxels count at all; of one shape.
    """
    segment = torch.where(seeds == INSIDE, SEED_SHARE, prior * (seeds != OUTSIDE)) * around
    others = torch.where(seeds == OUTSIDE, 1.0, (1 - prior) * (seeds != INSIDE)) * around
    return segment, others


def grey_bins(image: Tensor) -> Tensor:
    """Return the number of each voxel's grey value."""
    return (image * GREY_BINS).long().clamp_(0, GREY_BINS)


def _smooth_histogram(bins: Tensor, weights: Tensor) -> Tensor:
    counts = torch.bincount(bins, weights, GREY_BINS + 1).float()[None, None]
    kernel = counts.new_tensor([0.25, 0.5, 0.25])[None, None]
    for _ in range(2):
        counts = F.conv1d(counts, kernel, padding=1)
    counts = counts[0, 0] + 1
    return counts / counts.sum()


def walk(
    passing: Sequence[Tensor], target: Tensor, force: Tensor, start: Tensor, *, steps: int, tolerance: float
) -> Generator[None, None, Tensor]:
    """Solve for the probability of each voxel by conjugate gradients.

    Minimised is the sum over neighbours of passage times squared difference, plus the sum over voxels of force times
    squared distance from the target. The system is never written down: its matrix is the grid.

    Parameters
    ----------
    passing : see `passages`.
    target, force : (k, j, i).
    start : (k, j, i), a guess.
    steps : at most.
    tolerance : of the residual, compared with that of the start.

    Yields
    ------
    None
        Every `BREATH` steps, so that whoever waits for the solution can be called away.

    Returns
    -------
    (k, j, i) in [0, 1].
    """
    diagonal = force.clone()
    for axis, between in enumerate(passing):
        size = force.shape[axis] - 1
        diagonal.narrow(axis, 0, size).add_(between)
        diagonal.narrow(axis, 1, size).add_(between)

    def product(values: Tensor) -> Tensor:
        result = diagonal * values
        for axis, between in enumerate(passing):
            size = values.shape[axis] - 1
            result.narrow(axis, 0, size).addcmul_(between, values.narrow(axis, 1, size), value=-1)
            result.narrow(axis, 1, size).addcmul_(between, values.narrow(axis, 0, size), value=-1)
        return result

    found = start.clone()
    residual = (force * target).sub_(product(found))
    scaled = residual / diagonal
    direction = scaled.clone()
    left = torch.dot(residual.flatten(), scaled.flatten())
    enough = float(left) * tolerance**2
    for step in range(1, steps + 1):
        if step % BREATH == 0:
            yield
        if not math.isfinite(float(left)) or float(left) <= enough:
            break
        along = product(direction)
        length = left / torch.dot(direction.flatten(), along.flatten())
        found.addcmul_(length, direction)
        residual.addcmul_(length, along, value=-1)
        torch.div(residual, diagonal, out=scaled)
        now = torch.dot(residual.flatten(), scaled.flatten())
        direction.mul_(now / left).add_(scaled)
        left = now
    return found.clamp_(0, 1)


def walk_to_end(
    passing: Sequence[Tensor], target: Tensor, force: Tensor, start: Tensor, *, steps: int, tolerance: float
) -> Tensor:
    """Do as `walk`, without a pause."""
    walking = walk(passing, target, force, start, steps=steps, tolerance=tolerance)
    while True:
        try:
            next(walking)
        except StopIteration as done:
            return done.value
