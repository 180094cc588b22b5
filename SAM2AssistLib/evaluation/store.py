"""What has been measured so far, kept on the disk so that a long measurement can be broken off and gone on with.

A result folder holds ``settings.json`` (what was measured, and how), ``cases/CASE.json`` (the results of a case,
renewed after each structure), ``files/CASE.json`` (by what digests of its files they are known again) and
``masks/CASE/*.npz`` (the masks, for the pictures of the report).
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.engine.store import file_sha256
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import atomic_path, make_folder
from SAM2AssistLib.io.named_mask import bounding_box

Record = TypeVar("Record")

LONGEST_NAME = 180
"""Of a case or a structure in a file's name; behaviour, seed and ending come behind it."""


@dataclass(frozen=True)
class CaseResults(Generic[Record]):
    """What is known of a case.

    Attributes
    ----------
    structures : all that are to be measured.
    measured : those that have been.
    records : one or more for each of these.
    """

    structures: tuple[str, ...]
    measured: tuple[str, ...]
    records: tuple[Record, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return set(self.structures) <= set(self.measured)


class Store(Generic[Record]):
    """A result folder.

    Parameters
    ----------
    folder : made if it is not there.
    settings : what is measured, as JSON; the same for all results in the folder.
    record_type : a flat dataclass of numbers, strings and tuples.

    Raises
    ------
    InputError
        If the folder holds results of other settings.
    OutputError
        If it cannot be made.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], record_type: type[Record]) -> None:
        self.folder, self.record_type = folder, record_type
        settings = json.loads(json.dumps(settings))  # as they will be read again
        for part in ("cases", "masks", "files"):
            make_folder(folder / part)
        path = folder / "settings.json"
        if path.is_file():
            held = _read(path)
            if held != settings:
                _give_over(folder, held, settings)
        write_json(path, settings)

    def hold_to(self, case: str, files: Sequence[Path], *names: Mapping[int, str]) -> None:
        """Note what the results of a case are of, or will be.

        Parameters
        ----------
        files : of image, reference and whatever else is read; a folder is all that is in it.
        names : what the values of the reference mean, and those of each reference that is read besides.

        Raises
        ------
        InputError
            If the results that are there are of others, or of these as they were before.
        """
        digests = {"set of names": "".join(map(_digest_of_names, names))}
        for path in files:
            name = "/".join(path.parts[-2:])  # which a reference and a result may share
            digests[name] = digests.get(name, "") + _digest(path)
        path = self.folder / "files" / self._case_path(case).name
        if not (path.is_file() and self._case_path(case).is_file()):  # nothing was kept of a case that was refused
            write_json(path, digests)
            return
        held = _read(path)
        if held != digests:
            changed = [name for name in digests if held.get(name) != digests[name]]
            raise InputError(
                f"{self.folder} holds results of {case} with another {' and '.join(changed) or 'set of files'}; choose "
                "another folder for --out."
            )

    def load(self, case: str) -> CaseResults[Record] | None:
        """Return what is known of a case, None if nothing is."""
        path = self._case_path(case)
        if not path.is_file():
            return None
        content = _read(path)
        try:
            records = tuple(self._record(row) for row in content["records"])
            return CaseResults(tuple(content["structures"]), tuple(content["measured"]), records)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} was written by another version; delete it to have its case measured anew."
            ) from error

    def save(self, case: str, results: CaseResults[Record]) -> None:
        """Keep what is known of a case."""
        rows = [asdict(record) for record in results.records]  # type: ignore[call-overload]
        content = {"case": case, "structures": results.structures, "measured": results.measured, "records": rows}
        write_json(self._case_path(case), content)

    def save_mask(self, case: str, key: Sequence[object], mask: NDArray[np.bool_]) -> None:
        """Keep a mask (k, j, i)."""
        path = self._mask_path(case, key)
        make_folder(path.parent)
        box = bounding_box(mask)
        bounds = [] if box is None else [[part.start, part.stop] for part in box]
        voxels = np.zeros((0, 0, 0), bool) if box is None else mask[box]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            shape=np.array(mask.shape),
            bounds=np.array(bounds, int).reshape(-1, 2),
            bits=np.packbits(voxels),
        )
        with atomic_path(path) as part:
            part.write_bytes(buffer.getvalue())

    def load_mask(self, case: str, key: Sequence[object]) -> NDArray[np.bool_] | None:
        """Return a mask (k, j, i) that was kept, else None."""
        path = self._mask_path(case, key)
        if not path.is_file():
            return None
        try:
            return _unpacked(path)
        except (ValueError, KeyError, IndexError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} is damaged; delete it and {self._case_path(case)} to have its case measured anew."
            ) from error

    def _record(self, row: dict[str, Any]) -> Record:
        names = {field.name for field in fields(self.record_type)}  # type: ignore[arg-type]
        if set(row) != names:
            raise KeyError(", ".join(set(row) ^ names))
        return self.record_type(**{key: _as_tuple(value) for key, value in row.items()})

    def _case_path(self, case: str) -> Path:
        return self.folder / "cases" / f"{_file_name(case)}.json"

    def _mask_path(self, case: str, key: Sequence[object]) -> Path:
        name = "_".join(_file_name(str(part)) for part in key)
        return self.folder / "masks" / _file_name(case) / f"{name}.npz"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged; delete it to have it made anew.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no result of an evaluation; choose another folder for --out.")
    return content


def _unpacked(path: Path) -> NDArray[np.bool_]:
    with np.load(path, allow_pickle=False) as held:
        mask = np.zeros(held["shape"], bool)
        bounds = held["bounds"]
        if len(bounds):
            shape = tuple(int(n) for n in bounds[:, 1] - bounds[:, 0])
            voxels = np.unpackbits(held["bits"], count=int(np.prod(shape))).astype(bool).reshape(shape)
            mask[tuple(slice(a, b) for a, b in bounds)] = voxels
    return mask


def _give_over(folder: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Let a folder be of other settings, unless it holds what was measured with those before or is somebody else's."""
    cases = sorted((folder / "cases").glob("*.json"))
    if held.keys() != wanted.keys() or any(_read(case).get("measured", True) for case in cases):
        _check_same(folder, held, wanted)
        return
    for case in cases:  # of a run that had nothing to measure, which with these settings may be otherwise
        case.unlink()


def _check_same(folder: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in sorted({*held, *wanted}):
        if held.get(key) != wanted.get(key):
            raise InputError(
                f"{folder} holds results for {key} {json.dumps(held.get(key))}, not {json.dumps(wanted.get(key))}; "
                "choose another folder for --out."
            )


def _digest(path: Path) -> str:
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(file_sha256(part) for part in parts).encode()).hexdigest()[:16]


def _file_name(name: str) -> str:
    """Return a name as a part of a file's, in which most systems allow 255 bytes; a longer one ends in its digest."""
    quoted = quote(name, safe="")
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return quoted if len(quoted) <= LONGEST_NAME else f"{quoted[: LONGEST_NAME - 16]}{digest}"


def _digest_of_names(names: Mapping[int, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names.items())).encode()).hexdigest()[:16]


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
