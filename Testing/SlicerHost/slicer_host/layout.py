"""The layout manager with its slice and 3D widgets, and the window around them."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .views import VTKView, qMRMLSliceView, qMRMLThreeDView

SLICE_VIEWS = {
    "Red": ("R", "Axial", (0xF3 / 255, 0x4A / 255, 0x33 / 255)),
    "Green": ("G", "Coronal", (0x6E / 255, 0xB0 / 255, 0x4B / 255)),
    "Yellow": ("Y", "Sagittal", (0xED / 255, 0xD5 / 255, 0x4C / 255)),
}


class qMRMLSliceControllerWidget(QtWidgets.QWidget):
    """The bar above a slice view: its name and the offset."""

    def __init__(self, logic: Any, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._logic = logic
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(2, 0, 2, 0)
        node = logic.GetSliceNode()
        label = QtWidgets.QLabel(node.GetLayoutLabel())
        color = ",".join(str(round(255 * part)) for part in node.GetLayoutColor())
        label.setStyleSheet(f"background: rgb({color}); color: black; padding: 1px 4px;")
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._offset = QtWidgets.QLabel()
        self._offset.setStyleSheet("color: #e0e0e0;")
        layout.addWidget(label)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._offset)
        self._slider.valueChanged.connect(self._moved)
        self._observer = logic.AddObserver(vtk.vtkCommand.ModifiedEvent, self._show)
        self._step, self._low = 1.0, 0.0
        self._show()

    def sliceOffsetSlider(self) -> QtWidgets.QSlider:
        """Return the slider."""
        return self._slider

    def setSliceOffsetValue(self, offset: float) -> None:
        """Show the slice at an offset in mm."""
        self._logic.SetSliceOffset(offset)

    def close_view(self) -> None:
        """Stop observing."""
        self._logic.RemoveObserver(self._observer)

    def _moved(self, value: int) -> None:
        self._logic.SetSliceOffset(self._low + value * self._step)

    def _show(self, *_: Any) -> None:
        bounds = [0.0] * 6
        self._logic.GetBackgroundSliceBounds(bounds)
        self._step = max(self._logic.GetLowestVolumeSliceSpacing()[2], 1e-3)
        self._low = bounds[4] + 0.5 * self._step
        steps = max(0, round((bounds[5] - bounds[4]) / self._step) - 1)
        offset = self._logic.GetSliceOffset()
        with QtCore.QSignalBlocker(self._slider):
            self._slider.setRange(0, min(steps, 1_000_000))
            self._slider.setValue(round((offset - self._low) / self._step))
        self._offset.setText(f"{self._logic.GetSliceNode().GetOrientation()}: {offset:.1f} mm")


class qMRMLSliceWidget(QtWidgets.QFrame):
    """A slice view with its controller."""

    def __init__(self, logic: Any, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._logic = logic
        self._controller = qMRMLSliceControllerWidget(logic, self)
        self._view = qMRMLSliceView(logic, self)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._controller)
        layout.addWidget(self._view, 1)

    def sliceView(self) -> qMRMLSliceView:
        """Return the view."""
        return self._view

    def sliceController(self) -> qMRMLSliceControllerWidget:
        """Return the bar above it."""
        return self._controller

    def sliceLogic(self) -> Any:
        """Return the vtkMRMLSliceLogic."""
        return self._logic

    def mrmlSliceNode(self) -> Any:
        """Return the vtkMRMLSliceNode."""
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        """Return the vtkMRMLSliceCompositeNode."""
        return self._logic.GetSliceCompositeNode()

    def interactorStyle(self) -> Any:
        """Return the view's interactor style."""
        return self._view.interactorStyle()

    def fitSliceToBackground(self) -> None:
        """Show the whole of the background volume."""
        self._logic.FitSliceToBackground()

    def close_view(self) -> None:
        """Let go of VTK."""
        self._controller.close_view()
        self._view.close_view()


class qMRMLThreeDWidget(QtWidgets.QFrame):
    """A 3D view in its frame."""

    def __init__(self, view_node: Any, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._view = qMRMLThreeDView(view_node, self)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._view)

    def threeDView(self) -> qMRMLThreeDView:
        """Return the view."""
        return self._view

    def mrmlViewNode(self) -> Any:
        """Return the vtkMRMLViewNode."""
        return self._view.mrmlViewNode()

    def close_view(self) -> None:
        """Let go of VTK."""
        self._view.close_view()


class qSlicerLayoutManager(QtCore.QObject):
    """Makes the views and answers for them; layouts are the four-up one and one view alone."""

    layoutChanged = QtCore.Signal(int)
    hidden_from_python: ClassVar[tuple[str, ...]] = ("close_views", "add_views", "start_anew")

    def __init__(self, scene: Any, application_logic: Any, viewport: QtWidgets.QWidget) -> None:
        super().__init__(viewport)
        self._scene = scene
        self._application_logic = application_logic
        self._grid = QtWidgets.QGridLayout(viewport)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(2)
        self._viewport = viewport
        self._slices: dict[str, qMRMLSliceWidget] = {}
        self._three_d: list[qMRMLThreeDWidget] = []
        self._slice_logics = vtk.vtkCollection()
        self._layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView

    def add_views(self) -> None:
        """Make the nodes, logics and widgets of three slice views and a 3D view."""
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self._scene)
        self._application_logic.SetSliceLogics(self._slice_logics)
        for (name, (label, orientation, color)), place in zip(
            SLICE_VIEWS.items(), ((0, 0), (1, 0), (1, 1)), strict=True
        ):
            # By the scene, which knows the presets of orientation.
            node = self._scene.CreateNodeByClass("vtkMRMLSliceNode")
            node.UnRegister(None)
            node.SetName(name)
            node.SetLayoutName(name)
            node.SetSingletonTag(name)
            node.SetLayoutLabel(label)
            node.SetLayoutColor(*color)
            node = self._scene.AddNode(node)
            node.SetOrientation(orientation)
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(self._application_logic)
            logic.SetMRMLScene(self._scene)
            logic.SetSliceNode(node)
            self._slice_logics.AddItem(logic)
            self._slices[name] = qMRMLSliceWidget(logic, self._viewport)
            self._grid.addWidget(self._slices[name], *place)
        view_node = slicer.vtkMRMLViewNode()
        view_node.SetName("View1")
        view_node.SetLayoutName("1")
        view_node.SetSingletonTag("1")
        view_node.SetBoxVisible(0)
        view_node.SetAxisLabelsVisible(0)
        self._three_d.append(qMRMLThreeDWidget(self._scene.AddNode(view_node), self._viewport))
        self._grid.addWidget(self._three_d[0], 0, 1)

    def _all(self) -> list[QtWidgets.QWidget]:
        return [*self._slices.values(), *self._three_d]

    def _views(self) -> list[VTKView]:
        return [widget.sliceView() for widget in self._slices.values()] + [w.threeDView() for w in self._three_d]

    def sliceViewNames(self) -> list[str]:
        """Return the names of the slice views."""
        return list(self._slices)

    def sliceWidget(self, name: str) -> qMRMLSliceWidget | None:
        """Return a slice view by name, or None."""
        return self._slices.get(name)

    def threeDWidget(self, index: int) -> qMRMLThreeDWidget | None:
        """Return a 3D view by number, or None."""
        return self._three_d[index] if index < len(self._three_d) else None

    def mrmlSliceLogics(self) -> Any:
        """Return the vtkCollection of slice logics."""
        return self._slice_logics

    def viewport(self) -> QtWidgets.QWidget:
        """Return the widget in which the views are."""
        return self._viewport

    def resetSliceViews(self) -> None:
        """Show the whole of the volumes in all slice views."""
        for widget in self._slices.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """Show all there is in the 3D views."""
        for widget in self._three_d:
            widget.threeDView().resetCamera()

    def pauseRender(self) -> None:
        """Stop drawing."""
        for view in self._views():
            view.pauseRender()

    def resumeRender(self) -> None:
        """Draw again."""
        for view in self._views():
            view.resumeRender()

    def start_anew(self) -> None:
        """Show all views, straight and at the origin."""
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        for name, (_, orientation, _) in SLICE_VIEWS.items():
            node = self._slices[name].mrmlSliceNode()
            node.SetOrientation(orientation)
            node.SetSliceOffset(0.0)

    def close_views(self) -> None:
        """Let go of all views."""
        for widget in self._all():
            widget.close_view()
        self._application_logic.SetSliceLogics(None)
        self._slice_logics.RemoveAllItems()

    def _layout_value(self) -> int:
        return self._layout

    def setLayout(self, layout: int) -> None:
        """Show one of vtkMRMLLayoutNode's layouts: four-up, conventional, or one view alone."""
        node = slicer.vtkMRMLLayoutNode
        alone: dict[int, QtWidgets.QWidget] = {
            node.SlicerLayoutOneUpRedSliceView: self._slices["Red"],
            node.SlicerLayoutOneUpGreenSliceView: self._slices["Green"],
            node.SlicerLayoutOneUpYellowSliceView: self._slices["Yellow"],
            node.SlicerLayoutOneUp3DView: self._three_d[0],
        }
        for widget in self._all():
            widget.setVisible(layout not in alone or widget is alone[layout])
        self._layout = layout
        self.layoutChanged.emit(layout)

    def _slice_count(self) -> int:
        return len(self._slices)

    def _three_d_count(self) -> int:
        return len(self._three_d)

    layout = QtCore.Property(int, _layout_value, setLayout)
    sliceViewCount = QtCore.Property(int, _slice_count)
    threeDViewCount = QtCore.Property(int, _three_d_count)
