"""One segment of a result, as all the writers take it and all the readers give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.terminology import Terminology, terminology_of

LOST_PART = 0.01
"""A segment may lose this part of its volume to another grid by rounding; beyond it lay outside of the CT."""


@dataclass(frozen=True, eq=False)
class NamedMask:
    """The voxels of one segment.

    Attributes
    ----------
    name : str
        Name of the segment.
    mask : ndarray of bool, shape (k, j, i)
        True where the segment is.
    terminology : Terminology or None
        The codes and the color it came with; None where they follow from the name.
    tracking_uid : str
        By which a DICOM-SEG that it came from tracks it; empty if there is none.
    """

    name: str
    mask: NDArray[np.bool_]
    terminology: Terminology | None = None
    tracking_uid: str = ""

    @property
    def coded(self) -> Terminology:
        """What the segment is: its own codes, else those that its name stands for."""
        return self.terminology or terminology_of(self.name)


def check_masks(masks: Sequence[NamedMask], shape_kji: tuple[int, int, int]) -> None:
    """Refuse masks that are not on the grid that they are to be written or shown with.

    Raises
    ------
    InputError
        If a mask is not of type bool or has another shape than (k, j, i) of the volume.
    """
    for named in masks:
        if named.mask.dtype != np.bool_:
            raise InputError(f"The mask of '{named.name}' has to be of type bool, not {named.mask.dtype}.")
        if named.mask.shape != tuple(shape_kji):
            raise InputError(
                f"The mask of '{named.name}' has the shape {named.mask.shape}, but the volume has {tuple(shape_kji)}."
            )


def notes_on_outside(name: str, outside_ml: float, whole_ml: float) -> list[str]:
    """Tell how much of a segment lies outside of the CT; nothing if it is no more than rounding explains."""
    if outside_ml <= LOST_PART * whole_ml:
        return []
    return [f"{outside_ml:.3g} of {whole_ml:.3g} ml of '{name}' lie outside of the CT and are left out."]


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The smallest box of array slices (k, j, i) that holds all voxels of a mask; None if it is empty."""
    shadow = np.any(mask, axis=0)
    bounds = []
    for shown in (np.any(mask, axis=(1, 2)), np.any(shadow, axis=1), np.any(shadow, axis=0)):
        inside = np.flatnonzero(shown)
        if not inside.size:
            return None
        bounds.append(slice(int(inside[0]), int(inside[-1]) + 1))
    k, j, i = bounds
    return k, j, i
