"""What somebody else has changed in a segment, told to the engine: as prompts where it says what is meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from SAM2AssistLib.engine.segment import Segment
    from SAM2AssistLib.engine.session import Session

FEW_SLICES = 3
"""So many edited slices are prompts whose correction travels on; more of them are a segment made elsewhere."""

ANCHORS = 8
"""Slices of a segment made elsewhere that the engine remembers; as many as it attends to at once."""

Slices = Mapping[int, NDArray[np.bool_]]


def take_edited(session: Session, segment: Segment, axis: int, slices: Slices) -> None:
    """Take edited slices of a segment as prompts.

    A few are what they show, and propagate from there; so do more of them in a segment that was empty, where no two
    are neighbours: somebody has drawn every so many slices. All else is taken as it is: some slices of it are
    remembered, and both ends of what was emptied, so that nothing comes back there.

    Parameters
    ----------
    axis : array axis along which the slices are.
    slices : masks (rows, columns) by index.
    """
    slices = along_own(session, segment, axis, slices)
    apart = all(len(run) == 1 for run in _runs(slices)) and not session.mask_view(segment).any()
    if len(slices) <= FEW_SLICES or apart:
        for index, mask in slices.items():
            session.add_mask(segment, index, mask)
        return
    prompted = {prompt.index for prompt in session.prompts(segment)} & slices.keys()
    emptied = {end for run in _runs(k for k, mask in slices.items() if not mask.any()) for end in (run[0], run[-1])}
    session.adopt(segment, slices, sorted(prompted | emptied | set(_anchors(slices))))


def along_own(session: Session, segment: Segment, axis: int, slices: Slices) -> Slices:
    """Return changed slices of a segment along its own axis, whatever axis they are along; only those that differ."""
    own = session.segment_axis(segment)
    if axis == own:
        return slices
    before = session.mask_view(segment)
    after = before.copy()
    for index, mask in slices.items():
        np.moveaxis(after, axis, 0)[index] = mask
    before, after = np.moveaxis(before, own, 0), np.moveaxis(after, own, 0)
    return {int(k): after[k] for k in np.flatnonzero((before != after).any(axis=(1, 2)))}


def _runs(indices: Iterable[int]) -> list[list[int]]:
    """Group indices into runs of neighbours."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _anchors(slices: Slices) -> list[int]:
    """Choose slices that stand for the others: the ends of what is there, and some between."""
    shown = sorted(index for index, mask in slices.items() if mask.any())
    if len(shown) <= ANCHORS:
        return shown
    return [shown[place] for place in np.linspace(0, len(shown) - 1, ANCHORS).round().astype(int)]
