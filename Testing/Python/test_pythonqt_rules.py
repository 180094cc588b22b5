"""The module's files keep to PythonQt's rules, and each rule catches what breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pythonqt_rules import QtFacts, violations, widgets_of
from slicer_package import ROOT
from slicer_window import host_or_skip

host_or_skip()
UI = {"runButton": "QPushButton", "label": "QLabel", "bar": "QProgressBar", "selector": "qMRMLNodeComboBox"}


def class_named(name: str) -> Any:
    from PySide6 import QtCore, QtGui, QtWidgets
    from slicer_host.host import STAND_INS

    own = {kind.__name__: kind for kind in STAND_INS}
    return own.get(name) or next((getattr(m, name) for m in (QtWidgets, QtGui, QtCore) if hasattr(m, name)), None)


@pytest.fixture(scope="module")
def facts() -> QtFacts:
    """What Qt and the stand-ins say."""
    return QtFacts(class_named)


@pytest.mark.parametrize("path", sorted((ROOT / "SAM2Assist").glob("*.py")), ids=lambda path: path.name)
def test_the_files_of_the_module_break_no_rule(path: Path, facts: QtFacts) -> None:
    widgets: dict[str, str] = {}
    for ui_file in (ROOT / "SAM2Assist" / "Resources" / "UI").glob("*.ui"):
        widgets.update(widgets_of(ui_file))
    found = violations(path.read_text(encoding="utf-8"), widgets, facts)
    assert not found, "\n".join(f"{path.name} {violation}" for violation in found)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("from PySide6 import QtCore", "binding"),
        ("changed = qt.Signal(int)", "binding"),
        ('label = qt.QLabel(text="Volume")', "keyword"),
        ("self.ui.bar.setRange(minimum=0, maximum=3)", "keyword"),
        ("timer = qt.QTimer()\ntimer.start(msec=3)", "keyword"),
        ("isinstance(w, qt.QWidget)", "isinstance"),
        ("isinstance(w, (int, ctk.ctkSliderWidget))", "isinstance"),
        ("self.ui.runButton.state = 3", "attribute"),
        ("timer = qt.QTimer()\ntimer.owner = self", "attribute"),
        ("self.ui.selector.currentNodes()", "attribute"),
        ("self.ui.nothing.enabled = True", "ui"),
        ("self.ui.bar.value = done / total", "float"),
        ("self.ui.bar.value = 0.5", "float"),
        ("x = self.ui.label.text()", "getter"),
        ("self.dialog = qt.QDialog()\nself.dialog.exec()", "exec"),
        ('self.ui.runButton.connect("clicked", f)', "signal"),
        ('self.ui.runButton.connect("pushed()", f)', "signal"),
        ('self.ui.selector.connect("currentNodeChanged(vtkMRMLVolumeNode*)", f)', "signal"),
        ('self.ui.runButton.connect("clicked(bool)", lambda name=name: f(name))', "lambda"),
        ("a = qt.Qt.CheckState.Checked", "enumeration"),
        ('self.ui.label.text = "Choose a volume"', "translation"),
        ('self.ui.label.text = f"{n} slices"', "translation"),
        ('item.setToolTip("Key: P")', "translation"),
    ],
)
def test_a_rule_catches_what_breaks_it(line: str, rule: str, facts: QtFacts) -> None:
    assert rule in {violation.rule for violation in violations(line, UI, facts)}


@pytest.mark.parametrize(
    "line",
    [
        "self.ui.bar.setRange(0, 3)",
        'slicer.util.pip_install("x", constraints=None)',
        'w.inherits("QWidget")',
        "self.ui.runButton.enabled = True",
        "self.ui.bar.value = int(100 * done / total)",
        "x = self.ui.label.text",
        "dialog = qt.QDialog()\ndialog.exec_()",
        'self.ui.runButton.connect("clicked(bool)", self.onRun)',
        'self.ui.selector.connect("currentNodeChanged(vtkMRMLNode*)", self.onNode)',
        "a = qt.Qt.Checked",
        'self.ui.label.text = _("Choose a volume")',
        'self.ui.label.text = ""',
    ],
)
def test_what_pythonqt_takes_is_let_through(line: str, facts: QtFacts) -> None:
    assert violations(line, UI, facts) == []


def test_a_violation_names_its_line(facts: QtFacts) -> None:
    (found,) = violations("import qt\n\nx = self.ui.label.text()\n", UI, facts)
    assert str(found) == "line 3: QLabel.text is a property, not a function [getter]"
