"""Open what a DICOM file holds of segments, a DICOM-SEG or an RTSTRUCT, for the volume that it was drawn on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import is_dicom_file
from SAM2AssistLib.io.atomic import ending_of
from SAM2AssistLib.io.dicom_seg_reader import SEGMENTATION_CLASSES, DicomSeg, damage_told, image_header, read_dicom_seg
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.rtstruct import RTSTRUCT_CLASS, read_rtstruct

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume


def is_dicom_object(path: Path) -> bool:
    """Whether a file is DICOM, or named as if it were, so that a damaged one gets a sentence about DICOM."""
    return ending_of(path) == ".dcm" or (path.is_file() and is_dicom_file(path))


def read_dicom_segments(
    path: Path, volume: CTVolume | None, notes: list[str] | None = None
) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """Read the segments of a DICOM-SEG or an RTSTRUCT.

    Parameters
    ----------
    path : Path
    volume : CTVolume or None
        The image they belong to; an RTSTRUCT needs it.
    notes : list of str, optional
        Gets a sentence for the user where contours were drawn on other slices.

    Returns
    -------
    masks : list of NamedMask
        Masks (k, j, i).
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) of the masks to LPS mm.

    Raises
    ------
    InputError
        If it cannot be read, is another DICOM object, or belongs to other images than the volume. An RTSTRUCT does if
        it or one of its regions lies in another frame of reference.
    """
    header = _header_of(path)
    sop_class = str(header.get("SOPClassUID") or "")
    if sop_class == RTSTRUCT_CLASS:
        if volume is None:
            raise InputError(f"{path.name} is an RTSTRUCT, whose contours have no voxels; give its CT as well.")
        if volume.dicom_files:
            with damage_told(path):
                frames = _frames_of_reference(header)
            _check_frame(path.name, frames, image_header(volume))
        return read_rtstruct(path, volume, notes), volume.ijk_to_lps
    if sop_class not in SEGMENTATION_CLASSES:
        raise InputError(f"{path.name} is a DICOM object but neither a DICOM-SEG nor an RTSTRUCT; give one of these.")
    found = read_dicom_seg(path)
    if volume is not None and volume.dicom_files:
        check_belongs(path.name, found, volume)
    return found.masks, found.ijk_to_lps


def check_belongs(name: str, found: DicomSeg, volume: CTVolume) -> None:
    """Refuse a segmentation of other images: its positions mean nothing in the volume.

    Parameters
    ----------
    name : str
        How the sentence calls the segmentation.
    found : DicomSeg
    volume : CTVolume
        Read from DICOM files.

    Raises
    ------
    InputError
        If its frame of reference is not that of the volume, or where this is not told, its series is another one.
    """
    header = image_header(volume)
    told = [found.frame_of_reference_uid] if found.frame_of_reference_uid else []
    _check_frame(name, told, header)
    if not (told and header.get("FrameOfReferenceUID")) and found.series_uid not in (
        "",
        str(header.get("SeriesInstanceUID")),
    ):
        raise InputError(f"{name} refers to images of another series than the CT; give the CT it refers to.")


def _check_frame(name: str, frames: Iterable[str], image: Dataset) -> None:
    """Refuse what lies in another frame of reference than an image; where one of them tells none, it may be the same.

    Raises
    ------
    InputError
        If one of the UIDs is not that of the image.
    """
    frame = str(image.get("FrameOfReferenceUID") or "")
    if frame and any(uid != frame for uid in frames):
        raise InputError(
            f"{name} was drawn on another scan: its frame of reference is not that of the CT; give the CT it refers to."
        )


def _frames_of_reference(header: Dataset) -> set[str]:
    """UIDs of the frames in which the regions of an RTSTRUCT lie, else that of the whole; empty if not told."""
    regions = header.get("StructureSetROISequence") or []
    told = {str(item.get("ReferencedFrameOfReferenceUID") or "") for item in regions} - {""}
    whole = header.get("ReferencedFrameOfReferenceSequence") or []
    # Where there are several, regions that do not tell theirs may lie in any of them.
    if not told and len(whole) == 1:
        told = {str(whole[0].get("FrameOfReferenceUID") or "")} - {""}
    return told


def _header_of(path: Path) -> Dataset:
    """What kind of object a file holds and, of an RTSTRUCT, in which frames of reference."""
    if not path.is_file():
        raise InputError(f"The DICOM file {path} is not there; check the path.")
    tags = ["SOPClassUID", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence"]
    with damage_told(path):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
