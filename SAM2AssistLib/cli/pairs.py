"""Options that take two values and may be given several times, which Typer itself has not."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

SUPPORT_OPTION = "--support"
_JOIN = "\0"  # the one character that no path has


class PairedCommand(TyperCommand):
    """A command whose option ``--support`` takes two values each time."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the two values that follow the option to one, as Typer reads them."""
        return super().parse_args(ctx, joined(args))


def joined(args: list[str]) -> list[str]:
    """Join the two values after each ``--support``.

    Raises
    ------
    typer.BadParameter
        If an option is followed by fewer than two values.
    """
    done: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word.startswith(f"{SUPPORT_OPTION}="):
            word, first = word.split("=", 1)
            rest.insert(0, first)
        done.append(word)
        if word != SUPPORT_OPTION:
            continue
        pair, rest = rest[:2], rest[2:]
        if len(pair) < 2 or any(value.startswith("-") for value in pair):
            raise typer.BadParameter(f"{SUPPORT_OPTION} takes two values, IMAGE and MASK")
        done.append(_JOIN.join(pair))
    return done


def parted(value: str) -> tuple[str, str]:
    """Take two values that `joined` has joined apart."""
    first, _, second = value.partition(_JOIN)
    return first, second
