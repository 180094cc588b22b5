"""Support cases: volumes with finished masks, "like this one"."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import View, cut
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import ending_of
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import SEGMENTATION_ENDING, read_on_grid
from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.prompting.voxel_features import GRID, VoxelFeatures, read_features
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

LEAST_PIXELS = 12
"""Sections smaller than this teach nothing."""

UNNAMED = "segment"
"""What a class without a name is called."""


@dataclass(frozen=True, eq=False)
class SupportCase:
    """A volume and what is known of it.

    Attributes
    ----------
    name : for the user.
    volume : in HU.
    masks : by class name, bool (k, j, i) on the grid of the volume; names become what `class_name` makes of them.
    notes : what the user should know of how it was read, in sentences.

    Raises
    ------
    InputError
        If there is no mask, one has another shape than the volume, or all are empty.
    """

    name: str
    volume: CTVolume
    masks: Mapping[str, NDArray[np.bool_]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no mask could be learned from, and name classes as the segments that are made of them."""
        for name, mask in self.masks.items():
            if mask.shape != self.volume.shape_kji:
                raise InputError(
                    f"The support mask of {name!r} in {self.name} has the shape {mask.shape}, but its image has "
                    f"{self.volume.shape_kji}; give the mask that belongs to the image."
                )
        if not any(mask.any() for mask in self.masks.values()):
            raise InputError(f"The support masks of {self.name} are all empty; segment it before it is a support.")
        object.__setattr__(self, "masks", masks_by_name(NamedMask(name, mask) for name, mask in self.masks.items()))


def read_support(image: Path, mask: Path) -> SupportCase:
    """Read a support case, named after its image, or after the folder if that is no more than an "image".

    Parameters
    ----------
    image : what `CTVolume.read` reads.
    mask : a segmentation or a label map with names; see `SAM2AssistLib.io.segmentation`.

    Raises
    ------
    InputError
        If one of them cannot be read, they do not belong together, or the masks are empty.
    """
    from SAM2AssistLib.io.dicom_objects import is_dicom_object  # here, because pydicom takes its time to load

    volume = CTVolume.read(image)
    masks, notes = read_masks(mask, volume)
    is_label_map = ending_of(mask) != SEGMENTATION_ENDING and not is_dicom_object(mask)
    if is_label_map and (shape := _shape_in(mask)) != volume.shape_kji:
        raise InputError(
            f"The support mask {mask.name} has the shape {shape}, but its image {image.name} has "
            f"{volume.shape_kji}; give the mask that belongs to the image."
        )
    whole = Path(os.path.abspath(image))  # "image.nii.gz" and "." have no folder to be named after
    name = whole.parent.name if whole.name.startswith("image.") else whole.name
    return SupportCase(name, volume, masks, (*volume.warnings, *(f"{mask.name}: {note}" for note in notes)))


def read_masks(path: Path, volume: CTVolume) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """Read the masks of classes, bool (k, j, i), on the grid of a volume, and what the user should know of them."""
    placed, notes = read_on_grid(path, volume)
    masks = masks_by_name(placed)
    return masks, [*notes, *_notes_on_empty(masks)]


def _shape_in(path: Path) -> tuple[int, ...]:
    """Read the shape (k, j, i) of an image from its header alone; the file is known to be one."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return tuple(reversed(reader.GetSize()))


def _notes_on_empty(masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
    """Tell which classes have no voxel in the image: they are not learned, whatever the file says of them."""
    empty = [f"'{name}'" for name, mask in masks.items() if not mask.any()]
    return [f"No voxel of {', '.join(empty)} is in the image, so that is not looked for by it."] if empty else []


def class_name(name: str) -> str:
    """Return the name of a class as a segment can bear it: without blanks around it, and never empty."""
    return name.strip() or UNNAMED


def masks_by_name(segments: Iterable[NamedMask]) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of classes; segments of one name, such as several metastases, are of one class."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for segment in segments:
        name = class_name(segment.name)
        masks[name] = masks[name] | segment.mask if name in masks else segment.mask
    return masks


@dataclass(frozen=True, eq=False)
class Support:
    """A support case as the network sees it.

    Attributes
    ----------
    name : of the case.
    classes : K names, those whose masks are not empty.
    features : of its N axial slices.
    shares : (N, K, g, g) float16, how much of each cell is of each class.
    plane : its slices in the common orientation, for memories.
    notes : those of the case.
    """

    name: str
    classes: tuple[str, ...]
    features: VoxelFeatures
    shares: Tensor
    plane: Plane
    notes: tuple[str, ...] = ()

    @property
    def view(self) -> View:
        """Through which its slices are seen."""
        return self.features.view

    def slices_with(self, name: str) -> NDArray[np.int64]:
        """List the slices that show a class."""
        if name not in self.classes:
            return np.zeros(0, np.int64)
        cells = self.shares[:, self.classes.index(name)].float().sum(dim=(1, 2)).numpy()
        least = LEAST_PIXELS * (GRID / max(self.view.rows, self.view.columns)) ** 2
        return np.flatnonzero(cells > least)

    def mask(self, name: str, k: int) -> Tensor:
        """Return the mask of a class on a slice, (S, S) with 0 and 1 in the view."""
        size = self.plane.network.model.image_size
        share = self.shares[k, self.classes.index(name)][None, None].float()
        fine = torch.nn.functional.interpolate(share, size=(size, size), mode="bilinear", align_corners=False)
        return (fine[0, 0] >= 0.5).float()


def prepare_support(engine: Engine, case: SupportCase, window: Window, classes: Sequence[str] | None = None) -> Support:
    """Encode a support case.

    Parameters
    ----------
    window : that of the volume to be segmented, so that both look alike.
    classes : which of its masks to use; all if None.
    """
    *_, support = support_steps(engine, case, window, classes)
    assert isinstance(support, Support)
    return support


def support_steps(
    engine: Engine, case: SupportCase, window: Window, classes: Sequence[str] | None = None
) -> Iterator[Support | tuple[int, int]]:
    """Encode a support case as `prepare_support` does; yields slices done and slices in all, last the case."""
    turn = Orientation.of(case.volume)
    volume = turn.turn(case.volume)
    plane = Plane(engine.model, volume, 0, window, engine.channels, engine.options)
    view, features = body_view(volume), None
    for step in read_features(plane, view):
        if isinstance(step, VoxelFeatures):
            features = step
        else:
            yield step, plane.slices
    assert features is not None
    names = tuple(n for n, m in case.masks.items() if m.any() and (classes is None or n in classes))
    shares = torch.zeros((features.slices, len(names), GRID, GRID), dtype=torch.float16)
    for number, name in enumerate(names):
        mask = turn.turned(case.masks[name])
        for k in np.flatnonzero(mask.any(axis=(1, 2))):
            shares[k, number] = cut(mask[k].astype(np.float32), view, GRID, 0.0).half()
    yield Support(case.name, names, features, shares, plane, case.notes)


def seen_by(engine: Engine, support: Support) -> Support:
    """Return a support case as the network of an engine sees it: as it is, or encoded anew if another one has seen it.

    Features of two networks cannot be compared, and nothing but the result would tell.
    """
    plane = support.plane
    if plane.network.model is engine.model:
        return support
    anew = Plane(engine.model, plane.volume, 0, plane.window, engine.channels, engine.options)
    *_, features = read_features(anew, support.view)
    assert isinstance(features, VoxelFeatures)
    return replace(support, features=features, plane=anew)
