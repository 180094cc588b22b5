"""What the user reads, in his language: Slicer's translations where there is Slicer, English elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import count
from pathlib import Path


def free_name(name: str, taken: Container[str]) -> str:
    """Return a name, with a number if it is taken."""
    numbered = (f"{name} {number}" for number in count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def translator(source_file: str) -> Callable[[str], str]:
    """Make the function ``_`` of a file; Slicer's tools call the context of a text after the file it stands in.

    Parameters
    ----------
    source_file : the file's ``__file__``.
    """
    context = Path(source_file).stem

    def translated(text: str) -> str:
        try:
            from slicer.i18n import translate
        except ImportError:
            return text
        return str(translate(context, text))

    return translated
