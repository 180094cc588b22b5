"""The settings of a fine-tuning run, in one place; they are written into the adapter's card as they are."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from SAM2AssistLib.engine.adapter import NEIGHBOURS
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.cbdp import Pruning
from SAM2AssistLib.training.lora import LoraRecipe
from SAM2AssistLib.training.phpg import Prompting
from SAM2AssistLib.volume import WINDOW_PRESETS, Window

MOST_SEED = 2**63
"""Seeds are below it: torch's generator takes no others."""


@dataclass(frozen=True)
class FineTuneRecipe:
    """How an adapter is trained.

    Attributes
    ----------
    steps : optimiser steps of a run that leaves nothing out; pruning makes about 56 % of them.
    batch : slices (or clips) of a step, over all processes and accumulation together.
    accumulate : parts a process splits its share of a batch into, one after the other, to save memory.
    learning_rate, warm_up, weight_decay, gradient_limit : AdamW's; the rate falls along a cosine. It is that of the
        low-rank updates and the error head; parts trained as a whole get `whole_rate`.
    clip_share, clip_slices : how many of the steps are on clips for the memory, and T.
    most_regions : of one slice in one step.
    window : HU window, as it will be used.
    context : "windows", what the base sees of a slice; or "slices", the slice between its neighbours (2.5D).
    phantoms, synthetic : procedural volumes beside the real ones.
    precision : "no" for float32, or "bf16".
    seed : of everything random.
    """

    steps: int = 2000
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    whole_rate: float = 1e-4
    warm_up: int = 50
    weight_decay: float = 0.01
    gradient_limit: float = 1.0
    clip_share: float = 0.3
    clip_slices: int = 4
    most_regions: int = 8
    window: Window = WINDOW_PRESETS["abdomen"]
    context: str = "windows"
    phantoms: int = 0
    synthetic: int = 0
    precision: str = "no"
    seed: int = 1
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    prompting: Prompting = field(default_factory=Prompting)
    pruning: Pruning = field(default_factory=Pruning)

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises
        ------
        InputError
            If a number makes no sense.
        """
        for name in ("steps", "batch", "accumulate", "clip_slices", "most_regions"):
            if getattr(self, name) < 1:
                raise InputError(f"A run needs {name} of 1 or more, but got {getattr(self, name)}.")
        if not all(rate > 0 and math.isfinite(rate) for rate in (self.learning_rate, self.whole_rate)):
            raise InputError("A run needs learning rates above 0.")
        if self.precision not in ("no", "bf16"):
            raise InputError(f"There is no precision {self.precision!r}; choose no or bf16.")
        if self.context not in ("windows", NEIGHBOURS):
            raise InputError(f"There is no context {self.context!r}; choose windows or {NEIGHBOURS}.")
        if not 0 <= self.clip_share <= 1 or min(self.phantoms, self.synthetic) < 0:
            raise InputError("The share of clips has to be within 0 and 1, and numbers of volumes 0 or more.")
        if not 0 <= self.seed < MOST_SEED:
            raise InputError(f"A run needs a seed from 0 to {MOST_SEED - 1}, but got {self.seed}.")

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON holds."""
        return json.loads(json.dumps(asdict(self)))

    def fingerprint(self, data: object) -> str:
        """Return a hash of the settings and of what JSON can hold about the data, to know a run again."""
        content = json.dumps([self.as_json(), data], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Schedule:
    """How the steps of a run are laid out over epochs.

    Attributes
    ----------
    epochs : of the run.
    steps_of : optimiser steps of each epoch.
    """

    epochs: int
    steps_of: tuple[int, ...]

    @property
    def steps(self) -> int:
        """All steps of the run."""
        return sum(self.steps_of)


def epochs_for(recipe: FineTuneRecipe, samples: int) -> int:
    """Return how many epochs come nearest to the steps of the recipe, 1 at least."""
    return max(1, round(recipe.steps / -(-samples // recipe.batch)))


def schedule_for(recipe: FineTuneRecipe, sizes: Sequence[int]) -> Schedule:
    """Lay out the steps of a run; data that are too many for one epoch are seen in part.

    Parameters
    ----------
    sizes : slices that each epoch keeps.
    """
    if len(sizes) == 1:
        return Schedule(1, (min(recipe.steps, -(-sizes[0] // recipe.batch)),))
    return Schedule(len(sizes), tuple(-(-size // recipe.batch) for size in sizes))
