"""Pull a series into a folder, and push objects with confirmation that they are there."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from SAM2AssistLib.errors import InputError, OutputError, TransferError
from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS, ends_early, is_dicom_file, read_dicom
from SAM2AssistLib.transfer.archive import Archive, Instance, RemoteSeries, TransferStep

# Servers index what they get after they have said that they got it.
_CONFIRM_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.3


def pull(archive: Archive, series: RemoteSeries, folder: str | Path) -> Iterator[TransferStep]:
    """Fetch a series into a new folder, as a whole or not at all.

    Files are named by the order they come in, because UIDs and names of patients do not belong in names of files.

    Parameters
    ----------
    archive : Archive
    series : RemoteSeries
    folder : str or Path
        Absent, or empty.

    Yields
    ------
    TransferStep
        After each object. Closing the generator ends the transfer and leaves no folder behind.

    Raises
    ------
    OutputError
        If the folder holds something or cannot be written.
    TransferError
        If the server cannot be reached, refuses, or sent fewer objects than it announced or one that is cut off.
    """
    done = 0
    with _landing(Path(folder)) as place:
        for dataset in archive.fetch(series):
            done += 1
            path = place / f"{done:05d}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            if ends_early(path):  # which not every connection that closes before its end tells
                raise TransferError(f"{archive.name} sent an object that is cut off; try again.")
            yield TransferStep(done, series.count)
        if not done or (series.count is not None and done < series.count):
            raise TransferError(f"{archive.name} sent {done} objects of {series.count or 'the series'}; try again.")


def push(archive: Archive, files: Sequence[str | Path]) -> Iterator[TransferStep]:
    """Send DICOM files, then make sure that the server has them.

    Parameters
    ----------
    archive : Archive
    files : sequence of str or Path
        DICOM files, or folders of which all DICOM files are sent.

    Yields
    ------
    TransferStep
        After each object that is accepted, and after each that is confirmed; both count.

    Raises
    ------
    InputError
        If there is nothing to send, or a file is not DICOM or is cut off.
    TransferError
        If the server cannot be reached, refuses, or says afterwards that it does not have an object.
    """
    paths = [path for given in files for path in _dicom_files(Path(given))]
    if not paths:
        raise InputError("There is no DICOM file to send; name files or folders that hold them.")
    instances = [_instance_of(path) for path in paths]
    done, total = 0, 2 * len(paths)
    for _ in archive.store(paths):
        done += 1
        yield TransferStep(done, total)
    for path, instance in zip(paths, instances, strict=True):
        if not _confirmed(archive, instance):
            raise TransferError(f"{archive.name} accepted {path.name} but does not have it; ask who runs it why.")
        done += 1
        yield TransferStep(done, total)


def _dicom_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(entry for entry in path.rglob("*") if entry.is_file() and _is_object(entry))
    if not path.is_file():
        raise InputError(f"There is no file or folder '{path}'; check the path.")
    if not is_dicom_file(path):
        raise InputError(f"{path.name} is no DICOM file; export the result as .dcm first.")
    return [path]


def _is_object(path: Path) -> bool:
    return path.name.upper() != "DICOMDIR" and is_dicom_file(path)


def _instance_of(path: Path) -> Instance:
    try:
        header = read_dicom(path)
        uids = [str(header.get(word) or "") for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    except PARSE_ERRORS:
        raise InputError(f"{path.name} is damaged: its DICOM header cannot be read.") from None
    if ends_early(path):
        raise InputError(f"{path.name} is truncated, so nobody could open it there; copy it again.")
    if not all(uids) or not header.get("SOPClassUID"):
        raise InputError(f"{path.name} does not say which study, series and object it is, so no server can keep it.")
    return Instance(*uids)


def _confirmed(archive: Archive, instance: Instance) -> bool:
    wait = _FIRST_WAIT_SECONDS
    for attempt in range(1, _CONFIRM_ATTEMPTS + 1):
        if archive.holds(instance):
            return True
        if attempt < _CONFIRM_ATTEMPTS:
            time.sleep(wait)
            wait *= 2
    return False


def check_landing(folder: Path) -> None:
    """Refuse a folder that a series cannot be pulled into.

    Raises
    ------
    OutputError
        If it holds something, or the folder that it is to be in is not there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty; name a new folder for the series.")
    parent = Path(os.path.realpath(folder)).parent
    if not parent.is_dir():
        raise OutputError(f"The folder {parent} does not exist; make it first.")


@contextmanager
def _landing(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is meant, which takes its place when the block ends without an exception."""
    check_landing(folder)
    target = Path(os.path.realpath(folder))
    place = target.with_name(f".sam2assist-{secrets.token_hex(6)}")
    try:
        place.mkdir(mode=0o700)
        yield place
        if target.is_dir():
            target.rmdir()
        place.rename(target)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
