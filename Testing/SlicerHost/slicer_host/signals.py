"""Signals by their C++ signature, and how many arguments a Python function gets of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from PySide6 import QtCore

from . import console
from .enumerations import PythonQtError


class Connections(QtCore.QObject):
    """The connections from one object to Python functions; its child, so that they end together."""

    def __init__(self, owner: QtCore.QObject) -> None:
        super().__init__(owner)
        self.setObjectName("_pythonqt_connections")
        self.relays: list[tuple[str, Any, Callable[..., None]]] = []


def meta_of(wrapped: QtCore.QObject) -> QtCore.QMetaObject:
    """Return what Qt knows of an object's class."""
    # Of the class: shiboken takes the one that an instance returns for its own, and deletes it for the class too.
    return type(wrapped).staticMetaObject


def parameter_count(signature: str) -> int:
    """Return how many parameters a signature has."""
    inside = signature.partition("(")[2].rstrip(")")
    return 0 if not inside else inside.count(",") + 1


def signatures_of(wrapped: QtCore.QObject) -> list[str]:
    """Return the signatures of an object's signals, as C++ writes them."""
    meta = meta_of(wrapped)
    methods = [meta.method(number) for number in range(meta.methodCount())]
    signals = [
        m.methodSignature().data().decode() for m in methods if m.methodType() == QtCore.QMetaMethod.MethodType.Signal
    ]
    named = getattr(type(wrapped), "vtk_signals", {})
    return [signature for signature in signals if "PyObject" not in signature] + list(named)


def longest_signature(wrapped: QtCore.QObject, name: str) -> str:
    """Return the longest signature of a signal."""
    found = [signature for signature in signatures_of(wrapped) if signature.partition("(")[0] == name]
    return max(found, key=parameter_count)


def bound_signal(wrapped: Any, signature: str) -> Any:
    """Return PySide6's signal for a signature.

    Raises
    ------
    PythonQtError
        If there is none; the message names those that are there.
    """
    if not isinstance(wrapped, QtCore.QObject):
        raise PythonQtError(f"{type(wrapped).__name__} is no QObject and has no signals")
    named = getattr(type(wrapped), "vtk_signals", {})
    if signature in named:
        return getattr(wrapped, named[signature])
    known = signatures_of(wrapped)
    if signature not in known:
        name = signature.partition("(")[0]
        near = [text for text in known if text.partition("(")[0].lower() == name.lower()]
        raise PythonQtError(
            f"{type(wrapped).__name__} has no signal {signature!r}"
            + (f"; there is {', '.join(near)}" if near else f"; there are {', '.join(sorted(known))}")
        )
    return getattr(wrapped, signature.partition("(")[0])


def connections_of(wrapped: QtCore.QObject) -> Connections:
    """Return the connections of an object, made at need."""
    for child in wrapped.children():
        if isinstance(child, Connections):
            return child
    made = Connections(wrapped)
    wrapped._pythonqt_connections = made
    return made


def relay_to(receiver: Callable[..., Any], count: int, wrap: Callable[[Any], Any]) -> Callable[..., None]:
    """Return what a signal calls: the receiver with as many arguments as it takes, as PythonQt does."""
    takes = positional_count(receiver)

    def relay(*arguments: Any) -> None:
        given = [wrap(argument) for argument in arguments]
        console.run(receiver, *(given if takes is None else given[:takes]))

    # PySide6 chooses among the forms of a signal (clicked() and clicked(bool)) by the parameters of the function.
    forms: tuple[Callable[..., None], ...] = (
        lambda: relay(),  # noqa: PLW0108
        lambda a: relay(a),  # noqa: PLW0108
        lambda a, b: relay(a, b),  # noqa: PLW0108
        lambda a, b, c: relay(a, b, c),  # noqa: PLW0108
        lambda a, b, c, d: relay(a, b, c, d),  # noqa: PLW0108
    )
    return forms[count]


def positional_count(function: Any) -> int | None:
    """Return how many arguments PythonQt gives at most, which it reads from the code object; None for all."""
    bound = isinstance(function, MethodType)
    code = getattr(function.__func__ if bound else function, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARARGS:
        return None
    return int(code.co_argcount) - int(bound)
