"""A data set as cases, each an image and its labels, whatever the layout on disk; and reading one case."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.itk_image import ijk_to_lps_of, read_label_image
from SAM2AssistLib.volume import CTVolume

MOST_LABELS = 255
"""Label maps are kept as uint8: 0 and this many structures."""
GRID_TOLERANCE_MM = 0.1
"""NIfTI keeps matrices in single precision, and tools round spacings; labels further off are of another grid."""


@dataclass(frozen=True)
class Case:
    """One patient's CT and where its labels are.

    Attributes
    ----------
    name : of the case, unique in its data set.
    image : the CT.
    label_map : one file with a value per structure, or None where there are `masks`.
    values : which structure a value of the label map is; values that are not among them are an error.
    masks : one file per structure, which is where it is not 0.
    patient : cases of one patient stay in one part of a split; the name of the case if not told.
    """

    name: str
    image: Path
    label_map: Path | None = None
    values: Mapping[int, str] = field(default_factory=dict)
    masks: Mapping[str, Path] = field(default_factory=dict)
    patient: str = ""

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures it can hold."""
        return tuple(self.masks) or tuple(self.values.values())


@dataclass(frozen=True)
class DataSet:
    """Cases of one layout.

    Attributes
    ----------
    layout : how it is laid out, such as "FLARE22".
    root : its folder.
    cases : sorted by name.
    split : the publisher's parts as names of cases by "train", "val" and "test"; empty if none was published.
    """

    layout: str
    root: Path
    cases: tuple[Case, ...]
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a data set without cases or with more structures than a label map holds.

        Raises
        ------
        InputError
            If that is so, or two cases have one name.
        """
        if not self.cases:
            raise InputError(f"{self.root} looks like {self.layout} but holds no image with labels; check the folder.")
        names = [case.name for case in self.cases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.root} holds two cases called {twice!r}; rename one.")
        if len(self.names) > MOST_LABELS:
            raise InputError(f"{self.root} has {len(self.names)} structures; choose {MOST_LABELS} of them at most.")

    @functools.cached_property
    def names(self) -> dict[str, int]:
        """Label by structure, in which all its cases are read: those of the files where these agree, else 1, 2, ..."""
        given: dict[str, int] = {}
        agree = True
        for case in self.cases:
            for value, name in case.values.items():
                agree = agree and given.setdefault(name, value) == value
            agree = agree and not case.masks
        if agree and len(set(given.values())) == len(given) and max(given.values(), default=0) <= MOST_LABELS:
            return dict(sorted(given.items(), key=lambda item: item[1]))
        every = sorted({name for case in self.cases for name in case.structures})
        return {name: value for value, name in enumerate(every, 1)}

    def case(self, name: str) -> Case:
        """Return the case of a name.

        Raises
        ------
        InputError
            If there is none.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise InputError(f"{self.root} has no case {name!r}; check its splits.json.")


@dataclass(frozen=True, eq=False)
class LabelledCT:
    """A CT and its label map on one grid.

    Attributes
    ----------
    name : of the case.
    volume : the CT.
    labels : (k, j, i) uint8, values as in the data set's `names`; 0 is everything else.
    """

    name: str
    volume: CTVolume
    labels: NDArray[np.uint8]

    @property
    def spacing_kji(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array axes."""
        i, j, k = np.linalg.norm(self.volume.ijk_to_lps[:3, :3], axis=0)
        return float(k), float(j), float(i)

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds."""
        return self.volume.array.nbytes + self.labels.nbytes

    @property
    def checksum(self) -> int:
        """By which voxels, labels and their place are known again."""
        parts = (self.volume.array, self.labels, self.volume.ijk_to_lps)
        return functools.reduce(lambda found, part: zlib.crc32(np.ascontiguousarray(part).data, found), parts, 0)

    def pixels(self) -> NDArray[np.int64]:
        """Count the pixels of every label in every axial slice, (k, 256)."""
        return np.stack([np.bincount(section.ravel(), minlength=MOST_LABELS + 1) for section in self.labels])


def read_labelled(case: Case, names: Mapping[str, int]) -> LabelledCT:
    """Read a case, refusing what does not fit together.

    Parameters
    ----------
    case : which.
    names : label by structure, see `DataSet.names`; structures that are not among them are left out.

    Raises
    ------
    InputError
        Naming the file, if one cannot be read, is on another grid than its image, or has values of no structure.
    """
    volume = CTVolume.read(case.image)
    labels = np.zeros(volume.array.shape, np.uint8)
    if case.label_map is not None:
        _translate(_array_on_grid(case.label_map, volume), case, names, labels)
    for name, path in case.masks.items():
        if name in names:
            labels[_array_on_grid(path, volume) != 0] = names[name]
    return LabelledCT(case.name, volume, labels)


def _array_on_grid(path: Path, volume: CTVolume) -> NDArray[np.generic]:
    image = read_label_image(path)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{path} has several values per voxel, so it is no label map.")
    shape = image.GetSize()[::-1]
    if shape != volume.array.shape:
        raise InputError(
            f"{path} has {_grid(shape)} voxels and its image {volume.source} has {_grid(volume.array.shape)}; "
            "the labels of another image cannot be used."
        )
    corners = np.array([[i, j, k, 1] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
    apart = np.abs(corners @ (ijk_to_lps_of(image) - volume.ijk_to_lps).T).max()
    if apart > GRID_TOLERANCE_MM:
        raise InputError(
            f"{path} lies up to {apart:.1f} mm off its image {volume.source}; resample the labels onto its grid."
        )
    return sitk.GetArrayFromImage(image)


def _translate(values: NDArray[np.generic], case: Case, names: Mapping[str, int], labels: NDArray[np.uint8]) -> None:
    for value in np.unique(values).tolist():
        if value == 0:
            continue
        if value < 0:
            raise InputError(f"{case.label_map} has the value {value}, but labels are above 0; set its voxels to 0.")
        if value not in case.values:
            raise InputError(
                f"{case.label_map} has the value {value}, which is the label of no structure; add it to labels.json."
            )
        if case.values[value] in names:
            labels[values == value] = names[case.values[value]]


def _grid(shape_kji: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape_kji[::-1]))
