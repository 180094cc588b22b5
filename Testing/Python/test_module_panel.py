"""The looks of the module's panel: what is to be read fits, and says which key does the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
