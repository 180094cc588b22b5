"""What the commands share: results on stdout, progress and notes on stderr, and Ctrl-C."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from SAM2AssistLib.engine.propagation import Step
    from SAM2AssistLib.engine.session import Session

SECONDS_BETWEEN_LINES = 10.0
"""Of progress, where stderr is a file and every line stays."""

CANCELLING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command early: of Ctrl-C, and of a scheduler."""


def stdout() -> Console:
    """Return a console on stdout, which takes names and paths as they are."""
    return Console(highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """Return a console on stderr; without a terminal there it never writes control characters, FORCE_COLOR or not."""
    return Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, markup=False, emoji=False)


def say(sentence: str) -> None:
    """Print a sentence on one line of stderr, whatever characters the file names in it have."""
    typer.echo(re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", sentence), err=True)


def tell(notes: Sequence[str]) -> None:
    """Print what the user should know, one line each, on stderr."""
    for note in notes:
        say(f"Note: {note}")


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout, in ASCII so that no encoding of a terminal or pipe can refuse it."""
    typer.echo(json.dumps(content, indent=2))


def own_command() -> str:
    """Return how this program was called, so that a command line made of it works when pasted into the same shell."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m SAM2AssistLib"
    found = shutil.which(called.name)
    return called.name if found and Path(found).resolve() == called.resolve() else shlex.quote(str(called))


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show on a terminal that something is under way whose length is not known."""
    console = stderr()
    if not console.is_interactive:
        yield
        return
    with console.status(Text(title)):  # as text, because rich takes brackets in a file name for markup
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM do nothing, for the moment in which a cancelled command saves what it has."""
    before = [signal.signal(number, signal.SIG_IGN) for number in CANCELLING]
    try:
        yield
    finally:
        for number, handler in zip(CANCELLING, before, strict=True):
            signal.signal(number, handler)


def propagate_with_progress(session: Session) -> None:
    """Propagate to the end, with progress on stderr: a bar on a terminal, else now and then a line."""
    console = stderr()
    with _bar(console) if console.is_interactive else _lines() as show:
        for step in session.propagate():
            show(step)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Step], None]]:
    columns = (
        TextColumn("Propagating"),
        BarColumn(),
        # A step is one slice of one segment.
        MofNCompleteColumn(),
        TextColumn("slice masks"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda step: bar.update(task, completed=step.done, total=step.total)


@contextmanager
def _lines() -> Iterator[Callable[[Step], None]]:
    due = time.monotonic()

    def show(step: Step) -> None:
        nonlocal due
        if time.monotonic() >= due:
            say(f"Propagating: {step.done} of {step.total} slice masks at most")
            due = time.monotonic() + SECONDS_BETWEEN_LINES

    yield show
