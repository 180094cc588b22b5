"""What is painted and erased in the Segment Editor stays as it is, and is carried on where that is meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
pytest.importorskip("slicer", reason="slicer-core is not installed")

from auto_scenes import BALLS, balls  # noqa: E402
from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import box, paint, point  # noqa: E402

from SAM2AssistLib.mrml.desk import Patch, Verdicts  # noqa: E402
from SAM2AssistLib.mrml.masking import Overlap  # noqa: E402
from SAM2AssistLib.prompting.support import SupportCase  # noqa: E402
from SAM2AssistLib.prompting.support_library import SupportLibrary  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)
SQUARE = np.zeros((64, 64), bool)
SQUARE[26:38, 14:26] = True
NOTHING = np.zeros((64, 64), bool)


def edit(desk: Desk, slices: dict[int, np.ndarray], axis: int = 0) -> None:  # noqa: F811
    """Change slices as the Segment Editor does."""
    for index, mask in slices.items():
        paint(desk.volume, desk.segmentation, desk.segment, axis, index, mask)


def propagate(desk: Desk) -> np.ndarray:  # noqa: F811
    desk.workspace.propagate([desk.segment])
    assert desk.assistant.wait()
    return desk.mask()


@pytest.mark.parametrize("count", [2, 4, 5])
def test_an_end_that_was_erased_stays_away_however_many_slices_it_had(desk: Desk, count: int) -> None:  # noqa: F811
    before = desk.do(desk.segment, point(desk.ct, LEFT))
    (shown,) = np.nonzero(before.any(axis=(1, 2)))
    erased = shown[shown < LEFT[0]][:count] if count < LEFT[0] else np.arange(LEFT[0])
    assert len(erased) == count
    edit(desk, dict.fromkeys(map(int, erased), NOTHING))
    assert not propagate(desk)[erased].any()
    after = desk.do(desk.segment, point(desk.ct, (LEFT[0] + 1, *LEFT[1:])))
    assert not after[erased].any()
    assert after[LEFT[0]].any()


def test_slices_drawn_here_and_there_in_an_empty_segment_are_carried_to_those_between(desk: Desk) -> None:  # noqa: F811
    drawn = (1, 3, 5, 7)
    edit(desk, dict.fromkeys(drawn, SQUARE))
    after = propagate(desk)
    for index in drawn:
        np.testing.assert_array_equal(after[index], SQUARE)
    assert after[[2, 4, 6]].any(axis=(1, 2)).all()


def test_a_segment_made_elsewhere_is_not_carried_on_by_a_look_at_it(desk: Desk) -> None:  # noqa: F811
    edit(desk, dict.fromkeys(range(2, 8), SQUARE))
    before, told = desk.mask(), []
    desk.assistant.listener.note = told.append
    np.testing.assert_array_equal(propagate(desk), before)
    (sentence,) = told
    assert "Nothing has changed" in sentence
    assert desk.workspace.undo() != "propagate"


@pytest.mark.parametrize("undone", [True, False])
def test_what_is_painted_after_a_box_of_another_view_has_gone_is_not_lost(desk: Desk, undone: bool) -> None:  # noqa: F811
    desk.assistant.rules.auto_propagate = False
    assert desk.do(desk.segment, box(desk.ct, (2, 32, 14), (8, 32, 26))).any()
    if undone:
        desk.workspace.undo()
    else:
        for node in desk.workspace.prompts.nodes():
            desk.scene.RemoveNode(node)
    assert desk.assistant.wait()
    assert not desk.mask().any()
    edit(desk, {4: SQUARE, 5: SQUARE})
    after = desk.do(desk.segment, point(desk.ct, RIGHT))
    np.testing.assert_array_equal(after[4], SQUARE)
    assert after[5][SQUARE].all()
    assert not desk.errors


def test_a_correction_leaves_to_another_segment_what_that_has_taken_elsewhere(
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.assistant.rules.auto_propagate = False
    monkeypatch.setattr(desk.assistant.rules, "overlap", lambda: Overlap.OVERWRITE_ALL)
    first = desk.do(desk.segment, box(desk.ct, (5, 22, 10), (5, 42, 30)))[5]
    rows, columns = np.nonzero(first)
    theirs = first.copy()
    theirs[:, : int(np.median(columns))] = False
    other = desk.add_segment("other")
    desk.workspace.painter.write(Patch(other, 0, 5, theirs))
    np.testing.assert_array_equal(desk.mask()[5], first & ~theirs)
    far = int(np.argmin(columns))
    after = desk.do(desk.segment, point(desk.ct, (5, rows[far], columns[far]), positive=False))[5]
    assert not after[rows[far], columns[far]]
    assert not (after & theirs).any()
    np.testing.assert_array_equal(desk.mask(other)[5], theirs)
    desk.workspace.undo()
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask()[5], first & ~theirs)


@pytest.mark.parametrize("emptied", [False, True])
def test_auto_segment_takes_the_name_of_a_segment_that_was_renamed_or_emptied(
    desk: Desk,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    emptied: bool,
) -> None:
    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path))
    SupportLibrary().add(SupportCase("balls", *balls()))
    segments, (name, *_) = desk.segmentation.GetSegmentation(), BALLS
    segments.GetSegment(desk.segment).SetName(name)
    assert desk.do(desk.segment, point(desk.ct, LEFT)).any()
    if emptied:
        edit(desk, dict.fromkeys(range(desk.ct.shape_kji[0]), NOTHING))
        wanted = desk.segment
    else:
        segments.GetSegment(desk.segment).SetName("by hand")
        wanted = desk.add_segment(name)
    verdicts: list[Verdicts | None] = []
    desk.workspace.auto_segment({name: wanted}, None, ["balls"], verdicts.append)
    assert desk.assistant.wait()
    assert not desk.errors
    (found,) = verdicts
    assert found is not None
    assert desk.mask(wanted).any() == found.present[name]


def test_a_copy_that_bears_its_originals_name_may_be_clicked_before_the_original(desk: Desk) -> None:  # noqa: F811
    edit(desk, {5: SQUARE})
    segments = desk.segmentation.GetSegmentation()
    segments.CopySegmentFromSegmentation(segments, desk.segment)
    (copy,) = set(segments.GetSegmentIDs()) - {desk.segment}
    assert segments.GetSegment(copy).GetName() == desk.segment  # a new segment's name is its id
    desk.do(copy, point(desk.ct, RIGHT))
    desk.do(desk.segment, point(desk.ct, (3, *RIGHT[1:])))
    assert not desk.errors
    assert desk.mask(copy)[RIGHT]
    assert desk.mask()[3].any()


def test_a_preview_says_nothing_of_a_segment_that_the_engine_has_yet_to_meet(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.add_segment("other"), point(desk.ct, RIGHT))
    edit(desk, {5: SQUARE})

    def preview() -> Patch | None:
        held = desk.workspace.painter.holds_voxels(desk.segment)
        return desk.workspace.desk.preview(desk.segment, point(desk.ct, LEFT), held=held)

    assert preview() is None
    propagate(desk)
    assert preview() is not None
