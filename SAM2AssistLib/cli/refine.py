"""``segment --refine``: a finished segmentation, by whoever made it, is taken over and corrected by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import read_on_grid
from SAM2AssistLib.prompts import SegmentPrompts

if TYPE_CHECKING:
    from SAM2AssistLib.engine.session import Session
    from SAM2AssistLib.volume import CTVolume

# Slices of a segment, ends included, that stay as they are and between which corrections travel.
_ANCHORS = 9


def check_refined_path(path: Path) -> None:
    """Refuse a segmentation that is not there.

    Raises
    ------
    InputError
        If there is no such file.
    """
    if not path.is_file():
        raise InputError(f"There is no segmentation '{path}'; check the path after --refine.")


def read_refined(path: Path, volume: CTVolume) -> tuple[list[NamedMask], list[str]]:
    """Read the segments that are not empty in the volume; of several with one name, the later ones are numbered.

    Returns
    -------
    The segments, and a sentence for each of which something is left out.

    Raises
    ------
    InputError
        If the file cannot be read, is no segmentation, belongs to another CT or has no voxel in this one.
    """
    masks, notes = read_on_grid(path, volume)
    placed = [named for named in masks if named.mask.any()]
    if not placed:
        raise InputError(f"{path.name} has no voxel to refine; give a segmentation of this CT after --refine.")
    told, empty = " ".join(notes), [named.name for named in masks if not named.mask.any()]
    notes += [f"'{name}' is empty and left out." for name in empty if f"of '{name}' " not in told]
    names = [named.name.strip() or "segment" for named in placed]
    taken: set[str] = set()
    renamed = []
    for named, name in zip(placed, names, strict=True):
        numbered = (f"{name} ({number})" for number in count(2))
        # A segment keeps the name that it alone has, so a number that another's name ends in is passed over.
        free = name if name not in taken else next(other for other in numbered if other not in taken.union(names))
        taken.add(free)
        renamed.append(replace(named, name=free))
    return renamed, notes


def take_over(session: Session, refined: Sequence[NamedMask]) -> None:
    """Make segments of what is to be refined; nothing of it changes unless a prompt comes."""
    for named in refined:
        segment = session.add_segment(named.name)
        planes = np.moveaxis(named.mask, session.axis, 0)
        shown = np.flatnonzero(planes.any(axis=(1, 2)))
        places = np.unique(np.linspace(0, len(shown) - 1, min(_ANCHORS, len(shown))).round().astype(int))
        session.adopt(segment, {int(k): planes[k] for k in shown}, [int(k) for k in shown[places]])


def place(session: Session, request: SegmentPrompts) -> None:
    """Give prompts to the segment of their name that was taken over; without one, add it.

    Raises
    ------
    InputError
        As the prompts one by one.
    """
    segment = next((handle for handle in session.segments if handle.name == request.name), None)
    if segment is None:
        session.add_prompts(request)
        return
    for box in request.boxes:
        session.place_box(segment, box)
    for point in request.points:
        session.place_point(segment, point)


def with_codes_of(refined: Sequence[NamedMask], masks: Sequence[NamedMask]) -> list[NamedMask]:
    """Masks with the codes, color and tracking identifier of those they were refined from."""
    before = {named.name: named for named in refined}
    return [
        replace(named, terminology=before[named.name].terminology, tracking_uid=before[named.name].tracking_uid)
        if named.name in before
        else named
        for named in masks
    ]
