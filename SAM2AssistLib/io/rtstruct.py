"""Segments as an RT Structure Set (PS3.3 A.19): contours around voxels, written and rasterised voxel-equal.

A contour runs halfway between the centres of voxels inside and outside, so that the test whether a centre is inside it
gives back the mask. A hole is joined to the outline around it by a channel of no width, as PS3.3 C.8.8.6.3 describes,
which readers understand whether they fill by the even-odd or by the winding rule.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_segments import label_of
from SAM2AssistLib.io._dicom_sources import SourceSeries, read_sources, same_grid
from SAM2AssistLib.io.algorithm import PROGRAM, Algorithm
from SAM2AssistLib.io.atomic import atomic_path, check_place
from SAM2AssistLib.io.dicom_seg import UTF_8
from SAM2AssistLib.io.dicom_seg_reader import damage_told, read_dataset
from SAM2AssistLib.io.named_mask import NamedMask, check_masks

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

RTSTRUCT_CLASS = str(RTStructureSetStorage)

# DICOM coordinates have at most 16 characters; a tenth of a micrometre is far below the half voxel that counts.
_DECIMALS = 4

# A contour whose points are further than this from the plane of a slice, in slice distances, is not in that slice.
_IN_SLICE_WITHIN = 0.3

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
_SERIES_NUMBER_OFFSET = 2000


def write_rtstruct(
    path: str | Path,
    masks: Sequence[NamedMask],
    volume: CTVolume,
    *,
    source_files: Sequence[Path] | None = None,
    algorithm: Algorithm | None = None,
    description: str = "Structures",
) -> tuple[str, ...]:
    """Write segments as contours in the slices of the images they were drawn on.

    Parameters
    ----------
    path : str or Path
        Where to; a file that was there is replaced in one step, or stays if that fails.
    masks : sequence of NamedMask
        At least one with a voxel, on the grid of the volume.
    volume : CTVolume
        Whose k axis is across the slices of the source images.
    source_files : sequence of Path, optional
        Images of the segmented series in any order; `volume.dicom_files` by default.
    algorithm : Algorithm, optional
        Who made them.
    description : str
        Series description, and label of the structure set.

    Returns
    -------
    tuple of str
        Sentences for the user about what the object could not hold.

    Raises
    ------
    InputError
        If no mask has a voxel, one is not on the grid, the source images do not belong together or are on another
        grid.
    OutputError
        If the file cannot be written.
    """
    check_place(path)
    check_masks(masks, volume.shape_kji)
    if not any(named.mask.any() for named in masks):
        raise InputError("All segments are empty, and an RTSTRUCT without a contour cannot be read by others.")
    sources = read_sources(source_files or volume.dicom_files)
    if volume.shape_kji != sources.shape_kji or not same_grid(volume.ijk_to_lps, sources.ijk_to_lps, volume.shape_kji):
        raise InputError("An RTSTRUCT has its contours in the source images, and the masks are on another grid.")
    dataset = _structure_set(sources, description, algorithm or Algorithm())
    dataset.StructureSetROISequence = [_roi(n, named, sources, algorithm) for n, named in enumerate(masks, 1)]
    dataset.ROIContourSequence = [_contours(n, named, volume, sources) for n, named in enumerate(masks, 1)]
    dataset.RTROIObservationsSequence = [_observation(n, named) for n, named in enumerate(masks, 1)]
    with atomic_path(path) as part:
        dataset.save_as(part, enforce_file_format=True)
    return sources.notes


def read_rtstruct(path: str | Path, volume: CTVolume) -> list[NamedMask]:
    """Rasterise the closed contours of an RT Structure Set on the grid of a volume.

    Parameters
    ----------
    path : str or Path
    volume : CTVolume
        The CT they were drawn on. A voxel is inside where its centre is, and contours within one another make holes.

    Returns
    -------
    list of NamedMask
        Regions of interest with closed contours, in the order of the file.

    Raises
    ------
    InputError
        If the file is damaged, is no structure set or holds no closed contour, or if contours lie outside of the
        volume or across its slices.
    """
    path = Path(path)
    dataset = read_dataset(path)
    with damage_told(path):
        if str(dataset.get("SOPClassUID") or "") != RTSTRUCT_CLASS:
            raise InputError(f"{path.name} is a DICOM object but no RTSTRUCT; give an RT structure set.")
        names = {
            int(item.ROINumber): str(item.get("ROIName") or f"ROI {item.ROINumber}")
            for item in dataset.get("StructureSetROISequence") or []
        }
        masks = []
        for item in dataset.get("ROIContourSequence") or []:
            name = names.get(int(item.ReferencedROINumber), f"ROI {item.ReferencedROINumber}")
            mask = _rasterised(path, name, item, volume)
            if mask is not None:
                masks.append(NamedMask(name, mask))
    if not masks:
        raise InputError(f"{path.name} holds no closed contour, so there is nothing to open.")
    return masks


# ------------------------------------------------------------------------------------------------------------ writing


def _structure_set(sources: SourceSeries, description: str, algorithm: Algorithm) -> Dataset:
    """The object without its regions: who, of which study, on which images."""
    first, now = sources.first, datetime.datetime.now()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    # In explicit VR no list of numbers may be longer than 64 kB (PS3.5, 7.1.2), which long contours are.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SpecificCharacterSet = UTF_8
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate",
        "StudyTime", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    ):  # fmt: skip
        setattr(dataset, keyword, first.get(keyword, ""))
    dataset.PositionReferenceIndicator = first.get("PositionReferenceIndicator") or ""
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    dataset.SeriesNumber = int(first.get("SeriesNumber") or 0) + _SERIES_NUMBER_OFFSET
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = description
    dataset.OperatorsName = ""
    dataset.Manufacturer = dataset.ManufacturerModelName = PROGRAM
    dataset.SoftwareVersions = algorithm.version
    dataset.StructureSetLabel = description[:16]
    dataset.StructureSetDate = dataset.InstanceCreationDate = dataset.SeriesDate = f"{now:%Y%m%d}"
    dataset.StructureSetTime = dataset.InstanceCreationTime = dataset.SeriesTime = f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_image_reference(item) for item in sources.datasets]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _DETACHED_STUDY, first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    return dataset


def _image_reference(image: Dataset, frame: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def _roi(number: int, named: NamedMask, sources: SourceSeries, algorithm: Algorithm | None) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = sources.first.FrameOfReferenceUID
    item.ROIName = label_of(named.name)
    item.ROIGenerationAlgorithm = (algorithm or Algorithm()).segment_algorithm_type
    return item


def _observation(number: int, named: NamedMask) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.ROIObservationLabel = label_of(named.name)[:16]
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    return item


def _contours(number: int, named: NamedMask, volume: CTVolume, sources: SourceSeries) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = number
    item.ROIDisplayColor = [round(255 * part) for part in named.coded.color_rgb]
    contours = []
    for k in np.flatnonzero(named.mask.any(axis=(1, 2))):
        frame = sources.frame_of_slice[int(k)]
        image = _image_reference(sources.first, frame) if len(sources.datasets) == 1 else None
        image = image or _image_reference(sources.datasets[frame])
        for outline_ji in outlines(named.mask[k]):
            points = volume.lps_from_index_ijk(
                np.column_stack([outline_ji[:, 1], outline_ji[:, 0], np.full(len(outline_ji), k)])
            )
            contour = Dataset()
            contour.ContourImageSequence = [image]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            # Numbers as text at once: pydicom would make an object of each, which takes most of the time.
            text = [f"{value:.{_DECIMALS}f}" for value in points.ravel().tolist()]
            contour.add(DataElement("ContourData", "DS", text, already_converted=True))
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def outlines(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Give one closed outline (j, i) for each connected part of a mask, with channels of no width to its holes.

    Parameters
    ----------
    mask : ndarray of bool, shape (j, i)

    Yields
    ------
    ndarray, shape (n, 2)
        In continuous pixel indices; the last point is joined to the first.
    """
    from skimage.measure import find_contours, label, regionprops

    for part in regionprops(label(mask, connectivity=1)):
        inside = np.pad(part.image, 1)
        rings = [ring[:-1] for ring in find_contours(inside.astype(np.float32), 0.5)]
        yield _corners(_joined(inside, rings)) - 1 + np.array(part.bbox[:2])


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring without the points on straight lines between others; where it turns back is a corner."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[(np.abs(turns) > 1e-9) | ((before * after).sum(axis=1) < 0)]


def _joined(inside: NDArray[np.bool_], rings: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One ring out of the outline of a connected part and those of its holes.

    From the leftmost point of a hole a channel runs left, over pixels that are inside, to the next ring: there is a
    point of it halfway between that row's last pixel inside and the one beyond. What it meets reaches further left than
    the hole, so taken from left to right every hole finds a ring that is joined to the outline already.
    """
    rings = sorted(rings, key=lambda ring: float(ring[:, 1].min()))
    points = [(float(j), float(i)) for ring in rings for j, i in ring]
    number_of = {point: number for number, point in enumerate(points)}
    following = list(range(1, len(points) + 1))
    first = 0
    for ring in rings:
        last = first + len(ring) - 1
        following[last] = first
        if first:  # a hole; the outline comes first
            start = first + int(ring[:, 1].argmin())
            j, i = points[start]
            end = float(np.flatnonzero(~inside[int(j), : int(i) + 1])[-1]) + 0.5
            before = last if start == first else start - 1
            _splice(points, following, number_of[j, end], start, before)
        first = last + 1
    walk = [0]
    while following[walk[-1]]:
        walk.append(following[walk[-1]])
    return np.array([points[number] for number in walk])


def _splice(points: list[tuple[float, float]], following: list[int], at: int, start: int, before: int) -> None:
    """Lead the walk from a point over to a ring, around it, and back: both ends of the channel are there twice."""
    back_at_start, back_at = len(points), len(points) + 1
    points += [points[start], points[at]]
    following += [back_at, following[at]]
    following[at], following[before] = start, back_at_start


# ------------------------------------------------------------------------------------------------------------ reading


def _rasterised(path: Path, name: str, item: Dataset, volume: CTVolume) -> NDArray[np.bool_] | None:
    """The mask (k, j, i) of a region; None if it has no closed contour, as points of reference have none."""
    from skimage.draw import polygon

    mask = np.zeros(volume.shape_kji, np.bool_)
    found = outside = 0
    for contour in item.get("ContourSequence") or []:
        if not str(contour.get("ContourGeometricType") or "").upper().startswith("CLOSED"):
            continue
        points = _coordinates(contour)
        if points.size < 9 or points.size % 3:
            continue
        index_ijk = volume.index_ijk_from_lps(points.reshape(-1, 3))
        k = round(float(index_ijk[:, 2].mean()))
        if np.ptp(index_ijk[:, 2]) > _IN_SLICE_WITHIN:
            raise InputError(
                f"{path.name}, '{name}': a contour lies across the slices of the CT; give the CT it was drawn on."
            )
        found += 1
        if not 0 <= k < mask.shape[0]:
            outside += 1
            continue
        mask[k][polygon(index_ijk[:, 1], index_ijk[:, 0], mask.shape[1:])] ^= True
    if found and outside == found:
        raise InputError(f"{path.name}, '{name}': its contours lie outside of the CT; give the CT it was drawn on.")
    return mask if found else None


def _coordinates(contour: Dataset) -> NDArray[np.float64]:
    """Numbers of a contour, from the text as it is in the file: pydicom would make an object of each."""
    if "ContourData" not in contour:
        return np.empty(0)
    stored = contour.get_item("ContourData").value
    numbers = stored.decode("ascii").split("\\") if isinstance(stored, bytes) else stored or ()
    return np.array([float(number) for number in numbers])
