"""Segmentations as label maps (`.nii.gz`, `.nrrd`, `.mha`): one number per voxel, with the names in a JSON file beside.

Names are in `{"liver": 5, ...}`, from name to label value. What this program writes to `NAME.nii.gz` gets its own
`NAME.labels.json`, or `NAME.nii.gz.labels.json` where another label map `NAME` has other names there, so that results
in one folder never mix up each other's names. A reader looks for these first, for the longer name before the other;
then for `labels.json` in the same folder, which holds for all label maps of a data set, and in the folder above if the
label map is in a folder `labels`. A label that no file names is called `label_7`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io._raw_headers import check_complete
from SAM2AssistLib.io.atomic import atomic_paths, ending_of, has_text_name
from SAM2AssistLib.io.itk_image import ijk_to_lps_of, image_of, read_label_image
from SAM2AssistLib.io.named_mask import NamedMask, check_masks

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

SHARED_NAMES = "labels.json"
LABEL_MAP_ENDINGS = (".nii.gz", ".nrrd", ".mha")
MOST_LABELS = 1000


def names_path_of(path: str | Path) -> Path:
    """Where the names of a label map are written: `liver.nii.gz` -> `liver.labels.json`."""
    path = Path(path)
    return path.with_name(path.name[: len(path.name) - len(ending_of(path))] + ".labels.json")


def _whole_names_path_of(path: Path) -> Path:
    return path.with_name(path.name + ".labels.json")


def own_names_path_of(path: str | Path) -> Path:
    """Where the names of a label map are looked for: `liver.nii.gz.labels.json` if there is one."""
    path = Path(path)
    whole = _whole_names_path_of(path)
    return whole if whole.is_file() else names_path_of(path)


def names_file_of(path: Path) -> Path | None:
    """The file that the names of a label map are read from, its own or a shared one; None if there is none."""
    folder = path.resolve().parent
    shared = [folder / SHARED_NAMES, *([folder.parent / SHARED_NAMES] if folder.name == "labels" else [])]
    return next((file for file in (own_names_path_of(path), *shared) if file.is_file()), None)


def _names_path_for(path: Path, values: Mapping[str, int]) -> Path:
    """Where to write names so that no other label map gets them."""
    found = own_names_path_of(path)
    if not found.is_file() or found != names_path_of(path):
        return found
    stem = path.name[: len(path.name) - len(ending_of(path))]
    others = [p for e in LABEL_MAP_ENDINGS if (p := path.with_name(stem + e)).exists() and p.name != path.name]
    differ = read_names(found) != {value: name for name, value in values.items()}
    return _whole_names_path_of(path) if others and differ else found


def check_names_path(path: Path) -> None:
    """Refuse to replace a file that is there and holds no label names: it is somebody's, and not from here.

    Raises
    ------
    OutputError
        If there is such a file, or a folder of that name.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder, but the names of the labels go there; choose another name.")
    if not path.is_file():
        return
    try:
        read_names(path)
    except InputError as error:
        raise OutputError(
            f"{path} is there and holds something else than the names of labels, which would replace it; "
            "choose another name for the label map."
        ) from error


def write_label_map(path: str | Path, masks: Sequence[NamedMask], volume: CTVolume) -> tuple[str, ...]:
    """Write segments as label values 1, 2, ... in their order, and `NAME.labels.json` with their names.

    Parameters
    ----------
    path : str or Path
        Where to, with an ending that SimpleITK writes.
    masks : sequence of NamedMask
        At least one, on the grid of the volume, with different names. Where they overlap the later one gets the voxel.
    volume : CTVolume
        Whose geometry the file gets. NIfTI keeps it in single precision, the other formats exactly.

    Returns
    -------
    tuple of str
        A sentence for the user if voxels were lost to an overlap.

    Raises
    ------
    InputError
        If there is no mask or one is not on the grid of the volume.
    OutputError
        If two masks have the same name, a file cannot be written, or the names would replace what is no names file.
    """
    path = Path(path)
    if not masks:
        raise InputError(f"There is no segment to write to {path}.")
    check_masks(masks, volume.shape_kji)
    values = {named.name: value for value, named in enumerate(masks, 1)}
    if len(values) < len(masks):
        raise OutputError(f"{path.name} cannot hold two segments of the same name; rename one or write a .seg.nrrd.")
    check_names_path(own_names_path_of(path))
    names_path = _names_path_for(path, values)
    labels, lost = _label_array(masks, volume.shape_kji)
    with atomic_paths(path, names_path) as (part, names_part):
        names_part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            sitk.WriteImage(image_of(labels, volume.ijk_to_lps), str(part), useCompression=True)
            check_complete(part)  # ITK's writer of NIfTI does not notice that the disk is full
        except (RuntimeError, InputError) as error:  # SimpleITK tells a full disk like a format it does not know
            raise OutputError(
                f"{path} cannot be written as a label map; check the ending and the free space."
            ) from error
    if not lost:
        return ()
    pairs = ", ".join(f"{count} of '{first}' to '{second}'" for (first, second), count in lost.items())
    return (
        f"{path.name} has one label per voxel, so voxels in two segments went to the later one ({pairs}); "
        "write a .seg.nrrd to keep both.",
    )


def read_label_map(path: str | Path) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """Read the segments of a label map, with the names of the JSON file beside it (see the docstring of this module).

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    masks : list of NamedMask
        Masks (k, j, i) by rising label value: those in the image, and empty ones for names in its own
        `NAME.labels.json` that are not.
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) to LPS mm.

    Raises
    ------
    InputError
        If a file cannot be read, the image is no label map (values below 0, or more than MOST_LABELS of them) or the
        names are not `{"name": value}`.
    """
    path = Path(path)
    return segments_of_label_image(read_label_image(path), path)


def segments_of_label_image(image: sitk.Image, path: Path) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """The segments of an image that was read from a label map; see `read_label_map`."""
    labels = sitk.GetArrayViewFromImage(image)
    if labels.ndim != 3:
        raise InputError(f"The image {path} has several values per voxel, so it is no label map.")
    file = names_file_of(path)
    names = {} if file is None else read_names(file)
    values = np.unique(labels)
    if values[0] < 0 or len(values) > MOST_LABELS:
        raise InputError(
            f"{path.name} holds {len(values)} values from {values[0]} to {values[-1]}, so it is an image and no label "
            "map; give a segmentation."
        )
    wanted = {int(value) for value in values} - {0}
    if file == own_names_path_of(path):
        wanted |= set(names)
    return [NamedMask(names.get(value, f"label_{value}"), labels == value) for value in sorted(wanted)], ijk_to_lps_of(
        image
    )


def read_names(path: Path) -> dict[int, str]:
    """The names in a `labels.json`, by label value.

    Raises
    ------
    InputError
        If it cannot be read or is not an object from name to a label value above 0, each name and each value once.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = {name.strip() or name: value for name, value in pairs}  # segments bear no blanks around their names
        if len(found) < len(pairs):
            raise InputError(f"The label names {path} give one name to several labels; name each differently.")
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except OSError as error:
        raise InputError(f"The label names {path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise InputError(f'The label names {path} are not JSON; write them as {{"liver": 1}}.') from error
    if not isinstance(content, dict):
        raise InputError(f"The label names {path} have to be an object from name to label value.")
    names: dict[int, str] = {}
    for name, value in content.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(
                f"The label names {path} give '{name}' a value that is no label; use whole numbers from 1."
            )
        if not has_text_name(name):
            raise InputError(f"The label names {path} hold a name that is no text in UTF-8; correct that of {value}.")
        if value in names:
            raise InputError(f"The label names {path} give '{names[value]}' and '{name}' the same label {value}.")
        if value > 0:  # some data sets name the background
            names[value] = name
    return names


def _label_array(
    masks: Sequence[NamedMask], shape_kji: tuple[int, int, int]
) -> tuple[NDArray[np.unsignedinteger], dict[tuple[str, str], int]]:
    """The label map, and how many voxels of which segment went to which later one."""
    labels = np.zeros(shape_kji, np.uint8 if len(masks) < 256 else np.uint16)
    lost: dict[tuple[str, str], int] = {}
    for value, named in enumerate(masks, 1):
        before, counts = np.unique(labels[named.mask], return_counts=True)
        for earlier, count in zip(before.tolist(), counts.tolist(), strict=True):
            if earlier:
                lost[masks[earlier - 1].name, named.name] = count
        labels[named.mask] = value
    return labels, lost
