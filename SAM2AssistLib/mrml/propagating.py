"""The propagations of a workspace: one at a time; it ends for what the user asks for, and is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from SAM2AssistLib.engine.worker import Rank, Task
from SAM2AssistLib.mrml.desk import Desk
from SAM2AssistLib.mrml.journal import Journal, Step
from SAM2AssistLib.mrml.masking import Rules
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
    submit, begin, told, note : of the workspace: brings work to the engine's thread, opens a step, tells of an error,
        tells a sentence.

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
        note: Callable[[str], None],
    ) -> None:
        self.journal, self.desk, self.rules = journal, desk, rules
        self._submit, self._begin, self._told, self._note = submit, begin, told, note
        self.running: Task | None = None
        self._unfinished: set[str] = set()
        self._gave_way: Step | None = None

    @property
    def gave_way(self) -> bool:
        """Whether a propagation has ended for somebody else's work, and wants to go on after it."""
        return self._gave_way is not None

    def start(self, step: Step, segment_ids: Iterable[str]) -> None:
        """Propagate segments; what changes belongs to a step."""
        chosen = tuple(dict.fromkeys(segment_ids))
        self._unfinished, self._gave_way = set(chosen), None

        def ended(error: BaseException | None) -> None:
            if self.running is task:  # nobody has ended it here
                self.running = None
                if task.cancelled and error is None:
                    self._gave_way = step
                else:
                    self._unfinished.clear()
            self._told(error)
            if step.empty and self._gave_way is None:
                self.journal.withdraw(step)
                if error is None and not task.cancelled:
                    self._note(_("Nothing has changed: a propagation begins at prompts and drawings that are new."))

        # What was left to other segments, or to another area, since it was predicted is not to be predicted again.
        anew = not self.rules.confine()
        task = self.running = self._submit(
            _("propagate"), step, lambda: self.desk.propagate(chosen, anew=anew), ended, Rank.LATER
        )

    def go_on(self, step: Step, segment_id: str) -> None:
        """Propagate a segment, and those that were interrupted."""
        self.start(step, [segment_id, *sorted(self._unfinished)])

    def resume(self) -> None:
        """Take up again what was interrupted, if anything; it belongs to the step that it comes after."""
        if self._unfinished:
            step = self.journal.done[-1] if self.journal.done else self._begin(_("propagate"))
            self.start(step, sorted(self._unfinished))

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
        self._unfinished.clear()

    def leave_out(self, segment_id: str) -> None:
        """End what runs after its next slice, and go on without a segment that is gone."""
        self.interrupt()
        self._unfinished.discard(segment_id)
