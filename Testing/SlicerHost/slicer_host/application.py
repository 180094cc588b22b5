"""``slicer.app``, ``slicer.modules`` and the module manager, around a real scene and the real logics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .io_manager import CoreIOManager
from .layout import qSlicerLayoutManager
from .mrml_widgets import qMRMLWidget
from .views import register_displayable_managers

# As wide as Slicer makes the module panel on a screen of 1920 pixels.
PANEL_WIDTH = 500
# Name of the module in slicer.modules and the class of its logic, in the order in which they are told the scene.
LOGICS = {
    "colors": "vtkSlicerColorLogic",
    "terminologies": "vtkSlicerTerminologiesModuleLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "units": "vtkSlicerUnitsLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "markups": "vtkSlicerMarkupsLogic",
    "models": "vtkSlicerModelsLogic",
    "transforms": "vtkSlicerTransformLogic",
    "sequences": "vtkSlicerSequencesLogic",
    "cropvolume": "vtkSlicerCropVolumeLogic",
    "tables": "vtkSlicerTablesLogic",
}
_LOGIC_NAMES = {"markups": "Markups", "segmentations": "Segmentations", "terminologies": "Terminologies",
                "volumes": "Volumes", "subjecthierarchy": "SubjectHierarchy", "units": "Units"}  # fmt: skip


@contextmanager
def _quiet_vtk() -> Iterator[None]:
    """Say nothing of the color tables and terminologies on disk, which slicer-core does not bring."""
    before = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.SetGlobalWarningDisplay(0)
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(before)


class LoadableModule:
    """A module of Slicer's own: its real logic, and no panel."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name = name
        self._logic = logic

    def logic(self) -> Any:
        """Return the module's logic."""
        return self._logic


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """Slicer's object for a scripted module: what the module says of itself, its panel and its logic."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__()
        self.setObjectName(name)
        self._values: dict[str, Any] = {"path": path, "title": name}
        self._widget: QtWidgets.QWidget | None = None

    def widgetRepresentation(self) -> QtWidgets.QWidget | None:
        """Return the panel."""
        return self._widget

    def set_widget(self, widget: QtWidgets.QWidget) -> None:
        """Set the panel."""
        self._widget = widget

    def _value(name: str, kind: Any, empty: Any) -> Any:  # type: ignore[misc]
        def read(self: Any) -> Any:
            return self._values.get(name, empty)

        def write(self: Any, value: Any) -> None:
            self._values[name] = value

        return QtCore.Property(kind, read, write)

    path = _value("path", str, "")
    title = _value("title", str, "")
    categories = _value("categories", "QStringList", [])
    dependencies = _value("dependencies", "QStringList", [])
    contributors = _value("contributors", "QStringList", [])
    associatedNodeTypes = _value("associatedNodeTypes", "QStringList", [])
    helpText = _value("helpText", str, "")
    acknowledgementText = _value("acknowledgementText", str, "")
    hidden = _value("hidden", bool, False)
    index = _value("index", int, -1)
    icon = _value("icon", QtGui.QIcon, QtGui.QIcon())


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The place of a scripted module's panel; ``self()`` is the Python object."""

    def __init__(self) -> None:
        super().__init__()
        self._python: Any = None
        self._entered = False
        QtWidgets.QVBoxLayout(self).setContentsMargins(0, 0, 0, 0)

    def self(self) -> Any:
        """Return the module's widget object."""
        return self._python

    def set_python(self, widget: Any) -> None:
        """Set the module's widget object."""
        self._python = widget

    def enter(self) -> None:
        """Enter the module."""
        self._entered = True
        self._python.enter()

    def exit(self) -> None:
        """Leave the module."""
        self._entered = False
        self._python.exit()

    isEntered = QtCore.Property(bool, lambda self: self._entered)


class qSlicerModuleManager(QtCore.QObject):
    """Knows the modules."""

    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)

    def __init__(self, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self._modules: dict[str, Any] = {}

    def add(self, name: str, module: Any) -> None:
        """Add a module."""
        self._modules[name] = module
        self.moduleLoaded.emit(name)

    def module(self, name: str) -> Any:
        """Return a module, or None."""
        return self._modules.get(name) or self._modules.get(name.lower())

    def modulesNames(self) -> list[str]:
        """Return the names."""
        return list(self._modules)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The window: the module's panel on the left, the views on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer (host)")
        self._panel = QtWidgets.QScrollArea()
        self._panel.setWidgetResizable(True)
        self._panel.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._panel.setFixedWidth(PANEL_WIDTH)
        self._viewport = QtWidgets.QWidget()
        self._viewport.setStyleSheet("background: #202020;")
        splitter = QtWidgets.QSplitter()
        splitter.addWidget(self._panel)
        splitter.addWidget(self._viewport)
        splitter.setStretchFactor(1, 1)
        self.setCentralWidget(splitter)
        self.statusBar()

    def viewport(self) -> QtWidgets.QWidget:
        """Return the widget in which the views are."""
        return self._viewport

    def show_panel(self, panel: QtWidgets.QWidget) -> None:
        """Show a module's panel."""
        if self._panel.widget() is not panel:
            self._panel.takeWidget()
            self._panel.setWidget(panel)
        panel.show()

    def take_panel(self, panel: QtWidgets.QWidget) -> None:
        """Show a module's panel no more."""
        if self._panel.widget() is panel:
            self._panel.takeWidget()


class qSlicerApplication(QtCore.QObject):
    """``slicer.app``."""

    startupCompleted = QtCore.Signal()
    aboutToQuit = QtCore.Signal()
    hidden_from_python: ClassVar[tuple[str, ...]] = ("start", "shut_down", "io", "answers", "set_testing")

    def __init__(self) -> None:
        super().__init__()
        self._scene = slicer.vtkMRMLScene()
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetMRMLScene(self._scene)
        self._temporary = tempfile.TemporaryDirectory(prefix="slicer-host-")
        self._logic.SetTemporaryPath(self._temporary.name)
        self._remote_io = slicer.vtkMRMLRemoteIOLogic()
        self._data_io = slicer.vtkDataIOManagerLogic()
        self._data_io.SetMRMLApplicationLogic(self._logic)
        self._logic.SetMRMLSceneDataIO(self._scene, self._remote_io, self._data_io)
        self._scene.GetCacheManager().SetRemoteCacheDirectory(self._temporary.name)
        self._modules = SimpleNamespace()
        self._testing = False
        self._manager = qSlicerModuleManager(self)
        self._window = qSlicerMainWindow()
        self._settings = QtCore.QSettings()
        self._layout_manager: qSlicerLayoutManager | None = None
        self._io: CoreIOManager | None = None

    def start(self) -> Any:
        """Make the logics and the views; return ``slicer.modules``."""
        for name, class_name in LOGICS.items():
            logic = getattr(slicer, class_name)()
            if name == "colors":
                logic.SetMRMLApplicationLogic(self._logic)
                self._logic.SetColorLogic(logic)
            else:
                logic.SetMRMLApplicationLogic(self._logic)
            with _quiet_vtk():
                logic.SetMRMLScene(self._scene)
            self._logic.SetModuleLogic(_LOGIC_NAMES.get(name, name.capitalize()), logic)
            module = LoadableModule(name, logic)
            setattr(self._modules, name, module)
            self._manager.add(name, module)
        slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        crosshair = slicer.vtkMRMLCrosshairNode()  # as Slicer's application adds it when it starts
        crosshair.SetSingletonTag("default")
        self._scene.AddNode(crosshair)
        register_displayable_managers(self._logic)
        self._layout_manager = qSlicerLayoutManager(self._scene, self._logic, self._window.viewport())
        self._layout_manager.add_views()
        self._io = CoreIOManager(self._scene, self._logic, self._modules.volumes.logic())
        return self._modules

    def shut_down(self) -> None:
        """Let go of the scene and of everything that looks at it."""
        self.aboutToQuit.emit()
        if self._layout_manager is not None:
            self._layout_manager.close_views()
        self._window.close()
        self._scene.Clear(True)
        self._temporary.cleanup()
        with _quiet_vtk():
            for name in LOGICS:
                if hasattr(self._modules, name):
                    getattr(self._modules, name).logic().SetMRMLScene(None)

    # What Slicer's application offers

    def mrmlScene(self) -> Any:
        """Return the vtkMRMLScene."""
        return self._scene

    def applicationLogic(self) -> Any:
        """Return the vtkSlicerApplicationLogic."""
        return self._logic

    def layoutManager(self) -> qSlicerLayoutManager | None:
        """Return the layout manager."""
        return self._layout_manager

    def moduleManager(self) -> qSlicerModuleManager:
        """Return the module manager."""
        return self._manager

    def coreIOManager(self) -> Any:
        """Return what loads and saves."""
        return self._io

    def ioManager(self) -> Any:
        """Return what loads and saves."""
        return self._io

    def mainWindow(self) -> qSlicerMainWindow:
        """Return the window."""
        return self._window

    def topLevelWidgets(self) -> list[QtWidgets.QWidget]:
        """Return the windows."""
        return [self._window]

    def processEvents(self) -> None:
        """Let Qt handle what waits."""
        QtWidgets.QApplication.processEvents()

    def testingEnabled(self) -> bool:
        """Return whether Slicer was started to run tests, which skips message boxes."""
        return self._testing

    def set_testing(self, enabled: bool) -> None:
        """Be as if started to run tests, or not."""
        self._testing = enabled

    def settings(self) -> QtCore.QSettings:
        """Return the settings."""
        return self._settings

    def userSettings(self) -> QtCore.QSettings:
        """Return the settings."""
        return self._settings

    def revisionUserSettings(self) -> QtCore.QSettings:
        """Return the settings."""
        return self._settings

    def setOverrideCursor(self, cursor: Any) -> None:
        """Show a cursor everywhere."""
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        """Show the cursor before."""
        QtWidgets.QApplication.restoreOverrideCursor()

    def pauseRender(self) -> None:
        """Stop drawing."""
        if self._layout_manager is not None:
            self._layout_manager.pauseRender()

    def resumeRender(self) -> None:
        """Draw again."""
        if self._layout_manager is not None:
            self._layout_manager.resumeRender()

    def _constant(value: Any, kind: Any = str) -> Any:  # type: ignore[misc]
        return QtCore.Property(kind, lambda _self: value)

    def _temporary_path(self) -> str:
        return self._temporary.name

    temporaryPath = QtCore.Property(str, _temporary_path)
    applicationName = _constant("Slicer")
    applicationVersion = _constant("5.12.3-host")
    majorVersion = _constant(5, int)
    minorVersion = _constant(12, int)
    revision = _constant("0")
    os = _constant("linux")
    slicerHome = _constant("")
