"""From a data folder to an adapter folder: everything that ``sam2assist finetune`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from SAM2AssistLib.engine import store as store_of_weights
from SAM2AssistLib.engine.adapter import CARD_FILE, NEIGHBOURS
from SAM2AssistLib.engine.appearance import ONE_WINDOW, THREE_SLICES, THREE_WINDOWS
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.engine.loading import load_base
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import atomic_path, folder_in_use
from SAM2AssistLib.prompting.error_head import ErrorHead, channels_of
from SAM2AssistLib.training.datasets.case import DataSet
from SAM2AssistLib.training.datasets.layouts import find_data
from SAM2AssistLib.training.datasets.split import SPLIT_FILE, Split, split_of
from SAM2AssistLib.training.finetune import FineTuner, Progress, make_accelerator
from SAM2AssistLib.training.lora import base_card, save_adapter
from SAM2AssistLib.training.phpg import Prompting, Regions, phpg_step
from SAM2AssistLib.training.recipe import FineTuneRecipe, schedule_for
from SAM2AssistLib.training.run_state import CHECKPOINT
from SAM2AssistLib.training.slices import Appearance, CaseStore, SampleKey, SliceSamples
from SAM2AssistLib.training.synthetic import phantom_ct, synthetic_ct, with_synthetic_names
from SAM2AssistLib.training.unit import collate

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

UNTRAINED = "none, the base was untrained"
MOST_VALIDATED = 48
"""Slices on which an adapter is measured at the end, evenly spread over the validation cases."""
VALIDATION_PROMPTING = Prompting({"jittered box": 1.0}, 1, 2, 2, {"centre": 1.0}, previous_share=1.0)
"""A box, then two clicks in the middle of the largest error."""


@dataclass(frozen=True)
class Plan:
    """What a run is about to do, for the user to read before it starts.

    Attributes
    ----------
    data, split : the cases and what they are for.
    classes : the structures.
    training_slices, steps, epochs : of the run.
    trained_parameters : number of parameters that train.
    data_bytes : of the volumes held in memory; peak_bytes : measured on one step (of the process; on CUDA of the
        device); 0 where the system does not tell.
    done : optimiser steps of an interrupted run that goes on.
    notes : what the user should know of the images, a sentence each.
    """

    data: DataSet
    split: Split
    classes: tuple[str, ...]
    training_slices: int
    steps: int
    epochs: int
    trained_parameters: int
    data_bytes: int
    peak_bytes: int
    done: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes
    ----------
    folder : of the adapter.
    metrics : mean 2D Dice on validation slices of the base and of the adapter; None without validation cases, or if
        none of them shows one of the structures.
    card : of the adapter.
    """

    folder: Path
    metrics: dict[str, dict[str, float]] | None
    card: dict[str, Any]


def build_base(spec: ModelSpec, *, untrained: bool = False) -> SAM2Base:
    """Build a base network with its verified weights, or with random ones to try out a setting.

    Raises
    ------
    ModelError
        If the weights are missing, damaged or of another network.
    """
    return build_sam2(spec.architecture, spec.image_size) if untrained else load_base(spec)


def finetune_adapter(
    data_folder: Path,
    folder: Path,
    spec: ModelSpec,
    recipe: FineTuneRecipe,
    device: torch.device,
    *,
    split_file: Path | None = None,
    classes: tuple[str, ...] = (),
    workers: int = 0,
    checkpoint_every: int = 50,
    untrained_base: bool = False,
    announce: Callable[[Plan], None] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Result:
    """Train an adapter, or go on with a run that was interrupted.

    Parameters
    ----------
    data_folder : in one of the layouts of `SAM2AssistLib.training.datasets.layouts`.
    folder : of the adapter to be.
    spec, recipe, device : the base model, the settings, and where to compute.
    split_file : which cases are for what; see `split_of`.
    classes : structures to train on; all if empty.
    workers, checkpoint_every : see `FineTuner`.
    untrained_base : start from random weights, to try out a setting where the weights are not at hand; the card then
        names no weights, and `attach_adapter` refuses the adapter.
    announce : told about the run before it starts; report : told after every step.

    Raises
    ------
    InputError
        If the data do not fit together (naming the file), or the folder holds a finished adapter or another run.
    ModelError, OutputError
        If the base cannot be loaded, or a file cannot be written.
    """
    if (folder / CARD_FILE).is_file():
        raise InputError(f"{folder} holds a finished adapter already; choose another folder or remove it.")
    data = find_data(data_folder)
    split = split_of(data, split_file)
    names = _names(data, classes)
    store, samples = _training_samples(data, split, names, spec, recipe)
    with folder_in_use(folder):
        accelerator = make_accelerator(recipe, device)
        base = build_base(spec, untrained=untrained_base)
        base_sha256 = UNTRAINED if untrained_base else store_of_weights.expected_sha256(spec)
        validation = _Validation(data, split, names, spec, recipe)
        if split.val and validation.samples is None:
            none_shown = f"{split.source}, whose validation cases show none of the structures"
            split = replace(split, val=(), source=none_shown)
        # Before it is changed.
        validation.before = validation.measure(base.to(accelerator.device), spec)
        tuner = FineTuner(
            base,
            spec,
            recipe,
            store,
            samples,
            folder,
            accelerator=accelerator,
            base_sha256=base_sha256,
            workers=workers,
            checkpoint_every=checkpoint_every,
        )
        if announce is not None and accelerator.is_main_process:
            announce(_plan(data, split, names, tuner))
        tuner.run(report)
        return _finish(tuner, data, split, names, validation, base_sha256)


def _names(data: DataSet, classes: tuple[str, ...]) -> dict[str, int]:
    unknown = next((name for name in classes if name not in data.names), None)
    if unknown is not None:
        raise InputError(f"{data.root} has no structure {unknown!r}; choose from {', '.join(data.names)}.")
    return {name: value for name, value in data.names.items() if not classes or name in classes}


def _training_samples(
    data: DataSet, split: Split, names: dict[str, int], spec: ModelSpec, recipe: FineTuneRecipe
) -> tuple[CaseStore, SliceSamples]:
    every = with_synthetic_names(names, recipe.phantoms, recipe.synthetic)
    made = [phantom_ct(recipe.seed * 1000 + n, every) for n in range(recipe.phantoms)]
    made += [synthetic_ct(recipe.seed * 1000 + n, every) for n in range(recipe.synthetic)]
    # Only phantoms have the names that were added; a real organ that was not chosen stays out though they have it.
    store = CaseStore([data.case(name) for name in split.train], names, made)
    return store, SliceSamples(store, store.index(), appearance_for(spec, recipe), recipe.most_regions)


def appearance_for(spec: ModelSpec, recipe: FineTuneRecipe, *, varied: bool = True) -> Appearance:
    """Return how a model sees slices, in training (varied) or when it is measured."""
    channels = THREE_WINDOWS if spec.three_windows else ONE_WINDOW
    if recipe.context == NEIGHBOURS:
        channels = THREE_SLICES
    return Appearance(spec.image_size, recipe.window, channels, varied)


class _Validation:
    """The validation slices, if there are any, and what the base reached on them."""

    def __init__(
        self, data: DataSet, split: Split, names: dict[str, int], spec: ModelSpec, recipe: FineTuneRecipe
    ) -> None:
        self.recipe = recipe
        self.before: dict[str, float] | None = None
        self.samples: SliceSamples | None = None
        if split.val:
            store = CaseStore([data.case(name) for name in split.val], names)
            index = store.index(may_be_empty=True)
            if len(index):
                appearance = appearance_for(spec, recipe, varied=False)
                self.samples = SliceSamples(store, index, appearance, recipe.most_regions)

    def measure(self, model: SAM2Base, spec: ModelSpec) -> dict[str, float] | None:
        """Return the mean 2D Dice after a box and after two clicks more; None without slices that have one."""
        if self.samples is None:
            return None
        model.eval()
        head = ErrorHead(channels_of(model)).to(model.device)  # takes no part in the masks
        count = len(self.samples.index)
        chosen = sorted({int(n) for n in np.linspace(0, count - 1, min(count, MOST_VALIDATED)).round()})
        totals: dict[str, list[float]] = {}
        with torch.inference_mode():
            for n in chosen:
                batch = collate([self.samples[SampleKey(n, self.recipe.seed, 0)]]).to(model.device)
                regions = Regions(batch.images[:, 0], batch.masks[0], batch.owner, batch.weights, batch.keys)
                outcome = phpg_step(model, head, regions, VALIDATION_PROMPTING, 2, drawn_prompts=spec.dense_prompts)
                for name, value in outcome.dice.items():
                    if bool(value.isfinite()):  # it is not where nothing is left of a speck on the grid of the losses
                        totals.setdefault(name, []).append(float(value))
        return {name: round(float(np.mean(values)), 4) for name, values in totals.items()} or None


def _plan(data: DataSet, split: Split, names: dict[str, int], tuner: FineTuner) -> Plan:
    return Plan(
        data=data,
        split=split,
        classes=tuple(names),
        training_slices=len(tuner.samples.index),
        steps=tuner.schedule.steps,
        epochs=tuner.schedule.epochs,
        trained_parameters=sum(parameter.numel() for parameter in tuner.trained.values()),
        data_bytes=tuner.store.bytes_held,
        peak_bytes=tuner.probe(),
        done=tuner.position.step,
        notes=tuple(tuner.store.notes),
    )


def _finish(
    tuner: FineTuner, data: DataSet, split: Split, names: dict[str, int], before: _Validation, base_sha256: str | None
) -> Result:
    """Measure and write the adapter from the main process; what was only needed to go on is removed."""
    tuner.accelerator.wait_for_everyone()
    folder = tuner.run_folder.parent
    model = tuner.model
    after = before.measure(model, tuner.spec)
    metrics = None if after is None or before.before is None else {"base": before.before, "adapter": after}
    card = base_card(tuner.spec) | {
        "base_sha256": base_sha256,
        "classes": list(names),
        "window": {"level": tuner.recipe.window.level, "width": tuner.recipe.window.width},
        "context": tuner.recipe.context,
        "data": {"layout": data.layout, "cases": split.as_json(), "split": split.source},
        "training": _record(tuner),
        "metrics": metrics,
        "metrics_note": "Mean 2D Dice on validation slices: a box, then two correction clicks. No claim of accuracy.",
    }
    if tuner.accelerator.is_main_process:
        with atomic_path(tuner.run_folder / SPLIT_FILE) as part:
            part.write_text(json.dumps(split.as_json(), indent=1) + "\n", encoding="utf-8")
        save_adapter(tuner.unit.adapted, folder, card, {"error_head": tuner.unit.head}, dtype=torch.float16)
        (tuner.run_folder / CHECKPOINT).unlink(missing_ok=True)
    tuner.accelerator.wait_for_everyone()
    return Result(folder, metrics, card)


def _record(tuner: FineTuner) -> dict[str, Any]:
    position, recipe = tuner.position, tuner.recipe
    full = schedule_for(recipe, [len(tuner.samples.index)] * tuner.schedule.epochs).steps
    return {
        "recipe": recipe.as_json(),
        "steps": position.step,
        "steps_without_pruning": full,
        "share_of_iterations": round(position.step / full, 4),
        "slices_encoded": position.encoded,
        "rows_decoded": position.decoded,
        "seconds": round(position.seconds, 1),
        "steps_without_effect": position.skipped,
        "processes": tuner.accelerator.num_processes,
        "device": str(tuner.accelerator.device),
    }
