"""Clips: a few neighbouring slices with the masks of some objects, cut at random from labelled volumes.

Whatever a user's volume looks like, the network meets it as a square view of 256 pixels: the whole slice, or a focus
crop around a small object. Clips are cut with the same spread: any axis, any zoom from the whole slice down to the
object, shifted, turned, mirrored, with random windows, contrast, blur and noise, and with synthetic masses pasted in,
so that prompts rather than anatomy are learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.appearance import THREE_WINDOWS, to_channels
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.masses import paste_masses
from SAM2AssistLib.training.volumes import LabelledVolume

AIR_HU = -1000.0
SMALLEST_VIEW_MM = 48.0
WINDOWS = ((40.0, 400.0), (40.0, 400.0), (50.0, 350.0), (-300.0, 1400.0), (300.0, 1500.0), (60.0, 180.0))


@dataclass
class Clip:
    """T slices of one view and M objects in them.

    Attributes
    ----------
    images : (T, 3, S, S) float32, normalised.
    masks : (T, M, S, S) bool. Every object is in the first slice, the one to prompt; in others it may be absent.
    """

    images: Tensor
    masks: Tensor


class ClipSampler:
    """Cut clips without end.

    Parameters
    ----------
    volumes, weights : to draw from, and how often each.
    image_size : side S of the view in pixels.
    slices, objects : T and M of the clips.
    seed : of everything random.

    Raises
    ------
    InputError
        If no volume of any weight has a labelled object.
    """

    def __init__(
        self,
        volumes: Sequence[LabelledVolume],
        weights: Sequence[float],
        *,
        image_size: int,
        slices: int,
        objects: int,
        seed: int,
    ) -> None:
        self.volumes = list(volumes)
        self.weights = np.asarray(weights, float) / np.sum(weights)
        if not any(volume.present for volume, weight in zip(self.volumes, self.weights, strict=True) if weight > 0):
            raise InputError("No volume to train on has a label; give volumes with label maps.")
        self.image_size, self.slices, self.objects = image_size, slices, objects
        self.rng = np.random.default_rng(seed)

    def sample(self) -> Clip:
        """Cut one clip; tries again where the cut left an object out of the view."""
        while True:
            volume = self.volumes[self.rng.choice(len(self.volumes), p=self.weights)]
            clip = self._cut(volume)
            if clip is not None:
                return clip

    def _cut(self, volume: LabelledVolume) -> Clip | None:
        rng = self.rng
        axis = self._axis(volume)
        candidates = volume.labels_along(axis)
        if not candidates:
            return None
        # Large organs are few among many names; drawn evenly, a box over half the view would hardly ever be met.
        sizes = np.array([math.sqrt(volume.areas[axis, value]) for value in candidates])
        anchor = int(rng.choice(candidates, p=sizes / sizes.sum()))
        prompted_slice, indices = self._slice_indices(volume, axis, volume.present[axis, anchor])
        hu, labels = self._view(volume, axis, indices, prompted_slice, anchor)
        hu, masses = paste_masses(hu, rng, share=0.4)
        masks = self._choose(labels, masses, anchor)
        if masks is None:
            return None
        return Clip(self._appearance(hu), masks)

    def _axis(self, volume: LabelledVolume) -> int:
        order = self.rng.permutation([0, 0, 0, 0, 0, 1, 2])
        extent = [n * s for n, s in zip(volume.hu.shape, volume.spacing_kji, strict=True)]
        for axis in order:
            in_plane = [a for a in range(3) if a != axis]
            if all(volume.hu.shape[a] >= 32 and extent[a] >= SMALLEST_VIEW_MM for a in in_plane):
                return int(axis)
        return 0

    def _slice_indices(self, volume: LabelledVolume, axis: int, present: np.ndarray) -> tuple[int, list[int]]:
        """Choose the prompted slice and T slices with a step of 1 to 9 mm, mostly short, from there on up or down.

        Half of the clips run over the object's end, for that is what a propagation must notice by itself.
        """
        rng, count = self.rng, self.slices
        length = volume.hu.shape[axis]
        step = max(1, round(rng.uniform(1.0, 9.0 if rng.random() < 0.5 else 4.0) / volume.spacing_kji[axis]))
        step = max(1, min(step, (length - 1) // max(1, count - 1)))
        direction = step if rng.random() < 0.5 else -step
        if count > 1 and rng.random() < 0.5:
            end = int(present[-1] if direction > 0 else present[0])
            near_end = end - direction * int(rng.integers(count - 1))
            start = int(present[np.abs(present - near_end).argmin()])
        else:
            start = int(present[rng.integers(len(present))])
        # Beyond the volume's end the last slice repeats: it does no harm and keeps the shape.
        return start, [min(max(start + direction * t, 0), length - 1) for t in range(count)]

    def _view(
        self, volume: LabelledVolume, axis: int, indices: list[int], prompted_slice: int, anchor: int
    ) -> tuple[Tensor, Tensor]:
        """Resample the slices into a random square view; returns HU and labels, (T, S, S)."""
        rng, size = self.rng, self.image_size
        hu = np.take(volume.hu, indices, axis=axis)
        labels = np.take(volume.labels, indices, axis=axis)
        if axis:
            hu, labels = np.moveaxis(hu, axis, 0), np.moveaxis(labels, axis, 0)
        rows_mm, cols_mm = (volume.spacing_kji[a] for a in range(3) if a != axis)
        section = np.take(volume.labels, prompted_slice, axis=axis) == anchor
        row, col = np.nonzero(section)
        height, width = section.shape
        extent_mm = max((np.ptp(row) + 1) * rows_mm, (np.ptp(col) + 1) * cols_mm)
        whole_mm = max(height * rows_mm, width * cols_mm)
        if rng.random() < 0.35:
            side_mm, centre = whole_mm * rng.uniform(0.95, 1.1), np.array([height / 2, width / 2])
        else:
            least = min(max(SMALLEST_VIEW_MM, 1.25 * extent_mm), whole_mm)
            side_mm = math.exp(rng.uniform(math.log(least), math.log(max(least, whole_mm))))
            slack = max(0.0, (side_mm - extent_mm) / 2)
            shift = rng.uniform(-0.6, 0.6, 2) * slack / np.array([rows_mm, cols_mm])
            centre = np.array([(row.min() + row.max()) / 2, (col.min() + col.max()) / 2]) + shift
        grid = _sampling_grid(size, side_mm, centre, (rows_mm, cols_mm), section.shape, self._turn())
        values = torch.from_numpy(hu.astype(np.float32))[None] - AIR_HU
        view = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0] + AIR_HU
        names = torch.from_numpy(labels.astype(np.float32))[None]
        marks = F.grid_sample(names, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]
        return view, marks.round().to(torch.int16)

    def _turn(self) -> Tensor:
        rng = self.rng
        angle = math.radians(rng.normal(0.0, 12.0)) + (math.pi / 2 * rng.integers(4) if rng.random() < 0.3 else 0.0)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        if rng.random() < 0.5:
            turn[0] *= -1
        stretch = np.diag(np.exp(rng.normal(0.0, 0.08, 2)))
        return torch.from_numpy(turn @ stretch).float()

    def _choose(self, labels: Tensor, masses: list[Tensor], anchor: int) -> Tensor | None:
        """Pick M objects that the first slice shows; repeats some if there are fewer."""
        rng = self.rng
        shown = labels[0]
        values, counts = torch.unique(shown, return_counts=True)
        least = self.image_size**2 / 3000
        others = [int(v) for v, c in zip(values, counts, strict=True) if v and int(v) != anchor and c >= least]
        has_anchor = bool((shown == anchor).sum() >= least)
        rng.shuffle(others)
        masks = [labels == value for value in ([anchor] if has_anchor else []) + others]
        masks = [*masses, *masks] if rng.random() < 0.5 else [*masks[:1], *masses, *masks[1:]]
        masks = [mask for mask in masks if int(mask[0].sum()) >= least]
        if not masks:
            return None
        chosen = [masks[n % len(masks)] for n in range(self.objects)]
        return torch.stack(chosen, dim=1)

    def _appearance(self, hu: Tensor) -> Tensor:
        rng = self.rng
        if rng.random() < 0.25:
            sigma = rng.uniform(0.4, 1.2)
            hu = _blur(hu, sigma)
        if rng.random() < 0.5:
            noise = torch.from_numpy(rng.standard_normal(hu.shape, np.float32))
            noise = _blur(noise, rng.uniform(0.3, 1.2)) if rng.random() < 0.7 else noise
            hu = hu + noise * float(rng.uniform(3, 25)) / noise.std()
        level, width = WINDOWS[rng.integers(len(WINDOWS))] if rng.random() < 0.35 else WINDOWS[0]
        level, width = level + rng.normal(0, 0.08) * width, width * math.exp(rng.normal(0, 0.2))
        images = to_channels(hu, level, width, THREE_WINDOWS)
        if rng.random() < 0.05:
            images = -images
        return images * float(rng.uniform(0.9, 1.1)) + float(rng.normal(0, 0.1))


def _sampling_grid(
    size: int,
    side_mm: float,
    centre: np.ndarray,
    spacing_mm: tuple[float, float],
    shape: tuple[int, int],
    turn: Tensor,
) -> Tensor:
    """Make grid_sample's grid (1, S, S, 2) of a square view of ``side_mm`` around ``centre`` (row, column)."""
    steps = (torch.arange(size) + 0.5) / size - 0.5
    rows, cols = torch.meshgrid(steps, steps, indexing="ij")
    offsets = torch.stack([rows, cols], -1) @ turn * side_mm  # (S, S, 2) in mm
    pixels = offsets / torch.tensor(spacing_mm) + torch.from_numpy(centre).float()
    unit = (pixels + 0.5) * 2 / torch.tensor(shape, dtype=torch.float32) - 1
    return unit.flip(-1)[None]


def _blur(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    taps = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float32) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    stack = images[:, None]
    stack = F.conv2d(F.pad(stack, (radius, radius, 0, 0), mode="replicate"), taps.view(1, 1, 1, -1))
    return F.conv2d(F.pad(stack, (0, 0, radius, radius), mode="replicate"), taps.view(1, 1, -1, 1))[:, 0]
