"""What is clicked while an undo, Auto-Segment or another model is under way stays, and so does what they bring."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import point  # noqa: E402

from SAM2AssistLib.engine.worker import Leave  # noqa: E402
from SAM2AssistLib.mrml.desk import Progress  # noqa: E402

LEFT, RIGHT, ABOVE = (5, 32, 20), (5, 32, 44), (3, 32, 20)


def agrees(desk: Desk, segment_id: str, *clicks: Any) -> bool:  # noqa: F811
    """Whether these clicks are what the scene shows of a segment, and what the engine has been given."""
    wanted = {point(desk.ct, click) for click in clicks}
    engine = desk.workspace.desk
    placed = set(engine._placed(engine._present()[segment_id])) if segment_id in engine._present() else set()
    return set(desk.workspace.prompts.gestures(segment_id)) == wanted == placed


def test_a_click_right_after_an_undo_stays_and_the_undone_one_does_not_come_back(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(desk.segment, point(desk.ct, RIGHT))
    desk.workspace.undo()
    desk.do(desk.segment, point(desk.ct, ABOVE))
    assert agrees(desk, desk.segment, LEFT, ABOVE)
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert agrees(desk, desk.segment, LEFT)


def test_a_click_right_after_a_redo_stays_beside_what_was_redone(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(desk.segment, point(desk.ct, RIGHT))
    desk.workspace.undo()
    assert desk.assistant.wait()
    desk.workspace.redo()
    desk.do(desk.segment, point(desk.ct, ABOVE))
    assert agrees(desk, desk.segment, LEFT, RIGHT, ABOVE)


@pytest.mark.parametrize("among_them", [True, False])
def test_a_click_that_ends_auto_segment_stays_with_what_that_has_found(
    desk: Desk,  # noqa: F811
    among_them: bool,
) -> None:
    engine, liver, begun = desk.workspace.desk, desk.add_segment("liver"), threading.Event()

    def auto(*_: Any) -> Iterator[Any]:
        yield from engine.begin()
        mark = engine.mark
        engine._place(engine._segment(liver, "liver"), point(desk.ct, RIGHT))
        begun.set()
        with suppress(Leave):
            while True:
                time.sleep(0.002)
                yield Progress(0, 1)
        yield from engine._patches(mark, {})
        yield engine._standing()

    engine.auto = auto  # type: ignore[method-assign]
    desk.workspace.auto_segment({"liver": liver}, None, [], lambda _verdicts: None)
    assert begun.wait(300)
    clicked = liver if among_them else desk.segment
    desk.do(clicked, point(desk.ct, LEFT))
    assert agrees(desk, liver, RIGHT, *([LEFT] if among_them else []))
    if not among_them:
        assert agrees(desk, desk.segment, LEFT)
    assert desk.mask(clicked)[5].any()
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert agrees(desk, liver, RIGHT)


@pytest.mark.parametrize("closed", [False, True])
def test_a_click_into_a_segment_that_auto_segment_has_not_filled_yet_keeps_the_segment_and_is_answered(
    desk: Desk,  # noqa: F811
    closed: bool,
) -> None:
    liver, spleen, begun = desk.add_segment("liver"), desk.add_segment("spleen"), threading.Event()

    def auto(*_: Any) -> Iterator[Any]:
        begun.set()
        while True:
            time.sleep(0.002)
            yield Progress(0, 1)

    desk.workspace.desk.auto = auto  # type: ignore[method-assign]
    desk.workspace.auto_segment({"liver": liver, "spleen": spleen}, None, [], lambda _verdicts: None)
    assert begun.wait(300)
    if closed:  # the next click goes to a workspace for the other engine
        desk.assistant.choose(device="cpu")
    desk.workspace.add_prompt(liver, point(desk.ct, LEFT))
    assert desk.assistant.wait()
    assert desk.mask(liver)[LEFT]
    assert not desk.workspace.painter.has(spleen)
    assert not desk.errors


@pytest.mark.parametrize("closed", [False, True])
def test_a_new_segment_that_gets_the_id_of_one_that_auto_segment_was_to_fill_stays(
    desk: Desk,  # noqa: F811
    closed: bool,
) -> None:
    liver, spleen, go_on = desk.add_segment("liver"), desk.add_segment("spleen"), threading.Event()
    segments = desk.segmentation.GetSegmentation()

    def auto(*_: Any) -> Iterator[Any]:
        assert go_on.wait(300)
        yield Progress(0, 1)

    desk.workspace.desk.auto = auto  # type: ignore[method-assign]
    desk.workspace.auto_segment({"liver": liver, "spleen": spleen}, None, [], lambda _verdicts: None)
    segments.RemoveSegment(liver)
    segments.AddEmptySegment(liver, "tumour")  # as Slicer does, whose new segment is "Segment_1" again
    if closed:
        desk.assistant.close_workspaces()
    go_on.set()
    assert desk.assistant.wait()
    assert desk.workspace.painter.has(liver)
    assert not desk.workspace.painter.has(spleen)
    assert not desk.errors


@pytest.mark.parametrize("next_click", ["none", "other segment", "same segment"])
def test_a_click_that_was_not_answered_before_the_model_was_changed_is_answered_by_the_new_one(
    desk: Desk,  # noqa: F811
    next_click: str,
) -> None:
    other = desk.add_segment("other")
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.assistant.choose(device="cpu")
    if next_click == "none":
        desk.assistant.open(desk.volume, desk.segmentation)
    else:
        desk.workspace.add_prompt(other if next_click == "other segment" else desk.segment, point(desk.ct, ABOVE))
    assert desk.assistant.wait()
    (desk.workspace,) = desk.assistant.workspaces
    assert desk.mask()[LEFT]
    assert desk.mask().any(axis=(1, 2)).sum() > 1
    assert agrees(desk, desk.segment, LEFT, *([ABOVE] if next_click == "same segment" else []))
    assert desk.mask(other).any() == (next_click == "other segment")
    while desk.workspace.undo() is not None:
        assert desk.assistant.wait()
    assert not desk.mask().any()
    assert not desk.workspace.prompts.gestures(desk.segment)
    assert not desk.errors


def test_what_the_old_model_has_answered_is_not_asked_again(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.assistant.choose(device="cpu")
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    assert not desk.workspace.busy
    assert [step.title for step in desk.workspace.journal.done] == ["add point"]
