"""What the scene's segments are known to hold, and what the user's steps changed in them.

Slices are kept as compressed bits: a segment of hundreds of slices takes some hundred kilobytes, and two slices are
equal if their bytes are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.mrml.gestures import Gesture

EMPTY = b""
"""How an empty slice is kept."""

STEPS = 200
"""Steps of undo that are kept."""


def packed(mask: NDArray[np.bool_]) -> bytes:
    """Compress a slice, bool (rows, columns)."""
    return zlib.compress(np.packbits(mask).tobytes(), 1) if mask.any() else EMPTY


def unpacked(bits: bytes, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Bring back what `packed` has compressed."""
    if not bits:
        return np.zeros(shape, bool)
    flat = np.frombuffer(zlib.decompress(bits), np.uint8)
    return np.unpackbits(flat, count=shape[0] * shape[1]).astype(bool).reshape(shape)


@dataclass(frozen=True)
class Entry:
    """One slice of one segment that a step has changed.

    Attributes
    ----------
    segment_id, axis, index : which.
    before, after : its voxels, `packed`.
    """

    segment_id: str
    axis: int
    index: int
    before: bytes
    after: bytes


@dataclass
class KnownMask:
    """The voxels of one segment as we know them.

    Attributes
    ----------
    axis : array axis along which they are sliced.
    slices : by index, `packed`; those that are not there are empty.
    """

    axis: int
    slices: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, slices: Iterable[tuple[int, NDArray[np.bool_]]], axis: int) -> KnownMask:
        """Take slices, each with its index and bool (rows, columns), along an axis."""
        return cls(axis, {index: packed(mask) for index, mask in slices if mask.any()})

    def put(self, index: int, bits: bytes) -> None:
        """Replace a slice."""
        self.slices.pop(index, None)
        if bits:
            self.slices[index] = bits

    def changed_in(self, other: KnownMask) -> list[int]:
        """Slices that differ from another mask along the same axis, from low to high."""
        indices = self.slices.keys() | other.slices.keys()
        return sorted(k for k in indices if self.slices.get(k, EMPTY) != other.slices.get(k, EMPTY))

    def along(self, axis: int, shape_kji: tuple[int, int, int]) -> KnownMask:
        """Slice the same voxels along an array axis of a volume of that shape."""
        if axis == self.axis:
            return self
        voxels = np.zeros(shape_kji, bool)
        for index, bits in self.slices.items():
            mask = np.moveaxis(voxels, self.axis, 0)[index]
            mask[...] = unpacked(bits, mask.shape)
        return KnownMask.of(enumerate(np.moveaxis(voxels, axis, 0)), axis)

    def copy(self) -> KnownMask:
        """Copy the list of slices, not their bytes."""
        return KnownMask(self.axis, dict(self.slices))


@dataclass(frozen=True)
class Mark:
    """A place in the history of an engine's session, to come back to.

    Attributes
    ----------
    era : the session from one beginning to the next; equal to nothing but itself.
    number : of the step, see `History.newest`.
    """

    era: object
    number: int


NOWHERE = Mark(object(), 0)
"""A place that no engine can come back to."""


@dataclass(eq=False)
class Step:
    """One step of the user.

    Attributes
    ----------
    title : for the menu.
    mark_before, mark_after : the engine's history before and after it; set by the engine's thread, None until then.
    prompts : by segment id, those that it has changed, as they were before and after it.
    unfinished : see `Journal`, on the other side of it: before it while it is done, after it while it is undone.
    """

    title: str
    mark_before: Mark | None = None
    mark_after: Mark | None = None
    entries: dict[tuple[str, int, int], Entry] = field(default_factory=dict)
    prompts: dict[str, tuple[tuple[Gesture, ...], tuple[Gesture, ...]]] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()

    def add(self, entry: Entry) -> None:
        """Note a changed slice; one that changes twice keeps what it was at first."""
        key = (entry.segment_id, entry.axis, entry.index)
        first = self.entries.get(key)
        before = entry.before if first is None else first.before
        self.entries[key] = Entry(entry.segment_id, entry.axis, entry.index, before, entry.after)

    def note_prompts(self, segment_id: str, before: tuple[Gesture, ...], after: tuple[Gesture, ...]) -> None:
        """Note that the prompts of a segment have changed; those that change twice keep what they were at first."""
        first = self.prompts.pop(segment_id, (before, after))[0]
        if set(first) != set(after):
            self.prompts[segment_id] = (first, after)

    def forget(self, segment_id: str) -> None:
        """Forget what it has changed in a segment that is gone."""
        self.entries = {key: entry for key, entry in self.entries.items() if entry.segment_id != segment_id}
        self.prompts.pop(segment_id, None)

    @property
    def empty(self) -> bool:
        """Whether it has changed neither voxels nor prompts."""
        return not self.changed and not self.prompts

    @property
    def changed(self) -> list[Entry]:
        """The slices that are not what they were."""
        return [entry for entry in self.entries.values() if entry.before != entry.after]


@dataclass
class Journal:
    """Steps that can be taken back, and those that can be brought back.

    Attributes
    ----------
    unfinished : segments whose propagation was interrupted, or runs; turned with the steps.
    unanswered : steps whose prompts the engine has yet to answer.
    """

    done: list[Step] = field(default_factory=list)
    undone: list[Step] = field(default_factory=list)
    unfinished: frozenset[str] = frozenset()
    unanswered: set[Step] = field(default_factory=set)
    _replaced: tuple[Step | None, tuple[Step, ...]] = (None, ())

    def begin(self, title: str) -> Step:
        """Open a step; what was undone before is forgotten, and so is the oldest of too many."""
        step = Step(title, unfinished=self.unfinished)
        self._replaced = step, tuple(self.undone)
        self.done.append(step)
        self.undone.clear()
        del self.done[: max(0, len(self.done) - STEPS)]
        return step

    def ask(self, step: Step, segment_id: str, before: tuple[Gesture, ...], after: tuple[Gesture, ...]) -> None:
        """Note prompts of a step that the engine has yet to answer; whoever has its answer discards the step there."""
        step.note_prompts(segment_id, before, after)
        self.unanswered.add(step)

    def refuse(self, step: Step, segment_id: str) -> None:
        """Forget a step whose prompts in a segment cannot be used, and that the segment was to be propagated for it."""
        self.drop(step)
        self.unfinished -= {segment_id} - step.unfinished

    def drop(self, step: Step) -> None:
        """Forget a step that came to nothing."""
        for steps in (self.done, self.undone):
            if step in steps:
                steps.remove(step)

    def withdraw(self, step: Step) -> None:
        """Forget a step that has changed nothing; what was undone before it can be brought back as if it never was."""
        latest = self.done[-1:] == [step] and not self.undone
        self.drop(step)
        begun, replaced = self._replaced
        if latest and begun is step and step.mark_before == step.mark_after:
            self.undone[:] = replaced

    def forget(self, segment_id: str) -> list[Step]:
        """Forget a segment that is gone; returns the steps that were about nothing else, for `drop`."""
        self._replaced = (None, ())
        full = [step for step in (*self.done, *self.undone) if not step.empty]
        for step in full:
            step.forget(segment_id)
        return [step for step in full if step.empty]

    def owes(self, segment_id: str) -> bool:
        """Whether prompts of a segment have yet to be answered."""
        return any(segment_id in step.prompts for step in self.unanswered)

    def inherit(self, other: Journal) -> dict[str, tuple[Gesture, ...]]:
        """Take over the steps of a workspace that has ended, whose engine can no longer come back to them.

        Returns
        -------
        The prompts of segments, as they were before some came that have not been answered: those have to be asked for
        anew, and their steps are left out.
        """
        lost = [step for step in other.done if step in other.unanswered and not step.changed]
        self.done[:], self.undone[:] = [step for step in other.done if step not in lost], other.undone
        for step in [*self.done, *self.undone]:
            step.mark_before = step.mark_after = NOWHERE
            step.unfinished = frozenset()  # another engine takes what is there for finished
        prompts = ((key, before) for step in reversed(lost) for key, (before, _after) in step.prompts.items())
        return dict(prompts)  # the earliest step has the last word

    def turn(self, count: int, *, back: bool) -> list[Step]:
        """Move steps to the other side; returns them in the order in which they were passed."""
        source, target = (self.done, self.undone) if back else (self.undone, self.done)
        steps = [source.pop() for _number in range(count)]
        for step in steps:
            step.unfinished, self.unfinished = self.unfinished, step.unfinished
        target.extend(steps)
        return steps

    def back_to(self, known: dict[str, KnownMask], found: dict[str, KnownMask]) -> int:
        """Tell how many steps back the segments were as they have been found now; 0 if they never were.

        That is how an undo in the Segment Editor is recognised.
        """
        return _count_to(self.done, known, found, lambda entry: entry.before)

    def forward_to(self, known: dict[str, KnownMask], found: dict[str, KnownMask]) -> int:
        """Tell how many undone steps ahead the segments were as they have been found now; 0 if they never were."""
        return _count_to(self.undone, known, found, lambda entry: entry.after)


def _count_to(
    steps: Sequence[Step],
    known: dict[str, KnownMask],
    found: dict[str, KnownMask],
    slice_of: Callable[[Entry], bytes],
) -> int:
    """Count the steps, from the last one, after which the known masks are the found ones; 0 if they never are."""
    then = {segment_id: mask.copy() for segment_id, mask in known.items()}
    for count, step in enumerate(reversed(steps), 1):
        for entry in step.changed:
            mask = then.get(entry.segment_id)
            if mask is None or mask.axis != entry.axis:
                return 0
            mask.put(entry.index, slice_of(entry))
        if step.changed and _equal(then, found):
            return count
    return 0


def _equal(one: dict[str, KnownMask], other: dict[str, KnownMask]) -> bool:
    return all(other[key].slices == mask.slices for key, mask in one.items() if key in other)


def reverse(entries: Iterable[Entry]) -> list[Entry]:
    """Swap before and after."""
    return [Entry(e.segment_id, e.axis, e.index, e.after, e.before) for e in entries]
