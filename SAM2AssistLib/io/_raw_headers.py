"""What the headers of NIfTI, NRRD and MetaImage files say, read without ITK.

ITK repairs in silence what a user has to know: it takes a spacing of 0 as 1 mm, a negative one as a flip, NaN voxels of
a NIfTI file as 0, and fills up the end of a truncated one. So these files are looked at before ITK reads the image.

Each check raises InputError with one sentence that begins with the file name, and returns what is worth a warning.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._voxel_data import check_nifti_voxels, check_voxels, opened

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".nia")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
NRRD_SUFFIXES = (".nrrd", ".nhdr")

# A text header longer than this is none.
_MAX_TEXT_HEADER = 1 << 20

# Spacings that differ by less were rounded in writing.
_SPACING_DISAGREES_ABOVE = 0.01

_METAIMAGE_REQUIRED = {"NDims", "DimSize", "ElementType"}
_METAIMAGE_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
    "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_NRRD_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "int8_t", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "ushort", "int16", "int16_t", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "uint", "int32", "int32_t", "uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "ulonglong", "long long", "long long int", "int64", "uint64", "double"), 8),
}


@dataclass(frozen=True)
class NiftiHeader:
    """The part of a NIfTI-1 or NIfTI-2 header that decides on size and geometry.

    Attributes
    ----------
    shape : tuple of int
        Number of voxels along i, j, k, time, ...
    spacing : tuple of 3 floats
        pixdim along i, j and k, in the unit of the file.
    bits_per_voxel : int
        Size of a voxel as stored.
    float_type : str or None
        NumPy's name of the type of the voxels if they are floats.
    data_offset : int
        Where the voxels begin in their file, in bytes.
    qform_code, sform_code : int
        0 where the file has no such transform.
    sform : tuple of 12 floats
        The upper three rows of the matrix from voxel indices to RAS, row by row.
    is_pair : bool
        True if the voxels are in an .img file beside the header.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    bits_per_voxel: int
    float_type: str | None
    data_offset: int
    qform_code: int
    sform_code: int
    sform: tuple[float, ...]
    is_pair: bool


def check_header(path: Path) -> tuple[str, ...]:
    """Look at the header of a file of a known format.

    Parameters
    ----------
    path : Path
        An existing file; of a format that is not known here, nothing is checked.

    Returns
    -------
    tuple of str
        What the user should know, one sentence each.

    Raises
    ------
    InputError
        If the file is damaged or truncated, or its size or geometry makes no volume.
    """
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return _check_nifti(path)
    if name.endswith(METAIMAGE_SUFFIXES):
        return _check_metaimage(path)
    if name.endswith(NRRD_SUFFIXES):
        return _check_nrrd(path)
    return ()


def check_complete(path: Path) -> None:
    """Refuse a label map of a known format whose voxels are not all there, or damaged; raises InputError."""
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        _check_nifti_data(path, read_nifti_header(_nifti_header_path(path)), None)
    elif name.endswith(METAIMAGE_SUFFIXES):
        fields, header_size = _metaimage_fields(path)
        _check_metaimage_data(path, fields, _whole_numbers(path, "DimSize", fields), header_size)
    elif name.endswith(NRRD_SUFFIXES):
        _check_nrrd_data(path, *_nrrd_fields(path))


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header of a NIfTI-1, NIfTI-2 or Analyze 7.5 file, plain or compressed.

    The layout is that of nifti1.h and nifti2.h (https://nifti.nimh.nih.gov).

    Raises
    ------
    InputError
        If it does not begin with such a header.
    """
    try:
        with opened(path) as file:
            raw = file.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name} is damaged or truncated: its compressed data cannot be unpacked.") from error
    for order in "<>":
        if len(raw) >= 348 and struct.unpack_from(f"{order}i", raw)[0] == 348:
            return _parsed_nifti1(raw, order)
        if len(raw) >= 540 and struct.unpack_from(f"{order}i", raw)[0] == 540:
            return _parsed_nifti2(raw, order)
    raise InputError(f"{path.name} is not a NIfTI image: it does not begin with a NIfTI header.")


def _parsed_nifti1(raw: bytes, order: str) -> NiftiHeader:
    """Take the fields from the 348 bytes of NIfTI-1 (or Analyze, which has no magic and no transforms)."""
    dim = struct.unpack_from(f"{order}8h", raw, 40)
    magic = raw[344:347]
    codes = struct.unpack_from(f"{order}2h", raw, 252) if magic in (b"n+1", b"ni1") else (0, 0)
    return NiftiHeader(
        shape=_nifti_shape(dim),
        spacing=struct.unpack_from(f"{order}3f", raw, 80),
        bits_per_voxel=struct.unpack_from(f"{order}h", raw, 72)[0],
        float_type=_nifti_float_type(order, struct.unpack_from(f"{order}h", raw, 70)[0]),
        data_offset=_whole(struct.unpack_from(f"{order}f", raw, 108)[0]),
        qform_code=codes[0],
        sform_code=codes[1],
        sform=struct.unpack_from(f"{order}12f", raw, 280),
        is_pair=magic != b"n+1",
    )


def _parsed_nifti2(raw: bytes, order: str) -> NiftiHeader:
    """Take the fields from the 540 bytes of NIfTI-2."""
    dim = struct.unpack_from(f"{order}8q", raw, 16)
    codes = struct.unpack_from(f"{order}2i", raw, 344)
    return NiftiHeader(
        shape=_nifti_shape(dim),
        spacing=struct.unpack_from(f"{order}3d", raw, 112),
        bits_per_voxel=struct.unpack_from(f"{order}h", raw, 14)[0],
        float_type=_nifti_float_type(order, struct.unpack_from(f"{order}h", raw, 12)[0]),
        data_offset=struct.unpack_from(f"{order}q", raw, 168)[0],
        qform_code=codes[0],
        sform_code=codes[1],
        sform=struct.unpack_from(f"{order}12d", raw, 400),
        is_pair=raw[4:7] == b"ni2",
    )


def _nifti_float_type(order: str, datatype: int) -> str | None:
    """NumPy's name of the NIfTI types 16 and 64, the real floats."""
    size = {16: 4, 64: 8}.get(datatype)
    return None if size is None else f"{order}f{size}"


def _nifti_shape(dim: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of the axes; dim[0] is their number."""
    return tuple(dim[1 : 1 + max(0, min(dim[0], 7))])


def _whole(value: float) -> int:
    """Whole number of a float field, 0 if it holds none."""
    return int(value) if math.isfinite(value) else 0


def _check_nifti(path: Path) -> tuple[str, ...]:
    """Size, spacing, transform and completeness of a NIfTI file."""
    header = read_nifti_header(_nifti_header_path(path))
    _check_sizes(path, header.shape)
    _check_spacings(path, header.spacing[: min(3, len(header.shape))])
    _check_nifti_transform(path, header)
    _check_nifti_data(path, header, header.float_type)
    return _nifti_warnings(path, header)


def _check_nifti_data(path: Path, header: NiftiHeader, float_type: str | None) -> None:
    """Refuse voxels that are missing, damaged or, where a type of floats is given, not finite."""
    data_path = _nifti_data_path(path, header)
    check_nifti_voxels(data_path, header.data_offset, header.shape, header.bits_per_voxel, float_type)


def _nifti_header_path(path: Path) -> Path:
    """Header of an .img file, else the file itself."""
    name = path.name
    for image_suffix, header_suffix in ((".img.gz", ".hdr.gz"), (".img", ".hdr")):
        if name.lower().endswith(image_suffix):
            stem = name[: -len(image_suffix)]
            candidates = [path.with_name(stem + suffix) for suffix in (header_suffix, ".hdr")]
            return _first_existing(path, candidates, "header")
    return path


def _nifti_data_path(path: Path, header: NiftiHeader) -> Path:
    """Where the voxels are: the same file, or the .img file beside it."""
    if not header.is_pair:
        return path
    stem = path.name[: path.name.lower().rfind(".hdr")] if ".hdr" in path.name.lower() else None
    if stem is None:
        return path
    return _first_existing(path, [path.with_name(stem + suffix) for suffix in (".img", ".img.gz")], "image")


def _first_existing(path: Path, candidates: Iterable[Path], part: str) -> Path:
    """Give the first candidate that is a file."""
    tried = list(candidates)
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise InputError(f"{path.name} lacks its {part} file {tried[0].name}, which has to lie beside it.")


def _check_nifti_transform(path: Path, header: NiftiHeader) -> None:
    """Refuse an sform that spans no volume."""
    if header.sform_code <= 0:
        return
    matrix = np.array(header.sform, dtype=np.float64).reshape(3, 4)
    if not np.all(np.isfinite(matrix)):
        raise InputError(f"{path.name} has an orientation matrix (sform) that holds NaN or infinite numbers.")
    columns = matrix[:, :3]
    norms = np.linalg.norm(columns, axis=0)
    if np.any(norms == 0) or abs(np.linalg.det(columns / norms)) < 1e-6:
        raise InputError(f"{path.name} has a singular orientation matrix (sform), so its axes span no volume.")


def _nifti_warnings(path: Path, header: NiftiHeader) -> tuple[str, ...]:
    """What a NIfTI header leaves open or contradicts."""
    if header.qform_code <= 0 and header.sform_code <= 0:
        return (f"{path.name} says nothing about its orientation (qform and sform codes are 0): check left and right.",)
    if header.sform_code <= 0 or len(header.spacing) < 3:
        return ()
    of_sform = np.linalg.norm(np.array(header.sform).reshape(3, 4)[:, :3], axis=0)
    if np.allclose(of_sform, header.spacing, rtol=_SPACING_DISAGREES_ABOVE):
        return ()
    return (
        f"{path.name} gives two different spacings: pixdim {_listed(header.spacing)} mm, which is used as in Slicer, "
        f"and sform {_listed(of_sform)} mm.",
    )


def _check_metaimage(path: Path) -> tuple[str, ...]:
    """Size, spacing, direction and completeness of a MetaImage file."""
    fields, header_size = _metaimage_fields(path)
    sizes = _whole_numbers(path, "DimSize", fields)
    _check_sizes(path, sizes)
    for key in ("ElementSpacing", "ElementSize"):
        _check_spacings(path, _numbers(path, key, fields)[:3])
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        _check_directions(path, key, _numbers(path, key, fields))
    _check_metaimage_data(path, fields, sizes, header_size)
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        return (f"{path.name} gives no spacing, so 1 mm along each axis is assumed.",)
    return ()


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """Read "Key = value" lines up to ElementDataFile; also where the header ends, in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < _MAX_TEXT_HEADER:
            line = file.readline(_MAX_TEXT_HEADER)
            key, equals, value = line.decode("latin-1").partition("=")
            if not line or not equals:
                break
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile" and fields.keys() >= _METAIMAGE_REQUIRED:
                return fields, file.tell()
    raise InputError(f"{path.name} is not a MetaImage: it does not begin with a complete MetaImage header.")


def _check_metaimage_data(path: Path, fields: dict[str, str], sizes: list[int], header_size: int) -> None:
    """Refuse a MetaImage whose voxels are missing, cut short or damaged."""
    data_file = fields["ElementDataFile"]
    if data_file.upper() == "LOCAL":
        data_path, offset = path, header_size
    elif data_file.upper().startswith("LIST") or "%" in data_file:
        return
    else:
        data_path, offset = _first_existing(path, [path.parent / data_file], "data"), 0
    if fields.get("BinaryData", "True").lower() == "false":
        return
    packed = fields.get("CompressedData", "").lower() == "true"
    if packed:
        sizes_packed = _whole_numbers(path, "CompressedDataSize", fields)
        if not sizes_packed:  # ITK gives whatever is in memory then
            raise InputError(f"{path.name} does not tell its CompressedDataSize; write it without compression.")
        check_voxels(data_path, offset, sizes_packed[0], packed=False)
    voxel_bytes = _METAIMAGE_BYTES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"), 0)
    channels = math.prod(_whole_numbers(path, "ElementNumberOfChannels", fields)[:1])
    check_voxels(data_path, offset, math.prod(sizes) * voxel_bytes * channels, packed=packed)


def _check_nrrd(path: Path) -> tuple[str, ...]:
    """Size, spacing and directions of a NRRD file (https://teem.sourceforge.net/nrrd/format.html)."""
    fields, header_size = _nrrd_fields(path)
    if any(key.startswith("Segment0_") for key in fields):
        raise InputError(f"{path.name} is a segmentation, not a CT image; give the image it was drawn on.")
    _check_sizes(path, _whole_numbers(path, "sizes", fields))
    # NaN stands for an axis without a spacing, such as colour or time.
    _check_spacings(path, [value for value in _numbers(path, "spacings", fields) if not math.isnan(value)])
    directions = fields.get("space directions", "")
    vectors = [word.strip("()") for word in directions.replace(", ", ",").split()]
    spatial = [_numbers(path, "space directions", {"space directions": word}) for word in vectors if word != "none"]
    _check_directions(path, "space directions", [number for vector in spatial for number in vector])
    if spatial and len(spatial) == 2 and len(vectors) == 3:
        raise InputError(f"{path.name} gives directions in space for two of its three axes only, so it is no volume.")
    _check_nrrd_data(path, fields, header_size)
    if not spatial or "space" not in fields:
        return (f"{path.name} does not say how it lies in the patient (no space directions): check left and right.",)
    return ()


def _check_nrrd_data(path: Path, fields: dict[str, str], header_size: int) -> None:
    """Refuse voxels after the header that are missing or damaged; data files of their own are left to ITK."""
    encoding = fields.get("encoding", "raw").lower()
    if "data file" in fields or "datafile" in fields or encoding not in ("raw", "gzip", "gz"):
        return
    kind = " ".join(word for word in fields.get("type", "").lower().split() if word not in ("signed", "unsigned"))
    voxels = math.prod(_whole_numbers(path, "sizes", fields))
    check_voxels(path, header_size, voxels * _NRRD_BYTES.get(kind, 0), packed=encoding != "raw")


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """Fields ("key: value") and key/value pairs ("key:=value") up to the empty line, and where that ends, in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(64).startswith(b"NRRD"):
            raise InputError(f"{path.name} is not a NRRD image: it does not begin with a NRRD header.")
        while file.tell() < _MAX_TEXT_HEADER:
            line = file.readline(_MAX_TEXT_HEADER).decode("latin-1").rstrip("\r\n")
            if not line:
                break
            if line.startswith("#"):
                continue
            separator = ":=" if ":=" in line else ":"
            key, _, value = line.partition(separator)
            fields[key.strip()] = value.strip()
        return fields, file.tell()


def _numbers(path: Path, key: str, fields: dict[str, str]) -> list[float]:
    """Numbers of a header field, none if the field is absent."""
    try:
        return [float(word) for word in fields.get(key, "").replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"{path.name} has a damaged header: '{key}' does not hold numbers.") from error


def _whole_numbers(path: Path, key: str, fields: dict[str, str]) -> list[int]:
    """Whole numbers of a header field, none if the field is absent."""
    numbers = _numbers(path, key, fields)
    if not all(number.is_integer() for number in numbers):
        raise InputError(f"{path.name} has a damaged header: '{key}' does not hold whole numbers.")
    return [int(number) for number in numbers]


def _check_sizes(path: Path, sizes: Iterable[int]) -> None:
    """Refuse an axis without voxels."""
    given = tuple(sizes)
    if not given or any(size < 1 for size in given):
        raise InputError(f"{path.name} holds no voxels: its header gives the size {_listed(given) or 'none'}.")


def _check_spacings(path: Path, spacings: Iterable[float]) -> None:
    """Refuse distances that are not above 0 mm."""
    given = tuple(spacings)
    if any(not math.isfinite(spacing) or spacing <= 0 for spacing in given):
        raise InputError(
            f"{path.name} has the spacing {_listed(given)} in its header, and each has to be above 0 mm; correct the "
            "header or convert the image again from its source."
        )


def _check_directions(path: Path, field: str, numbers: list[float]) -> None:
    """Refuse axes that have no length or span no volume; fewer or more than three axes are left to ITK."""
    if len(numbers) != 9:
        return
    vectors = np.array(numbers).reshape(3, 3)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(vectors)) or np.any(lengths == 0):
        raise InputError(f"{path.name} has an axis of length 0 in '{field}', so its spacing is not above 0 mm.")
    if abs(np.linalg.det(vectors / lengths)) < 1e-6:
        raise InputError(f"{path.name} has a singular orientation in '{field}': its axes span no volume.")


def _listed(numbers: Iterable[float]) -> str:
    """Numbers as a user reads them."""
    return ", ".join(f"{number:g}" for number in numbers)
