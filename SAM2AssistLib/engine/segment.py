"""A segment in a session: its prompts, what the network made of them, and its mask."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.errors import InputError

NO_LIMITS = (-1, sys.maxsize)


@dataclass(frozen=True)
class Segment:
    """A handle to a segment of a session.

    Attributes
    ----------
    id : unique in its session.
    name : as the user calls it.
    """

    id: int
    name: str


@dataclass(frozen=True, eq=False)
class PlacedPrompt:
    """A prompt on a slice, in pixels (row, column) of that slice.

    Attributes
    ----------
    id : unique in its session.
    index : of the slice.
    points : (1, 2) position of a click, or (2, 2) corners of a box, or (0, 2) for a mask.
    labels : SAM2's: 1 positive, 0 negative, 2 and 3 box corners.
    mask : (rows, columns) bool, the slice as it is after the prompt, of what was drawn or has corrected what was shown;
        else None.
    before : (rows, columns) bool, what it found shown there; None on a slice that nothing was known of.
    reach : first and last slice of a box in three dimensions, else None.
    is_guess : whether nobody has drawn it: its reach bounds a propagation, but says nothing of where the object ends.
    hint : a guess at the mask for the first look at the slice, of which only the view and the logits count; or None.
    """

    id: int
    index: int
    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None
    reach: tuple[int, int] | None = None
    hint: SliceState | None = None
    before: np.ndarray | None = None
    is_guess: bool = False

    @property
    def drawn(self) -> np.ndarray:
        """The mask of a prompt that has one."""
        assert self.mask is not None
        return self.mask

    def anew(self) -> PlacedPrompt:
        """Return the prompt as it was placed, before it was answered."""
        return replace(self, mask=self.mask if self.is_drawing else None, before=None)

    @property
    def says_present(self) -> bool:
        """Whether it is a positive click."""
        return self.labels.tolist() == [1]

    @property
    def is_drawing(self) -> bool:
        """Whether it is a mask and nothing else."""
        return self.mask is not None and not len(self.labels)

    def pixel(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the pixel (row, column) of a click on a slice of that shape."""
        row, column = np.clip(np.rint(self.points[0]).astype(int), 0, np.array(shape) - 1)
        return int(row), int(column)

    def box(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Return the pixels (rows, columns) of a box on a slice of that shape."""
        low = np.clip(np.ceil(self.points.min(axis=0)), 0, shape).astype(int)
        high = np.clip(np.floor(self.points.max(axis=0)) + 1, 0, shape).astype(int)
        return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))

    @property
    def is_box(self) -> bool:
        """Whether it is a box."""
        return len(self.labels) == 2  # noqa: PLR2004 - two corners

    @property
    def is_on_middle(self) -> bool:
        """Whether it lies where a 3D box is drawn: on the middle slice of its reach, or just before the middle."""
        return self.reach is not None and self.index == sum(self.reach) // 2

    @property
    def size_bytes(self) -> int:
        """Bytes that its masks and its hint hold."""
        masks = sum(mask.nbytes for mask in (self.mask, self.before) if mask is not None)
        return masks + (0 if self.hint is None else self.hint.size_bytes)


@dataclass(frozen=True)
class Findings:
    """All that undo has to bring back besides the mask; never changed in place, so that a snapshot costs nothing.

    Attributes
    ----------
    axis : array axis along which the segment is propagated; None before the first prompt.
    prompts : in the order in which they were given.
    states : by slice, prompted and tracked.
    bases : by prompted slice, the state it had before its first prompt (None if it had none).
    stale : slices whose neighbourhood has to be propagated again, because a prompt on them came, went or changed, or
        because 3D boxes now let the propagation go there (beyond the volume, where they bound it no longer).
    unsettled : slices that a propagation has visited and whose masks are yet to settle on the edges of the image.
    """

    axis: int | None = None
    prompts: tuple[PlacedPrompt, ...] = ()
    states: dict[int, SliceState] = field(default_factory=dict)
    bases: dict[int, SliceState | None] = field(default_factory=dict)
    stale: frozenset[int] = frozenset()
    unsettled: frozenset[int] = frozenset()

    def asked(self, placed: PlacedPrompt, axis: int) -> Findings:
        """Return a copy with one more prompt."""
        index = placed.index
        bases = self.bases if index in self.bases else {**self.bases, index: self.states.get(index)}
        return replace(self, axis=axis, prompts=(*self.prompts, placed), bases=bases)

    def on(self, index: int) -> tuple[PlacedPrompt, ...]:
        """Prompts on a slice, in order."""
        return tuple(p for p in self.prompts if p.index == index)

    def given(self, index: int) -> np.ndarray | None:
        """The mask (rows, columns) bool that the last prompt on a slice has left there by itself, if it has."""
        prompts = self.on(index)
        return prompts[-1].mask if prompts else None

    def unprompted(self, index: int) -> Findings:
        """Return a copy without the prompts of a slice, and without what the slice was before them."""
        prompts = tuple(p for p in self.prompts if p.index != index)
        return replace(self, prompts=prompts, bases={k: s for k, s in self.bases.items() if k != index})

    def is_drawn(self, index: int) -> bool:
        """Whether a slice is as the user has drawn it, but for what prompts since have corrected around them."""
        for prompt in reversed(self.on(index)):
            if prompt.is_drawing or prompt.mask is None:
                return prompt.is_drawing
        return False

    @property
    def limits(self) -> tuple[int, int] | None:
        """First and last slice that 3D boxes allow, other prompted slices included; None for no limit."""
        reaches = [p.reach for p in self.prompts if p.reach is not None]
        if not reaches:
            return None
        ends = [*itertools.chain(*reaches), *(p.index for p in self.prompts)]
        return min(ends), max(ends)

    def outdated(self, before: Findings, index: int) -> Findings:
        """Return a copy that notes as stale what a change of the prompts on a slice has made so."""
        low, high = self.limits or NO_LIMITS
        old_low, old_high = before.limits or NO_LIMITS
        opened = ({low} if low < old_low else set()) | ({high} if high > old_high else set())
        # Beside a prompt that was taken away slices are themselves in doubt, also if another one takes its place.
        taken = {p.id for p in before.prompts} - {p.id for p in self.prompts}
        beside = {index - 1, index + 1} - {p.index for p in self.prompts} if taken else set()
        return replace(self, stale=before.stale | {index} | opened | beside)

    @property
    def conditioning(self) -> dict[int, SliceState]:
        """States of the prompted slices, by slice, from low to high."""
        return {k: self.states[k] for k in sorted({p.index for p in self.prompts}) if k in self.states}

    def with_state(self, index: int, state: SliceState | None) -> Findings:
        """Return a copy in which one slice has another state, or none."""
        states = {k: s for k, s in self.states.items() if k != index}
        if state is not None:
            states[index] = state
        return replace(self, states=states)


@dataclass
class SegmentRecord:
    """The segment itself.

    Attributes
    ----------
    handle : its id and name.
    mask : (k, j, i) bool.
    findings : everything else.
    """

    handle: Segment
    mask: np.ndarray
    findings: Findings = field(default_factory=Findings)

    def slice_of(self, axis: int, index: int) -> np.ndarray:
        """Return one slice of the mask as a view that can be written to."""
        selection: list[slice | int] = [slice(None)] * 3
        selection[axis] = index
        return self.mask[tuple(selection)]


@dataclass(frozen=True)
class Gap:
    """Slices between prompted ones, to be propagated.

    Attributes
    ----------
    low, high : the prompted slices it lies between; one of them is None at the ends of the volume.
    first, last : its slices, both included.
    """

    low: int | None
    high: int | None
    first: int
    last: int

    def slices(self) -> Iterator[int]:
        """Its slices from low to high."""
        return iter(range(self.first, self.last + 1))


def checked_name(name: str, others: Iterable[SegmentRecord]) -> str:
    """Return a name without blanks around it.

    Raises
    ------
    InputError
        If nothing is left of it, or if one of the others has it.
    """
    name = name.strip()
    if not name:
        raise InputError("A segment needs a name; give it one such as 'liver'.")
    if any(other.handle.name == name for other in others):
        raise InputError(f"There is a segment {name!r} already; choose another name.")
    return name


def gaps(prompted: list[int], stale: frozenset[int] | None, first: int, last: int) -> list[Gap]:
    """List the gaps between prompted slices.

    Parameters
    ----------
    prompted : sorted slice indices.
    stale : only gaps that touch one of these slices are listed; None lists all.
    first, last : the slices that may be propagated to.
    """
    edges: list[int | None] = [None, *prompted, None]
    found = []
    for low, high in zip(edges, edges[1:], strict=False):
        begin = first if low is None else max(first, low + 1)
        end = last if high is None else min(last, high - 1)
        # Open ends reach beyond first and last: a 3D box that has been removed may have lain there.
        touched = stale is None or any((low is None or low <= k) and (high is None or k <= high) for k in stale)
        if begin <= end and touched and (low is not None or high is not None):
            found.append(Gap(low, high, begin, end))
    return found
