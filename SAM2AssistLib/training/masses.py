"""Synthetic masses pasted into clips: objects of any shape and contrast that no label map has."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

MOSTLY_AIR_HU = -600.0


def paste_masses(hu: Tensor, rng: np.random.Generator, *, share: float) -> tuple[Tensor, list[Tensor]]:
    """Paste up to three soft-edged, textured masses into a share of the clips.

    Parameters
    ----------
    hu : (T, S, S) view in HU.
    rng : random source.
    share : of the clips that get any.

    Returns
    -------
    The view, and for each mass its mask (T, S, S) bool.
    """
    masks: list[Tensor] = []
    if rng.random() >= share:
        return hu, masks
    for _ in range(rng.integers(1, 4)):
        distance = _shape(hu.shape, rng)
        softness = rng.uniform(0.6, 2.5)
        alpha = torch.sigmoid(-distance / softness)  # (T, S, S); 0.5 on the edge
        mask = alpha > 0.5
        if not mask.any():
            continue
        mean = float(hu[mask].mean())
        if mean < MOSTLY_AIR_HU and rng.random() < 0.8:
            continue
        contrast = rng.choice([-1, 1]) * math.exp(rng.uniform(math.log(15), math.log(160)))
        texture = _noise(hu.shape, rng.uniform(3, 12), rng) * rng.uniform(0, 0.5) * abs(contrast)
        # Part of what was there shines through, as it does in an infiltrating tumour.
        kept = rng.uniform(0.0, 0.5)
        inside = mean + contrast + texture + kept * (hu - mean)
        hu = hu * (1 - alpha) + inside * alpha
        masks.append(mask)
    return hu, masks


def _shape(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Return a signed distance in pixels, negative inside, of a bumpy ellipsoid; (T, S, S)."""
    count, size = shape[0], shape[-1]
    radii = np.exp(rng.uniform(math.log(size / 40), math.log(size / 2.6), 1)) * np.exp(rng.normal(0, 0.3, 2))
    length = rng.uniform(0.7, 3.0) * count
    centre = rng.uniform(0.15, 0.85, 2) * size
    drift = rng.normal(0, 0.02 * size, 2) / max(1, count)
    angle = rng.uniform(0, math.pi)
    t = torch.arange(count, dtype=torch.float32)[:, None, None]
    middle = rng.uniform(-0.2, 0.6) * count
    axis = torch.arange(size, dtype=torch.float32)
    y = axis[None, :, None] - float(centre[0]) - float(drift[0]) * t
    x = axis[None, None, :] - float(centre[1]) - float(drift[1]) * t
    u = (x * math.cos(angle) + y * math.sin(angle)) / float(radii[0])
    v = (y * math.cos(angle) - x * math.sin(angle)) / float(radii[1])
    w = (t - middle) / length
    mean_radius = float(radii.mean())
    bumps = _noise(shape, max(3.0, mean_radius * rng.uniform(0.4, 1.0)), rng) * rng.uniform(0.0, 0.25)
    return (torch.sqrt(u**2 + v**2 + w**2) - 1 + bumps) * mean_radius


def _noise(shape: torch.Size, cell: float, rng: np.random.Generator) -> Tensor:
    """Smooth noise of unit variance with structures of about ``cell`` pixels, alike in neighbours; (T, S, S)."""
    count, size = shape[0], shape[-1]
    coarse = max(3, round(size / cell))
    grid = torch.from_numpy(rng.standard_normal((1, 1, max(2, count // 3), coarse, coarse), np.float32))
    noise = F.interpolate(grid, size=(count, size, size), mode="trilinear", align_corners=False)[0, 0]
    return noise / noise.std().clamp_min(1e-3)
