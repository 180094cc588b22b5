"""What the panel has done in the worker's thread beside segmenting: exports, the support library, lists of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.engine.worker import Rank, Task, Worker
from SAM2AssistLib.mrml.words import translator

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.panel import View

_ = translator(__file__)


@dataclass(frozen=True)
class Stage:
    """How far a job is.

    Attributes
    ----------
    title : of what is being done now.
    done, total : of its steps.
    """

    title: str
    done: int
    total: int


class Jobs:
    """Long work that the user sees the progress of, and can cancel.

    Parameters
    ----------
    worker : the engine's thread, in which jobs wait for their turn.
    view : what shows.
    failed : told of the error that ended a job.
    """

    def __init__(self, worker: Worker, view: View, failed: Callable[[BaseException], None]) -> None:
        self.worker, self.view, self.failed = worker, view, failed
        self._tasks: list[Task] = []

    def start(self, title: str, work: Callable[[], Iterable[Any]], answer: Callable[[Any], None]) -> None:
        """Begin a job, before whatever can wait for it; the user is told what it waits for itself.

        Parameters
        ----------
        title : for the user.
        work : called in the worker's thread; yields `Stage` as often as it may be cancelled, and at its end what it
            was asked for.
        answer : called in the window's thread with that; not if the job was cancelled before.
        """
        answered: list[Any] = []

        def run() -> Iterator[Any]:
            yield Stage(title, 0, 1)
            yield from work()

        def report(item: Any) -> None:
            if task not in self._tasks:
                return
            if isinstance(item, Stage):
                self.view.showProgress(item.title, item.done, item.total)
            else:
                answered.append(item)

        def end(error: BaseException | None) -> None:
            if task not in self._tasks:
                return
            self._tasks.remove(task)
            self.view.showProgress(title, 0, 0)
            if error is not None:
                self.failed(error)
            elif answered:
                answer(answered[-1])
            else:
                self.view.showStatus(_("Cancelled: {work}.").format(work=title))

        before = self.worker.make_way(Rank.LONG)
        if before is not None:
            self.view.showStatus(_("Waiting for: {work}.").format(work=before))
        task = self.worker.submit(title, run, report, end, Rank.LONG)
        self._tasks.append(task)
        self.view.showBusy()

    def cancel(self) -> None:
        """End all jobs before their next step."""
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """End all jobs, and tell nobody any more."""
        self.cancel()
        self._tasks.clear()
