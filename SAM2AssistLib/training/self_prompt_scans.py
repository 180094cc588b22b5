"""Scans for the training of a self-prompt head: features of all slices, and what each cell of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import View, cut, square_around
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation
from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.prompting.voxel_features import GRID, VoxelFeatures, read_features
from SAM2AssistLib.training import _phantom_organs, phantoms
from SAM2AssistLib.training.seeded import seeds_of, with_grown_labels
from SAM2AssistLib.training.volumes import read_case
from SAM2AssistLib.volume import CTVolume

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

REMOVABLE = {
    "liver": (_phantom_organs, "paint_liver"),
    "spleen": (_phantom_organs, "paint_spleen"),
    "kidney_right": (_phantom_organs, "paint_kidneys"),
    "kidney_left": (_phantom_organs, "paint_kidneys"),
    "pancreas": (_phantom_organs, "paint_pancreas"),
    "stomach": (phantoms.bowel, "paint_stomach"),
    "urinary_bladder": (_phantom_organs, "paint_bladder"),
}
"""What a phantom can be made without, and the function that would paint it; kidneys go together."""
GROWN_WHOLE = ("liver", "spleen", "kidney_right", "kidney_left", "aorta", "gallbladder")
"""Structures whose seeds reach from end to end; of the others only a part is labelled."""


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A volume in the common orientation, and the truth by name; masks (superior, posterior, left).

    Where it is not ``complete``, a class without a mask may be there all the same.
    """

    name: str
    volume: CTVolume
    masks: Mapping[str, NDArray[np.bool_]]
    complete: bool = True


@dataclass(frozen=True, eq=False)
class TrainingScan:
    """What a head is trained on.

    Attributes
    ----------
    features : of all slices.
    truth : (N, K + 1, g, g) float16, the share of each class in each cell; channel 0 is what is none of them.
    told : (K + 1,) bool, false for a class that the truth says nothing of; its cells are in channel 0.
    """

    features: VoxelFeatures
    truth: Tensor
    told: Tensor


def phantom_scan(seed: int, without: str | None = None) -> LabelledScan:
    """Make a phantom on a random grid, as scanners vary, if wanted without an organ.

    Parameters
    ----------
    seed : of the grid and the patient.
    without : a key of `REMOVABLE`; its neighbours then move into its place, as after a resection.
    """
    rng = np.random.default_rng([seed, 7])
    in_plane, pixels = float(rng.uniform(1.3, 2.2)), int(rng.choice([176, 192, 208, 224]))
    shape, spacing = (int(rng.integers(28, 49)), pixels, pixels), (in_plane, in_plane, float(rng.choice([2, 3, 5])))
    if without is None:
        phantom = phantoms.make_phantom(seed, shape, spacing)
    else:
        module, name = REMOVABLE[without]
        # The painters are looked up when a phantom is made, and no other part of them asks for this organ.
        with patch.object(module, name, lambda *_: None):
            phantom = phantoms.make_phantom(seed, shape, spacing)
    masks = {name: phantom.labels == value for name, value in phantom.names.items()}
    return LabelledScan(f"phantom {seed}", phantom.volume, masks)


def file_scan(image: Path, segmentation: Path) -> LabelledScan:
    """Read a CT and its segmentation, turned to the common orientation; all vertebrae become one class."""
    volume = CTVolume.read(image)
    named, geometry = read_segmentation(segmentation)
    turn = Orientation.of(volume)
    masks: dict[str, NDArray[np.bool_]] = {}
    for item in masks_on_grid_of(volume, named, geometry):
        name = "vertebrae" if item.name.startswith("vertebrae") else item.name
        mask = turn.turned(item.mask)
        masks[name] = masks[name] | mask if name in masks else mask
    return LabelledScan(image.parent.name, turn.turn(volume), masks)


def seeded_scan(folder: Path, cache: Path) -> LabelledScan:
    """Read a CT without a reference whose labels are grown from seeds; see `seeded`.

    Parameters
    ----------
    folder : of the case.
    cache : folder for grown label maps; growing takes minutes and is done once.

    Raises
    ------
    InputError
        If nobody has placed seeds in the case.
    """
    seeds = seeds_of(folder.name)
    if not seeds:
        raise InputError(f"There are no seeds for {folder.name}; place some in seeds.json or give a case with labels.")
    (case,) = with_grown_labels([read_case(folder)], cache)
    whole = CTVolume.read(folder / "image.nii.gz")
    step = round(case.spacing_kji[1] / whole.spacing_ijk[1])
    # A thinned voxel is the mean of step x step, and so its centre lies between those of the first and the last.
    thinned = np.diag([step, step, 1.0, 1.0])
    thinned[:2, 3] = (step - 1) / 2
    volume = CTVolume(case.hu, whole.ijk_to_lps @ thinned)
    turn = Orientation.of(volume)
    masks = {n: turn.turned(case.labels == value) for value, n in enumerate(seeds, 1) if n in GROWN_WHOLE}
    return LabelledScan(folder.name, turn.turn(volume), masks, complete=False)


def training_scan(
    engine: Engine, scan: LabelledScan, classes: Sequence[str], rng: np.random.Generator | None = None
) -> TrainingScan:
    """Encode a scan through the view of its body, shaken a little where a generator is given."""
    window = default_window(scan.volume)
    if rng is not None:
        window = type(window)(window.level + 15 * rng.normal(), window.width * float(np.exp(0.1 * rng.normal())))
    plane = Plane(engine.model, scan.volume, 0, window, engine.channels, engine.options)
    view = body_view(scan.volume)
    if rng is not None:
        view = _shaken(view, scan.volume.slice_spacing(0), rng)
    *_, features = read_features(plane, view)
    assert isinstance(features, VoxelFeatures)
    told = torch.tensor([True, *(scan.complete or name in scan.masks for name in classes)])
    return TrainingScan(features, truth_of(scan, classes, view), told)


def truth_of(scan: LabelledScan, classes: Sequence[str], view: View) -> Tensor:
    """Give the share of each class in each cell of a view; (N, K + 1, g, g) float16."""
    slices = scan.volume.shape_kji[0]
    truth = torch.zeros(slices, len(classes) + 1, GRID, GRID)
    for number, name in enumerate(classes, 1):
        mask = scan.masks.get(name)
        if mask is not None:
            for k in np.flatnonzero(mask.any(axis=(1, 2))):
                truth[k, number] = cut(mask[k].astype(np.float32), view, GRID, 0.0)
    truth[:, 0] = (1 - truth.sum(dim=1)).clamp_min(0)
    return truth.half()


def _shaken(view: View, spacing_mm: tuple[float, float], rng: np.random.Generator) -> View:
    side_mm = view.rows * spacing_mm[0] * float(np.exp(0.05 * rng.normal()))
    row, column = view.row + (view.rows - 1) / 2, view.column + (view.columns - 1) / 2
    shift = 0.02 * rng.normal(size=2) * (view.rows, view.columns)
    return square_around((row + float(shift[0]), column + float(shift[1])), side_mm, spacing_mm)
