"""All that works on the slices of a volume along one axis, and the decoding of prompts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from SAM2AssistLib.depth import depth_in
from SAM2AssistLib.engine.appearance import Channels
from SAM2AssistLib.engine.encoder import SliceEncoder
from SAM2AssistLib.engine.focus import Focus
from SAM2AssistLib.engine.local_clicks import heeded
from SAM2AssistLib.engine.local_corrections import is_middle, with_part, without_lobe
from SAM2AssistLib.engine.memory import Recall, SliceState, recall
from SAM2AssistLib.engine.network import Network, Row
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.refiner import EdgeRefiner
from SAM2AssistLib.engine.segment import Findings, PlacedPrompt
from SAM2AssistLib.engine.sharpening import sharpened_slice
from SAM2AssistLib.engine.tapering import growth_towards
from SAM2AssistLib.engine.tracker import Tracker
from SAM2AssistLib.engine.views import View, cut, stretched_slice, uncut, whole_slice
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from SAM2AssistLib.prompting.error_head import ErrorHead

MOST_LOOKS = 3
"""How often one prompt may be decoded through a better fitting view."""
CLOSER_FROM = 0.75
"""A view must be smaller than this share of the present one to be worth another look."""
LEAST_IN_BOX = 0.05
"""Share of a box of which the network has to show something, else it has not answered..."""
USUAL_IN_BOX, IN_BOX_SPREAD = 0.42, 0.55
"""...and what references of training cases have there: geometric mean, and standard deviation of the logarithm."""
MOST_GROWTH = 1.5
"""By which factor a slice on which a click finds the segment may exceed the nearest one that has it, to be believed."""
LEAST_AGREEMENT = 0.5
"""Dice of what the network makes of a click and of what is shown after it, from which the former is remembered."""


class Plane:
    """The slices of a volume along one axis.

    Parameters
    ----------
    model : a SAM2.
    volume, axis, window, channels : what is seen, and how.
    options : of the session.
    refiner : that goes with the model, if there is one.
    """

    def __init__(
        self,
        model: SAM2Base,
        volume: CTVolume,
        axis: int,
        window: Window,
        channels: Channels,
        options: EngineOptions,
        refiner: EdgeRefiner | None = None,
    ) -> None:
        rows, columns = (n for a, n in enumerate(volume.shape_kji) if a != axis)
        self.volume, self.window = volume, window
        self.axis, self.slices, self.shape = axis, volume.shape_kji[axis], (rows, columns)
        self.spacing_mm, self.distance_mm = volume.slice_spacing(axis), volume.spacing_ijk[2 - axis]
        self.focus = Focus(self.shape, self.spacing_mm) if options.focus else None
        self.whole = stretched_slice(self.shape) if options.stretch else whole_slice(self.shape, self.spacing_mm)
        self.encoder = SliceEncoder(
            model,
            volume,
            axis,
            window,
            channels,
            budget_bytes=options.cache_bytes,
            most_slices=options.cache_slices,
            batch=options.encode_batch,
            refiner=refiner if options.refines else None,
            exact=options.exact,
        )
        self.network = Network(model, self.encoder, options)
        self.tracker = Tracker(self.network, self.focus, self.shape)

    def decode_last(self, findings: Findings, index: int) -> SliceState:
        """Decode a slice whose last prompt is new; the state of the slice is what came before it."""
        prompts, before = findings.on(index), findings.states.get(index)
        return self._decode_next(findings, index, prompts, before)

    def decode_all(self, findings: Findings, index: int) -> SliceState | None:
        """Decode a slice from all its prompts in their order; what it was before them if there are none."""
        state = findings.bases.get(index)
        for count in range(1, len(findings.on(index)) + 1):
            state = self._decode_next(findings, index, findings.on(index)[:count], state)
        return state

    def answer(
        self, findings: Findings, placed: PlacedPrompt, before: np.ndarray
    ) -> tuple[PlacedPrompt, SliceState, np.ndarray]:
        """Answer one more prompt; nothing is changed.

        Parameters
        ----------
        findings : without the prompt.
        before : (rows, columns) bool, what is shown of the segment on the prompt's slice.

        Returns
        -------
        The prompt as it is to be kept, and the state and the mask (rows, columns) bool that it gives its slice.
        """
        answered, state, mask = self._answered(findings, placed, before)
        if answered is not placed:
            earlier = findings.states.get(placed.index)
            state = self._as_shown(answered, earlier) if placed.is_box else self._remembered(answered, state, earlier)
        if before.any() or placed.index in findings.states:
            answered = replace(answered, before=before.copy())
        return answered, state, mask

    def preview(self, findings: Findings, placed: PlacedPrompt, before: np.ndarray | None) -> np.ndarray:
        """Return the mask (rows, columns) bool that one more prompt would give on its slice; see `answer`."""
        return self._answered(findings, placed, np.zeros(self.shape, bool) if before is None else before)[-1]

    def _answered(
        self, findings: Findings, placed: PlacedPrompt, before: np.ndarray
    ) -> tuple[PlacedPrompt, SliceState, np.ndarray]:
        """Do as `answer`, but with the network's own state."""
        if self._is_elsewhere(placed, before):
            return self._boxed(findings, placed, before)
        asked = findings.asked(placed, self.axis)
        state = self.decode_last(asked, placed.index)
        if not self._corrects(findings, placed, before):
            return placed, state, self.shown(asked, placed.index, state)
        pixel = placed.pixel(self.shape)
        if placed.says_present:
            said = self.shown(asked, placed.index, state)
            if not before.any() and said.sum() <= MOST_GROWTH * self._size_nearby(findings, placed.index):
                return placed, state, said
            mask = with_part(before, said, pixel, self.grey(placed.index), self.spacing_mm)
        else:
            depth = depth_in(before, self.spacing_mm)
            if not state.shows and is_middle(depth, pixel):
                return placed, state, np.zeros(self.shape, bool)
            mask = without_lobe(before, depth, pixel, self.spacing_mm)
        return replace(placed, mask=mask), state, mask

    def answer_without(self, findings: Findings, removed: PlacedPrompt) -> tuple[Findings, np.ndarray]:
        """Answer the prompts of a slice as if one of them had never been there.

        Returns
        -------
        The findings without it, and the mask (rows, columns) bool of its slice.
        """
        index, place = removed.index, [p.id for p in findings.prompts].index(removed.id)
        others = (*findings.prompts[:place], *findings.prompts[place + 1 :])
        later = {p.id: p for p in findings.prompts[place + 1 :] if p.index == index}
        found = replace(findings, prompts=tuple(p for p in others if p.id not in later))
        found = found.with_state(index, self.decode_all(found, index))
        mask = removed.before if removed.before is not None else self.shown(found, index, found.states.get(index))
        for prompt in later.values():
            later[prompt.id], state, mask = self.answer(found, prompt.anew(), mask)
            found = found.asked(later[prompt.id], self.axis).with_state(index, state)
        found = replace(found, prompts=tuple(later.get(p.id, p) for p in others))
        return (found if found.on(index) else found.unprompted(index)), mask

    def _is_elsewhere(self, placed: PlacedPrompt, before: np.ndarray) -> bool:
        """Whether a prompt is a box around something else than what is shown."""
        if not placed.is_box or not self.network.options.corrects_locally:
            return False
        return bool(before.any()) and not before[placed.box(self.shape)].any()

    def _boxed(
        self, findings: Findings, placed: PlacedPrompt, before: np.ndarray
    ) -> tuple[PlacedPrompt, SliceState, np.ndarray]:
        """Answer a box by itself: a network that is shown a mask elsewhere answers with that mask.

        What the slice's own prompts have given stays beside it; what was only tracked has been in the wrong place.
        """
        index = placed.index
        asked = findings.unprompted(index).with_state(index, None).asked(placed, self.axis)
        state = self.decode_last(asked, index)
        mask = self.shown(asked, index, state)
        if findings.on(index):
            mask = mask | before
        return replace(placed, mask=mask), state, mask

    def _corrects(self, findings: Findings, placed: PlacedPrompt, before: np.ndarray) -> bool:
        """Whether a prompt is to change no more than what is around it."""
        if placed.is_box or placed.is_drawing or not self.network.options.corrects_locally:
            return False
        earlier = findings.on(placed.index)
        if not earlier:
            return bool(before.any()) or placed.index in findings.states
        # Where there are clicks and nothing else, the next one is the network's to understand with them.
        return findings.bases.get(placed.index) is not None or any(p.is_box or p.mask is not None for p in earlier)

    def _decode_next(
        self, findings: Findings, index: int, prompts: Sequence[PlacedPrompt], before: SliceState | None
    ) -> SliceState:
        last = prompts[-1]
        if last.is_drawing:
            return self._from_mask(index, last.drawn)
        if last.is_box and last.mask is not None:
            return self._as_shown(last, before)
        state = self._from_points(findings, index, prompts, before)
        return state if last.mask is None else self._remembered(last, state, before)

    def _remembered(self, click: PlacedPrompt, state: SliceState, before: SliceState | None) -> SliceState:
        """Return what is remembered of a slice on which a click has corrected what was shown.

        What the network has made of a click tells other slices more than the corrected mask does: what was meant, and
        not only where. But if it is something else than what is shown, the latter counts.
        """
        if state.shows and dice(self.tracker.mask_of(state), click.drawn) >= LEAST_AGREEMENT:
            return state
        return self._as_shown(click, before)

    def _as_shown(self, placed: PlacedPrompt, before: SliceState | None) -> SliceState:
        """Return the state of a slice as a prompt has corrected it."""
        backed = before is not None and before.backed and bool(placed.drawn.any())
        return replace(self._from_mask(placed.index, placed.drawn), backed=backed)

    def mask_of(self, findings: Findings, index: int, state: SliceState | None) -> np.ndarray:
        """Return the slice's mask (rows, columns) bool: the user's own if that came last, else the network's."""
        given = findings.given(index)
        if given is not None:
            return given
        return np.zeros(self.shape, bool) if state is None else self.tracker.mask_of(state)

    def shown(self, findings: Findings, index: int, state: SliceState | None) -> np.ndarray:
        """Return the slice's mask as it is shown: `mask_of`, settled on the edges of the image."""
        mask = self.mask_of(findings, index, state)
        if findings.given(index) is not None or state is None or not self.network.options.sharpens:
            return mask
        return sharpened_slice(self, findings.with_state(index, state), index, mask)

    def grey(self, index: int) -> np.ndarray:
        """Return a slice's grey values in the window; float32 (rows, columns) in [0, 1]."""
        return self.window.apply(self.volume.slice_hu(self.axis, index))

    def probability_of(self, state: SliceState) -> np.ndarray:
        """Return how probable a state makes each pixel of its slice; float32 (rows, columns)."""
        probability = np.zeros(self.shape, np.float32)
        values, inside = uncut(state.logits, state.view, self.shape)
        probability[inside] = 1 / (1 + np.exp(-values.clip(-30, 30)))
        return probability

    def error_of(self, index: int, state: SliceState, head: ErrorHead) -> np.ndarray:
        """Return where a head expects the mask of a state to be wrong; float32 (rows, columns)."""
        from SAM2AssistLib.prompting.error_head import decoder_features

        network = self.network
        row = Row(index, state.view, Recall((), ()), network.carried(state, state.view), reverse=False)
        # The head reads what the decoder makes of the slice with this very mask as its mask prompt.
        with decoder_features(network.model) as seen, torch.inference_mode():
            network.look_again([row])
            logits = state.logits.to(network.device).float()[None, None]
            head.to(network.device)  # for want of memory the network may have gone to the CPU meanwhile
            error = head.error_logits(seen.features.float(), logits)[0, 0]
        return self.probability_of(replace(state, logits=error))

    def _from_mask(self, index: int, mask: np.ndarray) -> SliceState:
        view = self.focus.around_mask(mask) if self.focus is not None and mask.any() else self.whole
        size = self.network.model.image_size
        seen = (cut(mask.astype(np.float32), view, size, 0.0) >= 0.5).float()
        return self.network.from_mask(index, view, seen)

    def _from_points(
        self, findings: Findings, index: int, prompts: Sequence[PlacedPrompt], previous: SliceState | None
    ) -> SliceState:
        # An edited mask starts afresh: what was clicked before it is in it already.
        edits = [n for n, p in enumerate(prompts) if p.is_drawing]
        prompts = prompts[edits[-1] + 1 :] if edits else prompts
        boxes, clicks = [p for p in prompts if p.is_box], [p for p in prompts if not p.is_box]
        # SAM2 is trained with one box, before the clicks; each further box is a further part of the segment.
        readings = [[box, *clicks] for box in boxes] or [clicks]
        points = np.stack([np.concatenate([p.points for p in reading]) for reading in readings])
        labels = np.concatenate([p.labels for p in readings[0]])
        everywhere = points.reshape(-1, 2)
        view = self._view_for(everywhere, boxes, previous)
        if previous is None:
            previous = next((p.hint for p in prompts if p.hint is not None), None)
        backed = previous is not None and previous.backed and previous.shows and not prompts[-1].is_box
        pointed_at = self.network.options.prompts_decide and prompts[-1].says_present
        if pointed_at and previous is not None and not previous.shows:
            # What found nothing here has nothing to say where the user points; the nearest mask has.
            previous = self._nearest_shown(findings, index) or previous
            view = self._view_for(everywhere, boxes, previous)
        for _ in range(MOST_LOOKS):
            state = self._decode(findings, index, view, points, labels, previous)
            better = self._better_view(view, state, everywhere)
            if better is None:
                break
            view = better
        drawn = boxes and not clicks and not any(box.is_guess for box in boxes)
        if drawn and self.network.options.prompts_decide:
            state = self._in_boxes(state, boxes)
        state = replace(state, backed=backed and state.shows)
        return replace(state, logits=self._heeded(state, clicks).to(state.logits.dtype))

    def _in_boxes(self, state: SliceState, boxes: Sequence[PlacedPrompt]) -> SliceState:
        """Show the likeliest part of boxes in which the network finds nothing: who draws them has seen something."""
        side = len(state.logits)
        inside = torch.zeros_like(state.logits, dtype=torch.bool)
        for box in boxes:
            corners = state.view.to_input(box.points, side).clip(0, side - 1)
            (left, top), (right, bottom) = (
                np.floor(corners.min(axis=0)).astype(int),
                np.ceil(corners.max(axis=0)).astype(int),
            )
            inside[top : bottom + 1, left : right + 1] = True
        said = state.logits[inside].float()
        if int((said > 0).sum()) >= LEAST_IN_BOX * len(said):
            return state
        growth = growth_towards(said, USUAL_IN_BOX * len(said), IN_BOX_SPREAD)
        return replace(state, logits=torch.where(inside, state.logits + growth, state.logits))

    def _size_nearby(self, findings: Findings, index: int) -> int:
        """Count the pixels of the nearest slice on which the segment is."""
        nearest = self._nearest_shown(findings, index)
        return 0 if nearest is None else int(self.tracker.mask_of(nearest).sum())

    def _heeded(self, state: SliceState, clicks: Sequence[PlacedPrompt]) -> torch.Tensor:
        """Let a mask be where the user says that it is, and not be where the user says that it is not."""
        if not self.network.options.prompts_decide or state.object_score <= 0:
            return state.logits
        side = len(state.logits)
        placed = [
            (float(y), float(x), bool(label == 1))
            for click in clicks
            for (x, y), label in zip(state.view.to_input(click.points, side), click.labels, strict=True)
        ]
        return heeded(state.logits, placed)

    @staticmethod
    def _nearest_shown(findings: Findings, index: int) -> SliceState | None:
        others = sorted((abs(k - index), k) for k, s in findings.states.items() if k != index and s.shows)
        return findings.states[others[0][1]] if others else None

    def _decode(
        self,
        findings: Findings,
        index: int,
        view: View,
        points: np.ndarray,
        labels: np.ndarray,
        previous: SliceState | None,
    ) -> SliceState:
        base = findings.bases.get(index)
        memories = None if base is None else self._recall(findings, index, base, view)
        size = self.network.model.image_size
        seen = np.stack([view.to_input(reading, size) for reading in points])
        return self.network.from_points(index, view, seen, labels, previous=previous, recall=memories)

    def _recall(self, findings: Findings, index: int, base: SliceState, view: View) -> Recall:
        """Recall what the slice was tracked with when it is corrected, as SAM2 does."""
        conditioning = {k: s for k, s in findings.conditioning.items() if k != index}
        if not conditioning:
            return Recall((), ())
        found = recall(
            self.network.model,
            index,
            reverse=base.reverse,
            slices=self.slices,
            conditioning=conditioning,
            tracked=lambda k: None if k in conditioning or k == index else findings.states.get(k),
        )
        places, states = [k for _, k, _ in found.memories], [s for *_, s in found.memories]
        moved = self.network.seen_through(places, states, [view] * len(states))
        memories = tuple((t, k, s) for (t, k, _), s in zip(found.memories, moved, strict=True))
        return Recall(memories, found.pointers)

    def _view_for(self, points: np.ndarray, boxes: Sequence[PlacedPrompt], previous: SliceState | None) -> View:
        if self.focus is None:
            return self.whole
        if previous is not None:
            seen = self.tracker.mask_of(previous)
            return previous.view if _inside(points, previous.view) else self._view_with(points, seen)
        if not boxes:
            return self.whole
        return self._view_with(points, np.zeros(self.shape, bool))

    def _view_with(self, points: np.ndarray, mask: np.ndarray) -> View:
        assert self.focus is not None
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            points = np.concatenate([points, [[rows[0], columns[0]], [rows[-1], columns[-1]]]])
        low, high = points.min(axis=0), points.max(axis=0)
        return self.focus.around((low[0], low[1]), (high[0], high[1]))

    def _better_view(self, view: View, state: SliceState, points: np.ndarray) -> View | None:
        """Propose a view that fits the mask better: closer for something small, larger for what reaches the edge."""
        if self.focus is None:
            return None
        mask = self.tracker.mask_of(state)
        if not mask.any():
            return None
        if self.focus.outgrown(mask, view):
            better = self._view_with(points, mask)
            return None if better == view or better.rows < view.rows else better
        if view == self.whole:
            better = self._view_with(points, mask)
            return better if better.rows < CLOSER_FROM * view.rows else None
        return None


def _inside(points: np.ndarray, view: View) -> bool:
    low, high = points.min(axis=0), points.max(axis=0)
    return bool(
        low[0] >= view.row
        and low[1] >= view.column
        and high[0] < view.row + view.rows
        and high[1] < view.column + view.columns
    )
