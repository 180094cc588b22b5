"""What PythonQt refuses, or does otherwise than PySide, found in a module's source without running it.

The classes of widgets are taken from the .ui file and from ``qt.Class(...)`` in the source; their properties, methods
and signals from Qt itself, through the stand-ins of Testing/SlicerHost.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

QT_MODULES = ("qt", "ctk")
SHOWN_TEXT = ("text", "toolTip", "title", "windowTitle", "placeholderText", "statusTip", "setText", "setToolTip",
              "setWindowTitle", "setTitle", "setPlaceholderText")  # fmt: skip
OTHER_BINDINGS = ("PySide6", "PySide2", "PyQt5", "PyQt6", "shiboken6")


@dataclass(frozen=True)
class Violation:
    """A line that breaks a rule."""

    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text} [{self.rule}]"


class QtFacts:
    """What Qt says of its classes; None where a class is not known."""

    def __init__(self, class_named: Callable[[str], Any]) -> None:
        self._class_named = class_named
        self._known: dict[str, tuple[dict[str, str], set[str]] | None] = {}

    def _of(self, name: str) -> tuple[dict[str, str], set[str]] | None:
        if name not in self._known:
            kind = self._class_named(name)
            self._known[name] = None if kind is None else _described(kind)
        return self._known[name]

    def properties(self, name: str) -> dict[str, str] | None:
        """Return the properties of a class with their types."""
        found = self._of(name)
        return None if found is None else found[0]

    def signals(self, name: str) -> set[str] | None:
        """Return the signatures of a class's signals."""
        found = self._of(name)
        return None if found is None else found[1]

    def has(self, name: str, attribute: str) -> bool:
        """Return whether a class has an attribute, or is not known."""
        kind = self._class_named(name)
        if kind is None or hasattr(kind, attribute) or attribute in WRAPPER_METHODS:
            return True
        return attribute in (self.properties(name) or {})


# What every wrapper of PythonQt has besides Qt's own.
WRAPPER_METHODS = ("connect", "disconnect", "className", "inherits", "delete", "help", "name", "exec_")


def _described(kind: Any) -> tuple[dict[str, str], set[str]]:
    meta = getattr(kind, "staticMetaObject", None)
    if meta is None:
        return {}, set()
    properties = {meta.property(n).name(): meta.property(n).typeName() for n in range(meta.propertyCount())}
    methods = [meta.method(n) for n in range(meta.methodCount())]
    signals = {m.methodSignature().data().decode() for m in methods if m.methodType().name == "Signal"}
    return properties, signals | set(getattr(kind, "vtk_signals", {}))


def widgets_of(ui_file: Path) -> dict[str, str]:
    """Return the names and classes of a .ui file's widgets."""
    tree = ElementTree.parse(ui_file)
    return {element.get("name", ""): element.get("class", "") for element in tree.iter("widget")}


def violations(source: str, widgets: Mapping[str, str], facts: QtFacts) -> list[Violation]:
    """Return where a module's source breaks PythonQt's rules.

    Parameters
    ----------
    source
        Of the module's file.
    widgets
        Name and class of the widgets in ``self.ui``.
    facts
        What Qt says of its classes.
    """
    tree = ast.parse(source)
    checker = _Checker(tree, widgets, facts)
    found = {violation for node in ast.walk(tree) for violation in checker.check(node)}
    return sorted(found, key=lambda violation: (violation.line, violation.rule))


class _Checker:
    def __init__(self, tree: ast.AST, widgets: Mapping[str, str], facts: QtFacts) -> None:
        self._widgets = widgets
        self._facts = facts
        self._variables = _classes_of_variables(tree)
        self._called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}

    def check(self, node: ast.AST) -> Iterator[Violation]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from self._import(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            yield from self._assignment(node)
        elif isinstance(node, ast.Attribute):
            yield from self._attribute(node)

    def _class_of(self, node: ast.AST) -> str | None:
        """Return the Qt class of an expression, if it is plain to see."""
        text = _dotted(node)
        if text is None:
            return _constructed_class(node)
        if text.startswith("self.ui."):
            return self._widgets.get(text.removeprefix("self.ui."))
        return self._variables.get(text)

    def _import(self, node: ast.Import | ast.ImportFrom) -> Iterator[Violation]:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for name in names:
            if name.partition(".")[0] in OTHER_BINDINGS:
                yield Violation(node.lineno, "binding", f"{name} is not in Slicer, use qt")

    def _call(self, node: ast.Call) -> Iterator[Violation]:
        name = _dotted(node.func) or ""
        is_qt = name.partition(".")[0] in QT_MODULES or _constructed_class(node) is not None
        owner = self._class_of(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if (is_qt or owner is not None) and node.keywords:
            words = ", ".join(str(keyword.arg) for keyword in node.keywords)
            yield Violation(node.lineno, "keyword", f"{name}() takes no keyword arguments: {words}")
        if name in ("isinstance", "issubclass") and any(_names_qt_class(argument) for argument in node.args[1:]):
            yield Violation(node.lineno, "isinstance", "no widget is an instance of a base class; use inherits()")
        if isinstance(node.func, ast.Attribute) and owner is not None:
            yield from self._method(node, node.func.attr, owner)
        yield from self._text(node.lineno, name.rpartition(".")[2], node.args, called=True)

    def _method(self, node: ast.Call, method: str, owner: str) -> Iterator[Violation]:
        properties = self._facts.properties(owner) or {}
        if method in properties:
            yield Violation(node.lineno, "getter", f"{owner}.{method} is a property, not a function")
        if method == "exec":
            yield Violation(node.lineno, "exec", "exec() is called exec_() in PythonQt")
        if method in ("connect", "disconnect") and node.args:
            yield from self._connection(node, owner)

    def _connection(self, node: ast.Call, owner: str) -> Iterator[Violation]:
        first = node.args[0]
        if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
            return
        signature = first.value.replace(" ", "").replace("const", "").replace("&", "")
        if not re.fullmatch(r"\w+\(.*\)", signature):
            yield Violation(node.lineno, "signal", f"{first.value!r} lacks its parameters: clicked() or toggled(bool)")
            return
        known = self._facts.signals(owner)
        if known is not None and signature not in known:
            yield Violation(node.lineno, "signal", f"{owner} has no signal {first.value!r}")
        if len(node.args) > 1 and isinstance(node.args[1], ast.Lambda) and node.args[1].args.defaults:
            yield Violation(
                node.lineno, "lambda", "the signal's arguments take the place of a lambda's defaults; use a function"
            )

    def _assignment(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> Iterator[Violation]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if not isinstance(target, ast.Attribute):
                continue
            owner = self._class_of(target.value)
            if owner is None:
                continue
            properties = self._facts.properties(owner)
            if properties is not None and target.attr not in (*properties, "name"):
                yield Violation(node.lineno, "attribute", f"{owner} has no property {target.attr!r} to set")
            kind = (properties or {}).get(target.attr)
            if kind == "int" and node.value is not None and _is_float(node.value):
                yield Violation(
                    node.lineno, "float", f"{owner}.{target.attr} is an int; what is behind the point is lost"
                )
            if node.value is not None:
                yield from self._text(node.lineno, target.attr, [node.value], called=False)

    def _attribute(self, node: ast.Attribute) -> Iterator[Violation]:
        text = _dotted(node) or ""
        parts = text.split(".")
        if parts[0] in QT_MODULES and len(parts) == 4 and all(part[:1].isupper() for part in parts[1:]):
            short = ".".join((*parts[:2], parts[3]))
            yield Violation(node.lineno, "enumeration", f"{text} is {short} in PythonQt")
        if text in ("qt.Signal", "qt.Slot", "qt.Property"):
            yield Violation(node.lineno, "binding", f"{text} is PySide's")
        if text.startswith("self.ui.") and len(parts) == 3 and parts[2] not in self._widgets:
            yield Violation(node.lineno, "ui", f"the .ui file has no {parts[2]}")
        owner = self._class_of(node.value)
        if owner is not None and not self._facts.has(owner, node.attr):
            yield Violation(node.lineno, "attribute", f"{owner} has no {node.attr!r}")

    @staticmethod
    def _text(line: int, name: str, values: list[ast.expr], *, called: bool) -> Iterator[Violation]:
        if name not in SHOWN_TEXT or called != name.startswith("set") or not values:
            return
        if _is_literal_text(values[0]):
            yield Violation(line, "translation", f"the text given to {name} is not put through _()")


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return None


def _constructed_class(node: ast.AST) -> str | None:
    """Return the class that a call makes an object of: ``qt.QLabel(...)`` or ``slicer.qMRMLNodeComboBox()``."""
    if not isinstance(node, ast.Call):
        return None
    parts = (_dotted(node.func) or "").split(".")
    if len(parts) != 2 or not re.match(r"(Q[A-Z]|ctk|q[A-Z])", parts[1]):
        return None
    return parts[1] if parts[0] in (*QT_MODULES, "slicer") else None


def _classes_of_variables(tree: ast.AST) -> dict[str, str]:
    """Return the variables that are always made of one Qt class."""
    found: dict[str, set[str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                name = _dotted(target)
                if name is not None:
                    found.setdefault(name, set()).add(_constructed_class(node.value))
    return {name: str(*kinds) for name, kinds in found.items() if len(kinds) == 1 and None not in kinds}


def _names_qt_class(node: ast.AST) -> bool:
    return any((_dotted(part) or "").partition(".")[0] in QT_MODULES for part in ast.walk(node))


def _is_float(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, float)
    return isinstance(node, ast.BinOp) and (
        isinstance(node.op, ast.Div) or _is_float(node.left) or _is_float(node.right)
    )


def _is_literal_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and any(character.isalpha() for character in node.value)
    return isinstance(node, ast.JoinedStr)
