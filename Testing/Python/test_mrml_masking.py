"""Predictions keep to the Segment Editor's masking and overlap, as they are chosen at the moment."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import paint  # noqa: E402
from mrml_view import RecordingView  # noqa: E402

from SAM2AssistLib.engine.session import Session  # noqa: E402
from SAM2AssistLib.mrml.desk import Patch  # noqa: E402
from SAM2AssistLib.mrml.panel import Panel  # noqa: E402
from SAM2AssistLib.mrml.voxels import array_of_labelmap  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)
SQUARE = np.zeros((64, 64), bool)
SQUARE[28:40, 10:30] = True
BRIGHT = (100, 3000)
MODES = [
    "EditAllowedEverywhere",
    "EditAllowedInsideAllSegments",
    "EditAllowedInsideVisibleSegments",
    "EditAllowedOutsideAllSegments",
    "EditAllowedOutsideVisibleSegments",
    "EditAllowedInsideSingleSegment",
]


def choices(desk: Desk, **changes: Any) -> SimpleNamespace:  # noqa: F811
    """What the module's parameter node holds."""
    chosen = {"volume": desk.volume, "segmentation": desk.segmentation, "autoPropagate": True, "livePreview": False}
    chosen |= {"model": "mini", "device": "auto", "adapter": "", "axis": "automatic"}
    return SimpleNamespace(**(chosen | changes))


@pytest.fixture
def panel(desk: Desk) -> Iterator[Panel]:  # noqa: F811
    """The panel over the desk, in which points are being placed."""
    for name in ("Selection", "Interaction"):  # the application has them
        node = desk.scene.CreateNodeByClass(f"vtkMRML{name}Node")
        node.UnRegister(None)
        node.SetSingletonTag("Singleton")
        desk.scene.AddNode(node)
    panel = Panel(desk.scene, desk.assistant, RecordingView())
    panel.installed = False  # nothing is looked for
    panel.set_parameters(choices(desk))
    panel.start_placing("point", True)
    yield panel
    assert panel.view.errors == []
    panel.close()


def click(desk: Desk, index_kji: Any) -> None:  # noqa: F811
    """Place a point by the mouse, as the views do: nobody but the markups node is told."""
    import vtk

    (node,) = desk.assistant.workspaces[0].prompts.nodes(desk.segment)
    ras = desk.ct.ras_from_index_ijk(np.array(index_kji, float)[::-1])
    node.AddControlPointWorld(vtk.vtkVector3d(*ras))


def clicked(desk: Desk, index_kji: Any = LEFT) -> np.ndarray:  # noqa: F811
    """Click, wait, and return the segment."""
    click(desk, index_kji)
    assert desk.assistant.wait()
    return desk.mask()


def unmasked(desk: Desk) -> np.ndarray:  # noqa: F811
    """What a click gives without any masking; taken back again."""
    found = clicked(desk)
    desk.assistant.workspaces[0].undo()
    assert desk.assistant.wait()
    assert not desk.mask().any()
    return found


def other_segment(desk: Desk, name: str, mask: np.ndarray = SQUARE) -> str:  # noqa: F811
    """A segment that is there already, on all slices."""
    segment_id = desk.add_segment(name)
    for index in range(desk.ct.shape_kji[0]):
        paint(desk.volume, desk.segmentation, segment_id, 0, index, mask)
    return segment_id


def slicers_own_mask(desk: Desk, editor: Any) -> np.ndarray:  # noqa: F811
    """Where Slicer lets its own effects change the segment, bool (k, j, i)."""
    mask, source = slicer.vtkOrientedImageData(), None
    reference = desk.workspace.painter.grid.image((0, 63, 0, 63, 0, 9), 3)
    if editor.GetSourceVolumeIntensityMask():
        source = slicer.vtkSlicerSegmentationsModuleLogic.CreateOrientedImageDataFromVolumeNode(desk.volume)
    assert desk.segmentation.GenerateEditMask(
        mask,
        editor.GetMaskMode(),
        reference,
        desk.segment,
        editor.GetMaskSegmentID() or "",
        source,
        editor.GetSourceVolumeIntensityMaskRange() if source is not None else None,
    )
    return array_of_labelmap(mask) == 0


@pytest.mark.parametrize("own_is_shown", [True, False])
@pytest.mark.parametrize("by_intensity", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_prediction_changes_what_slicers_own_effects_may_change(
    desk: Desk,  # noqa: F811
    panel: Panel,
    mode: str,
    by_intensity: bool,
    own_is_shown: bool,
) -> None:
    places = {"seen": SQUARE, "hidden": SQUARE.T, "single": np.roll(SQUARE, 5, axis=0)}
    ids = {name: other_segment(desk, name, mask) for name, mask in places.items()}
    own = np.zeros((64, 64), bool)
    own[20:34, 20:60] = True
    for index in range(10):
        paint(desk.volume, desk.segmentation, desk.segment, 0, index, own)
    display = desk.segmentation.GetDisplayNode()
    display.SetSegmentVisibility(ids["hidden"], False)
    display.SetSegmentVisibility(desk.segment, own_is_shown)
    editor = panel.editor_node()
    editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mode))
    editor.SetMaskSegmentID(ids["single"])
    editor.SetSourceVolumeIntensityMask(by_intensity)
    editor.SetSourceVolumeIntensityMaskRange(*BRIGHT)
    allowed = slicers_own_mask(desk, editor)
    assert allowed[4].sum() > 0
    for index, value in ((4, True), (6, False)):
        desk.workspace.painter.write(Patch(desk.segment, 0, index, np.full((64, 64), value)))
        np.testing.assert_array_equal(desk.mask()[index], np.where(allowed[index], value, own))


@pytest.mark.parametrize(
    ("overwrite", "seen_is_kept", "hidden_is_kept"),
    [("OverwriteNone", True, True), ("OverwriteVisibleSegments", False, True), ("OverwriteAllSegments", False, False)],
)
def test_other_segments_give_way_only_where_that_was_asked_for_and_come_back_by_undo(
    desk: Desk,  # noqa: F811
    panel: Panel,
    overwrite: str,
    seen_is_kept: bool,
    hidden_is_kept: bool,
) -> None:
    full = unmasked(desk)
    seen, hidden = other_segment(desk, "seen"), other_segment(desk, "hidden")
    desk.segmentation.GetDisplayNode().SetSegmentVisibility(hidden, False)
    editor = panel.editor_node()
    editor.SetOverwriteMode(getattr(editor, overwrite))
    np.testing.assert_array_equal(clicked(desk), full)
    everything, rest = np.broadcast_to(SQUARE, full.shape), SQUARE & ~full
    assert (rest != everything).any()
    for segment_id, kept in ((seen, seen_is_kept), (hidden, hidden_is_kept)):
        np.testing.assert_array_equal(desk.mask(segment_id), everything if kept else rest)
    panel.undo()
    assert desk.assistant.wait()
    for segment_id in (seen, hidden):
        np.testing.assert_array_equal(desk.mask(segment_id), everything)


CONFINED = [
    lambda editor: editor.SetOverwriteMode(editor.OverwriteAllSegments),
    lambda editor: editor.SetOverwriteMode(editor.OverwriteVisibleSegments),
    lambda editor: editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments),
    lambda editor: editor.SetSourceVolumeIntensityMask(True),
]


@pytest.mark.parametrize("confine", [None, *CONFINED])
def test_where_segments_or_areas_exclude_one_another_only_what_is_visited_settles(
    desk: Desk,  # noqa: F811
    panel: Panel,
    monkeypatch: pytest.MonkeyPatch,
    confine: Any,
) -> None:
    told, propagate = [], Session.propagate

    def noting(self: Session, *args: Any, anew: bool, **kwargs: Any) -> Any:
        told.append(anew)
        return propagate(self, *args, anew=anew, **kwargs)

    monkeypatch.setattr(Session, "propagate", noting)
    if confine is not None:
        confine(panel.editor_node())
    clicked(desk)
    assert set(told) == {confine is None}


def test_other_segments_are_spared_by_the_editable_area_outside_of_them(desk: Desk, panel: Panel) -> None:  # noqa: F811
    full, other = unmasked(desk), other_segment(desk, "other")
    panel.editor_node().SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    np.testing.assert_array_equal(clicked(desk), full & ~SQUARE)
    np.testing.assert_array_equal(desk.mask(other), np.broadcast_to(SQUARE, full.shape))


def test_where_masking_forbids_to_paint_overwriting_takes_nothing_from_others(desk: Desk, panel: Panel) -> None:  # noqa: F811
    full, other, editor = unmasked(desk), other_segment(desk, "other"), panel.editor_node()
    editor.SetOverwriteMode(editor.OverwriteAllSegments)
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(*BRIGHT)
    bright = desk.ct.array >= BRIGHT[0]
    np.testing.assert_array_equal(clicked(desk), full & bright)
    np.testing.assert_array_equal(desk.mask(other), SQUARE & ~(full & bright))


def test_masking_that_is_chosen_while_points_are_placed_holds_for_the_next_point(desk: Desk, panel: Panel) -> None:  # noqa: F811
    first = clicked(desk)
    dark = desk.ct.array < BRIGHT[0]
    assert (first & dark).any()
    panel.undo()
    assert desk.assistant.wait()
    panel.editor_node().SetSourceVolumeIntensityMask(True)
    panel.editor_node().SetSourceVolumeIntensityMaskRange(*BRIGHT)
    np.testing.assert_array_equal(clicked(desk), first & ~dark)


def test_masking_that_is_chosen_in_mid_propagation_holds_for_the_slices_that_come(desk: Desk, panel: Panel) -> None:  # noqa: F811
    full = unmasked(desk)
    click(desk, LEFT)
    desk.some_steps(3)
    done = desk.mask().any(axis=(1, 2))
    panel.editor_node().SetSourceVolumeIntensityMask(True)
    panel.editor_node().SetSourceVolumeIntensityMaskRange(*BRIGHT)
    assert desk.assistant.wait()
    later = ~done
    assert later.any()
    np.testing.assert_array_equal(desk.mask()[later], (full & (desk.ct.array >= BRIGHT[0]))[later])


def test_auto_propagation_that_is_switched_while_points_are_placed_is_heeded_by_the_next(
    desk: Desk,  # noqa: F811
    panel: Panel,
) -> None:
    panel.set_parameters(choices(desk, autoPropagate=False))
    assert clicked(desk).any(axis=(1, 2)).sum() == 1
    panel.set_parameters(choices(desk, autoPropagate=True))
    assert clicked(desk, RIGHT).any(axis=(1, 2)).all()


def test_auto_propagation_that_is_switched_off_before_a_click_is_answered_is_heeded_by_it(
    desk: Desk,  # noqa: F811
    panel: Panel,
) -> None:
    click(desk, LEFT)
    panel.set_parameters(choices(desk, autoPropagate=False))
    assert desk.assistant.wait()
    assert desk.mask().any(axis=(1, 2)).sum() == 1


def test_another_axis_that_is_chosen_while_points_are_placed_holds_for_the_next(desk: Desk, panel: Panel) -> None:  # noqa: F811
    click(desk, LEFT)
    assert desk.assistant.wait()
    panel.set_parameters(choices(desk, axis="coronal", autoPropagate=False))
    before = desk.mask()
    k, i = np.argwhere(~before[:, RIGHT[1]])[0]
    click(desk, (k, RIGHT[1], i))
    assert desk.assistant.wait()
    (workspace,) = desk.assistant.workspaces
    assert workspace.desk.axis == desk.ct.array_axis_of("coronal") != 0
    assert np.flatnonzero((desk.mask() != before).any(axis=(0, 2))).tolist() == [RIGHT[1]]


def test_a_workspace_that_is_made_for_new_voxels_begins_with_what_was_chosen(desk: Desk, panel: Panel) -> None:  # noqa: F811
    panel.set_parameters(choices(desk, autoPropagate=False, axis="sagittal"))
    panel.editor_node().SetSourceVolumeIntensityMask(True)
    panel.editor_node().SetSourceVolumeIntensityMaskRange(*BRIGHT)
    panel.start_placing("point", True)
    slicer.util.updateVolumeFromArray(desk.volume, np.ascontiguousarray(np.array(desk.ct.array)[:, ::-1]))
    panel.set_parameters(choices(desk, autoPropagate=False, axis="coronal"))
    (before,) = desk.assistant.workspaces
    found = clicked(desk, LEFT)
    (after,) = desk.assistant.workspaces
    assert after is not before
    assert after.desk.axis == desk.ct.array_axis_of("coronal")
    assert np.flatnonzero(found.any(axis=(0, 2))).tolist() == [LEFT[1]]
    assert (slicer.util.arrayFromVolume(desk.volume)[found] >= BRIGHT[0]).all()


def test_inside_a_segment_that_has_been_deleted_nothing_is_painted_and_the_user_is_told_once(
    desk: Desk,  # noqa: F811
    panel: Panel,
) -> None:
    full, other, editor = unmasked(desk), other_segment(desk, "other"), panel.editor_node()
    editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    editor.SetMaskSegmentID(other)
    desk.segmentation.GetSegmentation().RemoveSegment(other)
    assert not clicked(desk).any()
    (error,) = panel.view.errors
    assert "editable area" in str(error)
    panel.view.errors.clear()
    panel.undo()
    editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
    np.testing.assert_array_equal(clicked(desk), full)
