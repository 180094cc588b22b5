"""A session: one volume, some segments, prompts in and masks out.

with engine.open(volume) as session:
    liver = session.add_segment("liver")
    session.add_point(liver, point_ras)
    for step in session.propagate():
        ...
    mask = session.mask(liver)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from SAM2AssistLib.engine.history import Command, History, Recorder
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.network import Encoded
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.propagation import Job, Propagation, Step
from SAM2AssistLib.engine.segment import Findings, PlacedPrompt, Segment, SegmentRecord, checked_name
from SAM2AssistLib.engine.self_prompted import SelfPromptedSession
from SAM2AssistLib.engine.sharpening import gives_way
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt, SegmentPrompts, box_from_ras, point_from_ras
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

_AXIS_WORDS = ("k", "j", "i")


class Session(SelfPromptedSession):
    """Segments of one volume; made by `Engine.open`.

    Parameters
    ----------
    engine : whose model works here.
    volume : what is segmented; it is never changed.
    axis : array axis (0 = k, 1 = j, 2 = i) along which segments travel, unless their first prompt is a box flat in
        another.
    window : HU window for the whole volume.
    """

    def __init__(self, engine: Engine, volume: CTVolume, axis: int, window: Window) -> None:
        self.engine, self.volume, self.axis, self.window = engine, volume, axis, window
        self.history = History()
        self._records: dict[int, SegmentRecord] = {}
        self._planes: dict[int, Plane] = {}
        self._ids = itertools.count(1)
        self._cancelled = False
        self._running: Generator[Step, None, None] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the features; the masks stay readable."""
        self._interrupt()
        self._planes.clear()

    # Segments

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in the order in which they were added."""
        return tuple(record.handle for _, record in sorted(self._records.items()))

    def add_segment(self, name: str) -> Segment:
        """Add an empty segment.

        Raises
        ------
        InputError
            If the name is empty or taken.
        """
        self._interrupt()
        name = checked_name(name, self._records.values())
        handle = Segment(next(self._ids), name)
        record = SegmentRecord(handle, np.zeros(self.volume.shape_kji, bool))
        self._records[handle.id] = record
        self.history.add(Command(f"add {name}", handle.id, None, record.findings, (), record))
        return handle

    def rename_segment(self, segment: Segment, name: str) -> Segment:
        """Give a segment another name; returns its new handle. That is no step of undo.

        Raises
        ------
        InputError
            If the name is empty, or another segment has it.
        """
        record = self._record(segment)
        name = checked_name(name, (other for other in self._records.values() if other is not record))
        record.handle = Segment(segment.id, name)
        return record.handle

    def remove_segment(self, segment: Segment) -> None:
        """Remove a segment with its prompts and its mask; undo brings it back."""
        record = self._record(segment)
        self._interrupt()
        del self._records[segment.id]
        self.history.add(Command(f"remove {segment.name}", segment.id, record.findings, None, (), record))

    def forget_segment(self, segment: Segment) -> None:
        """Remove a segment for good, if it is there: neither undo nor redo brings it back."""
        self._interrupt()
        self._records.pop(segment.id, None)
        self.history.forget(segment.id)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the block add a segment and what it held before this session; see `History.aside`."""
        self._interrupt()  # what a propagation has finished is noted before
        with self.history.aside():
            yield

    def mask(self, segment: Segment) -> np.ndarray:
        """Return a copy of the mask as it is now; bool (k, j, i)."""
        return self._record(segment).mask.copy()

    def mask_view(self, segment: Segment) -> np.ndarray:
        """Return the mask itself, read-only, without a copy; it changes with the next prompt. bool (k, j, i)."""
        view = self._record(segment).mask.view()
        view.flags.writeable = False
        return view

    def prompts(self, segment: Segment) -> tuple[PlacedPrompt, ...]:
        """Return the segment's prompts in the order in which they were given."""
        return self._record(segment).findings.prompts

    def segment_axis(self, segment: Segment) -> int:
        """Array axis (0 = k, 1 = j, 2 = i) along which the segment is propagated."""
        axis = self._record(segment).findings.axis
        return self.axis if axis is None else axis

    def confidence(self, segment: Segment) -> dict[int, float]:
        """Tell how sure the engine is, in [0, 1], of every slice that a prompt or a propagation has reached.

        That is the predicted IoU of the mask, times the agreement of both directions between prompted slices; where
        the segment is absent, how sure that is.
        """
        return {k: state.confidence for k, state in sorted(self._record(segment).findings.states.items())}

    # Prompts

    def add_point(self, segment: Segment, point_ras: ArrayLike, *, positive: bool = True) -> np.ndarray:
        """Click.

        Parameters
        ----------
        point_ras : (3,) RAS mm.
        positive : in the segment, or outside of it.

        Returns
        -------
        The segment's mask on the clicked slice, at once; bool (rows, columns).

        Raises
        ------
        InputError
            If the point lies outside the volume; nothing changes then.
        """
        return self.place_point(segment, point_from_ras(self.volume, point_ras, positive))

    def add_box(self, segment: Segment, min_ras: ArrayLike, max_ras: ArrayLike) -> np.ndarray:
        """Draw a box: on a slice, or in three dimensions, which also bounds the propagation.

        Parameters
        ----------
        min_ras, max_ras : (3,) opposite corners, RAS mm; flat in one axis for a box on a slice.

        Returns
        -------
        The segment's mask on the box's slice (its middle one in three dimensions); bool (rows, columns).

        Raises
        ------
        InputError
            If the box is empty, lies outside the volume, or is flat in another axis than the segment's.
        """
        return self.place_box(segment, box_from_ras(self.volume, min_ras, max_ras))

    def place_point(self, segment: Segment, point: PointPrompt) -> np.ndarray:
        """Do as `add_point`, in voxel indices."""
        record = self._record(segment)
        if not self.volume.contains_index_ijk(point.index_ijk):
            raise InputError(f"The point at voxel {point.index_ijk} lies outside the volume; click inside it.")
        axis = self.segment_axis(segment)
        index_kji = np.array(point.index_ijk)[::-1]
        index = self.nearest_slice(index_kji, axis)
        placed = PlacedPrompt(next(self._ids), index, _in_plane(index_kji, axis), np.array([int(point.positive)]))
        return self._place(record, axis, placed, "add point")

    def preview_point(self, segment: Segment | None, point: PointPrompt) -> np.ndarray | None:
        """Tell which mask (rows, columns) bool a click would give on its slice, and change nothing.

        Parameters
        ----------
        segment : whose; None for one that is yet to be added.
        point : as for `place_point`; None is returned for one outside the volume.
        """
        if not self.volume.contains_index_ijk(point.index_ijk):
            return None
        old = Findings() if segment is None else self._record(segment).findings
        axis = self.axis if old.axis is None else old.axis
        index_kji = np.array(point.index_ijk)[::-1]
        placed = PlacedPrompt(
            0, self.nearest_slice(index_kji, axis), _in_plane(index_kji, axis), np.array([int(point.positive)])
        )
        shown = None if segment is None else self._record(segment).slice_of(axis, placed.index)
        return self._plane(axis).preview(old, placed, shown)

    def encode_ahead(self, first_index: int) -> Iterator[Encoded]:
        """Encode slices from the one in view outward, so that a click on them is answered at once.

        Between two steps anything else may be done in the session, and the generator may be left at any time.

        Parameters
        ----------
        first_index : of the slice in view, along the session's axis.
        """
        plane = self._plane(self.axis)
        return plane.network.encode_ahead(first_index, plane.whole)

    def place_box(self, segment: Segment, box: BoxPrompt, reach: tuple[int, int] | None = None) -> np.ndarray:
        """Do as `add_box`, in voxel indices; `reach` tells the first and last slice of the object for a flat box."""
        record = self._record(segment)
        axis = self._axis_for(record, box)
        low, high = np.array(box.min_ijk)[::-1], np.array(box.max_ijk)[::-1]
        first, last = self.nearest_slice(low, axis), self.nearest_slice(high, axis)
        # The outermost voxels belong to the box as a whole: in a coarse volume half of one is much.
        margin = 0.5 if self.engine.options.whole_voxels else 0.0
        corners = np.concatenate([_in_plane(low, axis) - margin, _in_plane(high, axis) + margin])
        reach = (first, last) if box.axis is None else reach
        placed = PlacedPrompt(next(self._ids), (first + last) // 2, corners, np.array([2, 3]), reach=reach)
        return self._place(record, axis, placed, "add box")

    def add_mask(self, segment: Segment, index: int, mask: ArrayLike) -> np.ndarray:
        """Take an edited slice as a prompt, as it is.

        Parameters
        ----------
        index : of the slice along the segment's axis.
        mask : (rows, columns), bool or 0 and 1; an empty one says that the segment is not on this slice.

        Raises
        ------
        InputError
            If there is no such slice or the mask has another shape.
        """
        record = self._record(segment)
        axis = self.segment_axis(segment)
        shape = tuple(n for a, n in enumerate(self.volume.shape_kji) if a != axis)
        edited = np.asarray(mask).astype(bool)
        if edited.shape != shape:
            raise InputError(
                f"The slice is {shape[0]} x {shape[1]} pixels, but the mask is {edited.shape}; draw it on the slice."
            )
        self.volume.slice_hu(axis, index)  # raises for a slice that is not there
        placed = PlacedPrompt(next(self._ids), index, np.zeros((0, 2)), np.zeros(0, int), edited)
        return self._place(record, axis, placed, "edit mask")

    def adopt(self, segment: Segment, slices: Mapping[int, np.ndarray], anchors: Sequence[int]) -> None:
        """Take slices made elsewhere over as they are: only the anchors become prompts, and nothing becomes stale.

        Parameters
        ----------
        slices : masks (rows, columns) bool by index along the segment's axis.
        anchors : indices of some of them, between which later corrections travel.
        """
        record = self._record(segment)
        self._interrupt()
        axis = self.segment_axis(segment)
        plane = self._plane(axis)
        with self._recording("take over", record) as recorder:
            new = replace(record.findings, axis=axis)
            for index, mask in slices.items():
                self.volume.slice_hu(axis, index)  # raises for a slice that is not there
                recorder.write(axis, index, mask)
                new = new.with_state(index, None)
            for index in anchors:
                drawn = np.array(slices[index], bool)  # a copy: the caller may go on with its own
                placed = PlacedPrompt(next(self._ids), index, np.zeros((0, 2)), np.zeros(0, int), drawn)
                new = new.asked(placed, axis)
                new = new.with_state(index, plane.decode_last(new, index))
            record.findings = new

    def give_up(self, segment: Segment, slices: Mapping[int, np.ndarray]) -> None:
        """Let a segment be as it is shown after others have taken voxels from it; its prompts and states stay.

        Parameters
        ----------
        slices : masks (rows, columns) bool by index along the segment's axis; those that are as they were may be there.
        """
        record = self._record(segment)
        self._interrupt()
        axis = self.segment_axis(segment)
        changed = {k: m for k, m in slices.items() if (record.slice_of(axis, k) != m).any()}
        if changed:
            with self._recording("give up", record) as recorder:
                for index, mask in changed.items():
                    recorder.write(axis, index, mask)

    def add_prompts(self, prompts: SegmentPrompts) -> Segment:
        """Add a segment with all its prompts, boxes first, as a prompt file lists them; one step of undo.

        Raises
        ------
        InputError
            As the prompts one by one; none of them is there then.
        """
        self._interrupt()
        with self.history.one_step(f"add {prompts.name}", self._records):
            segment = self.add_segment(prompts.name)
            # Along the axis a flat box lies in, before any click can settle on another.
            for box in sorted(prompts.boxes, key=lambda b: b.axis is None):
                self.place_box(segment, box)
            for point in prompts.points:
                self.place_point(segment, point)
        return segment

    def remove_prompt(self, segment: Segment, prompt: PlacedPrompt) -> None:
        """Remove a prompt; its slice shows what it would without it, its neighbours are propagated anew next time."""
        record = self._record(segment)
        # As it is now: removing one before it on its slice has answered it anew.
        now = next((p for p in record.findings.prompts if p.id == prompt.id), None)
        if now is None:
            raise InputError(f"The prompt is not one of {segment.name!r}; it may have been removed before.")
        prompt = now
        self._interrupt()
        old = record.findings
        axis, index = self.segment_axis(segment), prompt.index
        with self._recording("remove prompt", record) as recorder:
            if len(old.prompts) == 1:
                record.findings = Findings()
                for k in range(record.mask.shape[axis]):
                    recorder.clear(axis, k)
                return
            new, mask = self._plane(axis).answer_without(old, prompt)
            record.findings = new.outdated(old, index)
            recorder.write(axis, index, mask)
            if gives_way(old) and not gives_way(record.findings):
                self._hold_again(recorder, axis)

    def _hold_again(self, recorder: Recorder, axis: int) -> None:
        """Let prompted slices that have given way show again what their prompts give, and the others settle on that."""
        record = recorder.record
        findings, plane = record.findings, self._plane(axis)
        own = {k: s for k, s in findings.states.items() if not s.backed and record.slice_of(axis, k).any()}
        for k in set(own) & set(findings.conditioning):
            recorder.write(axis, k, plane.shown(findings, k, own[k]))
        record.findings = replace(findings, unsettled=findings.unsettled | set(own))

    # Propagation

    def propagate(
        self, segments: Sequence[Segment] | None = None, *, sharpen: bool = True, anew: bool = True
    ) -> Generator[Step, None, None]:
        """Carry segments from their prompted slices through the volume.

        Only what prompts have made stale is visited. The generator may be left at any time, or told to end with
        `cancel`: slices that are finished stay, the others are as they were. The next change of a prompt ends it, too;
        until it has ended, `confidence` does not tell of it. All of it is one step of undo.

        Parameters
        ----------
        segments : all that have prompts, if not given.
        sharpen : whether masks settle on the edges of the image in the end, if the engine's options allow it.
        anew : whether, as soon as three slices of a segment are prompted, all of it may settle anew and these slices
            with it; else only what is visited.

        Yields
        ------
        Step
            One for every visit of a slice by a segment; a slice between two prompted ones is visited from both sides.
        """
        self._interrupt()
        # A segment that is named twice is one segment.
        records = [self._record(s) for s in dict.fromkeys(self.segments if segments is None else segments)]
        fresh = not self.engine.options.only_changed
        chosen = [r for r in records if r.findings.prompts and (r.findings.stale or r.findings.unsettled or fresh)]
        recorders = [Recorder(f"propagate {r.handle.name}", r) for r in chosen]
        self._cancelled = False
        self._running = self._propagate(recorders, sharpen=sharpen, anew=anew)
        return self._running

    def _propagate(self, recorders: list[Recorder], *, sharpen: bool, anew: bool) -> Generator[Step, None, None]:
        options = replace(self.engine.options, sharpens=sharpen and self.engine.options.sharpens)
        planes = [self._plane(self.segment_axis(r.record.handle)) for r in recorders]
        run = Propagation([Job(r, plane, options, anew) for r, plane in zip(recorders, planes, strict=True)])
        try:
            for step in run.run():
                yield step
                if self._cancelled:
                    return
        finally:
            run.settle()
            with self.history.one_step("propagate", self._records):
                for recorder in recorders:
                    self.history.add(recorder.command())

    def cancel(self) -> None:
        """Ask a running propagation to end before its next slice; may be called from another thread."""
        self._cancelled = True

    def _interrupt(self) -> None:
        """End a propagation that was left half-way; its finished slices are kept."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    # Undo

    def undo(self) -> str | None:
        """Take the last change of prompts and masks back; returns what it was, or None if there is none."""
        self._interrupt()
        return self.history.undo(self._records)

    def redo(self) -> str | None:
        """Bring back what was undone last; returns what it was, or None if there is none."""
        self._interrupt()
        return self.history.redo(self._records)

    def nearest_slice(self, index_kji: np.ndarray, axis: int) -> int:
        """Give the slice a voxel position lies on; half a voxel belongs to the one above, as for a box."""
        return min(math.floor(float(index_kji[axis]) + 0.5), self.volume.shape_kji[axis] - 1)

    # Inside

    def _record(self, segment: Segment) -> SegmentRecord:
        record = self._records.get(segment.id)
        if record is None:
            raise InputError(f"The segment {segment.name!r} is not in this session; it may have been removed.")
        return record

    def _plane(self, axis: int) -> Plane:
        if axis not in self._planes:
            engine = self.engine
            self._planes[axis] = Plane(
                engine.model, self.volume, axis, self.window, engine.channels, engine.options, engine.refiner
            )
        return self._planes[axis]

    def _axis_for(self, record: SegmentRecord, box: BoxPrompt) -> int:
        settled = record.findings.axis
        if box.axis is None or box.axis == settled:
            return self.axis if settled is None else settled
        if settled is None:
            return box.axis
        raise InputError(
            f"The box for {record.handle.name!r} is flat in {_AXIS_WORDS[box.axis]}, but its other prompts are on "
            f"slices along {_AXIS_WORDS[settled]}; draw the box on one of those slices or add another segment."
        )

    def _place(self, record: SegmentRecord, axis: int, placed: PlacedPrompt, title: str) -> np.ndarray:
        self._interrupt()
        before = record.slice_of(axis, placed.index)
        kept, state, mask = self._plane(axis).answer(record.findings, placed, before)
        return self._take(record, record.findings.asked(kept, axis), state, mask, title)

    def _take(
        self, record: SegmentRecord, asked: Findings, state: SliceState, mask: np.ndarray, title: str
    ) -> np.ndarray:
        """Take findings with new prompts on one slice over, and the state and the mask that they have given it."""
        index = asked.prompts[-1].index
        with self._recording(title, record) as recorder:
            record.findings = asked.outdated(record.findings, index).with_state(index, state)
            recorder.write(self.segment_axis(record.handle), index, mask)
        return mask.copy()

    @contextmanager
    def _recording(self, title: str, record: SegmentRecord) -> Iterator[Recorder]:
        """Note a change for undo; if it fails half-way, nothing has changed."""
        recorder = Recorder(title, record)
        try:
            yield recorder
        except BaseException:
            recorder.restore()
            raise
        self.history.add(recorder.command())


def _in_plane(index_kji: np.ndarray, axis: int) -> np.ndarray:
    """Give the (1, 2) position (row, column) of a voxel position on its slice along an axis."""
    return np.delete(index_kji, axis)[None]
