"""Closed surfaces of segments that have changed: made anew when neither the engine nor the user's clicks are waiting.

VTK makes them while it holds Python's lock, half a second for a liver, so that no other thread could help. Until then
the views show the surface as it was.
"""

from __future__ import annotations

import time
from typing import Any

from SAM2AssistLib.mrml.voxels import SURFACE

QUIET_S = 0.5
"""Seconds without a result after which the user is taken to look at what there is."""


class Surfaces:
    """Those that are out of date, in all segmentations of a scene."""

    def __init__(self) -> None:
        self._outdated: dict[tuple[int, str], tuple[Any, str]] = {}
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is one to be made anew."""
        return bool(self._outdated)

    def outdate(self, segmentation_node: Any, segment_id: str) -> None:
        """Take note that the voxels of a segment are not those its surface was made of."""
        self._outdated[id(segmentation_node), segment_id] = (segmentation_node, segment_id)
        self._since = time.perf_counter()

    def renew_one(self) -> None:
        """Make one surface anew, if it has been quiet for long enough; to be called while the engine does nothing."""
        if not self._outdated or time.perf_counter() - self._since < QUIET_S:
            return
        node, segment_id = self._outdated.pop(next(iter(self._outdated)))
        segment = node.GetSegmentation().GetSegment(segment_id)
        if node.GetScene() is not None and segment is not None and segment.GetRepresentation(SURFACE) is not None:
            segment.RemoveRepresentation(SURFACE)
            node.CreateClosedSurfaceRepresentation()

    def close(self) -> None:
        """Forget all; Slicer makes those that are out of date when they are asked for."""
        for node, segment_id in self._outdated.values():
            segment = node.GetSegmentation().GetSegment(segment_id)
            if segment is not None:
                segment.RemoveRepresentation(SURFACE)
        self._outdated.clear()
