"""Labels for CTs without a reference, grown from seeds that a person has placed.

``seeds.json`` holds discs [slice, row, column, radius in pixels] per structure, placed by eye on the thinned grid that
`SAM2AssistLib.training.volumes.read_case` makes. A random walk through the soft tissue (Grady 2006, scikit-image)
decides every other voxel. The result has the true edges of organs, and errors where two organs touch without one: good
for training, no reference to measure with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from skimage.segmentation import random_walker

from SAM2AssistLib.io.atomic import atomic_path
from SAM2AssistLib.training.volumes import LabelledVolume

SOFT_TISSUE_HU = (5.0, 420.0)
OTHER = "other"
SLICE_REACH = 3
"""Slices beyond a structure's outermost seeds that it may still reach into."""
STIFFNESS = 3000.0


def with_grown_labels(volumes: Sequence[LabelledVolume], cache: Path) -> list[LabelledVolume]:
    """Give the volumes that have seeds the labels grown from them; the others are passed through.

    Parameters
    ----------
    volumes : as `read_split` gives them.
    cache : folder for the label maps; the walk takes minutes and is done once.
    """
    return [_grown(volume, cache) for volume in volumes]


def _grown(volume: LabelledVolume, cache: Path) -> LabelledVolume:
    seeds = seeds_of(volume.name)
    if not seeds:
        return volume
    path = cache / f"{volume.name}.nii.gz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            sitk.WriteImage(sitk.GetImageFromArray(grow_seeds(volume.hu, volume.spacing_kji, seeds)), str(part))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    # The tables of what is where belong to the old labels.
    return replace(volume, labels=labels, present={}, areas={})


def seeds_of(case: str) -> dict[str, list[list[int]]]:
    """Look up the seeds of a case by its folder's name; empty if there are none."""
    return json.loads((files(__package__) / "seeds.json").read_text(encoding="utf-8")).get(case, {})


def grow_seeds(
    hu: np.ndarray, spacing_kji: tuple[float, float, float], seeds: Mapping[str, Sequence[Sequence[int]]]
) -> np.ndarray:
    """Label the soft tissue of a CT by random walks from seeds.

    Parameters
    ----------
    hu : (k, j, i) Hounsfield units.
    spacing_kji : mm.
    seeds : discs (slice, row, column, radius) per structure; those of ``other`` keep the rest away and get no label.

    Returns
    -------
    (k, j, i) uint8; labels are 1 and up in the order of the seeds, and 0 elsewhere.
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0, 0.6, 0.6))
    markers = np.where((smooth >= SOFT_TISSUE_HU[0]) & (smooth <= SOFT_TISSUE_HU[1]), 0, -1).astype(np.int32)
    rows, cols = np.ogrid[: hu.shape[1], : hu.shape[2]]
    for value, discs in enumerate(seeds.values(), start=1):
        for k, row, col, radius in discs:
            disc = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
            markers[k][disc & (markers[k] >= 0)] = value
    walked = random_walker(smooth, markers, beta=STIFFNESS, mode="cg_j", tol=1e-2, spacing=spacing_kji)
    labels = np.zeros(hu.shape, np.uint8)
    for value, (name, discs) in enumerate(seeds.items(), start=1):
        if name != OTHER:
            low, high = min(d[0] for d in discs) - SLICE_REACH, max(d[0] for d in discs) + SLICE_REACH
            mask = walked == value
            mask[: max(0, low)], mask[high + 1 :] = False, False
            labels[_tidied(mask, markers == value)] = value
    return labels


def _tidied(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Round off what is one voxel thin, keep what hangs together with the seeds, and fill holes slice by slice."""
    disc = ndimage.generate_binary_structure(2, 1)[None]
    opened = ndimage.binary_opening(mask, disc, iterations=2) | seeds
    components, _ = ndimage.label(opened)
    kept = np.isin(components, np.unique(components[seeds]))
    return np.stack([ndimage.binary_fill_holes(section) for section in kept])
