"""The module in a real Qt window: its file unmodified, the real scene, and a user at mouse and keyboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from module_window import WAIT_S, Window, liver, window
from slicer_package import ROOT
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "liver", "one_host", "window"]


def test_a_click_in_a_view_shows_a_mask_and_carries_it_through_the_slices(window: Window, liver: np.ndarray) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    assert window.mask("Segment_1").any(axis=(1, 2)).sum() > 1
    assert window.mask("Segment_1")[tuple(liver)]


def test_a_click_by_key_is_undone_and_redone_by_buttons(window: Window, liver: np.ndarray) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    found = window.mask("Segment_1")
    window.host.user.press(window.ui.undoButton)
    window.settle()
    assert not window.mask("Segment_1").any()
    assert not window.ui.undoButton.enabled
    window.host.user.press(window.ui.redoButton)
    window.settle()
    np.testing.assert_array_equal(window.mask("Segment_1"), found)


def test_leaving_the_module_gives_keys_and_mouse_back(window: Window, liver: np.ndarray) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.host.leave_module()
    assert window.widget.shortcuts == []
    assert window.panel.placing() is None
    window.click(liver)
    window.host.process_events()
    assert window.segmentation is None or not window.mask("Segment_1").any()


def test_a_prompt_outside_the_image_is_refused_in_a_sentence_and_leaves_no_point(window: Window) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.host.user.zoom("Red", 2.0)  # until what is around the image can be seen
    window.click([4, -6, 40])
    window.settle()
    assert "outside the volume" in window.ui.statusLabel.text
    assert not window.panel.workspace().prompts.gestures(window.segment("Segment_1"))


def test_the_whole_panel_is_restored_with_the_scene(window: Window, tmp_path: Path) -> None:
    import qt
    import slicer

    window.settle()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    window.ui.segmentationSelector.setCurrentNode(segmentation)
    folder, adapter = tmp_path / "wheels", ROOT / "SAM2AssistLib" / "prompting" / "adapters" / "mini"
    window.ui.adapterPath.currentPath = str(adapter)
    window.settle()
    unchecked = window.ui.classList.item(1)
    name = unchecked.text()
    unchecked.setCheckState(qt.Qt.Unchecked)
    window.ui.autoPropagateCheckBox.checked = False
    window.ui.livePreviewCheckBox.checked = False
    window.ui.axisComboBox.setCurrentText("coronal")
    window.ui.deviceComboBox.setCurrentText("cpu")
    window.ui.wheelFolderPath.currentPath = str(folder)
    window.settle()
    assert name not in window.ui.autoLabel.text
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)

    slicer.mrmlScene.Clear(0)
    window.settle()
    assert window.ui.volumeSelector.currentNode() is None
    window.host.leave_module()
    window.host.open_module("SAM2Assist")  # an empty scene has the defaults
    window.settle()
    assert window.ui.autoPropagateCheckBox.checked
    assert (window.ui.axisComboBox.currentText, window.ui.deviceComboBox.currentText) == ("automatic", "auto")
    assert name in window.widget.checkedClasses()
    assert window.ui.wheelFolderPath.currentPath == window.ui.adapterPath.currentPath == ""

    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    window.settle()
    assert window.ui.volumeSelector.currentNode() is slicer.util.getNode("CT") is window.panel.volume_node
    assert window.ui.segmentationSelector.currentNode() is slicer.util.getNode("mine") is window.panel.segmentation_node
    assert not window.ui.autoPropagateCheckBox.checked
    assert not window.ui.livePreviewCheckBox.checked
    assert (window.ui.axisComboBox.currentText, window.ui.deviceComboBox.currentText) == ("coronal", "cpu")
    assert window.ui.wheelFolderPath.currentPath == str(folder)
    assert window.ui.adapterPath.currentPath == window.panel.assistant.choice.adapter == str(adapter)
    assert window.ui.modelComboBox.currentText == "mini"
    assert name in window.panel.class_names()
    assert name not in window.widget.checkedClasses()
    assert len(window.widget.checkedClasses()) == len(window.panel.class_names()) - 1
    window.ui.adapterPath.currentPath = str(tmp_path)
    window.settle()
    assert window.panel.class_names() == []
    assert window.widget.logic.getParameterNode().uncheckedClasses == [name]  # also while nothing of it is listed


def test_a_scene_saved_and_loaded_is_gone_on_with(window: Window, liver: np.ndarray, tmp_path: Path) -> None:
    import slicer

    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    found = window.mask("Segment_1")
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    window.host.process_events()
    window.volume = slicer.util.getNode("CT")
    assert window.panel.volume_node is window.volume
    np.testing.assert_array_equal(window.mask("Segment_1"), found)
    assert len(window.panel.workspace().prompts.gestures(window.segment("Segment_1"))) == 1
    slicer.util.setSliceViewerLayers(background=window.volume, fit=True)
    window.host.user.press(window.ui.negativeButton)
    window.click(liver)
    window.settle()
    assert (window.mask("Segment_1") != found).any()
    window.host.user.press(window.ui.undoButton)
    window.settle()
    np.testing.assert_array_equal(window.mask("Segment_1"), found)


def test_the_mask_under_the_cursor_is_shown_before_the_click_and_nothing_is_changed(
    window: Window, liver: np.ndarray
) -> None:
    import slicer

    from SAM2AssistLib.mrml.preview import NAME

    window.host.user.press(window.ui.positiveButton)
    window.settle()
    window.panel.prepare()
    window.settle()
    window.host.user.show_position("Red", window.ras(liver))
    window.host.user.move("Red", window.ras(liver + 2))
    window.host.user.move("Red", window.ras(liver))
    window.settle()
    preview = slicer.util.getFirstNodeByClassByName("vtkMRMLSegmentationNode", NAME)
    assert preview is not None
    assert preview.GetHideFromEditors()
    assert not preview.GetSaveWithScene()
    image = preview.GetBinaryLabelmapInternalRepresentation(NAME)
    assert image.GetScalarRange()[1] == 1
    assert not window.mask("Segment_1").any()
    window.host.leave_module()
    assert not preview.GetDisplayVisibility()


def test_the_next_doubtful_slice_is_shown_and_another_one_when_asked_again(window: Window, liver: np.ndarray) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    assert window.ui.confidenceLabel.pixmap is not None
    window.host.user.press(window.ui.doubtfulButton)
    window.settle()
    first = window.ui.statusLabel.text
    assert "not sure of Segment_1 on slice" in first or "No further slice" in first
    window.host.user.press(window.ui.doubtfulButton)
    window.settle()
    assert window.ui.statusLabel.text != first


def test_what_is_missing_is_listed_with_its_size_and_installed_by_one_button(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SAM2AssistLib.mrml import first_run
    from SAM2AssistLib.mrml.auto import Sources

    real, absent = first_run._version, {"scikit-image"}
    monkeypatch.setattr(first_run, "_version", lambda name: None if name in absent else real(name))
    window.host.packages.missing.add("scikit-image")
    window.widget.updateSetup()
    assert "scikit-image>=0.22 (about 32 MB, by pip)" in window.ui.setupLabel.text
    assert not window.ui.positiveButton.enabled
    absent.clear()
    window.host.packages.missing.clear()
    window.widget.panel._auto.sources = Sources(None, (), {})
    window.host.user.press(window.ui.installButton)
    window.settle()
    assert "liver" in window.panel.class_names()
    assert not window.ui.setupCollapsibleButton.visible
    assert window.ui.positiveButton.enabled


def test_a_box_by_two_clicks_lies_on_its_slice_and_is_one_step(window: Window, liver: np.ndarray) -> None:
    window.host.user.press(window.ui.boxButton)
    window.click(liver - (0, 8, 8))
    window.click(liver + (0, 8, 8))
    window.settle()
    workspace = window.panel.workspace()
    (gesture,) = workspace.prompts.gestures(window.segment("Segment_1"))
    (prompt,) = gesture.prompts(window.ct, 0)
    assert prompt.axis == 0
    assert prompt.min_ijk[2] == liver[0]
    assert [step.title for step in workspace.journal.done] == ["add box"]
    assert not window.ui.boxButton.checked


def test_a_box_that_is_given_up_after_one_click_leaves_nothing(window: Window, liver: np.ndarray) -> None:
    window.host.user.press(window.ui.boxButton)
    window.click(liver)
    window.host.user.press(window.ui.boxButton)
    window.settle()
    assert not window.panel.workspace().prompts.nodes()
    assert not window.mask("Segment_1").any()


def test_a_solid_box_by_two_clicks_is_as_deep_as_its_shorter_side_and_its_handles_change_it(
    window: Window, liver: np.ndarray
) -> None:
    window.host.user.press(window.ui.solidBoxButton)
    window.click(liver - (0, 6, 9))
    window.click(liver + (0, 6, 9))
    window.settle()
    workspace = window.panel.workspace()
    (gesture,) = workspace.prompts.gestures(window.segment("Segment_1"))
    (prompt,) = gesture.prompts(window.ct, 0)
    assert prompt.axis is None
    i, j, k = window.ct.spacing_ijk
    low, high = np.array(prompt.min_ijk), np.array(prompt.max_ijk)
    assert (high - low)[2] * k == pytest.approx(min((high - low)[0] * i, (high - low)[1] * j), abs=2.1 * k)
    shown = np.flatnonzero(window.mask("Segment_1").any(axis=(1, 2)))
    assert len(shown) > 1
    assert shown.min() >= np.floor(low[2])
    assert shown.max() <= np.ceil(high[2])
    assert not window.ui.solidBoxButton.checked
    (node,) = workspace.prompts.nodes()
    assert node.GetDisplayNode().GetHandlesInteractive()
    before, center = window.mask("Segment_1"), np.array(node.GetCenterWorld())
    window.host.user.show_position("Green", center)
    top = center + (0, 0, k * (high - low)[2] / 2)
    window.host.user.drag("Green", top, (top + center) / 2, center + (0, 0, 0.7 * k))
    window.settle()
    (lower,) = workspace.prompts.gestures(window.segment("Segment_1"))[0].prompts(window.ct, 0)
    assert lower.min_ijk == pytest.approx(prompt.min_ijk, abs=1e-3)
    assert lower.max_ijk[:2] == pytest.approx(prompt.max_ijk[:2], abs=1e-3)
    assert lower.max_ijk[2] < prompt.max_ijk[2] - 1
    after = np.flatnonzero(window.mask("Segment_1").any(axis=(1, 2)))
    assert after.max() < shown.max()
    assert after.min() == shown.min()
    for button in (window.ui.undoButton, window.ui.undoButton, window.ui.redoButton):
        window.host.user.press(button)
        window.settle()
    np.testing.assert_array_equal(window.mask("Segment_1"), before)


def test_a_solid_box_can_be_begun_and_given_up_by_its_key(window: Window, liver: np.ndarray) -> None:
    from PySide6 import QtCore

    shift = QtCore.Qt.KeyboardModifier.ShiftModifier
    window.host.user.key(QtCore.Qt.Key.Key_V, modifiers=shift)
    assert window.ui.solidBoxButton.checked
    window.click(liver)
    window.host.user.key(QtCore.Qt.Key.Key_V, modifiers=shift)
    window.settle()
    assert not window.ui.solidBoxButton.checked
    assert not window.panel.workspace().prompts.nodes()


def test_slices_are_drawn_as_they_come_while_the_mouse_rests(window: Window, liver: np.ndarray) -> None:
    from slicer_host.pythonqt import unwrap

    def colored_rows() -> int:
        picture = view.grab().toImage().convertToFormat(QtGui.QImage.Format.Format_RGB32)
        pixels = np.frombuffer(picture.constBits(), np.uint8).reshape(picture.height(), picture.width(), 4)[..., :3]
        return int((np.ptp(pixels.astype(int), axis=2) > 25).any(axis=1).sum())

    from PySide6 import QtGui

    view = unwrap(window.host.user.view("Green"))
    window.host.user.show_position("Green", window.ras(liver))
    window.ui.livePreviewCheckBox.checked = False
    window.host.user.press(window.ui.positiveButton)
    window.settle()
    seen = [colored_rows()]

    def all_drawn() -> bool:
        seen.append(colored_rows())
        slices = window.mask("Segment_1").any(axis=(1, 2)).sum()
        return not window.panel.busy() and slices > 4 and seen[-1] >= seen[0] + slices

    window.click(liver)
    window.host.user.wait_until(all_drawn, WAIT_S)
    assert any(seen[0] < rows < seen[-1] for rows in seen)
    window.settle()
    window.host.user.press(window.ui.undoButton)
    window.settle()
    window.host.user.wait_until(lambda: colored_rows() == seen[0], WAIT_S)
