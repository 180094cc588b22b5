"""CBDP: which slices an epoch trains on, by how much each organ still has to be learned from them.

The table of scores s[slice, class] follows the first round's loss by a running mean. In every epoch before the last
part about half of the slices are kept: the hardest of each class for certain, with keep rates that rise with the
class's mean loss, and others by chance, whose gradients are scaled up for those that were left out. The last eighth,
one epoch at least, sees everything. 0.875 * 0.5 + 0.125 = 0.5625: the 56.25 % of the iterations that the paper reports.

Slices are kept or left out as a whole. Leaving out single (slice, class) pairs would save next to nothing here, because
the regions of a slice share one pass of the encoder and are decoded together.

Sources: Wang et al., ISBI 2025 (abstract); unbiased rescaling and the full last part from InfoBatch (Qin et al. 2023,
arXiv 2303.04947); class-wise rates from the specification in the project's notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from SAM2AssistLib.errors import InputError

METHODS = ("cbdp", "random", "none")
FEWEST_EPOCHS = 4
"""Shorter runs leave nothing out: two epochs have to pass before every slice has a score."""
PLAN_STREAM = 7
"""Keeps the random numbers of plans apart from those of samples, which have the same seed."""


@dataclass(frozen=True)
class Pruning:
    """How much is left out, and how it is chosen.

    Attributes
    ----------
    method : "cbdp"; "random", for comparison at the same budget; or "none".
    keep : share of the slices that a pruned epoch keeps.
    full_from : share of the epochs after which everything is seen; in the last one it always is.
    hard_share : of what is kept, how much for being hard.
    memory : of the running mean of the scores.
    least_rate, most_rate : limits of a class's keep rate.
    fewest : slices of each class that every epoch keeps, as far as there are so many.
    """

    method: str = "cbdp"
    keep: float = 0.5
    full_from: float = 0.875
    hard_share: float = 0.5
    memory: float = 0.7
    least_rate: float = 0.3
    most_rate: float = 0.9
    fewest: int = 4

    def __post_init__(self) -> None:
        """Refuse what is no pruning.

        Raises
        ------
        InputError
            If the method is unknown or a share is not within 0 and 1.
        """
        if self.method not in METHODS:
            raise InputError(f"There is no pruning {self.method!r}; choose {', '.join(METHODS)}.")
        if not (0 < self.keep <= 1 and 0 <= self.full_from <= 1 and 0 <= self.hard_share <= 1 and 0 <= self.memory < 1):
            raise InputError("The shares of a pruning have to be within 0 and 1.")


@dataclass(frozen=True)
class Kept:
    """A slice that an epoch trains on: its place in the data, and its weight in the loss."""

    sample: int
    weight: float


class Pruner:
    """Plans epochs and remembers how hard each slice is for each class.

    Parameters
    ----------
    classes : of each sample, the labels it shows.
    epochs : of the run.
    pruning : how.
    seed : of the chances; a plan depends on it, on the epoch and on the scores alone.
    """

    def __init__(self, classes: Sequence[Sequence[int]], epochs: int, pruning: Pruning, seed: int) -> None:
        self.epochs, self.pruning, self.seed = epochs, pruning, seed
        self.labels = sorted({label for sample in classes for label in sample})
        self._column = {label: n for n, label in enumerate(self.labels)}
        self.shown = np.zeros((len(classes), len(self.labels)), bool)
        for sample, labels in enumerate(classes):
            self.shown[sample, [self._column[label] for label in labels]] = True
        self.scores: NDArray[np.float64] = np.full(self.shown.shape, np.nan)

    def is_full(self, epoch: int) -> bool:
        """Tell whether an epoch sees everything."""
        last_part = max(1, round((1 - self.pruning.full_from) * self.epochs))
        too_few = self.epochs < FEWEST_EPOCHS
        return self.pruning.method == "none" or too_few or epoch >= self.epochs - last_part

    def size(self, epoch: int) -> int:
        """Return how many slices an epoch keeps."""
        total = len(self.shown)
        return total if self.is_full(epoch) else max(1, round(self.pruning.keep * total))

    def plan(self, epoch: int) -> list[Kept]:
        """Choose the slices of an epoch, in the order in which they are trained on."""
        rng = np.random.default_rng([self.seed, PLAN_STREAM, epoch])
        total, wanted = len(self.shown), self.size(epoch)
        if wanted == total:
            return [Kept(int(n), 1.0) for n in rng.permutation(total)]
        if self.pruning.method == "random":
            return [Kept(int(n), 1.0) for n in rng.permutation(total)[:wanted]]
        hard, rest = self._hardest(round(self.pruning.hard_share * wanted), wanted, rng)
        chosen = rng.choice(rest, wanted - len(hard), replace=False)
        samples = np.concatenate([hard, chosen])
        weights = np.ones(len(samples))
        if len(chosen):
            weights[len(hard) :] = len(rest) / len(chosen)
        # In the mean 1, so that a pruned epoch's steps are as long as those of a full one; their ratio is what matters.
        weights /= weights.mean()
        return [Kept(int(samples[n]), float(weights[n])) for n in rng.permutation(len(samples))]

    def record(self, sample: int, scores: Mapping[int, float]) -> None:
        """Take in what a training step found: a sample's score by label; nan is passed over."""
        for label, score in scores.items():
            if np.isfinite(score):
                column = self._column[label]
                before = self.scores[sample, column]
                memory = 0.0 if np.isnan(before) else self.pruning.memory
                self.scores[sample, column] = memory * (0.0 if np.isnan(before) else before) + (1 - memory) * score

    def rates(self) -> NDArray[np.float64]:
        """Return the keep rate of each class (see `labels`): the share of its slices that count as hard."""
        pruning = self.pruning
        seen = np.where(np.isnan(self.scores), 0.0, self.scores).sum(0)
        counts = (~np.isnan(self.scores)).sum(0)
        means = np.where(counts > 0, seen / np.maximum(counts, 1), np.nan)
        if np.isnan(means).all() or np.nanmax(means) <= 0:
            return np.full(len(self.labels), pruning.keep)
        means = np.where(np.isnan(means), np.nanmean(means), means)
        share = self.shown.sum(0) / self.shown.sum()
        low, high = 0.0, pruning.most_rate / max(means[means > 0].min(), 1e-9)
        for _ in range(60):  # bisection for the scale at which the rates of all pairs have the wanted mean
            middle = (low + high) / 2
            mean = float((np.clip(middle * means, pruning.least_rate, pruning.most_rate) * share).sum())
            low, high = (middle, high) if mean < pruning.keep else (low, middle)
        return np.clip(low * means, pruning.least_rate, pruning.most_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has to survive a restart."""
        return {"scores": torch.from_numpy(self.scores.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        InputError
            If it is of other data.
        """
        scores = state["scores"].numpy()
        if scores.shape != self.scores.shape:
            raise InputError("The saved scores are of other slices or classes; start a new run in another folder.")
        self.scores = scores.copy()

    def _hardest(self, count: int, limit: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the samples that are kept for being hard, and the others."""
        # What was never seen comes first: it may be hard.
        known = np.where(np.isnan(self.scores), np.inf, self.scores)
        noise = rng.random(known.shape)
        rates = self.rates()
        importance = np.full(len(known), np.inf)
        forced: list[int] = []
        for column, rate in enumerate(rates):
            members = np.flatnonzero(self.shown[:, column])
            order = members[np.lexsort((noise[members, column], -known[members, column]))]
            forced += order[: self.pruning.fewest].tolist()
            place = np.arange(len(order)) / len(order) / rate
            importance[order] = np.minimum(importance[order], place)
        by_importance = np.lexsort((noise[:, 0], importance))
        ranked = list(dict.fromkeys([*forced, *by_importance.tolist()]))
        size = min(limit, max(count, len(set(forced))))
        return np.array(ranked[:size], np.int64), np.array(sorted(ranked[size:]), np.int64)
