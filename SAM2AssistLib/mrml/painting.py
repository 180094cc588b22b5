"""Predictions on their way into a segmentation node: what may be painted over, what was there, who is told.

It knows what every segment holds that it has looked at, so that it can tell what others have changed.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.mrml.desk import Patch
from SAM2AssistLib.mrml.journal import EMPTY, Entry, KnownMask, packed, unpacked
from SAM2AssistLib.mrml.voxels import Grid, LabelmapState, SegmentVoxels


class Overlap(Enum):
    """What a prediction does where other segments are; the choices of the Segment Editor, and one more."""

    ALLOW = "allow overlap"
    OVERWRITE_VISIBLE = "overwrite visible segments"
    OVERWRITE_ALL = "overwrite all segments"
    SPARE = "spare other segments"


class EditableArea:
    """Where the Segment Editor's masking lets a prediction change voxels.

    Parameters
    ----------
    editor_node : vtkMRMLSegmentEditorNode, whose intensity range and "editable area" count.
    volume_array : (k, j, i) voxels of the source volume.
    """

    def __init__(self, editor_node: Any, volume_array: NDArray[Any]) -> None:
        self.editor_node, self.array = editor_node, volume_array

    def of_slice(self, painter: Painter, axis: int, index: int) -> NDArray[np.bool_]:
        """Return where one slice may be changed, bool (rows, columns)."""
        import slicer

        values = np.take(self.array, index, axis)
        allowed = np.ones(values.shape, bool)
        if self.editor_node.GetSourceVolumeIntensityMask():
            low, high = self.editor_node.GetSourceVolumeIntensityMaskRange()
            allowed &= (values >= low) & (values <= high)
        modes, mode = slicer.vtkMRMLSegmentationNode, self.editor_node.GetMaskMode()
        if mode == modes.EditAllowedEverywhere:
            return allowed
        if mode == modes.EditAllowedInsideSingleSegment:
            masking = [self.editor_node.GetMaskSegmentID()]
        else:
            visible = mode in (modes.EditAllowedInsideVisibleSegments, modes.EditAllowedOutsideVisibleSegments)
            masking = painter.segment_ids(visible_only=visible)
        inside = np.zeros(values.shape, bool)
        for segment_id in masking:
            inside |= painter.voxels(segment_id).read_slice(axis, index)
        outside = mode in (modes.EditAllowedOutsideAllSegments, modes.EditAllowedOutsideVisibleSegments)
        return allowed & (~inside if outside else inside)


class Painter:
    """Writes the segments of one segmentation node.

    Parameters
    ----------
    segmentation_node : vtkMRMLSegmentationNode
    grid : of the volume.
    axis : array axis along which segments are sliced that have no prompts yet.

    Attributes
    ----------
    overlap : what happens to other segments.
    editable : bounds what predictions change, if set.
    known : by segment id, the voxels as they are known.
    """

    def __init__(self, segmentation_node: Any, grid: Grid, axis: int) -> None:
        self.node, self.grid, self.axis = segmentation_node, grid, axis
        self.overlap = Overlap.ALLOW
        self.editable: EditableArea | None = None
        self.known: dict[str, KnownMask] = {}
        self._states: dict[str, LabelmapState | None] = {}
        self._untold: set[str] = set()
        self._unfinished: set[str] = set()

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

    def forget(self, segment_id: str) -> None:
        """Forget a segment that is gone."""
        self.known.pop(segment_id, None)
        self._states.pop(segment_id, None)
        self._untold.discard(segment_id)
        self._unfinished.discard(segment_id)

    # What others have changed

    def edited_meanwhile(self, segment_id: str) -> bool:
        """Whether somebody else has touched the segment since it was last read or written here."""
        return segment_id in self._states and self.voxels(segment_id).state() != self._states[segment_id]

    def found_changes(self) -> dict[str, KnownMask]:
        """Read the segments that others have changed; those whose voxels are the same all the same are left out."""
        found = {}
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
        mask = patch.mask
        if self.editable is not None:
            before = unpacked(known.slices.get(patch.index, EMPTY), mask.shape)  # type: ignore[arg-type]
            mask = np.where(self.editable.of_slice(self, *place), mask, before)
        others = [s for s in self.segment_ids() if s != patch.segment_id] if self.overlap is not Overlap.ALLOW else []
        if self.overlap is Overlap.SPARE:
            for other in others:
                mask = mask & ~self.voxels(other).read_slice(*place)
            others = []
        if self.overlap is Overlap.OVERWRITE_VISIBLE:
            others = [s for s in self.segment_ids(visible_only=True) if s != patch.segment_id]
        entries = []
        for other in others:
            theirs = self.voxels(other).read_slice(*place)
            if (theirs & mask).any():
                entries += self._put(other, *place, theirs & ~mask)
        return entries + self._put(patch.segment_id, *place, mask)

    def apply(self, entries: list[Entry]) -> None:
        """Write what entries say comes after, for undo and redo; segments that are gone are passed over."""
        for entry in entries:
            if self.has(entry.segment_id):
                shape = tuple(n for a, n in enumerate(self.grid.shape_kji) if a != entry.axis)
                self._put(entry.segment_id, entry.axis, entry.index, unpacked(entry.after, shape))  # type: ignore[arg-type]

    def announce(self) -> None:
        """Let the views show what has been written since."""
        for segment_id in sorted(self._untold):
            self.voxels(segment_id).announce()
            self._states[segment_id] = self.voxels(segment_id).state()
        self._untold.clear()

    def finish(self) -> None:
        """Tell everybody that the segments are as they will stay."""
        for segment_id in sorted(self._unfinished):
            self.voxels(segment_id).finish()
            self._states[segment_id] = self.voxels(segment_id).state()
        self._untold.clear()
        self._unfinished.clear()

    # Inside

    def _put(self, segment_id: str, axis: int, index: int, mask: NDArray[np.bool_]) -> list[Entry]:
        known = self._along(segment_id, axis)
        after = packed(mask)
        before = known.put(index, after)
        if before == after:
            return []
        voxels = self.voxels(segment_id)
        voxels.write_slice(axis, index, mask)
        self._states[segment_id] = voxels.state()
        self._untold.add(segment_id)
        self._unfinished.add(segment_id)
        return [Entry(segment_id, axis, index, before, after)]

    def _along(self, segment_id: str, axis: int) -> KnownMask:
        """Return what is known of a segment, sliced along an axis."""
        known = self.known.get(segment_id) or self.look_at(segment_id)
        if known.axis != axis:
            known = self.known[segment_id] = KnownMask.of(self.voxels(segment_id).slices(axis), axis)
        return known
