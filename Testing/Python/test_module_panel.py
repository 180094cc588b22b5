"""The looks of the module's panel: what is to be read fits, and says which key does the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slicer_package import ROOT
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "one_host"]

# Of the Segment Editor, and of Slicer's main window and views (Docs/user_guide/modules/segmenteditor.md and
# Docs/user_guide/user_interface.md).
TAKEN = {
    *"QWZYIXABFVRGHLT+-0123456789",
    *("Left", "Right", "Esc", "Space", "Return", "Shift+A"),
    *(f"Shift+{digit}" for digit in range(10)),
    *(f"Ctrl+{letter}" for letter in "ABDFGHLMNOSTWYZ"),
}


@pytest.fixture
def a_panel(a_host: Any) -> Iterator[Any]:
    """The module's widget, shown."""
    a_host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    yield a_host.open_module("SAM2Assist")
    assert a_host.unhandled == []


def test_each_key_is_told_in_the_tooltip_of_its_button(a_panel: Any) -> None:
    for key, button in a_panel.shortcutKeys().items():
        assert f"Key: {key}" in button.toolTip, button.objectName


def test_no_key_is_taken_from_slicer_and_its_segment_editor(a_panel: Any) -> None:
    assert not TAKEN & set(a_panel.shortcutKeys())


def test_keys_are_there_only_while_the_module_is_shown(a_host: Any, a_panel: Any) -> None:
    from PySide6 import QtGui

    def keys() -> set[str]:
        return {shortcut.key().toString() for shortcut in a_host.window.findChildren(QtGui.QShortcut)}

    assert set(a_panel.shortcutKeys()) <= keys()
    a_host.leave_module()
    assert not keys()
    a_host.open_module("SAM2Assist")
    assert set(a_panel.shortcutKeys()) <= keys()


def test_the_panel_needs_no_more_width_than_slicer_gives_it(a_host: Any, a_panel: Any) -> None:
    from slicer_host.application import PANEL_WIDTH

    for section in a_panel.ui.__dict__.values():
        if section.className() == "ctkCollapsibleButton":
            section.collapsed = False
    a_host.process_events()
    place = a_host.application.moduleManager().module("SAM2Assist").widgetRepresentation()
    assert place.minimumSizeHint().width() <= PANEL_WIDTH


def test_every_button_has_a_text_and_no_text_is_cut_off(a_host: Any, a_panel: Any) -> None:
    from slicer_host.pythonqt import unwrap

    for name, widget in a_panel.ui.__dict__.items():
        if widget.inherits("QPushButton") and re.fullmatch(r"\w+Button", name) and widget.visible:
            assert widget.text, name
            plain = unwrap(widget)
            assert plain.fontMetrics().horizontalAdvance(widget.text) <= plain.width(), name


def test_everything_that_is_pressed_or_chosen_says_in_a_tooltip_what_it_does(a_panel: Any) -> None:
    kinds = ("QPushButton", "QCheckBox", "QComboBox", "ctkPathLineEdit", "qMRMLNodeComboBox")
    for name, widget in a_panel.ui.__dict__.items():
        if widget.className() in kinds and re.fullmatch(r"[a-z]\w+(Button|CheckBox|ComboBox|Path|Selector)", name):
            assert widget.toolTip, name


def test_without_a_segmentation_nothing_can_be_saved_or_gone_on_with(a_panel: Any) -> None:
    import numpy as np
    import slicer

    ui = a_panel.ui
    buttons = (ui.propagateButton, ui.doubtfulButton, ui.saveButton, ui.exportButton, ui.supportButton)
    assert not any(button.enabled for button in buttons)
    parameters = a_panel.logic.getParameterNode()
    parameters.volume = slicer.util.addVolumeFromArray(np.zeros((4, 32, 32), np.int16))
    assert ui.positiveButton.enabled
    assert not any(button.enabled for button in buttons)
    parameters.segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert all(button.enabled for button in buttons)
    slicer.mrmlScene.RemoveNode(parameters.segmentation)
    assert not any(button.enabled for button in buttons)


def test_before_the_packages_are_there_the_panel_says_what_they_take_and_promises_no_class(
    a_panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SAM2AssistLib.mrml import first_run

    monkeypatch.setattr(first_run, "_version", lambda _name: None)
    a_panel.updateSetup()
    a_panel.updateClasses()
    sizes = [int(size) for size in re.findall(r"about (\d+) MB,", a_panel.ui.setupLabel.text)]
    assert len(sizes) == 9
    assert a_panel.ui.setupLabel.text.endswith(f"About {sum(sizes)} MB in all.")
    assert "once the packages of the first run are installed" in a_panel.ui.autoLabel.text
    assert not a_panel.ui.autoButton.enabled


def test_nothing_is_said_of_adapters_before_they_have_been_looked_for(
    a_host: Any, a_panel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from SAM2AssistLib.mrml.auto import AutoMode

    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path))
    assert (
        AutoMode(a_panel.panel).description(["liver"]) == "It is not known yet what can be looked for; wait a moment."
    )
    a_host.user.wait_until(lambda: not a_panel.panel.busy(), 60.0)
    assert a_panel.ui.autoLabel.text.startswith("Looks for liver")
    a_panel.ui.adapterPath.currentPath = str(tmp_path)
    a_host.user.wait_until(lambda: not a_panel.panel.busy(), 60.0)
    assert a_panel.ui.autoLabel.text.startswith("Choose an adapter under Advanced")
