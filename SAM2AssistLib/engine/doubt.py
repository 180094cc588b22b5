"""Where the engine is unsure, and a user's look is worth most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from SAM2AssistLib.engine.segment import Findings, Segment, SegmentRecord


@dataclass(frozen=True)
class DoubtfulSlice:
    """A slice of a segment and how sure the engine is of it.

    Attributes
    ----------
    segment : which.
    axis, index : the slice, along the array axis (0 = k, 1 = j, 2 = i).
    confidence : in [0, 1].
    """

    segment: Segment
    axis: int
    index: int
    confidence: float


def doubtful_slices(records: Iterable[SegmentRecord]) -> list[DoubtfulSlice]:
    """List slices of segments from the least sure on, each the worst among its neighbours."""
    found = [item for record in records for item in _valleys(record.handle, record.findings)]
    return sorted(found, key=lambda item: (item.confidence, item.segment.id, item.index))


def _valleys(handle: Segment, findings: Findings) -> Iterator[DoubtfulSlice]:
    """Slices without a prompt of their own that are no surer than both their neighbours."""
    prompted = {p.index for p in findings.prompts}
    sure = {k: state.confidence for k, state in findings.states.items()}
    for k, confidence in sure.items():
        below, above = sure.get(k - 1, 2.0), sure.get(k + 1, 2.0)
        # Of a run of equals, the lowest.
        if k not in prompted and confidence < below and confidence <= above:
            yield DoubtfulSlice(handle, findings.axis or 0, k, confidence)
