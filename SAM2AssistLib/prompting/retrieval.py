"""Which support slices resemble a slice most, and what they make of its cells.

Retrieval has three parts: what the whole slice looks like, whether something looks like the class's masked prototype,
and where along the body the slice lies. No random draw is made, so that the same volume always gives the same result.

Source: FATE-SAM and SAM2-SGP retrieve by the features of the whole slice; prototypes follow PerSAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.prompting.support import Support
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead

POSITION_MM = 20.0
"""Standard deviation of an organ's place along the body once two bodies are aligned."""
POSITION_WEIGHT = 0.3
PROTOTYPE_WEIGHT = 0.5
PROTOTYPE_CELLS = 12
MATCH_GRID = 32
MATCH_TEMPERATURE = 0.03
MATCH_SIGMA = 0.07
"""Share of the view's side by which corresponding cells of two bodies lie apart."""


@dataclass(frozen=True, eq=False)
class Match:
    """A support slice for a query slice.

    Attributes
    ----------
    support : number of the support case.
    slice : of it.
    score : the higher the more alike.
    """

    support: int
    slice: int
    score: float


class Retrieval:
    """Compares the slices of a volume with those of support cases.

    Parameters
    ----------
    query : features of the volume.
    supports : support cases.
    head : of an adapter, whose view of a cell tells organs apart better than the plain features; None without one.
    random_seed : draws slices instead of comparing them; only to measure what retrieval is worth.
    """

    def __init__(
        self,
        query: VoxelFeatures,
        supports: Sequence[Support],
        head: VoxelPromptHead | None = None,
        random_seed: int | None = None,
    ) -> None:
        self.query, self.supports = query, list(supports)
        everything = [query, *(s.features for s in supports)]
        if head is None:
            coarse = [f.levels[0].float() for f in everything]
        else:
            coarse = [head.embedding(f, MATCH_GRID).float() for f in everything]
        self._mean = torch.stack([c.mean(dim=(0, 2, 3)) for c in coarse]).mean(dim=0)[None, :, None, None]
        whole = [F.adaptive_avg_pool2d(c, 8).flatten(1) for c in coarse]
        middle = torch.stack([w.mean(dim=0) for w in whole]).mean(dim=0)
        whole = [F.normalize(w - middle, dim=1) for w in whole]
        self._alike = [(whole[0] @ w.T).numpy() for w in whole[1:]]
        self._offset_mm = [
            _alignment(alike, query.distance_mm, s.features.distance_mm)
            for alike, s in zip(self._alike, supports, strict=True)
        ]
        self._cells = [self._normalised(c) for c in coarse]
        if random_seed is not None:
            draw = np.random.default_rng(random_seed)
            self._alike = [draw.normal(size=alike.shape).astype(np.float32) * 10 for alike in self._alike]
        self._near = _nearness(MATCH_GRID)
        self._known: dict[tuple[int, str], tuple[NDArray[np.int64], Tensor]] = {}

    def _normalised(self, coarse: Tensor) -> Tensor:
        return F.normalize(coarse - self._mean, dim=1)

    def general(self, k: int, count: int) -> list[Match]:
        """Return the support slices most like a slice as a whole, evenly from all support cases."""
        each = -(-count // len(self.supports))
        found: list[Match] = []
        for n in range(len(self.supports)):
            scores = self._general_scores(n, k)
            found += _best([Match(n, s, float(score)) for s, score in enumerate(scores)], each)
        return found

    def of_class(self, name: str, k: int, count: int) -> list[Match]:
        """Return the support slices that show a class and are most like a slice."""
        found: list[Match] = []
        for n in range(len(self.supports)):
            shown, prototypes = self._prototypes(n, name)
            if not len(shown):
                continue
            cells = self._cells[0][k].flatten(1)  # (C, hw)
            best = (prototypes @ cells).topk(min(PROTOTYPE_CELLS, cells.shape[1]), dim=1).values.mean(dim=1).numpy()
            scores = self._general_scores(n, k)[shown] + PROTOTYPE_WEIGHT * best
            found += [Match(n, int(s), float(score)) for s, score in zip(shown, scores, strict=True)]
        return _best(found, count)

    def _general_scores(self, n: int, k: int) -> NDArray[np.float32]:
        features = self.supports[n].features
        place = k * self.query.distance_mm + self._offset_mm[n]
        apart = (np.arange(features.slices) * features.distance_mm - place) / POSITION_MM
        return self._alike[n][k] - POSITION_WEIGHT * np.minimum(apart**2 / 2, 4.0)

    def _prototypes(self, n: int, name: str) -> tuple[NDArray[np.int64], Tensor]:
        """Slices of a support case that show a class, and the mean feature of the class on each, (slices, C)."""
        if (n, name) not in self._known:
            support = self.supports[n]
            shown = support.slices_with(name)
            prototypes = torch.zeros(0)
            if len(shown):
                cells = self._cells[n + 1][shown]
                share = support.shares[shown, support.classes.index(name)].float()[:, None]
                share = F.adaptive_avg_pool2d(share, cells.shape[-1])
                prototypes = F.normalize((cells * share).sum(dim=(2, 3)), dim=1)
            self._known[n, name] = shown, prototypes
        return self._known[n, name]

    def transferred(self, k: int, classes: Sequence[str], count: int) -> Tensor:
        """Let each cell of a slice take over the classes of the cells that resemble it on the best support slices.

        Returns
        -------
        (K, g, g) shares, g = `MATCH_GRID`.
        """
        matches = self.general(k, count)
        query = _matchable(self._cells[0][k])
        keys = torch.cat([_matchable(self._cells[m.support + 1][m.slice]) for m in matches], dim=1)
        labels = torch.cat([self._labels(m, classes) for m in matches], dim=1)  # (K, cells)
        weight = query.T @ keys / MATCH_TEMPERATURE + self._near.repeat(1, len(matches))
        weight = weight.softmax(dim=1).T  # (support cells, query cells)
        # A case that does not know a class says nothing about it, rather than that it is not there.
        known = torch.tensor([[float(n in self.supports[m.support].classes) for m in matches] for n in classes])
        heard = known.repeat_interleave(query.shape[1], dim=1) @ weight
        return (labels @ weight / heard.clamp_min(1e-6)).view(len(classes), MATCH_GRID, MATCH_GRID)

    def _labels(self, match: Match, classes: Sequence[str]) -> Tensor:
        support = self.supports[match.support]
        labels = torch.zeros(len(classes), MATCH_GRID, MATCH_GRID)
        for number, name in enumerate(classes):
            if name in support.classes:
                share = support.shares[match.slice, support.classes.index(name)].float()
                labels[number] = F.adaptive_avg_pool2d(share[None], MATCH_GRID)[0]
        return labels.flatten(1)


def _alignment(alike: NDArray[np.float32], query_mm: float, support_mm: float) -> float:
    """Find how far a volume has to be moved along the body to lie where it resembles a support case most.

    Parameters
    ----------
    alike : (query slices, support slices).
    query_mm, support_mm : distances of slices.

    Returns
    -------
    mm to be added to a query slice's place to get its place in the support.
    """
    places = np.arange(alike.shape[0]) * query_mm
    last = (alike.shape[1] - 1) * support_mm
    best, found = -np.inf, 0.0
    for offset in np.arange(-0.5 * places[-1], last - 0.5 * places[-1] + support_mm, support_mm):
        where = places + offset
        inside = (where >= -support_mm / 2) & (where <= last + support_mm / 2)
        if not inside.any():
            continue
        column = np.clip(np.round(where[inside] / support_mm).astype(int), 0, alike.shape[1] - 1)
        # What lies outside the support counts as unlike.
        score = alike[np.flatnonzero(inside), column].sum() / len(places)
        if score > best:
            best, found = score, float(offset)
    return found


def _matchable(cells: Tensor) -> Tensor:
    fine = F.interpolate(cells[None], size=(MATCH_GRID, MATCH_GRID), mode="bilinear", align_corners=False)[0]
    return F.normalize(fine, dim=0).flatten(1)


def _nearness(side: int) -> Tensor:
    """Logits by distance between the cells of two slices, (side², side²)."""
    steps = torch.arange(side) / side
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    return -(torch.cdist(place, place) ** 2) / (2 * MATCH_SIGMA**2)


def _best(found: list[Match], count: int) -> list[Match]:
    return sorted(found, key=lambda m: (-m.score, m.support, m.slice))[:count]
