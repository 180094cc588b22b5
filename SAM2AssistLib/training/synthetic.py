"""Volumes that show no anatomy at all: random shapes of random contrast, so that prompts are learned and not organs.

The idea is that of SynthSeg (Billot et al. 2021, arXiv 2107.09559) and of UniverSeg's and ScribblePrompt's synthetic
tasks: label maps from smooth noise, intensities drawn per label.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAM2AssistLib.training.datasets.case import LabelledCT
from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.volume import CTVolume

SHAPES = tuple(f"shape_{number}" for number in range(1, 9))
"""Names of the random structures; what is 0 in the label map is one more of them that has no name."""


def synthetic_ct(seed: int, names: dict[str, int], shape_kji: tuple[int, int, int] = (24, 160, 160)) -> LabelledCT:
    """Make a volume of random shapes.

    Parameters
    ----------
    seed : the same gives the same volume.
    names : label by structure; `SHAPES` are looked up in it.
    shape_kji : slices, rows and columns, of 4, 2 and 2 mm.
    """
    rng = np.random.default_rng([seed, 11])
    cell = np.array([rng.uniform(5, 12), *rng.uniform(14, 45, 2)])
    coarse = np.maximum(2, np.ceil(np.array(shape_kji) / cell).astype(int))
    best = np.full(shape_kji, -np.inf, np.float32)
    winner = np.zeros(shape_kji, np.uint8)
    for number in range(len(SHAPES) + 1):
        noise = rng.standard_normal(coarse).astype(np.float32)
        field = ndimage.zoom(noise, np.array(shape_kji) / coarse, order=3, mode="nearest", grid_mode=True)
        winner[field > best] = number
        best = np.maximum(best, field)
    means = rng.uniform(-180, 260, len(SHAPES) + 1)
    hu = means[winner] + rng.uniform(4, 30) * ndimage.gaussian_filter(rng.standard_normal(shape_kji), (0, 0.8, 0.8))
    hu = ndimage.gaussian_filter(hu, (0.3, *[rng.uniform(0.4, 1.4)] * 2))
    labels = np.zeros(shape_kji, np.uint8)
    for number, name in enumerate(SHAPES, 1):
        labels[winner == number] = names[name]
    volume = CTVolume.from_array(hu.round().astype(np.int16), (2.0, 2.0, 4.0), np.diag([2.0, 2.0, 4.0, 1.0]))
    return LabelledCT(f"synthetic {seed}", volume, labels)


def phantom_ct(seed: int, names: dict[str, int]) -> LabelledCT:
    """Make a procedural CT phantom (`SAM2AssistLib.training.phantoms`) as a case; unnamed structures are left out."""
    phantom = make_phantom(seed, (40, 192, 192), (1.8, 1.8, 4.0))
    labels = np.zeros(phantom.labels.shape, np.uint8)
    for name, value in phantom.names.items():
        if name in names:
            labels[phantom.labels == value] = names[name]
    return LabelledCT(f"phantom {seed}", phantom.volume, labels)


def with_synthetic_names(names: dict[str, int], phantoms: int, synthetic: int) -> dict[str, int]:
    """Add the structures of synthetic volumes, and of phantoms, to label numbers that are free."""
    wanted = [*(SHAPES if synthetic else ()), *(_PHANTOM_NAMES if phantoms else ())]
    free = (value for value in range(1, 256) if value not in set(names.values()))
    return names | {name: next(free) for name in wanted if name not in names}


_PHANTOM_NAMES = (
    "liver", "spleen", "kidney_right", "kidney_left", "gallbladder", "stomach", "pancreas", "aorta",
    "inferior_vena_cava", "urinary_bladder", "tumor",
)  # fmt: skip
