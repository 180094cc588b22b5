"""Write segments as a DICOM Segmentation (PS3.3 A.51), by highdicom.

The object is on the grid of the source images wherever the masks can be brought there by turning and flipping, so that
every frame refers to the image it was drawn on; any other grid is written as it is, beside references to the series.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_segments import describe, notes_on_labels
from SAM2AssistLib.io._dicom_sources import SourceSeries, read_sources, same_grid
from SAM2AssistLib.io.algorithm import PROGRAM, Algorithm
from SAM2AssistLib.io.atomic import atomic_path, check_place
from SAM2AssistLib.io.dicom_kinds import SegKind, check_highdicom
from SAM2AssistLib.io.named_mask import NamedMask, check_masks

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

PRIVATE_GROUP, PRIVATE_CREATOR, PROMPTS_ELEMENT = 0x0099, "SAM2ASSIST", 0x01
"""Where the prompts that led to a result are kept (PS3.5, 7.8.1 Private Data Elements)."""

# Series numbers of results: beyond those that scanners count.
_SERIES_NUMBER_OFFSET = 1000

UTF_8 = "ISO_IR 192"


def write_dicom_seg(
    path: str | Path,
    masks: Sequence[NamedMask],
    volume: CTVolume,
    *,
    source_files: Sequence[Path] | None = None,
    algorithm: Algorithm | None = None,
    kind: SegKind = SegKind.BINARY,
    prompts_json: str = "",
    description: str = "Segmentation",
) -> tuple[str, ...]:
    """Write segments as a DICOM Segmentation that refers to the images they were drawn on.

    Parameters
    ----------
    path : str or Path
        Where to; a file that was there is replaced in one step, or stays if that fails.
    masks : sequence of NamedMask
        At least one with a voxel, on the grid of the volume. They may overlap, except in a label map.
    volume : CTVolume
        Whose geometry they have.
    source_files : sequence of Path, optional
        Images of the segmented series in any order; `volume.dicom_files` by default.
    algorithm : Algorithm, optional
        Who made them.
    kind : SegKind
        Binary unless the receiver can do better; a fractional one holds 0 and 255 here.
    prompts_json : str
        What led to the result, kept in a private element if given.
    description : str
        Series description.

    Returns
    -------
    tuple of str
        Sentences for the user about what the object could not hold.

    Raises
    ------
    InputError
        If no mask has a voxel, one is not on the grid, masks overlap in a label map, or the source images are gone, do
        not belong together or lack what has to be referred to.
    OutputError
        If the file cannot be written, or highdicom is not installed.
    """
    check_place(path)
    dataset, notes = make_dicom_seg(
        masks,
        volume,
        source_files=source_files,
        algorithm=algorithm,
        kind=kind,
        prompts_json=prompts_json,
        description=description,
    )
    save_dicom(dataset, path)
    return notes


def save_dicom(dataset: Dataset, path: str | Path) -> None:
    """Write a DICOM object; a file that was there is replaced in one step, or stays if that fails.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with atomic_path(path) as part:
        dataset.save_as(part, enforce_file_format=True)


def make_dicom_seg(
    masks: Sequence[NamedMask],
    volume: CTVolume,
    *,
    source_files: Sequence[Path] | None = None,
    algorithm: Algorithm | None = None,
    kind: SegKind = SegKind.BINARY,
    prompts_json: str = "",
    description: str = "Segmentation",
) -> tuple[Dataset, tuple[str, ...]]:
    """Make the DICOM Segmentation that `write_dicom_seg` writes, and say what it could not hold.

    Parameters and errors are those of `write_dicom_seg`.
    """
    check_highdicom()
    _check_content(masks, volume)
    sources = read_sources(source_files or volume.dicom_files)
    notes = [*sources.notes, *notes_on_labels(masks)]
    arrays, placing = _placed([named.mask for named in masks], volume, sources)
    if placing:
        notes.append("The masks are on another grid than the source images, so that frames refer to none of them.")
    pixels = _pixel_array(arrays, masks, kind)
    dataset = _segmentation(sources, pixels, masks, algorithm or Algorithm(), kind, description, placing)
    dataset.ContentCreatorName = ""  # has to be there, and who uses the program is not known to it
    if prompts_json:
        block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
        block.add_new(PROMPTS_ELEMENT, "UT", prompts_json)
    return dataset, tuple(notes)


def _check_content(masks: Sequence[NamedMask], volume: CTVolume) -> None:
    check_masks(masks, volume.shape_kji)
    if not any(named.mask.any() for named in masks):
        raise InputError("All segments are empty, and a DICOM-SEG without a voxel cannot be read by others.")


def _placed(
    arrays: Sequence[NDArray[np.bool_]], volume: CTVolume, sources: SourceSeries
) -> tuple[list[NDArray[np.bool_]], dict[str, Any]]:
    """Masks as views in the order of the source frames; else as they are, with what highdicom needs to place them."""
    turned = _turning(volume, sources)
    if turned is None:
        return list(arrays), _own_planes(volume, sources)
    axes, flips = turned
    in_slices = [np.flip(array, flips).transpose(axes) for array in arrays]
    frames = list(np.argsort(sources.frame_of_slice))
    if frames == list(range(len(frames))):
        return in_slices, {}
    return [array[frames] for array in in_slices], {}


def _turning(volume: CTVolume, sources: SourceSeries) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Array axes to flip, and their new order, that bring the grid of the volume to that of the source, if any do."""
    source_from_volume = np.linalg.solve(sources.ijk_to_lps, volume.ijk_to_lps)
    nearest = np.abs(source_from_volume[:3, :3]).argmax(axis=1)  # for each source axis i, j, k that of the volume
    if sorted(nearest) != [0, 1, 2]:
        return None
    shape_ijk = volume.shape_kji[::-1]
    if tuple(shape_ijk[axis] for axis in nearest) != sources.shape_kji[::-1]:
        return None
    exact = np.eye(4)
    exact[:3] = 0
    flips = []
    for source_axis, axis in enumerate(nearest):
        is_flipped = source_from_volume[source_axis, axis] < 0
        exact[source_axis, axis] = -1 if is_flipped else 1
        exact[source_axis, 3] = shape_ijk[axis] - 1 if is_flipped else 0
        flips += [2 - int(axis)] if is_flipped else []
    if not same_grid(volume.ijk_to_lps, sources.ijk_to_lps @ exact, volume.shape_kji):
        return None
    return tuple(2 - int(axis) for axis in nearest[::-1]), tuple(flips)


def _own_planes(volume: CTVolume, sources: SourceSeries) -> dict[str, Any]:
    """Orientation, positions and spacing of a volume that is not on the grid of the source images."""
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence

    spacing_i, spacing_j, spacing_k = volume.spacing_ijk
    directions = volume.ijk_to_lps[:3, :3] / volume.spacing_ijk
    measures = PixelMeasuresSequence((spacing_j, spacing_i), spacing_k, spacing_k)
    positions = volume.lps_from_index_ijk([(0, 0, k) for k in range(volume.shape_kji[0])])
    return {
        "plane_orientation": PlaneOrientationSequence("PATIENT", (*directions[:, 0], *directions[:, 1])),
        "plane_positions": [PlanePositionSequence("PATIENT", position) for position in positions],
        "pixel_measures": measures,
    }


def _pixel_array(
    arrays: Sequence[NDArray[np.bool_]], masks: Sequence[NamedMask], kind: SegKind
) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.bool_]:
    """A label map (k, j, i) where segments do not overlap, which takes a byte per voxel; else (k, j, i, segment)."""
    dtype = np.uint8 if len(arrays) < 256 else np.uint16
    labels = np.zeros(arrays[0].shape, dtype)
    for value, (array, named) in enumerate(zip(arrays, masks, strict=True), 1):
        for plane, inside in zip(labels, array, strict=True):
            if not inside.any():
                continue
            if plane[inside].any():
                if kind is SegKind.LABELMAP:
                    raise InputError(
                        f"'{named.name}' overlaps another segment, which a label map cannot hold; write a binary one."
                    )
                # Each segment lies in one piece, which takes highdicom less time than voxels of all in turn.
                return np.moveaxis(np.stack(arrays).view(np.uint8), 0, -1)
            plane[inside] = value
    return labels


def _segmentation(
    sources: SourceSeries,
    pixels: NDArray[Any],
    masks: Sequence[NamedMask],
    algorithm: Algorithm,
    kind: SegKind,
    description: str,
    placing: dict[str, Any],
) -> Dataset:
    from highdicom.seg import Segmentation
    from highdicom.uid import UID

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values in the source headers, which it copies
        try:
            return Segmentation(
                source_images=sources.datasets,
                pixel_array=pixels,
                segmentation_type=kind.value.upper(),
                segment_descriptions=describe(masks, algorithm),
                series_instance_uid=UID(),
                series_number=sources.series_number + _SERIES_NUMBER_OFFSET,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer=PROGRAM,
                manufacturer_model_name=PROGRAM,
                software_versions=algorithm.version,
                device_serial_number="0",
                fractional_type="OCCUPANCY",
                content_label="SEGMENTATION",
                content_description=description,
                series_description=description,
                specific_character_set=UTF_8,
                **placing,
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(
                "The headers of the source images do not allow a DICOM-SEG to be made of them (highdicom: "
                f"{type(error).__name__}); export the series again from its archive, or write a .seg.nrrd."
            ) from None  # highdicom's message may quote the headers
