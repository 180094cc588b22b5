"""What the commands share: progress on stderr, JSON on stdout, and Ctrl-C."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from SAM2AssistLib.errors import Cancelled

if TYPE_CHECKING:
    from SAM2AssistLib.engine.segment import Segment
    from SAM2AssistLib.engine.session import Session

P = ParamSpec("P")
R = TypeVar("R")


def interruptible(command: Callable[P, R]) -> Callable[P, R]:
    """Let Ctrl-C end a command as `Cancelled`, which the console script turns into exit code 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise Cancelled("Cancelled; nothing was written.") from None

    return run


def stderr() -> Console:
    """Return a console on stderr, which is all that a command talks to beside its result."""
    return Console(stderr=True, highlight=False)


def tell(sentences: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for sentence in sentences:
        stderr().print(f"Note: {sentence}", soft_wrap=True, markup=False)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that something is under way whose length is not known."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(title):
        yield


def propagate_with_progress(session: Session, segments: Sequence[Segment] | None = None) -> None:
    """Propagate to the end, with a bar on stderr if that is a terminal."""
    console = stderr()
    columns = (
        TextColumn("Propagating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("slices"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        for step in session.propagate(segments):
            bar.update(task, completed=step.done, total=step.total)
