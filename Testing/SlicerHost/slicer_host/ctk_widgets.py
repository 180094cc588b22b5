"""Stand-ins for the widgets of CTK that a module's panel uses, on plain Qt widgets."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .qt_module import QMessageBox


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A heading that folds what is below it away."""

    contentsCollapsed = QtCore.Signal(bool)
    toggled = QtCore.Signal(bool)
    clicked = QtCore.Signal()
    HEADING = 26

    def __init__(self, *arguments: Any) -> None:
        title = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        parent = next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None)
        super().__init__(parent)
        self._heading = QtWidgets.QToolButton(self)
        self._heading.setObjectName("qt_host_heading")
        self._heading.setText(title)
        self._heading.setToolButtonStyle(QtCore.Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._heading.setArrowType(QtCore.Qt.ArrowType.DownArrow)
        self._heading.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._heading.setStyleSheet("QToolButton { border: 1px solid #c4c4c4; background: #ececec; text-align: left; }")
        self._heading.clicked.connect(self._heading_clicked)
        self._collapsed = False
        self._hidden_by_folding: list[QtWidgets.QWidget] = []
        self.setContentsMargins(0, self.HEADING, 0, 0)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        """Keep the heading as wide as the widget."""
        super().resizeEvent(event)
        self._heading.setGeometry(0, 0, self.width(), self.HEADING - 2)

    def childEvent(self, event: QtCore.QEvent) -> None:
        """Fold away what is added while folded, as CTK does."""
        super().childEvent(event)
        if event.type() == QtCore.QEvent.Type.ChildPolished and self._collapsed:  # type: ignore[attr-defined]
            self._fold()

    def _heading_clicked(self) -> None:
        self.setCollapsed(not self._collapsed)
        self.clicked.emit()

    def _contents(self) -> list[QtWidgets.QWidget]:
        children = self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly)
        return [child for child in children if child is not self._heading and not child.isWindow()]

    def _fold(self) -> None:
        newly = [child for child in self._contents() if not child.isHidden()]
        self._hidden_by_folding += newly
        for child in newly:
            child.hide()
        if self.layout() is not None:
            self.layout().setEnabled(False)
        self.setFixedHeight(self.HEADING)

    def _unfold(self) -> None:
        self.setMinimumHeight(0)
        self.setMaximumHeight(16777215)
        if self.layout() is not None:
            self.layout().setEnabled(True)
        for child in self._hidden_by_folding:
            child.show()
        self._hidden_by_folding = []

    def _is_collapsed(self) -> bool:
        return self._collapsed

    def setCollapsed(self, collapsed: bool) -> None:
        """Fold or unfold."""
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        if collapsed:
            self._fold()
        else:
            self._unfold()
        self._heading.setArrowType(QtCore.Qt.ArrowType.RightArrow if collapsed else QtCore.Qt.ArrowType.DownArrow)
        self.contentsCollapsed.emit(collapsed)
        self.toggled.emit(not collapsed)

    def _title(self) -> str:
        return self._heading.text()

    def setText(self, text: str) -> None:
        """Set the heading."""
        self._heading.setText(text)

    def _is_checked(self) -> bool:
        return not self._collapsed

    def setChecked(self, checked: bool) -> None:
        """Unfold or fold."""
        self.setCollapsed(not checked)

    def minimumSizeHint(self) -> QtCore.QSize:
        """Return the heading's size and what the contents need."""
        inner = self.layout().minimumSize() if self.layout() is not None and not self._collapsed else QtCore.QSize(0, 0)
        return QtCore.QSize(max(80, inner.width()), max(self.HEADING, inner.height()))

    collapsed = QtCore.Property(bool, _is_collapsed, setCollapsed)
    text = QtCore.Property(str, _title, setText)
    checked = QtCore.Property(bool, _is_checked, setChecked)


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box that folds its contents away."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.toggled.connect(self._show_contents)

    def _show_contents(self, shown: bool) -> None:
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(shown)

    def _is_collapsed(self) -> bool:
        return not self.isChecked()

    def setCollapsed(self, collapsed: bool) -> None:
        """Fold or unfold."""
        self.setChecked(not collapsed)

    collapsed = QtCore.Property(bool, _is_collapsed, setCollapsed)


class ctkDoubleSpinBox(QtWidgets.QDoubleSpinBox):
    """A spin box."""


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a spin box for the same number."""

    valueChanged = QtCore.Signal(float)
    valueIsChanging = QtCore.Signal(float)
    vtk_signals = {"valueChanged(double)": "valueChanged", "valueIsChanging(double)": "valueIsChanging"}  # noqa: RUF012
    _STEPS = 10_000

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._spin_box = QtWidgets.QDoubleSpinBox()
        self._spin_box.setMaximum(99.0)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin_box)
        self._slider.setRange(0, self._STEPS)
        self._slider.sliderMoved.connect(self._slid)
        self._spin_box.valueChanged.connect(self._changed)

    def slider(self) -> QtWidgets.QSlider:
        """Return the slider."""
        return self._slider

    def spinBox(self) -> QtWidgets.QDoubleSpinBox:
        """Return the spin box."""
        return self._spin_box

    def _slid(self, step: int) -> None:
        low, high = self._spin_box.minimum(), self._spin_box.maximum()
        self._spin_box.setValue(low + (high - low) * step / self._STEPS)

    def _changed(self, value: float) -> None:
        low, high = self._spin_box.minimum(), self._spin_box.maximum()
        with QtCore.QSignalBlocker(self._slider):
            self._slider.setValue(round(self._STEPS * (value - low) / max(high - low, 1e-12)))
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def _of(getter: str) -> Any:  # type: ignore[misc]
        return lambda self: getattr(self._spin_box, getter)()

    def setValue(self, value: float) -> None:
        """Set the number."""
        self._spin_box.setValue(value)

    def setMinimum(self, value: float) -> None:
        """Set the least number."""
        self._spin_box.setMinimum(value)

    def setMaximum(self, value: float) -> None:
        """Set the greatest number."""
        self._spin_box.setMaximum(value)

    def setRange(self, low: float, high: float) -> None:
        """Set the least and the greatest number."""
        self._spin_box.setRange(low, high)

    def setSingleStep(self, value: float) -> None:
        """Set the step."""
        self._spin_box.setSingleStep(value)

    def setPageStep(self, value: float) -> None:
        """Set the large step."""
        self._slider.setPageStep(max(1, round(value)))

    def setDecimals(self, value: int) -> None:
        """Set the digits behind the point."""
        self._spin_box.setDecimals(value)

    def setSuffix(self, text: str) -> None:
        """Set what is written behind the number."""
        self._spin_box.setSuffix(text)

    def setPrefix(self, text: str) -> None:
        """Set what is written before the number."""
        self._spin_box.setPrefix(text)

    value = QtCore.Property(float, _of("value"), setValue)
    minimum = QtCore.Property(float, _of("minimum"), setMinimum)
    maximum = QtCore.Property(float, _of("maximum"), setMaximum)
    singleStep = QtCore.Property(float, _of("singleStep"), setSingleStep)
    pageStep = QtCore.Property(float, lambda self: float(self._slider.pageStep()), setPageStep)
    decimals = QtCore.Property(int, _of("decimals"), setDecimals)
    suffix = QtCore.Property(str, _of("suffix"), setSuffix)
    prefix = QtCore.Property(str, _of("prefix"), setPrefix)


class ctkComboBox(QtWidgets.QComboBox):
    """A combo box that shows a text where nothing is chosen."""

    def _default_text(self) -> str:
        return self.placeholderText()

    def setDefaultText(self, text: str) -> None:
        """Set the text shown where nothing is chosen."""
        self.setPlaceholderText(text)

    defaultText = QtCore.Property(str, _default_text, setDefaultText)


class ctkPathLineEdit(QtWidgets.QWidget):
    """A line for a path with a button that asks for one: a file or a folder, unless `filters` says which."""

    currentPathChanged = QtCore.Signal(str)
    Dirs, Files = QtCore.QDir.Filter.Dirs, QtCore.QDir.Filter.Files

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._line = QtWidgets.QLineEdit()
        self._button = QtWidgets.QToolButton()
        self._button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._line, 1)
        layout.addWidget(self._button)
        self._line.textChanged.connect(self.currentPathChanged)
        self._filters = (self.Files | self.Dirs).value

    def _get_filters(self) -> int:
        return self._filters

    def _set_filters(self, filters: int) -> None:
        self._filters = filters

    def _path(self) -> str:
        return self._line.text()

    def setCurrentPath(self, path: str) -> None:
        """Set the path."""
        self._line.setText(path)

    def addCurrentPathToHistory(self) -> None:
        """Keep the path for next time; the host keeps none."""

    currentPath = QtCore.Property(str, _path, setCurrentPath)
    filters = QtCore.Property(int, _get_filters, _set_filters)


class ctkMessageBox(QMessageBox):
    """A message box that can be told not to come again."""

    def _key(self) -> str:
        return self._settings_key if hasattr(self, "_settings_key") else ""

    def setDontShowAgainSettingsKey(self, key: str) -> None:
        """Set the setting in which "don't show again" is kept."""
        self._settings_key = key

    dontShowAgainSettingsKey = QtCore.Property(str, _key, setDontShowAgainSettingsKey)


class ctkPushButton(QtWidgets.QPushButton):
    """A push button."""


CTK_WIDGETS = (
    ctkCollapsibleButton,
    ctkCollapsibleGroupBox,
    ctkComboBox,
    ctkDoubleSpinBox,
    ctkMessageBox,
    ctkPathLineEdit,
    ctkPushButton,
    ctkSliderWidget,
)
