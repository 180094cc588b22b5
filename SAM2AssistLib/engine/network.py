"""The network at work for one session: slices, prompts and memories of many segments in, slice states out.

Everything here runs under ``inference_mode`` on the engine's device and is batched over rows; a row is one segment on
one slice seen through one view.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from SAM2AssistLib.engine.device import inference_precision
from SAM2AssistLib.engine.encoder import SliceEncoder, SliceFeatures
from SAM2AssistLib.engine.heads import ABSENT_LOGIT, Decoded, decode, encode_memory, mask_as_output
from SAM2AssistLib.engine.memory import Recall, SliceState, condition
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.views import View, move_logits
from SAM2AssistLib.prompting.dense import draw_prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

P = ParamSpec("P")
R = TypeVar("R")

PREVIOUS_LIMIT = 32.0
"""SAM2's predictor clamps earlier logits to this before they become a mask prompt."""
MOVED_OUTSIDE_LOGIT = -10.0


@dataclass(frozen=True)
class Row:
    """One segment on one slice, about to be tracked.

    Attributes
    ----------
    index, view : slice and view.
    recall : what it attends to; all memories are in the same view.
    carried : (S/4, S/4) logits of the neighbouring slice in this view, or None.
    reverse : direction of the propagation.
    """

    index: int
    view: View
    recall: Recall
    carried: Tensor | None
    reverse: bool


def _inference(method: Callable[P, R]) -> Callable[P, R]:
    """Run a method of `Network` without gradients and in the precision that suits its device."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        network = cast("Network", args[0])
        with torch.inference_mode(), inference_precision(network.model.device):
            return method(*args, **kwargs)

    return run


class Network:
    """A SAM2 with a slice encoder, working on one volume.

    Parameters
    ----------
    model : a SAM2 in evaluation mode.
    encoder : of the volume's slices.
    options : of the session, with ``drawn_prompts`` and ``carried_logits`` decided.
    """

    def __init__(self, model: SAM2Base, encoder: SliceEncoder, options: EngineOptions) -> None:
        self.model, self.encoder, self.options = model, encoder, options

    @property
    def slices(self) -> int:
        """Number of slices along the axis of the session."""
        return self.encoder.volume.array.shape[self.encoder.axis]

    @_inference
    def from_points(
        self,
        index: int,
        view: View,
        points: np.ndarray,
        labels: np.ndarray,
        *,
        previous: SliceState | None,
        recall: Recall | None,
    ) -> SliceState:
        """Decode one segment on one slice from all the points and boxes given there.

        Parameters
        ----------
        points : (N, P, 2) as (x, y) in network pixels of the view; the mask is the union of those of the N readings,
            which differ in their box.
        labels : (P,) of every reading: 1 positive, 0 negative, 2 and 3 box corners.
        previous : what the slice showed before, whose logits become the mask prompt.
        recall : memories, if the slice had been tracked before; None for a first prompt.
        """
        count = len(points)
        plain, high_res = _stack(self.encoder.features([(index, view)] * count))
        device = plain.device
        xy = torch.from_numpy(points).to(device)
        kinds = torch.from_numpy(labels.astype(np.int32)).to(device).expand(count, -1)
        mask = (
            None
            if previous is None
            else self._in_view(previous, view).clamp(-PREVIOUS_LIMIT, PREVIOUS_LIMIT).expand(count, 1, -1, -1)
        )
        if self.options.drawn_prompts:
            mask = draw_prompts(self.model.image_size, xy, kinds, mask)
        conditioned = condition(
            self.model, plain, self.encoder.positions, [recall or Recall((), ())] * count, self.slices
        )
        surely_present = self.options.prompts_decide and bool((labels > 0).any())
        decoded = decode(
            self.model,
            conditioned,
            high_res,
            xy,
            kinds,
            mask,
            first_prompt=recall is None,
            surely_present=surely_present,
        )
        united = decoded if count == 1 else _united(decoded)
        return self._states([view], united, plain[:1], from_prompt=True, reverse=[False])[0]

    @_inference
    def from_mask(self, index: int, view: View, mask: Tensor) -> SliceState:
        """Take a mask as it is.

        Parameters
        ----------
        mask : (S, S) with 0 and 1, in the view.
        """
        plain, high_res = _stack(self.encoder.features([(index, view)]))
        decoded = mask_as_output(self.model, plain, high_res, mask[None, None].to(plain.device))
        return self._states([view], decoded, plain, from_prompt=True, reverse=[False])[0]

    @_inference
    def track(self, rows: Sequence[Row]) -> list[SliceState]:
        """Decode rows from their memories, without prompts; their memories still to be made."""
        states: list[SliceState] = []
        for start in range(0, len(rows), self.options.row_batch):
            states += self._track(rows[start : start + self.options.row_batch])
        return states

    def _track(self, rows: Sequence[Row]) -> list[SliceState]:
        plain, high_res = _stack(self.encoder.features([(row.index, row.view) for row in rows]))
        recalls = [row.recall for row in rows]
        conditioned = condition(self.model, plain, self.encoder.positions, recalls, self.slices)
        mask = None
        if self.options.carried_logits:
            empty = torch.full((self.model.image_size // 4,) * 2, MOVED_OUTSIDE_LOGIT, device=plain.device)
            carried = [empty if row.carried is None else row.carried.float() for row in rows]
            mask = draw_prompts(self.model.image_size, None, None, torch.stack(carried)[:, None])
        decoded = decode(self.model, conditioned, high_res, dense=mask)
        return self._states([r.view for r in rows], decoded, None, from_prompt=False, reverse=[r.reverse for r in rows])

    @_inference
    def remember(self, indices: Sequence[int], states: Sequence[SliceState]) -> list[SliceState]:
        """Encode the memories of states, in as few batches as there are kinds: prompted ones are binarised."""
        done: dict[int, SliceState] = {}
        for prompted in (False, True):
            rows = [n for n, state in enumerate(states) if state.prompted == prompted]
            for start in range(0, len(rows), self.options.row_batch):
                part = rows[start : start + self.options.row_batch]
                plain, _ = _stack(self.encoder.features([(indices[n], states[n].view) for n in part]))
                memories = self._memories(plain, [states[n] for n in part], from_prompt=prompted)
                done |= {n: replace(states[n], memory=m) for n, m in zip(part, memories, strict=True)}
        return [done[n] for n in range(len(states))]

    def seen_through(
        self, indices: Sequence[int], states: Sequence[SliceState], views: Sequence[View]
    ) -> list[SliceState]:
        """Bring states and their memories into other views; memories that were dropped are made again."""
        moved = [
            state if state.view == view else replace(state, view=view, logits=self._in_view(state, view).half())
            for state, view in zip(states, views, strict=True)
        ]
        return self.remember(indices, moved)

    def carried(self, state: SliceState, view: View) -> Tensor:
        """Give the logits of a state in a view; (S/4, S/4) float32."""
        return self._in_view(state, view)

    def _in_view(self, state: SliceState, view: View) -> Tensor:
        # Logits that no lane needs any more rest in host memory.
        logits = state.logits.to(self.model.device).float()
        return logits if state.view == view else move_logits(logits, state.view, view, MOVED_OUTSIDE_LOGIT)

    def _states(
        self,
        views: Sequence[View],
        decoded: Decoded,
        plain: Tensor | None,
        *,
        from_prompt: bool,
        reverse: Sequence[bool],
    ) -> list[SliceState]:
        gated = decoded.gated()
        ious, scores = decoded.iou.tolist(), decoded.object_score[:, 0].tolist()
        states = [
            SliceState(
                view=view,
                logits=gated[n, 0].half(),
                iou=ious[n] if scores[n] > 0 else 0.0,
                object_score=scores[n],
                pointer=decoded.pointer[n].clone(),
                memory=None,
                prompted=from_prompt,
                reverse=reverse[n],
            )
            for n, view in enumerate(views)
        ]
        if plain is None:
            return states
        memories = self._memories(plain, states, from_prompt=from_prompt)
        return [replace(s, memory=m) for s, m in zip(states, memories, strict=True)]

    def _memories(self, plain: Tensor, states: Sequence[SliceState], *, from_prompt: bool) -> list[Tensor]:
        logits = torch.stack([s.logits.to(plain.device).float() for s in states])[:, None].clamp_min(ABSENT_LOGIT)
        scores = torch.tensor([[s.object_score] for s in states], device=plain.device)
        memory = encode_memory(self.model, plain, logits, scores, from_prompt=from_prompt)
        # The dtype of SAM2's own predictor; each row on its own, so that dropping one frees it.
        return [row.to(torch.bfloat16).clone() for row in memory]


def _stack(features: Sequence[SliceFeatures]) -> tuple[Tensor, list[Tensor]]:
    if len(features) == 1:
        only = features[0]
        return only.plain[None], [only.fine[None], only.middle[None]]
    plain = torch.stack([f.plain for f in features])
    return plain, [torch.stack([f.fine for f in features]), torch.stack([f.middle for f in features])]


def _united(decoded: Decoded) -> Decoded:
    """Join the readings of one segment into one row: the union of their masks, the pointer of the surest."""
    surest = decoded.iou.argmax()[None]
    return Decoded(
        decoded.gated().amax(dim=0, keepdim=True),
        decoded.iou.amin(dim=0, keepdim=True),
        decoded.object_score.amax(dim=0, keepdim=True),
        decoded.pointer[surest],
    )
