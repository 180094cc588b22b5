"""Prompts are nodes, edits are prompts, and undo keeps in step with the Segment Editor's."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import box, paint, point  # noqa: E402

from SAM2AssistLib.mrml.gestures import Gesture, Kind  # noqa: E402
from SAM2AssistLib.mrml.prompt_nodes import FOLDER  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[rows, columns] = True
    return mask


def test_prompts_are_named_after_their_segment_and_lie_in_one_folder(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(desk.segment, point(desk.ct, RIGHT, positive=False))
    desk.do(desk.segment, box(desk.ct, (5, 20, 10), (5, 44, 30)))
    names = [node.GetName() for node in desk.workspace.prompts.nodes(desk.segment)]
    assert names == ["ball points +", "ball points -", "ball box +"]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(desk.scene)
    folders = {
        hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))
        for node in desk.workspace.prompts.nodes(desk.segment)
    }
    assert folders == {f"{FOLDER} (S)"}
    desk.scene.RemoveNode(desk.segmentation)
    desk.assistant.pump()
    assert not desk.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")


def test_a_new_segment_gets_no_prompts_of_one_that_was_deleted_while_the_module_did_not_look(
    desk: Desk,  # noqa: F811
) -> None:
    """As in the Segment Editor, after a scene was loaded; Slicer gives the id of the old segment to the new one."""
    kept = desk.add_segment("kept")
    desk.do(kept, point(desk.ct, RIGHT))
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(desk.segment, box(desk.ct, (5, 20, 10), (5, 44, 30)))
    desk.assistant.close_workspaces()
    desk.segmentation.GetSegmentation().RemoveSegment(desk.segment)
    prompts = desk.assistant.open(desk.volume, desk.segmentation).prompts
    desk.segmentation.GetSegmentation().AddEmptySegment(desk.segment, "new")
    assert not prompts.nodes(desk.segment)
    assert len(prompts.gestures(kept)) == 1


def test_prompts_stay_if_the_file_of_the_segmentation_could_not_be_read(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.assistant.close_workspaces()
    desk.segmentation.GetSegmentation().RemoveAllSegments()
    assert desk.assistant.open(desk.volume, desk.segmentation).prompts.nodes(desk.segment)


def test_a_dragged_point_is_the_same_as_one_that_was_placed_there(desk: Desk) -> None:  # noqa: F811
    expected = desk.do(desk.segment, point(desk.ct, RIGHT))
    desk.workspace.undo()
    desk.assistant.wait()
    desk.do(desk.segment, point(desk.ct, LEFT))
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    node.SetNthControlPointPosition(0, *desk.ct.ras_from_index_ijk(np.array(RIGHT, float)[::-1]))
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), expected)
    assert desk.workspace.undo() == "move prompt"
    desk.assistant.wait()
    assert desk.workspace.prompts.gestures(desk.segment) == (point(desk.ct, LEFT),)


def test_while_a_point_is_dragged_nothing_is_computed(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.SetNthControlPointPosition(0, *desk.ct.ras_from_index_ijk(np.array(RIGHT, float)[::-1]))
    assert not desk.workspace.busy
    node.InvokeEvent(node.PointEndInteractionEvent)
    assert desk.workspace.busy


def test_a_deleted_prompt_is_taken_out_of_the_engine_too(desk: Desk, quick_engine: Any) -> None:  # noqa: F811
    one, two = point(desk.ct, LEFT), point(desk.ct, (3, 32, 44))
    desk.do(desk.segment, one)
    both = desk.do(desk.segment, two)
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    node.RemoveNthControlPoint(1)
    desk.assistant.wait()
    with quick_engine().open(desk.ct) as session:
        segment = session.add_segment("ball")
        for gesture in (one, two):
            session.add_point(segment, gesture.points_ras[0])
            list(session.propagate())
        session.remove_prompt(segment, session.prompts(segment)[1])
        list(session.propagate())
        np.testing.assert_array_equal(desk.mask(), session.mask(segment))
    assert (desk.mask() != both).any()


def test_a_segment_without_prompts_is_empty_again_and_undo_brings_it_back(desk: Desk) -> None:  # noqa: F811
    one = desk.do(desk.segment, point(desk.ct, LEFT))
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    desk.scene.RemoveNode(node)
    desk.assistant.wait()
    assert not desk.mask().any()
    desk.workspace.undo()
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), one)
    assert desk.workspace.prompts.gestures(desk.segment) == (point(desk.ct, LEFT),)


def test_a_prompt_outside_the_volume_is_told_and_its_node_taken_back(desk: Desk) -> None:  # noqa: F811
    before = desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(desk.segment, point(desk.ct, (5, 32, 90)))
    assert "outside the volume" in str(desk.errors[0])
    assert desk.workspace.prompts.gestures(desk.segment) == (point(desk.ct, LEFT),)
    np.testing.assert_array_equal(desk.mask(), before)
    assert len(desk.workspace.journal.done) == 1


def test_a_scribble_is_several_clicks_and_one_step_of_undo(desk: Desk) -> None:  # noqa: F811
    line = desk.ct.ras_from_index_ijk(np.array([(15, 30, 5), (20, 32, 5), (25, 34, 5)], float))
    assert desk.do(desk.segment, Gesture.of(Kind.SCRIBBLE, line))[5].any()
    desk.workspace.undo()
    desk.assistant.wait()
    assert not desk.mask().any()
    assert not desk.workspace.prompts.nodes(desk.segment)


def test_a_segment_made_elsewhere_is_corrected_where_it_is_clicked_and_kept_elsewhere(desk: Desk) -> None:  # noqa: F811
    drawn = square(slice(20, 44), slice(8, 32))
    for index in range(10):
        paint(desk.volume, desk.segmentation, desk.segment, 0, index, drawn)
    after = desk.do(desk.segment, point(desk.ct, (5, 50, 50)))
    assert (after[5] != drawn).any()
    for index in (0, 1, 8, 9):
        np.testing.assert_array_equal(after[index], drawn)
    desk.workspace.undo()
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), np.broadcast_to(drawn, (10, 64, 64)))


def test_an_undo_in_the_segment_editor_takes_our_prompts_back_too(desk: Desk) -> None:  # noqa: F811
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(desk.segmentation.GetSegmentation())
    first = desk.do(desk.segment, point(desk.ct, LEFT))
    history.SaveState()
    desk.do(desk.segment, point(desk.ct, (3, 32, 44)))
    assert history.RestorePreviousState()
    desk.workspace.absorb_edits()
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), first)
    assert desk.workspace.prompts.gestures(desk.segment) == (point(desk.ct, LEFT),)
    assert [step.title for step in desk.workspace.journal.undone] == ["add point"]
    desk.workspace.redo()
    desk.assistant.wait()
    assert len(desk.workspace.prompts.gestures(desk.segment)) == 2


def test_many_steps_can_be_taken_back_and_brought_again(desk: Desk) -> None:  # noqa: F811
    states = [desk.mask()]
    for n in range(12):
        states.append(desk.do(desk.segment, point(desk.ct, (n % 10, 20 + n, 15 + 3 * n), positive=n % 3 != 2)))
    for expected in states[-2::-1]:
        desk.workspace.undo()
        desk.assistant.wait()
        np.testing.assert_array_equal(desk.mask(), expected)
    for expected in states[1:]:
        desk.workspace.redo()
        desk.assistant.wait()
        np.testing.assert_array_equal(desk.mask(), expected)
    assert not desk.errors


def test_a_closed_surface_that_was_shown_stays_while_slices_come_in_and_is_there_at_the_end(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.segmentation.CreateClosedSurfaceRepresentation()
    desk.workspace.add_prompt(desk.segment, point(desk.ct, (3, 32, 44)))
    while desk.assistant.pump(0.0):
        assert desk.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
        time.sleep(0.002)
    assert desk.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")


def test_what_a_prediction_writes_is_told_to_the_views_once_for_every_delivery(desk: Desk) -> None:  # noqa: F811
    segmentation, told = desk.segmentation.GetSegmentation(), []
    tag = segmentation.AddObserver(segmentation.SourceRepresentationModified, lambda *_: told.append(1))
    desk.assistant.rules.auto_propagate = False
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    while desk.assistant.pump():
        time.sleep(0.002)
    segmentation.RemoveObserver(tag)
    assert 1 <= len(told) <= 3


def test_another_time_point_is_segmented_as_it_is_now(desk: Desk) -> None:  # noqa: F811
    """A sequence browser replaces the voxels of its proxy node; the node stays the same."""
    desk.do(desk.segment, point(desk.ct, LEFT))
    other = desk.add_segment("other")
    later = np.ascontiguousarray(np.array(desk.ct.array)[:, ::-1])
    slicer.util.updateVolumeFromArray(desk.volume, later)
    workspace = desk.assistant.open(desk.volume, desk.segmentation)
    assert workspace is not desk.workspace
    np.testing.assert_array_equal(workspace.desk.volume.array, later)
    workspace.add_prompt(other, point(desk.ct, RIGHT))
    assert desk.assistant.wait()
    assert desk.mask(other).any()


def test_a_point_placed_after_the_time_point_has_changed_goes_to_the_new_one(desk: Desk) -> None:  # noqa: F811
    import vtk

    desk.do(desk.segment, point(desk.ct, LEFT))
    later = np.ascontiguousarray(np.array(desk.ct.array)[:, ::-1])
    slicer.util.updateVolumeFromArray(desk.volume, later)
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    node.AddControlPoint(vtk.vtkVector3d(*desk.ct.ras_from_index_ijk(np.array((2, 32, 44), float)[::-1])))
    assert desk.assistant.wait()
    assert desk.workspace.closed
    (workspace,) = desk.assistant.workspaces
    assert len(workspace.prompts.gestures(desk.segment)) == 2
    assert not desk.errors


def test_the_panel_can_be_shown_before_torch_and_scikit_image_are_installed() -> None:
    import subprocess
    import sys

    program = (
        "import sys; import SAM2AssistLib.mrml.panel, SAM2AssistLib.mrml.first_run;"
        "print([name for name in ('torch', 'skimage', 'sam2', 'typer', 'safetensors') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.strip() == "[]"


def test_a_box_whose_handles_make_it_deep_bounds_the_segment_in_three_dimensions(desk: Desk) -> None:  # noqa: F811
    flat = desk.do(desk.segment, box(desk.ct, (5, 20, 10), (5, 44, 30)))
    assert flat.any(axis=(1, 2)).all()
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    size = list(node.GetSize())
    across = min(range(3), key=lambda axis: size[axis])
    size[across] = 4 * desk.ct.spacing_ijk[2]
    node.SetSize(*size)
    assert desk.assistant.wait()
    shown = np.flatnonzero(desk.mask().any(axis=(1, 2)))
    assert (shown.min(), shown.max()) == (3, 7)
    assert [step.title for step in desk.workspace.journal.done] == ["add box", "move prompt"]
    desk.workspace.undo()
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), flat)


@pytest.mark.parametrize(("solid", "depth_mm"), [(False, 0.0), (True, 24.0)])
def test_a_box_drawn_on_a_slice_is_flat_or_as_deep_as_its_shorter_side(
    desk: Desk,  # noqa: F811
    solid: bool,
    depth_mm: float,
) -> None:
    view = desk.scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    middle = desk.ct.ras_from_index_ijk(np.array([20.0, 32, 5]))
    view.JumpSliceByOffsetting(*middle)
    prompts = desk.workspace.prompts
    node = prompts.node_for(desk.segment, Kind.BOX)
    prompts.begin_drawing(node, solid=solid)
    node.SetXYZ(*middle)
    node.SetSize(24, 40, 7)
    prompts.end_drawing()
    assert desk.assistant.wait()
    assert node.GetSize() == pytest.approx((24, 40, depth_mm))
    (gesture,) = prompts.gestures(desk.segment)
    (prompt,) = gesture.prompts(desk.ct, 0)
    assert prompt.axis == (None if solid else 0)
    assert bool(node.GetDisplayNode().GetVisibility3D()) is solid
    node.SetSize(24, 40, 9)
    assert node.GetDisplayNode().GetVisibility3D()  # a flat box that handles have made deep is one in space
