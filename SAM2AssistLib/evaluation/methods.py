"""What is measured, behind one interface: it gets a volume, then one prompt after the other, and gives masks.

`EngineMethod` is this program's own engine; the peers it is compared with are in `peers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.evaluation.simulated_user import Prompt, RangedBox

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine
    from SAM2AssistLib.engine.session import Session
    from SAM2AssistLib.volume import CTVolume


class Attempt(Protocol):
    """One structure that is being segmented."""

    def prompt(self, prompt: Prompt) -> NDArray[np.bool_] | None:
        """Take a prompt; returns the mask (j, i) of its slice if the method has one at once."""

    def mask(self) -> NDArray[np.bool_]:
        """Segment from all prompts so far, bool (k, j, i)."""


class Opened(Protocol):
    """A method at work on one volume."""

    def attempt(self, name: str) -> AbstractContextManager[Attempt]:
        """Begin with a structure."""


class Method(Protocol):
    """Something that segments a structure from prompts.

    Attributes
    ----------
    name : in reports.
    """

    name: str

    def open(self, volume: CTVolume) -> AbstractContextManager[Opened]:
        """Begin with a volume; what all its structures have in common is computed once."""


class EngineMethod:
    """This program's engine: one session for all structures of a volume, so that slices are encoded once.

    Parameters
    ----------
    engine : from `load_engine`.
    name : in reports.
    """

    def __init__(self, engine: Engine, name: str = "SAM2Assist") -> None:
        self.engine, self.name = engine, name

    @contextmanager
    def open(self, volume: CTVolume) -> Iterator[Opened]:
        """Open a session along the slices."""
        with self.engine.open(volume) as session:
            yield _OpenedEngine(session)


class _OpenedEngine:
    def __init__(self, session: Session) -> None:
        self.session = session

    @contextmanager
    def attempt(self, name: str) -> Iterator[Attempt]:
        """Add a segment, which leaves no trace afterwards."""
        from SAM2AssistLib.engine.history import History

        segment = self.session.add_segment(name)
        try:
            yield _EngineAttempt(self.session, segment)
        finally:
            self.session.remove_segment(segment)
            self.session.history = History()  # nobody will undo, and it would hold the states of all structures


class _EngineAttempt:
    def __init__(self, session: Session, segment) -> None:
        self.session, self.segment = session, segment

    def prompt(self, prompt: Prompt) -> NDArray[np.bool_]:
        if isinstance(prompt, RangedBox):
            return self.session.place_box(self.segment, prompt.box, prompt.reach)
        return self.session.place_point(self.segment, prompt)

    def mask(self) -> NDArray[np.bool_]:
        for _ in self.session.propagate([self.segment]):
            pass
        return self.session.mask(self.segment)
