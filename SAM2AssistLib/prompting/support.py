"""Support cases: volumes with finished masks, "like this one"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import View, cut
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import ending_of
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import SEGMENTATION_ENDING, masks_on_grid_of, read_segmentation
from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.prompting.voxel_features import GRID, VoxelFeatures, read_features
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

LEAST_PIXELS = 12
"""Sections smaller than this teach nothing."""


@dataclass(frozen=True, eq=False)
class SupportCase:
    """A volume and what is known of it.

    Attributes
    ----------
    name : for the user.
    volume : in HU.
    masks : by class name, bool (k, j, i) on the grid of the volume.

    Raises
    ------
    InputError
        If there is no mask, one has another shape than the volume, or all are empty.
    """

    name: str
    volume: CTVolume
    masks: Mapping[str, NDArray[np.bool_]]

    def __post_init__(self) -> None:
        """Refuse what no mask could be learned from."""
        for name, mask in self.masks.items():
            if mask.shape != self.volume.shape_kji:
                raise InputError(
                    f"The support mask of {name!r} in {self.name} has the shape {mask.shape}, but its image has "
                    f"{self.volume.shape_kji}; give the mask that belongs to the image."
                )
        if not any(mask.any() for mask in self.masks.values()):
            raise InputError(f"The support masks of {self.name} are all empty; segment it before it is a support.")


def read_support(image: Path, mask: Path) -> SupportCase:
    """Read a support case.

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
    named, geometry = read_segmentation(mask, volume)
    is_label_map = ending_of(mask) != SEGMENTATION_ENDING and not is_dicom_object(mask)
    if named and is_label_map and named[0].mask.shape != volume.shape_kji:
        raise InputError(
            f"The support mask {mask.name} has the shape {named[0].mask.shape}, but its image {image.name} has "
            f"{volume.shape_kji}; give the mask that belongs to the image."
        )
    had_voxels = any(item.mask.any() for item in named)
    masks = masks_by_name(masks_on_grid_of(volume, named, geometry))
    if had_voxels and not any(m.any() for m in masks.values()):
        raise InputError(f"The support mask {mask.name} lies outside its image {image.name}; give matching ones.")
    return SupportCase(image.parent.name if image.name.startswith("image.") else image.name, volume, masks)


def masks_by_name(segments: Sequence[NamedMask]) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of classes; segments of one name, such as several metastases, are of one class."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for segment in segments:
        masks[segment.name] = masks[segment.name] | segment.mask if segment.name in masks else segment.mask
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
    """

    name: str
    classes: tuple[str, ...]
    features: VoxelFeatures
    shares: Tensor
    plane: Plane

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
    yield Support(case.name, names, features, shares, plane)


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
