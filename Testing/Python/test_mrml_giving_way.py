"""Who waits for whom: a click or a file before whatever can wait, and nothing is left lying about."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import mask_of, paint, point, volume_node  # noqa: E402
from mrml_view import RecordingView  # noqa: E402

from SAM2AssistLib.engine.worker import Rank  # noqa: E402
from SAM2AssistLib.mrml.desk import Progress  # noqa: E402
from SAM2AssistLib.mrml.gestures import Gesture, Kind  # noqa: E402
from SAM2AssistLib.mrml.jobs import Jobs, Stage  # noqa: E402
from SAM2AssistLib.mrml.workspace import Workspace  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)


class Second:
    """Another pair of nodes in the scene."""

    def __init__(self, desk: Desk) -> None:  # noqa: F811
        self.volume = volume_node(desk.ct, "second")
        self.segmentation = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S2")
        self.segmentation.CreateDefaultDisplayNodes()
        self.segment = str(self.segmentation.GetSegmentation().AddEmptySegment("x", "x"))
        self.workspace: Workspace = desk.assistant.open(self.volume, self.segmentation)

    def mask(self) -> np.ndarray:
        return mask_of(self.volume, self.segmentation, self.segment)


@pytest.fixture
def second(desk: Desk) -> Second:  # noqa: F811
    return Second(desk)


def titles(desk: Desk) -> list[str]:  # noqa: F811
    """What the worker has yet to do, but for what has been cancelled."""
    return [task.title for task in desk.assistant.worker.tasks if not task.cancelled]


class Gate:
    """Holds the engine's thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def reports(self, item: Any, count: int = 3) -> Iterator[Any]:
        """Yield an item some times, waiting before the second."""
        for number in range(count):
            if number == 1:
                self.reached.set()
                assert self.opened.wait(300)
            yield item

    def close_behind(self, workspace: Workspace, index: int = 5) -> None:
        """Begin a warm-up that is in the midst of it when this returns."""
        workspace.desk.warm_up = lambda _index: self.reports(Progress(0, 1), 1000)  # type: ignore[method-assign]
        workspace.warm_up(index)
        assert self.reached.wait(300)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


# Who gives way


def test_a_click_ends_the_warm_up_of_another_pair(desk: Desk, second: Second, gate: Gate) -> None:  # noqa: F811
    gate.close_behind(desk.workspace)
    second.workspace.add_prompt(second.segment, point(desk.ct, LEFT))
    assert "prepare" not in titles(desk)
    gate.opened.set()
    assert desk.assistant.wait()
    assert second.mask().any()
    assert not desk.errors


def test_a_question_and_a_job_end_a_warm_up(desk: Desk, gate: Gate) -> None:  # noqa: F811
    answers: list[Any] = []
    gate.close_behind(desk.workspace)
    Jobs(desk.assistant.worker, RecordingView(), desk.errors.append).start("save", lambda: iter(["ok"]), answers.append)
    assert titles(desk) == ["save"]
    desk.workspace.ask("doubtful slice", lambda: 7, answers.append)
    gate.opened.set()
    assert desk.assistant.wait()
    assert answers == ["ok", 7]


def test_a_warm_up_of_the_pair_in_view_ends_that_of_the_pair_before(desk: Desk, second: Second, gate: Gate) -> None:  # noqa: F811
    gate.close_behind(desk.workspace)
    second.workspace.warm_up(5)
    assert titles(desk) == ["prepare"]
    gate.opened.set()
    assert desk.assistant.wait()


def test_a_click_comes_before_the_propagation_of_another_pair_which_goes_on_afterwards(
    desk: Desk,  # noqa: F811
    second: Second,
) -> None:
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    assert "propagate" in titles(desk)
    second.workspace.add_prompt(second.segment, point(desk.ct, RIGHT))
    assert "propagate" not in titles(desk)
    while not second.mask().any():
        desk.assistant.pump(0.0)
    assert not desk.mask().any(axis=(1, 2)).all()
    assert desk.assistant.wait()
    assert desk.mask().any(axis=(1, 2)).all()
    engine = desk.workspace.desk
    np.testing.assert_array_equal(desk.mask(), engine.session.mask(engine._present()[desk.segment]))
    assert second.mask().any(axis=(1, 2)).all()
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not desk.mask().any()
    assert desk.workspace.undo() is None
    assert not desk.errors


def test_a_propagation_that_gave_way_and_was_cancelled_does_not_go_on(desk: Desk, second: Second) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    second.workspace.add_prompt(second.segment, point(desk.ct, RIGHT))
    while not second.mask().any():
        desk.assistant.pump(0.0)
    for workspace in desk.assistant.workspaces:
        workspace.cancel()
    assert desk.assistant.wait()
    assert 3 <= desk.mask().any(axis=(1, 2)).sum() < 10


def test_a_propagation_that_gave_way_does_not_go_on_over_other_voxels(desk: Desk, second: Second) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    second.workspace.add_prompt(second.segment, point(desk.ct, RIGHT))
    while not second.mask().any():
        desk.assistant.pump(0.0)
    slicer.util.updateVolumeFromArray(desk.volume, np.array(desk.ct.array)[::-1].copy())
    assert desk.assistant.wait()
    assert desk.mask().any(axis=(1, 2)).sum() < 10


def test_undo_of_a_propagation_that_gave_way_takes_all_of_it_back_for_good(desk: Desk, second: Second) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    second.workspace.add_prompt(second.segment, point(desk.ct, RIGHT))
    while not second.mask().any():
        desk.assistant.pump(0.0)
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not desk.mask().any()
    assert second.mask()[5].any()


def test_the_user_is_told_for_what_a_click_waits(desk: Desk, gate: Gate) -> None:  # noqa: F811
    notes: list[str] = []
    desk.assistant.listener.note = notes.append
    jobs = Jobs(desk.assistant.worker, RecordingView(), desk.errors.append)
    jobs.start("export DICOM-SEG", lambda: gate.reports(Stage("x", 0, 1)), lambda _answer: None)
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    assert "Waiting for: export DICOM-SEG." in notes
    view = RecordingView()
    Jobs(desk.assistant.worker, view, desk.errors.append).start("save", lambda: iter(["ok"]), lambda _answer: None)
    assert view.sentences == ["Waiting for: export DICOM-SEG."]
    gate.opened.set()
    assert desk.assistant.wait()
    assert desk.mask().any()


def test_a_job_that_was_cancelled_is_not_waited_for(desk: Desk) -> None:  # noqa: F811
    worker = desk.assistant.worker
    jobs = Jobs(worker, RecordingView(), desk.errors.append)
    jobs.start("export", lambda: iter([Stage("x", 0, 1)]), lambda _answer: None)
    assert worker.make_way(Rank.QUICK) == "export"
    jobs.cancel()
    assert worker.make_way(Rank.QUICK) is None


# A click that fails


@pytest.mark.parametrize("automatic", [True, False])
def test_a_click_outside_the_volume_lets_a_running_propagation_go_on_unless_the_user_steers(
    desk: Desk,  # noqa: F811
    automatic: bool,
) -> None:
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    desk.assistant.rules.auto_propagate = automatic
    desk.workspace.add_prompt(desk.segment, Gesture.of(Kind.POINT, [9999, 0, 0]))
    assert desk.assistant.wait()
    assert len(desk.errors) == 1
    assert bool(desk.mask().any(axis=(1, 2)).all()) is automatic
    assert [step.title for step in desk.workspace.journal.done] == ["add point"]
    assert len(desk.workspace.prompts.gestures(desk.segment)) == 1
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not desk.mask().any()


def test_a_click_outside_the_volume_starts_nothing_where_nothing_ran(desk: Desk) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, Gesture.of(Kind.POINT, [9999, 0, 0]))
    assert desk.assistant.wait()
    assert not desk.workspace.journal.done
    assert not desk.mask().any()


# What a workspace leaves when it is closed


def test_closing_a_workspace_in_mid_propagation_ends_its_progress(desk: Desk) -> None:  # noqa: F811
    told: list[tuple[str, int, int]] = []
    desk.assistant.listener.progress = lambda *step: told.append(step)
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    desk.scene.RemoveNode(desk.segmentation)
    assert desk.assistant.wait()
    assert told[-1] == ("", 0, 0)
    desk.workspace.close()
    assert told.count(("", 0, 0)) == 1


def begin_auto(desk: Desk, gate: Gate, *names: str) -> list[str]:  # noqa: F811
    """Let Auto-Segment look for classes until the gate is opened; returns the ids of the empty segments."""
    desk.workspace.desk.auto = lambda *_: gate.reports(Progress(0, 1))  # type: ignore[method-assign]
    wanted = {name: desk.add_segment(name) for name in names}
    desk.workspace.auto_segment(wanted, None, [], lambda _verdicts: None)
    return list(wanted.values())


def test_closing_a_workspace_removes_the_segments_that_auto_segment_has_not_filled(desk: Desk, gate: Gate) -> None:  # noqa: F811
    _liver, spleen = begin_auto(desk, gate, "liver", "spleen")
    painted = np.ones((64, 64), bool)
    paint(desk.volume, desk.segmentation, spleen, 0, 5, painted)
    desk.scene.RemoveNode(desk.volume)
    gate.opened.set()
    assert desk.assistant.wait()
    assert desk.segmentation.GetSegmentation().GetSegmentIDs() == (desk.segment, spleen)


def test_a_second_auto_segment_fills_the_segments_of_the_first(desk: Desk, gate: Gate) -> None:  # noqa: F811
    ids = begin_auto(desk, gate, "liver", "spleen")
    filled: list[str] = []
    ended, (first,) = threading.Event(), desk.assistant.worker.tasks
    told = first.on_end
    first.on_end = lambda error: (told(error), ended.set())  # type: ignore[func-returns-value]

    def second(wanted: dict[str, str], *_: Any) -> Iterator[Any]:
        assert ended.wait(300)
        filled.extend(s for s in wanted.values() if desk.segmentation.GetSegmentation().GetSegment(s))
        yield Progress(0, 1)

    desk.workspace.desk.auto = second  # type: ignore[method-assign, assignment]
    desk.workspace.auto_segment(dict(zip(("liver", "spleen"), ids, strict=True)), None, [], lambda _verdicts: None)
    gate.opened.set()
    assert desk.assistant.wait()
    assert filled == ids
    assert desk.segmentation.GetSegmentation().GetSegmentIDs() == (desk.segment,)


def test_a_closing_scene_is_left_as_it_is(desk: Desk, gate: Gate) -> None:  # noqa: F811
    begin_auto(desk, gate, "liver")
    desk.scene.Clear(False)
    gate.opened.set()
    assert desk.assistant.wait()
    assert not desk.errors


def test_a_closed_workspace_holds_no_session_whoever_still_holds_it(desk: Desk) -> None:  # noqa: F811
    """Its masks are as large as the volume, and a workspace goes only when Python's collector comes by."""
    desk.do(desk.segment, point(desk.ct, LEFT))
    session = weakref.ref(desk.workspace.desk.session)
    desk.scene.Clear(False)
    assert desk.assistant.wait()
    assert session() is None
