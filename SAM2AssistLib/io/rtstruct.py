"""Segments as an RT Structure Set (PS3.3 A.19): contours around voxels, written and rasterised voxel-equal.

A contour runs halfway between the centres of voxels inside and outside, so that the test whether a centre is inside it
gives back the mask. A hole is joined to the outline around it by a channel of no width, as PS3.3 C.8.8.6.3 describes,
which readers understand whether they fill by the even-odd or by the winding rule.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_segments import label_of, notes_on_labels
from SAM2AssistLib.io._dicom_sources import SourceSeries, read_sources, same_grid
from SAM2AssistLib.io._image_grid import text_in
from SAM2AssistLib.io.algorithm import PROGRAM, Algorithm
from SAM2AssistLib.io.atomic import atomic_path, check_place
from SAM2AssistLib.io.dicom_seg import UTF_8
from SAM2AssistLib.io.dicom_seg_reader import damage_told, image_header, read_dataset
from SAM2AssistLib.io.named_mask import NamedMask, check_masks, notes_on_outside

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

RTSTRUCT_CLASS = str(RTStructureSetStorage)

# DICOM coordinates have at most 16 characters; a tenth of a micrometre is far below the half voxel that counts.
_DECIMALS = 4

# A contour whose points differ by more than this along the k axis, in slice distances, is in no plane of the slices.
_IN_PLANE_WITHIN = 0.3

# Contours that are no further than this from the centres of slices, in slice distances, were drawn on these slices.
_ON_SLICE_WITHIN = 0.1

# Contours that are closer than this along the k axis are in one plane, so that one may be a hole of the other.
_SAME_PLANE_MM = 0.05

# Planes whose gap is less than so many times the smallest gaps are neighbours: nothing was left out between them.
_NEIGHBOUR_GAPS = 1.5

# A point further than this from the first voxel, in voxels, was damaged: it would be meters away.
_FARTHEST = 10_000

# So many regions are named in a note.
_MOST_LISTED = 3

# Rounding of a plane's place, in slice distances: a slice halfway between two planes belongs to the upper one.
_ROUNDING = 1e-3

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
    return (*sources.notes, *notes_on_labels(masks))


def read_rtstruct(path: str | Path, volume: CTVolume, notes: list[str] | None = None) -> list[NamedMask]:
    """Rasterise the closed contours of an RT Structure Set on the grid of a volume.

    Contours that were drawn on other slices are brought to those of the volume: each slice gets the contours of the
    nearest plane of the region, if that is not further than half the distance of these planes.

    Parameters
    ----------
    path : str or Path
    volume : CTVolume
        The CT they were drawn on. A voxel is inside where its centre is, and contours within one another make holes.
    notes : list of str, optional
        Gets a sentence for the user where contours were drawn on other slices, or lie outside of the volume.

    Returns
    -------
    list of NamedMask
        Regions of interest with closed contours, in the order of the file; empty where they lie outside.

    Raises
    ------
    InputError
        If the file is damaged, is no structure set or holds no closed contour, or if all contours lie outside of the
        volume or one across its slices.
    """
    path = Path(path)
    dataset = read_dataset(path)
    with damage_told(path):
        if str(dataset.get("SOPClassUID") or "") != RTSTRUCT_CLASS:
            raise InputError(f"{path.name} is a DICOM object but no RTSTRUCT; give an RT structure set.")
        names = {
            int(item.ROINumber): text_in(item, "ROIName") or f"ROI {item.ROINumber}"
            for item in dataset.get("StructureSetROISequence") or []
        }
        regions = [
            (names.get(int(item.ReferencedROINumber), f"ROI {item.ReferencedROINumber}"), item)
            for item in dataset.get("ROIContourSequence") or []
        ]
        named_planes = [(name, _planes(path, name, item, volume)) for name, item in regions]
        named_planes = [(name, planes) for name, planes in named_planes if planes]
        series = _series_of(dataset)
    if not named_planes:
        raise InputError(f"{path.name} holds no closed contour, so there is nothing to open.")
    spacing = min((_spacing(planes) for _, planes in named_planes if len(planes) > 2), default=None)
    # Planes that lie on slices but nowhere on two in a row may be those of a series with thicker slices.
    is_thicker = spacing is not None and spacing > _NEIGHBOUR_GAPS and _is_another(series, volume)
    masks, moved, outside = list[NamedMask](), list[str](), list[str]()
    voxel_ml = float(np.prod(volume.spacing_ijk)) / 1000
    for name, planes in named_planes:
        if _are_on_slices(planes) and not is_thicker:
            slices = [(round(plane.k), round(plane.k) + 1) for plane in planes]
            masks.append(NamedMask(name, _rasterised(planes, volume)))
        else:
            slices = _slices_of(planes, spacing)
            masks.append(NamedMask(name, _brought_to_slices(planes, slices, volume)))
            moved.append(name)
        left_out, whole = _voxels_outside(planes, slices, volume)
        outside += notes_on_outside(name, left_out * voxel_ml, whole * voxel_ml)
    if outside and not any(named.mask.any() for named in masks):
        raise InputError(f"{path.name}: its contours lie outside of the CT; give the CT it was drawn on.")
    if notes is not None:
        notes += outside
    if moved and notes is not None:
        listed = ", ".join(f"'{name}'" for name in moved[:_MOST_LISTED])
        rest = f" and {len(moved) - _MOST_LISTED} more" if len(moved) > _MOST_LISTED else ""
        notes.append(f"The contours of {listed}{rest} were drawn on other slices and were brought to those of the CT.")
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
    dataset.SeriesNumber = sources.series_number + _SERIES_NUMBER_OFFSET
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


@dataclass(frozen=True, eq=False)
class _Plane:
    """The closed contours of a region in one plane: its place along the k axis, and points (j, i), in voxel indices."""

    k: float
    contours_ji: list[NDArray[np.float64]]

    def filled(self, shape_ji: Sequence[int]) -> NDArray[np.bool_]:
        """The pixels whose centres are inside of an odd number of the contours."""
        from skimage.draw import polygon

        inside = np.zeros(tuple(shape_ji), np.bool_)
        for points_ji in self.contours_ji:
            inside[polygon(points_ji[:, 0], points_ji[:, 1], inside.shape)] ^= True
        return inside

    def pixels(self) -> int:
        """Count the pixels that `filled` would give on a slice without end."""
        points = np.concatenate(self.contours_ji)
        low, high = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
        moved = _Plane(self.k, [points_ji - low for points_ji in self.contours_ji])
        return int(moved.filled((high - low + 1).astype(int).tolist()).sum())


def _planes(path: Path, name: str, item: Dataset, volume: CTVolume) -> list[_Plane]:
    """The planes of a region along the k axis; none if it has no closed contour, as points of reference have none."""
    found = []
    for contour in item.get("ContourSequence") or []:
        if not str(contour.get("ContourGeometricType") or "").upper().startswith("CLOSED"):
            continue
        points = _coordinates(contour)
        if points.size % 3:
            raise ValueError  # one of those that `damage_told` makes a sentence of
        if points.size < 9:
            continue
        index_ijk = volume.index_ijk_from_lps(points.reshape(-1, 3))
        if not (np.abs(index_ijk) <= _FARTHEST).all():  # nor is a point that is no number
            raise ValueError
        if np.ptp(index_ijk[:, 2]) > _IN_PLANE_WITHIN:
            raise InputError(
                f"{path.name}, '{name}': a contour lies across the slices of the CT; give the CT it was drawn on."
            )
        found.append((float(index_ijk[:, 2].mean()), index_ijk[:, 1::-1]))
    planes: list[_Plane] = []
    for k, points_ji in sorted(found, key=lambda contour: contour[0]):
        if not planes or (k - planes[-1].k) * volume.spacing_ijk[2] > _SAME_PLANE_MM:
            planes.append(_Plane(k, []))
        planes[-1].contours_ji.append(points_ji)
    return planes


def _spacing(planes: Sequence[_Plane]) -> float:
    """The distance of neighbouring planes, in slice distances: the mean of the smallest gaps, to even out rounding."""
    gaps = np.diff([plane.k for plane in planes])
    return float(gaps[gaps < _NEIGHBOUR_GAPS * gaps.min()].mean())


def _are_on_slices(planes: Sequence[_Plane]) -> bool:
    return all(abs(plane.k - round(plane.k)) <= _ON_SLICE_WITHIN for plane in planes)


def _rasterised(planes: Sequence[_Plane], volume: CTVolume) -> NDArray[np.bool_]:
    """The mask (k, j, i) of planes that lie on slices."""
    mask = np.zeros(volume.shape_kji, np.bool_)
    for plane in planes:
        if 0 <= round(plane.k) < len(mask):
            # Planes that only inaccurate places tell apart are one slice.
            mask[round(plane.k)] ^= plane.filled(mask.shape[1:])
    return mask


def _slices_of(planes: Sequence[_Plane], spacing: float | None) -> list[tuple[int, int]]:
    """The slices, first and the one after the last, of planes between slices or further apart than these.

    A slice gets the nearest plane. At the ends of the region, and of each part of it, a plane reaches half the distance
    of its planes. One or two planes do not tell that distance; for them it is `spacing`, that of other regions. Slices
    are counted on beyond the ends of the volume.
    """
    places = np.array([plane.k for plane in planes])
    if len(planes) == 1:
        spacing = max(spacing or 1.0, 1.0)  # so that it is never lost between two slices
    elif len(planes) > 2 or spacing is None:
        spacing = _spacing(planes)
    gaps = np.diff(places)
    halves = np.where(gaps < _NEIGHBOUR_GAPS * spacing, gaps, spacing) / 2
    first = np.ceil(places - np.append(spacing / 2, halves) - _ROUNDING).astype(int).tolist()
    end = np.ceil(places + np.append(halves, spacing / 2) - _ROUNDING).astype(int).tolist()
    return list(zip(first, end, strict=True))


def _brought_to_slices(
    planes: Sequence[_Plane], slices: Sequence[tuple[int, int]], volume: CTVolume
) -> NDArray[np.bool_]:
    """The mask (k, j, i) of planes in the slices that they were given."""
    mask = np.zeros(volume.shape_kji, np.bool_)
    for plane, (first, end) in zip(planes, slices, strict=True):
        low, high = max(first, 0), min(end, len(mask))
        if low < high:
            mask[low:high] = plane.filled(mask.shape[1:])
    return mask


def _voxels_outside(planes: Sequence[_Plane], slices: Sequence[tuple[int, int]], volume: CTVolume) -> tuple[int, int]:
    """Voxels of a region that lie beyond the volume, were its grid continued, and all of them; (0, 0) if none do."""
    depth, *shape_ji = volume.shape_kji
    points_ji = np.concatenate([points for plane in planes for points in plane.contours_ji])
    reaches_out = (points_ji < -0.5 - _ROUNDING) | (points_ji > np.array(shape_ji) - 0.5 + _ROUNDING)
    if not reaches_out.any() and all(first >= 0 and end <= depth for first, end in slices):
        return 0, 0  # nearly always, and counting takes longer than reading
    outside = whole = 0
    for plane, (first, end) in zip(planes, slices, strict=True):
        pixels = plane.pixels()
        within = min(end, depth) - max(first, 0)
        whole += (end - first) * pixels
        outside += (end - first) * pixels - (within * int(plane.filled(shape_ji).sum()) if within > 0 else 0)
    return outside, whole


def _series_of(dataset: Dataset) -> set[str]:
    """UIDs of the series whose images a structure set refers to."""
    return {
        str(series.get("SeriesInstanceUID") or "")
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    } - {""}


def _is_another(series: set[str], volume: CTVolume) -> bool:
    """Whether a volume is known to be none of these series."""
    if not series or not volume.dicom_files:
        return False
    return str(image_header(volume).get("SeriesInstanceUID") or "") not in {"", *series}


def _coordinates(contour: Dataset) -> NDArray[np.float64]:
    """Numbers of a contour, from the text as it is in the file: pydicom would make an object of each."""
    if "ContourData" not in contour:
        return np.empty(0)
    stored = contour.get_item("ContourData").value
    numbers = stored.decode("ascii").split("\\") if isinstance(stored, bytes) else stored or ()
    return np.array([float(number) for number in numbers])
