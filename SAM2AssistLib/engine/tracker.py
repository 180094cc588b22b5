"""The tracker: lanes that carry segments from prompted slices through the volume, in lockstep.

A lane is one segment going one way from one prompted slice. All lanes take their next slice together, as one batch
through the memory attention, the mask decoder and the memory encoder; SAM2's own predictor does one object and one
direction after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from SAM2AssistLib.engine.focus import Focus
from SAM2AssistLib.engine.heads import ABSENT_LOGIT
from SAM2AssistLib.engine.memory import Recall, SliceState, recall
from SAM2AssistLib.engine.network import Network, Row
from SAM2AssistLib.engine.stopping import StopJudge
from SAM2AssistLib.engine.views import View, uncut

MOST_REFOCUSINGS = 2
"""How often one slice may be looked at again through a larger view before it is taken as it is."""


@dataclass
class Lane:
    """One segment on its way from a prompted slice.

    Attributes
    ----------
    segment : identifier of the segment.
    start, last : the prompted slice, and the last slice to visit; the direction follows from them.
    view : through which the lane sees its slices; changes as the mask grows.
    conditioning : the segment's prompted slices.
    recalled : those of them that every slice attends to.
    behind : states that earlier passes left, for memories of slices before the start.
    stops : whether it ends where the object ends; between two prompted slices it does not.
    fading : logits that the carried mask loses from slice to slice.
    own : states of the slices visited so far.
    moved : states as the lane recalls them: in its view, with their memories.
    """

    segment: int
    start: int
    last: int
    view: View
    conditioning: dict[int, SliceState]
    recalled: dict[int, SliceState]
    behind: Mapping[int, SliceState]
    stops: bool
    fading: float = 0.0
    own: dict[int, SliceState] = field(default_factory=dict)
    moved: dict[int, SliceState] = field(default_factory=dict)
    judge: StopJudge = field(default_factory=StopJudge)
    ended: bool = False
    position: int = field(init=False)

    def __post_init__(self) -> None:
        self.position = self.start

    @property
    def reverse(self) -> bool:
        """Whether the lane goes down the slice indices."""
        return self.last < self.start

    @property
    def next_index(self) -> int:
        """The slice to be visited next."""
        return next(iter(self.ahead), self.position)

    @property
    def ahead(self) -> Iterator[int]:
        """Slices still to be visited, nearest first; prompted ones are passed over."""
        step = -1 if self.reverse else 1
        places = range(self.position + step, self.last + step, step)
        return (place for place in places if place not in self.conditioning)

    @property
    def left(self) -> int:
        """Number of slices still to be visited; counted without walking over them, as every step asks for it."""
        low, high = sorted((self.position, self.last))
        passed_over = sum(low <= place <= high and place != self.position for place in self.conditioning)
        return 0 if self.ended else high - low - passed_over

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to visit."""
        return self.ended or next(self.ahead, None) is None

    def state(self, index: int) -> SliceState | None:
        """Look up a visited slice, or one behind the start that an earlier pass left."""
        if index in self.own:
            return self.own[index]
        is_ahead = index < self.start if self.reverse else index > self.start
        return None if is_ahead or index in self.conditioning else self.behind.get(index)


@dataclass(frozen=True)
class Visit:
    """A slice that a lane has just visited.

    Attributes
    ----------
    lane : which.
    index : of the slice.
    mask : (rows, columns) bool of the whole slice.
    forgotten : slice whose memory is too far behind to be recalled from now on; there may be none of this number.
    """

    lane: Lane
    index: int
    mask: np.ndarray
    forgotten: int


class Tracker:
    """Moves lanes.

    Parameters
    ----------
    network : at work on the volume.
    focus : chooses views, or None to keep them as they are.
    shape : (rows, columns) of the slices.
    """

    def __init__(self, network: Network, focus: Focus | None, shape: tuple[int, int]) -> None:
        self.network, self.focus, self.shape = network, focus, shape

    def advance(self, lanes: Iterable[Lane]) -> list[Visit]:
        """Let every unfinished lane visit its next slice; returns the visits in the order of the lanes."""
        active = [lane for lane in lanes if not lane.finished]
        if not active:
            return []
        states, masks = self._look(active)
        for n, lane in enumerate(active):
            if lane.stops and not lane.judge.accepts(int(masks[n].sum()), states[n].iou):
                states[n], masks[n] = self._emptied(states[n]), np.zeros_like(masks[n])
        states = self.network.remember([lane.next_index for lane in active], states)
        visits = []
        for lane, state, mask in zip(active, states, masks, strict=True):
            lane.position = lane.next_index
            lane.own[lane.position] = state
            forgotten = self._forget(lane)
            lane.ended = lane.stops and lane.judge.ends(int(mask.sum()))
            visits.append(Visit(lane, lane.position, mask, forgotten))
        return visits

    def mask_of(self, state: SliceState) -> np.ndarray:
        """Return the mask (rows, columns) bool that a state means."""
        return self._masks_of([state])[0]

    def _masks_of(self, states: Sequence[SliceState]) -> list[np.ndarray]:
        """Return the masks of many states; those seen through one view are brought back together."""
        masks = [np.zeros(self.shape, bool) for _ in states]
        for view in dict.fromkeys(state.view for state in states):
            alike = [n for n, state in enumerate(states) if state.view == view]
            values, inside = uncut(torch.stack([states[n].logits for n in alike]), view, self.shape)
            for n, found in zip(alike, values > 0, strict=True):
                masks[n][inside] = found
        return masks

    def _look(self, lanes: Sequence[Lane]) -> tuple[list[SliceState], list[np.ndarray]]:
        """Decode every lane's next slice; where a mask outgrows its view, once more through a larger one."""
        states = self._faded(lanes, self.network.track(self._rows(lanes)))
        masks = self._masks_of(states)
        for _ in range(MOST_REFOCUSINGS):
            again = [n for n, lane in enumerate(lanes) if self._refocused(lane, masks[n])]
            if not again:
                break
            repeated = [lanes[n] for n in again]
            seen = self._faded(repeated, self.network.track(self._rows(repeated)))
            for n, state, mask in zip(again, seen, self._masks_of(seen), strict=True):
                states[n], masks[n] = state, mask
        return states, masks

    @staticmethod
    def _faded(lanes: Sequence[Lane], states: Sequence[SliceState]) -> list[SliceState]:
        faded = [lane.fading * abs(lane.next_index - lane.start) for lane in lanes]
        return [
            replace(state, logits=state.logits - lost) if lost else state
            for state, lost in zip(states, faded, strict=True)
        ]

    def _refocused(self, lane: Lane, mask: np.ndarray) -> bool:
        if self.focus is None or not self.focus.outgrown(mask, lane.view):
            return False
        view = self.focus.around_mask(mask, lane.view)
        if view == lane.view:
            return False
        lane.view = view
        lane.moved.clear()
        return True

    def _rows(self, lanes: Sequence[Lane]) -> list[Row]:
        recalls = [
            recall(
                self.network.model,
                lane.next_index,
                reverse=lane.reverse,
                slices=self.network.slices,
                conditioning=lane.recalled,
                tracked=lane.state,
            )
            for lane in lanes
        ]
        self._make_ready(lanes, recalls)
        return [self._row(lane, item) for lane, item in zip(lanes, recalls, strict=True)]

    def _make_ready(self, lanes: Sequence[Lane], recalls: Sequence[Recall]) -> None:
        """Make, in one batch, the memories that were dropped or that lie on the grid of another view."""
        wanted = [
            (lane, place, state)
            for lane, item in zip(lanes, recalls, strict=True)
            for _, place, state in item.memories
            if (state.view != lane.view or state.memory is None) and place not in lane.moved
        ]
        if wanted:
            made = self.network.seen_through(
                [place for _, place, _ in wanted],
                [state for *_, state in wanted],
                [lane.view for lane, *_ in wanted],
            )
            for (lane, place, _), state in zip(wanted, made, strict=True):
                lane.moved[place] = state

    def _row(self, lane: Lane, remembered: Recall) -> Row:
        memories = tuple((t, place, lane.moved.get(place, state)) for t, place, state in remembered.memories)
        index = lane.next_index
        place = index + (1 if lane.reverse else -1)
        before = lane.own.get(place) or lane.conditioning[place]
        carried = self.network.carried(before, lane.view)
        return Row(index, lane.view, Recall(memories, remembered.pointers), carried, lane.reverse)

    def _forget(self, lane: Lane) -> int:
        """Drop the memory that is too far behind to be recalled; a correction makes it again from its mask."""
        far = lane.position + self.network.model.num_maskmem * (1 if lane.reverse else -1)
        if far not in lane.conditioning:
            lane.moved.pop(far, None)
        if far in lane.own:
            lane.own[far] = lane.own[far].at_rest()
        return far

    def _emptied(self, state: SliceState) -> SliceState:
        """Turn a state whose mask was rejected into one of an absent segment, pointer included."""
        return replace(
            state,
            logits=torch.full_like(state.logits, ABSENT_LOGIT),
            object_score=-abs(state.object_score),
            pointer=self.network.model.no_obj_ptr[0].to(state.pointer),
            iou=0.0,
        )
