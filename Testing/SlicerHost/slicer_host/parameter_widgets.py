"""How a parameter goes into a widget and comes out of it, by the kind of widget."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable
from typing import Any

import vtk
from PySide6 import QtCore, QtWidgets

from .ctk_widgets import ctkCollapsibleButton, ctkPathLineEdit, ctkSliderWidget
from .mrml_widgets import qMRMLNodeComboBox


class WidgetLink:
    """A widget that shows a parameter."""

    def __init__(self, widget: Any, parameter: Any, signals: tuple[str, ...]) -> None:
        self.widget = widget._wrapped_or_raise()
        self.parameter = parameter
        self._signals = signals
        self._function: Callable[..., None] | None = None

    def read(self) -> Any:
        """Return the value in the widget."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Show a value."""
        raise NotImplementedError

    def follow(self, function: Callable[..., None]) -> None:
        """Call a function when the user changes the value."""
        self._function = function
        for signal in self._signals:
            getattr(self.widget, signal).connect(function)

    def stop(self) -> None:
        """Call it no more."""
        for signal in self._signals:
            getattr(self.widget, signal).disconnect(self._function)
        self._function = None


class CheckLink(WidgetLink):
    """A button that is checked or not."""

    def read(self) -> bool:
        """Return whether it is checked."""
        return bool(self.widget.isChecked())

    def write(self, value: bool) -> None:
        """Check it or not."""
        self.widget.setChecked(value)


class CollapsedLink(WidgetLink):
    """A heading that is folded or not."""

    def read(self) -> bool:
        """Return whether it is folded."""
        return bool(self.widget.property("collapsed"))

    def write(self, value: bool) -> None:
        """Fold it or not."""
        self.widget.setCollapsed(value)


class NumberLink(WidgetLink):
    """A slider or spin box; it gets the parameter's limits."""

    def __init__(self, widget: Any, parameter: Any, signals: tuple[str, ...]) -> None:
        super().__init__(widget, parameter, signals)
        for note in parameter.notes:
            for limit, setter in (("minimum", "setMinimum"), ("maximum", "setMaximum")):
                if hasattr(note, limit):
                    getattr(self.widget, setter)(parameter.kind(getattr(note, limit)))

    def read(self) -> Any:
        """Return the number."""
        return self.parameter.kind(self.widget.property("value"))

    def write(self, value: Any) -> None:
        """Show a number."""
        self.widget.setValue(value)


class TextLink(WidgetLink):
    """A line of text."""

    def read(self) -> Any:
        """Return the text."""
        return self.widget.text()

    def write(self, value: Any) -> None:
        """Show a text."""
        self.widget.setText(str(value))


class PathLink(WidgetLink):
    """A line for a path."""

    def read(self) -> Any:
        """Return the path."""
        text = self.widget.property("currentPath")
        return self.parameter.kind(text) if issubclass(self.parameter.kind, pathlib.PurePath) else text

    def write(self, value: Any) -> None:
        """Show a path."""
        self.widget.setCurrentPath("" if value is None or str(value) == "." else str(value))


class ChoiceLink(WidgetLink):
    """A combo box of choices: the members of an enumeration, or texts."""

    def __init__(self, widget: Any, parameter: Any, signals: tuple[str, ...]) -> None:
        super().__init__(widget, parameter, signals)
        choices = next((note.choices for note in parameter.notes if hasattr(note, "choices")), None)
        if issubclass(parameter.kind, enum.Enum):
            choices = [_label_of(member) for member in parameter.kind]
        if choices is None:
            raise ValueError(f"A combo box shows the parameter {parameter.name} only if Choice says what there is")
        with QtCore.QSignalBlocker(self.widget):
            self.widget.clear()
            self.widget.addItems([str(choice) for choice in choices])

    def read(self) -> Any:
        """Return the choice."""
        text = self.widget.currentText()
        if issubclass(self.parameter.kind, enum.Enum):
            return next((member for member in self.parameter.kind if _label_of(member) == text), None)
        return self.parameter.kind(text)

    def write(self, value: Any) -> None:
        """Show a choice."""
        self.widget.setCurrentText(_label_of(value) if isinstance(value, enum.Enum) else str(value))


class NodeLink(WidgetLink):
    """A combo box of nodes."""

    def read(self) -> Any:
        """Return the node."""
        return self.widget.currentNode()

    def write(self, value: Any) -> None:
        """Choose a node."""
        self.widget.setCurrentNode(value)


def _label_of(member: enum.Enum) -> str:
    label = getattr(member, "label", None)
    return label() if callable(label) else member.name


_LINKS: tuple[tuple[tuple[type, ...], tuple[type, ...], type[WidgetLink], tuple[str, ...]], ...] = (
    ((qMRMLNodeComboBox,), (vtk.vtkObject,), NodeLink, ("currentNodeChanged",)),
    ((ctkCollapsibleButton,), (bool,), CollapsedLink, ("contentsCollapsed",)),
    ((ctkPathLineEdit,), (pathlib.PurePath,), PathLink, ("currentPathChanged",)),
    ((QtWidgets.QSpinBox, QtWidgets.QSlider), (int,), NumberLink, ("valueChanged",)),
    ((QtWidgets.QDoubleSpinBox, ctkSliderWidget), (float,), NumberLink, ("valueChanged",)),
    ((QtWidgets.QCheckBox, QtWidgets.QPushButton), (bool,), CheckLink, ("toggled",)),
    ((QtWidgets.QComboBox,), (str, int, float, bool, enum.Enum), ChoiceLink, ("currentTextChanged",)),
    ((QtWidgets.QLineEdit,), (str,), TextLink, ("textChanged",)),
)
"""Widgets of exactly which class show parameters of which types, as in Slicer's guiConnectors.py."""


def link_to(widget: Any, parameter: Any) -> WidgetLink:
    """Return the link for a widget.

    Raises
    ------
    ValueError
        If Slicer links nothing of that type to a widget of that class.
    """
    wrapped = widget._wrapped_or_raise()
    for kinds, types, link, signals in _LINKS:
        if type(wrapped) in kinds and issubclass(parameter.kind, types):
            return link(widget, parameter, signals)
    raise ValueError(
        f"A {type(wrapped).__name__} cannot show the parameter {parameter.name} of type {parameter.kind.__name__}"
    )
