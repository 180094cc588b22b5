"""Predictions on their way into a segmentation node: what may be painted over, what was there, who is told.

It knows what every segment holds that it has looked at, so that it can tell what others have changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.mrml.desk import Patch
from SAM2AssistLib.mrml.journal import EMPTY, Entry, KnownMask, packed, unpacked
from SAM2AssistLib.mrml.masking import Overlap, Rules
from SAM2AssistLib.mrml.voxels import Grid, LabelmapState, SegmentVoxels, draw, has_labelmaps

EDITED = LabelmapState("", -1)
"""State of a labelmap that others have changed, and we since: no labelmap ever is in it."""

DRAW_EVERY_S = 0.2
"""While slices come, the views draw no oftener: each time costs all of them a picture."""


class Painter:
    """Writes the segments of one segmentation node.

    Parameters
    ----------
    segmentation_node : vtkMRMLSegmentationNode
    grid : of the volume.
    axis : array axis along which segments are sliced that have no prompts yet.
    source : (k, j, i) voxels of the source volume, for the intensity range of the masking.
    rules : how predictions keep to masking and to other segments.

    Attributes
    ----------
    known : by segment id, the voxels as they are known.
    """

    def __init__(
        self, segmentation_node: Any, grid: Grid, axis: int, source: NDArray[Any], rules: Rules | None = None
    ) -> None:
        self.node, self.grid, self.axis, self.source = segmentation_node, grid, axis, source
        self.rules = Rules() if rules is None else rules
        self.known: dict[str, KnownMask] = {}
        self._states: dict[str, LabelmapState | None] = {}
        self._untold: set[str] = set()
        self._unfinished: set[str] = set()
        self._overwritten_in: dict[str, set[tuple[int, int]]] = {}
        self._drawn_at = 0.0

    def has(self, segment_id: str) -> bool:
        """Whether the segment is there."""
        return self.node.GetSegmentation().GetSegment(segment_id) is not None

    def name(self, segment_id: str) -> str:
        """Return the segment's name."""
        return str(self.node.GetSegmentation().GetSegment(segment_id).GetName())

    def segment_ids(self, *, visible_only: bool = False) -> list[str]:
        """List the segments of the node."""
        segmentation, display = self.node.GetSegmentation(), self.node.GetDisplayNode()
        ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
        return [s for s in ids if not visible_only or display is None or display.GetSegmentVisibility(s)]

    @property
    def size_bytes(self) -> int:
        """Bytes of the labelmaps of all segments."""
        return sum(self.voxels(segment_id).size_bytes for segment_id in self.segment_ids())

    def voxels(self, segment_id: str) -> SegmentVoxels:
        """Return access to a segment's voxels."""
        return SegmentVoxels(self.node, segment_id, self.grid)

    def look_at(self, segment_id: str) -> KnownMask:
        """Read a segment, from now on knowing what it holds."""
        axis = self.known[segment_id].axis if segment_id in self.known else self.axis
        self.known[segment_id] = KnownMask.of(self.voxels(segment_id).slices(axis), axis)
        self._states[segment_id] = self.voxels(segment_id).state()
        return self.known[segment_id]

    def inherit(self, other: Painter) -> None:
        """Know what another painter of the same node and grid knows."""
        self.known = {segment_id: mask.copy() for segment_id, mask in other.known.items()}
        self._states = dict(other._states)

    def forget(self, segment_id: str) -> None:
        """Forget a segment that is gone."""
        self.known.pop(segment_id, None)
        self._states.pop(segment_id, None)
        self._untold.discard(segment_id)
        self._unfinished.discard(segment_id)
        self._overwritten_in.pop(segment_id, None)

    def holds_voxels(self, segment_id: str) -> bool:
        """Whether there is anything in a segment, as far as it is known."""
        known = self.known.get(segment_id) or self.look_at(segment_id)
        return bool(known.slices)

    def lost_voxels(self, segment_id: str) -> dict[int, dict[int, NDArray[np.bool_]]]:
        """Return the slices of a segment that others have overwritten since this was last asked.

        Returns
        -------
        Masks (rows, columns) as they are now, by array axis and index.
        """
        left: dict[int, dict[int, NDArray[np.bool_]]] = {}
        for axis, index in sorted(self._overwritten_in.pop(segment_id, ())):
            left.setdefault(axis, {})[index] = self.voxels(segment_id).read_slice(axis, index)
        return left

    # What others have changed

    def edited_meanwhile(self, segment_id: str) -> bool:
        """Whether somebody else has touched the segment since it was last read or written here."""
        return segment_id in self._states and self.voxels(segment_id).state() != self._states[segment_id]

    def found_changes(self) -> dict[str, KnownMask]:
        """Read the segments that others have changed; those whose voxels are the same all the same are left out.

        Nothing is found in surfaces: their labelmaps are gone, which is not what somebody has drawn.
        """
        found: dict[str, KnownMask] = {}
        if not has_labelmaps(self.node):
            return found
        for segment_id, known in self.known.items():
            if self.has(segment_id) and self.edited_meanwhile(segment_id):
                mask = KnownMask.of(self.voxels(segment_id).slices(known.axis), known.axis)
                if mask.changed_in(known):
                    found[segment_id] = mask
                else:
                    self._states[segment_id] = self.voxels(segment_id).state()
        return found

    def accept(self, found: dict[str, KnownMask]) -> None:
        """Know from now on what has been found."""
        for segment_id, mask in found.items():
            self.known[segment_id] = mask
            self._states[segment_id] = self.voxels(segment_id).state()

    # Writing

    def write(self, patch: Patch) -> list[Entry]:
        """Paint a prediction, as overlap and editable area allow; returns what has changed.

        Raises
        ------
        InputError
            If the segmentation does not consist of labelmaps.
        """
        known = self._along(patch.segment_id, patch.axis)
        place = patch.axis, patch.index
        painted = mask = patch.mask
        values = np.moveaxis(self.source, patch.axis, 0)[patch.index]
        editable = self.rules.editable(self, patch.segment_id, *place, values)
        if editable is not None:
            before = unpacked(known.slices.get(patch.index, EMPTY), mask.shape)  # type: ignore[arg-type]
            painted, mask = mask & editable, np.where(editable, mask, before)
        entries = []
        for other in self._overwritten(patch.segment_id):
            if (self.voxels(other).read_slice(*place) & painted).any():
                entries += self._cut(other, *place, painted)
                self._overwritten_in.setdefault(other, set()).add(place)
        return entries + self._put(patch.segment_id, *place, mask)

    def apply(self, entries: list[Entry]) -> None:
        """Write what entries say comes after, for undo and redo; segments that are gone are passed over."""
        for entry in entries:
            if self.has(entry.segment_id):
                shape = tuple(n for a, n in enumerate(self.grid.shape_kji) if a != entry.axis)
                self._put(entry.segment_id, entry.axis, entry.index, unpacked(entry.after, shape))  # type: ignore[arg-type]

    def announce(self) -> None:
        """Tell what has been written since, and let the views draw it if they have not just done so."""
        if self._untold and time.monotonic() - self._drawn_at >= DRAW_EVERY_S:
            self._drawn_at = time.monotonic()
            draw(self.node)
        for segment_id in sorted(self._untold):
            with self._touching(segment_id) as voxels:
                voxels.announce()
        self._untold.clear()

    def finish(self) -> list[str]:
        """Tell everybody that the segments are as they will stay; returns those whose surface is out of date."""
        outdated = []
        for segment_id in sorted(filter(self.has, self._unfinished)):
            with self._touching(segment_id) as voxels:
                if voxels.finish():
                    outdated.append(segment_id)
        self._untold.clear()
        self._unfinished.clear()
        return outdated

    # Inside

    @contextmanager
    def _touching(self, segment_id: str) -> Iterator[SegmentVoxels]:
        """Let the block touch a segment; what others have changed in it before is still to be found afterwards."""
        edited, voxels = self.edited_meanwhile(segment_id), self.voxels(segment_id)
        yield voxels
        self._states[segment_id] = EDITED if edited else voxels.state()

    def _overwritten(self, segment_id: str) -> list[str]:
        """List the segments that give way to a prediction for a segment."""
        overlap = self.rules.overlap()
        if overlap is Overlap.ALLOW:
            return []
        ids = self.segment_ids(visible_only=overlap is Overlap.OVERWRITE_VISIBLE)
        return [other for other in ids if other != segment_id]

    def _put(self, segment_id: str, axis: int, index: int, mask: NDArray[np.bool_]) -> list[Entry]:
        known = self._along(segment_id, axis)
        before, after = known.slices.get(index, EMPTY), packed(mask)
        if before == after:
            return []
        self._write(segment_id, axis, index, mask)
        known.put(index, after)
        return [Entry(segment_id, axis, index, before, after)]

    def _cut(self, segment_id: str, axis: int, index: int, taken: NDArray[np.bool_]) -> list[Entry]:
        """Take pixels of a slice from a segment; what others have just drawn there is no part of what changes."""
        known = self._along(segment_id, axis)
        before = known.slices.get(index, EMPTY)
        after = packed(unpacked(before, taken.shape) & ~taken)  # type: ignore[arg-type]
        self._write(segment_id, axis, index, self.voxels(segment_id).read_slice(axis, index) & ~taken)
        known.put(index, after)
        return [] if before == after else [Entry(segment_id, axis, index, before, after)]

    def _write(self, segment_id: str, axis: int, index: int, mask: NDArray[np.bool_]) -> None:
        with self._touching(segment_id) as voxels:
            voxels.write_slice(axis, index, mask)
        self._untold.add(segment_id)
        self._unfinished.add(segment_id)

    def _along(self, segment_id: str, axis: int) -> KnownMask:
        """Return what is known of a segment, sliced along an axis."""
        known = self.known.get(segment_id) or self.look_at(segment_id)
        if known.axis != axis:
            known = self.known[segment_id] = KnownMask.of(self.voxels(segment_id).slices(axis), axis)
        return known
