"""The host: opens what a Slicer module needs, loads the module's file as it is, and puts all back at the end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import shiboken6
import slicer
import slicer.util
from PySide6 import QtCore, QtWidgets

from . import console, dialogs, packaging, parameter_node, sample_data
from .application import (
    qSlicerApplication,
    qSlicerScriptedLoadableModule,
    qSlicerScriptedLoadableModuleWidget,
)
from .ctk_widgets import CTK_WIDGETS
from .mrml_widgets import qMRMLNodeComboBox, qMRMLWidget, qSlicerMarkupsPlaceWidget
from .pythonqt import disconnect_python, wrap
from .qt_module import make_ctk, make_qt, private_settings, slicer_classes
from .scripted import make_module as make_scripted
from .segment_editor import qMRMLSegmentEditorWidget
from .segment_table import qMRMLSegmentSelectorWidget, qMRMLSegmentsTableView
from .user import User

STAND_INS: tuple[type[QtWidgets.QWidget], ...] = (
    *CTK_WIDGETS,
    qMRMLWidget,
    qMRMLNodeComboBox,
    qSlicerMarkupsPlaceWidget,
    qMRMLSegmentEditorWidget,
    qMRMLSegmentSelectorWidget,
    qMRMLSegmentsTableView,
)
_ABSENT = object()


class Host:
    """A running host: the application, the modules loaded into it, and a user at its mouse and keyboard."""

    def __init__(self, application: qSlicerApplication) -> None:
        self.application = application
        self.scene = application.mrmlScene()
        self.window = application.mainWindow()
        self.user = User(self)
        self.answers = dialogs.answers
        self.packages = packaging.recorder
        self.sample_data = sample_data.sources
        self._shown: str | None = None
        self._widgets: dict[str, Any] = {}
        self._modules: dict[str, qSlicerScriptedLoadableModule] = {}

    @property
    def unhandled(self) -> list[BaseException]:
        """The exceptions that reached the console."""
        return console.unhandled()

    def load_module(self, path: Path) -> ModuleType:
        """Load a scripted module's file, as Slicer does when it starts: the Python module and its description."""
        name = path.stem
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        python = importlib.util.module_from_spec(spec)
        sys.modules[name] = python
        spec.loader.exec_module(python)
        described = qSlicerScriptedLoadableModule(name, str(path))
        self._modules[name] = described
        setattr(slicer.modules, name.lower(), wrap(described))
        self.application.moduleManager().add(name, described)
        setattr(slicer.modules, f"{name}Instance", getattr(python, name)(wrap(described)))
        self.application.startupCompleted.emit()
        return python

    def open_module(self, name: str) -> Any:
        """Show a module's panel, built at the first time, and enter it; return the module's widget object."""
        if self._shown == name:
            return self._widgets[name]
        self.leave_module()
        if name not in self._widgets:
            place = qSlicerScriptedLoadableModuleWidget()
            place.setMRMLScene(self.scene)
            self._modules[name].set_widget(place)
            widget = getattr(sys.modules[name], f"{name}Widget")(wrap(place))
            place.set_python(widget)
            self._widgets[name] = widget
            widget.setup()
            setattr(slicer.modules, f"{name}Widget", widget)
        panel = self._modules[name].widgetRepresentation()
        assert panel is not None
        self.window.show_panel(panel)
        self._shown = name
        panel.enter()
        self.process_events()
        return self._widgets[name]

    def leave_module(self) -> None:
        """Leave the module shown, as for another one."""
        if self._shown is not None:
            panel = self._modules[self._shown].widgetRepresentation()
            assert panel is not None
            panel.exit()
            self._shown = None

    def show(self, width: int = 1280, height: int = 860) -> None:
        """Show the window."""
        self.window.resize(width, height)
        self.window.show()
        self.process_events()

    def process_events(self) -> None:
        """Let Qt handle what waits, and draw what is to be drawn."""
        for _ in range(3):
            QtWidgets.QApplication.processEvents()

    def unload_modules(self) -> None:
        """Leave the module shown and end all modules that were loaded, as when the application ends."""
        self.leave_module()
        disconnect_python(self.application)
        for widget in self._widgets.values():
            console.run(widget.cleanup)
        self._widgets.clear()
        for name, described in self._modules.items():
            panel = described.widgetRepresentation()
            if panel is not None:
                self.window.take_panel(panel)
                shiboken6.delete(panel)
            for attribute in (name.lower(), f"{name}Widget", f"{name}Instance"):
                slicer.modules.__dict__.pop(attribute, None)
            sys.modules.pop(name, None)
        self._modules.clear()

    def start_anew(self) -> None:
        """Be as new: no modules, an empty scene, the usual mouse mode and layout, nothing recorded."""
        self.unload_modules()
        self.scene.Clear(False)
        # Singletons outlive the closing of a scene, those of modules too.
        for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
            self.scene.RemoveNode(node)
        interaction = self.application.applicationLogic().GetInteractionNode()
        interaction.SetPlaceModePersistence(0)
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self.application.layoutManager().start_anew()
        self.application.set_testing(False)
        self.application.settings().clear()
        _forget_all()
        self.show()

    def close(self) -> None:
        """End: end all modules, close the window and the scene."""
        self.unload_modules()
        self.application.shut_down()
        # Here and now: Python's collector may run in any thread, and a timer whose owner another thread has deleted
        # fires into the void.
        shiboken6.delete(self.window)


def _translated(text: str) -> str:
    return text


def _translate(_context: str, text: str) -> str:
    return text


def _set_attribute(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    before = owner.__dict__.get(name, _ABSENT)

    def restore() -> None:
        if before is _ABSENT:
            owner.__dict__.pop(name, None)
        else:
            setattr(owner, name, before)

    stack.callback(restore)
    setattr(owner, name, value)


def _set_module(stack: ExitStack, module: ModuleType) -> None:
    name = module.__name__
    before = sys.modules.get(name)

    def restore() -> None:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before

    stack.callback(restore)
    sys.modules[name] = module
    if name.startswith("slicer."):
        _set_attribute(stack, slicer, name.partition(".")[2], module)


def _restore_path(stack: ExitStack) -> None:
    before = list(sys.path)

    def restore() -> None:
        sys.path[:] = before

    stack.callback(restore)


def _forget_all() -> None:
    console.forget()
    dialogs.answers.waiting.clear()
    dialogs.answers.seen.clear()
    packaging.recorder.__init__()  # type: ignore[misc]
    sample_data.sources.clear()


@contextmanager
def open_host() -> Iterator[Host]:
    """Open a host with a new scene; at the end everything that was set is put back.

    There is one QApplication in a process, which stays; everything else is new each time.
    """
    if QtWidgets.QApplication.instance() is None:
        _keep.append(QtWidgets.QApplication(["slicer-host"]))
        QtWidgets.QApplication.setQuitOnLastWindowClosed(False)
    _forget_all()
    with ExitStack() as stack:
        stack.enter_context(console.hooks())
        stack.callback(private_settings().cleanup)
        _restore_path(stack)
        i18n = ModuleType("slicer.i18n")
        i18n.tr, i18n.translate = _translated, _translate  # type: ignore[attr-defined]
        for module in (
            make_qt(STAND_INS),
            make_ctk(STAND_INS),
            i18n,
            make_scripted(),
            parameter_node.make_module(),
            packaging.make_module(),
            sample_data.make_module(),
        ):
            _set_module(stack, module)
        for name, value in slicer_classes(STAND_INS).items():
            _set_attribute(stack, slicer, name, value)
        _set_attribute(stack, slicer, "ScriptedLoadableModule", sys.modules["slicer.ScriptedLoadableModule"])
        application = qSlicerApplication()
        _set_attribute(stack, slicer, "app", wrap(application))
        _set_attribute(stack, slicer, "mrmlScene", application.mrmlScene())
        _set_attribute(stack, slicer, "modules", application.start())
        host = Host(application)
        try:
            yield host
        finally:
            host.close()
            QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)


_keep: list[QtWidgets.QApplication] = []
