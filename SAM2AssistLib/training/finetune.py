"""Fine-tuning: from a data folder to an adapter, in one process or many, resumable at any moment.

    accelerate launch -m SAM2AssistLib finetune --data DIR --out ADAPTER     # several GPUs or nodes
    sam2assist finetune --data DIR --out ADAPTER                             # one

Every random choice follows from the seed and from what it is about (epoch, step, sample, region), never from what was
drawn before. A run that was killed and goes on, or that is split over processes, therefore does what an unbroken run of
one process does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader

from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.prompting.error_head import ErrorHead, channels_of
from SAM2AssistLib.training.cbdp import Kept, Pruner
from SAM2AssistLib.training.lora import attach_lora
from SAM2AssistLib.training.phpg import Outcome
from SAM2AssistLib.training.recipe import MOST_SEED, FineTuneRecipe, epochs_for, schedule_for
from SAM2AssistLib.training.run_log import RunLog
from SAM2AssistLib.training.run_state import CHECKPOINT, Position, RunState, load_state, save_state
from SAM2AssistLib.training.slices import CaseStore, KeyBatches, SampleKey, SliceSamples
from SAM2AssistLib.training.unit import Batch, StepChoice, TrainingUnit, choose_step, collate

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

RUN_FOLDER = "training"
"""Inside the adapter folder: checkpoint, TensorBoard files and the split; the adapter works without it."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    step, steps : done and in all.
    eta_seconds : until the end, at the speed so far.
    loss : running mean; dice : running means by name of the part.
    """

    step: int
    steps: int
    eta_seconds: float
    loss: float
    dice: dict[str, float]


class FineTuner:
    """Trains an adapter on the slices of a store.

    Parameters
    ----------
    model : the base with its weights; it is changed in place.
    spec : its catalogue entry.
    recipe : how.
    store, samples : volumes, and the training samples made of them.
    folder : of the adapter.
    accelerator : of accelerate; one for the CPU or a single device if not given.
    base_sha256 : by which the base's weights are known, so that a run is not finished on others.
    workers : processes that make samples; 0 makes them between the steps.
    checkpoint_every : steps.
    """

    def __init__(
        self,
        model: SAM2Base,
        spec: ModelSpec,
        recipe: FineTuneRecipe,
        store: CaseStore,
        samples: SliceSamples,
        folder: Path,
        *,
        accelerator: Accelerator,
        base_sha256: str | None = None,
        workers: int = 0,
        checkpoint_every: int = 50,
    ) -> None:
        self.spec, self.recipe, self.store, self.samples = spec, recipe, store, samples
        self.run_folder = folder / RUN_FOLDER
        self.accelerator, self.workers, self.checkpoint_every = accelerator, workers, checkpoint_every
        parts = accelerator.num_processes * recipe.accumulate
        if recipe.batch % parts:
            raise InputError(
                f"A batch of {recipe.batch} cannot be shared by {accelerator.num_processes} processes with "
                f"{recipe.accumulate} parts each; make it a multiple of {parts}."
            )
        torch.manual_seed(recipe.seed)
        self.model = model
        adapted = attach_lora(model, recipe.lora)
        head = ErrorHead(channels_of(model))
        self.unit = TrainingUnit(adapted, head, recipe.prompting, drawn_prompts=spec.dense_prompts)
        self.trained = {name: p for name, p in sorted(self.unit.named_parameters()) if p.requires_grad}
        optimizer = torch.optim.AdamW(self._groups(), weight_decay=recipe.weight_decay)
        self.wrapped, self.optimizer = accelerator.prepare(self.unit, optimizer)
        labels, epochs = samples.index.labels, epochs_for(recipe, len(samples.index))
        self.pruner = Pruner(labels, epochs, recipe.pruning, recipe.seed)
        self._plan_scores = self.pruner.state_dict()
        self.schedule = schedule_for(recipe, [self.pruner.size(epoch) for epoch in range(epochs)])
        self.position = Position()
        data = [list(map(list, labels)), list(store.names.items()), store.checksums]
        self.fingerprint = recipe.fingerprint([spec.name, base_sha256, *data])
        self._is_whole = False
        """Whether weights, position and scores belong to one moment, from which the run can go on."""
        self._resume()

    def run(self, report: Callable[[Progress], None] | None = None) -> None:
        """Train to the end; on Ctrl-C a checkpoint is written first, unless it came within a change of the weights.

        Parameters
        ----------
        report : called after every step, in the main process only.

        Raises
        ------
        OutputError
            If a checkpoint cannot be written.
        """
        log = RunLog(self.run_folder if self.accelerator.is_main_process else None, self.position.step)
        began, before = time.monotonic(), self.position.seconds
        first_step = self.position.step
        self.wrapped.train()
        try:
            while self.position.epoch < self.schedule.epochs:
                for outcome, batch in self._epoch():
                    self.position.seconds = before + time.monotonic() - began
                    log.take(self.position.step, outcome, batch, self._rate())
                    if self.position.step % self.checkpoint_every == 0:
                        self.save()
                    if report is not None and self.accelerator.is_main_process:
                        pace = (time.monotonic() - began) / (self.position.step - first_step)
                        left = self.schedule.steps - self.position.step
                        report(Progress(self.position.step, self.schedule.steps, pace * left, log.loss, log.dice))
                self._is_whole = False
                self.position.epoch, self.position.step_in_epoch = self.position.epoch + 1, 0
                self._plan_scores = self.pruner.state_dict()
                self._is_whole = True
        except KeyboardInterrupt:
            # Of several processes the others may have ended, and would be waited for.
            if self._is_whole and self.accelerator.num_processes == 1:
                self.save()
            raise
        finally:
            log.close()
        self.save()

    def save(self) -> None:
        """Write a checkpoint from the main process."""
        if self.accelerator.is_main_process:
            weights = {name: parameter.detach().cpu() for name, parameter in self.trained.items()}
            pruner = self.pruner.state_dict() | {"plan_scores": self._plan_scores["scores"]}
            state = RunState(self.fingerprint, self.position, weights, self.optimizer.state_dict(), pruner)
            save_state(state, self.run_folder)
        self.accelerator.wait_for_everyone()

    def probe(self) -> int:
        """Do the forward and backward pass of a step without a step, and return the bytes it took at its peak.

        On CUDA these are bytes of the device, elsewhere of the whole process.
        """
        slices = self.recipe.clip_slices if self.recipe.clip_share > 0 else 1
        widest = sorted(range(len(self.samples.index)), key=lambda n: -len(self.samples.index.labels[n]))
        local = self.recipe.batch // self.accelerator.num_processes // self.recipe.accumulate
        keys = [SampleKey(widest[n % len(widest)], self.recipe.seed, 0, slices) for n in range(local)]
        batch = collate([self.samples[key] for key in keys]).to(self.accelerator.device)
        choice = choose_step(self.recipe.seed, 0, 0, self.recipe.prompting, 0.0, 1, carries=self.spec.carries_logits)
        self._reset_peak()
        with self.accelerator.no_sync(self.wrapped), self.accelerator.autocast():
            outcome = self.unit(batch, StepChoice(slices, choice.travel))
        outcome.loss.backward()
        for parameter in self.trained.values():
            parameter.grad = None
        return self._peak()

    def _reset_peak(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)

    def _peak(self) -> int:
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device)
        return process_peak_bytes()

    def _groups(self) -> list[dict[str, object]]:
        whole = [p for name, p in self.trained.items() if "modules_to_save" in name]
        updates = [p for name, p in self.trained.items() if "modules_to_save" not in name]
        groups = [(updates, self.recipe.learning_rate), (whole, self.recipe.whole_rate)]
        return [{"params": params, "lr": rate, "peak": rate} for params, rate in groups if params]

    def _rate(self) -> float:
        """Return the share of the peak rate for the step to come: a warm-up, then a cosine."""
        step, warm_up = self.position.step, min(self.recipe.warm_up, max(1, self.schedule.steps // 10))
        if step < warm_up:
            return (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.schedule.steps - warm_up)
        return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))

    def _epoch(self) -> Iterator[tuple[Outcome, Batch]]:
        """Train on what is left of the epoch; yields after every step."""
        epoch, recipe = self.position.epoch, self.recipe
        current = self.pruner.scores
        self.pruner.scores = self._plan_scores["scores"].numpy().copy()
        plan = self.pruner.plan(epoch)
        self.pruner.scores = current
        steps = range(self.position.step_in_epoch, self.schedule.steps_of[epoch])
        choose = partial(choose_step, carries=self.spec.carries_logits)
        choices = [
            choose(recipe.seed, epoch, step, recipe.prompting, recipe.clip_share, recipe.clip_slices) for step in steps
        ]
        parts = self._parts(plan, epoch, list(zip(steps, choices, strict=True)))
        loader = iter(
            DataLoader(
                self.samples,
                batch_sampler=KeyBatches(parts),  # type: ignore[arg-type]
                collate_fn=collate,
                num_workers=self.workers,
            )
        )
        for choice in choices:
            yield self._step(loader, choice)

    def _parts(self, plan: list[Kept], epoch: int, steps: list[tuple[int, StepChoice]]) -> list[list[SampleKey]]:
        """List what this process loads: its share of every step, in parts if gradients are accumulated."""
        recipe, rank = self.recipe, self.accelerator.process_index
        local = recipe.batch // self.accelerator.num_processes
        size = local // recipe.accumulate
        parts = []
        for step, choice in steps:
            # The last batch of an epoch is filled up from its beginning.
            whole = [plan[(step * recipe.batch + n) % len(plan)] for n in range(recipe.batch)]
            own = whole[rank * local : (rank + 1) * local]
            keys = [SampleKey(kept.sample, recipe.seed, epoch, choice.slices, kept.weight) for kept in own]
            parts += [keys[n * size : (n + 1) * size] for n in range(recipe.accumulate)]
        return parts

    def _step(self, loader: Iterator[Batch], choice: StepChoice) -> tuple[Outcome, Batch]:
        self._is_whole = True
        # Dropout is the one thing that draws from torch's own generator, whose seeds have 64 bits.
        seed = (self.recipe.seed * 1_000_003 + self.position.step) * 64 + self.accelerator.process_index
        torch.manual_seed(seed % MOST_SEED)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._rate()
        self.optimizer.zero_grad()
        found: dict[tuple[int, int], float] = {}
        encoded = decoded = 0
        for part in range(self.recipe.accumulate):
            batch = next(loader).to(self.accelerator.device)
            last = part == self.recipe.accumulate - 1
            if last:
                outcome = self._pass(batch, choice)
            else:
                with self.accelerator.no_sync(self.wrapped):
                    outcome = self._pass(batch, choice)
            found |= _scores(batch, outcome)
            encoded += batch.images.shape[0] * batch.images.shape[1]
            decoded += outcome.decodes
        self._is_whole = False
        self._update()
        self._record(found)
        self.position.encoded += encoded * self.accelerator.num_processes
        self.position.decoded += decoded * self.accelerator.num_processes
        self.position.step += 1
        self.position.step_in_epoch += 1
        self._is_whole = True
        return outcome, batch

    def _pass(self, batch: Batch, choice: StepChoice) -> Outcome:
        outcome = self.wrapped(batch, choice)
        self.accelerator.backward(outcome.loss / self.recipe.accumulate)
        return outcome

    def _update(self) -> None:
        norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), self.recipe.gradient_limit)
        if bool(torch.isfinite(torch.as_tensor(norm))):
            self.optimizer.step()
        else:
            self.position.skipped += 1

    def _record(self, found: dict[tuple[int, int], float]) -> None:
        """Take the scores of all processes into the table, which is the same in each."""
        everywhere = [found]
        if self.accelerator.num_processes > 1:
            gathered: list[dict[tuple[int, int], float]] = [{} for _ in range(self.accelerator.num_processes)]
            torch.distributed.all_gather_object(gathered, found)
            everywhere = gathered
        merged = {pair: score for scores in everywhere for pair, score in scores.items()}
        for (sample, label), score in merged.items():
            self.pruner.record(sample, {label: score})

    def _resume(self) -> None:
        state = load_state(self.run_folder, self.fingerprint)
        if state is None:
            return
        try:
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(state.weights[name].reshape(parameter.shape))
            self.optimizer.load_state_dict(state.optimizer)
            self.pruner.load_state_dict({"scores": state.pruner["scores"]})
            self._plan_scores = {"scores": state.pruner["plan_scores"]}
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            path = self.run_folder / CHECKPOINT
            raise ModelError(f"The checkpoint {path} is damaged; remove it to begin anew.") from error
        self.position = state.position


def make_accelerator(recipe: FineTuneRecipe, device: torch.device) -> Accelerator:
    """Set up accelerate for a device; under ``accelerate launch`` for this process's own."""
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=recipe.precision,
        # On steps without clips the memory's parameters have no part.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def process_peak_bytes() -> int:
    """Return the most memory this process has held so far; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _scores(batch: Batch, outcome: Outcome) -> dict[tuple[int, int], float]:
    owners, labels, scores = batch.owner.tolist(), batch.labels.tolist(), _listed(outcome.scores)
    return {(batch.samples[owner], label): score for owner, label, score in zip(owners, labels, scores, strict=True)}


def _listed(values: Tensor) -> list[float]:
    return values.detach().float().cpu().tolist()
