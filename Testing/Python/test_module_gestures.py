"""Lines drawn by the mouse, in straight and in oblique views, and what is chosen in the panel."""

from __future__ import annotations

import numpy as np
import pytest
from module_window import Window, liver, window
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "liver", "one_host", "window"]


def gestures_of(window: Window) -> tuple:
    return window.panel.workspace().prompts.gestures(window.segment("Segment_1"))


def tilt(window: Window, view: str, degrees: float, through: np.ndarray) -> np.ndarray:
    """Turn a view about the axis from left to right, through a voxel (k, j, i); returns its normal (RAS)."""
    import vtk

    node = window.host.user.view(view).mrmlSliceNode()
    angle = np.deg2rad(degrees)
    down, normal = (0, np.cos(angle), np.sin(angle)), (0, -np.sin(angle), np.cos(angle))
    matrix = vtk.vtkMatrix4x4()
    for row in range(3):
        for column, direction in enumerate(((1, 0, 0), down, normal)):
            matrix.SetElement(row, column, float(direction[row]))
        matrix.SetElement(row, 3, float(window.ras(through)[row]))
    node.GetSliceToRAS().DeepCopy(matrix)
    node.UpdateMatrices()
    window.host.process_events()
    return np.array(normal)


def test_a_scribble_drawn_in_a_view_ends_with_a_double_click_and_is_one_step(window: Window, liver: np.ndarray) -> None:
    window.host.user.show_position("Red", window.ras(liver))
    window.host.user.press(window.ui.scribbleButton)
    window.draw("Red", liver - (0, 0, 8), liver, liver + (0, 4, 8))
    window.settle()
    (gesture,) = gestures_of(window)
    assert gesture.kind.value == "scribble"
    np.testing.assert_allclose(gesture.points_ras[0], window.ras(liver - (0, 0, 8)), atol=2.0)
    assert window.mask("Segment_1")[tuple(liver)]
    assert [step.title for step in window.panel.workspace().journal.done] == ["add scribble"]
    assert not window.ui.scribbleButton.checked


def test_a_negative_scribble_takes_away_along_its_line(window: Window, liver: np.ndarray) -> None:
    window.ui.autoPropagateCheckBox.checked = False
    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    before = window.mask("Segment_1")[liver[0]]
    rows, columns = np.nonzero(before)
    edge = int(np.argmax(columns))
    window.host.user.press(window.ui.negativeScribbleButton)
    window.draw("Red", *((liver[0], rows[edge] + step, columns[edge] - 1) for step in (-4, 0, 4)))
    window.settle()
    assert [gesture.positive for gesture in gestures_of(window)] == [True, False]
    after = window.mask("Segment_1")[liver[0]]
    assert after[rows[edge], columns[edge] - 1] < 1
    assert after[tuple(liver[1:])]


def test_a_lasso_drawn_in_a_view_is_a_box_and_a_click_on_its_slice(window: Window, liver: np.ndarray) -> None:
    window.host.user.show_position("Red", window.ras(liver))
    window.host.user.press(window.ui.lassoButton)
    window.draw("Red", *(liver + np.array([0, j, i]) for j, i in ((-9, -9), (-9, 9), (9, 9), (9, -9))))
    window.settle()
    (gesture,) = gestures_of(window)
    assert gesture.kind.value == "lasso"
    flat, middle = gesture.prompts(window.ct, 0)
    assert flat.axis == 0
    assert flat.min_ijk[2] == middle.index_ijk[2] == liver[0]
    assert window.mask("Segment_1").any(axis=(1, 2)).sum() > 1


def test_a_line_that_is_given_up_leaves_nothing(window: Window, liver: np.ndarray) -> None:
    window.host.user.show_position("Red", window.ras(liver))
    window.host.user.press(window.ui.lassoButton)
    window.host.user.click("Red", window.ras(liver))
    window.host.user.click("Red", window.ras(liver + (0, 0, 9)))
    window.host.user.press(window.ui.lassoButton)
    window.settle()
    assert not window.panel.workspace().prompts.nodes()
    assert not window.mask("Segment_1").any()


@pytest.mark.parametrize("kind", ["point", "scribble", "lasso"])
def test_in_an_oblique_view_prompts_land_where_they_were_drawn(window: Window, liver: np.ndarray, kind: str) -> None:
    normal = tilt(window, "Red", 30, liver)
    middle = window.ras(liver)
    along = np.cross(normal, (1.0, 0, 0))
    places = [middle + 12 * (np.cos(a) * np.array([1.0, 0, 0]) + np.sin(a) * along) for a in (0.3, 1.8, 3.4, 5.0)]
    user, button = window.host.user, {"point": "positive", "scribble": "scribble", "lasso": "lasso"}[kind]
    user.press(getattr(window.ui, f"{button}Button"))
    if kind == "point":
        user.click("Red", middle)
        places = [middle]
    else:
        for place in places[:-1]:
            user.click("Red", place)
        user.double_click("Red", places[-1])
    window.settle()
    (gesture,) = gestures_of(window)
    drawn = np.array(gesture.points_ras)
    np.testing.assert_allclose(drawn, places, atol=2.0)
    np.testing.assert_allclose((drawn - middle) @ normal, 0, atol=1e-3)
    assert window.mask("Segment_1")[tuple(liver)]


def test_model_device_and_adapter_chosen_in_the_panel_are_those_of_the_engine(window: Window, tmp_path) -> None:
    names = [window.ui.modelComboBox.itemText(row) for row in range(window.ui.modelComboBox.count)]
    assert names == window.panel.model_names()
    window.ui.deviceComboBox.setCurrentText("cpu")
    window.ui.adapterPath.currentPath = str(tmp_path)
    window.settle()
    choice = window.panel.assistant.choice
    assert (choice.model, choice.device, choice.adapter) == ("mini", "cpu", str(tmp_path))
    window.ui.adapterPath.currentPath = ""
    window.settle()
    assert window.panel.assistant.choice.adapter is None


def test_a_scene_that_names_a_model_which_is_not_here_is_shown_as_it_is(window: Window) -> None:
    parameters = window.widget.logic.getParameterNode()
    parameters.model = "tiny of another computer"
    window.settle()
    assert window.ui.modelComboBox.currentText == "tiny of another computer"
    window.ui.modelComboBox.setCurrentText("mini")
    window.settle()
    assert parameters.model == window.panel.assistant.choice.model == "mini"


def test_a_segmentation_that_is_deleted_takes_its_prompts_along_and_nothing_waits_for_it(
    window: Window, liver: np.ndarray
) -> None:
    import slicer

    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    slicer.mrmlScene.RemoveNode(window.segmentation)
    window.settle()
    assert not window.panel.busy()
    assert not slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")
    assert not window.ui.cancelButton.visible
    assert not window.ui.undoButton.enabled
    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.settle()
    assert window.mask("Segment_1").any()
