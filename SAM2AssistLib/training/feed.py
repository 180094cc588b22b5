"""Batches of clips for the trainer, made in one worker process beside it, with phantoms renewed as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from SAM2AssistLib.training.clips import ClipSampler
from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.training.volumes import LabelledVolume


@dataclass(frozen=True)
class Plan:
    """What one kind of batch holds: ``clips`` clips of ``slices`` slices with ``objects`` objects each."""

    clips: int
    slices: int
    objects: int


def training_phantom(seed: int) -> LabelledVolume:
    """Make a phantom of a random grid, as scanners and reconstructions vary."""
    rng = np.random.default_rng(seed)
    in_plane = float(rng.uniform(1.3, 2.2))
    pixels = int(rng.choice([176, 192, 208, 224]))
    thickness = float(rng.choice([2.0, 3.0, 5.0]))
    phantom = make_phantom(seed, (int(rng.integers(28, 49)), pixels, pixels), (in_plane, in_plane, thickness))
    return LabelledVolume(f"phantom {seed}", phantom.volume.array, phantom.labels, (thickness, in_plane, in_plane))


class ClipFeed(IterableDataset):
    """An endless stream of (images (B, T, 3, S, S), masks (B, T, M, S, S), index of the plan).

    Parameters
    ----------
    real : volumes read from files; may be empty.
    plans, shares : kinds of batches and how often each comes.
    phantoms : how many are kept at a time; every ``renew_every`` clips the oldest gives way to a new one.
    seed : of everything random; the stream of one seed is always the same.
    """

    def __init__(
        self,
        real: Sequence[LabelledVolume],
        plans: Sequence[Plan],
        shares: Sequence[float],
        *,
        image_size: int,
        phantoms: int,
        seed: int,
        phantom_share: float = 0.35,
        renew_every: int = 48,
    ) -> None:
        self.real, self.plans, self.shares = list(real), list(plans), np.asarray(shares, float) / sum(shares)
        self.image_size, self.phantoms, self.seed = image_size, phantoms, seed
        self.phantom_share = phantom_share if real else 1.0
        self.renew_every = renew_every

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        torch.set_num_threads(1)
        rng = np.random.default_rng(self.seed)
        seeds = iter(range(self.seed * 1_000_003, 2**62))
        pool = [training_phantom(next(seeds)) for _ in range(self.phantoms)]
        weights = self._weights(pool)
        samplers = [
            ClipSampler(
                [*self.real, *pool],
                weights,
                image_size=self.image_size,
                slices=plan.slices,
                objects=plan.objects,
                seed=int(rng.integers(2**31)),
            )
            for plan in self.plans
        ]
        made = 0
        while True:
            kind = int(rng.choice(len(self.plans), p=self.shares))
            clips = [samplers[kind].sample() for _ in range(self.plans[kind].clips)]
            made += len(clips)
            if made >= self.renew_every:
                made = 0
                fresh = training_phantom(next(seeds))
                place = len(self.real) + int(rng.integers(self.phantoms))
                for sampler in samplers:
                    sampler.volumes[place] = fresh
            yield torch.stack([c.images for c in clips]), torch.stack([c.masks for c in clips]), kind

    def _weights(self, pool: Sequence[LabelledVolume]) -> list[float]:
        # A volume with many named structures teaches more than one with a single tumour.
        richness = [1 + np.log2(1 + len(v.labels_along(0))) for v in self.real]
        real = [(1 - self.phantom_share) * r / sum(richness) for r in richness]
        return real + [self.phantom_share / len(pool)] * len(pool)


def load_batches(feed: ClipFeed) -> DataLoader:
    """Run the feed in one process of its own, a few batches ahead."""
    return DataLoader(feed, batch_size=None, num_workers=1, prefetch_factor=4)
