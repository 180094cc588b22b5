"""The propagations of a workspace: one at a time; it ends for what the user asks for, and is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from SAM2AssistLib.engine.worker import Rank, Task
from SAM2AssistLib.mrml.desk import Desk
from SAM2AssistLib.mrml.journal import Journal, Step
from SAM2AssistLib.mrml.listener import Listener
from SAM2AssistLib.mrml.masking import Rules
from SAM2AssistLib.mrml.painting import Painter
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

End = Callable[["BaseException | None"], None]


class Submit(Protocol):
    """Queues work of a step for the engine's thread; `ended` is called in the window's thread."""

    def __call__(  # noqa: D102
        self, title: str, step: Step | None, work: Callable[[], Iterable[Any]], ended: End, rank: Rank
    ) -> Task: ...


class Propagating:
    """Carries segments through the volume while nothing else is asked for.

    Parameters
    ----------
    journal : of the steps that a propagation belongs to.
    desk : the engine's side.
    rules : what predictions have to keep to.
    submit, begin, told : of the workspace: brings work to the engine's thread, opens a step, tells of an error.
    listener : told a sentence now and then.

    Attributes
    ----------
    running : the task that ends as soon as the user does anything here; not only propagations are.
    """

    def __init__(
        self,
        journal: Journal,
        desk: Desk,
        rules: Rules,
        submit: Submit,
        begin: Callable[[str], Step],
        told: End,
        listener: Listener,
    ) -> None:
        self.journal, self.desk, self.rules = journal, desk, rules
        self._submit, self._begin, self._told, self._listener = submit, begin, told, listener
        self.running: Task | None = None
        self._gave_way: Step | None = None

    @property
    def gave_way(self) -> bool:
        """Whether a propagation has ended for somebody else's work, and wants to go on after it."""
        return self._gave_way is not None

    def expect(self, segment_id: str) -> None:
        """Let a segment with a new prompt be propagated, also if the next prompt comes before this one is answered."""
        if self.rules.auto_propagate:
            self.journal.unfinished |= {segment_id}

    def start(self, step: Step, segment_ids: Iterable[str]) -> None:
        """Propagate segments; what changes belongs to a step."""
        chosen = tuple(dict.fromkeys(segment_ids))
        self.journal.unfinished, self._gave_way = frozenset(chosen), None

        def ended(error: BaseException | None) -> None:
            if self.running is task:  # nobody has ended it here
                self.running = None
                if task.cancelled and error is None:
                    self._gave_way = step
                else:
                    self.journal.unfinished = frozenset()
            self._told(error)
            if step.empty and self._gave_way is None:
                self.journal.withdraw(step)
                if error is None and not task.cancelled:
                    self._listener.note(
                        _("Nothing has changed: a propagation begins at prompts and drawings that are new.")
                    )

        # What was left to other segments, or to another area, since it was predicted is not to be predicted again.
        anew = not self.rules.confine()
        task = self.running = self._submit(
            _("propagate"), step, lambda: self.desk.propagate(chosen, anew=anew), ended, Rank.LATER
        )

    def go_on(self, step: Step, *segment_ids: str) -> None:
        """Propagate segments, and those that were interrupted."""
        self.start(step, [*segment_ids, *sorted(self.journal.unfinished)])

    def resume(self) -> None:
        """Take up again what was interrupted, if anything; it belongs to the step that it comes after.

        Not after an undo: nothing could be redone any more.
        """
        if self.journal.unfinished and not self.journal.undone:
            step = self.journal.done[-1] if self.journal.done else self._begin(_("propagate"))
            self.start(step, sorted(self.journal.unfinished))

    def tell_left(self, painter: Painter) -> None:
        """Tell which segments have been left half-way, if any: undo and redo do not take them up again."""
        left = [painter.name(segment_id) for segment_id in sorted(self.journal.unfinished) if painter.has(segment_id)]
        if left:
            said = _("Propagated only in part: {segments}. Propagate goes on there.")
            self._listener.note(said.format(segments=", ".join(left)))

    def interrupt(self) -> None:
        """End what runs after its next slice; the next prompt takes a propagation up again."""
        if self._gave_way is not None and self._gave_way.empty:
            self.journal.withdraw(self._gave_way)
        self._gave_way = None
        if self.running is not None:
            self.running.cancel()
            self.running = None

    def end(self) -> None:
        """End what runs after its next slice, for good."""
        self.interrupt()
        self.journal.unfinished = frozenset()

    def leave_out(self, segment_id: str) -> None:
        """End what runs after its next slice, and go on without a segment that is gone."""
        self.interrupt()
        self.journal.unfinished -= {segment_id}
