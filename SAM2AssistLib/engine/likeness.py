"""What the image encoder sees in a segment: one more opinion, beside the network's masks and the grey values.

On every slice a network answers anew, and what it gets wrong on one it may have right on twenty others. So the features
of what it takes for the segment are compared with those of what lies around it, over all slices together: Fisher's
linear discriminant (1936) between them tells what else looks like the segment, as far as a straight line can. As in
SAM2-SP the features that speak are those of the most confident voxels; here a click or a box makes some certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.encoder import SliceFeatures
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.random_walk import INSIDE, OUTSIDE, shares, surroundings
from SAM2AssistLib.engine.views import cut

if TYPE_CHECKING:
    from SAM2AssistLib.engine.network import Network
    from SAM2AssistLib.engine.plane import Plane

Seeds = NDArray[np.int8]

MOST_CELLS = 64
"""Cells along a side of the grid on which features are compared; models with finer ones are looked at as coarsely."""
RIDGE = 0.01
"""Share of its variance that is added to each feature, for many features and few cells."""
ODDS_LIMIT = 3.0
"""Log odds beyond which this is not believed either."""
LEAST_CELLS = 20
"""Fewer inside or outside teach nothing."""
THIN, BROAD = 3.0, 4.0
"""Cells: what is as thin as the former has no say, for its features are as much those of what lies beside it; what is
as broad as the latter has all of it."""
MOST_SLICES = 64
"""It is learned from so many, of more from some evenly spread."""
SOWN_SHARE = 0.3
"""Of a cell, that has to be certain for the cell to be."""


def likeness(
    plane: Plane, states: Mapping[int, SliceState], sown: Callable[[int], Seeds]
) -> Generator[None, None, dict[int, Tensor] | None]:
    """Tell how much what is seen on slices looks like a segment, by what is learned from all of them.

    Parameters
    ----------
    plane : the slices.
    states : what the network says of some of them, in their order.
    sown : gives what prompts make certain on a slice, (rows, columns) of `INSIDE`, `OUTSIDE` and 0.

    Yields
    ------
    None
        Now and then, so that whoever waits can be called away.

    Returns
    -------
    Log odds by slice, (G, G) over the view of its state, in host memory; None where there is nothing to learn from.
    """
    say = (_breadth(states.values()) - THIN) / (BROAD - THIN)
    if say <= 0:
        return None
    counted = {}
    for k in list(states)[:: -(-len(states) // MOST_SLICES)]:
        yield
        inside, outside = _counted(plane, states[k], sown(k))
        if inside.any():
            counted[k] = inside, outside
    learner = Learner()
    for seen in _seen(plane.network, {k: states[k] for k in counted}):
        if seen is None:
            yield
        else:
            learner.look(seen[1], *counted[seen[0]])
    learned = learner.learned()
    if learned is None:
        return None
    odds = {}
    for seen in _seen(plane.network, states):
        if seen is None:
            yield
        else:
            odds[seen[0]] = learned.odds(seen[1]).cpu() * min(1.0, say)
    return odds


def _seen(network: Network, states: Mapping[int, SliceState]) -> Iterator[tuple[int, SliceFeatures] | None]:
    """Give the features of slices, those first that are held, the others encoded in batches; None before each batch."""
    encoder = network.encoder
    keys = sorted(((k, state.view) for k, state in states.items()), key=lambda key: not encoder.holds(*key))
    while keys:  # for want of memory the batches may become smaller meanwhile
        part, keys = keys[: encoder.batch], keys[encoder.batch :]
        yield None
        yield from zip((k for k, _ in part), network.features_of(part), strict=True)


def _breadth(states: Iterable[SliceState]) -> float:
    """Tell how broad a segment is: twice its area by the length of its rim, in cells; a disc has its radius."""
    areas, rims = 0, 0
    for state in states:
        pooled = F.adaptive_avg_pool2d(state.logits.float()[None], grid_of(state.logits.shape[-1]))
        mask = pooled > 0
        # A cell is inside if it and its four neighbours are.
        outside = F.pad((~mask).float(), (1, 1, 1, 1))
        beside = outside[:, :-2, 1:-1] + outside[:, 2:, 1:-1] + outside[:, 1:-1, :-2] + outside[:, 1:-1, 2:]
        areas += int(mask.sum())
        rims += int((mask & (beside > 0)).sum())
    return 2 * areas / max(1, rims)


def _counted(plane: Plane, state: SliceState, seeds: Seeds) -> tuple[Tensor, Tensor]:
    """Return how many pixels of each cell count as the segment, and as what lies around it."""
    side, view, device = grid_of(state.logits.shape[-1]), state.view, plane.network.device
    prior = F.adaptive_avg_pool2d(state.logits.to(device).float().nan_to_num().sigmoid()[None], side)[0]
    sown = torch.zeros(side, side, dtype=torch.int8, device=device)
    for word in (OUTSIDE, INSIDE):  # a cell of both is inside
        if (seeds == word).any():
            sown[cut((seeds == word).astype(np.float32), view, side, 0.0).to(device) > SOWN_SHARE] = word
    rows, columns = view.rows / side, view.columns / side
    row_mm, column_mm = plane.spacing_mm
    near = surroundings(prior[None], (plane.distance_mm, rows * row_mm, columns * column_mm))[0] | (sown == INSIDE)
    return shares(prior, sown, near * (rows * columns))


@dataclass(frozen=True, eq=False)
class Likeness:
    """How much more features look like a segment than like what lies around it.

    Attributes
    ----------
    weights : of the features of each level.
    offset : log odds of features that are all zero.
    """

    weights: tuple[Tensor, ...]
    offset: float

    def odds(self, features: SliceFeatures) -> Tensor:
        """Return log odds of a slice's cells, (G, G) on the grid of `grid_of`."""
        side = grid_of(features.fine.shape[-1])
        odds = torch.full((1, 1, side, side), self.offset, device=features.plain.device)
        for level, weights in zip(_levels(features), self.weights, strict=True):
            odds += _resized(torch.einsum("c,chw->hw", weights.to(level), level)[None, None], side)
        return odds[0, 0].clamp_(-ODDS_LIMIT, ODDS_LIMIT)


class Learner:
    """Looks at slices one after the other, and tells then what sets a segment apart."""

    def __init__(self) -> None:
        self._inside = self._outside = _Moments(0.0, 0.0, torch.zeros(()), torch.zeros(()))
        self._widths: list[int] = []

    def look(self, features: SliceFeatures, inside: Tensor, outside: Tensor) -> None:
        """Take in one slice.

        Parameters
        ----------
        features : of the slice.
        inside, outside : (G, G) on the grid of `grid_of`, how many pixels of each cell count as the segment, and as
            what lies around it.
        """
        levels, side = _levels(features), grid_of(features.fine.shape[-1])
        self._widths = [len(level) for level in levels]
        # For want of memory the network may have gone elsewhere when it was asked for the features.
        inside, outside = (weights.to(features.plain.device).flatten() for weights in (inside, outside))
        seen = torch.nonzero(inside + outside)[:, 0]
        cells = torch.cat([_looked_up(level, seen, side) for level in levels])
        self._inside += _Moments.of(cells, inside[seen])
        self._outside += _Moments.of(cells, outside[seen])

    def learned(self) -> Likeness | None:
        """Return what has been learned, or None if that is nothing."""
        inside, outside = self._inside, self._outside
        if min(inside.cells, outside.cells) < LEAST_CELLS:
            return None
        spread = (inside.covariance + outside.covariance) / 2
        variances = spread.diagonal().clone()
        spread += torch.diag(variances * RIDGE + variances.mean().clamp_min(1e-12) * 1e-6)
        weights = torch.linalg.solve(spread, inside.mean - outside.mean)
        offset = -float((inside.mean + outside.mean) @ weights) / 2
        return Likeness(weights.float().split(self._widths), offset)


def grid_of(finest: int) -> int:
    """Return how many cells the grid has along a side, on which features are compared, by those of the finest level."""
    return finest // math.ceil(finest / MOST_CELLS)


def _levels(features: SliceFeatures) -> list[Tensor]:
    return [level.float() for level in (features.fine, features.middle, features.plain)]


def _looked_up(level: Tensor, cells: Tensor, side: int) -> Tensor:
    """Return features (C, n) of some cells of the grid, by their numbers, as `_resized` would make them."""
    if level.shape[-1] > side:
        return _resized(level[None], side)[0].flatten(1).index_select(1, cells)
    places = (2 * torch.stack([cells % side, cells // side], 1) + 1) / side - 1
    most = 1 - 1 / level.shape[-1]  # beyond the outermost centres all is as there; not every device knows that rule
    # Some cells of the grid and not all: a fifth of the time.
    found = F.grid_sample(level[None], places.clamp(-most, most)[None, None], align_corners=False)
    return found[0, :, 0]


def _resized(planes: Tensor, side: int) -> Tensor:
    if planes.shape[-1] > side:
        return F.adaptive_avg_pool2d(planes, side)
    return F.interpolate(planes, size=(side, side), mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Weighted sums over cells; in double precision, in which no difference of large ones is lost."""

    count: float
    squares: float
    first: Tensor
    second: Tensor

    @staticmethod
    def of(cells: Tensor, weights: Tensor) -> _Moments:
        """Sum over (C, n) features of n cells with (n,) weights."""
        weighted = cells * weights
        # Not every device knows double precision.
        sums = weighted.sum(1).cpu().double(), (weighted @ cells.T).cpu().double()
        return _Moments(float(weights.sum()), float((weights**2).sum()), *sums)

    def __add__(self, other: _Moments) -> _Moments:
        count, squares = self.count + other.count, self.squares + other.squares
        return _Moments(count, squares, self.first + other.first, self.second + other.second)

    @property
    def cells(self) -> float:
        """How many cells of equal weight would tell as much (Kish's effective size)."""
        return self.count**2 / self.squares if self.squares else 0.0

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    @property
    def covariance(self) -> Tensor:
        return self.second / self.count - torch.outer(self.mean, self.mean)
