"""Labelled volumes to draw training slices from: procedural phantoms and, where the user has them, real CT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from SAM2AssistLib.errors import InputError


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A CT and its label map on one grid.

    Attributes
    ----------
    name : of the case, for reports.
    hu : (k, j, i) int16, Hounsfield units.
    labels : (k, j, i) uint8, 0 is background.
    spacing_kji : voxel size in mm along the array axes.
    present : for each array axis and label, the slices that hold at least `LEAST_PIXELS` of it.
    areas : for each array axis and label, the mean number of pixels on these slices.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray
    spacing_kji: tuple[float, float, float]
    present: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    areas: dict[tuple[int, int], float] = field(default_factory=dict)

    LEAST_PIXELS = 12

    def __post_init__(self) -> None:
        values = [int(v) for v in np.unique(self.labels) if v]
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            for value in values:
                area = (self.labels == value).sum(axis=others)
                slices = np.flatnonzero(area >= self.LEAST_PIXELS)
                if len(slices):
                    self.present[axis, value] = slices
                    self.areas[axis, value] = float(area[slices].mean())

    def labels_along(self, axis: int) -> list[int]:
        """List the labels that some slice along the array axis holds."""
        return [value for a, value in self.present if a == axis]


def tissue_labels(hu: np.ndarray) -> np.ndarray:
    """Label what thresholds alone can tell in an unlabelled CT: 1 bone and strong contrast, 2 lung and bowel gas.

    Parameters
    ----------
    hu : (k, j, i) Hounsfield units.

    Returns
    -------
    (k, j, i) uint8; components of fewer than 200 voxels are left out.
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0.5, 1, 1))
    body = ndimage.binary_opening(smooth > -300, iterations=2)
    body = np.stack([ndimage.binary_fill_holes(section) for section in body])
    labels = np.zeros(hu.shape, np.uint8)
    for value, mask in ((1, smooth > 180), (2, (smooth < -400) & body)):
        components, count = ndimage.label(mask)
        if count:
            large = np.bincount(components.ravel()) >= 200
            large[0] = False
            labels[large[components]] = value
    return labels


def read_case(folder: Path, *, longest: int = 288) -> LabelledVolume:
    """Read ``image.nii.gz`` and, if it is there, ``label.nii.gz`` from a case's folder.

    In-plane grids longer than ``longest`` are thinned by whole steps: the network sees 256 pixels, and memory is short.

    Raises
    ------
    InputError
        If the image is missing.
    """
    if not (folder / "image.nii.gz").is_file():
        raise InputError(f"{folder} holds no image.nii.gz; give a folder made as the data format says.")
    image = sitk.ReadImage(str(folder / "image.nii.gz"))
    hu = sitk.GetArrayFromImage(image).astype(np.int16)
    spacing = image.GetSpacing()[::-1]
    label_file = folder / "label.nii.gz"
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(label_file))).astype(np.uint8) if label_file.is_file() else None
    step = -(-max(hu.shape[1:]) // longest)
    if step > 1:
        hu = ndimage.uniform_filter(hu, (1, step, step), origin=(0, -(step // 2), -(step // 2)))[:, ::step, ::step]
        labels = None if labels is None else labels[:, ::step, ::step]
    if labels is None:
        labels = tissue_labels(hu)
    return LabelledVolume(folder.name, hu, labels, (spacing[0], spacing[1] * step, spacing[2] * step))


def read_split(root: Path, parts: Sequence[str] = ("train", "unlabelled")) -> list[LabelledVolume]:
    """Read the cases that ``splits.json`` in a data folder names for the given parts; ``test`` is never among them.

    Raises
    ------
    InputError
        If the test part is asked for, or ``splits.json`` is missing or lacks a part.
    """
    if "test" in parts:
        raise InputError("The test part is never trained on; choose 'train' or 'unlabelled'.")
    path = root / "splits.json"
    if not path.is_file():
        raise InputError(f"{root} holds no splits.json; add one that names the cases of each part.")
    split = json.loads(path.read_text())
    for part in parts:
        if part not in split:
            raise InputError(f"{path} has no part {part!r}; add it, with an empty list if there are no such cases.")
    return [read_case(root / name) for part in parts for name in split[part]]
