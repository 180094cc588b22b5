"""Stand-ins for the widgets that show and choose segments."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .mrml_widgets import qMRMLWidget
from .pythonqt import with_setters

_SEGMENT_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified")
_COLUMNS = ("visible", "color", "name")


@with_setters
class qMRMLSegmentsTableView(QtWidgets.QWidget):
    """The segments of a segmentation: shown or not, color, name."""

    selectionChanged = QtCore.Signal(object, object)
    vtk_signals: ClassVar[dict[str, str]] = {"selectionChanged(QItemSelection,QItemSelection)": "selectionChanged"}

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._tags: list[tuple[Any, int]] = []
        self._ids: list[str] = []
        self._flags = {"headerVisible": True, "readOnly": False, "opacityColumnVisible": True,
                       "visibilityColumnVisible": True, "colorColumnVisible": True, "statusColumnVisible": False,
                       "filterBarVisible": False}  # fmt: skip
        self._table = QtWidgets.QTableWidget(0, len(_COLUMNS), self)
        self._table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self._table.verticalHeader().hide()
        self._table.setHorizontalHeaderLabels(["", "Color", "Name"])
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.setColumnWidth(0, 28)
        self._table.setColumnWidth(1, 44)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self._table.itemChanged.connect(self._edited)
        self._table.selectionModel().selectionChanged.connect(self._selected)
        self.destroyed.connect(lambda: self._follow(None))

    def _selected(self, new: Any, old: Any) -> None:
        self.selectionChanged.emit(new, old)

    def segmentationNode(self) -> Any:
        """Return the vtkMRMLSegmentationNode."""
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        """Show a segmentation."""
        if node is not self._node:
            self._follow(node)
            self._rebuild()

    def selectedSegmentIDs(self) -> list[str]:
        """Return the IDs of the rows chosen."""
        rows = sorted({index.row() for index in self._table.selectionModel().selectedRows()})
        return [self._ids[row] for row in rows]

    def setSelectedSegmentIDs(self, segment_ids: list[str]) -> None:
        """Choose rows."""
        self._table.clearSelection()
        for segment_id in segment_ids:
            if segment_id in self._ids:
                self._table.selectRow(self._ids.index(segment_id))

    def segmentCount(self) -> int:
        """Return how many segments are shown."""
        return len(self._ids)

    def tableWidget(self) -> QtWidgets.QTableWidget:
        """Return the table inside."""
        return self._table

    def _follow(self, node: Any) -> None:
        for observed, tag in self._tags:
            observed.RemoveObserver(tag)
        self._tags = []
        self._node = node
        if node is None:
            return
        for name in _SEGMENT_EVENTS:
            event = getattr(slicer.vtkSegmentation, name)
            self._tags.append((node, node.AddObserver(event, self._changed)))
        self._tags.append((node, node.AddObserver(node.DisplayModifiedEvent, self._changed)))

    def _changed(self, *_: Any) -> None:
        self._rebuild()

    def _rebuild(self) -> None:
        chosen = self.selectedSegmentIDs()
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        self._ids = list(segmentation.GetSegmentIDs()) if segmentation is not None else []
        display = self._node.GetDisplayNode() if self._node is not None else None
        blockers = QtCore.QSignalBlocker(self._table), QtCore.QSignalBlocker(self._table.selectionModel())
        self._table.setRowCount(len(self._ids))
        for row, segment_id in enumerate(self._ids):
            segment = segmentation.GetSegment(segment_id)
            shown = QtWidgets.QTableWidgetItem()
            visible = display is None or display.GetSegmentVisibility(segment_id)
            shown.setCheckState(QtCore.Qt.CheckState.Checked if visible else QtCore.Qt.CheckState.Unchecked)
            color = QtWidgets.QTableWidgetItem()
            color.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            color.setFlags(QtCore.Qt.ItemFlag.ItemIsEnabled)
            for column, item in enumerate((shown, color, QtWidgets.QTableWidgetItem(segment.GetName()))):
                self._table.setItem(row, column, item)
        self.setSelectedSegmentIDs(chosen)
        del blockers
        if self.selectedSegmentIDs() != chosen:
            self.selectionChanged.emit(None, None)

    def _edited(self, item: QtWidgets.QTableWidgetItem) -> None:
        segment_id = self._ids[item.row()]
        if _COLUMNS[item.column()] == "name":
            self._node.GetSegmentation().GetSegment(segment_id).SetName(item.text())
        elif _COLUMNS[item.column()] == "visible" and self._node.GetDisplayNode() is not None:
            shown = item.checkState() == QtCore.Qt.CheckState.Checked
            self._node.GetDisplayNode().SetSegmentVisibility(segment_id, shown)

    def _flag(name: str) -> Any:  # type: ignore[misc]
        def read(self: Any) -> bool:
            return bool(self._flags[name])

        def write(self: Any, value: bool) -> None:
            self._flags[name] = value
            if name == "headerVisible":
                self._table.horizontalHeader().setVisible(value)
            elif name == "readOnly":
                triggers = QtWidgets.QAbstractItemView.EditTrigger
                self._table.setEditTriggers(triggers.NoEditTriggers if value else triggers.DoubleClicked)

        return QtCore.Property(bool, read, write)

    def _get_mode(self) -> int:
        return self._table.selectionMode().value

    def setSelectionMode(self, mode: int) -> None:
        """Let one row be chosen, or several (QAbstractItemView's selection modes)."""
        self._table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode(int(mode)))

    selectionMode = QtCore.Property(int, _get_mode, setSelectionMode)
    headerVisible = _flag("headerVisible")
    readOnly = _flag("readOnly")
    opacityColumnVisible = _flag("opacityColumnVisible")
    visibilityColumnVisible = _flag("visibilityColumnVisible")
    colorColumnVisible = _flag("colorColumnVisible")
    statusColumnVisible = _flag("statusColumnVisible")
    filterBarVisible = _flag("filterBarVisible")


class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """Chooses a segment by name."""

    currentSegmentChanged = QtCore.Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._tags: list[int] = []
        self._box = QtWidgets.QComboBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.currentIndexChanged.connect(lambda _index: self.currentSegmentChanged.emit(self.currentSegmentID()))

    def currentNode(self) -> Any:
        """Return the segmentation."""
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        """Choose among a segmentation's segments."""
        for tag in self._tags:
            self._node.RemoveObserver(tag)
        self._tags = []
        self._node = node
        if node is not None:
            events = [getattr(slicer.vtkSegmentation, name) for name in _SEGMENT_EVENTS]
            self._tags = [node.AddObserver(event, self._changed) for event in events]
        self._changed()

    def currentSegmentID(self) -> str:
        """Return the ID of the segment chosen."""
        return self._box.currentData() or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        """Choose a segment."""
        self._box.setCurrentIndex(self._box.findData(segment_id))

    def _changed(self, *_: Any) -> None:
        chosen = self.currentSegmentID()
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        with QtCore.QSignalBlocker(self._box):
            self._box.clear()
            for segment_id in segmentation.GetSegmentIDs() if segmentation is not None else ():
                self._box.addItem(segmentation.GetSegment(segment_id).GetName(), segment_id)
            self._box.setCurrentIndex(max(0, self._box.findData(chosen)) if self._box.count() else -1)
        if self.currentSegmentID() != chosen:
            self.currentSegmentChanged.emit(self.currentSegmentID())
