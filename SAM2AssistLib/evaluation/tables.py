"""Tables for people (Markdown) and for programs (CSV)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from SAM2AssistLib.io.atomic import atomic_path


def row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rule(columns: int) -> str:
    """Return the rule below the heading of a Markdown table, whose first column is text and the others numbers."""
    return "|---|" + "---:|" * (columns - 1)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as a cell, a dash if there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, whole or not at all; what is None is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # which a text file turns into that of its system
    writer.writerow(heads)
    writer.writerows(rows)
    with atomic_path(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
