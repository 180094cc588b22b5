"""The files that a DICOMDIR lists: the directory on CDs and in exports of archives (PS3.10, 8.6)."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS

DICOMDIR = "DICOMDIR"


def is_dicomdir(path: Path) -> bool:
    """Whether a file is a DICOMDIR, which always has this name."""
    return path.name.upper() == DICOMDIR and path.is_file()


def dicomdir_in(folder: Path) -> Path | None:
    """The DICOMDIR of a folder, if it has one."""
    return next((path for path in sorted(folder.iterdir()) if is_dicomdir(path)), None)


def listed_files(path: Path) -> list[Path]:
    """Files that a DICOMDIR refers to.

    Parameters
    ----------
    path : Path
        The DICOMDIR; its files lie below its folder.

    Raises
    ------
    InputError
        If it is damaged, or a file that it lists is gone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            records = pydicom.dcmread(path).DirectoryRecordSequence
            files = [_on_disk(path.parent, item) for item in records if item.get("ReferencedFileID")]
        except PARSE_ERRORS:
            raise InputError(f"{path.name} is damaged; give the folder with the images instead.") from None
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{path.name} lists {len(missing)} files that are not there; copy the whole medium.")
    if not files:
        raise InputError(f"{path.name} lists no images; give the folder with the images instead.")
    return sorted(files)


def _on_disk(folder: Path, record: Dataset) -> Path:
    """The file of a directory record; some systems show the capital letters of a medium as small ones."""
    name = record.ReferencedFileID
    parts = [name] if isinstance(name, str) else [str(part) for part in name]
    path = folder.joinpath(*parts)
    small = folder.joinpath(*(part.lower() for part in parts))
    return small if small.is_file() and not path.is_file() else path
