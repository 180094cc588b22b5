"""Undo and redo: commands that change prompts and masks together.

A command holds what a segment's findings were and are (shared, not copied) and which pixels of its mask changed,
packed to bits and compressed within their bounding box. Applying the same pixels twice restores the mask, so one delta
serves both ways.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.segment import Findings, PlacedPrompt, SegmentRecord


@dataclass(frozen=True)
class SliceDelta:
    """The pixels of one mask slice that changed: a bounding box, and bits within it, compressed."""

    axis: int
    index: int
    row: int
    column: int
    shape: tuple[int, int]
    bits: bytes

    @classmethod
    def between(cls, axis: int, index: int, before: np.ndarray, after: np.ndarray) -> SliceDelta | None:
        """Compare two masks of a slice; None if they are equal."""
        changed = before ^ after
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        if not len(rows):
            return None
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(axis, index, int(rows[0]), int(columns[0]), box.shape, zlib.compress(np.packbits(box).tobytes(), 1))

    def apply(self, record: SegmentRecord) -> None:
        """Flip the pixels in the segment's mask."""
        count = self.shape[0] * self.shape[1]
        packed = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        box = np.unpackbits(packed, count=count).astype(bool).reshape(self.shape)
        target = record.slice_of(self.axis, self.index)
        target[self.row : self.row + self.shape[0], self.column : self.column + self.shape[1]] ^= box


@dataclass(frozen=True)
class Command:
    """One step of the user: a segment as it was and as it became.

    Attributes
    ----------
    title : for the menu, such as "add point".
    segment : its id.
    before, after : findings; None where the segment did not exist.
    deltas : of the mask.
    record : the segment, kept so that a removed one can come back as it was.
    step : number of the step of undo that it belongs to; several commands can make one step.
    """

    title: str
    segment: int
    before: Findings | None
    after: Findings | None
    deltas: tuple[SliceDelta, ...]
    record: SegmentRecord
    step: int = 0

    @cached_property
    def size_bytes(self) -> int:
        """Bytes that only this command keeps: its deltas, and the states and prompts that it has replaced."""
        total = sum(len(d.bits) for d in self.deltas)
        if self.before is None:
            return total
        kept = set() if self.after is None else {id(held) for held in _held_by(self.after)}
        total += sum(held.size_bytes for held in _held_by(self.before) if id(held) not in kept)
        return total + (self.record.mask.nbytes if self.after is None else 0)


def _held_by(findings: Findings) -> list[SliceState | PlacedPrompt]:
    """List what of findings takes memory, each once."""
    bases = [state for state in findings.bases.values() if state is not None]
    held: list[SliceState | PlacedPrompt] = [*findings.states.values(), *bases, *findings.prompts]
    return list({id(item): item for item in held}.values())


class Recorder:
    """Collects what happens to one segment between two points in time."""

    def __init__(self, title: str, record: SegmentRecord) -> None:
        self.title, self.record = title, record
        self.before = record.findings
        self._slices: dict[tuple[int, int], bytes] = {}

    def write(self, axis: int, index: int, mask: np.ndarray) -> None:
        """Replace one slice of the mask, remembering what it was at first."""
        target = self.record.slice_of(axis, index)
        if (axis, index) not in self._slices:
            self._slices[axis, index] = np.packbits(target).tobytes()
        target[...] = mask

    def clear(self, axis: int, index: int) -> None:
        """Empty one slice of the mask; one that is empty is not even touched, which keeps its memory unclaimed."""
        if self.record.slice_of(axis, index).any():
            self.write(axis, index, np.zeros((1, 1), bool))

    def restore(self) -> None:
        """Put everything back as it was at the start."""
        for axis, index in self._slices:
            self.record.slice_of(axis, index)[...] = self._before(axis, index)
        self.record.findings = self.before

    def command(self) -> Command:
        """Return what happened since the start."""
        found = (
            SliceDelta.between(axis, index, self._before(axis, index), self.record.slice_of(axis, index))
            for axis, index in self._slices
        )
        deltas = tuple(delta for delta in found if delta is not None)
        return Command(self.title, self.record.handle.id, self.before, self.record.findings, deltas, self.record)

    def _before(self, axis: int, index: int) -> np.ndarray:
        shape = self.record.slice_of(axis, index).shape
        packed = np.frombuffer(self._slices[axis, index], np.uint8)
        return np.unpackbits(packed, count=shape[0] * shape[1]).astype(bool).reshape(shape)


@dataclass
class Attempt:
    """Something that is tried out; see `Session.attempt`."""

    kept: bool = False

    def keep(self) -> None:
        """Let it stand."""
        self.kept = True


@dataclass
class History:
    """The commands of a session.

    Attributes
    ----------
    budget_bytes : of all commands; the oldest steps leave first, the last one never.
    """

    budget_bytes: int = 512 << 20
    _done: list[Command] = field(default_factory=list)
    _undone: list[Command] = field(default_factory=list)
    _step: int = 0
    _oldest: int = 0
    _title: str | None = None
    _aside: bool = False
    _joining: int | None = None

    @property
    def newest(self) -> int:
        """Number of the last step that is done, 0 for none; numbers only grow, so it marks a place to come back to."""
        return self._done[-1].step if self._done else self._oldest

    @property
    def oldest(self) -> int:
        """The lowest mark (see `newest`) that undo can come back to; what was done before it has left the budget."""
        return self._oldest

    @property
    def next_redo(self) -> int | None:
        """Number of the step that `redo` would bring back; None if there is none."""
        return self._undone[-1].step if self._undone else None

    def changed_since(self, mark: int) -> set[tuple[int, int, int]]:
        """List the slices (segment id, axis, index) whose mask the steps after a mark (see `newest`) have changed."""
        recent = (command for command in self._done if command.step > mark)
        return {(command.segment, delta.axis, delta.index) for command in recent for delta in command.deltas}

    def add(self, command: Command) -> None:
        """Note a command that has just been carried out; what was undone before can no longer be redone.

        One that has changed nothing is no step.
        """
        if self._aside or (command.before is command.after and not command.deltas):
            return
        if self._title is None:
            self._step += 1
        self._done.append(replace(command, step=self._step, title=self._title or command.title))
        self._undone.clear()
        excess = sum(c.size_bytes for c in self._done) - self.budget_bytes
        last = self._step - 1 if self._joining is None else self._joining
        while excess > 0 and self._done[0].step <= last:
            self._oldest = self._done[0].step
            while self._done[0].step == self._oldest:  # half a step could not be undone
                excess -= self._done.pop(0).size_bytes

    @contextmanager
    def one_step(self, title: str, records: dict[int, SegmentRecord]) -> Iterator[None]:
        """Let all commands of the block be undone together; if it fails, they are undone at once and forgotten."""
        if self._title is not None:
            yield
            return
        self._step += 1
        self._title = title
        undone = self._undone[:]
        try:
            yield
        except BaseException:
            self._back(records, self._step)
            self._undone = undone
            raise
        finally:
            self._title = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let what is done in the block be no step: undo leaves it alone, and what was undone can still be redone.

        Only for a segment that no command is about: a delta holds for the mask that it was made on.
        """
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def forget(self, segment: int) -> None:
        """Forget all that was done and undone to a segment, by its id: it is gone for good."""
        self._done = [command for command in self._done if command.segment != segment]
        self._undone = [command for command in self._undone if command.segment != segment]

    @contextmanager
    def joined(self, title: str) -> Iterator[None]:
        """Make one step of all the steps of the block, however it ends; till then none of them leaves the budget."""
        mark = self._joining = self.newest
        try:
            yield
        finally:
            self._joining = None
            self._done = [c if c.step <= mark else replace(c, step=mark + 1, title=title) for c in self._done]

    def take_back(self, mark: int, records: dict[int, SegmentRecord]) -> None:
        """Undo all steps after a mark (see `newest`) and forget them, as if they had never been tried."""
        if self.newest <= mark:
            return
        while self._done and self._done[-1].step > mark:
            self._back(records, self._done[-1].step)
        self._undone.clear()

    def undo(self, records: dict[int, SegmentRecord]) -> str | None:
        """Take the last step back; returns its title, or None if there is none."""
        if not self._done:
            return None
        title = self._done[-1].title
        self._back(records, self._done[-1].step)
        return title

    def redo(self, records: dict[int, SegmentRecord]) -> str | None:
        """Carry the last undone step out again; returns its title, or None if there is none."""
        if not self._undone:
            return None
        step, title = self._undone[-1].step, self._undone[-1].title
        while self._undone and self._undone[-1].step == step:
            command = self._undone.pop()
            self._done.append(command)
            _turn(records, command, command.after)
        return title

    def _back(self, records: dict[int, SegmentRecord], step: int) -> None:
        while self._done and self._done[-1].step == step:
            command = self._done.pop()
            self._undone.append(command)
            _turn(records, command, command.before)


def _turn(records: dict[int, SegmentRecord], command: Command, findings: Findings | None) -> None:
    record = command.record
    if findings is None:
        records.pop(command.segment, None)
        return
    records[command.segment] = record
    record.findings = findings
    for delta in command.deltas:
        delta.apply(record)
