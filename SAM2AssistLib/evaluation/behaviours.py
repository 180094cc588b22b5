"""How different people prompt for the same structure.

The behaviours are those that PHPG trains with (Wang et al., ISBI 2025): boxes drawn tightly, shakily or generously,
clicks in the middle, anywhere inside or near the border, both together, and a scribble. They are drawn here by code of
its own, on NumPy arrays in full resolution, so that measuring never depends on how training draws them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import skeletonize

from SAM2AssistLib.depth import deepest_in, depth_in
from SAM2AssistLib.evaluation.simulated_user import Prompt, RangedBox, box_on_middle_slice
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt

BEHAVIOURS = (
    "tight box",
    "shaky box",
    "loose box",
    "centre click",
    "inside click",
    "border click",
    "box and click",
    "scribble",
)

SHAKE, MOST_SHAKE = 0.1, 20.0
"""Each edge moves by up to this share of the box's side, and by this many pixels at most: SAM2's training noise."""
LOOSE = (0.10, 0.25)
"""By how much of its side a loose box is larger on each side."""
SCRIBBLE_POINTS = 5


def first_prompts(
    behaviour: str, reference: NDArray[np.bool_], spacing_kji: tuple[float, float, float], rng: np.random.Generator
) -> list[Prompt]:
    """Prompt for a structure on its middle slice.

    Parameters
    ----------
    behaviour : one of `BEHAVIOURS`.
    reference : bool (k, j, i), not empty.
    spacing_kji : mm along the array axes.
    rng : people are not the same twice.

    Raises
    ------
    ValueError
        If there is no such behaviour.
    """
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"there is no behaviour {behaviour!r}, only {BEHAVIOURS}")
    box = box_on_middle_slice(reference)
    k = round(box.min_ijk[2])
    section = reference[k]
    prompts: list[Prompt] = []
    if "box" in behaviour:
        prompts.append(RangedBox(_moved(box, section.shape, _edge_moves(behaviour, box, rng))))
    places = _clicked(behaviour, section, spacing_kji[1:], rng)
    return [*prompts, *(PointPrompt((float(column), float(row), float(k))) for row, column in places)]


def is_random(behaviour: str) -> bool:
    """Tell whether a behaviour differs from seed to seed."""
    return behaviour not in ("tight box", "centre click")


def _sides(box: BoxPrompt) -> np.ndarray:
    """Width and height in pixels."""
    return np.array([box.max_ijk[0] - box.min_ijk[0] + 1, box.max_ijk[1] - box.min_ijk[1] + 1])


def _edge_moves(behaviour: str, box: BoxPrompt, rng: np.random.Generator) -> np.ndarray:
    """By how many pixels the edges (left, right, top, bottom) are off."""
    sides = np.repeat(_sides(box), 2)
    if behaviour == "tight box":
        return np.zeros(4)
    if behaviour == "loose box":
        return rng.uniform(*LOOSE, size=4) * sides * (-1, 1, -1, 1)
    return rng.uniform(-1, 1, 4) * np.minimum(sides * SHAKE, MOST_SHAKE)


def _clicked(
    behaviour: str, section: NDArray[np.bool_], spacing: tuple[float, ...], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Where the clicks of a behaviour are, (row, column)."""
    if behaviour == "centre click":
        return [_centre(section, spacing)]
    if behaviour in ("inside click", "box and click"):
        return [_any(section, rng)]
    if behaviour == "border click":
        return [_any(_near_border(section, spacing), rng)]
    return _scribble(section, rng) if behaviour == "scribble" else []


def _moved(box: BoxPrompt, shape: tuple[int, ...], by: np.ndarray) -> BoxPrompt:
    """Move the edges (left, right, top, bottom), within the slice and without crossing."""
    rows, columns = shape
    left = float(np.clip(box.min_ijk[0] + by[0], 0, columns - 1))
    right = float(np.clip(box.max_ijk[0] + by[1], left, columns - 1))
    top = float(np.clip(box.min_ijk[1] + by[2], 0, rows - 1))
    bottom = float(np.clip(box.max_ijk[1] + by[3], top, rows - 1))
    k = box.min_ijk[2]
    return BoxPrompt((left, top, k), (right, bottom, k), 0)


def _centre(section: NDArray[np.bool_], spacing: tuple[float, ...]) -> tuple[int, int]:
    row, column = deepest_in(section, spacing)
    return row, column


def _any(section: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    places = np.argwhere(section)
    row, column = places[rng.integers(len(places))]
    return int(row), int(column)


def _near_border(section: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.bool_]:
    """The outer third of the depth, where a click in a hurry lands."""
    depth = depth_in(section, spacing)
    return section & (depth <= depth.max() / 3 + min(spacing))


def _scribble(section: NDArray[np.bool_], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Points along the middle line of the largest part, jittered by a pixel but kept inside."""
    parts, _ = ndimage.label(section)
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    line = np.argwhere(skeletonize(largest))
    if not len(line):
        line = np.argwhere(largest)
    # Along its longer extent, so that the points are spread and in the order of the stroke.
    line = line[np.argsort(line[:, int(np.argmax(np.ptp(line, axis=0)))], kind="stable")]
    chosen = line[np.unique(np.linspace(0, len(line) - 1, SCRIBBLE_POINTS).round().astype(int))]
    jittered = np.clip(chosen + rng.integers(-1, 2, chosen.shape), 0, np.array(section.shape) - 1)
    kept = np.where(section[jittered[:, 0], jittered[:, 1]][:, None], jittered, chosen)
    return [(int(row), int(column)) for row, column in kept]
