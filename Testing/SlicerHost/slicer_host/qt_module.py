"""The module ``qt``: PySide6's classes behind PythonQt's wrappers, and what must differ in a host."""

from __future__ import annotations

import tempfile
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from PySide6 import QtCore, QtGui, QtNetwork, QtTest, QtUiTools, QtWidgets

from . import dialogs
from .pythonqt import PythonQtError, WrapperType, module_classes, wrapper_class


class QMessageBox(QtWidgets.QMessageBox):
    """A message box that is answered by the test."""

    def exec(self) -> int:
        """Return the answer."""
        return dialogs.execute(self)

    @staticmethod
    def _asked(kind: str, title: str, text: str) -> Any:
        return QtWidgets.QMessageBox.StandardButton(int(dialogs.answers.next_for(kind, title, text)))  # type: ignore[arg-type]

    @staticmethod
    def question(_parent: Any, title: str, text: str, *_: Any) -> Any:
        """Return the answer to a question."""
        return QMessageBox._asked("QMessageBox.question", title, text)

    @staticmethod
    def warning(_parent: Any, title: str, text: str, *_: Any) -> Any:
        """Return the answer to a warning."""
        return QMessageBox._asked("QMessageBox.warning", title, text)

    @staticmethod
    def information(_parent: Any, title: str, text: str, *_: Any) -> Any:
        """Return the answer to a piece of information."""
        return QMessageBox._asked("QMessageBox.information", title, text)

    @staticmethod
    def critical(_parent: Any, title: str, text: str, *_: Any) -> Any:
        """Return the answer to bad news."""
        return QMessageBox._asked("QMessageBox.critical", title, text)


class QDialog(QtWidgets.QDialog):
    """A dialog that is answered by the test."""

    def exec(self) -> int:
        """Return the answer."""
        return dialogs.execute(self)


class QInputDialog(QtWidgets.QInputDialog):
    """Input that the test gives; None is Cancel."""

    @staticmethod
    def getText(_parent: Any, title: str, label: str, *_: Any) -> Any:
        """Return the text given, as PythonQt does: without the flag that C++ has."""
        return dialogs.answers.next_for("QInputDialog.getText", title, label)


class QFileDialog(QtWidgets.QFileDialog):
    """Files that the test chooses; the empty text is Cancel."""

    @staticmethod
    def getOpenFileName(_parent: Any = None, title: str = "", *_: Any) -> Any:
        """Return the file to open."""
        return dialogs.answers.next_for("QFileDialog.getOpenFileName", title, "")

    @staticmethod
    def getSaveFileName(_parent: Any = None, title: str = "", *_: Any) -> Any:
        """Return the file to save to."""
        return dialogs.answers.next_for("QFileDialog.getSaveFileName", title, "")

    @staticmethod
    def getExistingDirectory(_parent: Any = None, title: str = "", *_: Any) -> Any:
        """Return the folder."""
        return dialogs.answers.next_for("QFileDialog.getExistingDirectory", title, "")


class QUiLoader(QtUiTools.QUiLoader):
    """Loads .ui files with the host's stand-ins for Slicer's widgets.

    A widget class that the host does not know raises; Qt would put a plain widget in its place. Connections that pass
    MRML objects are made by the host, because PySide6 has no type for them.
    """

    host_widgets: tuple[type[QtWidgets.QWidget], ...] = ()

    def __init__(self, parent: QtCore.QObject | None = None) -> None:
        super().__init__(parent)
        for widget in self.host_widgets:
            self.registerCustomWidget(widget)

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """Return the widget of a .ui file.

        Raises
        ------
        PythonQtError
            If the file names a class that the host has not, or connects what is not there.
        """
        tree = ElementTree.fromstring(bytes(device.readAll().data()))
        known = {widget.__name__ for widget in self.host_widgets} | set(self.availableWidgets())
        for element in tree.iter("widget"):
            if element.get("class") not in known:
                raise PythonQtError(f"The host has no {element.get('class')} (widget {element.get('name')!r})")
        mrml_connections = _taken_mrml_connections(tree)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, parent)
        for signal, receiver_name, slot in mrml_connections:
            receiver = widget.findChild(QtCore.QObject, receiver_name)
            if receiver is None or not hasattr(receiver, slot):
                raise PythonQtError(f"The .ui file connects {signal} to {receiver_name}.{slot}, which is not there")
            getattr(widget, signal).connect(getattr(receiver, slot))
        return widget


def _taken_mrml_connections(tree: ElementTree.Element) -> list[tuple[str, str, str]]:
    """Remove the connections that pass MRML objects from a .ui file; return signal, receiver and slot of each."""
    taken = []
    for group in tree.iter("connections"):
        for connection in list(group):
            texts = [connection.findtext(part, "") for part in ("signal", "receiver", "slot")]
            if "vtkMRML" in texts[0]:
                taken.append((texts[0].partition("(")[0], texts[1], texts[2].partition("(")[0]))
                group.remove(connection)
    return taken


OVERRIDES: dict[str, Any] = {
    kind.__name__: kind for kind in (QMessageBox, QDialog, QInputDialog, QFileDialog, QUiLoader)
}


def make_qt(stand_ins: tuple[type[QtWidgets.QWidget], ...]) -> ModuleType:
    """Return the module, whose .ui loader knows the stand-ins."""
    QUiLoader.host_widgets = stand_ins
    module = ModuleType("qt", __doc__)
    module.__dict__.update({name: wrapper_class(kind) for name, kind in OVERRIDES.items()})
    module.__getattr__ = module_classes(QtCore, QtGui, QtWidgets, QtNetwork, QtTest)  # type: ignore[method-assign]
    return module


def make_ctk(stand_ins: tuple[type[QtWidgets.QWidget], ...]) -> ModuleType:
    """Return the module ``ctk`` with the stand-ins whose names begin with ctk."""
    module = ModuleType("ctk", "Stand-ins for CTK's widgets.")
    module.__dict__.update(
        {kind.__name__: wrapper_class(kind) for kind in stand_ins if kind.__name__.startswith("ctk")}
    )
    return module


def slicer_classes(stand_ins: tuple[type[QtWidgets.QWidget], ...]) -> dict[str, WrapperType]:
    """Return the widget classes that Slicer has in its own namespace."""
    return {kind.__name__: wrapper_class(kind) for kind in stand_ins if kind.__name__.startswith("q")}


def private_settings() -> tempfile.TemporaryDirectory[str]:
    """Let QSettings keep its files in a new folder and not in the user's home; return the folder."""
    folder = tempfile.TemporaryDirectory(prefix="slicer-host-")
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, folder.name)
    QtCore.QCoreApplication.setOrganizationName("NA-MIC")
    QtCore.QCoreApplication.setApplicationName("Slicer host")
    return folder
