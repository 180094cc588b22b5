"""Writing a file as a whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from SAM2AssistLib.errors import OutputError, SAM2AssistError

# Endings of two parts by which writers know the format; of any other file the last part is the ending.
DOUBLE_ENDINGS = (".seg.nrrd", ".nii.gz")

LEAST_FREE_BYTES = 1 << 20
"""With less than this, a writer that does not say why it has failed has found the disk full."""

# What torch.save says where less was written than it gave, which the room that is left may not tell: under a quota.
_TORCH_WROTE_LESS = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing")


def ending_of(path: str | Path) -> str:
    """The ending by which the format of a file is known, in lower case: '.seg.nrrd', '.nii.gz', '.png', ..."""
    name = Path(path).name.lower()
    for ending in DOUBLE_ENDINGS:
        if name.endswith(ending):
            return ending
    return Path(name).suffix


def has_text_name(path: str | Path) -> bool:
    """Tell whether a path is text: of any other, of a disc written in Latin-1 for example, ITK ends the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(path: str | bytes | Path) -> str:
    """Give a path with a mark for what of it is no text."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    return one.exists() and other.exists() and one.samefile(other)


def check_place(path: str | Path) -> None:
    """Refuse, before any work is done, a path that no file can be written to.

    Raises
    ------
    OutputError
        If it is a folder, its folder is missing or may not be written to, or the path is no text.
    """
    path = Path(path)
    _check_text(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OutputError(f"The folder {folder} does not exist; make it first or choose another place for {path.name}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"The folder {folder} may not be written to; choose another place for {path.name}.")


def _check_text(path: Path) -> None:
    if not has_text_name(path):
        raise OutputError(f"The path {shown(path)} is no text in UTF-8; choose another name or folder.")


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those it lies in, unless it is there.

    Raises
    ------
    OutputError
        If it cannot be made, or may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made ({error.strerror}); choose another one.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"The folder {folder} may not be written to; choose another one.")


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Make a folder as `make_folder` does; what had to be made goes again if the block fails and left nothing in it."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # holds something
            for place in made:
                place.rmdir()
        raise


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Give a path to write to, and put the file in its place when the block ends without an exception.

    The path is in the folder of `final`, so that moving it is one step of the file system, and has the same ending, so
    that writers which choose the format by it do the same. If anything goes wrong, also a cancellation, it is removed
    and a file that was there before stays as it was.

    Parameters
    ----------
    final : str or Path
        Where the file is to be. A symbolic link is followed, so the file that it points to is replaced.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OutputError
        If the file cannot be written (no such folder, no permission, disk full), from the block or from here.
    """
    with atomic_paths(final) as (part,):
        yield part


@contextmanager
def atomic_paths(*finals: str | Path) -> Iterator[tuple[Path, ...]]:
    """Do as `atomic_path` for files that belong together: all are whole on the disk before the first is in its place.

    They are put there in the order given, one right after the other; between two of them only a kill can come.

    Raises
    ------
    OutputError
        As `atomic_path` does.
    """
    for final in finals:
        _check_text(Path(final))
    targets = [Path(os.path.realpath(final)) for final in finals]
    parts = tuple(target.with_name(f".sam2assist-{secrets.token_hex(6)}{ending_of(target)}") for target in targets)
    try:
        yield parts
        for part in parts:
            _flush(part)
        for part, target in zip(parts, targets, strict=True):
            os.replace(part, target)
    except SAM2AssistError:
        raise
    except Exception as error:
        # torch, safetensors and pydicom wrap what the system said, each in a way of its own.
        reason = _reason(error, parts)
        if reason is None:
            raise
        names = " and ".join(map(str, finals))
        raise OutputError(f"{names} cannot be written ({reason}); free some space or choose another place.") from error
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _reason(error: BaseException, parts: Sequence[Path]) -> str | None:
    """Tell in a few words why files could not be written; None if that is not what an exception is about."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"\[Errno (\d+)\]|\(os error (\d+)\)", str(error))
    if number is not None:
        return os.strerror(int(number[1] or number[2]))
    if isinstance(error, OSError):
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, RuntimeError) and (_TORCH_WROTE_LESS.search(str(error)) or not _has_room(parts)):
        return os.strerror(errno.ENOSPC)
    return None


def _has_room(parts: Sequence[Path]) -> bool:
    try:
        return all(shutil.disk_usage(part.parent).free > LEAST_FREE_BYTES for part in parts)
    except OSError:
        return False


def _flush(path: Path) -> None:
    """Have the content on the disk before the name points to it; else a power cut leaves an empty file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
