"""The host of Testing/SlicerHost: views that place real points, widgets that follow the scene, modules as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slicer_package import ROOT
from slicer_window import a_host, host_or_skip, one_host

slicer_host = host_or_skip()
slicer = pytest.importorskip("slicer")
__all__ = ["a_host", "one_host"]

MINIMAL_MODULE = """
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer import vtkMRMLScalarVolumeNode
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Minimal(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Minimal")


@parameterNodeWrapper
class MinimalParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    automatic: bool = True
    threshold: float = 12.5


class MinimalWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.entered = 0
        self.clicks = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/Minimal.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.parameters = MinimalParameterNode(MinimalLogic().getParameterNode())
        self.tag = self.parameters.connectGui(self.ui)
        self.ui.goButton.connect("clicked(bool)", self.onGo)

    def onGo(self):
        self.clicks.append(self.parameters.inputVolume)

    def enter(self):
        self.entered += 1

    def exit(self):
        self.entered -= 1

    def cleanup(self):
        self.parameters.disconnectGui(self.tag)
        self.removeObservers()


class MinimalLogic(ScriptedLoadableModuleLogic):
    pass
"""
MINIMAL_UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Minimal</class>
 <widget class="qMRMLWidget" name="Minimal">
  <layout class="QVBoxLayout" name="verticalLayout">
   <item><widget class="ctkCollapsibleButton" name="inputs">
     <property name="text"><string>Inputs</string></property>
     <layout class="QFormLayout" name="formLayout">
      <item row="0" column="0"><widget class="QLabel" name="label"/></item>
      <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="inputSelector">
        <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
        <property name="noneEnabled"><bool>true</bool></property>
        <property name="addEnabled"><bool>false</bool></property>
        <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property>
      </widget></item>
      <item row="1" column="1"><widget class="QCheckBox" name="automaticCheckBox">
        <property name="SlicerParameterName" stdset="0"><string>automatic</string></property>
      </widget></item>
      <item row="2" column="1"><widget class="ctkSliderWidget" name="thresholdSlider">
        <property name="maximum"><double>100.0</double></property>
        <property name="SlicerParameterName" stdset="0"><string>threshold</string></property>
      </widget></item>
     </layout></widget></item>
   <item><widget class="QPushButton" name="goButton"/></item>
  </layout></widget>
 <customwidgets>
  <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container></customwidget>
  <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>qMRMLNodeComboBox.h</header></customwidget>
  <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends><header>ctkSliderWidget.h</header></customwidget>
  <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><container>1</container></customwidget>
 </customwidgets>
 <connections><connection><sender>Minimal</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections>
</ui>
"""


@pytest.fixture
def a_minimal_module(a_host: Any, tmp_path: Path) -> Any:
    """The widget of a module written for this test, opened."""
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    (tmp_path / "Resources" / "UI" / "Minimal.ui").write_text(MINIMAL_UI)
    path = tmp_path / "Minimal.py"
    path.write_text(MINIMAL_MODULE)
    a_host.load_module(path)
    return a_host.open_module("Minimal")


def a_volume(name: str = "CT") -> Any:
    array = np.zeros((20, 64, 64), np.int16)
    array[5:15, 20:40, 10:50] = 300
    node = slicer.util.addVolumeFromArray(array, np.diag([-2.0, -2.0, 3.0, 1.0]), name)
    node.CreateDefaultDisplayNodes()
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


def start_placing() -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "prompts")
    node.CreateDefaultDisplayNodes()
    selection = slicer.app.applicationLogic().GetSelectionNode()
    selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
    selection.SetActivePlaceNodeID(node.GetID())
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetPlaceModePersistence(1)
    interaction.SetCurrentInteractionMode(interaction.Place)
    return node


@pytest.mark.parametrize(
    ("view", "position"),
    [("Red", (-50.0, -60.0, 27.0)), ("Green", (-70.0, -60.0, 21.0)), ("Yellow", (-50.0, -70.0, 33.0))],
)
def test_a_click_in_a_slice_view_places_a_real_point_where_it_was_clicked(
    a_host: Any, view: str, position: tuple[float, float, float]
) -> None:
    a_volume()
    node = start_placing()
    a_host.user.show_position(view, position)
    a_host.user.click(view, position)
    assert node.GetNumberOfDefinedControlPoints() == 1
    pixel_mm = a_host.user.view(view).mrmlSliceNode().GetFieldOfView()[0] / a_host.user.view(view).width()
    np.testing.assert_allclose(node.GetNthControlPointPosition(0), position, atol=pixel_mm)
    assert a_host.unhandled == []


def test_a_placed_point_can_be_dragged(a_host: Any) -> None:
    a_volume()
    node = start_placing()
    start, end = (-50.0, -60.0, 27.0), (-70.0, -50.0, 27.0)
    a_host.user.show_position("Red", start)
    a_host.user.click("Red", start)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.ViewTransform)
    a_host.process_events()
    a_host.user.drag("Red", start, (-60.0, -55.0, 27.0), end)
    np.testing.assert_allclose(node.GetNthControlPointPosition(0), end, atol=1.0)


def test_a_view_shows_the_volume_and_a_segment_on_it(a_host: Any) -> None:
    volume = a_volume()
    a_host.user.show_position("Red", (-60.0, -60.0, 27.0))
    a_host.user.wait(0.1)
    before = a_host.user.view("Red").grab().toImage()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment_id = segmentation.GetSegmentation().AddEmptySegment("liver", "liver", (1.0, 0.0, 0.0))
    mask = np.zeros((20, 64, 64), np.uint8)
    mask[9, 22:38, 15:45] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
    a_host.user.wait(0.1)
    after = a_host.user.view("Red").grab().toImage()
    pixel = a_host.user.pixel_of("Red", (-60.0, -60.0, 27.0))
    white, red = before.pixelColor(pixel), after.pixelColor(pixel)
    assert white.red() == white.green() == white.blue() > 200
    assert red.red() > red.green() + 50
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume), mask)


def test_the_wheel_turns_to_the_next_slice(a_host: Any) -> None:
    a_volume()
    a_host.user.show_position("Red", (-60.0, -60.0, 27.0))
    a_host.user.wheel("Red", 1)
    assert a_host.user.view("Red").mrmlSliceNode().GetSliceOffset() == pytest.approx(30.0)


def test_a_minimal_module_loads_shows_its_panel_and_is_entered_and_left(a_host: Any, a_minimal_module: Any) -> None:
    assert a_minimal_module.entered == 1
    assert a_minimal_module.ui.goButton.visible
    a_host.leave_module()
    assert a_minimal_module.entered == 0
    assert slicer.modules.minimal.title == "Minimal"
    assert a_host.unhandled == []


def test_a_node_combo_box_follows_nodes_that_come_are_renamed_and_go(a_minimal_module: Any) -> None:
    selector = a_minimal_module.ui.inputSelector
    assert selector.currentNode() is None
    volume = a_volume("first")
    selector.setCurrentNode(volume)
    assert a_minimal_module.parameters.inputVolume is volume
    volume.SetName("renamed")
    assert selector.comboBox().currentText == "renamed"
    slicer.mrmlScene.RemoveNode(volume)
    assert selector.currentNode() is None
    assert a_minimal_module.parameters.inputVolume is None


def test_a_combo_box_without_none_takes_the_first_node_that_comes(a_host: Any) -> None:
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    volume = a_volume()
    assert selector.currentNode() is volume
    assert selector.currentNodeID == volume.GetID()


def test_widgets_and_parameter_node_stay_in_step_both_ways(a_host: Any, a_minimal_module: Any) -> None:
    ui, parameters = a_minimal_module.ui, a_minimal_module.parameters
    assert ui.automaticCheckBox.checked
    assert ui.thresholdSlider.value == 12.5
    a_host.user.press(ui.automaticCheckBox)
    assert parameters.automatic is False
    parameters.threshold = 40.0
    assert ui.thresholdSlider.value == 40.0
    ui.thresholdSlider.value = 60.0
    assert parameters.parameterNode.GetParameter("threshold") == "60.0"


def test_a_button_calls_the_slot_with_as_many_arguments_as_it_takes(a_host: Any, a_minimal_module: Any) -> None:
    volume = a_volume()
    a_minimal_module.ui.inputSelector.setCurrentNode(volume)
    a_host.user.press(a_minimal_module.ui.goButton)
    assert a_minimal_module.clicks == [volume]
    assert a_host.unhandled == []


def test_a_disabled_button_cannot_be_pressed(a_host: Any, a_minimal_module: Any) -> None:
    a_minimal_module.ui.goButton.enabled = False
    with pytest.raises(AssertionError, match="goButton"):
        a_host.user.press(a_minimal_module.ui.goButton)


def test_a_folded_section_hides_what_is_in_it(a_host: Any, a_minimal_module: Any) -> None:
    ui = a_minimal_module.ui
    ui.inputs.collapsed = True
    a_host.process_events()
    assert not ui.inputSelector.visible
    ui.inputs.collapsed = False
    a_host.process_events()
    assert ui.inputSelector.visible


def test_an_unknown_class_in_a_ui_file_is_refused_by_name(a_host: Any, tmp_path: Path) -> None:
    path = tmp_path / "wrong.ui"
    path.write_text(MINIMAL_UI.replace("ctkSliderWidget", "ctkNothing"))
    with pytest.raises(slicer_host.PythonQtError, match="ctkNothing"):
        slicer.util.loadUI(str(path))


def test_an_exception_in_a_slot_goes_to_the_console_and_the_program_goes_on(a_host: Any) -> None:
    import qt

    button = qt.QPushButton("boom")

    def fails() -> None:
        raise RuntimeError("in the slot")

    button.connect("clicked()", fails)
    button.click()
    assert [str(error) for error in a_host.unhandled] == ["in the slot"]


def test_an_exception_in_an_observer_goes_to_the_console(a_host: Any) -> None:
    import vtk

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")

    def fails(*_: Any) -> None:
        raise RuntimeError("in the observer")

    node.AddObserver(vtk.vtkCommand.ModifiedEvent, fails)
    node.Modified()
    assert [str(error) for error in a_host.unhandled] == ["in the observer"]


def test_a_modal_dialog_is_answered_by_the_test(a_host: Any) -> None:
    import qt

    a_host.answers.waiting.append(int(qt.QMessageBox.Yes))
    assert slicer.util.confirmYesNoDisplay("Really?")
    assert a_host.answers.seen[-1].text == "Really?"


def test_a_modal_dialog_without_an_answer_is_an_error(a_host: Any) -> None:
    with pytest.raises(AssertionError, match="nobody is there"):
        slicer.util.errorDisplay("It went wrong.")


def test_the_heartbeat_sees_how_long_the_event_loop_is_blocked(a_host: Any) -> None:
    import time

    with a_host.user.heartbeat() as beat:
        a_host.user.wait(0.1)
        calm = beat.longest_ms
        time.sleep(0.3)
        a_host.user.wait(0.05)
    assert 295 < beat.longest_ms < 1000
    assert calm < 250
    assert beat.beats > 5


def test_pip_is_never_run_and_what_was_asked_for_is_kept(a_host: Any) -> None:
    import slicer.packaging

    a_host.packages.missing.add("torch")
    assert not slicer.packaging.pip_check("torch>=2")
    slicer.packaging.pip_ensure(["torch>=2", "numpy"], requester="Minimal")
    assert a_host.packages.requests[0].requirements == ("torch>=2",)
    assert slicer.packaging.pip_check("torch>=2")


def test_a_scene_goes_through_an_mrb_and_comes_back(a_host: Any, tmp_path: Path) -> None:
    volume = a_volume("kept")
    expected = slicer.util.arrayFromVolume(volume).copy()
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
    slicer.util.loadScene(path)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(slicer.util.getNode("kept")), expected)
    assert slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode().GetScene() is slicer.mrmlScene


def test_a_host_leaves_nothing_behind() -> None:
    import sys

    names = ("app", "mrmlScene", "modules", "qMRMLNodeComboBox")
    before = [slicer.__dict__.get(name) for name in names], sys.modules.get("qt"), list(sys.path)
    with slicer_host.open_host():
        assert slicer.app is not before[0][0]
    assert ([slicer.__dict__.get(name) for name in names], sys.modules.get("qt"), list(sys.path)) == before


def test_the_file_of_the_module_runs_in_the_host_unmodified(a_host: Any) -> None:
    a_host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    a_host.open_module("SAM2Assist")
    a_host.leave_module()
    assert slicer.modules.sam2assist.title == "SAM2 Assist"
    assert a_host.unhandled == []


@pytest.fixture
def an_editor(a_host: Any) -> Any:
    """The Segment Editor on a volume with an empty segment "liver"."""
    volume = a_volume()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.GetSegmentation().AddEmptySegment("liver", "liver")
    editor = slicer.qMRMLSegmentEditorWidget()
    editor.setMRMLScene(slicer.mrmlScene)
    editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    editor.setSegmentationNode(segmentation)
    editor.setSourceVolumeNode(volume)
    editor.setCurrentSegmentID("liver")
    yield editor
    editor.setMRMLSegmentEditorNode(None)
    editor.delete()


def painted(editor: Any) -> np.ndarray:
    array = slicer.util.arrayFromSegmentBinaryLabelmap(editor.segmentationNode(), "liver", editor.sourceVolumeNode())
    return np.asarray(array) > 0


def test_painting_and_erasing_in_a_view_change_the_segment_on_that_slice_only(a_host: Any, an_editor: Any) -> None:
    position = (-60.0, -60.0, 27.0)
    a_host.user.show_position("Red", position)
    an_editor.setActiveEffectByName("Paint")
    a_host.user.drag("Red", position, (-66.0, -60.0, 27.0), (-72.0, -60.0, 27.0))
    mask = painted(an_editor)
    assert mask[9, 30, 30:37].all()
    assert not np.delete(mask, 9, axis=0).any()
    an_editor.setActiveEffectByName("Erase")
    a_host.user.click("Red", position)
    assert not painted(an_editor)[9, 30, 30]
    assert painted(an_editor).any()
    an_editor.undo()
    np.testing.assert_array_equal(painted(an_editor), mask)
    an_editor.undo()
    assert not painted(an_editor).any()
    an_editor.redo()
    np.testing.assert_array_equal(painted(an_editor), mask)
    assert a_host.unhandled == []


def test_the_table_of_segments_follows_the_segmentation(a_host: Any, an_editor: Any) -> None:
    table = slicer.qMRMLSegmentsTableView()
    table.setSegmentationNode(an_editor.segmentationNode())
    segmentation = an_editor.segmentationNode().GetSegmentation()
    segmentation.AddEmptySegment("spleen", "spleen")
    assert table.segmentCount() == 2
    segmentation.GetSegment("spleen").SetName("Milz")
    assert table.tableWidget().item(1, 2).text() == "Milz"
    table.setSelectedSegmentIDs(["spleen"])
    assert table.selectedSegmentIDs() == ("spleen",)
    segmentation.RemoveSegment("spleen")
    assert table.selectedSegmentIDs() == ()
    table.delete()


def test_the_editor_tells_which_segment_is_chosen(a_host: Any, an_editor: Any) -> None:
    told: list[str] = []
    an_editor.connect("currentSegmentIDChanged(QString)", told.append)
    an_editor.segmentationNode().GetSegmentation().AddEmptySegment("spleen", "spleen")
    an_editor.mrmlSegmentEditorNode().SetSelectedSegmentID("spleen")
    assert told == ["spleen"]
    assert an_editor.currentSegmentID() == "spleen"


def test_a_host_that_was_closed_leaves_no_window_and_no_timer_to_another_thread() -> None:
    script = """
import gc, os, shiboken6
from PySide6 import QtCore
from slicer_host import open_host
with open_host() as host:
    host.show()
    window = host.window
    host.close()
    left = [o for o in gc.get_objects() if isinstance(o, QtCore.QTimer) and shiboken6.isValid(o) and o.isActive()]
    print(shiboken6.isValid(window), len(left), flush=True)
    os._exit(0)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "Testing" / "SlicerHost")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-2:] == ["False", "0"]


@pytest.mark.parametrize("kept", [True, None], ids=str)
def test_qt_hands_out_no_reference_that_it_does_not_own(kept: object) -> None:
    # PySide6 6.12.0 does, on Python below 3.12: after some thousand signals the process ends.
    from PySide6 import QtCore

    class Sender(QtCore.QObject):
        moved = QtCore.Signal(int)

    sender = Sender()
    before = sys.getrefcount(kept)
    for n in range(500):
        sender.moved.emit(n)
        sender.setObjectName("sender")
    assert sys.getrefcount(kept) > before - 250
