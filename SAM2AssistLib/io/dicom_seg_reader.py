"""Read the segments of a DICOM Segmentation: binary, fractional or label map, by whoever wrote it.

Frames are placed by their positions and not by their numbers, because writers leave out empty frames and order them as
they like (PS3.3 C.7.6.16, C.8.20).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS
from SAM2AssistLib.io._dicom_segments import name_of, terminology_in
from SAM2AssistLib.io._image_grid import ImageGrid, frame_grids, functional_group
from SAM2AssistLib.io.dicom_seg import PRIVATE_CREATOR, PRIVATE_GROUP, PROMPTS_ELEMENT
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.volume import MAX_SHEAR_COSINE, CTVolume

SEGMENTATION_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation Storage and Label Map Segmentation Storage (PS3.4 B.5)."""

# Part of the slice distance by which a frame may be off the even grid: positions are written with few decimals.
_OFF_GRID_PART = 0.05

# Frames closer than this are at the same position.
_SAME_POSITION_MM = 0.01

_MOST_SLICES = 20_000


@dataclass(frozen=True, eq=False)
class DicomSeg:
    """A DICOM Segmentation as it is in its file.

    Attributes
    ----------
    masks : list of NamedMask
        In the order of segment numbers, all on one grid.
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) of the masks to LPS mm; the grid reaches from the first frame to the last.
    frame_of_reference_uid, series_uid : str
        What it lies in, and the series it was drawn on; empty if not told.
    source_uids : frozenset of str
        SOPInstanceUID of each image it refers to.
    prompts_json : str
        The prompts that led to it, if this program wrote it with them, else empty.
    """

    masks: list[NamedMask]
    ijk_to_lps: NDArray[np.float64]
    frame_of_reference_uid: str
    series_uid: str
    source_uids: frozenset[str]
    prompts_json: str


def read_dicom_seg(path: str | Path) -> DicomSeg:
    """Read a DICOM Segmentation.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    DicomSeg
        A fractional segment is taken where it is at least half.

    Raises
    ------
    InputError
        If the file is damaged, truncated, no segmentation, or its frames form no even grid.
    """
    path = Path(path)
    dataset = read_dataset(path)
    with damage_told(path):
        return _read(path, dataset)


def _read(path: Path, dataset: Dataset) -> DicomSeg:
    if str(dataset.get("SOPClassUID") or "") not in SEGMENTATION_CLASSES:
        raise InputError(f"{path.name} is a DICOM object but no segmentation; give a DICOM-SEG or a .seg.nrrd.")
    descriptions = _descriptions(path, dataset)
    grids = frame_grids(dataset)
    count = int(dataset.get("NumberOfFrames") or 0)
    if grids is None or len(grids) != count:
        raise InputError(f"{path.name} does not say where each of its frames lies; write it again.")
    slices, matrix, depth = _placed(path, dataset, grids)
    arrays = _arrays(path, dataset, slices, sorted(descriptions), depth)
    masks = [
        NamedMask(name_of(item), arrays[number], terminology_in(item), str(item.get("TrackingUID") or ""))
        for number, item in sorted(descriptions.items())
    ]
    series, instances = _references(dataset)
    return DicomSeg(masks, matrix, str(dataset.get("FrameOfReferenceUID") or ""), series, instances, _prompts(dataset))


def read_dataset(path: Path) -> Dataset:
    """Read a DICOM object whole; its elements are parsed when they are asked for, within `damage_told`.

    Raises
    ------
    InputError
        If it is not there or not DICOM, or is damaged.
    """
    if not path.is_file():
        raise InputError(f"The DICOM file {path} is not there; check the path.")
    with damage_told(path):
        return pydicom.dcmread(path)


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Make one sentence of whatever pydicom raises on elements that are damaged, without the warnings before it.

    Raises
    ------
    InputError
        In place of these exceptions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except PARSE_ERRORS:
            raise InputError(f"{path.name} is damaged, truncated or no DICOM file; copy it again.") from None


def image_header(volume: CTVolume) -> Dataset:
    """Read frame of reference and series of a volume that was read from DICOM files, from its first image."""
    image = volume.dicom_files[0]
    with damage_told(image):
        # By force, because the images of a volume may lack the preamble.
        tags = ["FrameOfReferenceUID", "SeriesInstanceUID"]
        return pydicom.dcmread(image, stop_before_pixels=True, force=True, specific_tags=tags)


def _descriptions(path: Path, dataset: Dataset) -> dict[int, Dataset]:
    """Items of the Segment Sequence by their numbers; 0 is the background of a label map."""
    found = {int(item.get("SegmentNumber") or 0): item for item in dataset.get("SegmentSequence") or []}
    found.pop(0, None)
    if not found:
        raise InputError(f"{path.name} describes no segment, so it is no segmentation that can be opened.")
    return found


def _placed(
    path: Path, dataset: Dataset, grids: Sequence[ImageGrid]
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Slice number of each frame, the matrix from voxel indices (i, j, k) to LPS mm, and the number of slices."""
    first = grids[0]
    if any(not np.allclose(grid.numbers, first.numbers, rtol=0, atol=1e-3) for grid in grids):
        raise InputError(f"{path.name} mixes frames of several orientations or spacings, which is no volume.")
    positions = np.array([grid.position_lps for grid in grids])
    along = positions @ first.normal_lps
    lowest = int(np.argmin(along))
    distances = along - along[lowest]
    slip = positions - positions[lowest] - distances[:, None] * first.normal_lps
    if np.linalg.norm(slip, axis=1).max() > max(_SAME_POSITION_MM, MAX_SHEAR_COSINE * distances.max()):
        raise InputError(f"{path.name} has frames that slip sideways, which form no rectangular grid.")
    step = _step(path, dataset, distances)
    slices = np.rint(distances / step).astype(np.int64)
    depth = int(slices.max()) + 1
    if depth > _MOST_SLICES:
        raise InputError(f"{path.name} announces {depth} slices; its frame positions are damaged.")
    matrix = np.eye(4)
    axes = np.column_stack([first.direction_i, first.direction_j, first.normal_lps])
    matrix[:3, :3] = axes * np.array([first.column_spacing, first.row_spacing, step])
    matrix[:3, 3] = positions[lowest]
    return slices, matrix, depth


def _step(path: Path, dataset: Dataset, distances: NDArray[np.float64]) -> float:
    """The slice distance that all frames are multiples of: as told, else the thickness, else the smallest gap."""
    measures = functional_group(dataset, 0, "PixelMeasuresSequence")
    gaps = np.diff(np.unique(distances))
    gaps = gaps[gaps > _SAME_POSITION_MM]
    # The mean of the smallest gaps, which rounding of positions makes a little different.
    smallest = float(gaps[gaps < 1.5 * gaps.min()].mean()) if gaps.size else 0.0
    told = [float(measures.get(keyword) or 0) for keyword in ("SpacingBetweenSlices", "SliceThickness")]
    if not gaps.size:
        return next((value for value in told if value > 0), 1.0)
    # The smallest gap comes last: between lesions far apart it is many slices, which would be filled.
    for step in (*told, smallest):
        if step > _SAME_POSITION_MM:
            refined = _refined(distances, step)
            if np.abs(distances / refined - np.rint(distances / refined)).max() <= _OFF_GRID_PART:
                return refined
    raise InputError(f"{path.name} has frames at uneven distances, which form no grid; resample it first.")


def _refined(distances: NDArray[np.float64], step: float) -> float:
    """A told slice distance, without the rounding that would add up over many slices."""
    steps = np.rint(distances.max() / step)
    better = float(distances.max() / steps) if steps else step
    return better if abs(better - step) <= _OFF_GRID_PART * step else step


def _arrays(
    path: Path, dataset: Dataset, slices: NDArray[np.int64], numbers: Sequence[int], depth: int
) -> dict[int, NDArray[np.bool_]]:
    """Mask (k, j, i) of each segment number."""
    shape = (depth, int(dataset.Rows), int(dataset.Columns))
    # Zeros take memory only where something is written, so sparse segments cost little.
    arrays = {number: np.zeros(shape, np.bool_) for number in numbers}
    kind = str(dataset.get("SegmentationType") or "BINARY")
    threshold = (int(dataset.get("MaximumFractionalValue") or 255) + 1) // 2 if kind == "FRACTIONAL" else 1
    for frame, plane in enumerate(_frames(path, dataset, len(slices))):
        index = slices[frame]
        if kind == "LABELMAP":
            for number in set(np.unique(plane).tolist()) & set(numbers):
                arrays[number][index] |= plane == number
            continue
        group = functional_group(dataset, frame, "SegmentIdentificationSequence")
        number = int(group.get("ReferencedSegmentNumber") or 0)
        if number not in arrays:
            raise InputError(f"{path.name} has a frame of segment {number}, which it does not describe; it is damaged.")
        arrays[number][index] |= np.asarray(plane >= threshold)
    return arrays


def _frames(path: Path, dataset: Dataset, count: int) -> Iterator[NDArray[Any]]:
    """Decode frames one by one, each (j, i): all of them at once would take a byte per voxel and segment."""
    is_packed = int(dataset.BitsAllocated) == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    decoded = 0
    try:
        for plane in _unpacked(dataset, count) if is_packed else iter_pixels(dataset):
            decoded += 1
            yield plane
    except (*PARSE_ERRORS, RuntimeError):
        raise InputError(
            f"{path.name} cannot be decoded: its pixels are truncated or compressed in a way that is not supported."
        ) from None
    if decoded != count:
        raise InputError(f"{path.name} holds {decoded} frames where {count} are announced; copy it again.")


def _unpacked(dataset: Dataset, count: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of one bit per pixel, which follow one another without padding (PS3.5, 8.1.1).

    pydicom's own iteration fails where a frame does not begin on a whole byte.
    """
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = int(dataset.Rows) * int(dataset.Columns)
    for frame in range(count):
        first = frame * size
        bits = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(int(dataset.Rows), int(dataset.Columns))


def _references(dataset: Dataset) -> tuple[str, frozenset[str]]:
    series = list(dataset.get("ReferencedSeriesSequence") or [])
    uids = {
        str(item.get("ReferencedSOPInstanceUID"))
        for one in series
        for item in one.get("ReferencedInstanceSequence") or []
    }
    return str(series[0].get("SeriesInstanceUID") or "") if series else "", frozenset(uids)


def _prompts(dataset: Dataset) -> str:
    try:
        block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
        return str(block[PROMPTS_ELEMENT].value)
    except KeyError:
        return ""
