"""Errors as the user reads them: one sentence that says what is wrong and what to do."""

from __future__ import annotations

import logging

from SAM2AssistLib.errors import SAM2AssistError
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)


def sentence_of(error: BaseException) -> str:
    """Say what went wrong; an error that nobody has foreseen is logged with where it came from."""
    if isinstance(error, SAM2AssistError):
        return str(error)
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return _(
            "There is not enough memory; close what is not needed, or choose a smaller model or the device 'cpu'"
            " under Advanced."
        )
    if isinstance(error, OSError):
        said = _("A file cannot be read or written ({reason}); check the place and the free space.")
        return said.format(reason=str(error) or type(error).__name__)
    logging.error("SAM2 Assist: unexpected error", exc_info=error)
    said = _("Something unexpected happened ({error}); what was finished stays, the log says more.")
    return said.format(error=f"{type(error).__name__}: {error}")
