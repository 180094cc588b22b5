"""Train a self-prompt head (SAM2-SP) on phantoms and on labelled CT.

    python -m SAM2AssistLib.training.self_prompt_training --out ADAPTER [--data DIR] [--seeded DIR] [--minutes 20]

Each new phantom is encoded once and joins a pool; a few steps on slices of the pool follow. A run can be killed at any
moment: started again with the same folder, it goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.loading import Engine, load_base, load_engine
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompting.self_prompt import HEAD_NAME
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead, step_for
from SAM2AssistLib.training.lora import LoraRecipe, attach_lora, base_card, save_adapter
from SAM2AssistLib.training.self_prompt_calibration import LEAST_DICE, Calibration, calibrate
from SAM2AssistLib.training.self_prompt_scans import (
    REMOVABLE,
    LabelledScan,
    TrainingScan,
    file_scan,
    phantom_scan,
    seeded_scan,
    training_scan,
)

if TYPE_CHECKING:
    from SAM2AssistLib.engine.catalogue import ModelSpec

CLASSES = (
    "liver",
    "spleen",
    "kidney_right",
    "kidney_left",
    "stomach",
    "gallbladder",
    "pancreas",
    "aorta",
    "inferior_vena_cava",
    "urinary_bladder",
    "vertebrae",
    "duodenum",
    "colon",
    "small_bowel",
)
LIMITS = (
    "Trained on procedural phantoms and very few CTs, their labels automatic or grown from seeds: a proposal to be "
    "corrected, not a finding. For research; not a medical device.",
    "Only the self-prompt head is trained: it reads the frozen network, and the low-rank updates are zero.",
    "The calibration is on phantoms; on patients, the share of organs that are missed or invented is higher.",
)
LEAST_ML = 10.0
"""Of an organ that is announced: kidneys, the smallest of them, have ten times as much."""
REFILL = 16
"""Phantoms that are made again when a run goes on."""
STATE_FILE = "state.pt"
FIRST_SEED = 5_000_000
"""Of the training phantoms; tests and measurements use small seeds."""


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes
    ----------
    minutes : of computing time; the learning rate falls to zero at their end.
    pool : scans kept at a time.
    steps_per_scan : optimiser steps for every new phantom.
    slices : of a clip.
    absent_share : phantoms made without one of their organs.
    real_share : steps on real CT, if there is any.
    """

    minutes: float = 20.0
    pool: int = 96
    steps_per_scan: int = 8
    slices: int = 10
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    absent_share: float = 0.3
    real_share: float = 0.3
    width: int = 48
    seed: int = 1


class HeadTrainer:
    """Trains a head on frozen features."""

    def __init__(self, engine: Engine, recipe: Recipe, real: Sequence[LabelledScan], classes: Sequence[str]) -> None:
        torch.manual_seed(recipe.seed)
        self.engine, self.recipe, self.classes = engine, recipe, tuple(classes)
        self.rng = np.random.default_rng(recipe.seed)
        self.pool: deque[TrainingScan] = deque(maxlen=recipe.pool)
        self.real_scans = list(real)
        self.real = [training_scan(engine, scan, classes, self.rng) for scan in real for _ in range(4)]
        self.head = VoxelPromptHead(channels_of(engine), len(classes), recipe.width)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.seconds, self.scans, self.steps = 0.0, 0, 0

    def run(self, checkpoint: Path | None = None) -> VoxelPromptHead:
        """Train to the end of the recipe's minutes."""
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)
        started = time.process_time() - self.seconds
        losses: list[float] = []
        while self.seconds < 60 * self.recipe.minutes:
            self._renew()
            for _ in range(self.recipe.steps_per_scan):
                losses.append(self._step())
            self.seconds = time.process_time() - started
            if self.scans % 20 == 0:
                print(f"{self.scans} phantoms, {self.seconds:.0f} s, loss {np.mean(losses[-160:]):.4f}", flush=True)
                if checkpoint is not None:
                    self._save(checkpoint)
        if checkpoint is not None:
            self._save(checkpoint)
        return self.head.eval()

    def _renew(self) -> None:
        seed = FIRST_SEED + self.scans
        without = str(self.rng.choice(sorted(REMOVABLE))) if self.rng.random() < self.recipe.absent_share else None
        self.pool.append(training_scan(self.engine, phantom_scan(seed, without), self.classes, self.rng))
        self.scans += 1

    def _step(self) -> float:
        recipe = self.recipe
        done = min(1.0, self.seconds / (60 * recipe.minutes))
        rate = (
            recipe.learning_rate
            * min(1.0, (self.steps + 1) / 30)
            * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        from_real = bool(self.real) and self.rng.random() < recipe.real_share
        scans = self.real if from_real else self.pool
        scan = scans[int(self.rng.integers(len(scans)))]
        first = int(self.rng.integers(max(1, scan.features.slices - recipe.slices + 1)))
        part = scan.features.part(first, first + recipe.slices)
        levels = tuple(level.float() for level in part.levels)
        logits = self.head(levels, step_for(part.distance_mm))
        loss = head_loss(logits, scan.truth[first : first + recipe.slices].float(), scan.told)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return float(loss.detach())

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        state = {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "scans": self.scans,
            "steps": self.steps,
            "base": str(store.expected_sha256(self.engine.spec)),
        }
        torch.save(state, part)
        part.replace(path)

    def _resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["base"] != str(store.expected_sha256(self.engine.spec)):
            raise InputError(f"{path} belongs to other weights of {self.engine.spec.name}; choose another --out.")
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.scans, self.steps = state["seconds"], state["scans"], state["steps"]
        self.rng = np.random.default_rng([self.recipe.seed, self.scans])
        self.scans -= min(self.scans, REFILL)
        for _ in range(min(state["scans"], REFILL)):
            self._renew()


def head_loss(logits: Tensor, truth: Tensor, told: Tensor | None = None) -> Tensor:
    """Cross entropy and the Dice of the classes that the clip shows, in equal parts.

    A class of which the truth says nothing is as good an answer as "none of them" (the marginal loss of Shi et al.,
    Medical Image Analysis 2021).

    Parameters
    ----------
    logits, truth : (N, K + 1, h, w); the truth holds the share of each class in a cell.
    told : (K + 1,) bool, the classes that the truth tells of, the first among them; all if None.
    """
    if told is not None and not bool(told.all()):
        none = torch.cat([logits[:, :1], logits[:, ~told]], dim=1).logsumexp(dim=1, keepdim=True)
        logits, truth = torch.cat([none, logits[:, told][:, 1:]], dim=1), truth[:, told]
    entropy = F.cross_entropy(logits, truth)
    share = logits.softmax(dim=1)
    common = (share * truth).sum(dim=(0, 2, 3))
    total = (share + truth).sum(dim=(0, 2, 3))
    shown = (truth.sum(dim=(0, 2, 3)) > 4)[1:].float()
    dice = 1 - (2 * common + 1) / (total + 1)
    return entropy + (dice[1:] * shown).sum() / shown.sum().clamp_min(1)


def channels_of(engine: Engine) -> tuple[int, ...]:
    """Channels of the encoder's levels, from coarse to fine."""
    width = engine.model.hidden_dim
    return width, width // 4, width // 8


@dataclass(frozen=True)
class HeadSettings:
    """What the card says of a head, beside its sizes.

    Attributes
    ----------
    known : classes that the head tells apart.
    classes : those it is announced for.
    presence : by class, the least confidence that counts as present.
    least_ml : what is smaller is reported absent.
    """

    known: tuple[str, ...]
    classes: tuple[str, ...]
    presence: dict[str, float]
    least_ml: float = LEAST_ML


def write_adapter(
    spec: ModelSpec, head: VoxelPromptHead, settings: HeadSettings, folder: Path, card: Mapping[str, Any]
) -> None:
    """Write an adapter folder with a head on the frozen base: its low-rank updates change nothing."""
    adapted = attach_lora(load_base(spec), LoraRecipe(rank=1, targets=("encoder",)))
    sizes = {"channels": head.channels, "width": head.width}
    content = {**base_card(spec), HEAD_NAME: {**asdict(settings), **sizes, "frozen_base": True}, **card}
    save_adapter(adapted, folder, content, {HEAD_NAME: head}, dtype=torch.float16)


def read_data(folders: Sequence[Path]) -> list[LabelledScan]:
    """Read cases: folders with ``image.nii.gz`` and ``label.nii.gz``."""
    return [file_scan(folder / "image.nii.gz", folder / "label.nii.gz") for folder in folders]


def _rounded(calibration: Calibration) -> dict[str, float | None]:
    """For JSON, which knows no nan."""
    return {name: None if math.isnan(value) else round(value, 3) for name, value in asdict(calibration).items()}


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="adapter folder")
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of a labelled case; repeatable")
    parser.add_argument("--seeded", type=Path, action="append", default=[], help="case of seeds.json; repeatable")
    parser.add_argument("--minutes", type=float, default=20.0, help="of computing time")
    parser.add_argument("--calibration", type=int, default=28, help="phantoms to measure the head on at the end")
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = load_engine(arguments.model, "cpu")
    cache = arguments.out.with_name(f"{arguments.out.name}-grown")
    real = [*read_data(arguments.data), *(seeded_scan(folder, cache) for folder in arguments.seeded)]
    trainer = HeadTrainer(engine, Recipe(minutes=arguments.minutes), real, CLASSES)
    head = trainer.run(arguments.out / STATE_FILE)
    measured = calibrate(engine, head, CLASSES, arguments.calibration)
    announced = tuple(name for name in CLASSES if measured[name].dice >= LEAST_DICE)
    settings = HeadSettings(CLASSES, announced, {name: round(measured[name].presence, 2) for name in announced})
    data = ["procedural phantoms, never the same twice", *(scan.name for scan in trainer.real_scans)]
    card = {
        "classes": announced,
        "licence": engine.spec.licence,
        "training": {**asdict(trainer.recipe), "phantoms": trainer.scans, "steps": trainer.steps, "data": data},
        "calibration": {"phantoms": arguments.calibration, **{n: _rounded(c) for n, c in measured.items()}},
        "limits": LIMITS,
    }
    write_adapter(engine.spec, head, settings, arguments.out, card)
    (arguments.out / STATE_FILE).unlink()
    print(f"{arguments.out} written; it announces {', '.join(announced) or 'nothing'}", flush=True)


if __name__ == "__main__":
    main()
