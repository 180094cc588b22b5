"""What a session offers to those who prompt when the user does not: opinions in, doubts out, and trying things out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from SAM2AssistLib.engine.blending import SliceOpinion, blend
from SAM2AssistLib.engine.competition import settle_conflicts
from SAM2AssistLib.engine.doubt import DoubtfulSlice, doubtful_slices
from SAM2AssistLib.engine.history import Attempt, History, Recorder
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.segment import Findings, PlacedPrompt, Segment, SegmentRecord
from SAM2AssistLib.engine.sharpening import sharpen
from SAM2AssistLib.errors import InputError

if TYPE_CHECKING:
    from SAM2AssistLib.prompting.error_head import ErrorHead

_AXIS_WORDS = ("k", "j", "i")


class SelfPromptedSession:
    """The part of `SAM2AssistLib.engine.session.Session` that Auto-Segment and its corrections use.

    Attributes
    ----------
    history : of all that was done.
    """

    history: History
    _records: dict[int, SegmentRecord]
    _ids: itertools.count[int]

    # The session's own

    def segment_axis(self, segment: Segment) -> int:
        """Array axis along which the segment is propagated."""
        raise NotImplementedError

    def _record(self, segment: Segment) -> SegmentRecord:
        raise NotImplementedError

    def _plane(self, axis: int) -> Plane:
        raise NotImplementedError

    def _take(
        self, record: SegmentRecord, asked: Findings, state: SliceState, mask: np.ndarray, title: str
    ) -> np.ndarray:
        raise NotImplementedError

    def _interrupt(self) -> None:
        raise NotImplementedError

    def _recording(self, title: str, record: SegmentRecord) -> AbstractContextManager[Recorder]:
        raise NotImplementedError

    # What the engine thinks

    def probability(self, segment: Segment, index: int) -> np.ndarray | None:
        """Tell how probable the network finds each pixel of a slice to be in the segment.

        Returns
        -------
        float32 (rows, columns) in [0, 1]; None where neither a prompt nor a propagation has been.
        """
        state = self._record(segment).findings.states.get(index)
        return None if state is None else self._plane(self.segment_axis(segment)).probability_of(state)

    def predicted_error(self, segment: Segment, index: int, head: ErrorHead) -> np.ndarray | None:
        """Tell where on a slice an error head expects the mask to be wrong.

        Returns
        -------
        float32 (rows, columns), probability of error; None where neither a prompt nor a propagation has been.
        """
        state = self._record(segment).findings.states.get(index)
        return None if state is None else self._plane(self.segment_axis(segment)).error_of(index, state, head)

    def doubtful_slices(self) -> list[DoubtfulSlice]:
        """List, over all segments, where a look is worth most: the slices of which the engine is least sure, first.

        They have no prompt of their own, and each is the worst among its neighbours.
        """
        return doubtful_slices(self._records.values())

    def next_doubtful_slice(self, segment: Segment, after: int | None = None) -> int | None:
        """Tell which slice of a segment to look at next, from the least sure one on.

        Parameters
        ----------
        after : the answer of the last call; without it, the worst slice of all.

        Returns
        -------
        Index along the segment's axis; None when there are no more.
        """
        indices = [item.index for item in doubtful_slices([self._record(segment)])]
        left = indices[indices.index(after) + 1 :] if after in indices else indices
        return left[0] if left else None

    # What others think

    def place_template(self, segment: Segment, axis: int, prompts: Sequence[PlacedPrompt]) -> np.ndarray:
        """Place all that is to be said on one slice at once, in pixels of the slice.

        Parameters
        ----------
        axis : array axis of the slice; it has to be that of the segment's other prompts.
        prompts : of one slice, each with an id of its own (see `new_prompt_id`).

        Returns
        -------
        The mask on that slice; bool (rows, columns).
        """
        record = self._record(segment)
        settled = record.findings.axis
        if settled not in (None, axis):
            raise InputError(f"{segment.name!r} travels along {_AXIS_WORDS[settled or 0]}; prompt it on those slices.")
        self._interrupt()
        plane, asked = self._plane(axis), record.findings
        for prompt in prompts:
            asked = asked.asked(prompt, axis)
        index = prompts[0].index
        state = plane.decode_last(asked, index)
        return self._take(record, asked, state, plane.mask_of(asked, index, state), "template")

    def new_prompt_id(self) -> int:
        """Return a number that no prompt of this session has."""
        return next(self._ids)

    def blend(self, segment: Segment, opinions: Mapping[int, SliceOpinion], weight: float) -> None:
        """Blend what somebody else thinks of slices into a segment; one step of undo.

        Parameters
        ----------
        opinions : by slice along the segment's axis.
        weight : of the opinions, from 0 to 1; the rest is that of the network.
        """
        self._interrupt()
        record = self._record(segment)
        with self._recording("blend", record) as recorder:
            blend(self._plane(self.segment_axis(segment)), recorder, opinions, weight)

    def sharpen(self, segment: Segment) -> None:
        """Settle all that has been found of a segment on the edges of the image, prompted slices too; a step of undo.

        Nothing changes if the engine's options say so.
        """
        self._interrupt()
        record = self._record(segment)
        plane = self._plane(self.segment_axis(segment))
        if plane.network.options.sharpens:
            with self._recording("sharpen", record) as recorder:
                for _ in sharpen(plane, recorder, record.findings.states):
                    pass

    def settle_conflicts(self, segments: Sequence[Segment]) -> int:
        """Give each voxel that several segments claim to the one that is surest of it; one step of undo.

        Returns
        -------
        Number of contested voxels. Segments that travel along another axis than the first take no part.
        """
        self._interrupt()
        records = [self._record(segment) for segment in dict.fromkeys(segments)]
        if not records:
            return 0
        axis = self.segment_axis(records[0].handle)
        recorders = [Recorder("compete", r) for r in records if self.segment_axis(r.handle) == axis]
        contested = settle_conflicts(self._plane(axis), recorders)
        with self.history.one_step("compete", self._records):
            for recorder in recorders:
                self.history.add(recorder.command())
        return contested

    @contextmanager
    def joined(self, title: str) -> Iterator[None]:
        """Make one step of undo of all that is done in the block; a propagation that was left before is its own."""
        self._interrupt()
        with self.history.joined(title):
            yield

    # Trying out

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Try something out: unless the attempt is kept, all that was done in the block is undone and forgotten."""
        self._interrupt()
        attempt, mark = Attempt(), self.history.newest
        try:
            yield attempt
        finally:
            self._interrupt()
            if not attempt.kept:
                self.history.take_back(mark, self._records)
