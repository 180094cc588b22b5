"""The host's ``qt`` is as strict as PythonQt, so that what would fail in Slicer fails here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from slicer_window import a_host, host_or_skip, one_host

slicer_host = host_or_skip()
__all__ = ["a_host", "one_host"]
pytestmark = pytest.mark.usefixtures("a_host")


@pytest.fixture
def qt() -> Any:
    """The module ``qt`` of the host."""
    import qt

    return qt


def test_keyword_arguments_to_qt_raise(qt: Any) -> None:
    with pytest.raises(TypeError, match="keyword"):
        qt.QLabel(text="Volume")
    with pytest.raises(TypeError, match="keyword"):
        qt.QProgressBar().setRange(minimum=0, maximum=3)


def test_attributes_of_ones_own_raise(qt: Any) -> None:
    button = qt.QPushButton("Go")
    with pytest.raises(AttributeError, match="segmentID"):
        button.segmentID = "liver"


def test_a_class_of_ones_own_may_have_attributes(qt: Any) -> None:
    class Filter(qt.QObject):
        pass

    made = Filter()
    made.segmentID = "liver"
    assert made.segmentID == "liver"


def test_properties_are_values_and_hide_their_getters(qt: Any) -> None:
    label = qt.QLabel("CT")
    assert label.text == "CT"
    label.text = "MR"
    assert label.text == "MR"
    with pytest.raises(TypeError, match="not callable"):
        label.text()


def test_a_push_button_is_no_instance_of_a_widget(qt: Any) -> None:
    button = qt.QPushButton("Go")
    assert not isinstance(button, qt.QWidget)
    assert button.inherits("QWidget")
    assert button.className() == "QPushButton"


def test_a_float_loses_what_is_behind_the_point_in_an_int(qt: Any) -> None:
    bar = qt.QProgressBar()
    bar.value = 3.6
    assert bar.value == 3
    bar.setValue(7.9)
    assert bar.value == 7


@pytest.mark.parametrize("value", [Path("a"), np.int64(3), np.bool_(True)], ids=lambda value: type(value).__name__)
def test_paths_and_numpys_integers_are_not_converted(qt: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="does not convert"):
        qt.QLabel("x").setNum(value)


@pytest.mark.parametrize(("name", "value"), [("enabled", "yes"), ("text", 3), ("objectName", 1.5)])
def test_a_property_takes_its_own_type_only(qt: Any, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        setattr(qt.QPushButton(), name, value)


def test_a_property_that_cannot_be_written_is_refused(qt: Any) -> None:
    with pytest.raises(AttributeError, match="cannot be written"):
        qt.QListWidget().count = 3


def test_an_unknown_signal_is_refused_and_near_ones_are_named(qt: Any) -> None:
    with pytest.raises(TypeError, match=r"clicked\(bool\)"):
        qt.QPushButton().connect("Clicked()", print)
    with pytest.raises(TypeError, match="no signal"):
        qt.QPushButton().connect("clicked", print)


@pytest.mark.parametrize("signature", ["clicked()", "clicked(bool)"])
def test_a_receiver_gets_as_many_arguments_as_the_signature_and_itself_take(qt: Any, signature: str) -> None:
    button, got = qt.QPushButton(), []
    button.checkable = True
    button.connect(signature, lambda: got.append(()))
    button.connect(signature, lambda *arguments: got.append(arguments))
    button.click()
    assert got == [(), (True,) if signature == "clicked(bool)" else ()]


def test_the_default_of_a_lambda_is_overwritten_by_the_signal(qt: Any) -> None:
    button, got = qt.QPushButton(), []
    button.connect("clicked(bool)", lambda name="liver": got.append(name))
    button.click()
    assert got == [False]


def test_what_was_connected_can_be_disconnected(qt: Any) -> None:
    button, got = qt.QPushButton(), []
    slot = partial(got.append, 1)
    button.connect("clicked()", slot)
    button.click()
    assert button.disconnect("clicked()", slot)
    button.click()
    assert got == [1]
    assert not button.disconnect("clicked()", slot)


def test_a_signal_can_be_connected_as_an_attribute_too(qt: Any) -> None:
    slider, got = qt.QSlider(), []
    slider.valueChanged.connect(got.append)
    slider.value = 5
    assert got == [5]


def test_enumerations_are_ints_in_the_scope_of_their_class(qt: Any) -> None:
    assert int(qt.Qt.Checked) == 2
    both = qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable
    item = qt.QListWidgetItem("liver")
    item.setFlags(both)
    assert item.flags() == both
    with pytest.raises(AttributeError, match=r"qt\.Qt\.Checked"):
        _ = qt.Qt.CheckState.Checked


def test_a_class_in_python_overrides_what_qt_calls(a_host: Any, qt: Any) -> None:
    class Filter(qt.QObject):
        def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
            self.seen = (watched, int(event.type()))
            return int(event.type()) == int(qt.QEvent.MouseButtonPress)

    button, watcher, got = qt.QPushButton("Go"), Filter(), []
    button.connect("clicked()", lambda: got.append(1))
    button.installEventFilter(watcher)
    button.show()
    a_host.process_events()
    a_host.user.press(button)
    assert watcher.seen[0] == button
    assert got == []


def test_a_wrapper_is_false_once_qt_has_deleted_the_object(qt: Any) -> None:
    label = qt.QLabel("gone")
    assert label
    label.delete()
    assert not label
    with pytest.raises(ValueError, match="deleted"):
        _ = label.text


def test_lists_come_back_as_tuples(qt: Any) -> None:
    widget = qt.QWidget()
    layout = qt.QVBoxLayout(widget)
    layout.addWidget(qt.QLabel("a"))
    assert isinstance(widget.children(), tuple)
    assert widget.findChildren("QLabel")[0].text == "a"


def test_a_timer_calls_and_its_exceptions_go_to_the_console(a_host: Any, qt: Any) -> None:
    def fails() -> None:
        raise RuntimeError("late")

    qt.QTimer.singleShot(0, fails)
    a_host.user.wait(0.05)
    assert [str(error) for error in a_host.unhandled] == ["late"]


def test_settings_are_kept_for_the_host_only(qt: Any) -> None:
    settings = qt.QSettings()
    settings.setValue("SAM2Assist/Device", "cpu")
    assert settings.value("SAM2Assist/Device") == "cpu"
    assert "slicer-host-" in settings.fileName()


def test_a_parameter_node_refuses_what_its_types_forbid() -> None:
    import slicer
    from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

    annotations = {
        "share": Annotated[float, WithinRange(0, 1)],
        "axis": Annotated[str, Choice(["axial", "coronal"])],
        "names": list[str],
    }
    defaults = {"share": 0.5, "axis": "axial", "names": ["liver"]}
    Parameters = parameterNodeWrapper(type("Parameters", (), {"__annotations__": annotations, **defaults}))  # noqa: N806
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    parameters = Parameters(node)
    with pytest.raises(ValueError, match="range"):
        parameters.share = 2.0
    with pytest.raises(ValueError, match="one of"):
        parameters.axis = "oblique"
    with pytest.raises(TypeError, match="str"):
        parameters.axis = 3
    with pytest.raises(AttributeError, match="sahre"):
        parameters.sahre = 0.2
    parameters.names = ["liver", "spleen"]
    again = Parameters(node)
    assert (again.share, again.axis, again.names) == (0.5, "axial", ["liver", "spleen"])


def test_a_combo_box_takes_a_text_only_where_choice_says_what_there_is(qt: Any) -> None:
    from slicer_host.parameter_node import Choice, Parameter
    from slicer_host.parameter_widgets import link_to

    fixed = link_to(qt.QComboBox(), Parameter("device", Annotated[str, Choice(["auto", "cpu"])], "auto"))
    assert fixed.read() == "auto"
    with pytest.raises(ValueError, match="Choice"):
        link_to(qt.QComboBox(), Parameter("model", str, "mini"))


def test_a_widget_shows_only_what_slicer_connects_with_its_class(qt: Any) -> None:
    from slicer_host.parameter_node import Parameter
    from slicer_host.parameter_widgets import link_to

    assert link_to(qt.QCheckBox(), Parameter("on", bool, True)).read() is False
    refused = ((qt.QLineEdit, Path, Path("a")), (qt.QSpinBox, float, 1.0), (qt.QRadioButton, bool, True))
    for widget, kind, value in refused:
        with pytest.raises(ValueError, match="cannot show"):
            link_to(widget(), Parameter("it", kind, value))
