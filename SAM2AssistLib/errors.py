"""What can go wrong for a user, as one small hierarchy of exceptions.

Each message is one sentence that says what is wrong, where, and what to do. The command line prints it as it is and
exits with code 2; the Slicer module shows it as it is.
"""

from __future__ import annotations


class SAM2AssistError(Exception):
    """Base of every error that is meant to be read by a user."""


class InputError(SAM2AssistError):
    """An image, a prompt or an argument cannot be used as given."""


class ModelError(SAM2AssistError):
    """Model weights are missing, unknown, damaged or do not fit the model."""


class OutputError(SAM2AssistError):
    """A result cannot be written where it was asked for."""


class TransferError(SAM2AssistError):
    """A DICOM server cannot be reached, refuses, or does not keep what was sent."""


class InstallError(SAM2AssistError):
    """A package that the engine needs cannot be installed."""


class Cancelled(SAM2AssistError):  # noqa: N818 - a wish of the user, not an error
    """The user asked for a long operation to end before it was done."""
