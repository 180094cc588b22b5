"""Undo and redo of a workspace: voxels as the journal has them, prompts and memory as the engine has them.

An engine that is not the one that made a step, or that has forgotten it, cannot come back to it. Voxels and prompts
turn all the same; the engine begins anew, and is shown a segment when it is worked on next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from SAM2AssistLib.mrml.desk import Confidence, Desk, Standing
from SAM2AssistLib.mrml.gestures import Gesture
from SAM2AssistLib.mrml.journal import Entry, Journal, KnownMask, Step, reverse
from SAM2AssistLib.mrml.painting import Painter
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)


class Submit(Protocol):
    """Shows prompts, and queues work for the engine's thread; `done` is called in the window's thread at its end."""

    def __call__(  # noqa: D102
        self,
        title: str,
        prompts: Mapping[str, tuple[Gesture, ...]],
        work: Callable[[], Iterable[Standing | Confidence]],
        done: Callable[[], None],
    ) -> None: ...


class Turning:
    """Goes back and forth in a journal.

    Parameters
    ----------
    journal : of the steps.
    painter : of the segments that they changed.
    desk : the engine's side.
    submit : brings the engine's part to its thread.
    """

    def __init__(self, journal: Journal, painter: Painter, desk: Desk, submit: Submit) -> None:
        self.journal, self.painter, self.desk, self._submit = journal, painter, desk, submit

    def undo(self) -> str | None:
        """Take the last step back; returns its title, or None if there is none."""
        return self._turn(_("undo"), back=True)

    def redo(self) -> str | None:
        """Bring back what was undone last; returns its title, or None if there is none."""
        return self._turn(_("redo"), back=False)

    def follow(self, found: dict[str, KnownMask]) -> bool:
        """If the segments are as they were at another step of the journal, go there; returns whether they are.

        Parameters
        ----------
        found : the segments that somebody else has changed, as they are now; where there are none, nothing is done.
        """
        if not found:
            return False
        everything = {**self.painter.known, **found}
        back = self.journal.back_to(self.painter.known, everything)
        count = back or self.journal.forward_to(self.painter.known, everything)
        if not count:
            return False
        steps = self.journal.turn(count, back=back > 0)
        self.painter.accept(found)
        self._go(_("follow the Segment Editor"), steps, list, back=back > 0)
        return True

    # Inside

    def _turn(self, title: str, *, back: bool) -> str | None:
        if not (self.journal.done if back else self.journal.undone):
            return None
        (step,) = self.journal.turn(1, back=back)

        def entries() -> list[Entry]:  # asked for at the end: what the step has still to write comes before
            return reverse(step.changed) if back else step.changed

        self._go(title, [step], entries, back=back)
        return step.title

    def _go(self, title: str, steps: Sequence[Step], entries: Callable[[], list[Entry]], *, back: bool) -> None:
        prompts: dict[str, tuple[Gesture, ...]] = {}
        for step in steps:
            prompts.update({key: before if back else after for key, (before, after) in step.prompts.items()})

        def work() -> Iterator[Standing | Confidence]:
            marks = [step.mark_before if back else step.mark_after for step in steps]
            known = [mark for mark in marks if mark is not None]  # the engine has not come to some, and need not
            turn = self.desk.undo_to if back else self.desk.redo_to
            return turn(known[-1] if known else self.desk.mark, prompts)

        self._submit(title, prompts, work, lambda: self.painter.apply(entries()))
