"""Wherever volume and segmentation lie in the patient, prompts land where they were placed, masks where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ct_files import rotation

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk, make_desk  # noqa: E402, F401
from mrml_scene import a_scene, assistant_for, box, mask_of, paint, point, volume_node  # noqa: E402

from SAM2AssistLib.errors import InputError  # noqa: E402
from SAM2AssistLib.mrml.gestures import Gesture, Kind  # noqa: E402
from SAM2AssistLib.mrml.volumes import automatic_axis, volume_from_node  # noqa: E402
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels, array_of_labelmap  # noqa: E402
from SAM2AssistLib.mrml.workspace import Workspace  # noqa: E402
from SAM2AssistLib.volume import CTVolume  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)
GRIDS = {
    "oblique": rotation((10, 20, 30)),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "sagittal first": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
}


def turned(volume: CTVolume, directions: np.ndarray) -> CTVolume:
    matrix = volume.ijk_to_lps.copy()
    matrix[:3, :3] = directions * np.array(volume.spacing_ijk)
    matrix[:3, 3] = (-12.5, 30.25, 7.0)
    return CTVolume.from_array(volume.array, volume.spacing_ijk, matrix)


def expected(engine: Any, volume: CTVolume, index_kji: Any) -> np.ndarray:
    """What the library makes of a click."""
    with engine.open(volume) as session:
        segment = session.add_segment("ball")
        session.add_point(segment, volume.ras_from_index_ijk(np.array(index_kji, float)[::-1]))
        list(session.propagate())
        return session.mask(segment)


@pytest.fixture
def scene() -> Iterator[Any]:
    with a_scene() as scene:
        yield scene


@pytest.mark.parametrize("name", list(GRIDS))
def test_on_any_grid_a_click_gives_what_the_library_gives(
    scene: Any, quick_engine: Any, a_blob_volume: CTVolume, name: str
) -> None:
    ct = turned(a_blob_volume, GRIDS[name])
    made = make_desk(scene, quick_engine(), ct)
    workspace = made.workspace
    workspace.desk.axis = 0
    found = made.do(made.segment, point(ct, LEFT))
    np.testing.assert_array_equal(found, expected(quick_engine(), ct, LEFT))
    image = made.segmentation.GetBinaryLabelmapInternalRepresentation(made.segment)
    grid = Grid.of(made.volume, made.segmentation)
    assert SegmentVoxels(made.segmentation, made.segment, grid)._offset_ijk(image) is not None
    made.assistant.close()


def test_under_a_linear_transform_prompts_and_masks_move_with_the_volume(desk: Desk, quick_engine: Any) -> None:  # noqa: F811
    import vtk

    transform, matrix = desk.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode"), vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 100.0)
    matrix.SetElement(1, 1, -1.0)
    matrix.SetElement(2, 2, -1.0)
    transform.SetMatrixTransformToParent(matrix)
    for node in (desk.volume, desk.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    x, y, z = desk.ct.ras_from_index_ijk(np.array(LEFT, float)[::-1])
    node = desk.workspace.prompts.node_for(desk.segment, Kind.POINT)
    assert node.GetTransformNodeID() == transform.GetID()
    node.AddControlPointWorld(vtk.vtkVector3d(x + 100, -y, -z))
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), expected(quick_engine(), desk.ct, LEFT))
    assert not desk.errors


def test_a_volume_that_is_moved_later_takes_its_prompts_along_and_keeps_its_masks(desk: Desk) -> None:  # noqa: F811
    found = desk.do(desk.segment, point(desk.ct, LEFT))
    transform = desk.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    for node in (desk.volume, desk.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    (prompts,) = desk.workspace.prompts.nodes(desk.segment)
    assert prompts.GetTransformNodeID() == transform.GetID()
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), found)


def moved(desk: Desk) -> Workspace:  # noqa: F811
    """Put volume and segmentation under a transform; returns their workspace."""
    import vtk

    transform, matrix = desk.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode"), vtk.vtkMatrix4x4()
    for row in range(3):
        for column in range(3):
            matrix.SetElement(row, column, rotation((0, 0, 20))[row, column])
        matrix.SetElement(row, 3, 30.0)
    transform.SetMatrixTransformToParent(matrix)
    for node in (desk.volume, desk.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    return desk.assistant.open(desk.volume, desk.segmentation)


def lies_on_the_grid(desk: Desk) -> bool:  # noqa: F811
    """Whether the segment's labelmap has the grid of the volume."""
    image = desk.segmentation.GetBinaryLabelmapInternalRepresentation(desk.segment)
    voxels = SegmentVoxels(desk.segmentation, desk.segment, Grid.of(desk.volume, desk.segmentation))
    return voxels._offset_ijk(image) is not None


def test_a_transform_that_is_hardened_on_the_volume_leaves_the_prompts_where_they_are(desk: Desk) -> None:  # noqa: F811
    desk.workspace = moved(desk)
    for gesture in (point(desk.ct, LEFT), box(desk.ct, (5, 25, 12), (5, 40, 28))):
        desk.do(desk.segment, gesture)
    gestures, nodes = desk.workspace.prompts.gestures(desk.segment), desk.workspace.prompts.nodes(desk.segment)
    before = [np.array(node.GetNthControlPointPositionWorld(0)) for node in nodes]
    desk.volume.HardenTransform()
    for node, position in zip(nodes, before, strict=True):
        assert node.GetTransformNodeID() is None
        np.testing.assert_allclose(node.GetNthControlPointPositionWorld(0), position, atol=1e-6)
    now = desk.workspace.prompts.gestures(desk.segment)
    index = [volume_from_node(desk.volume).index_ijk_from_ras(np.array(gesture.points_ras)) for gesture in now]
    for gesture, found in zip(gestures, index, strict=True):
        np.testing.assert_allclose(found, desk.ct.index_ijk_from_ras(np.array(gesture.points_ras)), atol=1e-3)


def test_undo_after_a_transform_was_hardened_leaves_the_masks_in_place(desk: Desk) -> None:  # noqa: F811
    desk.workspace = moved(desk)
    found = desk.do(desk.segment, point(desk.ct, LEFT))
    for node in (desk.volume, desk.segmentation):
        node.HardenTransform()
    assert desk.workspace.undo() is None
    assert desk.workspace.redo() is None
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), found)
    assert lies_on_the_grid(desk)


@pytest.mark.parametrize("first", ["volume", "segmentation"])
def test_hardening_a_transform_in_mid_propagation_ends_it_and_no_mask_is_displaced(desk: Desk, first: str) -> None:  # noqa: F811
    desk.workspace, notes = moved(desk), []
    desk.assistant.listener.note = notes.append
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)
    found = desk.mask()
    for node in (desk.volume, desk.segmentation)[:: 1 if first == "volume" else -1]:
        node.HardenTransform()
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), found)
    assert lies_on_the_grid(desk)
    assert "CT has changed" in notes[0]
    desk.workspace = desk.assistant.open(desk.volume, desk.segmentation)
    after = desk.do(desk.segment, point(volume_from_node(desk.volume), RIGHT))
    assert after.any(axis=(1, 2)).all()
    assert not desk.errors


def test_a_volume_under_a_warp_is_refused_with_the_reason(scene: Any, a_blob_volume: CTVolume) -> None:
    import vtk

    node, warp = volume_node(a_blob_volume), scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    warp.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
    node.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match="non-linear.*harden"):
        volume_from_node(node)


def test_a_volume_that_is_no_ct_is_used_with_a_warning(scene: Any, a_blob_volume: CTVolume) -> None:
    values = np.clip(np.array(a_blob_volume.array), 0, None)
    node = slicer.util.addVolumeFromArray(values, a_blob_volume.ijk_to_ras, "MR")
    (warning,) = volume_from_node(node).warnings
    assert "probably no CT" in warning
    assert volume_node(a_blob_volume) is not None
    assert not volume_from_node(volume_node(a_blob_volume)).warnings


def test_thick_slices_are_propagated_along_their_own_axis_and_thin_ones_along_the_patient(
    a_blob_volume: CTVolume,
) -> None:
    sagittal = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert automatic_axis(turned(a_blob_volume, sagittal)) == 0
    matrix = np.eye(4)
    matrix[:3, :3] = sagittal
    even = CTVolume.from_array(a_blob_volume.array, (1.0, 1.0, 1.0), matrix)
    assert automatic_axis(even) == even.array_axis_of("axial") != 0


def test_a_segment_on_another_grid_is_read_where_it_lies_and_others_keep_theirs(desk: Desk) -> None:  # noqa: F811
    """A segmentation drawn on a cropped, shifted grid: what is written gets the volume's grid, nothing else does."""
    import vtk

    segmentation = desk.segmentation.GetSegmentation()
    other, image = desk.add_segment("other"), slicer.vtkOrientedImageData()
    matrix = vtk.vtkMatrix4x4()
    desk.volume.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    image.SetExtent(10, 19, 12, 21, 3, 6)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(1)
    segmentation.GetSegment(other).SetLabelValue(1)
    segmentation.GetSegment(other).AddRepresentation("Binary labelmap", image)
    inside = np.zeros(desk.ct.shape_kji, bool)
    inside[3:7, 12:22, 10:20] = True
    np.testing.assert_array_equal(desk.mask(other), inside)
    desk.do(desk.segment, point(desk.ct, RIGHT))
    np.testing.assert_array_equal(desk.mask(other), inside)
    assert segmentation.GetSegment(other).GetRepresentation("Binary labelmap").GetExtent() == (10, 19, 12, 21, 3, 6)


@pytest.mark.parametrize("shift_mm", [0.0, 0.4])
def test_what_a_segment_holds_outside_of_a_cropped_volume_stays(desk: Desk, shift_mm: float) -> None:  # noqa: F811
    """A segmentation of the whole volume, on its grid or on another one, and a click in a part that was cut out."""
    import vtk

    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    desk.volume.GetIJKToRASMatrix(matrix)
    for row in range(3):
        matrix.SetElement(row, 3, matrix.GetElement(row, 3) + shift_mm)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    image.SetExtent(-10, 73, -10, 73, -5, 14)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(1)
    desk.segmentation.GetSegmentation().GetSegment(desk.segment).AddRepresentation("Binary labelmap", image)
    assert desk.mask().all()
    clicked = desk.do(desk.segment, point(desk.ct, LEFT, positive=False))
    assert not clicked[LEFT]
    held = array_of_labelmap(desk.segmentation.GetBinaryLabelmapInternalRepresentation(desk.segment)) != 0
    lost = 84 * 84 * 20 - held.sum()
    assert lost == (~clicked).sum() if shift_mm == 0 else lost < clicked.size
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert desk.mask().all()


def test_a_segment_that_lies_beside_a_cropped_volume_stays_when_more_is_added(desk: Desk) -> None:  # noqa: F811
    grid = Grid.of(desk.volume, desk.segmentation)
    image = grid.image((70, 79, 0, 9, 0, 9), 3)
    array_of_labelmap(image)[...] = 1
    desk.segmentation.GetSegmentation().GetSegment(desk.segment).AddRepresentation("Binary labelmap", image)
    found = desk.do(desk.segment, point(desk.ct, LEFT))
    assert found[5].any()
    held = array_of_labelmap(desk.segmentation.GetBinaryLabelmapInternalRepresentation(desk.segment)) != 0
    assert held.sum() == found.sum() + 1000


def test_segments_that_share_a_labelmap_are_parted_before_one_is_written(desk: Desk) -> None:  # noqa: F811
    other, corner = desk.add_segment("other"), np.zeros((64, 64), bool)
    corner[:3, :3] = True
    paint(desk.volume, desk.segmentation, desk.segment, 0, 5, corner)
    for index in range(10):  # so large that the shared labelmap need not grow
        paint(desk.volume, desk.segmentation, other, 0, index, ~corner)
    segmentation = desk.segmentation.GetSegmentation()
    segmentation.CollapseBinaryLabelmaps(False)
    assert segmentation.GetNumberOfLayers() == 1
    found = desk.do(desk.segment, point(desk.ct, LEFT))
    assert (found[5] & ~corner).any()
    np.testing.assert_array_equal(desk.mask(other), np.broadcast_to(~corner, (10, 64, 64)))
    assert segmentation.GetNumberOfLayers() == 2


def test_an_oblique_box_becomes_the_smallest_box_of_voxels_around_it(a_blob_volume: CTVolume) -> None:
    gesture = box(a_blob_volume, (2, 20, 10), (7, 44, 30))
    (prompt,) = gesture.prompts(a_blob_volume, 0)
    assert prompt.axis is None
    np.testing.assert_allclose([prompt.min_ijk, prompt.max_ijk], [(10, 20, 2), (30, 44, 7)], atol=1e-2)


def test_a_lasso_is_a_box_and_a_click_inside_of_it(a_blob_volume: CTVolume) -> None:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ijk = np.stack([20 + 8 * np.cos(angles), 32 + 6 * np.sin(angles), np.full(12, 5.0)], axis=1)
    gesture = Gesture.of(Kind.LASSO, a_blob_volume.ras_from_index_ijk(ijk))
    flat, middle = gesture.prompts(a_blob_volume, 0)
    assert flat.axis == 0
    np.testing.assert_allclose(middle.index_ijk, (20, 32, 5), atol=1.5)


def test_a_lasso_in_an_oblique_view_is_read_as_clicks_inside_of_it(a_blob_volume: CTVolume) -> None:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ijk = np.stack([20 + 6 * np.cos(angles), 32 + 6 * np.sin(angles), 5 + 3 * np.cos(angles)], axis=1)
    prompts = Gesture.of(Kind.LASSO, a_blob_volume.ras_from_index_ijk(ijk)).prompts(a_blob_volume, 0)
    assert len(prompts) > 1
    assert all(np.linalg.norm(np.array(p.index_ijk) - (20, 32, 5)) < 6 for p in prompts)


def test_a_two_pixel_thin_segment_is_kept_as_it_was_painted(desk: Desk) -> None:  # noqa: F811
    thin = np.zeros((64, 64), bool)
    thin[31:33, 5:60] = True
    paint(desk.volume, desk.segmentation, desk.segment, 0, 4, thin)
    desk.workspace.propagate([desk.segment])
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask()[4], thin)


def test_two_volumes_and_two_segmentations_worked_on_in_turn_never_mix(
    scene: Any, quick_engine: Any, a_blob_volume: CTVolume
) -> None:
    engine = quick_engine()
    assistant = assistant_for(scene, engine)
    oblique = turned(a_blob_volume, GRIDS["oblique"])
    volumes = [(a_blob_volume, volume_node(a_blob_volume, "one")), (oblique, volume_node(oblique, "two"))]
    pairs = []
    for ct, node in volumes:
        for name in ("first", "second"):
            segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{node.GetName()} {name}")
            segmentation.CreateDefaultDisplayNodes()
            segment = segmentation.GetSegmentation().AddEmptySegment("ball", "ball")
            pairs.append((ct, node, segmentation, segment))
    places = [LEFT, RIGHT, (3, 32, 20), (7, 32, 44)]
    for (ct, node, segmentation, segment), place in zip(pairs, places, strict=True):
        assistant.open(node, segmentation).add_prompt(segment, point(ct, place))
    assert assistant.wait()
    for (ct, node, segmentation, segment), place in zip(pairs, places, strict=True):
        np.testing.assert_array_equal(mask_of(node, segmentation, segment), expected(engine, ct, place))
        assert len(assistant.open(node, segmentation).prompts.gestures(segment)) == 1
    ct, node, segmentation, segment = pairs[0]
    assistant.open(node, segmentation).undo()
    assert assistant.wait()
    assert not mask_of(node, segmentation, segment).any()
    for (ct, node, segmentation, segment), place in list(zip(pairs, places, strict=True))[1:]:
        np.testing.assert_array_equal(mask_of(node, segmentation, segment), expected(engine, ct, place))
    assistant.close()
