"""Whether the voxels of NIfTI, NRRD and MetaImage files are all there, found out without ITK.

ITK fills up the end of truncated data, and takes what a damaged stream unpacks to. So compressed data is unpacked to
its end before, about a second for 500 slices, because only its length and the checksum there tell an intact file.

Each check raises InputError with one sentence that begins with the file name.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from SAM2AssistLib.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
# Header extensions of NIfTI hold texts and small tables.
_MAX_DATA_OFFSET = 1 << 30
_CHUNK = 1 << 22


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip by its content: an uncompressed image that is named .nii.gz is read by ITK as well."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def opened(path: Path) -> BinaryIO:
    """Open a plain or gzip file for reading its content."""
    return cast(BinaryIO, gzip.open(path)) if is_gzip(path) else path.open("rb")


def check_nifti_voxels(
    path: Path, offset: int, shape: Sequence[int], bits_per_voxel: int, float_type: str | None
) -> None:
    """Refuse voxels of a NIfTI file that are missing, damaged or no numbers; ITK takes NaN and infinite ones as 0.

    Parameters
    ----------
    offset : where the voxels begin, in bytes of what is unpacked.
    shape, bits_per_voxel : how many there are, and their size.
    float_type : NumPy's name of their type if they are floats that have to be finite.
    """
    offset = max(0, offset)
    if offset > _MAX_DATA_OFFSET:
        raise InputError(f"{path.name} has a damaged header: its voxels would begin at byte {offset}.")
    count = math.prod(shape)
    needed = offset + count * bits_per_voxel // 8
    try:
        if float_type is None and not is_gzip(path):
            found, not_finite = path.stat().st_size, 0
        else:
            found, not_finite = _scanned(path, offset, needed, float_type)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path) from error
    if found < needed:
        raise InputError(
            f"{path.name} is truncated: its header announces {needed} bytes, but it holds {found}; copy it again."
        )
    if not_finite:
        raise InputError(
            f"{path.name} holds {not_finite} NaN or infinite voxels of {count}; replace them, for air with -1000."
        )


def _scanned(path: Path, offset: int, end: int, float_type: str | None) -> tuple[int, int]:
    """Unpack a file to its end; its length in bytes, and how many floats from `offset` to `end` are not finite."""
    length = not_finite = 0
    with opened(path) as file:
        length += len(file.read(offset))
        # Chunks hold whole floats, because they begin at the first and have a length that 8 divides.
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            if float_type is not None:
                size = np.dtype(float_type).itemsize
                inside = max(0, min(len(chunk), end - length)) // size
                not_finite += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk, float_type, inside))))
            length += len(chunk)
    return length, not_finite


def check_voxels(path: Path, offset: int, needed: int, *, packed: bool) -> None:
    """Refuse voxels that are missing or damaged.

    Parameters
    ----------
    offset : where they begin in the file, in bytes.
    needed : their bytes at least, unpacked.
    packed : whether they are a zlib or gzip stream.
    """
    try:
        found = _unpacked_length(path, offset) if packed else path.stat().st_size - offset
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path) from error
    if found < needed:
        raise InputError(
            f"{path.name} is truncated: {needed} bytes of voxels are announced, but it holds {max(0, found)}; "
            "copy it again."
        )


def _unpacked_length(path: Path, offset: int) -> int:
    """Unpack a zlib or gzip stream to its end and return how many bytes that makes.

    Raises
    ------
    EOFError, zlib.error
        If it ends early, or fails its checksum.
    """
    length, stream = 0, zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out which of the two it is
    with path.open("rb") as file:
        file.seek(offset)
        left = file.read(_CHUNK)
        while left and not stream.eof:
            length += len(stream.decompress(left, _CHUNK))
            left = stream.unconsumed_tail or file.read(_CHUNK)
    while not stream.eof and (rest := stream.decompress(b"", _CHUNK)):
        length += len(rest)
    if not stream.eof:
        raise EOFError
    return length


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path.name} is damaged or truncated: its compressed data ends early or fails its checksum; copy it again."
    )
