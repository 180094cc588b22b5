"""The engine's one thread: tasks in, reports out, in order.

A window must not wait for a network, and PyTorch keeps its plans per thread, so all work goes through one thread that
lives as long as the engine. What a task yields and how it ended is put on a queue, which the window's thread empties
with `Worker.pump` from a timer: callbacks run there, and nothing else ever touches the window or the scene.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any

DELIVERY_S = 0.02
"""Seconds one `Worker.pump` may spend on callbacks by default; a window is redrawn between two of them."""


class Leave(BaseException):  # noqa: N818 - no error, as GeneratorExit is none
    """Thrown into work that is to end, where it last reported; what it reports from then on is its last word."""


class Rank(IntEnum):
    """What a task is to those that come after it."""

    IDLE = 0
    """Nobody waits for it: it ends for whatever comes next."""
    LATER = 1
    """It can be taken up again: it ends for what somebody waits for."""
    LONG = 2
    """Somebody has asked for all of it: who comes next waits long."""
    QUICK = 3
    """It is soon done."""


def pump_until_done(pump: Callable[[], bool], seconds: float) -> bool:
    """Deliver until nothing is left to wait for; returns whether that came to pass in time.

    Parameters
    ----------
    pump : delivers, and tells whether there is more to wait for.
    """
    until = time.perf_counter() + seconds
    while pump():
        if time.perf_counter() > until:
            return False
        time.sleep(0.001)
    return True


@dataclass(eq=False)
class Task:
    """Something the worker does.

    Attributes
    ----------
    title : for messages.
    rank : see `Worker.make_way`.
    on_report : called with each thing the work yields.
    on_end : called once with the error that ended it, or None; also after a cancellation.
    """

    title: str
    on_report: Callable[[Any], None]
    on_end: Callable[[BaseException | None], None]
    rank: Rank = Rank.QUICK
    _wish: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask it to end before its next report; one that has not begun does not begin."""
        self._wish.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._wish.is_set()


class Worker:
    """One thread that lives until `close`.

    Parameters
    ----------
    name : of the thread, as debuggers show it.
    """

    def __init__(self, name: str = "SAM2Assist engine") -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._outbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tasks: list[Task] = []
        self._closed = False

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What has been submitted and whose end has not been delivered yet, oldest first."""
        return tuple(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether there is something to wait for."""
        return bool(self._tasks)

    def submit(
        self,
        title: str,
        work: Callable[[], Iterable[Any]],
        on_report: Callable[[Any], None] = lambda _report: None,
        on_end: Callable[[BaseException | None], None] = lambda _error: None,
        rank: Rank = Rank.QUICK,
    ) -> Task:
        """Queue work.

        Parameters
        ----------
        work : called in the worker's thread; returns what is to be reported, best as a generator, which is closed when
            the task is cancelled.
        on_report, on_end : see `Task`; called by `pump`.
        rank : see `make_way`, which is not called by this: not everything that is submitted is in a hurry.
        """
        task = Task(title, on_report, on_end, rank)
        self._tasks.append(task)
        future = self._pool.submit(self._run, task, work)
        future.add_done_callback(lambda done: self._outbox.put(lambda: self._finish(task, done)))
        return task

    def pump(self, seconds: float = DELIVERY_S) -> bool:
        """Deliver what has been reported, for about so long; returns whether there is still something to wait for."""
        until = time.perf_counter() + seconds
        while not self._closed:
            try:
                deliver = self._outbox.get_nowait()
            except queue.Empty:
                break
            deliver()
            if time.perf_counter() > until:
                break
        return self.busy

    def wait(self, seconds: float = 60.0) -> bool:
        """Deliver until nothing is left to wait for, for scripts and tests; returns whether that came to pass."""
        return pump_until_done(self.pump, seconds)

    def make_way(self, rank: Rank) -> str | None:
        """End what a task of a rank, about to be submitted, need not wait for.

        Returns
        -------
        The title of what it will have to wait for long; None if there is nothing of the kind.
        """
        for task in self._tasks:
            if task.rank is Rank.IDLE or (task.rank is Rank.LATER and rank > Rank.LATER):
                task.cancel()
        return next((task.title for task in self._tasks if task.rank is Rank.LONG and not task.cancelled), None)

    def cancel_all(self) -> None:
        """Ask all tasks to end."""
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """End the thread after the step it is at; nothing is delivered any more."""
        self.cancel_all()
        self._closed = True
        self._tasks.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, task: Task, work: Callable[[], Iterable[Any]]) -> None:
        if task.cancelled:
            return
        with closing(_generated(work)) as running:
            for report in running:
                self._outbox.put(partial(task.on_report, report))
                if task.cancelled:
                    for last in _last_words(running):
                        self._outbox.put(partial(task.on_report, last))
                    return

    def _finish(self, task: Task, future: Future[None]) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
        task.on_end(None if future.cancelled() else future.exception())


def _last_words(running: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Ask work to end; yields what it still has to report."""
    try:
        yield running.throw(Leave())
        yield from running
    except (Leave, StopIteration):
        return


def _generated(work: Callable[[], Iterable[Any]]) -> Generator[Any, None, None]:
    """Make a generator of what work returns; closing it closes that."""
    yield from work()
