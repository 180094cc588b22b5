"""What is wrapped for several processes: the network, its error head, and one training step as a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from SAM2AssistLib.prompting.error_head import ErrorHead
from SAM2AssistLib.training.memory_clips import Clips, Travel, clip_step
from SAM2AssistLib.training.phpg import Outcome, Prompting, Regions, phpg_step
from SAM2AssistLib.training.slices import Sample, SampleKey

if TYPE_CHECKING:
    from peft import PeftModel

STEP_STREAM = 5
"""Keeps the random numbers of steps apart from those of samples and plans, which have the same seed."""


@dataclass(frozen=True)
class Batch:
    """Samples of one step and process, side by side.

    Attributes
    ----------
    images : (B, T, 3, S, S).
    masks : (T, R, S, S) bool, the regions of all samples one after the other.
    owner : (R,) sample of each region; labels : of the regions.
    weights : (B,) of the samples.
    samples : (B,) their places in the index.
    keys : R of them, from which the regions' random choices follow.
    """

    images: Tensor
    masks: Tensor
    owner: Tensor
    labels: Tensor
    weights: Tensor
    samples: tuple[int, ...]
    keys: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        tensors = ("images", "masks", "owner", "labels", "weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples, whose numbers of regions may differ, into a batch."""
    owner = [place for place, sample in enumerate(samples) for _ in sample.labels]
    return Batch(
        torch.stack([sample.images for sample in samples]),
        torch.cat([sample.masks for sample in samples], dim=1),
        torch.tensor(owner),
        torch.tensor([label for sample in samples for label in sample.labels]),
        torch.tensor([sample.key.weight for sample in samples]),
        tuple(sample.key.sample for sample in samples),
        tuple(_region_key(sample.key, label) for sample in samples for label in sample.labels),
    )


def _region_key(key: SampleKey, label: int) -> tuple[int, ...]:
    return key.seed, key.epoch, key.sample, label


@dataclass(frozen=True)
class StepChoice:
    """What is decided once for a step, alike in all processes.

    Attributes
    ----------
    slices : 1, or T of clips.
    travel : rounds of corrections, and what clips do.
    """

    slices: int
    travel: Travel


def choose_step(
    seed: int, epoch: int, step: int, prompting: Prompting, clip_share: float, clip_slices: int, *, carries: bool
) -> StepChoice:
    """Decide about a step by its number alone."""
    rng = np.random.default_rng([seed, STEP_STREAM, epoch, step])
    is_clip = rng.random() < clip_share and clip_slices > 1
    rounds = int(rng.integers(prompting.fewest, prompting.most + 1))
    second, carried = rng.random() < 0.3, carries and rng.random() < 0.85
    if is_clip:  # the slices behind the first cost more than its corrections
        rounds = min(rounds, 1)
    return StepChoice(clip_slices if is_clip else 1, Travel(rounds, second and clip_slices > 2, carried))


class TrainingUnit(nn.Module):
    """The parts that train, with a training step as forward pass.

    Parameters
    ----------
    adapted : a SAM2 with an adapter (`SAM2AssistLib.training.lora.attach_lora`).
    head : the error head.
    prompting : how regions are prompted.
    drawn_prompts : see `SAM2AssistLib.training.phpg.phpg_step`.
    """

    def __init__(self, adapted: PeftModel, head: ErrorHead, prompting: Prompting, *, drawn_prompts: bool) -> None:
        super().__init__()
        self.adapted, self.head = adapted, head
        self.prompting, self.drawn_prompts = prompting, drawn_prompts

    def forward(self, batch: Batch, choice: StepChoice) -> Outcome:
        """Do one training step's forward pass."""
        model = self.adapted.base_model.model
        if choice.slices > 1:
            clips = Clips(batch.images, batch.masks, batch.owner, batch.weights, batch.keys)
            return clip_step(model, self.head, clips, self.prompting, choice.travel, drawn_prompts=self.drawn_prompts)
        regions = Regions(batch.images[:, 0], batch.masks[0], batch.owner, batch.weights, batch.keys)
        return phpg_step(
            model, self.head, regions, self.prompting, choice.travel.rounds, drawn_prompts=self.drawn_prompts
        )
