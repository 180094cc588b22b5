"""What is measured: CTs with references, found by the readers of the training data sets.

Whatever layout those readers know can be measured. A ``splits.json`` in the data folder (``{"train": [...], "test":
[...]}``), or else the split that the publisher of the data made, names the cases of each part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.datasets.case import Case as CaseFiles
from SAM2AssistLib.training.datasets.case import DataSet, read_labelled
from SAM2AssistLib.training.datasets.layouts import find_data

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

SPLITS = "splits.json"


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A CT and its reference in memory.

    Attributes
    ----------
    name : of the case.
    volume : the CT.
    labels : (k, j, i), 0 is everything else.
    names : label by structure.
    """

    name: str
    volume: CTVolume
    labels: NDArray[np.uint8]
    names: Mapping[str, int]

    @property
    def spacing_kji(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array axes."""
        i, j, k = self.volume.spacing_ijk
        return k, j, i

    def reference(self, structure: str) -> NDArray[np.bool_]:
        """Return where a structure is, bool (k, j, i); empty if the case does not have it."""
        return self.labels == self.names.get(structure, -1)

    def structures(self, wanted: Sequence[str] = (), least_voxels: int = 1) -> list[str]:
        """List the structures that are large enough, by label.

        Parameters
        ----------
        wanted : only these; all if empty.
        least_voxels : of a structure, to be listed.
        """
        voxels = np.bincount(self.labels.ravel(), minlength=256)
        found = [name for name, value in self.names.items() if voxels[value] >= max(1, least_voxels)]
        return [name for name in found if not wanted or name in wanted]


@dataclass(frozen=True)
class Case:
    """A CT and its reference on the disk.

    Attributes
    ----------
    files : where they are.
    names : label by structure, the same for all cases of a data folder.
    """

    files: CaseFiles
    names: Mapping[str, int]

    @property
    def name(self) -> str:
        """Unique in its data folder, such as "ct_sarcoma/sts_001"."""
        return self.files.name

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of image and reference."""
        label_map = () if self.files.label_map is None else (self.files.label_map,)
        return (self.files.image, *label_map, *self.files.masks.values())

    @property
    def values(self) -> Mapping[int, str]:
        """What the values of the reference mean; empty where each structure is a file, whose name says what it is."""
        return self.files.values

    def read(self) -> ReadCase:
        """Read image and reference.

        Raises
        ------
        InputError
            If one cannot be read, or they are not on one grid.
        """
        held = read_labelled(self.files, self.names)
        return ReadCase(self.name, held.volume, held.labels, self.names)


def find_cases(
    data: Path, part: str | None = None, only: Sequence[str] = (), notes: list[str] | None = None
) -> list[Case]:
    """Find the cases of a data folder.

    Parameters
    ----------
    data : folder in one of the layouts.
    part : such as "test"; all cases with a reference if not given.
    only : names of cases; all if empty.
    notes : gets a sentence if the part names cases that have no reference here, unless cases are chosen by name.

    Raises
    ------
    InputError
        If the folder, the part or a case is not there, or what is in the folder does not fit together.
    """
    if not data.is_dir():
        raise InputError(f"There is no data folder '{data}'; check the path after --data.")
    held = find_data(data)
    cases = {case.name: Case(case, held.names) for case in held.cases}
    if part is not None:
        named = list(dict.fromkeys(_names_of_part(held, part)))
        absent = [name for name in named if name not in cases]
        cases = {name: cases[name] for name in named if name in cases}
        if not cases:
            raise InputError(f"The part '{part}' of {data} names no case with a reference; choose another.")
        # Held-out cases may well have no labels here, but a name may be misspelt, too.
        if absent and notes is not None and not only:
            notes.append(
                f"{len(absent)} of the {len(named)} cases of the part '{part}' have no image with a reference in "
                f"{data} and are left out: {listed(absent)}."
            )
    for name in only:
        if name not in cases:
            raise InputError(f"There is no case '{name}' with a reference in {data}; it has {listed(cases)}.")
    return [cases[name] for name in (dict.fromkeys(only) or cases)]


def check_structures(cases: Sequence[Case], wanted: Sequence[str]) -> None:
    """Refuse a structure that no case can have.

    Raises
    ------
    InputError
        Naming it.
    """
    for name in names_lacking(cases, wanted):
        raise InputError(f"No case has a structure '{name}'; there are {listed(cases[0].names)}.")


def names_lacking(cases: Sequence[Case], wanted: Sequence[str]) -> list[str]:
    """List the structures that no case can have, because the data do not name them."""
    return [name for name in wanted if not any(name in case.names for case in cases)]


def _names_of_part(data: DataSet, part: str) -> Sequence[str]:
    path = data.root / SPLITS
    if not path.is_file():
        if part in data.split:
            return data.split[part]
        raise InputError(
            f"{data.root} has no {SPLITS}; leave --part out or write one that names the cases of '{part}'."
        )
    try:
        split = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f'{path} is not JSON; write it as {{"train": [...], "test": [...]}}.') from error
    names = split.get(part) if isinstance(split, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        parts = [key for key, value in split.items() if isinstance(value, list)] if isinstance(split, dict) else []
        raise InputError(f"{path} has no part '{part}' with a list of cases; it has {listed(parts)}.")
    return names


def listed(names: Sequence[str] | Mapping[str, object], most: int = 8) -> str:
    """Give names for a sentence, with a mark where there are more than it shows."""
    shown = list(names)[:most]
    return (", ".join(shown) + (", ..." if len(names) > len(shown) else "")) if shown else "none"
