"""Train ``mini`` from scratch: prompts and corrections on slices first, then clips for the memory.

    python -m SAM2AssistLib.training.trainer --out runs/mini [--real DIR] [--mixed-steps 3000]

A run can be killed at any moment: started again with the same folder, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.refiner import EdgeRefiner
from SAM2AssistLib.training.feed import ClipFeed, Plan, load_batches
from SAM2AssistLib.training.optimizers import make_optimizer
from SAM2AssistLib.training.precision import training_precision, use_plain_attention
from SAM2AssistLib.training.rollout import Rollout, clip_rollout, image_rollout
from SAM2AssistLib.training.seeded import with_grown_labels
from SAM2AssistLib.training.volumes import read_split

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class Recipe:
    """One stage of training; written into the card as it is.

    Attributes
    ----------
    steps : optimiser steps of the stage.
    clip_share : how many of the batches are clips; the rest are single slices.
    learning_rate, warm_up : peak of the cosine schedule, and the steps until it is reached.
    rounds : prompts and corrections per object on single slices are drawn from 2 to this.
    long_share : how many of the clips are long ones, in which small errors have time to grow.
    carry_share, teacher_share : of clips, see `clip_rollout`.
    """

    name: str
    steps: int
    clip_share: float
    learning_rate: float
    warm_up: int
    rounds: int
    image_size: int = 256
    images: Plan = Plan(clips=8, slices=1, objects=4)
    clips: Plan = Plan(clips=3, slices=5, objects=3)
    long_clips: Plan = Plan(clips=2, slices=8, objects=3)
    long_share: float = 0.0
    carry_share: float = 0.8
    teacher_share: float = 0.35
    weight_decay: float = 0.05
    gradient_limit: float = 1.0
    averaging: float = 0.995
    seed: int = 1
    phantoms: int = 32
    optimizer: str = "adamw"


def slices_recipe(steps: int) -> Recipe:
    """Return the first stage: prompts and corrections on single slices."""
    return Recipe("slices", steps, clip_share=0.0, learning_rate=5e-4, warm_up=100, rounds=3)


def clips_recipe(steps: int) -> Recipe:
    """Return the second stage: mostly clips, some single slices so that clicking is not unlearned."""
    return Recipe("clips", steps, clip_share=0.7, learning_rate=3e-4, warm_up=50, rounds=4, seed=2)


def refine_recipe(steps: int) -> Recipe:
    """Return the third stage: slices and clips alike at a falling rate, to even out what the second one has shifted."""
    return Recipe("refine", steps, clip_share=0.55, learning_rate=2.5e-4, warm_up=20, rounds=3, seed=3, phantoms=16)


def mixed_recipe(steps: int) -> Recipe:
    """Return the fourth and longest stage: slices and clips alike at a full rate, with many corrections."""
    return Recipe("mixed", steps, clip_share=0.5, learning_rate=5e-4, warm_up=100, rounds=4, seed=4)


def edges_recipe(steps: int) -> Recipe:
    """Return the fifth stage, which teaches the refiner; before it the masks are not worth refining."""
    return Recipe("edges", steps, clip_share=0.5, learning_rate=4e-4, warm_up=40, rounds=4, seed=5)


def long_recipe(steps: int) -> Recipe:
    """Return the last stage: some clips of eight slices, and the truth less often in place of a prediction."""
    return Recipe(
        "long",
        steps,
        clip_share=0.6,
        learning_rate=5e-4,
        warm_up=50,
        rounds=4,
        seed=6,
        long_share=0.3,
        teacher_share=0.2,
        optimizer="muon",
    )


class StageTrainer:
    """Trains one stage of a recipe, with checkpoints it resumes from."""

    CHECKPOINT_EVERY = 100

    def __init__(self, model: SAM2Base, recipe: Recipe, real: Path | None, out: Path) -> None:
        self.model, self.recipe, self.out = model, recipe, out
        self.average = AveragedModel(model, avg_fn=self._average)
        self.optimizer = make_optimizer(recipe.optimizer, model, recipe.learning_rate, recipe.weight_decay)
        self.step = 0
        self.seconds = 0.0
        self.volumes = with_grown_labels(read_split(real), out / "grown") if real else []

    def _average(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        # Early on the average follows closely; with a fixed decay the random start would weigh on it for a thousand
        # steps.
        decay = min(self.recipe.averaging, (1 + int(count)) / (10 + int(count)))
        return average * decay + current * (1 - decay)

    def _rate(self) -> float:
        recipe, step = self.recipe, self.step
        if step < recipe.warm_up:
            return recipe.learning_rate * (step + 1) / recipe.warm_up
        progress = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
        return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    def run(self) -> None:
        """Train to the end of the stage, printing a line now and then."""
        recipe = self.recipe
        self._resume()
        if self.step >= recipe.steps:
            return
        rng = np.random.default_rng([recipe.seed, self.step])
        torch.manual_seed(recipe.seed * 7919 + self.step)
        batches = self._batches()
        self.model.train()
        smooth: dict[str, float] = {}
        began = time.monotonic()
        while self.step < recipe.steps:
            images, masks, kind = next(batches)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate() * group["pace"]
            with training_precision():
                rollout = self._roll(images, masks, kind, rng)
            self._update(rollout.loss)
            for name, value in {"loss": float(rollout.loss.detach()), **rollout.dice}.items():
                smooth[name] = 0.97 * smooth.get(name, value) + 0.03 * value
            self.step += 1
            if self.step % 20 == 0:
                self._report(smooth, began)
            if self.step % self.CHECKPOINT_EVERY == 0 or self.step == recipe.steps:
                self._save(time.monotonic() - began)
        self.seconds += time.monotonic() - began

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        recipe = self.recipe
        # A resumed run draws new clips instead of skipping thousands of old ones.
        feed = ClipFeed(
            self.volumes,
            [recipe.images, recipe.clips, recipe.long_clips],
            [
                1 - recipe.clip_share,
                recipe.clip_share * (1 - recipe.long_share),
                recipe.clip_share * recipe.long_share,
            ],
            image_size=recipe.image_size,
            phantoms=recipe.phantoms,
            seed=recipe.seed * 100_003 + self.step,
        )
        return iter(load_batches(feed))

    def _roll(self, images: Tensor, masks: Tensor, kind: int, rng: np.random.Generator) -> Rollout:
        if kind == 0:
            rounds = int(rng.integers(2, self.recipe.rounds + 1))
            return image_rollout(self.model, images[:, 0], masks[:, 0], rounds, rng)
        rounds = int(rng.integers(1, 3))
        shares = {"carry_share": self.recipe.carry_share, "teacher_share": self.recipe.teacher_share}
        return clip_rollout(self.model, images, masks, rounds, rng, **shares)

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_limit)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.model)

    def _report(self, smooth: dict[str, float], began: float) -> None:
        spent = time.monotonic() - began
        values = "  ".join(f"{name} {value:.3f}" for name, value in smooth.items())
        print(f"{self.recipe.name} {self.step}/{self.recipe.steps}  {spent:.0f} s  {values}", flush=True)

    def _save(self, spent: float) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "averaged": self.average.n_averaged,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds + spent,
        }
        weights = {k: v.contiguous().clone() for k, v in self.average.module.state_dict().items()}
        # The weights come first: a stage whose checkpoint says that it is finished is not trained again.
        for ending, save, content in ((".safetensors", save_file, weights), (".pt", torch.save, state)):
            final = self.out / f"{self.recipe.name}{ending}"
            beside = final.with_name(f"{final.name}.part")
            save(content, beside)
            os.replace(beside, final)

    def _resume(self) -> None:
        path = self.out / f"{self.recipe.name}.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        self.average.n_averaged.copy_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"{self.recipe.name}: going on from step {self.step}", flush=True)


RECIPES = {
    "slice": slices_recipe,
    "clip": clips_recipe,
    "refine": refine_recipe,
    "mixed": mixed_recipe,
    "edges": edges_recipe,
    "long": long_recipe,
}
STEPS = {"slice": 1000, "clip": 1250, "refine": 420, "mixed": 2000, "edges": 1050, "long": 2000}


def train_mini(out: Path, real: Path | None, steps: dict[str, int]) -> None:
    """Train the stages of `RECIPES` that have steps; each starts from the averaged weights of the one before."""
    torch.manual_seed(0)
    model = build_sam2("mini", 256)
    model.refiner = EdgeRefiner()
    stages = []
    for recipe in (make(steps[stage]) for stage, make in RECIPES.items() if steps[stage]):
        trainer = StageTrainer(model, recipe, real, out)
        trainer.run()
        model.load_state_dict(load_file(out / f"{recipe.name}.safetensors"))
        stages.append({**asdict(recipe), "hours": round(trainer.seconds / 3600, 2)})
    counts = " ".join(f"--{stage}-steps {count}" for stage, count in steps.items())
    record = {
        "command": f"python -m SAM2AssistLib.training.trainer --out RUN {counts}{' --real DATA' if real else ''}",
        "data": ["procedural phantoms, never the same twice", *(v.name for v in trainer.volumes)],
        "stages": stages,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and weights")
    parser.add_argument("--real", type=Path, help="folder with splits.json and real CT; phantoms alone if not given")
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps, help=f"default {steps}; 0 leaves it out")
    arguments = parser.parse_args()
    # Vanishing numbers slow a CPU down many times, and training makes ever more of them.
    torch.set_flush_denormal(True)
    use_plain_attention()
    train_mini(arguments.out, arguments.real, {stage: getattr(arguments, f"{stage}_steps") for stage in RECIPES})


if __name__ == "__main__":
    main()
