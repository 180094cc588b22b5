"""Undo and redo where the engine cannot just go back: segments from before, deleted ones, another engine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import paint, point  # noqa: E402

from SAM2AssistLib.mrml.journal import KnownMask  # noqa: E402
from SAM2AssistLib.mrml.masking import Overlap, Rules  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)
ELSEWHERE = (5, 15, 45)


def painted(desk: Desk, name: str) -> tuple[str, np.ndarray]:  # noqa: F811
    """Add a segment that somebody has painted before."""
    segment_id = desk.add_segment(name)
    truth = np.zeros(desk.ct.shape_kji, bool)
    truth[2:9, 10:20, 40:50] = True
    for k in range(2, 9):
        paint(desk.volume, desk.segmentation, segment_id, 0, k, truth[k])
    return segment_id, truth


def turn(desk: Desk, *deeds: str) -> None:  # noqa: F811
    """Undo or redo, waiting each time."""
    for deed in deeds:
        getattr(desk.workspace, deed)()
        assert desk.assistant.wait()


def held(desk: Desk, segment_id: str) -> np.ndarray:  # noqa: F811
    """What the engine has of a segment."""
    workspace = desk.workspace
    return workspace.desk.session.mask(workspace.desk._present()[segment_id])


def points(desk: Desk, segment_id: str | None = None) -> int:  # noqa: F811
    """Prompts that the views show."""
    return len(desk.workspace.prompts.gestures(segment_id or desk.segment))


# Segments that were there before


def test_a_segment_from_before_survives_two_undos_and_the_next_click_in_it(desk: Desk) -> None:  # noqa: F811
    earlier, truth = painted(desk, "earlier")
    desk.do(desk.segment, point(desk.ct, LEFT))
    first = desk.do(earlier, point(desk.ct, ELSEWHERE))
    turn(desk, "undo", "undo")
    np.testing.assert_array_equal(desk.mask(earlier), truth)
    np.testing.assert_array_equal(held(desk, earlier), truth)
    np.testing.assert_array_equal(desk.do(earlier, point(desk.ct, ELSEWHERE)), first)
    assert (desk.mask(earlier) & truth).sum() == truth.sum()
    assert not desk.errors


def test_what_was_undone_can_be_redone_although_a_segment_from_before_was_taken_over(desk: Desk) -> None:  # noqa: F811
    first = desk.do(desk.segment, point(desk.ct, LEFT))
    earlier, truth = painted(desk, "earlier")
    turn(desk, "undo")
    desk.workspace.propagate([earlier])
    assert desk.assistant.wait()
    turn(desk, "redo")
    np.testing.assert_array_equal(desk.mask(), first)
    np.testing.assert_array_equal(held(desk, desk.segment), first)
    np.testing.assert_array_equal(desk.mask(earlier), truth)
    assert points(desk) == 1


def test_a_segment_that_a_prediction_has_cut_is_taken_over_as_it_is_when_it_is_clicked(
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    earlier, _truth = painted(desk, "earlier")
    monkeypatch.setattr(Rules, "overlap", lambda _self: Overlap.OVERWRITE_ALL)
    desk.do(desk.segment, point(desk.ct, (5, 15, 41)))
    left = desk.mask(earlier)
    assert 0 < left.sum() < 700
    desk.assistant.rules.auto_propagate = False
    monkeypatch.undo()
    after = desk.do(earlier, point(desk.ct, (5, 18, 48)))
    np.testing.assert_array_equal(np.delete(after, 5, axis=0), np.delete(left, 5, axis=0))
    np.testing.assert_array_equal(np.delete(held(desk, earlier), 5, axis=0), np.delete(left, 5, axis=0))


def test_undo_leaves_the_prompts_of_segments_that_were_saved_with_theirs(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.do(other, point(desk.ct, RIGHT))
    desk.assistant.close_workspaces()
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    desk.do(desk.segment, point(desk.ct, LEFT))
    turn(desk, "undo")
    assert points(desk) == 0
    assert points(desk, other) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_known_mask_can_be_sliced_along_any_axis(axis: int) -> None:
    voxels = np.random.default_rng(0).random((4, 5, 6)) > 0.7
    known = KnownMask.of(enumerate(voxels), 0).along(axis, (4, 5, 6))
    assert known == KnownMask.of(enumerate(np.moveaxis(voxels, axis, 0)), axis)


# Segments that are deleted


def test_redo_after_another_segment_was_deleted_brings_prompts_and_engine_back_with_the_mask(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.do(other, point(desk.ct, RIGHT))
    first = desk.do(desk.segment, point(desk.ct, LEFT))
    turn(desk, "undo")
    desk.segmentation.GetSegmentation().RemoveSegment(other)
    assert desk.assistant.wait()
    turn(desk, "redo")
    np.testing.assert_array_equal(desk.mask(), first)
    np.testing.assert_array_equal(held(desk, desk.segment), first)
    assert points(desk) == 1


def test_undo_does_not_bring_a_deleted_segment_back_to_the_engine_alone(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(other, point(desk.ct, RIGHT))
    desk.segmentation.GetSegmentation().RemoveSegment(desk.segment)
    assert desk.assistant.wait()
    assert len(desk.workspace.journal.done) == 1
    turn(desk, "undo")
    assert desk.workspace.desk.session.segments == ()
    assert desk.workspace.undo() is None
    turn(desk, "redo")
    assert [segment.name for segment in desk.workspace.desk.session.segments] == ["other"]
    np.testing.assert_array_equal(desk.mask(other), held(desk, other))


def test_a_step_that_goes_on_after_one_of_its_segments_was_deleted_can_still_be_undone(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    desk.segmentation.GetSegmentation().RemoveSegment(desk.segment)
    desk.do(other, point(desk.ct, RIGHT))
    assert [step.title for step in desk.workspace.journal.done] == ["add point"]
    turn(desk, "undo")
    assert not desk.mask(other).any()
    assert points(desk, other) == 0


# An engine that has forgotten, or another one


def test_undo_goes_deeper_than_the_engines_history_with_masks_and_prompts_together(desk: Desk) -> None:  # noqa: F811
    masks = [desk.mask(), desk.do(desk.segment, point(desk.ct, LEFT))]
    desk.workspace.desk.session.history.budget_bytes = 1000
    masks += [desk.do(desk.segment, point(desk.ct, (k, 32, 20))) for k in (2, 7)]
    for count in (2, 1, 0):
        turn(desk, "undo")
        np.testing.assert_array_equal(desk.mask(), masks[count])
        assert points(desk) == count
    for count in (1, 2, 3):
        turn(desk, "redo")
        np.testing.assert_array_equal(desk.mask(), masks[count])
        assert points(desk) == count
    desk.assistant.rules.auto_propagate = False
    clicked = desk.do(desk.segment, point(desk.ct, (4, 32, 44)))
    np.testing.assert_array_equal(held(desk, desk.segment), clicked)
    np.testing.assert_array_equal(np.delete(clicked, 4, axis=0), np.delete(masks[3], 4, axis=0))
    assert not desk.errors


CHANGES: list[Any] = [{"device": "cpu"}, {"adapter": "another"}]


@pytest.mark.parametrize("change", [*CHANGES, "along"])
def test_undo_goes_on_after_another_engine_or_direction_was_chosen(desk: Desk, change: Any) -> None:  # noqa: F811
    masks = [desk.mask()] + [desk.do(desk.segment, point(desk.ct, place)) for place in (LEFT, (2, 32, 20))]
    if change == "along":
        desk.assistant.rules.along = "coronal"
    else:
        desk.assistant.choose(**change)
    before, desk.workspace = desk.workspace, desk.assistant.open(desk.volume, desk.segmentation)
    assert desk.workspace is not before
    masks.append(desk.do(desk.segment, point(desk.ct, (7, 32, 20))))
    for count in (2, 1, 0):
        turn(desk, "undo")
        np.testing.assert_array_equal(desk.mask(), masks[count])
        assert points(desk) == count
    assert desk.workspace.undo() is None
    for count in (1, 2, 3):
        turn(desk, "redo")
        np.testing.assert_array_equal(desk.mask(), masks[count])
        assert points(desk) == count
    assert not desk.errors


def test_what_is_painted_between_two_engines_is_a_step_of_its_own(desk: Desk) -> None:  # noqa: F811
    first = desk.do(desk.segment, point(desk.ct, LEFT))
    square = np.zeros((64, 64), bool)
    square[10:20, 10:20] = True
    paint(desk.volume, desk.segmentation, desk.segment, 0, 2, square)
    desk.assistant.choose(device="cpu")
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    turn(desk, "undo")
    np.testing.assert_array_equal(desk.mask(), first)
    turn(desk, "undo")
    assert not desk.mask().any()
    assert points(desk) == 0


def test_undo_with_another_engine_loads_no_model(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.assistant.choose(device="cpu")
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    turn(desk, "undo", "redo", "undo")
    assert desk.workspace.desk._session is None
    assert not desk.mask().any()


def test_a_prompt_of_an_earlier_engine_that_was_removed_comes_back_with_undo(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.assistant.choose(device="cpu")
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    node.RemoveNthControlPoint(0)
    assert desk.assistant.wait()
    assert points(desk) == 0
    turn(desk, "undo")
    assert points(desk) == 1


def test_who_removes_a_prompt_of_an_earlier_engine_is_told_that_its_mask_stays(
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = desk.do(desk.segment, point(desk.ct, LEFT))
    desk.assistant.choose(device="cpu")
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    told: list[str] = []
    monkeypatch.setattr(desk.assistant.listener, "note", told.append)
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    node.RemoveNthControlPoint(0)
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), found)
    assert sum("had found in ball stays" in sentence for sentence in told) == 1


def test_a_prompt_outside_leaves_those_of_an_earlier_engine_as_they_were(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.assistant.choose(device="cpu")
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    settled = dict(desk.workspace.desk._settled)
    outside = point(desk.ct, (5, 15, 4000))
    desk.workspace.prompts.show(desk.segment, [outside])
    desk.workspace.prompts_changed(desk.segment)
    assert desk.assistant.wait()
    assert desk.errors
    assert desk.workspace.desk._settled == settled
    assert points(desk) == 1


def test_on_another_grid_nothing_of_before_is_undone(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    slicer.util.updateVolumeFromArray(desk.volume, np.array(desk.ct.array)[:-1])
    workspace = desk.assistant.open(desk.volume, desk.segmentation)
    assert not workspace.journal.done


# Steps that come to nothing


def test_propagating_when_nothing_is_out_of_date_is_no_step_and_leaves_redo_as_it_was(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    second = desk.do(desk.segment, point(desk.ct, (2, 32, 20)))
    turn(desk, "undo")
    desk.workspace.propagate([desk.segment])
    assert desk.assistant.wait()
    assert [step.title for step in desk.workspace.journal.done] == ["add point"]
    turn(desk, "redo")
    np.testing.assert_array_equal(desk.mask(), second)
    np.testing.assert_array_equal(held(desk, desk.segment), second)
    assert points(desk) == 2


def test_a_propagation_that_changes_something_ends_what_could_be_redone(desk: Desk) -> None:  # noqa: F811
    other = desk.add_segment("other")
    desk.assistant.rules.auto_propagate = False
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(other, point(desk.ct, RIGHT))
    turn(desk, "undo")
    desk.workspace.propagate([desk.segment])
    assert desk.assistant.wait()
    assert [step.title for step in desk.workspace.journal.done] == ["add point", "propagate"]
    assert desk.workspace.redo() is None


def test_a_propagation_left_half_way_is_redone_in_the_engine_as_in_the_scene(desk: Desk) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    desk.workspace.cancel()
    assert desk.assistant.wait()
    kept = desk.mask()
    turn(desk, "undo", "redo")
    np.testing.assert_array_equal(desk.mask(), kept)
    shown = kept.any(axis=(1, 2))  # the engine may be a slice ahead, which it visits again
    assert shown.sum() >= 3
    np.testing.assert_array_equal(held(desk, desk.segment)[shown], kept[shown])


def test_undo_takes_back_what_has_come_from_the_engine_but_is_not_yet_shown(desk: Desk) -> None:  # noqa: F811
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(2)
    propagation = desk.assistant.worker.tasks[-1]
    time.sleep(1.0)  # nothing is delivered meanwhile
    assert propagation in desk.assistant.worker.tasks
    turn(desk, "undo")
    assert not desk.mask().any()
    turn(desk, "redo")
    assert desk.mask().any(axis=(1, 2)).sum() > 2
