"""``sam2assist``: the console script.

Exit codes: 0 done; 2 wrong usage or input, with one sentence on stderr; 130 cancelled with Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from SAM2AssistLib import __version__
from SAM2AssistLib.cli.console import interruptible
from SAM2AssistLib.cli.demo import demo
from SAM2AssistLib.cli.models import models_app
from SAM2AssistLib.cli.segment import segment
from SAM2AssistLib.errors import Cancelled, SAM2AssistError

EXIT_WRONG_INPUT, EXIT_CANCELLED = 2, 130

app = typer.Typer(
    name="sam2assist",
    help="Interactive segmentation of CT with SAM2. For research; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (segment, demo):
    app.command()(interruptible(command))
app.add_typer(models_app, name="models")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Interactive segmentation of CT with SAM2. For research; not a medical device."""


def main() -> None:
    """Run the command line; every error that a user can cause ends in one sentence on stderr."""
    try:
        app()
    except Cancelled as cancelled:
        _say(str(cancelled))
        sys.exit(EXIT_CANCELLED)
    except SAM2AssistError as error:
        _say(str(error))
        sys.exit(EXIT_WRONG_INPUT)


def _say(sentence: str) -> None:
    Console(stderr=True).print(sentence, soft_wrap=True, highlight=False, markup=False)
