"""The kinds of DICOM object that a segmentation can become, and whether this installation can write them.

Apart from the writers, so that the command line starts without the libraries that these need.
"""

from __future__ import annotations

import importlib.util
import logging
from enum import Enum

from SAM2AssistLib.errors import OutputError


class SegKind(str, Enum):
    """How a DICOM-SEG holds masks: one bit, one byte of 0 to 255, or one label map (Segmentation Type, 0062,0001)."""

    BINARY = "binary"
    FRACTIONAL = "fractional"
    LABELMAP = "labelmap"


def check_highdicom() -> None:
    """Refuse early where the library that writes DICOM objects is missing, and keep it from logging UIDs.

    Raises
    ------
    OutputError
        If highdicom is not installed.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise OutputError("DICOM-SEG needs the package highdicom; install it with: pip install highdicom.")
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
