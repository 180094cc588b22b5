"""The network at work for one session: slices, prompts and memories of many segments in, slice states out.

Everything here runs under ``inference_mode`` on the engine's device and is batched over rows; a row is one segment on
one slice seen through one view.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from SAM2AssistLib.engine.encoder import SliceEncoder, SliceFeatures
from SAM2AssistLib.engine.heads import ABSENT_LOGIT, Decoded, decode, encode_memory, mask_as_output
from SAM2AssistLib.engine.lean import lean_tracking
from SAM2AssistLib.engine.memory import Recall, SliceState, blank_ones, condition
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.relief import OUT_OF_MEMORY, Relief
from SAM2AssistLib.engine.views import View, move_logits
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.dense import draw_prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

P = ParamSpec("P")
R = TypeVar("R")

PREVIOUS_LIMIT = 32.0
"""SAM2's predictor clamps earlier logits to this before they become a mask prompt."""
MOVED_OUTSIDE_LOGIT = -10.0
CPU_TOKENS = 1 << 13
"""Of all rows at once on a CPU. Large operations are what its cores share well, but every row looks back at seven
slices: the keys of 32 rows of `mini` are 30 MB, and those of a model with sixteen times the tokens, twice as wide,
would be 1 GB."""


@dataclass(frozen=True)
class Encoded:
    """Progress of encoding ahead: one slice has its features.

    Attributes
    ----------
    index : of the slice.
    done, total : slices that have theirs, and slices that will.
    """

    index: int
    done: int
    total: int


@dataclass(frozen=True)
class Row:
    """One segment on one slice, about to be tracked.

    Attributes
    ----------
    index, view : slice and view.
    recall : what it attends to; all memories are in the same view.
    carried : (S/4, S/4) logits of the neighbouring slice in this view, or None; on whatever device.
    reverse : direction of the propagation.
    """

    index: int
    view: View
    recall: Recall
    carried: Tensor | None
    reverse: bool


def _inference(method: Callable[P, R]) -> Callable[P, R]:
    """Run a method of `Network` without gradients and in the precision that suits its device.

    Where memory runs out it runs again with less, as `Relief` has it; nothing of the first attempt is kept.
    """

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        network = cast("Network", args[0])
        while True:
            try:
                with torch.inference_mode(), network.relief.precision():
                    return method(*args, **kwargs)
            except torch.OutOfMemoryError:
                network.need_less()

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
        side = model.image_size // model.backbone_stride
        most = max(1, CPU_TOKENS // side**2) if model.device.type == "cpu" else options.row_batch
        self.row_batch = min(options.row_batch, most)
        self._weight = next(model.parameters())
        self.relief = Relief(self)

    @property
    def device(self) -> torch.device:
        """Where the model is. Its own property of that name walks over all its modules each time."""
        return self._weight.device

    def need_less(self) -> None:
        """Go on with less memory, after it has run out, as `Relief` has it.

        Raises
        ------
        ModelError
            If nothing is left to be done.
        """
        if not self.relief.step_down():
            raise ModelError(OUT_OF_MEMORY) from None

    @property
    def slices(self) -> int:
        """Number of slices along the axis of the session."""
        return self.encoder.volume.array.shape[self.encoder.axis]

    def encode_ahead(self, first: int, view: View) -> Iterator[Encoded]:
        """Encode slices through a view, from one outward, as long as they fit, a batch at a time.

        It may be left at any time. What a user or a propagation needs meanwhile is encoded at once.

        Parameters
        ----------
        first : index of the slice in view.
        """
        order, done = self.encoder.outward(first), 0
        while done < len(order):
            part = order[done : done + self.encoder.batch]
            self.features_of([(index, view) for index in part if not self.encoder.holds(index, view)])
            for index in part:
                done += 1
                yield Encoded(index, done, len(order))

    @_inference
    def features_of(self, keys: Sequence[tuple[int, View]]) -> list[SliceFeatures]:
        """Return what the encoder sees on slices through views, (slice index, view) pairs."""
        return self.encoder.features(keys)

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
        """Decode one segment on one slice from all the points and boxes given there; its memory still to be made.

        Parameters
        ----------
        points : (N, P, 2) as (x, y) in network pixels of the view; the mask is the union of those of the N readings,
            which differ in their box.
        labels : (P,) of every reading: 1 positive, 0 negative, 2 and 3 box corners.
        previous : what the slice showed before, whose logits become the mask prompt.
        recall : memories, if the slice had been tracked before; None for a first prompt.
        """
        count = len(points)
        features = self.encoder.features([(index, view)] * count)
        plain, high_res = _stack(features)
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
        decoded = self._refined(decoded, features, None, mask)
        united = decoded if count == 1 else _united(decoded)
        return self._states([view], united, from_prompt=True, reverse=[False])[0]

    @_inference
    def from_mask(self, index: int, view: View, mask: Tensor) -> SliceState:
        """Take a mask as it is; its memory is still to be made.

        Parameters
        ----------
        mask : (S, S) with 0 and 1, in the view.
        """
        plain, high_res = _stack(self.encoder.features([(index, view)]))
        decoded = mask_as_output(self.model, plain, high_res, mask[None, None].to(plain.device))
        return self._states([view], decoded, from_prompt=True, reverse=[False])[0]

    @_inference
    def track(self, rows: Sequence[Row]) -> list[SliceState]:
        """Decode rows from their memories, without prompts; their memories still to be made."""
        self._read_ahead(rows)
        slices = {key: n for n, key in enumerate(dict.fromkeys((row.index, row.view) for row in rows))}
        # Rows on one slice follow each other, so that what is the slice's is added to all of them at once.
        order = sorted(range(len(rows)), key=lambda n: slices[rows[n].index, rows[n].view])
        states: dict[int, SliceState] = {}
        for start in range(0, len(order), self.row_batch):
            part = order[start : start + self.row_batch]
            states |= zip(part, self._track([rows[n] for n in part]), strict=True)
        return [states[n] for n in range(len(rows))]

    def _read_ahead(self, rows: Sequence[Row]) -> None:
        """Where slices have to be encoded, encode the next ones on the way with them: together they cost less each."""
        ways = dict.fromkeys((row.index, -1 if row.reverse else 1, row.view) for row in rows)
        missing = [way for way in ways if not self.encoder.holds(way[0], way[2])]
        more = min(self.encoder.batch, self.encoder.kept) // len(missing) if missing else 0
        ahead = [(k + n * step, view) for n in range(more) for k, step, view in missing]
        wanted = [key for key in ahead if 0 <= key[0] < self.slices and not self.encoder.holds(*key)]
        self.encoder.features(wanted)

    def _track(self, rows: Sequence[Row]) -> list[SliceState]:
        found, place = self._features([(row.index, row.view) for row in rows])
        plain, high_res = _stack(found)
        recalls = [row.recall for row in rows]
        mask = None
        if self.options.carried_logits:
            empty = torch.full((self.model.image_size // 4,) * 2, MOVED_OUTSIDE_LOGIT, device=plain.device)
            carried = [empty if row.carried is None else self._here(row.carried) for row in rows]
            mask = draw_prompts(self.model.image_size, None, None, torch.stack(carried)[:, None])
        lean = lean_tracking(self.model, self.relief.products)
        if lean is None:
            conditioned = condition(self.model, plain[place], self.encoder.positions, recalls, self.slices)
            decoded = decode(self.model, conditioned, [level[place] for level in high_res], dense=mask)
        else:
            tokens = plain.flatten(2).transpose(1, 2)
            positions = self.encoder.positions.flatten(1).t()
            tokens = lean.condition(self.model, tokens, place, positions, recalls, self.slices)
            fine, middle = high_res
            counts = list(Counter((row.index, row.view) for row in rows).values())
            decoded = lean.decoder(self.model, tokens, lean.decoder.blocks_of(fine, middle), counts, mask)
        decoded = self._refined(decoded, found, place, mask)
        return self._states([r.view for r in rows], decoded, from_prompt=False, reverse=[r.reverse for r in rows])

    @_inference
    def look_again(self, rows: Sequence[Row]) -> list[SliceState]:
        """Do as `track`, through SAM2's own modules, so that whoever listens to them or guides them takes part.

        The carried logits, of all rows or of none, are the mask prompt whether or not the model carries logits.
        """
        found, place = self._features([(row.index, row.view) for row in rows])
        plain, high_res = _stack(found)
        carried = [self._here(row.carried) for row in rows if row.carried is not None]
        mask = draw_prompts(self.model.image_size, None, None, torch.stack(carried)[:, None]) if carried else None
        recalls = [row.recall for row in rows]
        conditioned = condition(self.model, plain[place], self.encoder.positions, recalls, self.slices)
        decoded = decode(self.model, conditioned, [level[place] for level in high_res], dense=mask)
        return self._states([r.view for r in rows], decoded, from_prompt=False, reverse=[r.reverse for r in rows])

    @_inference
    def remember(self, indices: Sequence[int], states: Sequence[SliceState]) -> list[SliceState]:
        """Encode the memories of states, in as few batches as there are kinds: prompted ones are binarised.

        Where segments are absent there is only the slice to be remembered, once for all of them.
        """
        first: dict[object, int] = {}
        blank = blank_ones(states)
        makers = [
            first.setdefault((index, state.view) if n in blank else n, n)
            for n, (index, state) in enumerate(zip(indices, states, strict=True))
        ]
        made: dict[int, Tensor] = {}
        for prompted in (False, True):
            rows = [n for n in first.values() if states[n].prompted == prompted]
            for start in range(0, len(rows), self.row_batch):
                part = rows[start : start + self.row_batch]
                found, place = self._features([(indices[n], states[n].view) for n in part])
                plain = torch.stack([features.plain for features in found])
                memories = self._memories(plain, place, [states[n] for n in part], from_prompt=prompted)
                made |= zip(part, memories, strict=True)
        return [replace(state, memory=made[maker]) for state, maker in zip(states, makers, strict=True)]

    def seen_through(
        self, indices: Sequence[int], states: Sequence[SliceState], views: Sequence[View]
    ) -> list[SliceState]:
        """Bring states into other views, with their memories; those that are not there are made, each once."""
        keys = [(id(state), view) for state, view in zip(states, views, strict=True)]
        moved = {key: self._moved(state, key[1]) for key, state in zip(keys, states, strict=True)}
        missing = {key: index for key, index in zip(keys, indices, strict=True) if moved[key].memory is None}
        made = self.remember(list(missing.values()), [moved[key] for key in missing])
        moved |= zip(missing, made, strict=True)
        return [moved[key] for key in keys]

    def _moved(self, state: SliceState, view: View) -> SliceState:
        if state.view == view:
            return state
        return replace(state, view=view, logits=self._in_view(state, view).half(), memory=None)

    def carried(self, state: SliceState, view: View) -> Tensor:
        """Give the logits of a state in a view; (S/4, S/4) float32."""
        return self._in_view(state, view)

    def _refined(
        self, decoded: Decoded, features: Sequence[SliceFeatures], place: Tensor | None, dense: Tensor | None
    ) -> Decoded:
        """Pull masks to the edges of their slices; ``place`` tells which of the slices each row is on."""
        refiner = self.encoder.refiner
        if refiner is None:
            return decoded
        edges = torch.stack([f.edges for f in features])  # type: ignore[misc]
        edges = edges if place is None else edges[place]
        return replace(decoded, logits=refiner(decoded.logits, dense, edges))

    def _in_view(self, state: SliceState, view: View) -> Tensor:
        logits = self._here(state.logits)
        return logits if state.view == view else move_logits(logits, state.view, view, MOVED_OUTSIDE_LOGIT)

    def _here(self, logits: Tensor) -> Tensor:
        """Return logits on the device of the model, (..., h, w) float32.

        They may be elsewhere: those that no lane needs any more rest in host memory, and while a row waits, the model
        can have gone to the CPU for want of memory.
        """
        return logits.to(self.device).float()

    @staticmethod
    def _states(
        views: Sequence[View], decoded: Decoded, *, from_prompt: bool, reverse: Sequence[bool]
    ) -> list[SliceState]:
        gated = decoded.gated()
        ious, scores = decoded.iou.tolist(), decoded.object_score[:, 0].tolist()
        return [
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

    def _features(self, keys: Sequence[tuple[int, View]]) -> tuple[list[SliceFeatures], Tensor]:
        """Return the features of slices through views, each once, and for every key which of them is its own."""
        once = list(dict.fromkeys(keys))
        where = {key: n for n, key in enumerate(once)}
        place = torch.tensor([where[key] for key in keys], device=self.device)
        return self.encoder.features(once), place

    def _memories(
        self, plain: Tensor, place: Tensor, states: Sequence[SliceState], *, from_prompt: bool
    ) -> list[Tensor]:
        logits = torch.stack([s.logits.to(plain.device).float() for s in states])[:, None].clamp_min(ABSENT_LOGIT)
        scores = torch.tensor([[s.object_score] for s in states], device=plain.device)
        lean = lean_tracking(self.model, self.relief.products)
        if lean is None:
            memory = encode_memory(self.model, plain[place], logits, scores, from_prompt=from_prompt)
        else:
            memory = lean.memory_encoder(self.model, plain, place, logits, scores, from_prompt=from_prompt)
        # The dtype of SAM2's own predictor; each row on its own, so that dropping one frees it.
        return [row.to(torch.bfloat16, copy=True) for row in memory]


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
