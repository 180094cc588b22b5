"""How much two masks have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return the volumetric Dice, 2|A∩B| / (|A| + |B|), in [0, 1]; 1 if both are empty.

    Parameters
    ----------
    mask, reference : bool arrays of one shape.
    """
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0
