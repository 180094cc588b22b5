"""Knowing when to stop: SAM2 goes on past an object's end; these rules end a propagation there."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

ABSENT_IN_A_ROW = 2
"""Slices without the object that end a propagation; one alone may be an artefact."""
LEAST_SHARE = 0.03
"""A mask smaller than this share of the largest one so far is what is left of the object, not the object."""
LEAK = 2.5
"""A mask this many times larger than the recent ones has run out of its organ, if the model is unsure of it too."""
UNSURE_IOU = 0.5
RECENT = 5


@dataclass
class StopJudge:
    """Watches one propagation.

    Attributes
    ----------
    areas : pixels of the masks so far, the prompted slice's first.
    absent : slices without the object in a row.
    """

    areas: list[int] = field(default_factory=list)
    absent: int = 0

    def accepts(self, area: int, iou: float) -> bool:
        """Tell whether a mask may be kept; one that leaks or is a mere remnant may not.

        Parameters
        ----------
        area : pixels of the mask.
        iou : predicted IoU.
        """
        if not self.areas or not area:
            return area > 0
        recent = median(self.areas[-RECENT:])
        leaks = area > LEAK * recent and iou < UNSURE_IOU
        return not leaks and area >= LEAST_SHARE * max(self.areas)

    def ends(self, area: int) -> bool:
        """Note the area that was kept (0 for none) and tell whether the propagation ends here."""
        if area:
            self.areas.append(area)
            self.absent = 0
        else:
            self.absent += 1
        return self.absent >= ABSENT_IN_A_ROW
