"""The Segment Editor's masking and overlap for predictions, asked anew for every slice.

What the user changes while prompts are placed, or while a propagation runs, holds for the next slice that arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.words import translator

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.painting import Painter

_ = translator(__file__)

AUTOMATIC = "automatic"


class Overlap(Enum):
    """What a prediction does where other segments are; the Segment Editor's "Modify other segments".

    That others are spared is chosen there as "Editable area: outside all segments"; see `Rules.editable`.
    """

    ALLOW = "allow overlap"
    OVERWRITE_VISIBLE = "overwrite visible segments"
    OVERWRITE_ALL = "overwrite all segments"


@dataclass
class Rules:
    """What the user has chosen for all workspaces; it is looked at when it matters, so that a change holds at once.

    Attributes
    ----------
    auto_propagate : whether a propagation follows every prompt.
    along : whose slices to propagate along: "axial", "coronal", "sagittal"; "automatic" is by spacing and orientation.
    editor_node : gives the vtkMRMLSegmentEditorNode whose masking and overlap hold; None for no masking.
    """

    auto_propagate: bool = True
    along: str = AUTOMATIC
    editor_node: Callable[[], Any] = lambda: None

    def overlap(self) -> Overlap:
        """Tell what happens to other segments under a prediction."""
        editor = self.editor_node()
        if editor is None:
            return Overlap.ALLOW
        return {
            editor.OverwriteAllSegments: Overlap.OVERWRITE_ALL,
            editor.OverwriteVisibleSegments: Overlap.OVERWRITE_VISIBLE,
        }.get(editor.GetOverwriteMode(), Overlap.ALLOW)

    def confine(self) -> bool:
        """Tell whether predictions take voxels from other segments, or have to keep to an area."""
        editor = self.editor_node()
        return editor is not None and (self.overlap() is not Overlap.ALLOW or _masks_an_area(editor))

    def editable(
        self, painter: Painter, segment_id: str, axis: int, index: int, values: NDArray[Any]
    ) -> NDArray[np.bool_] | None:
        """Tell where one slice of a segment may be changed; None for everywhere.

        It is what Slicer's own effects keep to (vtkMRMLSegmentationNode::GenerateEditMask): outside of other segments,
        the segment itself stays editable.

        Parameters
        ----------
        values : (rows, columns) of the slice in the source volume, to which the intensity range applies.

        Returns
        -------
        bool (rows, columns), or None.

        Raises
        ------
        InputError
            If nothing may be edited anywhere, because the segment to keep inside of has been deleted.
        """
        import slicer

        editor = self.editor_node()
        if editor is None or not _masks_an_area(editor):
            return None
        modes, mode = slicer.vtkMRMLSegmentationNode, editor.GetMaskMode()
        allowed = np.ones(values.shape, bool)
        if editor.GetSourceVolumeIntensityMask():
            low, high = editor.GetSourceVolumeIntensityMaskRange()
            allowed &= (values >= low) & (values <= high)
        if mode == modes.EditAllowedEverywhere:
            return allowed
        outside = mode in (modes.EditAllowedOutsideAllSegments, modes.EditAllowedOutsideVisibleSegments)
        if mode == modes.EditAllowedInsideSingleSegment:
            masking = [str(editor.GetMaskSegmentID() or "")]
            if not painter.has(masking[0]):
                raise InputError(
                    _("The segment that may be edited inside of is not there; choose another editable area.")
                )
        else:
            visible = mode in (modes.EditAllowedInsideVisibleSegments, modes.EditAllowedOutsideVisibleSegments)
            masking = painter.segment_ids(visible_only=visible)
        inside = np.zeros(values.shape, bool)
        for other in masking:
            if not (outside and other == segment_id):
                inside |= painter.voxels(other).read_slice(axis, index)
        return allowed & (~inside if outside else inside)


def _masks_an_area(editor: Any) -> bool:
    """Whether not everything may be edited."""
    import slicer

    everywhere = editor.GetMaskMode() == slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere
    return not everywhere or bool(editor.GetSourceVolumeIntensityMask())
