"""One propagation: which lanes run, and what becomes of the slices they visit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeGuard

from SAM2AssistLib.engine.history import Recorder
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.segment import Gap, Segment, gaps
from SAM2AssistLib.engine.sharpening import sharpen, to_settle
from SAM2AssistLib.engine.stopping import StopJudge
from SAM2AssistLib.engine.tracker import Lane, Visit
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompting.dense import LOGIT_LIMIT

CORRECTION_REACH_MM = 10.0
"""How far a correction reaches into what Auto-Segment, and not propagation alone, has found. After boxes and clicks it
reaches as far as it goes: on training cases that was better (Dice after three clicks 0.81, against 0.80)."""


@dataclass(frozen=True)
class Step:
    """Progress of a propagation: one slice of one segment is done.

    Attributes
    ----------
    segment : which.
    axis, index : the slice, along the array axis (0 = k, 1 = j, 2 = i).
    done, total : slices visited, and slices that will have been visited at most; the total falls where an object ends
        early.
    """

    segment: Segment
    axis: int
    index: int
    done: int
    total: int


@dataclass
class Job:
    """One segment's part of a propagation.

    Attributes
    ----------
    recorder : through which its mask is written.
    plane : its slices.
    anew : whether, with prompts enough, all of it may settle on edges anew.
    gaps : between its prompted slices, still to be filled.
    lanes : running in them.
    found : states of the visited slices.
    seen : the same as the lanes have seen them, before what was there earlier had its say.
    all_begun : whether the last of the rounds has begun.
    sharp : whether what was found has settled on the edges of the image.
    """

    recorder: Recorder
    plane: Plane
    options: EngineOptions
    anew: bool = True
    gaps: list[Gap] = field(init=False)
    lanes: list[Lane] = field(default_factory=list)
    found: dict[int, SliceState] = field(default_factory=dict)
    seen: dict[int, SliceState] = field(default_factory=dict)
    all_begun: bool = False
    sharp: bool = False

    def __post_init__(self) -> None:
        findings = self.recorder.record.findings
        first, last = findings.limits or (0, self.plane.slices - 1)
        stale = findings.stale if self.options.only_changed else None
        self.gaps = gaps(list(findings.conditioning), stale, first, last)

    def rounds(self) -> Iterator[list[Lane]]:
        """Yield the lanes that run together; the next ones when these have ended."""
        if self.options.meet_between:
            self.lanes = [lane for gap in self.gaps for lane in self._lanes_in(gap)]
            self.all_begun = True
            yield self.lanes
            return
        # As upstream: from the first prompted slice up to the end, then from it down, passing over other prompted
        # slices.
        prompted = list(self.recorder.record.findings.conditioning)
        ends = [max(g.last for g in self.gaps)] if self.gaps and self.gaps[-1].last > prompted[0] else []
        ends += [self.gaps[0].first] if self.gaps and self.gaps[0].first < prompted[0] else []
        if self.options.both_directions:
            self.lanes = [self._lane(prompted[0], end, stops=self.options.stop_rules) for end in ends]
            self.all_begun = True
            yield self.lanes
            return
        for number, end in enumerate(ends, 1):
            lane = self._lane(prompted[0], end, stops=self.options.stop_rules)
            self.lanes.append(lane)
            self.all_begun = number == len(ends)
            yield [lane]
        self.all_begun = True

    def _lanes_in(self, gap: Gap) -> Iterator[Lane]:
        # A slice on which a user has said that the segment is absent sends nothing: the segment ends before it, and
        # where, what comes from the other side must find out.
        shown = [(start, end) for start, end in ((gap.low, gap.last), (gap.high, gap.first)) if self._shown(start)]
        for start, end in shown:
            yield self._lane(start, end, stops=self.options.stop_rules and len(shown) == 1)

    def _shown(self, index: int | None) -> TypeGuard[int]:
        return index is not None and bool(self.recorder.record.slice_of(self.plane.axis, index).any())

    def _lane(self, start: int, last: int, *, stops: bool) -> Lane:
        findings = self.recorder.record.findings
        conditioning = findings.conditioning
        area = int(self.recorder.record.slice_of(self.plane.axis, start).sum())
        # Every direction goes by the prompted slice that it comes from: remembered on every slice, an absence at the
        # end of an object, or a bad mask, would spoil it everywhere. What comes from the other side is fused later.
        recalled = {start: conditioning[start]} if self.options.meet_between else conditioning
        return Lane(
            segment=self.recorder.record.handle.id,
            start=start,
            last=last,
            view=conditioning[start].view,
            conditioning=conditioning,
            recalled=recalled,
            behind={**findings.states, **self.found},
            stops=stops,
            fading=self._fading(area) if stops else 0.0,
            judge=StopJudge([area] if area else []),
        )

    def _fading(self, area: int) -> float:
        """Return the logits a mask that starts with this area loses per slice."""
        row_mm, column_mm = self.plane.spacing_mm
        width_mm = math.sqrt(area * row_mm * column_mm)
        return self.options.fading * self.plane.distance_mm / width_mm if area else 0.0

    def accept(self, visit: Visit) -> None:
        """Write a visited slice, fused with what came from the other side if that was there before."""
        state, mask = visit.lane.own[visit.index], visit.mask
        other = self.seen.get(visit.index)
        gap = next((g for g in self.gaps if g.first <= visit.index <= g.last), None)
        if (
            other is not None
            and self.options.meet_between
            and gap is not None
            and gap.low is not None
            and gap.high is not None
        ):
            share = (visit.index - gap.low) / (gap.high - gap.low)
            lower, upper = (other, state) if visit.lane.reverse else (state, other)
            state = self._fused(lower, upper, share)
            mask = self.plane.tracker.mask_of(state)
        self.seen[visit.index] = state
        earlier = self._earlier(visit.index)
        if earlier is not None:
            state = replace(self._fused(state, earlier, 1 - self._heard(visit.index)), backed=True)
            mask = self.plane.tracker.mask_of(state)
        elif self._is_lost(visit.index, state, gap):
            state = self.recorder.record.findings.states[visit.index]
            mask = self.plane.tracker.mask_of(state)
        self.found[visit.index] = state
        for states in (self.seen, self.found):
            if visit.forgotten in states:
                states[visit.forgotten] = states[visit.forgotten].at_rest()
        self.recorder.write(self.plane.axis, visit.index, mask)

    def _earlier(self, index: int) -> SliceState | None:
        """Return what was found on a slice before, where others than the tracker had a part in it."""
        state = self.recorder.record.findings.states.get(index)
        return state if state is not None and state.backed and self._corrected else None

    def _is_lost(self, index: int, state: SliceState, gap: Gap | None) -> bool:
        """Whether a segment is gone from a slice where it was, between two prompted ones that it is on.

        No click beside it has meant that; the tracker has lost it. Where a prompt was taken away, though, what was
        there may have been its doing: then slices without a prompt are stale.
        """
        findings = self.recorder.record.findings
        was = findings.states.get(index)
        if state.shows or was is None or not was.shows or not self.options.meet_between or gap is None:
            return False
        return self._shown(gap.low) and self._shown(gap.high) and findings.stale <= findings.conditioning.keys()

    @cached_property
    def _corrected(self) -> tuple[int, ...]:
        """Prompted slices that are new since the last propagation."""
        findings = self.recorder.record.findings
        return tuple(k for k in findings.conditioning if k in findings.stale)

    def _kept(self) -> set[int]:
        """Slices that lanes have not reached, but that others had a part in.

        Where no lane set out, the user has emptied the slice before them.
        """
        ways = [sorted((lane.start, lane.last)) for lane in self.lanes]
        states = self.recorder.record.findings.states
        return {k for k in states if self._earlier(k) is not None and any(low <= k <= high for low, high in ways)}

    def _heard(self, index: int) -> float:
        """Tell how much a slice that others had a part in is to heed the corrections: less and less farther away.

        A user who clicks means this place. What the tracker makes of it far away is worse than what was there.
        """
        nearest = min(abs(k - index) for k in self._corrected)
        return math.exp(-(nearest - 1) * self.plane.distance_mm / CORRECTION_REACH_MM)

    def _fused(self, lower: SliceState, upper: SliceState, share: float) -> SliceState:
        """Weigh two opinions of a slice, ``share`` that of the upper one; where they disagree, confidence falls.

        A segment that is on both sides is hardly ever absent in between: a lane that has lost it has no vote.
        """
        if lower.shows != upper.shows:
            kept = lower if lower.shows else upper
            return replace(kept, iou=kept.iou / 2, memory=None)
        near, far, weight = (upper, lower, share) if share > 0.5 else (lower, upper, 1 - share)
        network, limit = self.plane.network, LOGIT_LIMIT
        own, others = network.carried(near, near.view), network.carried(far, near.view)
        # Probabilities, not logits: an absence is stated far more strongly than any mask, and would always win.
        blended = weight * own.sigmoid() + (1 - weight) * others.sigmoid()
        logits = blended.logit(eps=1e-4).clamp(-limit, limit)
        agreement = dice(self.plane.tracker.mask_of(near), self.plane.tracker.mask_of(far))
        return replace(
            near,
            logits=logits.half(),
            iou=agreement * (weight * near.iou + (1 - weight) * far.iou),
            object_score=near.object_score
            if bool((logits > 0).any()) == (near.object_score > 0)
            else -near.object_score,
            memory=None,
        )

    def settle(self) -> list[int]:
        """Close the books: slices beyond an end lose their old mask; what is finished is no longer stale.

        An end is that of the object, or that of a 3D box that was drawn after an earlier propagation had gone further.
        """
        record = self.recorder.record
        findings = record.findings
        states = {**findings.states, **self.found}
        emptied = []
        finished = self.all_begun and all(lane.finished for lane in self.lanes)
        if finished:
            first, last = findings.limits or (0, self.plane.slices - 1)
            beyond = {k for g in self.gaps for k in g.slices()} | {k for k in states if not first <= k <= last}
            for index in beyond - set(self.found) - set(findings.conditioning) - self._kept():
                states.pop(index, None)
                if record.slice_of(self.plane.axis, index).any():
                    emptied.append(index)
                self.recorder.clear(self.plane.axis, index)
        stale = frozenset() if finished else findings.stale
        unsettled = findings.unsettled
        if self.options.sharpens and not self.sharp:
            unsettled |= set(self.found)
        record.findings = replace(findings, states=states, stale=stale, unsettled=unsettled)
        return emptied

    def sharpen(self) -> Iterator[int | None]:
        """Settle what has been visited on the edges of the image; may be left whenever it yields, and done later.

        Yields the index of each slice that has changed, and now and then None.

        The first prompted slices stay as they are: what was shown there has been seen, and accepted or prompted again.
        With more of them, they give way where they do not go together.
        """
        if not self.options.sharpens:
            return
        record = self.recorder.record
        yield from sharpen(self.plane, self.recorder, *to_settle(record.findings, self._shown, anew=self.anew))
        record.findings = replace(record.findings, unsettled=frozenset())
        self.sharp = True


class Propagation:
    """Some segments' jobs, run together.

    Parameters
    ----------
    jobs : one for each segment.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self._done = self._expected = 0

    def run(self) -> Iterator[Step]:
        """Visit slices until all lanes have ended, yielding a step for each.

        While masks settle on edges, their slices are told once more, without any being done: whoever has had enough can
        leave there and has been told of all that has changed.
        """
        running = [(job, rounds, next(rounds, [])) for job, rounds in ((job, job.rounds()) for job in self.jobs)]
        while running:
            last = None
            for step in self._lockstep([(job, lanes) for job, _, lanes in running]):
                if step.done == step.total:
                    last = step  # who has been told that all is done is to find all done
                else:
                    yield step
            left, ended = [], []
            for job, rounds, lanes in running:
                following = next(rounds, None) if all(lane.finished for lane in lanes) else lanes
                if following is None:
                    ended.append(job)
                else:
                    left.append((job, rounds, following))
            running = left
            done, total = (last.done - 1, last.total) if last is not None else (self._done, self._expected)
            if last is not None and any(job.options.sharpens for job in ended):
                yield replace(last, done=done)
            for job in ended:
                yield from self._ending(job, done, max(total, 1))
            if last is not None:
                yield last

    def _ending(self, job: Job, done: int, total: int) -> Iterator[Step]:
        emptied = job.settle()
        if not job.options.sharpens:
            return
        handle, axis = job.recorder.record.handle, job.plane.axis
        told = min(job.found, default=0)
        for index in itertools.chain(emptied, job.sharpen()):
            told = told if index is None else index
            yield Step(handle, axis, told, done, total)

    def _lockstep(self, work: list[tuple[Job, list[Lane]]]) -> Iterator[Step]:
        """Let every lane visit one slice; segments on the same axis share a batch."""
        for plane in {id(job.plane): job.plane for job, _ in work}.values():
            owner = {id(lane): job for job, lanes in work if job.plane is plane for lane in lanes}
            lanes = [lane for job, group in work if job.plane is plane for lane in group]
            visits = plane.tracker.advance(lanes)
            # All are written before the first is told: whoever leaves now finds what the lanes take to be done.
            for visit in visits:
                owner[id(visit.lane)].accept(visit)
            total = self._done + len(visits) + sum(lane.left for _, group in work for lane in group)
            self._expected = total
            for visit in visits:
                self._done += 1
                handle = owner[id(visit.lane)].recorder.record.handle
                yield Step(handle, plane.axis, visit.index, self._done, total)

    def settle(self) -> None:
        """Close the books of all jobs; also after a cancellation."""
        for job in self.jobs:
            job.settle()
