"""Peers to compare with, given the same prompts: classic seeded methods, and SAM2's own video predictor.

GrowCut (Slicer's ``vtkImageGrowCutSegment``: Zhu et al., 2014, with Slicer's defaults) and the random walker (Grady,
2006, scikit-image) know neither boxes nor clicks but seeds, so prompts become seeds in the way a patient user of them
would paint: see `seeds_of`. What they get that a box alone would not say is the range of slices, which the CVPR 2025
challenge gives to everybody. The video predictor is in `upstream`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.methods import Attempt, Method, Opened
from SAM2AssistLib.evaluation.simulated_user import Prompt, RangedBox
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

Seeds = NDArray[np.uint8]

PEERS = ("sam2", "growcut", "walker")
INSIDE, OUTSIDE = 1, 2
"""Seed values; 0 is what is to be found out."""
BRUSH_MM = 3.0
"""Radius of the ball that a click paints."""
CORE = 0.5
"""Share of a box's sides within which its middle counts as inside: an ellipse of that size."""
GROWTH = 0.5
"""Share of a box's longer side by which an object is allowed to be larger on other slices than the box's."""
CLICK_REACH_MM = 60.0
"""How far around clicks a seeded method looks where no box was drawn."""
WALKER_VOXELS = 150_000
"""More are thinned in-plane: the random walker solves a linear system with one unknown for each."""
WALKER_BETA = 20_000.0
"""How much contrast hinders a walker. With scikit-image's default (130) it passes every organ's edge: on three
sarcomas and four organs of the training part the mean Dice from the challenge's box is 0.24 with it, and 0.65 with
this, the best of the values from 130 to 200,000 that were tried."""


def check_peers(text: str) -> list[str]:
    """Read a list of peers such as "growcut,walker" or "all".

    Raises
    ------
    InputError
        If there is no such peer, or what it needs is not installed.
    """
    names = list(PEERS) if text.strip() == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise InputError(f"There is no peer '{name}'; choose from {', '.join(PEERS)}, or all.")
    if "growcut" in names and find_spec("slicer") is None:
        raise InputError("The peer growcut needs Slicer's core; pip install slicer-core, or leave it out.")
    return list(dict.fromkeys(names))


def make_peers(names: Sequence[str], engine: Engine) -> list[Method]:
    """Make peers by their names.

    Parameters
    ----------
    names : of `PEERS`.
    engine : whose weights the video predictor gets.
    """
    made: list[Method] = []
    for name in names:
        if name == "growcut":
            made.append(SeededMethod("GrowCut", grow_cut))
        elif name == "walker":
            made.append(SeededMethod("Random walker", random_walk))
        else:
            from SAM2AssistLib.evaluation.upstream import UpstreamMethod

            made.append(UpstreamMethod(engine))
    return made


class SeededMethod:
    """A method that grows seeds.

    Parameters
    ----------
    name : in reports.
    grow : from a windowed image (k, j, i) in [0, 1], seeds and spacing (k, j, i) in mm to a mask.
    """

    def __init__(self, name: str, grow) -> None:
        self.name, self.grow = name, grow

    @contextmanager
    def open(self, volume: CTVolume) -> Iterator[Opened]:
        """Window the volume once."""
        from SAM2AssistLib.engine.loading import default_window

        yield _OpenedSeeded(self, default_window(volume).apply(volume.array), volume.spacing_ijk[::-1])


class _OpenedSeeded:
    def __init__(self, method: SeededMethod, image: NDArray[np.float32], spacing_kji: tuple[float, ...]) -> None:
        self.method, self.image, self.spacing_kji = method, image, spacing_kji

    @contextmanager
    def attempt(self, name: str) -> Iterator[Attempt]:
        """Begin without seeds."""
        yield _SeededAttempt(self)


class _SeededAttempt:
    def __init__(self, opened: _OpenedSeeded) -> None:
        self.opened = opened
        self.prompts: list[Prompt] = []

    def prompt(self, prompt: Prompt) -> None:
        self.prompts = [*self.prompts, prompt]

    def mask(self) -> NDArray[np.bool_]:
        image, spacing = self.opened.image, self.opened.spacing_kji
        mask = np.zeros(image.shape, bool)
        region = region_of(self.prompts, image.shape, spacing)
        seeds = seeds_of(self.prompts, image.shape, spacing)[region]
        if (seeds == INSIDE).any() and (seeds == OUTSIDE).any():
            mask[region] = self.opened.method.grow(image[region], seeds, spacing)
        elif (seeds == INSIDE).any():
            mask[region] = seeds == INSIDE
        return mask


def region_of(
    prompts: Sequence[Prompt], shape_kji: Sequence[int], spacing_kji: Sequence[float]
) -> tuple[slice, slice, slice]:
    """Return where a seeded method looks: around the box as far as the object may be larger, and around all clicks.

    One more voxel on each side is included, which is seeded as outside.
    """
    lows, highs = [], []
    for prompt in prompts:
        if isinstance(prompt, RangedBox):
            low, high = np.array(prompt.box.min_ijk)[::-1], np.array(prompt.box.max_ijk)[::-1]
            sides_mm = (high - low + 1)[1:] * spacing_kji[1:]
            margin = np.concatenate([[0.0], GROWTH * sides_mm.max() / np.array(spacing_kji[1:])])
            first, last = prompt.reach or (0, shape_kji[0] - 1)
            low[0], high[0] = first, last
        else:
            low = high = np.array(prompt.index_ijk)[::-1]
            alone = not any(isinstance(p, RangedBox) for p in prompts)
            margin = (CLICK_REACH_MM if alone else BRUSH_MM) / np.array(spacing_kji)
        lows.append(low - margin)
        highs.append(high + margin)
    low = np.maximum(np.floor(np.min(lows, axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(np.max(highs, axis=0)).astype(int) + 1, np.array(shape_kji) - 1)
    k, j, i = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    return k, j, i


def seeds_of(prompts: Sequence[Prompt], shape_kji: Sequence[int], spacing_kji: Sequence[float]) -> Seeds:
    """Paint seeds as a user of a seeded method would.

    A box says that on its slice everything beyond it is outside, and so are all slices beyond the object's range; its
    core (an ellipse of half its size) is inside. A click is a small ball. The rim of the region is outside, unless the
    volume ends there.

    Returns
    -------
    uint8 (k, j, i): `INSIDE`, `OUTSIDE` or 0.
    """
    seeds = np.zeros(tuple(shape_kji), np.uint8)
    region = region_of(prompts, shape_kji, spacing_kji)
    for axis, (part, size) in enumerate(zip(region, shape_kji, strict=True)):
        rim: list[slice | int] = list(region)
        for at, is_edge in ((part.start, part.start == 0), (part.stop - 1, part.stop == size)):
            if not is_edge:
                rim[axis] = at
                seeds[tuple(rim)] = OUTSIDE
    for prompt in prompts:
        if isinstance(prompt, RangedBox):
            _paint_box(seeds, prompt)
    for prompt in prompts:
        if not isinstance(prompt, RangedBox):
            ball = _ball(prompt.index_ijk[::-1], shape_kji, spacing_kji)
            seeds[ball] = INSIDE if prompt.positive else OUTSIDE
    return seeds


def grow_cut(image: NDArray[np.float32], seeds: Seeds, spacing_kji: Sequence[float]) -> NDArray[np.bool_]:
    """Grow seeds with Slicer's GrowCut; arrays (k, j, i)."""
    from SAM2AssistLib.mrml import grow_cut as slicers

    return slicers.grow_cut(image, seeds, spacing_kji) == INSIDE


def random_walk(image: NDArray[np.float32], seeds: Seeds, spacing_kji: Sequence[float]) -> NDArray[np.bool_]:
    """Let random walkers find the seeds; arrays (k, j, i), thinned in-plane where there are too many voxels."""
    from skimage.segmentation import random_walker

    step = max(1, math.ceil(math.sqrt(image.size / WALKER_VOXELS)))
    thin = (slice(None), slice(None, None, step), slice(None, None, step))
    small_seeds = _thinned(seeds, step)
    if not ((small_seeds == INSIDE).any() and (small_seeds == OUTSIDE).any() and (small_seeds == 0).any()):
        return seeds == INSIDE
    spacing = np.array((spacing_kji[0], spacing_kji[1] * step, spacing_kji[2] * step))
    labels = random_walker(image[thin], small_seeds, beta=WALKER_BETA, mode="cg_j", spacing=spacing / min(spacing))
    full = np.repeat(np.repeat(labels == INSIDE, step, axis=1), step, axis=2)[:, : image.shape[1], : image.shape[2]]
    return (full & (seeds != OUTSIDE)) | (seeds == INSIDE)


def _thinned(seeds: Seeds, step: int) -> Seeds:
    """Keep every step-th voxel in-plane; seeds in those left out are kept by a neighbour, inside ones first."""
    if step == 1:
        return seeds
    padded = np.pad(seeds, ((0, 0), (0, -seeds.shape[1] % step), (0, -seeds.shape[2] % step)))
    k, j, i = padded.shape
    blocks = padded.reshape(k, j // step, step, i // step, step)
    inside = (blocks == INSIDE).any(axis=(2, 4))
    # Outside needs a majority, or the wide seeds beyond a box would eat into it.
    outside = (blocks == OUTSIDE).mean(axis=(2, 4)) > 0.5
    return np.where(inside, INSIDE, np.where(outside, OUTSIDE, 0)).astype(np.uint8)


def _paint_box(seeds: Seeds, prompt: RangedBox) -> None:
    low, high = np.array(prompt.box.min_ijk)[::-1], np.array(prompt.box.max_ijk)[::-1]
    k = round(low[0])
    if prompt.reach is not None:
        seeds[: prompt.reach[0]] = OUTSIDE
        seeds[prompt.reach[1] + 1 :] = OUTSIDE
    rows, columns = np.indices(seeds.shape[1:])
    inside = (rows >= low[1]) & (rows <= high[1]) & (columns >= low[2]) & (columns <= high[2])
    seeds[k][~inside] = OUTSIDE
    centre, half = (low + high)[1:] / 2, np.maximum((high - low + 1)[1:] * CORE / 2, 0.5)
    core = ((rows - centre[0]) / half[0]) ** 2 + ((columns - centre[1]) / half[1]) ** 2 <= 1
    seeds[k][core & inside] = INSIDE


def _ball(centre_kji: Sequence[float], shape_kji: Sequence[int], spacing_kji: Sequence[float]) -> NDArray[np.bool_]:
    ball = np.zeros(tuple(shape_kji), bool)
    box = []
    for c, n, s in zip(centre_kji, shape_kji, spacing_kji, strict=True):
        box.append(slice(max(0, math.ceil(c - BRUSH_MM / s)), min(n, math.floor(c + BRUSH_MM / s) + 1)))
    grid = np.ogrid[tuple(box)]
    away = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre_kji, spacing_kji, strict=True))
    ball[tuple(box)] = away <= BRUSH_MM**2
    ball[tuple(round(c) for c in centre_kji)] = True
    return ball
