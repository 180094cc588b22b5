"""Slicer's Python console: where exceptions of slots end that nobody handles.

In Slicer an exception in a slot or an observer is printed in the console and the program goes on. The host does the
same and keeps the exceptions, so that a test can say that there were none.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_unhandled: list[BaseException] = []


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function for Qt; an exception is printed and kept, and the result is None."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a slot raises ends here, as in Slicer
        report(error)
        return None


def report(error: BaseException) -> None:
    """Print an exception and keep it."""
    _unhandled.append(error)
    traceback.print_exception(error, file=sys.stderr)


def unhandled() -> list[BaseException]:
    """Return the exceptions that nobody handled since the host was opened."""
    return list(_unhandled)


def forget() -> None:
    """Forget what was kept."""
    _unhandled.clear()


@contextmanager
def hooks() -> Iterator[None]:
    """Keep the exceptions too that VTK's observers and PySide6's own slots leave to Python's hooks."""
    before = sys.excepthook, sys.unraisablehook

    def seen(_kind: Any, error: BaseException, _trace: Any) -> None:
        report(error)

    def unraisable(details: Any) -> None:
        if isinstance(details.exc_value, Exception):
            report(details.exc_value)

    sys.excepthook, sys.unraisablehook = seen, unraisable
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = before
