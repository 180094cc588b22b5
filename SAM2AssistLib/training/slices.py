"""Training samples: a slice (or a clip of slices) of a labelled CT through a random view, with all regions it shows.

Views are cut exactly as the engine cuts them (`SAM2AssistLib.engine.views`): the whole slice, or a focus crop around
a region. What varies besides is MONAI's: turns, scale, mirroring, blur, noise; and the window. Every random choice
follows from the sample's key, so that a sample is the same whatever process makes it, in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Transform,
)
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from SAM2AssistLib.engine.appearance import Channels, to_channels
from SAM2AssistLib.engine.views import View, cut, square_around
from SAM2AssistLib.errors import InputError, SAM2AssistError
from SAM2AssistLib.training.datasets.case import Case, LabelledCT, read_labelled
from SAM2AssistLib.volume import Window

AIR_HU = -1000.0
LEAST_PIXELS = 20
"""Of a region in the network's input; less is three pixels of the mask's own grid, and nothing to learn from."""
SMALLEST_VIEW_MM = 48.0
WHOLE_SHARE = 0.5
"""How often a sample shows the whole slice; else a crop, between the focus crops of small structures and the slice."""


@dataclass(frozen=True)
class SampleKey:
    """Which sample, and how it is to be made.

    Attributes
    ----------
    sample : its place in the index.
    seed, epoch : from which, with the place, all random choices follow.
    slices : 1, or T of a clip.
    weight : in the loss.
    """

    sample: int
    seed: int
    epoch: int
    slices: int = 1
    weight: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes
    ----------
    key : what it was made from.
    images : (T, 3, S, S) float32, normalised.
    masks : (T, R, S, S) bool; every region is in the first slice.
    labels : of the R regions.
    """

    key: SampleKey
    images: Tensor
    masks: Tensor
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Appearance:
    """How a model sees a slice, and by how much training varies it.

    Attributes
    ----------
    image_size : side S of the network's input.
    window, channels : as the engine will use them.
    varied : whether views, shapes and contrasts vary (training) or are the same every time (validation).
    """

    image_size: int
    window: Window
    channels: Channels
    varied: bool = True


@dataclass(frozen=True)
class SliceIndex:
    """All axial slices that show something.

    Attributes
    ----------
    cases : place of the case of each sample.
    slices : index k of each sample.
    labels : labels that each sample shows.
    """

    cases: tuple[int, ...]
    slices: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.cases)


class CaseStore:
    """Labelled CT by place, kept in memory as far as a budget goes (by MONAI's cache), else read again when needed.

    Parameters
    ----------
    cases : from files.
    names : label by structure, in which the files are read; structures that are not among them are left out.
    made : volumes that are in memory already, such as phantoms; their places follow those of the cases. They may show
        other structures besides.
    budget_bytes : of memory for volumes from files.

    Attributes
    ----------
    notes : what the user should know of the images, a sentence each.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        names: Mapping[str, int],
        made: Sequence[LabelledCT] = (),
        *,
        budget_bytes: int = 4 << 30,
    ) -> None:
        self.made = list(made)
        self.names = dict(names)
        self.bytes_held = sum(volume.size_bytes for volume in self.made)
        self._files = len(cases)
        sizes = np.cumsum([_announced_bytes(case) for case in cases])
        kept = int((sizes <= budget_bytes).sum())
        self.bytes_held += int(sizes[kept - 1]) if kept else 0
        with _own_errors():
            self._cache = CacheDataset(
                list(cases), _Reading(self.names), cache_num=kept, num_workers=None, progress=False, copy_cache=False
            )
        # One pass over all volumes, which also finds what does not fit together.
        self.pixels: list[NDArray[np.int64]] = []
        self.checksums: list[int] = []
        self.notes: list[str] = []
        for place in range(len(self)):
            volume = self[place]
            self.pixels.append(volume.pixels())
            # What was made follows from the settings; files may be replaced by others of the same name.
            self.checksums += [volume.checksum] if place < self._files else []
            self.notes += volume.volume.warnings

    def __len__(self) -> int:
        return self._files + len(self.made)

    def __getitem__(self, place: int) -> LabelledCT:
        if place >= self._files:
            return self.made[place - self._files]
        with _own_errors():
            return self._cache[place]

    def index(self, *, may_be_empty: bool = False) -> SliceIndex:
        """List the slices that show at least `LEAST_PIXELS` of some structure.

        Raises
        ------
        InputError
            If there is none, unless there may be none.
        """
        cases: list[int] = []
        slices: list[int] = []
        labels: list[tuple[int, ...]] = []
        for place, pixels in enumerate(self.pixels):
            for k, counts in enumerate(pixels):
                shown = np.flatnonzero(counts[1:] >= LEAST_PIXELS) + 1
                if len(shown):
                    cases.append(place)
                    slices.append(k)
                    labels.append(tuple(shown.tolist()))
        if not cases and not may_be_empty:
            raise InputError("None of the training volumes shows a labelled structure; check the labels.")
        return SliceIndex(tuple(cases), tuple(slices), tuple(labels))


class _Reading(Transform):
    """Reads a case; a class of MONAI's, for what a plain function gives is not kept by its cache."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self.names = names

    def __call__(self, case: Case) -> LabelledCT:
        return read_labelled(case, self.names)


class SliceSamples(Dataset):
    """Makes samples from keys.

    Parameters
    ----------
    store, index : the volumes and their slices.
    appearance : how they are shown.
    most_regions : a sample has at most this many, chosen at random.
    """

    def __init__(self, store: CaseStore, index: SliceIndex, appearance: Appearance, most_regions: int) -> None:
        self.store, self.index, self.appearance, self.most_regions = store, index, appearance, most_regions
        self._vary = Compose(
            [
                RandAffined(
                    keys=("images", "labels"),
                    prob=0.8,
                    rotate_range=math.radians(12),
                    scale_range=(0.1, 0.1),
                    mode=("bilinear", "nearest"),
                    padding_mode="border",
                ),
                RandFlipd(keys=("images", "labels"), prob=0.5, spatial_axis=1),
                RandGaussianSmoothd(keys="images", prob=0.2, sigma_x=(0.4, 1.2), sigma_y=(0.4, 1.2)),
                RandGaussianNoised(keys="images", prob=0.4, std=20.0),
            ]
        )

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = np.random.default_rng([key.seed, key.epoch, key.sample])
        volume = self.store[self.index.cases[key.sample]]
        places = self._places(key, volume, rng)
        # A crop may leave too little of every region; then try another, and at last the anchor's own.
        for _ in range(3):
            sample = self._through(self._view(volume, places[0], key, rng, tight=False), volume, places, key, rng)
            if sample is not None:
                return sample
        sample = self._through(self._view(volume, places[0], key, rng, tight=True), volume, places, key, None)
        if sample is not None:
            return sample
        # Small pieces far apart are next to nothing in a view of them all. A correct label must not end a run, so the
        # largest piece is shown, and taken however small it is.
        sample = self._through(self._view_of_a_piece(volume, places[0], key, rng), volume, places, key, None, least=1)
        assert sample is not None  # the view holds a pixel of the anchor, and does not shrink it
        return sample

    def _places(self, key: SampleKey, volume: LabelledCT, rng: np.random.Generator) -> list[int]:
        """Choose T slices, 1 to 6 mm apart, from the sample's own up or down; beyond the volume its last repeats."""
        start, last = self.index.slices[key.sample], volume.volume.array.shape[0] - 1
        step = max(1, round(rng.uniform(1.0, 6.0) / volume.spacing_kji[0])) * (1 if rng.random() < 0.5 else -1)
        return [min(max(start + step * t, 0), last) for t in range(key.slices)]

    def _view(self, volume: LabelledCT, k: int, key: SampleKey, rng: np.random.Generator, *, tight: bool) -> View:
        rows, columns = volume.labels.shape[1:]
        _, row_mm, column_mm = volume.spacing_kji
        whole_mm = max(rows * row_mm, columns * column_mm)
        anchor = self._anchor(volume, k, key, rng)
        ys, xs = np.flatnonzero(anchor.any(1)), np.flatnonzero(anchor.any(0))
        extent_mm = max((ys[-1] - ys[0] + 1) * row_mm, (xs[-1] - xs[0] + 1) * column_mm)
        centre = np.array([(ys[0] + ys[-1]) / 2, (xs[0] + xs[-1]) / 2])
        least_mm = min(max(SMALLEST_VIEW_MM, 1.25 * extent_mm), whole_mm)
        if tight:
            side_mm = least_mm
        elif not self.appearance.varied or rng.random() < WHOLE_SHARE:
            side_mm, centre = whole_mm, np.array([(rows - 1) / 2, (columns - 1) / 2])
        else:
            side_mm = math.exp(rng.uniform(math.log(least_mm), math.log(max(least_mm, whole_mm))))
            slack = max(0.0, side_mm - extent_mm) / 2
            centre = centre + rng.uniform(-0.6, 0.6, 2) * slack / np.array([row_mm, column_mm])
        return square_around((centre[0], centre[1]), side_mm, (row_mm, column_mm))

    def _view_of_a_piece(self, volume: LabelledCT, k: int, key: SampleKey, rng: np.random.Generator) -> View:
        """See the largest connected piece of a region, from so near that no pixel of it is skipped."""
        _, row_mm, column_mm = volume.spacing_kji
        pieces, count = ndimage.label(self._anchor(volume, k, key, rng))
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:]))
        ys, xs = np.nonzero(pieces == largest)
        extent_mm = max(np.ptp(ys) * row_mm + row_mm, np.ptp(xs) * column_mm + column_mm)
        side_mm = min(max(SMALLEST_VIEW_MM, 1.25 * extent_mm), self.appearance.image_size * min(row_mm, column_mm))
        # The middle of a bent piece may be beside it.
        middle = np.argmin(np.hypot((ys - ys.mean()) * row_mm, (xs - xs.mean()) * column_mm))
        return square_around((int(ys[middle]), int(xs[middle])), side_mm, (row_mm, column_mm))

    def _anchor(self, volume: LabelledCT, k: int, key: SampleKey, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Choose the region that a view is laid around."""
        labels = self.index.labels[key.sample]
        return volume.labels[k] == labels[int(rng.integers(len(labels)))]

    def _through(
        self,
        view: View,
        volume: LabelledCT,
        places: Sequence[int],
        key: SampleKey,
        rng: np.random.Generator | None,
        least: int = LEAST_PIXELS,
    ) -> Sample | None:
        """Show slices through a view, varied if there is a source of chance; None if less than that is to be seen."""
        size = self.appearance.image_size
        offsets = self.appearance.channels.offsets if self.appearance.channels.needs_neighbours else (0,)
        last = len(volume.labels) - 1
        shown = [min(max(k + offset, 0), last) for k in places for offset in offsets]
        hu = torch.stack([cut(volume.volume.array[k], view, size, AIR_HU) for k in shown])
        marks = torch.stack([_cut_labels(volume.labels[k], view, size) for k in places])
        if rng is not None and self.appearance.varied:
            self._vary.set_random_state(seed=int(rng.integers(2**31)))
            # Air is 0 meanwhile, so that what is turned in from outside is air.
            varied = self._vary({"images": hu - AIR_HU, "labels": marks.float()})
            hu, marks = _plain(varied["images"]) + AIR_HU, _plain(varied["labels"]).round().to(torch.uint8)
        masks, labels = self._regions(marks, key, least)
        if not labels:
            return None
        if len(offsets) > 1:
            hu = hu.unflatten(0, (len(places), len(offsets)))
        window = self.appearance.window
        level, width = window.level, window.width
        if rng is not None and self.appearance.varied:
            level, width = level + rng.normal(0, 0.06) * width, width * math.exp(rng.normal(0, 0.12))
        return Sample(key, to_channels(hu, level, width, self.appearance.channels), masks, labels)

    def _regions(self, marks: Tensor, key: SampleKey, least: int) -> tuple[Tensor, tuple[int, ...]]:
        counts = torch.bincount(marks[0].flatten().long(), minlength=256)
        # Only what the index knows to be there: CBDP keeps scores of these.
        shown = [label for label in self.index.labels[key.sample] if int(counts[label]) >= least]
        if len(shown) > self.most_regions:
            rng = np.random.default_rng([key.seed, key.epoch, key.sample, 1])
            shown = sorted(rng.choice(shown, self.most_regions, replace=False).tolist())
        if not shown:
            return torch.zeros(len(marks), 0, *marks.shape[1:], dtype=torch.bool), ()
        return torch.stack([marks == label for label in shown], dim=1), tuple(shown)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let through the sentence that says what is wrong with a file; MONAI wraps it into an error of its own."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, SAM2AssistError):
            raise error.__cause__ from None
        raise


def _announced_bytes(case: Case) -> int:
    """Tell how much memory a case will take by its header: int16 HU and uint8 labels."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(case.image))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{case.image} is not an image that can be read; take it out of the data.") from error
    return math.prod(reader.GetSize()) * 3


def _cut_labels(labels: NDArray[np.uint8], view: View, size: int) -> Tensor:
    """Cut labels as `cut` cuts HU, taking the nearest pixel."""
    patch = torch.zeros(view.rows, view.columns, dtype=torch.uint8)
    top, left = max(0, view.row), max(0, view.column)
    piece = labels[top : view.row + view.rows, left : view.column + view.columns]
    patch[top - view.row :, left - view.column :][: piece.shape[0], : piece.shape[1]] = torch.from_numpy(piece.copy())
    return F.interpolate(patch[None, None].float(), size=(size, size), mode="nearest-exact")[0, 0].to(torch.uint8)


def _plain(image: Tensor) -> Tensor:
    # MONAI keeps a history of transforms with its tensors, which nobody needs here.
    return image.as_tensor() if hasattr(image, "as_tensor") else image


class KeyBatches:
    """Hands batches of keys to a data loader, in the order in which they are trained on."""

    def __init__(self, batches: Sequence[Sequence[SampleKey]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Sequence[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
