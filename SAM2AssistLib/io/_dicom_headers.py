"""The headers of DICOM images in a folder: what they are, where they lie, and whether their files are complete."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._image_grid import ENHANCED_CLASSES, ImageGrid, frame_grids, grid_of, text_in, values_of

# What pydicom raises on a file that is cut off or overwritten somewhere in its header. Its messages quote elements,
# which may name the patient, so sentences in their place are raised `from None`: a traceback would show both.
PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    struct.error,
)

# First elements of files that were stored without the preamble: groups 0002 and 0008, little endian.
_FIRST_TAGS_WITHOUT_PREAMBLE = {
    struct.pack("<HH", group, element)
    for group, elements in ((0x0002, (0, 1, 2)), (0x0008, (0, 1, 5, 8, 0x12, 0x16)))
    for element in elements
}

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "AcquisitionNumber",
    "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
]  # fmt: skip

# DICOM PS3.4 B.5: what has to contain pixels. Anything else without pixels is a report, a plan or a directory.
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_IMAGE_CLASSES = ENHANCED_CLASSES | {
    _CT_IMAGE,
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
}

# Objects with pixels that are not the image of a patient.
_DERIVED_MODALITIES = {"SEG", "RTDOSE", "RTIMAGE", "PR", "REG", "DOC"}

_PIXEL_DATA = (0x7FE0, 0x0010)
_ITEM = (0xFFFE, 0xE000)
_SEQUENCE_END = (0xFFFE, 0xE0DD)
_UNDEFINED_LENGTH = 0xFFFFFFFF
# VRs that PixelData may have, which are followed by two reserved bytes and a length of four (PS3.5, 7.1.2).
_PIXEL_VRS = (b"OB", b"OW", b"UN")


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """What is needed of one DICOM image.

    Attributes
    ----------
    path : Path
        Its file.
    series_uid, description, modality : str
        SeriesInstanceUID, SeriesDescription and Modality, empty where absent; some anonymizers empty the first too.
    sop_uid, number, acquisition : str
        SOPInstanceUID, SeriesNumber and AcquisitionNumber, empty where absent.
    is_localizer : bool
        True for overview images.
    is_enhanced : bool
        True for objects whose geometry is told frame by frame.
    frames, samples : int
        Number of frames, and of values per pixel.
    shape : tuple of int
        Rows and columns.
    grid : ImageGrid or None
        None if the header does not tell or contradicts itself.
    is_complete : bool
        False if the file ends before its pixel data does.
    frame : int or None
        Number, from 0, of the frame of an enhanced image that this is; None for an image of its own.
    """

    path: Path
    series_uid: str
    description: str
    modality: str
    is_localizer: bool
    is_enhanced: bool
    frames: int
    samples: int
    shape: tuple[int, int]
    grid: ImageGrid | None
    is_complete: bool
    sop_uid: str = ""
    number: str = ""
    acquisition: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class DamagedFile:
    """A DICOM file of which not even the series is known; `reason` continues a sentence that begins with its name."""

    path: Path
    reason: str


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with or without the preamble of 128 bytes."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or start[:4] in _FIRST_TAGS_WITHOUT_PREAMBLE


def read_dicom(path: Path, *, with_pixels: bool = False) -> FileDataset:
    """Read a DICOM file, with or without the preamble; so are images read wherever one is needed whole.

    What a file without preamble or file meta information lacks is added, so that it can be sent and stored.

    Raises
    ------
    one of PARSE_ERRORS
        If it is no DICOM file, or is damaged.
    """
    if not is_dicom_file(path):
        raise InvalidDicomError
    dataset = pydicom.dcmread(path, stop_before_pixels=not with_pixels, force=True)
    meta = dataset.file_meta
    if not meta.get("TransferSyntaxUID"):
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    for keyword, of_object in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        if not meta.get(keyword) and dataset.get(of_object):
            setattr(meta, keyword, dataset[of_object].value)
    dataset.preamble = dataset.preamble or bytes(128)
    return dataset


def series_of_file(path: Path) -> str:
    """Give the SeriesInstanceUID of a DICOM image, empty where an anonymizer took it.

    Raises
    ------
    InputError
        If the file is damaged or is no image, such as a segmentation or a report.
    """
    found = _header_of(path)
    if isinstance(found, DamagedFile):
        raise InputError(f"{path.name} {found.reason}; copy it again.")
    if found is None:
        raise InputError(f"{path.name} is a DICOM object but not an image of a patient; give a CT image or its folder.")
    return found.series_uid


def ends_early(path: Path) -> bool:
    """Whether a DICOM file was cut off: in its header, or in the pixels of an image that has to contain some."""
    found = _header_of(path)
    if not isinstance(found, ImageHeader):
        return isinstance(found, DamagedFile)
    return not found.is_complete and str(read_dicom(path).get("SOPClassUID")) in _IMAGE_CLASSES


def scan_folder(folder: Path) -> tuple[list[ImageHeader], list[DamagedFile]]:
    """Read the headers of all DICOM images in a folder, in the order of file names; other files are passed over."""
    return scan_files(sorted(entry for entry in folder.iterdir() if entry.is_file() or _leads_nowhere(entry)))


def scan_files(paths: Iterable[Path]) -> tuple[list[ImageHeader], list[DamagedFile]]:
    """Read the headers of all DICOM images among files; of an enhanced image one for each frame."""
    headers: list[ImageHeader] = []
    damaged: list[DamagedFile] = []
    for path in paths:
        found = _header_of(path) if _is_or_should_be_dicom(path) else None
        if isinstance(found, ImageHeader):
            headers += _frames_of(found)
        elif found is not None:
            damaged.append(found)
    return headers, damaged


def _is_or_should_be_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or named as if it were; hidden files are left by operating systems."""
    is_named_so = path.suffix.lower() == ".dcm" and not path.name.startswith(".")
    return is_named_so or (path.is_file() and is_dicom_file(path))


def _leads_nowhere(path: Path) -> bool:
    """Whether this is a link to what is not there, as of a data set that was not fetched whole."""
    return path.is_symlink() and not path.exists()


def _header_of(path: Path) -> ImageHeader | DamagedFile | None:
    """Read the header of one DICOM file; None if it is complete but no image."""
    if _leads_nowhere(path):
        return DamagedFile(path, "is a link to a file that is not there")
    if path.stat().st_size == 0:
        return DamagedFile(path, "is empty (0 bytes)")
    if not is_dicom_file(path):
        return DamagedFile(path, "is named .dcm but is no DICOM file")
    # Odd values in headers are common and harmless, and a warning on stderr would hide the one sentence that counts.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            is_complete = _has_all_pixels(file, dataset, path.stat().st_size)
            return _image_header(path, dataset, is_complete)
        except PermissionError:
            raise
        except PARSE_ERRORS:
            return DamagedFile(path, "is damaged or truncated: its DICOM header cannot be read")


def _image_header(path: Path, dataset: FileDataset, is_complete: bool) -> ImageHeader | DamagedFile | None:
    """Take from a data set what is needed."""
    sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if "Rows" not in dataset or "Columns" not in dataset:
        if sop_class in _IMAGE_CLASSES or not sop_class:
            return DamagedFile(path, "is damaged or truncated: its DICOM header is incomplete")
        return None
    modality = str(dataset.get("Modality") or "")
    if modality in _DERIVED_MODALITIES:
        return None
    return ImageHeader(
        path=path,
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        description=text_in(dataset, "SeriesDescription"),
        modality=modality,
        is_localizer="LOCALIZER" in [str(word).upper() for word in values_of(dataset, "ImageType")],
        is_enhanced=sop_class in ENHANCED_CLASSES,
        frames=int(dataset.get("NumberOfFrames") or 1),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        shape=(int(dataset.Rows), int(dataset.Columns)),
        grid=grid_of(dataset),
        is_complete=is_complete,
        sop_uid=str(dataset.get("SOPInstanceUID") or ""),
        number=_number(dataset, "SeriesNumber"),
        acquisition=_number(dataset, "AcquisitionNumber"),
    )


def _number(dataset: FileDataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _frames_of(header: ImageHeader) -> list[ImageHeader]:
    """The frames of an enhanced image as images of their own, if its functional groups say where they lie."""
    if not header.is_enhanced:
        return [header]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            grids = frame_grids(read_dicom(header.path))
        except PARSE_ERRORS:
            return [header]
    if grids is None or len(grids) != header.frames:
        return [header]
    return [replace(header, grid=grid, frame=frame) for frame, grid in enumerate(grids)]


def _has_all_pixels(file: BinaryIO, dataset: FileDataset, size: int) -> bool:
    """Whether the pixel data that begins at the position of `file` is all there.

    GDCM fills up what is missing in some compressions, so the length is counted here.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        return True
    order = ">" if syntax is not None and not syntax.is_little_endian else "<"
    start = file.read(8)
    if len(start) < 8 or struct.unpack(f"{order}HH", start[:4]) != _PIXEL_DATA:
        return False
    is_long_form = start[4:6] in _PIXEL_VRS
    length = struct.unpack(f"{order}I", file.read(4) if is_long_form else start[4:])[0]
    if length == _UNDEFINED_LENGTH:
        return _ends_with_delimiter(file, order, size)
    # Two pixels side by side may share their colors (PS3.3 C.7.6.3.1.2).
    is_shared = str(dataset.get("PhotometricInterpretation")).endswith("_422")
    bits = int(dataset.get("BitsAllocated") or 16) * (2 if is_shared else int(dataset.get("SamplesPerPixel") or 1))
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * int(dataset.get("NumberOfFrames") or 1)
    return bool(length >= pixels * bits // 8 and size - file.tell() >= length)


def _ends_with_delimiter(file: BinaryIO, order: str, size: int) -> bool:
    """Walk over the fragments of encapsulated pixel data (PS3.5, A.4) to the delimiter that ends them."""
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack(f"{order}HHI", head)
        if (group, element) == _SEQUENCE_END:
            return True
        if (group, element) != _ITEM or file.tell() + length > size:
            return False
        file.seek(length, 1)
    return False
