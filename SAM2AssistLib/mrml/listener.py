"""Whom a workspace tells what it does, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from SAM2AssistLib.mrml.gestures import Gesture, Kind
from SAM2AssistLib.mrml.words import translator

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.workspace import Workspace

_ = translator(__file__)

_ADDED = {
    Kind.POINT: _("add point"),
    Kind.BOX: _("add box"),
    Kind.SCRIBBLE: _("add scribble"),
    Kind.LASSO: _("add lasso"),
}


@dataclass
class Listener:
    """Whom a workspace tells what; all are called in the window's thread.

    Attributes
    ----------
    error : with what went wrong; the message of a `SAM2AssistError` is a sentence for the user.
    note : with a sentence that the user should read.
    progress : with what is being done, slices done and slices in all; (title, 0, 0) at its end.
    confidence : when the confidence of a segment has changed; see `Workspace.confidence`.
    step : before a step of the user changes voxels, with the workspace.
    changed : when undo, redo or the state of work may have become possible or impossible.
    """

    error: Callable[[BaseException], None] = lambda _error: None
    note: Callable[[str], None] = lambda _sentence: None
    progress: Callable[[str, int, int], None] = lambda _title, _done, _total: None
    confidence: Callable[[], None] = lambda: None
    step: Callable[[Workspace], None] = lambda _workspace: None
    changed: Callable[[], None] = lambda: None


def title_of(before: Sequence[Gesture], after: Sequence[Gesture]) -> str:
    """Say what happened to the prompts of a segment."""
    came, went = [g for g in after if g not in before], [g for g in before if g not in after]
    if came and went:
        return _("move prompt")
    return _ADDED[came[0].kind] if came else _("remove prompt")
