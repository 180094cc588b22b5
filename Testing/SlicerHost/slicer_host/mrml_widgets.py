"""Stand-ins for Slicer's widgets that look at the MRML scene; the scene that they look at is the real one."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from .pythonqt import with_setters
from .scene_observer import SceneObserver


class qMRMLWidget(QtWidgets.QWidget):
    """A widget with a scene, the root of a module's .ui file."""

    mrmlSceneChanged = QtCore.Signal(object)
    vtk_signals = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}  # noqa: RUF012

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        """Return the vtkMRMLScene."""
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        """Set the scene, and tell those who are connected."""
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@with_setters
class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Chooses a node of the scene by name; follows nodes that come, go and are renamed."""

    currentNodeChanged = QtCore.Signal(object)
    currentNodeIsValid = QtCore.Signal(bool)
    currentNodeIDChanged = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    vtk_signals = {  # noqa: RUF012
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "currentNodeIsValid",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
    }

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box = QtWidgets.QComboBox(self)
        self._box.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._node_types: list[str] = []
        self._flags = {
            "noneEnabled": False,
            "addEnabled": True,
            "removeEnabled": True,
            "renameEnabled": False,
            "editEnabled": False,
            "showHidden": False,
            "showChildNodeTypes": True,
            "selectNodeUponCreation": True,
        }
        self._texts = {"noneDisplay": "None", "baseName": "", "interactionNodeSingletonTag": ""}
        self._attributes: list[tuple[str, str, str | None]] = []
        self._hidden_types: list[str] = []
        self._scene: Any = None
        self._node: Any = None
        self._observer = SceneObserver(self._scene_changed, self._rebuild)
        self._box.activated.connect(self._activated)
        self.destroyed.connect(self._observer.stop)

    # What Slicer's widget offers

    def mrmlScene(self) -> Any:
        """Return the vtkMRMLScene."""
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        """Look at a scene."""
        self._scene = scene
        self._observer.follow(scene)
        self._scene_changed()

    def currentNode(self) -> Any:
        """Return the node chosen, or None."""
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        """Choose a node; one that cannot be chosen, or None, means none."""
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node) if self._scene is not None else None
        self._choose(node if node is not None and node in self.nodes() else None)

    def setCurrentNodeID(self, node_id: str) -> None:
        """Choose a node by its ID."""
        self.setCurrentNode(node_id or None)

    def setCurrentNodeIndex(self, index: int) -> None:
        """Choose a node by its number among those shown."""
        self._choose(self.nodeFromIndex(index))

    def nodeFromIndex(self, index: int) -> Any:
        """Return a node by its number among those shown."""
        nodes = self.nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def nodes(self) -> list[Any]:
        """Return the nodes that can be chosen."""
        if self._scene is None:
            return []
        every = [self._scene.GetNthNode(number) for number in range(self._scene.GetNumberOfNodes())]
        return [node for node in every if self._fits(node)]

    def addNode(self, node_type: str = "") -> Any:
        """Make a new node of a type, as "Create new" does."""
        kind = node_type or self._node_types[0]
        name = self._texts["baseName"] or self._scene.GetTagByClassName(kind)
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(name))
        if self._flags["selectNodeUponCreation"]:
            self._choose(node)
        self.nodeAddedByUser.emit(node)
        return node

    def addAttribute(self, node_type: str, name: str, value: str | None = None) -> None:
        """Show of a type only the nodes with an attribute (of any value, if none is given)."""
        self._attributes.append((node_type, name, value))
        self._scene_changed()

    def comboBox(self) -> QtWidgets.QComboBox:
        """Return the box inside."""
        return self._box

    # Inside

    def _fits(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self._flags["showHidden"]:
            return False
        if any(node.IsA(kind) for kind in self._hidden_types):
            return False
        exact = not self._flags["showChildNodeTypes"]
        if not any(node.GetClassName() == kind if exact else node.IsA(kind) for kind in self._node_types):
            return False
        for kind, name, value in self._attributes:
            found = node.GetAttribute(name)
            if node.IsA(kind) and (found is None or (value is not None and found != value)):
                return False
        return True

    def _scene_changed(self) -> None:
        nodes = self.nodes()
        self._observer.follow_names(nodes)
        if self._node is not None and self._node not in nodes:
            self._choose(None if self._flags["noneEnabled"] or not nodes else nodes[0])
        elif self._node is None and nodes and not self._flags["noneEnabled"]:
            self._choose(nodes[0])
        else:
            self._rebuild()

    def _rebuild(self) -> None:
        with QtCore.QSignalBlocker(self._box):
            self._box.clear()
            if self._flags["noneEnabled"] or self._node is None:
                self._box.addItem(self._texts["noneDisplay"], "")
            for node in self.nodes():
                self._box.addItem(node.GetName() or "", node.GetID())
            if self._flags["addEnabled"]:
                for kind in self._node_types:
                    tag = self._scene.GetTagByClassName(kind) if self._scene is not None else ""
                    self._box.addItem(f"Create new {tag or kind}", f"create {kind}")
            self._box.setCurrentIndex(self._box.findData(self._node.GetID() if self._node is not None else ""))

    def _activated(self, index: int) -> None:
        data = self._box.itemData(index)
        if data.startswith("create "):
            self.addNode(data.partition(" ")[2])
            self._rebuild()
        else:
            self.setCurrentNodeID(data)
        self.nodeActivated.emit(self._node)

    def _choose(self, node: Any) -> None:
        changed = node is not self._node
        self._node = node
        self._rebuild()
        if changed:
            self.currentNodeChanged.emit(node)
            self.currentNodeIsValid.emit(node is not None)
            self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _get_id(self) -> str:
        return self._node.GetID() if self._node is not None else ""

    def _get_types(self) -> list[str]:
        return self._node_types

    def _set_types(self, types: list[str]) -> None:
        self._node_types = list(types)
        self._scene_changed()

    def _get_hidden(self) -> list[str]:
        return self._hidden_types

    def _set_hidden(self, types: list[str]) -> None:
        self._hidden_types = list(types)
        self._scene_changed()

    def nodeCount(self) -> int:
        """Return how many nodes can be chosen."""
        return len(self.nodes())

    def _flag(name: str) -> Any:  # type: ignore[misc]
        def read(self: Any) -> bool:
            return bool(self._flags[name])

        def write(self: Any, value: bool) -> None:
            self._flags[name] = bool(value)
            self._scene_changed()

        return QtCore.Property(bool, read, write)

    def _text(name: str) -> Any:  # type: ignore[misc]
        def read(self: Any) -> str:
            return str(self._texts[name])

        def write(self: Any, value: str) -> None:
            self._texts[name] = value
            self._rebuild()

        return QtCore.Property(str, read, write)

    nodeTypes = QtCore.Property("QStringList", _get_types, _set_types)
    hideChildNodeTypes = QtCore.Property("QStringList", _get_hidden, _set_hidden)
    currentNodeID = QtCore.Property(str, _get_id, setCurrentNodeID)
    noneEnabled = _flag("noneEnabled")
    addEnabled = _flag("addEnabled")
    removeEnabled = _flag("removeEnabled")
    renameEnabled = _flag("renameEnabled")
    editEnabled = _flag("editEnabled")
    showHidden = _flag("showHidden")
    showChildNodeTypes = _flag("showChildNodeTypes")
    selectNodeUponCreation = _flag("selectNodeUponCreation")
    noneDisplay = _text("noneDisplay")
    baseName = _text("baseName")
    interactionNodeSingletonTag = _text("interactionNodeSingletonTag")


class qSlicerMarkupsPlaceWidget(QtWidgets.QWidget):
    """Buttons that place control points of a markups node with the mouse."""

    activeMarkupsPlaceModeChanged = QtCore.Signal(bool)
    activeMarkupsFiducialPlaceModeChanged = QtCore.Signal(bool)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._node: Any = None
        self._observer: int | None = None
        self._persistent = True
        self._button = QtWidgets.QToolButton(self)
        self._button.setText("Place")
        self._button.setCheckable(True)
        self._button.clicked.connect(self.setPlaceModeEnabled)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._button)

    def setMRMLScene(self, scene: Any) -> None:
        """Use a scene's selection and interaction nodes."""
        if self._observer is not None:
            self._interaction().RemoveObserver(self._observer)
        self._scene = scene
        self._observer = None
        if scene is not None:
            event = slicer.vtkMRMLInteractionNode.InteractionModeChangedEvent
            self._observer = self._interaction().AddObserver(event, self._mode_changed)

    def _interaction(self) -> Any:
        return self._scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")

    def _selection(self) -> Any:
        return self._scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")

    def currentNode(self) -> Any:
        """Return the markups node."""
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        """Set the markups node that is placed into."""
        if node is not self._node and self.currentNodeActive():
            self.setPlaceModeEnabled(False)
        self._node = node

    def currentNodeActive(self) -> bool:
        """Return whether the selection node places into the node."""
        return self._node is not None and self._selection().GetActivePlaceNodeID() == self._node.GetID()

    def placeButton(self) -> QtWidgets.QToolButton:
        """Return the button."""
        return self._button

    def _enabled(self) -> bool:
        if self._scene is None or not self.currentNodeActive():
            return False
        return self._interaction().GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place

    def setPlaceModeEnabled(self, enabled: bool) -> None:
        """Start or stop placing."""
        if enabled and self._node is not None:
            self._selection().SetReferenceActivePlaceNodeClassName(self._node.GetClassName())
            self._selection().SetActivePlaceNodeID(self._node.GetID())
            self._interaction().SetPlaceModePersistence(int(self._persistent))
            self._interaction().SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.Place)
        elif not enabled and self._enabled():
            self._interaction().SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
        self._mode_changed()

    def _mode_changed(self, *_: Any) -> None:
        enabled = self._enabled()
        if enabled != self._button.isChecked():
            self._button.setChecked(enabled)
        self.activeMarkupsPlaceModeChanged.emit(enabled)
        self.activeMarkupsFiducialPlaceModeChanged.emit(enabled)

    def setPlaceModePersistency(self, persistent: bool) -> None:
        """Place one point, or points until told to stop."""
        self._persistent = persistent

    def _get_persistent(self) -> bool:
        return self._persistent

    def _buttons(self) -> bool:
        return self._button.isVisible()

    def setButtonsVisible(self, visible: bool) -> None:
        """Show or hide the buttons."""
        self._button.setVisible(visible)

    placeModeEnabled = QtCore.Property(bool, _enabled, setPlaceModeEnabled)
    placeModePersistency = QtCore.Property(bool, _get_persistent, setPlaceModePersistency)
    buttonsVisible = QtCore.Property(bool, _buttons, setButtonsVisible)
