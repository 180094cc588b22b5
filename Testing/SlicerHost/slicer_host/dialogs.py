"""Modal dialogs, which in a test nobody would close: the user's answers are given beforehand.

A dialog that comes without an answer waiting is an error of the test, raised where the dialog was opened. All dialogs
are kept in :attr:`Answers.seen` with what they said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PySide6 import QtWidgets

Answer = int | str | Callable[[Any], Any]


class UnexpectedDialogError(AssertionError):
    """A modal dialog was opened and no answer had been prepared."""


@dataclass(frozen=True)
class SeenDialog:
    """A dialog that was opened: the class, its title and its text."""

    kind: str
    title: str
    text: str


@dataclass
class Answers:
    """The answers that wait, and the dialogs that came."""

    waiting: deque[Answer] = field(default_factory=deque)
    seen: list[SeenDialog] = field(default_factory=list)

    def next_for(self, kind: str, title: str, text: str) -> Answer:
        """Note a dialog and return its answer.

        Raises
        ------
        UnexpectedDialogError
            If none waits.
        """
        self.seen.append(SeenDialog(kind, title, text))
        if not self.waiting:
            raise UnexpectedDialogError(f"{kind} {title!r} was opened and nobody is there to answer it: {text}")
        return self.waiting.popleft()


answers = Answers()


def execute(dialog: QtWidgets.QDialog) -> int:
    """Answer a dialog instead of waiting in it: with a number, or by a function that is given the dialog."""
    text = dialog.text() if isinstance(dialog, QtWidgets.QMessageBox) else ""
    answer = answers.next_for(type(dialog).__name__, dialog.windowTitle(), text)
    dialog.show()
    if callable(answer):
        given = answer(dialog)
        result = dialog.result() if given is None else given
    else:
        result = answer
    dialog.hide()
    return int(result)  # type: ignore[arg-type]
