"""The engine's one thread: tasks in order, reports to the caller's thread, errors told, cancelling between reports."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from SAM2AssistLib.engine.worker import Rank, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_all_work_runs_in_one_thread_and_reports_arrive_in_that_of_the_caller(worker: Worker) -> None:
    ran, told = set(), set()

    def work() -> Iterator[int]:
        ran.add(threading.current_thread())
        yield 1

    for _ in range(3):
        worker.submit("work", work, lambda _report: told.add(threading.current_thread()))
    assert worker.wait(300)
    assert len(ran) == 1
    assert told == {threading.current_thread()}
    assert ran != told


def test_tasks_end_in_the_order_in_which_they_were_given(worker: Worker) -> None:
    seen: list[Any] = []
    for name in "abc":
        worker.submit(name, lambda name=name: (name + "1", name + "2"), seen.append, lambda _e, n=name: seen.append(n))
    assert worker.wait(300)
    assert seen == ["a1", "a2", "a", "b1", "b2", "b", "c1", "c2", "c"]


def test_an_error_is_told_and_the_next_task_runs(worker: Worker) -> None:
    ends: list[Any] = []

    def fails() -> Iterator[int]:
        yield 1
        raise MemoryError("full")

    worker.submit("fails", fails, on_end=ends.append)
    worker.submit("works", lambda: (), on_end=ends.append)
    assert worker.wait(300)
    assert isinstance(ends[0], MemoryError)
    assert ends[1] is None


def test_a_cancelled_task_ends_before_its_next_report_and_tidies_up(worker: Worker) -> None:
    seen, tidied, go = [], threading.Event(), threading.Event()

    def work() -> Iterator[int]:
        try:
            for number in range(1000):
                yield number
                go.wait(300)
        finally:
            tidied.set()

    task = worker.submit("long", work, seen.append)
    while not seen:
        worker.pump()
    task.cancel()
    go.set()
    assert worker.wait(300)
    assert tidied.is_set()
    assert len(seen) <= 2


def test_a_task_that_was_cancelled_before_it_began_never_begins(worker: Worker) -> None:
    hold, begun = threading.Event(), []
    worker.submit("first", lambda: hold.wait(300) and () or ())
    task = worker.submit("second", lambda: begun.append(1) or ())
    task.cancel()
    hold.set()
    assert worker.wait(300)
    assert begun == []


def test_nothing_is_delivered_after_closing() -> None:
    worker, seen = Worker(), []
    hold = threading.Event()
    worker.submit("work", lambda: (hold.wait(300),), seen.append, seen.append)
    worker.close()
    hold.set()
    assert not worker.pump()
    assert seen == []


def test_pump_returns_to_the_window_after_its_time(worker: Worker) -> None:
    seen: list[int] = []
    worker.submit("many", lambda: range(100), seen.append)
    while len(seen) < 100:
        before = len(seen)
        worker.pump(0.0)
        assert len(seen) <= before + 1


def test_who_is_in_a_hurry_ends_what_can_wait_and_is_told_what_cannot(worker: Worker) -> None:
    gate = threading.Event()
    worker.submit("first", lambda: [gate.wait(300)])
    tasks = {rank: worker.submit(rank.name, lambda: (), rank=rank) for rank in Rank}
    assert worker.make_way(Rank.IDLE) == "LONG"
    assert [rank for rank in Rank if tasks[rank].cancelled] == [Rank.IDLE]
    worker.make_way(Rank.LATER)
    assert not tasks[Rank.LATER].cancelled
    assert worker.make_way(Rank.LONG) == "LONG"
    assert [rank for rank in Rank if tasks[rank].cancelled] == [Rank.IDLE, Rank.LATER]
    tasks[Rank.LONG].cancel()
    assert worker.make_way(Rank.QUICK) is None
    assert not tasks[Rank.QUICK].cancelled
    gate.set()
    assert worker.wait(300)
