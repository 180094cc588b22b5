"""The images that a DICOM object derived from them refers to, and the grid they lie on."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS, read_dicom
from SAM2AssistLib.io._image_grid import ImageGrid, frame_grids, grid_of, is_enhanced, text_in

# Of type 1 in what is derived from an image (PS3.3 A.51). Anonymizers empty them; such a series gets others in its
# derived object, always the same for the same images.
_GROUPING = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")

# Of type 2: may be empty but not absent, which anonymizers forget.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)

# Those among them that highdicom parses, and refuses where an anonymizer wrote "unknown" or zeros.
_HAVE_TO_PARSE: dict[str, Callable[[str], Any]] = {
    "PatientBirthDate": DA,
    "PatientSex": ("", "F", "M", "O").index,
    "StudyDate": DA,
    "StudyTime": TM,
}

# Part of a voxel by which grids may differ through rounding and still be the same.
_SAME_WITHIN_VOXELS = 0.05


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The source images of a derived object, without their pixels.

    Attributes
    ----------
    datasets : tuple of Dataset
        Single-frame images in the order of the slices, or one enhanced multi-frame image.
    frame_of_slice : tuple of int
        For each slice its frame, from 0, in an enhanced image; for single frames its place in `datasets`.
    ijk_to_lps : ndarray, shape (4, 4)
        Grid of the images, slices in ascending order along their normal.
    shape_kji : tuple of int
        Slices, rows and columns.
    notes : tuple of str
        What the user should know about them, one sentence each.
    """

    datasets: tuple[Dataset, ...]
    frame_of_slice: tuple[int, ...]
    ijk_to_lps: NDArray[np.float64]
    shape_kji: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Dataset:
        """The header from which patient, study and frame of reference are taken."""
        return self.datasets[0]

    @property
    def step_mm(self) -> float:
        """Distance of slices in mm."""
        return float(np.linalg.norm(self.ijk_to_lps[:3, 2]))

    @property
    def series_number(self) -> int:
        """Number of the series, 0 where the headers tell none or something else."""
        try:
            return int(self.first.get("SeriesNumber") or 0)
        except (TypeError, ValueError):
            return 0


def read_sources(files: Sequence[Path]) -> SourceSeries:
    """Read the headers of the images of one series.

    Parameters
    ----------
    files : sequence of Path
        In any order; a file that is named several times, as an enhanced one is for each of its slices, counts once.

    Raises
    ------
    InputError
        If a file is gone or damaged, they belong to several patients, studies or series, or lack what a derived object
        has to refer to.
    """
    unique = list(dict.fromkeys(Path(file) for file in files))
    if not unique:
        raise InputError("There are no DICOM source images to refer to; give the folder of the series.")
    datasets = [_header(path) for path in unique]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values; those that matter are told below
        for path, dataset in zip(unique, datasets, strict=True):
            _complete(path, dataset)
        emptied = _empty_impossible(datasets)
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies"), ("SeriesInstanceUID", "series")):
        if len({str(dataset.get(keyword, "")) for dataset in datasets}) > 1:
            raise InputError(f"The source images belong to several {what}; give the images of one series.")
    notes = (*_fill_grouping(datasets), *emptied)
    if is_enhanced(datasets[0]):
        if len(datasets) > 1:
            raise InputError("The source is several enhanced multi-frame images; give one of them.")
        found = _enhanced(unique[0], datasets[0])
    else:
        found = _stack(unique, datasets)
    _drop_unreadable(found.first)
    return replace(found, notes=notes)


def same_grid(
    first_ijk_to_lps: NDArray[np.float64], second_ijk_to_lps: NDArray[np.float64], shape_kji: tuple[int, int, int]
) -> bool:
    """Whether two matrices place all voxels of a grid at the same points, but for rounding."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape_kji[::-1]])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.solve(second_ijk_to_lps, first_ijk_to_lps @ corners) - corners
    return bool(np.abs(apart).max() <= _SAME_WITHIN_VOXELS)


def _header(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_dicom(path)
        except FileNotFoundError as error:
            raise InputError(f"The source image {path.name} is not there any more; give the folder again.") from error
        except PARSE_ERRORS:
            raise InputError(f"The source image {path.name} is damaged: its header cannot be read.") from None


def _complete(path: Path, dataset: Dataset) -> None:
    """Give a header the identity that its file meta information tells, and the empty elements that it forgot."""
    for keyword, in_meta in (
        ("SOPClassUID", "MediaStorageSOPClassUID"),
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
    ):
        told = dataset.get(keyword) or dataset.file_meta.get(in_meta)
        if not told:
            raise InputError(
                f"The source image {path.name} has no {keyword}, so that nothing can refer to it; export the series "
                "again from its archive, or write a .seg.nrrd."
            )
        setattr(dataset, keyword, told)
    for keyword in _MAY_BE_EMPTY:
        value = dataset.get(keyword, "")
        if isinstance(value, MultiValue):  # each has one
            value = text_in(dataset, keyword)
        setattr(dataset, keyword, "" if value is None else value)


def _fill_grouping(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Make up what an anonymizer took that every DICOM object must have, and say so."""
    absent = [keyword for keyword in _GROUPING if not datasets[0].get(keyword)]
    instances = sorted(str(dataset.SOPInstanceUID) for dataset in datasets)
    for keyword in absent:
        made_up = generate_uid(entropy_srcs=[keyword, *instances])
        for dataset in datasets:
            setattr(dataset, keyword, made_up)
    if not absent:
        return ()
    return (
        f"The source images have no {' and no '.join(absent)}, as after anonymization, so that the DICOM object refers "
        "to them only image by image.",
    )


def _empty_impossible(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Empty what does not say anything in its VR, and say which elements that are, but not what was in them."""
    emptied = []
    for keyword, parse in _HAVE_TO_PARSE.items():
        for dataset in datasets:
            try:
                parse(str(dataset[keyword].value))
            except ValueError:
                setattr(dataset, keyword, "")
                emptied.append(keyword)
    if not emptied:
        return ()
    names = " and no valid ".join(dict.fromkeys(emptied))
    return (f"The source images have no valid {names}, as after anonymization, so that the result has none.",)


def _drop_unreadable(dataset: Dataset) -> None:
    """Take out damaged elements: all that the first image says of patient and study is copied to the result."""
    for tag in list(dataset.keys()):
        try:
            dataset[tag]  # parses it
        except PARSE_ERRORS:
            del dataset[tag]


def _stack(paths: Sequence[Path], datasets: Sequence[Dataset]) -> SourceSeries:
    """Single-frame images in the order of their slices, with one orientation and slice distance in all of them."""
    grids: list[ImageGrid] = []
    for path, dataset in zip(paths, datasets, strict=True):
        grid = grid_of(dataset)
        if grid is None:
            raise InputError(f"The source image {path.name} does not say where it lies; export its series again.")
        grids.append(grid)
    order, matrix = _sorted(grids)
    arranged = [datasets[index] for index in order]
    shape = (len(arranged), int(arranged[0].Rows), int(arranged[0].Columns))
    for dataset in arranged:
        if (dataset.Rows, dataset.Columns) != shape[1:]:
            raise InputError("The source images have several sizes; give those of one stack.")
        # Rounding that differs from file to file makes a stack of several orientations for strict readers.
        dataset.ImageOrientationPatient = arranged[0].ImageOrientationPatient
    _tell_distance(arranged[0], matrix)
    return SourceSeries(tuple(arranged), tuple(range(len(arranged))), matrix, shape)


def _enhanced(path: Path, dataset: Dataset) -> SourceSeries:
    grids = frame_grids(dataset)
    if grids is None:
        raise InputError(f"The source image {path.name} does not say where its frames lie; export it again.")
    order, matrix = _sorted(grids)
    if not dataset.get("SharedFunctionalGroupsSequence"):
        dataset.SharedFunctionalGroupsSequence = [Dataset()]  # readers of enhanced images look for it
    shared = dataset.SharedFunctionalGroupsSequence[0]
    first = dataset.PerFrameFunctionalGroupsSequence[0]
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if keyword not in shared and keyword in first:
            setattr(shared, keyword, copy.deepcopy(first[keyword].value))
    _tell_distance(shared.PixelMeasuresSequence[0], matrix)
    return SourceSeries((dataset,), tuple(order), matrix, (len(grids), int(dataset.Rows), int(dataset.Columns)))


def _sorted(grids: Sequence[ImageGrid]) -> tuple[list[int], NDArray[np.float64]]:
    """Order of images along their normal, and the matrix from voxel indices (i, j, k) to LPS mm in that order."""
    first = grids[0]
    positions = np.array([grid.position_lps for grid in grids])
    distances = positions @ first.normal_lps
    order = [int(index) for index in np.argsort(distances, kind="stable")]
    span = float(distances.max() - distances.min())
    step = span / (len(grids) - 1) if len(grids) > 1 and span > 0 else 1.0
    matrix = np.eye(4)
    axes = np.column_stack([first.direction_i, first.direction_j, first.normal_lps])
    matrix[:3, :3] = axes * np.array([first.column_spacing, first.row_spacing, step])
    matrix[:3, 3] = positions[order[0]]
    return order, matrix


def _tell_distance(dataset: Dataset, matrix: NDArray[np.float64]) -> None:
    """Set what the derived object copies: some scanners write no thickness, or overlap slices without saying."""
    step = round(float(np.linalg.norm(matrix[:3, 2])), 6)
    if not _is_above_zero(dataset.get("SliceThickness")):
        dataset.SliceThickness = step
    dataset.SpacingBetweenSlices = step


def _is_above_zero(value: object) -> bool:
    """Whether a value of an element is a number above 0: some programs write "3,0"."""
    try:
        return 0 < float(str(value)) < math.inf
    except ValueError:
        return False
