"""``sam2assist``: the console script.

Exit codes: 0 done; 2 wrong usage or input, with one sentence on stderr; 130 cancelled with Ctrl-C; 143 with
SIGTERM, which schedulers send.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from SAM2AssistLib import __version__
from SAM2AssistLib.cli.auto import auto
from SAM2AssistLib.cli.bench import bench
from SAM2AssistLib.cli.console import CANCELLING, say
from SAM2AssistLib.cli.demo import demo
from SAM2AssistLib.cli.evaluate import evaluate
from SAM2AssistLib.cli.export import export
from SAM2AssistLib.cli.finetune import finetune
from SAM2AssistLib.cli.models import models_app
from SAM2AssistLib.cli.pairs import PairedCommand
from SAM2AssistLib.cli.segment import segment
from SAM2AssistLib.cli.support import support_app
from SAM2AssistLib.cli.transfer import pull_command, push_command
from SAM2AssistLib.errors import Cancelled, SAM2AssistError
from SAM2AssistLib.io.atomic import shown

EXIT_WRONG_INPUT, EXIT_CANCELLED, EXIT_TERMINATED = 2, 130, 143

# Nothing else of these packages is in use here that writes.
_TELLERS = ("typer", "click", "rich", "colorama")

# Typer exports only this class's children, and in some versions it is not Click's.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="sam2assist",
    help="Interactive segmentation of CT with SAM2. For research; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(segment)
app.command(cls=PairedCommand)(auto)
app.command()(export)
app.command("pull")(pull_command)
app.command("push")(push_command)
app.command()(demo)
app.command()(bench)
app.command()(evaluate)
app.command()(finetune)
app.add_typer(models_app, name="models")
app.add_typer(support_app, name="support")


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
    if not sys.warnoptions:
        # Of libraries, and for their programmers; what a user should know is told by `tell`.
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the console has no letters for is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    cancelled_with = EXIT_CANCELLED

    def terminate(*_: object) -> None:
        nonlocal cancelled_with
        cancelled_with = EXIT_TERMINATED
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    sentence, status = "", 0
    try:
        status = app(prog_name="sam2assist", standalone_mode=False) or 0
    except Cancelled as cancelled:
        sentence, status = str(cancelled), EXIT_CANCELLED
    except SAM2AssistError as error:
        sentence, status = str(error), EXIT_WRONG_INPUT
    except _UsageError as error:
        sentence, status = _usage_sentence(error), EXIT_WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        status = EXIT_CANCELLED
    except OSError as error:
        sentence, status = _system_sentence(error), EXIT_WRONG_INPUT
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - or Python tries once more at its end
    # From here on all is said and done, and a signal could only add a traceback while Python shuts down.
    for number in CANCELLING:
        signal.signal(number, signal.SIG_IGN)
    # Typer makes an exit status of Ctrl-C, in older versions an exception.
    if status == EXIT_CANCELLED and not sentence:
        sentence = "Cancelled; no file was left half-written."
    if sentence:
        say(sentence)
    sys.exit(cancelled_with if status == EXIT_CANCELLED else status)


def _system_sentence(error: OSError) -> str:
    """Say what has failed: a path that nobody looked at before, telling of a result, or anything before that."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error.filename, str | bytes):
        return f"{shown(error.filename)} cannot be used ({reason}); check its name, its place and its permissions."
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if str(frame.f_globals.get("__name__")).partition(".")[0] in _TELLERS:
        # What was asked for is on the disk by the time that it is told of.
        return f"What was to be said could not be written ({reason}); the files are finished."
    return f"A file or a connection has failed ({reason}), so this is not finished; mend that and try again."


def _usage_sentence(error: Any) -> str:
    message = error.format_message().rstrip(" .")
    command = error.ctx.command_path if error.ctx else "sam2assist"
    # Where there is no message the help has been printed, because there was no argument at all.
    return f"{message}; see '{command} --help'." if message else ""
