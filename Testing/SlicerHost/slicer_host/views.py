"""Slice and 3D views: real MRML logics, displayable managers and VTK rendering, shown in plain Qt widgets.

The picture is rendered off screen by VTK (EGL, OSMesa or X, whichever VTK finds), read back and painted. Qt's mouse,
wheel and key events go to the real interactor styles, so that a click places a real control point and dragging one
moves it. What is Slicer's, and what here stands in for it, is in the README of the host.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from vtk.util.numpy_support import vtk_to_numpy

SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLTransformsDisplayableManager2D",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLThreeDReformatDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLTransformsDisplayableManager3D",
)
_BUTTONS = {
    QtCore.Qt.MouseButton.LeftButton: "LeftButton",
    QtCore.Qt.MouseButton.MiddleButton: "MiddleButton",
    QtCore.Qt.MouseButton.RightButton: "RightButton",
}
# As often as Slicer draws at most (qMRMLThreeDView and qMRMLSliceView: 60 times a second).
_FRAME_MS = 16


def can_render() -> bool:
    """Return whether VTK finds something to draw with (EGL, OSMesa or X)."""
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetSize(8, 8)
    window.AddRenderer(vtk.vtkRenderer())
    window.Render()
    able = bool(window.SupportsOpenGL())
    window.Finalize()
    return able


def register_displayable_managers(application_logic: Any) -> None:
    """Tell the factories, of which a process has one each, the managers and the application."""
    for factory_class, names in (
        (slicer.vtkMRMLSliceViewDisplayableManagerFactory, SLICE_MANAGERS),
        (slicer.vtkMRMLThreeDViewDisplayableManagerFactory, THREE_D_MANAGERS),
    ):
        factory = factory_class.GetInstance()
        factory.SetMRMLApplicationLogic(application_logic)
        for name in names:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)


class VTKView(QtWidgets.QWidget):
    """A widget that shows an off-screen VTK window and hands its events on."""

    hidden_from_python: ClassVar[tuple[str, ...]] = ("close_view", "paintEvent", "resizeEvent")

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.setMouseTracking(True)
        self.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus)
        self.setMinimumSize(60, 60)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._window.SetSize(300, 300)
        self._renderer = vtk.vtkRenderer()
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group_observer = self._group.AddObserver(vtk.vtkCommand.UpdateEvent, self._render_requested)
        self._interactor.Initialize()
        self._interactor.Enable()
        self._picture: QtGui.QImage | None = None
        self._paused = 0
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_FRAME_MS)
        self._timer.timeout.connect(self._render_if_visible)

    # What Slicer's views offer to Python

    def renderWindow(self) -> Any:
        """Return the vtkRenderWindow."""
        return self._window

    def interactor(self) -> Any:
        """Return the vtkRenderWindowInteractor."""
        return self._interactor

    def renderer(self) -> Any:
        """Return the vtkRenderer."""
        return self._renderer

    def displayableManagerByClassName(self, name: str) -> Any:
        """Return the displayable manager of a class, or None."""
        return self._group.GetDisplayableManagerByClassName(name)

    def scheduleRender(self) -> None:
        """Render soon, once for many calls."""
        if self._window is not None and not self._timer.isActive():
            self._timer.start()

    def forceRender(self) -> None:
        """Render now."""
        if self._window is None:
            return
        self._timer.stop()
        self._window.Render()
        self._picture = self._grabbed()
        self.update()

    def pauseRender(self) -> None:
        """Render no more until ``resumeRender`` has been called as often."""
        self._paused += 1

    def resumeRender(self) -> None:
        """Undo one ``pauseRender``."""
        self._paused -= 1
        if self._paused == 0:
            self.scheduleRender()

    def setViewCursor(self, cursor: QtGui.QCursor) -> None:
        """Show a cursor over the view."""
        self.setCursor(cursor)

    def unsetViewCursor(self) -> None:
        """Show the usual cursor again."""
        self.unsetCursor()

    # Events

    def _render_requested(self, *_: Any) -> None:
        self.scheduleRender()

    def _render_if_visible(self) -> None:
        if self.isVisible() and self._paused == 0:
            self.forceRender()

    def _grabbed(self) -> QtGui.QImage:
        width, height = self._window.GetSize()
        pixels = vtk.vtkUnsignedCharArray()
        self._window.GetPixelData(0, 0, width - 1, height - 1, 0, pixels, 0)
        array = np.ascontiguousarray(vtk_to_numpy(pixels).reshape(height, width, 3)[::-1])
        return QtGui.QImage(array.data, width, height, 3 * width, QtGui.QImage.Format.Format_RGB888).copy()

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        """Paint the last picture."""
        painter = QtGui.QPainter(self)
        if self._picture is None:
            painter.fillRect(self.rect(), QtCore.Qt.GlobalColor.black)
        else:
            painter.drawImage(self.rect(), self._picture)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        """Make the VTK window as large as the widget."""
        self._window.SetSize(max(1, event.size().width()), max(1, event.size().height()))
        self._interactor.UpdateSize(*self._window.GetSize())
        self.size_changed(*self._window.GetSize())
        self.scheduleRender()

    def size_changed(self, width: int, height: int) -> None:
        """Tell the logic the new size."""

    def showEvent(self, event: QtGui.QShowEvent) -> None:
        """Render when first shown."""
        super().showEvent(event)
        self.scheduleRender()

    def _tell(self, event: Any, position: QtCore.QPointF, name: str, repeat: int = 0) -> None:
        modifiers = event.modifiers()
        self._interactor.SetEventInformation(
            round(position.x()),
            self.height() - 1 - round(position.y()),
            int(bool(modifiers & QtCore.Qt.KeyboardModifier.ControlModifier)),
            int(bool(modifiers & QtCore.Qt.KeyboardModifier.ShiftModifier)),
            "\0",
            repeat,
            None,
        )
        self._interactor.SetAltKey(int(bool(modifiers & QtCore.Qt.KeyboardModifier.AltModifier)))
        self._interactor.InvokeEvent(name)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        """Hand a press on."""
        if event.button() in _BUTTONS:
            self._tell(event, event.position(), f"{_BUTTONS[event.button()]}PressEvent")

    def mouseDoubleClickEvent(self, event: QtGui.QMouseEvent) -> None:
        """Hand a double click on, which for VTK's adapter of Qt (QVTKInteractorAdapter) is no press."""
        if event.button() in _BUTTONS:
            self._tell(event, event.position(), f"{_BUTTONS[event.button()]}DoubleClickEvent", repeat=1)

    def mouseReleaseEvent(self, event: QtGui.QMouseEvent) -> None:
        """Hand a release on."""
        if event.button() in _BUTTONS:
            self._tell(event, event.position(), f"{_BUTTONS[event.button()]}ReleaseEvent")

    def mouseMoveEvent(self, event: QtGui.QMouseEvent) -> None:
        """Hand a movement on."""
        self._tell(event, event.position(), "MouseMoveEvent")

    def wheelEvent(self, event: QtGui.QWheelEvent) -> None:
        """Hand a turn of the wheel on."""
        forward = event.angleDelta().y() > 0
        self._tell(event, event.position(), "MouseWheelForwardEvent" if forward else "MouseWheelBackwardEvent")

    def enterEvent(self, event: QtGui.QEnterEvent) -> None:
        """Tell that the mouse comes."""
        self._tell(event, event.position(), "EnterEvent")

    def leaveEvent(self, _event: QtCore.QEvent) -> None:
        """Tell that the mouse has left."""
        if self._interactor is not None:
            self._interactor.LeaveEvent()

    def keyPressEvent(self, event: QtGui.QKeyEvent) -> None:
        """Hand a key on."""
        self._key(event, ("KeyPressEvent", "CharEvent"))

    def keyReleaseEvent(self, event: QtGui.QKeyEvent) -> None:
        """Hand the release of a key on."""
        self._key(event, ("KeyReleaseEvent",))

    def _key(self, event: QtGui.QKeyEvent, names: tuple[str, ...]) -> None:
        symbols = {QtCore.Qt.Key.Key_Delete: "Delete", QtCore.Qt.Key.Key_Backspace: "BackSpace"}
        text = event.text()
        symbol = symbols.get(QtCore.Qt.Key(event.key()), text or QtGui.QKeySequence(event.key()).toString())
        self._interactor.SetKeyEventInformation(0, 0, text[:1] or "\0", 0, symbol)
        for name in names:
            getattr(self._interactor, name)()
        event.ignore()

    def close_view(self) -> None:
        """Let go of everything that belongs to VTK, in an order that VTK survives."""
        if self._window is None:
            return
        self._timer.stop()
        self._group.RemoveObserver(self._group_observer)
        self._group.SetMRMLDisplayableNode(None)
        self._interactor.Disable()
        self._interactor.SetRenderWindow(None)
        self._window.Finalize()
        self._window = self._interactor = self._group = self._renderer = None


class qMRMLSliceView(VTKView):
    """A slice view: the image of a real vtkMRMLSliceLogic, and markups and segmentations upon it."""

    def __init__(self, logic: Any, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._logic = logic
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetInteractor(self._interactor)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        self._group.Initialize(factory, self._renderer)
        self._group.SetMRMLDisplayableNode(logic.GetSliceNode())
        self._style.SetDisplayableManagers(self._group)
        self._style.SetSliceLogic(logic)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._image = vtk.vtkActor2D()
        self._image.SetMapper(self._mapper)
        self._image.GetProperty().SetDisplayLocationToBackground()
        self._logic_observer = logic.AddObserver(vtk.vtkCommand.ModifiedEvent, self._image_changed)
        self._image_changed()

    def mrmlSliceNode(self) -> Any:
        """Return the vtkMRMLSliceNode."""
        return self._logic.GetSliceNode()

    def interactorStyle(self) -> Any:
        """Return the vtkMRMLSliceViewInteractorStyle."""
        return self._style

    def convertDeviceToXYZ(self, xy: list[float]) -> list[float]:
        """Return the position in the view (pixels, from below) with the light box's slice."""
        return [float(xy[0]), float(xy[1]), 0.0]

    def convertXYZToRAS(self, xyz: list[float]) -> list[float]:
        """Return the RAS position in mm of a position in the view."""
        return list(self.mrmlSliceNode().GetXYToRAS().MultiplyPoint((*xyz[:2], 0.0, 1.0))[:3])

    def convertRASToXYZ(self, ras: list[float]) -> list[float]:
        """Return the position in the view of an RAS position in mm."""
        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.mrmlSliceNode().GetXYToRAS(), matrix)
        return list(matrix.MultiplyPoint((*ras, 1.0))[:3])

    def size_changed(self, width: int, height: int) -> None:
        """Keep the field of view in step with the widget."""
        self._logic.ResizeSliceNode(width, height)

    def _image_changed(self, *_: Any) -> None:
        connection = self._logic.GetImageDataConnection()
        shown = self._renderer.HasViewProp(self._image)
        if connection is not None and not shown:
            self._mapper.SetInputConnection(connection)
            self._renderer.AddViewProp(self._image)
        elif connection is None and shown:
            self._renderer.RemoveViewProp(self._image)
            self._mapper.SetInputConnection(None)
        elif connection is not None:
            self._mapper.SetInputConnection(connection)
        self.scheduleRender()

    def close_view(self) -> None:
        """Let go of VTK and of the logic."""
        if self._window is not None:
            self._logic.RemoveObserver(self._logic_observer)
            self._style.SetInteractor(None)
        super().close_view()


class qMRMLThreeDView(VTKView):
    """A 3D view with a real camera, models, markups and segmentations."""

    def __init__(self, view_node: Any, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._node = view_node
        self._style = slicer.vtkMRMLThreeDViewInteractorStyle()
        self._style.SetInteractor(self._interactor)
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        self._group.Initialize(factory, self._renderer)
        self._group.SetMRMLDisplayableNode(view_node)
        self._style.SetDisplayableManagers(self._group)
        self._renderer.GradientBackgroundOn()
        self._renderer.SetBackground(*view_node.GetBackgroundColor())
        self._renderer.SetBackground2(*view_node.GetBackgroundColor2())

    def mrmlViewNode(self) -> Any:
        """Return the vtkMRMLViewNode."""
        return self._node

    def interactorStyle(self) -> Any:
        """Return the vtkMRMLThreeDViewInteractorStyle."""
        return self._style

    def resetFocalPoint(self) -> None:
        """Look at the middle of what is there."""
        self._renderer.ResetCamera()
        self.scheduleRender()

    def resetCamera(self) -> None:
        """Show all there is."""
        self._renderer.ResetCamera()
        self.scheduleRender()

    def close_view(self) -> None:
        """Let go of VTK."""
        if self._window is not None:
            self._style.SetInteractor(None)
        super().close_view()
