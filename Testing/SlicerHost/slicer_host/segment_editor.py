"""A stand-in for the Segment Editor's widget, around its real logic."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .brush import EFFECTS, Brush
from .mrml_widgets import qMRMLWidget
from .pythonqt import with_setters
from .segment_table import qMRMLSegmentsTableView


class qSlicerSegmentEditorEffect(QtCore.QObject):
    """One effect: its name and its parameters, which are kept in the editor's node as in Slicer."""

    def __init__(self, name: str, editor: Any) -> None:
        super().__init__(editor)
        self._name = name
        self._editor = editor

    def _get_name(self) -> str:
        return self._name

    def _key(self, parameter: str) -> str:
        return f"{self._name}.{parameter}"

    def setParameter(self, name: str, value: Any) -> None:
        """Set a parameter."""
        self._editor.mrmlSegmentEditorNode().SetAttribute(self._key(name), str(value))

    def parameter(self, name: str) -> str:
        """Return a parameter's text."""
        return self._editor.mrmlSegmentEditorNode().GetAttribute(self._key(name)) or ""

    def doubleParameter(self, name: str) -> float:
        """Return a parameter's number."""
        return float(self.parameter(name) or 0.0)

    def integerParameter(self, name: str) -> int:
        """Return a parameter's whole number."""
        return int(float(self.parameter(name) or 0))

    def scriptedEffect(self) -> Any:
        """Return the Python object of a scripted effect; the host's effects have none."""
        return None

    name = QtCore.Property(str, _get_name)


@with_setters
class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The Segment Editor: its real logic (masks, overwriting, undo) behind a table, two effects and undo buttons."""

    currentSegmentIDChanged = QtCore.Signal(str)
    segmentationNodeChanged = QtCore.Signal(object)
    sourceVolumeNodeChanged = QtCore.Signal(object)
    activeEffectChanged = QtCore.Signal()
    vtk_signals: ClassVar[dict[str, str]] = {
        "segmentationNodeChanged(vtkMRMLSegmentationNode*)": "segmentationNodeChanged",
        "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)": "sourceVolumeNodeChanged",
        "mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged",
    }
    hidden_from_python: ClassVar[tuple[str, ...]] = ("logic",)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self._node: Any = None
        self._node_tag: int | None = None
        self._history_tag = self.logic.AddObserver(self.logic.SegmentationHistoryChangedEvent, self._history_changed)
        self._seen: tuple[Any, ...] = (None, None, "", "")
        self._flags = {"segmentationNodeSelectorVisible": True, "sourceVolumeNodeSelectorVisible": True,
                       "switchToSegmentationsButtonVisible": True, "undoEnabled": True, "readOnly": False,
                       "autoShowSourceVolumeNode": True, "addRemoveSegmentButtonsVisible": True,
                       "specifyGeometryButtonVisible": True, "unorderedEffectsVisible": True,
                       "show3DButtonVisible": True, "maskingSectionVisible": True,
                       "jumpToSelectedSegmentEnabled": False}  # fmt: skip
        self._effects = {name: qSlicerSegmentEditorEffect(name, self) for name in EFFECTS}
        self._order = list(EFFECTS)
        self._shortcuts: list[QtGui.QShortcut] = []
        self._brush = Brush(self)
        self._build()
        self.mrmlSceneChanged.connect(self._scene_set)
        self.destroyed.connect(self._brush.stop)

    def _build(self) -> None:
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        top = QtWidgets.QHBoxLayout()
        self._add = QtWidgets.QPushButton("Add", objectName="AddSegmentButton")
        self._remove = QtWidgets.QPushButton("Remove", objectName="RemoveSegmentButton")
        self._table = qMRMLSegmentsTableView()
        self._table.setObjectName("SegmentsTableView")
        self._table.setMaximumHeight(140)
        self._table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.SingleSelection.value)
        bottom = QtWidgets.QHBoxLayout()
        self._buttons: dict[str, QtWidgets.QToolButton] = {}
        for name in ("None", *EFFECTS):
            button = QtWidgets.QToolButton(objectName=name)
            button.setText(name)
            button.setCheckable(True)
            button.clicked.connect(
                lambda _checked, name=name: self.setActiveEffectByName("" if name == "None" else name)
            )
            self._buttons[name] = button
            bottom.addWidget(button)
        bottom.addStretch(1)
        self._undo = QtWidgets.QToolButton(objectName="UndoButton")
        self._undo.setText("Undo")
        self._redo = QtWidgets.QToolButton(objectName="RedoButton")
        self._redo.setText("Redo")
        for widget in (self._add, self._remove):
            top.addWidget(widget)
        top.addStretch(1)
        for widget in (self._undo, self._redo):
            bottom.addWidget(widget)
        layout.addLayout(top)
        layout.addWidget(self._table)
        layout.addLayout(bottom)
        self._add.clicked.connect(self.addSegment)
        self._remove.clicked.connect(self.removeSegment)
        self._undo.clicked.connect(self.undo)
        self._redo.clicked.connect(self.redo)
        self._table.selectionChanged.connect(self._row_chosen)
        self._history_changed()

    def _scene_set(self, scene: Any) -> None:
        self.logic.SetMRMLScene(scene)
        if scene is None:
            self.setMRMLSegmentEditorNode(None)

    # Nodes

    def mrmlSegmentEditorNode(self) -> Any:
        """Return the vtkMRMLSegmentEditorNode."""
        return self._node

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        """Keep what is chosen in a node."""
        if self._node_tag is not None:
            self._node.RemoveObserver(self._node_tag)
            self._node_tag = None
        self._node = node
        self.logic.SetSegmentEditorNode(node)
        if node is not None:
            self._node_tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._node_changed)
        self._node_changed()

    def segmentationNode(self) -> Any:
        """Return the segmentation."""
        return self._node.GetSegmentationNode() if self._node is not None else None

    def setSegmentationNode(self, node: Any) -> None:
        """Edit a segmentation."""
        if self._node is not None:
            self._node.SetAndObserveSegmentationNode(node)

    def setSegmentationNodeID(self, node_id: str) -> None:
        """Edit a segmentation."""
        self.setSegmentationNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def sourceVolumeNode(self) -> Any:
        """Return the volume."""
        return self._node.GetSourceVolumeNode() if self._node is not None else None

    def setSourceVolumeNode(self, node: Any) -> None:
        """Edit over a volume, whose grid is the segmentation's if it has none."""
        if self._node is None:
            return
        segmentation = self.segmentationNode()
        if node is not None and segmentation is not None and not self.logic.GetReferenceImageGeometryString():
            segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
        self._node.SetAndObserveSourceVolumeNode(node)

    def setSourceVolumeNodeID(self, node_id: str) -> None:
        """Edit over a volume."""
        self.setSourceVolumeNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def currentSegmentID(self) -> str:
        """Return the ID of the segment chosen."""
        return (self._node.GetSelectedSegmentID() or "") if self._node is not None else ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        """Choose a segment."""
        if self._node is not None:
            self._node.SetSelectedSegmentID(segment_id)

    def addSegment(self) -> None:
        """Add an empty segment and choose it."""
        added = self.logic.AddEmptySegment()
        if added:
            self.setCurrentSegmentID(added)

    def removeSegment(self) -> None:
        """Remove the segment chosen."""
        self.logic.RemoveSelectedSegment()

    def _row_chosen(self, *_: Any) -> None:
        chosen = self._table.selectedSegmentIDs()
        if chosen and chosen[0] != self.currentSegmentID():
            self.setCurrentSegmentID(chosen[0])

    def _node_changed(self, *_: Any) -> None:
        seen = (self.segmentationNode(), self.sourceVolumeNode(), self.currentSegmentID(), self._effect_name())
        before, self._seen = self._seen, seen
        if seen[0] is not before[0]:
            self._table.setSegmentationNode(seen[0])
            self.logic.ClearUndoState()
            self.segmentationNodeChanged.emit(seen[0])
        if seen[1] is not before[1]:
            self.sourceVolumeNodeChanged.emit(seen[1])
        if seen[2] != before[2]:
            self._table.setSelectedSegmentIDs([seen[2]])
            self.currentSegmentIDChanged.emit(seen[2])
        if seen[3] != before[3]:
            self._brush.use(seen[3])
            self.activeEffectChanged.emit()
        for name, button in self._buttons.items():
            button.setChecked(name == (seen[3] or "None"))
            button.setEnabled(self.segmentationNode() is not None)

    # Effects

    def _effect_name(self) -> str:
        return (self._node.GetActiveEffectName() or "") if self._node is not None else ""

    def availableEffectNames(self) -> list[str]:
        """Return the names of the effects."""
        return list(self._effects)

    def effectByName(self, name: str) -> Any:
        """Return an effect, or None."""
        return self._effects.get(name)

    def activeEffect(self) -> Any:
        """Return the effect in use, or None."""
        return self._effects.get(self._effect_name())

    def setActiveEffectByName(self, name: str) -> None:
        """Use an effect; the empty name or "None" uses none."""
        if self._node is not None:
            self._node.SetActiveEffectName("" if name == "None" else name)

    def setActiveEffect(self, effect: Any) -> None:
        """Use an effect, or none."""
        self.setActiveEffectByName(effect.property("name") if effect is not None else "")

    def setEffectNameOrder(self, names: list[str]) -> None:
        """Set the order of the effects' buttons."""
        self._order = list(names)

    def effectNameOrder(self) -> list[str]:
        """Return the order of the effects' buttons."""
        return self._order

    # Undo

    def saveStateForUndo(self) -> None:
        """Keep the segmentation as it is now for undo."""
        self.logic.SaveStateForUndo()

    def undo(self) -> None:
        """Undo the last edit."""
        self.logic.Undo()

    def redo(self) -> None:
        """Do it again."""
        self.logic.Redo()

    def _history_changed(self, *_: Any) -> None:
        self._undo.setEnabled(self.logic.CanUndo())
        self._redo.setEnabled(self.logic.CanRedo())

    def _get_states(self) -> int:
        return int(self.logic.GetMaximumNumberOfUndoStates())

    def setMaximumNumberOfUndoStates(self, count: int) -> None:
        """Set how many steps can be undone."""
        self.logic.SetMaximumNumberOfUndoStates(count)

    # Views and keys

    def setupViewObservations(self) -> None:
        """Listen to the views."""
        self._brush.use(self._effect_name())

    def removeViewObservations(self) -> None:
        """Listen to the views no more."""
        self._brush.stop()

    def installKeyboardShortcuts(self, parent: QtWidgets.QWidget | None = None) -> None:
        """Install the editor's keys for undo and redo; Slicer's has more (Docs/user_guide/modules/segmenteditor.md)."""
        self.uninstallKeyboardShortcuts()
        for key, function in (("z", self.undo), ("y", self.redo)):
            shortcut = QtGui.QShortcut(QtGui.QKeySequence(key), parent if parent is not None else self.window())
            shortcut.activated.connect(function)
            self._shortcuts.append(shortcut)

    def uninstallKeyboardShortcuts(self) -> None:
        """Remove the keys."""
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    def updateWidgetFromMRML(self) -> None:
        """Show what the node says."""
        self._node_changed()

    def _flag(name: str) -> Any:  # type: ignore[misc]
        def read(self: Any) -> bool:
            return bool(self._flags[name])

        def write(self: Any, value: bool) -> None:
            self._flags[name] = value
            if name == "addRemoveSegmentButtonsVisible":
                self._add.setVisible(value)
                self._remove.setVisible(value)
            elif name == "undoEnabled":
                self._undo.setVisible(value)
                self._redo.setVisible(value)

        return QtCore.Property(bool, read, write)

    maximumNumberOfUndoStates = QtCore.Property(int, _get_states, setMaximumNumberOfUndoStates)
    segmentationNodeSelectorVisible = _flag("segmentationNodeSelectorVisible")
    sourceVolumeNodeSelectorVisible = _flag("sourceVolumeNodeSelectorVisible")
    switchToSegmentationsButtonVisible = _flag("switchToSegmentationsButtonVisible")
    undoEnabled = _flag("undoEnabled")
    readOnly = _flag("readOnly")
    autoShowSourceVolumeNode = _flag("autoShowSourceVolumeNode")
    addRemoveSegmentButtonsVisible = _flag("addRemoveSegmentButtonsVisible")
    specifyGeometryButtonVisible = _flag("specifyGeometryButtonVisible")
    unorderedEffectsVisible = _flag("unorderedEffectsVisible")
    show3DButtonVisible = _flag("show3DButtonVisible")
    maskingSectionVisible = _flag("maskingSectionVisible")
    jumpToSelectedSegmentEnabled = _flag("jumpToSelectedSegmentEnabled")
