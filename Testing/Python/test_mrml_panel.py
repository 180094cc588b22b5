"""What the panel takes care of between the user's deeds: what is chosen, what is closed, whose work it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import paint, point, volume_node  # noqa: E402
from mrml_view import RecordingView  # noqa: E402
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from SAM2AssistLib.errors import InputError, OutputError  # noqa: E402
from SAM2AssistLib.mrml import export, nodes  # noqa: E402
from SAM2AssistLib.mrml.auto import AutoMode, Sources  # noqa: E402
from SAM2AssistLib.mrml.desk import Patch  # noqa: E402
from SAM2AssistLib.mrml.panel import Panel  # noqa: E402
from SAM2AssistLib.mrml.preview import NAME  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)
TERMINOLOGY = (
    "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~"
)


@pytest.fixture
def panel(desk: Desk) -> Iterator[Panel]:  # noqa: F811
    for name in ("Selection", "Interaction", "Crosshair"):
        node = desk.scene.CreateNodeByClass(f"vtkMRML{name}Node")
        node.UnRegister(None)
        node.SetSingletonTag("Singleton")
        desk.scene.AddNode(node)
    made = Panel(desk.scene, desk.assistant, RecordingView())
    made.volume_node, made.segmentation_node = desk.volume, desk.segmentation
    made.enter()
    assert desk.assistant.wait()
    yield made
    made.close()


def placed_into(panel: Panel) -> str | None:
    """The segment that the next click would go into."""
    selection = panel.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    node = panel.scene.GetNodeByID(selection.GetActivePlaceNodeID() or "")
    (workspace,) = panel.assistant.workspaces
    segments = panel.segmentation_node.GetSegmentation()
    own = (s for s in segments.GetSegmentIDs() if node in workspace.prompts.nodes(s))
    return next(own, None)


def is_placing(panel: Panel) -> bool:
    interaction = panel.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    return interaction.GetCurrentInteractionMode() == interaction.Place


# ---- the scene


def test_in_a_scene_after_the_first_predictions_still_leave_other_segments_alone(panel: Panel) -> None:
    panel.scene.Clear(False)
    editor = panel.editor_node()
    assert editor.GetOverwriteMode() == editor.OverwriteNone


def test_a_closed_panel_does_not_look_at_the_scene_any_more(panel: Panel) -> None:
    editor = panel.editor_node()
    panel.close()
    editor.SetOverwriteMode(editor.OverwriteAllSegments)
    panel.scene.InvokeEvent(panel.scene.EndCloseEvent)
    assert editor.GetOverwriteMode() == editor.OverwriteAllSegments


# ---- the segment that is chosen


@pytest.mark.parametrize("kind", ["point", "box"])
def test_clicks_go_into_the_segment_that_was_chosen_last(panel: Panel, desk: Desk, kind: str) -> None:  # noqa: F811
    other = desk.add_segment("other")
    panel.editor_node().SetSelectedSegmentID(desk.segment)
    panel.start_placing(kind, True)
    assert placed_into(panel) == desk.segment
    panel.editor_node().SetSelectedSegmentID(other)
    assert placed_into(panel) == other
    assert panel.placing() == (kind, True)
    assert is_placing(panel)


def test_when_the_segment_is_deleted_clicks_go_into_another_and_end_with_the_last(
    panel: Panel,
    desk: Desk,  # noqa: F811
) -> None:
    other = desk.add_segment("other")
    segments = desk.segmentation.GetSegmentation()
    panel.editor_node().SetSelectedSegmentID(other)
    panel.start_placing("point", False)
    segments.RemoveSegment(other)
    crosshair = panel.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    crosshair.SetCursorPositionRAS([1.0, 2.0, 3.0])
    assert placed_into(panel) == desk.segment
    assert panel.placing() == ("point", False)
    segments.RemoveSegment(desk.segment)
    crosshair.SetCursorPositionRAS([2.0, 2.0, 3.0])
    assert panel.placing() is None
    assert not is_placing(panel)


def test_what_another_module_lets_the_user_place_goes_on_when_the_panel_is_left(panel: Panel) -> None:
    ruler = panel.scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode")
    nodes.start_placing(panel.scene, ruler, nodes.Kind.BOX)
    panel.exit()
    assert is_placing(panel)


# ---- names and codes


def test_a_segment_that_comes_with_codes_keeps_them_and_its_color_until_it_is_renamed(desk: Desk) -> None:  # noqa: F811
    segments, segment = desk.segmentation.GetSegmentation(), slicer.vtkSegment()
    segment.SetName("liver")
    segment.SetTag(segment.GetTerminologyEntryTagName(), TERMINOLOGY)
    segments.AddSegment(segment, "liver")
    segment.SetColor(0.1, 0.2, 0.9)
    segment.SetTag("anything", "else")
    assert segment.GetColor() == pytest.approx((0.1, 0.2, 0.9))
    segment.SetName("spleen")
    assert segment.GetColor() != pytest.approx((0.1, 0.2, 0.9))


def test_new_segments_have_colors_that_are_seen_on_a_ct_and_told_apart(panel: Panel) -> None:
    node = nodes.make_segmentation(panel.scene, panel.volume_node)
    panel.segmentation_node = node
    segments = node.GetSegmentation()
    panel.start_placing("point", True)
    panel.stop_placing()
    for name in ("mine", "yours", "liver", "theirs"):
        nodes.add_segment(node, name)
    colors = [segments.GetNthSegment(n).GetColor() for n in range(segments.GetNumberOfSegments())]
    assert len(colors) == 5
    assert min(max(color) - min(color) for color in colors) > 0.3
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in combinations(colors, 2)) > 0.2


def test_when_all_colors_are_taken_they_are_taken_in_turn(panel: Panel) -> None:
    node = nodes.make_segmentation(panel.scene, panel.volume_node)
    ids = [nodes.add_segment(node) for _ in range(2 * len(nodes.COLORS))]
    colors = [node.GetSegmentation().GetSegment(segment_id).GetColor() for segment_id in ids]
    assert set(colors[: len(nodes.COLORS)]) == set(colors[len(nodes.COLORS) :]) == set(nodes.COLORS)


# ---- whose work it is


def test_a_segmentation_that_the_engine_had_no_part_in_is_exported_without_its_name(
    panel: Panel,
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    chosen: list[Any] = []

    def noted(*given: Any) -> Iterator[str]:
        chosen.append(given[4])
        yield "done"

    monkeypatch.setattr(export, "export_dicom_seg", noted)
    monkeypatch.setattr(export, "dicom_files_of", lambda *_: [])

    def exported() -> Any:
        panel.export_dicom_seg(str(tmp_path / "a.dcm"), str)
        assert desk.assistant.wait()
        assert not panel.view.errors
        return chosen.pop()

    before = desk.assistant.choice
    assert exported() is None
    desk.do(desk.segment, point(desk.ct, LEFT))
    assert exported() == before
    desk.assistant.choice = dataclasses.replace(before, device="another")
    assert exported() == before


def test_auto_segment_takes_segments_that_are_empty_again_and_refuses_those_that_hold_something(
    panel: Panel,
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto, asked = AutoMode(panel), []
    monkeypatch.setattr("SAM2AssistLib.mrml.auto.find_sources", lambda _choice: Sources("adapter", ("ball",), {}))
    with pytest.raises(InputError, match="not known yet"):
        auto.start(["ball"])
    auto.refresh(lambda: None)
    assert desk.assistant.wait()
    monkeypatch.setattr(type(desk.workspace), "auto_segment", lambda _, wanted, *rest: asked.append(wanted))
    desk.do(desk.segment, point(desk.ct, LEFT))
    with pytest.raises(InputError, match="already"):
        auto.start(["ball"])
    assert not asked
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not desk.mask().any()
    auto.start(["ball"])
    assert asked == [{"ball": desk.segment}]


# ---- the preview


def test_the_preview_of_another_volume_holds_nothing_of_the_one_before(panel: Panel, desk: Desk) -> None:  # noqa: F811
    def shown() -> int:
        node = desk.scene.GetFirstNodeByName(NAME)
        image = node.GetBinaryLabelmapInternalRepresentation(NAME)
        return int(vtk_to_numpy(image.GetPointData().GetScalars()).sum())

    mask = np.zeros(desk.ct.shape_kji[1:], bool)
    mask[10:15, 10:15] = True
    panel._preview.show(desk.workspace, Patch(desk.segment, 0, 3, mask))
    assert shown() == 25
    moved = volume_node(desk.ct)
    moved.SetOrigin(*(np.array(moved.GetOrigin()) + (0, 0, 4.0)))
    other = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "T")
    workspace = desk.assistant.open(moved, other)
    panel._preview.show(workspace, Patch(desk.segment, 0, 5, mask))
    assert shown() == 25


def test_nothing_is_previewed_of_voxels_that_the_volume_no_longer_has(panel: Panel, desk: Desk) -> None:  # noqa: F811
    """A sequence browser shows another time point: the engine still knows the one before."""
    desk.do(desk.segment, point(desk.ct, LEFT))

    def preview(index_kji: tuple[int, int, int]) -> bool:
        position = desk.ct.ras_from_index_ijk(np.array(index_kji, float)[::-1]).tolist()
        panel._preview.ask(desk.workspace, desk.segment, position, positive=True)
        assert desk.assistant.wait()
        return bool(desk.scene.GetFirstNodeByName(NAME).GetDisplayVisibility())

    assert preview(LEFT)
    slicer.util.updateVolumeFromArray(desk.volume, np.full_like(desk.ct.array, -1000))
    assert not preview(RIGHT)


# ---- names of files


def test_a_name_without_an_ending_gets_that_of_a_segmentation(tmp_path: Path) -> None:
    assert export.nrrd_path(tmp_path / "case") == str(tmp_path / "case.seg.nrrd")
    for name in ("case.seg.nrrd", "case.nrrd", "CASE.SEG.NRRD"):
        assert export.nrrd_path(tmp_path / name) == str(tmp_path / name)


@pytest.mark.parametrize("name", ["case.nii.gz", "case.vtm", "case.dcm"])
def test_a_name_with_the_ending_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="seg.nrrd"):
        export.nrrd_path(tmp_path / name)


def test_a_file_that_nobody_was_asked_about_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "case.seg.nrrd").write_bytes(b"older")
    with pytest.raises(OutputError, match="already"):
        export.nrrd_path(tmp_path / "case")


def test_painted_voxels_do_not_count_as_the_work_of_the_engine(panel: Panel, desk: Desk) -> None:  # noqa: F811
    mask = np.zeros(desk.ct.shape_kji[1:], bool)
    mask[5:9, 5:9] = True
    paint(desk.volume, desk.segmentation, desk.segment, 0, 3, mask)
    assert not panel.can_undo()


def hover(desk: Desk, index_kji: tuple[int, int, int]) -> None:  # noqa: F811
    crosshair = desk.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    crosshair.SetCursorPositionRAS(desk.ct.ras_from_index_ijk(np.array(index_kji, float)[::-1]))


def test_the_preview_goes_when_the_mouse_leaves_the_views_or_it_is_no_longer_wanted(
    panel: Panel,
    desk: Desk,  # noqa: F811
) -> None:
    desk.do(desk.segment, point(desk.ct, LEFT))
    panel.start_placing("point", True)
    crosshair = desk.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")

    def shown() -> bool:
        assert desk.assistant.wait()
        node = desk.scene.GetFirstNodeByName(NAME)
        return node is not None and bool(node.GetDisplayVisibility())

    hover(desk, RIGHT)
    assert shown()
    crosshair.SetCursorPositionInvalid()
    assert not shown()
    hover(desk, LEFT)
    crosshair.SetCursorPositionInvalid()  # before the engine has answered
    assert not shown()
    hover(desk, RIGHT)
    assert shown()
    panel._live_preview = False
    hover(desk, LEFT)
    assert not shown()


def test_the_preview_does_not_stay_where_a_click_was_while_the_engine_works_and_the_mouse_is_elsewhere(
    panel: Panel,
    desk: Desk,  # noqa: F811
) -> None:
    propagate, go_on = desk.workspace.desk.propagate, Event()

    def held(*chosen: Any, **how: Any) -> Iterator[Any]:
        assert go_on.wait(300)
        yield from propagate(*chosen, **how)

    panel.start_placing("point", True)
    desk.do(desk.segment, point(desk.ct, LEFT))
    hover(desk, RIGHT)
    assert desk.assistant.wait()
    assert desk.scene.GetFirstNodeByName(NAME).GetDisplayVisibility()
    desk.workspace.desk.propagate = held  # type: ignore[method-assign]
    desk.workspace.add_prompt(desk.segment, point(desk.ct, RIGHT))
    hover(desk, LEFT)
    assert not desk.scene.GetFirstNodeByName(NAME).GetDisplayVisibility()
    go_on.set()
    assert desk.assistant.wait()


# ---- scenes that are opened again


def test_a_volume_whose_file_was_not_found_is_told_of_whatever_button_is_pressed(
    panel: Panel,
    desk: Desk,  # noqa: F811
    tmp_path: Path,
) -> None:
    desk.volume.SetAndObserveImageData(None)
    panel.start_placing("point", True)
    panel.propagate()
    panel.undo()
    panel.save_nrrd(str(tmp_path / "a.seg.nrrd"))
    panel.add_to_support_library()
    assert panel.view.errors == ["CT has no image; choose a CT volume."] * 5


def test_no_slice_is_called_certain_of_segments_that_the_engine_has_yet_to_work_on(panel: Panel, desk: Desk) -> None:  # noqa: F811
    paint(desk.volume, desk.segmentation, desk.segment, 0, 5, np.ones((64, 64), bool))
    panel.next_doubtful()
    assert panel.assistant.wait()
    assert "cannot tell what is doubtful" in panel.view.sentences[-1]
    desk.do(desk.segment, point(desk.ct, LEFT))
    for _slice in range(2 * desk.ct.shape_kji[0]):  # which is more than there can be
        panel.next_doubtful()
        assert panel.assistant.wait()
        if "not sure" not in panel.view.sentences[-1]:
            break
    assert panel.view.sentences[-1] == "No further slice is doubtful."


def test_a_doubtful_slice_of_a_case_that_is_no_longer_chosen_is_not_shown_in_the_next_one(
    panel: Panel,
    desk: Desk,  # noqa: F811
) -> None:
    desk.do(desk.segment, point(desk.ct, LEFT))
    panel.next_doubtful()
    panel.volume_node = volume_node(desk.ct, "next")
    panel.segmentation_node = nodes.make_segmentation(panel.scene, panel.volume_node)
    panel.segmentation_node.GetSegmentation().AddEmptySegment(desk.segment, "healthy")
    assert panel.assistant.wait()
    assert not any("not sure" in sentence for sentence in panel.view.sentences)


# ---- segmentations of surfaces, as they come from RTSTRUCT and STL


@pytest.fixture
def surfaces(desk: Desk, panel: Panel) -> Any:  # noqa: F811
    """The segmentation, whose "ball" is a surface now and no labelmap."""
    desk.do(desk.segment, point(desk.ct, LEFT))
    segments = desk.segmentation.GetSegmentation()
    desk.segmentation.CreateClosedSurfaceRepresentation()
    segments.SetSourceRepresentationName("Closed surface")
    segments.RemoveRepresentation("Binary labelmap")
    return segments


def test_a_segmentation_of_surfaces_is_neither_saved_nor_learnt_from_nor_filled_but_told_what_to_do_with(
    panel: Panel, surfaces: Any, tmp_path: Path
) -> None:
    panel.save_nrrd(str(tmp_path / "a.seg.nrrd"))
    panel.add_to_support_library()
    panel.auto_segment(["liver"])
    assert panel.assistant.wait()
    assert len(panel.view.errors) == 3
    assert all("make 'Binary labelmap' its source representation" in said for said in panel.view.errors)
    assert not list(tmp_path.iterdir())
    assert list(surfaces.GetSegmentIDs()) == ["ball"]


def test_a_click_into_surfaces_is_taken_back_and_the_next_into_labelmaps_is_answered_as_if_it_was_the_first(
    desk: Desk,  # noqa: F811
    panel: Panel,
    surfaces: Any,
) -> None:
    left, right = desk.add_segment("left"), desk.add_segment("right")
    desk.workspace.add_prompt(left, point(desk.ct, RIGHT))
    assert panel.assistant.wait()
    assert len(panel.view.errors) == 1
    assert not desk.workspace.prompts.gestures(left)
    surfaces.SetSourceRepresentationName("Binary labelmap")
    beside = (RIGHT[0] + 1, *RIGHT[1:])
    assert (desk.do(left, point(desk.ct, beside)) == desk.do(right, point(desk.ct, beside))).all()
    assert desk.mask(left)[RIGHT]
    assert len(panel.view.errors) == 1


def test_prompts_and_undo_outlast_that_the_segmentation_is_one_of_surfaces_for_a_while(
    desk: Desk,  # noqa: F811
    panel: Panel,
    surfaces: Any,
) -> None:
    assert panel.assistant.wait()
    assert desk.workspace.prompts.gestures("ball")
    assert panel.can_undo()
    surfaces.CreateRepresentation("Binary labelmap")
    surfaces.SetSourceRepresentationName("Binary labelmap")
    assert panel.assistant.wait()
    assert desk.workspace.prompts.gestures("ball")
    panel.undo()
    panel.undo()
    assert panel.assistant.wait()
    assert not desk.workspace.prompts.gestures("ball")
    assert not panel.view.errors
