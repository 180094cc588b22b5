"""A simulated user with a reference in mind: a first prompt, then clicks where the mask is wrong.

Several users, because published numbers were measured with different ones: `challenge_box` and `challenge_click` are
those of the CVPR 2025 challenge on interactive segmentation (its ``get_boxes.py`` and ``CVPR25_iter_eval.py``),
`deepest_click` that of RITM (Sofiiuk et al., 2022) in three dimensions. `correction_click` is the challenge's with
depth in millimetres. What people do differently from all of them is in `behaviours`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from SAM2AssistLib.depth import depth_in
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.named_mask import bounding_box
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt

_TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours
_VOXELS = (1.0, 1.0, 1.0)
MOST_PUSH = 5
"""Pixels, on a slice of 256, by which the challenge pushes a box outwards at most."""
TIE_SEED = 42
"""With which the challenge chooses among equally deep voxels."""


@dataclass(frozen=True)
class RangedBox:
    """A box on one slice, and how far the object reaches.

    Attributes
    ----------
    box : flat in k.
    reach : first and last slice that the object is on; None if the user does not say.
    """

    box: BoxPrompt
    reach: tuple[int, int] | None = None


Prompt = RangedBox | PointPrompt


def box_on_middle_slice(reference: NDArray[np.bool_], axis: int = 0) -> BoxPrompt:
    """Draw the box of a reference on its middle slice.

    Parameters
    ----------
    reference : bool (k, j, i).
    axis : array axis (0 = k, 1 = j, 2 = i) in which the box is flat.

    Raises
    ------
    InputError
        If the reference is empty.
    """
    others = tuple(a for a in range(3) if a != axis)
    present = np.flatnonzero(reference.any(axis=others))
    if not len(present):
        raise InputError("The reference is empty; a box can only be drawn around something.")
    middle = int(present[len(present) // 2])
    low, high = np.empty(3), np.empty(3)
    section = np.take(reference, middle, axis=axis)
    low[axis] = high[axis] = middle
    for place, other in enumerate(others):
        seen = np.flatnonzero(section.any(axis=1 - place))
        low[other], high[other] = seen[0], seen[-1]
    return BoxPrompt(_ijk(low), _ijk(high), axis)


def challenge_box(reference: NDArray[np.bool_], rng: np.random.Generator) -> RangedBox:
    """Draw the box of the CVPR 2025 challenge.

    It lies on the slice of the middle voxel (half of the object's voxels are on slices before it), is pushed outwards
    on all sides by one random number from 0 to 5, scaled by the size of the slice over 256, and comes with the first
    and the last slice of the object.

    Parameters
    ----------
    reference : bool (k, j, i).
    rng : for the push.

    Raises
    ------
    InputError
        If the reference is empty.
    """
    if not reference.any():
        raise InputError("The reference is empty; a box can only be drawn around something.")
    slices = np.nonzero(reference)[0]
    middle = int(slices[len(slices) // 2])
    rows, columns = np.nonzero(reference[middle])
    push = int(rng.integers(0, MOST_PUSH + 1))
    low, high = [float(middle)], [float(middle)]
    for found, size in zip((rows, columns), reference.shape[1:], strict=True):
        by = int(push * size / 256)
        low.append(float(max(0, found.min() - by)))
        high.append(float(min(size - 1, found.max() + by)))
    return RangedBox(BoxPrompt(_ijk(low), _ijk(high), 0), (int(slices[0]), int(slices[-1])))


def challenge_click(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> PointPrompt | None:
    """Click as the CVPR 2025 challenge does: where the largest error is deepest, counted in voxels.

    Among equally deep voxels one is chosen with the challenge's own fixed seed.

    Returns
    -------
    The click, or None if nothing is wrong.
    """
    return _click_into_largest_error(mask, reference, _VOXELS, tie_seed=TIE_SEED)


def correction_click(
    mask: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_kji: tuple[float, float, float]
) -> PointPrompt | None:
    """Click in the middle of the largest error: positive where something is missing, negative where there is too much.

    Parameters
    ----------
    mask, reference : bool (k, j, i).
    spacing_kji : mm, in which depth is measured.

    Returns
    -------
    The click, or None if nothing is wrong.
    """
    return _click_into_largest_error(mask, reference, spacing_kji, tie_seed=None)


def deepest_click(
    mask: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_kji: tuple[float, float, float],
    clicked: Collection[PointPrompt] = (),
) -> PointPrompt | None:
    """Click as RITM's clicker does, in three dimensions: at the deepest point of what is missing or too much.

    The edge of the volume counts as an edge of the error, and no voxel is clicked twice.

    Parameters
    ----------
    mask, reference : bool (k, j, i).
    spacing_kji : mm, in which depth is measured.
    clicked : earlier clicks.

    Returns
    -------
    The click, or None if nothing is wrong that has not been clicked.
    """
    best: tuple[float, PointPrompt] | None = None
    for error, positive in ((reference & ~mask, True), (mask & ~reference, False)):
        box = bounding_box(error)
        if box is None:
            continue
        depth = depth_in(error[box], spacing_kji)
        start = np.array([part.start for part in box])
        for click in clicked:
            index = np.rint(click.index_ijk[::-1]).astype(int) - start
            if ((index >= 0) & (index < depth.shape)).all():
                depth[tuple(index)] = 0.0
        deepest = float(depth.max())
        if deepest > 0 and (best is None or deepest > best[0]):
            place = np.array(np.unravel_index(int(depth.argmax()), depth.shape)) + start
            best = deepest, PointPrompt(_ijk(place), positive)
    return None if best is None else best[1]


def _click_into_largest_error(
    mask: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_kji: tuple[float, float, float], tie_seed: int | None
) -> PointPrompt | None:
    wrong = mask ^ reference
    around = bounding_box(wrong)
    if around is None:
        return None
    components, _ = ndimage.label(wrong[around], structure=_TOUCHING)
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    box = ndimage.find_objects(components)[largest - 1]
    depth = depth_in(components[box] == largest, spacing_kji)
    if tie_seed is None:
        place = np.array(np.unravel_index(int(depth.argmax()), depth.shape))
    else:
        deepest = np.argwhere(depth == depth.max())
        # The challenge seeds NumPy's old generator before every choice; only that one repeats its choices.
        place = deepest[np.random.RandomState(tie_seed).choice(len(deepest))]
    index_kji = place + np.array([part.start + outer.start for part, outer in zip(box, around, strict=True)])
    return PointPrompt(_ijk(index_kji), bool(reference[tuple(index_kji)]))


def _ijk(index_kji: np.ndarray | list[float]) -> tuple[float, float, float]:
    return float(index_kji[2]), float(index_kji[1]), float(index_kji[0])
