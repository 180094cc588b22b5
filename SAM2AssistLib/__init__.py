"""SAM2Assist: interactive segmentation of CT with SAM2.

    from SAM2AssistLib import CTVolume, load_engine

Importing the package is quick; torch is imported when an engine is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import load_engine

__version__ = "0.1.0"
__all__ = ["CTVolume", "__version__", "load_engine"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name == "load_engine":
        from SAM2AssistLib.engine.loading import load_engine  # noqa: PLC0415 - see the module's docstring

        return load_engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
