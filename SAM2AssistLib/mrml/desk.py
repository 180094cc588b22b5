"""The worker's side of a workspace: one session, spoken to in the scene's words.

Everything here runs in the engine's thread (`engine.worker`), and nothing here knows the scene. What the scene has to
learn is yielded as patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.engine.worker import Leave
from SAM2AssistLib.mrml.edits import along_own, take_edited
from SAM2AssistLib.mrml.gestures import Gesture, gesture_of
from SAM2AssistLib.mrml.journal import KnownMask, Mark, packed, unpacked
from SAM2AssistLib.mrml.words import free_name, translator
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine
    from SAM2AssistLib.engine.segment import PlacedPrompt, Segment
    from SAM2AssistLib.engine.session import Session

_ = translator(__file__)


@dataclass(frozen=True, eq=False)
class Patch:
    """A slice of a segment as it is now.

    Attributes
    ----------
    segment_id : of the segmentation node's segment.
    axis, index : the slice, along the array axis (0 = k, 1 = j, 2 = i).
    mask : (rows, columns) bool.
    """

    segment_id: str
    axis: int
    index: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Progress:
    """Slices visited, and those that will have been at most; `title` says of what, if not of the task itself."""

    done: int
    total: int
    title: str = ""


@dataclass(frozen=True)
class Note:
    """Something the user should read."""

    sentence: str


@dataclass(frozen=True, eq=False)
class Confidence:
    """How sure the engine is of a segment.

    Attributes
    ----------
    segment_id, axis : which, and along which array axis its slices are counted.
    values : (slices,) from 0 to 1; NaN where it has not been.
    prompted : indices of the slices with a prompt.
    """

    segment_id: str
    axis: int
    values: NDArray[np.float32]
    prompted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Standing:
    """Where the engine stands after undo and redo.

    Attributes
    ----------
    gestures : the prompts of every segment.
    held : segments that the engine knows; it is shown the others when they are worked on.
    """

    gestures: Mapping[str, tuple[Gesture, ...]]
    held: frozenset[str]


@dataclass(frozen=True)
class Verdicts:
    """Which classes Auto-Segment has found."""

    present: Mapping[str, bool]


class Desk:
    """A session whose segments are known by the ids of a segmentation node.

    Parameters
    ----------
    volume : in the coordinates of the gestures.
    axis : array axis along which segments are propagated.
    engine : makes or finds the engine; called in the worker's thread when the first prompt comes.
    read : gives the volume with its voxels, in the worker's thread, too.
    """

    def __init__(self, volume: CTVolume, axis: int, engine: Callable[[], Engine], read: Callable[[], CTVolume]) -> None:
        self.volume, self.axis = volume, axis
        self._engine, self._read = engine, read
        self._session: Session | None = None
        self._segments: dict[str, Segment] = {}
        self._gesture_of: dict[int, Gesture] = {}
        self._settled: dict[str, tuple[Gesture, ...]] = {}
        self._shown: set[tuple[str, int, int]] = set()
        self._era = object()

    @property
    def session(self) -> Session:
        """The session; the first use reads the volume and loads the engine, which may fail as `load_engine` does."""
        if self._session is None:
            self.volume = self._read()
            self._session = self._engine().open(self.volume, axis=self.axis)
        return self._session

    @property
    def mark(self) -> Mark:
        """The place in the engine's history, to come back to with `undo_to`."""
        return Mark(self._era, 0 if self._session is None else self._session.history.newest)

    def close(self) -> None:
        """Free what the session holds, masks of the volume's size too: whoever held this desk may take long to go."""
        if self._session is not None:
            self._session.close()
            self._session = None
            self._segments.clear()

    def begin(self) -> Iterator[Progress | Note]:
        """Read the volume and load the engine, saying so, if that is still to be done; fails as `session` does."""
        if self._session is not None:
            return
        known = self.volume.warnings
        yield Progress(0, 1, _("load the model"))
        session = self.session
        yield Progress(1, 1, _("load the model"))
        for sentence in session.volume.warnings:
            if sentence not in known:
                yield Note(sentence)

    # What the user does

    def warm_up(self, index: int) -> Iterator[Progress | Note]:
        """Load the engine and look at the slice in view, so that the first click is as quick as any other."""
        yield from self.begin()
        for step in self.session.encode_ahead(index):
            yield Progress(step.done, step.total)

    def sync(
        self, segment_id: str, name: str, wanted: Sequence[Gesture], before: Sequence[Gesture] = ()
    ) -> Iterator[Patch | Confidence | Progress | Note]:
        """Bring a segment's prompts in line with what the scene shows: what went is removed, what came is placed.

        Parameters
        ----------
        wanted, before : what it shows, and what it did before; others were found since, by Auto-Segment, and stay.

        Raises
        ------
        InputError
            If a prompt cannot be used; then nothing has changed.
        """
        yield from self.begin()
        mark, settled = self.mark, self._settled.get(segment_id, ())
        try:
            segment = self._segment(segment_id, name)
            kept = self._take_away(segment_id, segment, [gesture for gesture in before if gesture not in wanted])
            present = self._gestures(segment_id, segment)
            for gesture in wanted:
                if gesture not in present:
                    self._place(segment, gesture)
        except BaseException:
            self._take_back(mark)
            self._settled[segment_id] = settled
            raise
        yield from self._patches(mark, {})
        yield self._confidence(segment_id)
        if kept:
            yield Note(
                _(
                    "What that prompt had found in {name} stays: an earlier session or another model has answered it. "
                    "Undo brings the prompt back; a negative click or the eraser takes away what is too much."
                ).format(name=name)
            )

    def propagate(
        self, segment_ids: Sequence[str] | None = None, *, anew: bool = True
    ) -> Iterator[Patch | Progress | Confidence | Note]:
        """Carry segments from their prompted slices through the volume, slice by slice; may be left at any time.

        Parameters
        ----------
        anew : see `Session.propagate`.
        """
        yield from self.begin()
        session, mark = self.session, self.mark
        known = {segment.id: key for key, segment in self._present().items()}
        chosen = [s for key, s in self._present().items() if segment_ids is None or key in segment_ids]
        sent: dict[tuple[int, int, int], bytes] = {}
        # Left half-way, what is finished is a step of undo at once, and told: several slices are finished together.
        with suppress(Leave), closing(session.propagate(chosen, anew=anew)) as steps:
            for step in steps:
                patch = self._patch(known[step.segment.id], step.segment, step.axis, step.index)
                sent[step.segment.id, step.axis, step.index] = packed(patch.mask)
                yield patch
                yield Progress(step.done, step.total)
        yield from self._patches(mark, sent)
        for segment in chosen:
            yield self._confidence(known[segment.id])

    def auto(
        self, wanted: Mapping[str, str], adapter: str | None, cases: Sequence[str]
    ) -> Iterator[Patch | Progress | Confidence | Standing | Verdicts | Note]:
        """Find classes without prompts.

        Parameters
        ----------
        wanted : segment ids by class name.
        adapter : folder of an adapter; None for the embedded one, or for none where there are cases.
        cases : names in the support library.

        Raises
        ------
        SAM2AssistError
            As `auto_segment` does.
        """
        from SAM2AssistLib.prompting.auto import auto_segment
        from SAM2AssistLib.prompting.support_library import SupportLibrary

        yield from self.begin()
        session, mark = self.session, self.mark
        ids = {name.strip(): segment_id for name, segment_id in wanted.items()}  # as the session names segments
        for key, segment in self._present().items():
            if segment.name in ids:  # it was called so once, or it has been emptied
                self._segments[key] = session.rename_segment(segment, f"{key} {segment.id}")
        library, support = SupportLibrary(), []
        for case in cases:
            for step in library.preparing(session.engine, case, session.window):
                if isinstance(step, tuple):
                    yield Progress(*step, _("look at {case}").format(case=case))
                else:
                    support.append(step)
                    yield from map(Note, step.notes)
        found_by = auto_segment(session, adapter=adapter, support=support, classes=list(wanted))
        with suppress(Leave), closing(found_by):
            for found in found_by:
                yield Progress(found.done, found.total)
                if found.segment is not None:
                    segment_id = ids[found.segment.name]
                    self._segments[segment_id] = found.segment
                    if found.axis is not None and found.index is not None:
                        yield self._patch(segment_id, found.segment, found.axis, found.index)
                if found.verdicts:
                    yield Verdicts({verdict.name: verdict.present for verdict in found.verdicts})
        yield from self._patches(mark, {})
        yield self._standing()
        for segment_id in wanted.values():
            if segment_id in self._present():
                yield self._confidence(segment_id)

    def meet(self, segment_id: str, name: str, held: KnownMask) -> Iterator[Confidence | Progress | Note]:
        """Take a segment over as it is before it is worked on, unless the engine knows it.

        That is no step of undo: the segment was there before what is undone.

        Parameters
        ----------
        held : its voxels.
        """
        if segment_id in self._present() or not held.slices:
            return
        yield from self.begin()
        held = held.along(self.axis, self.volume.shape_kji)
        shape = tuple(n for axis, n in enumerate(self.volume.shape_kji) if axis != held.axis)
        slices = {index: unpacked(bits, shape) for index, bits in sorted(held.slices.items())}  # type: ignore[arg-type]
        try:
            with self.session.aside():
                reports = list(self.take_edit(segment_id, name, held.axis, slices))
        except BaseException:
            self.session.forget_segment(self._segments.pop(segment_id))
            raise
        yield from reports

    def take_edit(
        self, segment_id: str, name: str, axis: int, slices: Mapping[int, NDArray[np.bool_]]
    ) -> Iterator[Confidence | Progress | Note]:
        """Take slices that somebody else has changed as prompts.

        Parameters
        ----------
        axis : along which they are.
        slices : masks by index.
        """
        yield from self.begin()
        take_edited(self.session, self._segment(segment_id, name), axis, slices)
        yield self._confidence(segment_id)

    def give_up(self, segment_id: str, axis: int, slices: Mapping[int, NDArray[np.bool_]]) -> None:
        """Note what others have left of slices of a segment, if the engine knows it; see `take_edit`."""
        segment = self._present().get(segment_id)
        if segment is not None:
            self.session.give_up(segment, along_own(self.session, segment, axis, slices))

    def settle(self, segment_id: str, gestures: Sequence[Gesture]) -> None:
        """Note prompts of an earlier session, whose result the segment already holds."""
        self._settled[segment_id] = tuple(gestures)

    def remove(self, segment_id: str) -> None:
        """Forget a segment that has been deleted; undo does not bring it back here, for it does not in the scene."""
        self._settled.pop(segment_id, None)
        segment = self._segments.pop(segment_id, None)
        if segment is not None:
            self.session.forget_segment(segment)

    def undo_to(self, mark: Mark, prompts: Mapping[str, Sequence[Gesture]]) -> Iterator[Standing | Confidence]:
        """Take back what was done after a mark.

        Parameters
        ----------
        mark : that of another engine, or one that has left the history, costs the engine what it knows of all
            segments; it is shown them anew.
        prompts : of those segments whose prompts change, as they are then.
        """
        if self._reaches(mark):
            self._take_back(mark)
        else:
            self._begin_anew()
        yield from self._as_it_stands(prompts)

    def redo_to(self, mark: Mark, prompts: Mapping[str, Sequence[Gesture]]) -> Iterator[Standing | Confidence]:
        """Bring back what was undone, up to a mark; see `undo_to`."""
        if self._reaches(mark):
            history = None if self._session is None else self._session.history
            while history is not None and (following := history.next_redo) and following <= mark.number:
                self.session.redo()
        else:
            self._begin_anew()
        yield from self._as_it_stands(prompts)

    # What the user asks

    def preview(self, segment_id: str, gesture: Gesture, *, held: bool = False) -> Patch | None:
        """Tell what a click would give on its slice, changing nothing; None if the engine is not ready for that.

        Parameters
        ----------
        held : whether the segment holds voxels, of which the engine may not know yet.
        """
        segment = self._present().get(segment_id)
        if self._session is None or (held and segment is None):
            return None
        (point,) = gesture.prompts(self.volume, self.axis)
        assert isinstance(point, PointPrompt)
        axis = self._session.segment_axis(segment) if segment is not None else self.axis
        mask = self._session.preview_point(segment, point)
        index = self._session.nearest_slice(np.array(point.index_ijk[::-1]), axis)
        return None if mask is None else Patch(segment_id, axis, index, mask)

    def next_doubtful_slice(self) -> tuple[str, int, int] | None:
        """Return segment id, axis and index of the slice the engine is least sure of; asked again, of the next one.

        None once there are no more; then it begins anew.
        """
        if self._session is None:
            return None
        by_number = {segment.id: key for key, segment in self._present().items()}
        for slot in self._session.doubtful_slices():
            place = (by_number.get(slot.segment.id, ""), slot.axis, slot.index)
            if place[0] and place not in self._shown:
                self._shown.add(place)
                return place
        self._shown.clear()
        return None

    # Inside

    def _present(self) -> dict[str, Segment]:
        """The segments that the session holds now; undo may have taken one out."""
        if self._session is None:
            return {}
        held = set(self._session.segments)
        return {key: segment for key, segment in self._segments.items() if segment in held}

    def _segment(self, segment_id: str, name: str) -> Segment:
        found = self._present().get(segment_id)
        if found is not None:
            return found
        taken = {segment.name for segment in self.session.segments}
        own = name.strip()
        if not own or own in taken:
            own = free_name(segment_id, taken)  # a copy may be called as its original's id is
        self._segments[segment_id] = self.session.add_segment(own)
        return self._segments[segment_id]

    def _gestures(self, segment_id: str, segment: Segment) -> tuple[Gesture, ...]:
        """The gestures that a segment's prompts come from, in order, each once."""
        return tuple(dict.fromkeys((*self._settled.get(segment_id, ()), *self._placed(segment))))

    def _placed(self, segment: Segment) -> list[Gesture]:
        """The gestures that this engine has been given."""
        axis, found = self.session.segment_axis(segment), []
        for prompt in self.session.prompts(segment):
            gesture = self._gesture_of.get(prompt.id) or gesture_of(prompt, axis, self.volume)
            if gesture is not None:
                self._gesture_of[prompt.id] = gesture
                found.append(gesture)
        return found

    def _take_away(self, segment_id: str, segment: Segment, unwanted: Sequence[Gesture]) -> bool:
        """Remove prompts that are not wanted; tells whether one was answered elsewhere, so its mask stays."""
        settled = self._settled.get(segment_id, ())
        self._settled[segment_id] = tuple(g for g in settled if g not in unwanted)
        for prompt in self.session.prompts(segment):
            if self._gesture_of.get(prompt.id) in unwanted:
                self.session.remove_prompt(segment, prompt)
        return self._settled[segment_id] != settled

    def _place(self, segment: Segment, gesture: Gesture) -> None:
        session = self.session
        before = {prompt.id for prompt in session.prompts(segment)}
        for prompt in gesture.prompts(self.volume, session.segment_axis(segment)):
            if isinstance(prompt, BoxPrompt):
                session.place_box(segment, prompt)
            else:
                session.place_point(segment, prompt)
        new: list[PlacedPrompt] = [p for p in session.prompts(segment) if p.id not in before]
        self._gesture_of.update({prompt.id: gesture for prompt in new})

    def _patches(self, mark: Mark, sent: Mapping[tuple[int, int, int], bytes]) -> Iterator[Patch]:
        """Yield the slices that changed after a mark, unless they were sent as they are now."""
        by_number = {segment.id: (key, segment) for key, segment in self._present().items()}
        for place in sorted(self.session.history.changed_since(mark.number) | set(sent)):
            number, axis, index = place
            if number in by_number:
                patch = self._patch(*by_number[number], axis, index)
                if sent.get(place) != packed(patch.mask):
                    yield patch

    def _patch(self, segment_id: str, segment: Segment, axis: int, index: int) -> Patch:
        mask = self.session.mask_view(segment)
        return Patch(segment_id, axis, index, np.take(mask, index, axis))

    def _confidence(self, segment_id: str) -> Confidence:
        segment = self._segments[segment_id]
        axis = self.session.segment_axis(segment)
        values = np.full(self.volume.shape_kji[axis], np.nan, np.float32)
        told = self.session.confidence(segment)
        if isinstance(told, Mapping):
            values[list(told)] = list(told.values())
        else:
            values[:] = told
        prompted = sorted({prompt.index for prompt in self.session.prompts(segment)})
        return Confidence(segment_id, axis, values, tuple(prompted))

    def _reaches(self, mark: Mark) -> bool:
        """Whether the engine can come back to a mark."""
        oldest = 0 if self._session is None else self._session.history.oldest
        return mark.era is self._era and mark.number >= oldest

    def _take_back(self, mark: Mark) -> None:
        history = None if self._session is None else self._session.history
        while history is not None and history.newest > max(mark.number, history.oldest):
            self.session.undo()

    def _begin_anew(self) -> None:
        """Forget all segments but for their prompts, and all marks."""
        self._settled.update({key: self._gestures(key, segment) for key, segment in self._present().items()})
        for segment in self._segments.values():
            self.session.forget_segment(segment)
        self._segments.clear()
        self._era = object()

    def _as_it_stands(self, prompts: Mapping[str, Sequence[Gesture]]) -> Iterator[Standing | Confidence]:
        present = self._present()
        for segment_id, gestures in prompts.items():
            placed = self._placed(present[segment_id]) if segment_id in present else []
            self.settle(segment_id, [gesture for gesture in gestures if gesture not in placed])
        yield self._standing()
        for segment_id in present:
            yield self._confidence(segment_id)

    def _standing(self) -> Standing:
        gestures = {key: self._gestures(key, segment) for key, segment in self._present().items()}
        return Standing({**self._settled, **gestures}, frozenset(gestures))
