"""Several segments claim the same voxel: it goes to the one that is surest of it, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.engine.history import Recorder
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import uncut

OWN_WORD = 64.0
"""Logit of a mask that a user has drawn: nothing that the network says outweighs it."""


def settle_conflicts(plane: Plane, recorders: Sequence[Recorder]) -> int:
    """Take contested voxels from all segments but one.

    Parameters
    ----------
    plane : along which all the segments are propagated.
    recorders : of the segments, through which the masks are changed.

    Returns
    -------
    Number of voxels that were contested.
    """
    contested = 0
    for index in range(plane.slices):
        masks = np.stack([r.record.slice_of(plane.axis, index) for r in recorders])
        claimed = masks.sum(axis=0) > 1
        if not claimed.any():
            continue
        contested += int(claimed.sum())
        taking_part = [n for n, mask in enumerate(masks) if (mask & claimed).any()]
        sureness = np.stack([_logits(plane, recorders[n], index, masks[n]) for n in taking_part])
        winner = np.array(taking_part)[sureness.argmax(axis=0)]
        for n in taking_part:
            recorders[n].write(plane.axis, index, masks[n] & (~claimed | (winner == n)))
    return contested


def _logits(plane: Plane, recorder: Recorder, index: int, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how sure a segment is of each pixel of a slice, -inf where it claims nothing."""
    findings = recorder.record.findings
    state = findings.states.get(index)
    logits = np.full(mask.shape, -np.inf, np.float32)
    if state is None or findings.is_drawn(index):
        logits[mask] = OWN_WORD
        return logits
    values, inside = uncut(state.logits, state.view, plane.shape)
    logits[inside] = values * np.float32(max(state.iou, 1e-3))
    logits[~mask] = -np.inf
    return logits
