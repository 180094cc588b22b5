"""What a run tells while it goes: running means, and scalars and pictures for TensorBoard."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from SAM2AssistLib.training.phpg import Outcome
    from SAM2AssistLib.training.unit import Batch

SMOOTHING = 0.95
SCALARS_EVERY, PICTURES_EVERY = 10, 200
TRUTH_COLOUR, MASK_COLOUR = (0.1, 0.9, 0.2), (1.0, 0.3, 0.1)
_LOG = logging.getLogger("SAM2AssistLib")


class RunLog:
    """Keeps running means, and writes them down.

    No run fails for its log: where that cannot be written, on a full disk for example, this is said once, and the run
    goes on without it.

    Parameters
    ----------
    folder : for TensorBoard's files; None writes none, as in all processes but the main one, and where TensorBoard is
        not installed.
    step : steps done before; what an interrupted run wrote about later ones is dropped.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self.loss = 0.0
        self.dice: dict[str, float] = {}
        self._steps = 0
        self._writer: SummaryWriter | None = None
        self._hook_before = threading.excepthook
        threading.excepthook = self._heard_in_a_thread
        try:
            self._writer = _writer(folder, step)
        except OSError as error:
            self._do_without(error)

    def take(self, step: int, outcome: Outcome, batch: Batch, rate: float) -> None:
        """Note the outcome of a step."""
        self._steps += 1
        self.loss = _mixed(self.loss if self._steps > 1 else None, float(outcome.loss.detach()))
        for name, mean in outcome.dice.items():
            if bool(mean.isfinite()):
                self.dice[name] = _mixed(self.dice.get(name), float(mean))
        if self._writer is None:
            return
        try:
            self._write(self._writer, step, outcome, batch, rate)
        except OSError as error:
            self._do_without(error)

    def close(self) -> None:
        """Finish the files."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._do_without(error)
        threading.excepthook = self._hook_before

    def _write(self, writer: SummaryWriter, step: int, outcome: Outcome, batch: Batch, rate: float) -> None:
        if step % SCALARS_EVERY == 0 or self._steps == 1:
            writer.add_scalar("loss", self.loss, step)
            writer.add_scalar("share of the peak learning rate", rate, step)
            for name, value in self.dice.items():
                writer.add_scalar(f"Dice/{name}", value, step)
        if step % PICTURES_EVERY == 0 or self._steps == 1:
            writer.add_image("first slice: truth green, mask orange", picture(batch, outcome), step)

    def _do_without(self, error: OSError) -> None:
        self._writer = None
        reason = error.strerror or error
        _LOG.warning("TensorBoard's log cannot be written (%s); training goes on without it.", reason)

    def _heard_in_a_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Keep quiet about the thread in which TensorBoard writes: what failed there comes again in `take`."""
        of_tensorboard = type(failed.thread).__module__.partition(".")[0] == "tensorboard"
        if not (of_tensorboard and isinstance(failed.exc_value, OSError)):
            self._hook_before(failed)


def picture(batch: Batch, outcome: Outcome) -> Tensor:
    """Draw the outlines of truth and mask of a batch's first sample over its slice, (3, S, S) in [0, 1]."""
    image = batch.images[0, 0, 0].float().cpu()
    low, high = image.min(), image.max()
    canvas = ((image - low) / (high - low).clamp_min(1e-6)).repeat(3, 1, 1)
    own = (batch.owner == 0).cpu()
    truth = batch.masks[0].cpu()[own]
    logits = outcome.masks.float().cpu()
    masks = torch.zeros_like(truth)
    if len(logits) == len(own):
        masks = F.interpolate(logits[own], size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
    for regions, colour in ((truth, TRUTH_COLOUR), (masks, MASK_COLOUR)):
        edge = _outlines(regions)
        canvas = torch.where(edge, torch.tensor(colour)[:, None, None], canvas)
    return canvas


def _outlines(regions: Tensor) -> Tensor:
    grown = F.max_pool2d(regions.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0
    return (grown & ~regions).any(0)


def _mixed(before: float | None, value: float) -> float:
    return value if before is None else SMOOTHING * before + (1 - SMOOTHING) * value


def _writer(folder: Path | None, step: int) -> SummaryWriter | None:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
