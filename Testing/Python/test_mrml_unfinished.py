"""Propagations that were left off: what is taken up again by itself, what by a button, and what the user is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import paint, point  # noqa: E402

from SAM2AssistLib.mrml.desk import Progress  # noqa: E402
from SAM2AssistLib.mrml.masking import Overlap  # noqa: E402

LEFT, RIGHT, ABOVE = (5, 32, 20), (5, 32, 44), (3, 32, 44)


@pytest.fixture
def notes(desk: Desk) -> list[str]:  # noqa: F811
    told: list[str] = []
    desk.assistant.listener.note = told.append
    return told


def begin(desk: Desk) -> None:  # noqa: F811
    """Click, and stop looking when the propagation is under way."""
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)


def finished(desk: Desk) -> bool:  # noqa: F811
    return bool(desk.mask().any(axis=(1, 2)).all())


def interrupted_by_a_click_that_is_undone(desk: Desk) -> str:  # noqa: F811
    """Leave a segment half propagated; returns the other one, in which the click was."""
    other = desk.add_segment("other")
    begin(desk)
    desk.workspace.add_prompt(other, point(desk.ct, RIGHT))
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not finished(desk)
    return other


def test_who_undoes_a_click_is_told_which_segment_it_had_interrupted(desk: Desk, notes: list[str]) -> None:  # noqa: F811
    interrupted_by_a_click_that_is_undone(desk)
    assert notes[-1] == "Propagated only in part: ball. Propagate goes on there."


def test_propagate_goes_on_with_what_was_interrupted_whichever_segment_is_chosen(desk: Desk) -> None:  # noqa: F811
    other = interrupted_by_a_click_that_is_undone(desk)
    desk.workspace.propagate([other])
    assert desk.assistant.wait()
    assert finished(desk)
    assert not desk.mask(other).any()


def test_what_was_interrupted_is_turned_with_the_steps(desk: Desk, notes: list[str]) -> None:  # noqa: F811
    other = interrupted_by_a_click_that_is_undone(desk)
    desk.workspace.redo()
    assert desk.assistant.wait()
    assert notes[-1] == "Propagated only in part: ball, other. Propagate goes on there."
    for _step in range(2):
        notes.clear()
        desk.workspace.undo()
        assert desk.assistant.wait()
    assert not notes  # the first click is gone, too, and nothing is left to go on with
    assert not desk.mask().any()
    assert not desk.mask(other).any()


def test_a_finished_propagation_that_is_undone_leaves_nothing_to_be_told(desk: Desk, notes: list[str]) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(desk.segment, point(desk.ct, RIGHT))
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not notes


def test_a_propagation_goes_on_after_another_segment_was_deleted(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.do(other, point(desk.ct, RIGHT))
    begin(desk)
    desk.segmentation.GetSegmentation().RemoveSegment(other)
    assert desk.assistant.wait()
    assert finished(desk)


def test_a_propagation_that_was_cancelled_does_not_go_on_after_a_segment_was_deleted(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    begin(desk)
    desk.workspace.cancel()
    desk.segmentation.GetSegmentation().RemoveSegment(other)
    assert desk.assistant.wait()
    assert not finished(desk)


def test_what_could_be_redone_still_can_after_a_segment_was_deleted(desk: Desk) -> None:  # noqa: F811
    other, third = interrupted_by_a_click_that_is_undone(desk), desk.add_segment("third")
    desk.segmentation.GetSegmentation().RemoveSegment(third)
    assert desk.assistant.wait()
    assert not finished(desk)
    desk.workspace.redo()
    assert desk.assistant.wait()
    assert desk.mask(other)[5].any()


@pytest.mark.parametrize("found", [True, False])
def test_a_propagation_goes_on_after_auto_segment(desk: Desk, found: bool) -> None:  # noqa: F811
    def auto(*_: Any) -> Iterator[Any]:
        yield Progress(0, 1)

    desk.workspace.desk.auto = auto  # type: ignore[method-assign]
    begin(desk)
    liver = desk.add_segment("liver")
    if found:
        paint(desk.volume, desk.segmentation, liver, 0, 5, np.ones((64, 64), bool))
    desk.workspace.auto_segment({"liver": liver}, None, [], lambda _verdicts: None)
    assert desk.assistant.wait()
    assert finished(desk)
    assert desk.workspace.painter.has(liver) is found


def test_clicks_in_two_segments_before_the_first_is_answered_carry_both_of_them(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.workspace.add_prompt(other, point(desk.ct, RIGHT))
    assert desk.assistant.wait()
    assert finished(desk)
    assert desk.mask(other).any(axis=(1, 2)).all()


def test_a_click_is_carried_on_although_a_question_waits_behind_it(desk: Desk) -> None:  # noqa: F811
    answers: list[Any] = []
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.workspace.ask("doubtful slice", lambda: 7, answers.append)
    assert desk.assistant.wait()
    assert answers == [7]
    assert finished(desk)


def test_a_click_that_is_undone_before_it_is_answered_is_not_gone_on_with(desk: Desk, notes: list[str]) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not notes
    assert not desk.mask().any()


# Painting meanwhile


def test_what_is_painted_in_a_segment_that_another_ones_propagation_cuts_is_an_edit(desk: Desk) -> None:  # noqa: F811
    other, drawn = desk.add_segment("other"), np.zeros((64, 64), bool)
    drawn[2:9, 2:9] = True
    before = desk.do(other, point(desk.ct, RIGHT))
    desk.workspace.rules.overlap = lambda: Overlap.OVERWRITE_ALL  # type: ignore[method-assign]
    begin(desk)
    paint(desk.volume, desk.segmentation, other, 0, 9, desk.mask(other)[9] | drawn)
    assert desk.assistant.wait()
    assert (before & desk.mask()).any()  # the propagation has cut it
    left = desk.mask(other)[9] & drawn
    assert left.any()
    desk.do(other, point(desk.ct, ABOVE))
    assert [step.title for step in desk.workspace.journal.done][-2:] == ["edit", "add point"]
    np.testing.assert_array_equal(desk.mask(other)[9] & drawn, left)


def test_what_is_painted_after_the_last_slice_has_come_is_an_edit(desk: Desk) -> None:  # noqa: F811
    drawn = np.zeros((64, 64), bool)
    drawn[2:9, 2:9] = True
    told = desk.workspace.listener.confidence

    def then(*_: Any) -> None:  # the last that a propagation has to say, after all its slices
        if desk.mask().any(axis=(1, 2)).all():
            paint(desk.volume, desk.segmentation, desk.segment, 0, 9, desk.mask()[9] | drawn)
            desk.workspace.listener.confidence = told

    desk.workspace.listener.confidence = then
    desk.do(desk.segment, point(desk.ct, LEFT))
    assert desk.mask()[9][drawn].all()
    desk.workspace.propagate([desk.segment])
    assert desk.assistant.wait()
    assert "edit" in [step.title for step in desk.workspace.journal.done]
    assert desk.mask()[9][drawn].all()
