"""Open what a DICOM file holds of segments, a DICOM-SEG or an RTSTRUCT, for the volume that it was drawn on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import is_dicom_file
from SAM2AssistLib.io.atomic import ending_of
from SAM2AssistLib.io.dicom_seg_reader import SEGMENTATION_CLASSES, DicomSeg, damage_told, read_dicom_seg
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.rtstruct import RTSTRUCT_CLASS, read_rtstruct

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume


def is_dicom_object(path: Path) -> bool:
    """Whether a file is DICOM, or named as if it were, so that a damaged one gets a sentence about DICOM."""
    return ending_of(path) == ".dcm" or (path.is_file() and is_dicom_file(path))


def read_dicom_segments(path: Path, volume: CTVolume | None) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """Read the segments of a DICOM-SEG or an RTSTRUCT.

    Parameters
    ----------
    path : Path
    volume : CTVolume or None
        The image they belong to; an RTSTRUCT needs it.

    Returns
    -------
    masks : list of NamedMask
        Masks (k, j, i).
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) of the masks to LPS mm.

    Raises
    ------
    InputError
        If it cannot be read, is another DICOM object, or belongs to other images than the volume.
    """
    sop_class = _class_of(path)
    if sop_class == RTSTRUCT_CLASS:
        if volume is None:
            raise InputError(f"{path.name} is an RTSTRUCT, whose contours have no voxels; give its CT as well.")
        return read_rtstruct(path, volume), volume.ijk_to_lps
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
    header = pydicom.dcmread(
        volume.dicom_files[0], stop_before_pixels=True, specific_tags=["FrameOfReferenceUID", "SeriesInstanceUID"]
    )
    frame = str(header.get("FrameOfReferenceUID") or "")
    if frame and found.frame_of_reference_uid and frame != found.frame_of_reference_uid:
        raise InputError(
            f"{name} was drawn on another scan: its frame of reference is not that of the CT; give the CT it refers to."
        )
    if not (frame and found.frame_of_reference_uid) and found.series_uid not in (
        "",
        str(header.get("SeriesInstanceUID")),
    ):
        raise InputError(f"{name} refers to images of another series than the CT; give the CT it refers to.")


def _class_of(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"The DICOM file {path} is not there; check the path.")
    with damage_told(path):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
        return str(header.get("SOPClassUID") or "")
