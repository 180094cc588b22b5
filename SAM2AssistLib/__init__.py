"""SAM2Assist: interactive segmentation of CT with SAM2.

    from SAM2AssistLib import CTVolume, load_engine

Importing the package is quick; torch is imported when an engine is loaded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import load_engine

# GNU OpenMP's threads wait for one another by spinning, 300,000 rounds unless told otherwise. Where another program has
# one of two cores, they spin away the time slices they wait for: Auto-Segment then took 101 s instead of 30. Set here,
# because it is read once, when torch is first imported; what the user has set is left as it is.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

__version__ = "0.1.0"
__all__ = ["CTVolume", "__version__", "load_engine"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name == "load_engine":
        from SAM2AssistLib.engine.loading import load_engine  # noqa: PLC0415 - see the module's docstring

        return load_engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
