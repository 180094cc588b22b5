"""What the user reads, in his language: Slicer's translations where there is Slicer, English elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


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
