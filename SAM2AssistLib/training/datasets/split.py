"""Which cases are for training, which for validation, which are held out: by patient, and fixed by a file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.datasets.case import DataSet

SPLIT_FILE = "splits.json"
VALIDATION_SHARE = 0.2
FEWEST_TO_SPLIT = 3
"""With fewer cases than this, all train: a validation on one case that training misses would tell little."""


@dataclass(frozen=True)
class Split:
    """Names of cases by what they are for, and where that was decided.

    Attributes
    ----------
    train, val, test : names of cases; a case is in one of them at most.
    source : in words, for the card.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    source: str

    def as_json(self) -> dict[str, list[str]]:
        """Return the content of a ``splits.json`` that says the same."""
        return {"train": list(self.train), "val": list(self.val), "test": list(self.test)}


def split_of(data: DataSet, file: Path | None = None) -> Split:
    """Decide what each case is for.

    A file that is given, or ``splits.json`` in the data folder, decides; else the publisher's split; else a fifth of
    the patients, chosen by a hash of their names so that it is the same for ever, is for validation. Where a file or
    a publisher names no validation cases, a fifth of the training patients is set aside likewise.

    Raises
    ------
    InputError
        If the file cannot be read, names a case that is not there, has no case to train on, or puts one patient into
        two parts.
    """
    path = file or (data.root / SPLIT_FILE)
    if file is not None or path.is_file():
        parts, source = _read(path, data), str(path.name)
    elif data.split:
        parts, source = dict(data.split), f"as published with {data.layout}"
    else:
        parts, source = {"train": tuple(case.name for case in data.cases)}, "a hash of the names"
    train, val, test = (tuple(parts.get(part, ())) for part in ("train", "val", "test"))
    if not train:
        raise InputError(f"{path} names no case of {data.root} to train on; add one to 'train'.")
    _check_patients(data, train, val, test)
    if not val:
        train, val = _set_aside(data, train)
    return Split(train, val, test, source)


def _read(path: Path, data: DataSet) -> dict[str, tuple[str, ...]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        parts = {part: _names(content.get(part, [])) for part in ("train", "val", "test")}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f'{path} is no split; write it as {{"train": [...], "val": [...], "test": [...]}}.') from error
    other = next((key for key in ("validation", "valid") if key in content and "val" not in content), None)
    if other is not None:
        raise InputError(f"{path} calls a part {other!r}, whose cases would not be used; call it 'val'.")
    known = {case.name for case in data.cases}
    for part, names in parts.items():
        missing = next((name for name in names if name not in known), None)
        # Held-out cases may well be kept somewhere else, or have no labels here.
        if missing is not None and part != "test":
            raise InputError(f"{path} names {missing!r} in {part!r}, which {data.root} does not hold; correct it.")
        parts[part] = tuple(name for name in names if name in known)
    return parts


def _names(listed: object) -> tuple[str, ...]:
    if not isinstance(listed, list):
        raise TypeError("a part of a split is a list of names")
    return tuple(dict.fromkeys(map(str, listed)))


def _patient(data: DataSet, name: str) -> str:
    case = data.case(name)
    return case.patient or case.name


def _check_patients(data: DataSet, *parts: tuple[str, ...]) -> None:
    where: dict[str, int] = {}
    for index, names in enumerate(parts):
        for name in names:
            if where.setdefault(_patient(data, name), index) != index:
                raise InputError(f"The split puts {name!r} into two parts; a patient can only be in one of them.")


def _set_aside(data: DataSet, train: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    patients = sorted({_patient(data, name) for name in train}, key=_digest)
    if len(patients) < FEWEST_TO_SPLIT:
        return train, ()
    chosen = set(patients[: max(1, round(VALIDATION_SHARE * len(patients)))])
    return (
        tuple(name for name in train if _patient(data, name) not in chosen),
        tuple(name for name in train if _patient(data, name) in chosen),
    )


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
