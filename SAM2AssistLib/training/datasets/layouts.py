"""The layouts in which labelled abdominal CT is published, and the project's own plain folder.

====================  ==================================================================================================
plain folder          ``images/NAME.nii.gz``, ``labels/NAME.nii.gz``, ``labels.json`` (``{"liver": 5, ...}``)
case folders          ``NAME/image.nii.gz``, ``NAME/label.nii.gz``, ``NAME/labels.json``, at any depth
Synapse/BTCV          ``[RawData/]Training/img/img0001.nii.gz``, ``.../label/label0001.nii.gz`` (syn3193805)
FLARE22               ``images/FLARE22_Tr_0001_0000.nii.gz``, ``labels/FLARE22_Tr_0001.nii.gz``
AMOS                  ``imagesTr/amos_0001.nii.gz``, ``labelsTr/...``, ``imagesVa``, ``labelsVa`` (2206.08023), its CT
MSD                   ``imagesTr``, ``labelsTr``, ``dataset.json`` (medicaldecathlon.com); CT tasks only
nnU-Net               ``imagesTr/NAME_0000.nii.gz``, ``labelsTr/NAME.nii.gz``, ``dataset.json`` (version 2); CT only
TotalSegmentator      ``s0001/ct.nii.gz``, ``s0001/segmentations/NAME.nii.gz``, ``meta.csv`` (arXiv 2208.05868)
====================  ==================================================================================================

Structures are called as TotalSegmentator calls them, so that adapters of several sets speak of the same classes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import ending_of
from SAM2AssistLib.io.label_map import read_names
from SAM2AssistLib.training.datasets.case import Case, DataSet

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def _numbered(*names: str) -> dict[int, str]:
    return dict(enumerate(names, 1))


BTCV_NAMES = _numbered(
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
)  # fmt: skip
FLARE22_NAMES = _numbered(
    "liver", "kidney_right", "spleen", "pancreas", "aorta", "inferior_vena_cava", "adrenal_gland_right",
    "adrenal_gland_left", "gallbladder", "esophagus", "stomach", "duodenum", "kidney_left",
)  # fmt: skip
AMOS_NAMES = _numbered(
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "pancreas", "adrenal_gland_right", "adrenal_gland_left", "duodenum", "urinary_bladder",
    "prostate_uterus",
)  # fmt: skip
SYNAPSE_TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
"""The 12 test cases of TransUNet's split of BTCV (Chen et al. 2021, arXiv 2102.04306); the other 18 train."""
AMOS_LAST_CT = 500
"""AMOS numbers its CT up to this; what follows is MR."""


def find_data(root: Path) -> DataSet:
    """Recognise the layout of a folder.

    Raises
    ------
    InputError
        If there is no such folder, it is in no layout that is known, or what is in it does not fit together; the
        message names the file.
    """
    if not root.is_dir():
        raise InputError(f"There is no data folder {root}; check the path.")
    for layout in LAYOUTS:
        found = layout(root)
        if found is not None:
            return found
    raise InputError(
        f"{root} is in no layout that is known; make it images/NAME.nii.gz, labels/NAME.nii.gz and labels.json."
    )


def _plain(root: Path) -> DataSet | None:
    if not ((root / "images").is_dir() and (root / "labels").is_dir() and (root / "labels.json").is_file()):
        return None
    names = read_names(root / "labels.json")
    cases = [
        Case(_stem(image), image, _partner(root / "labels", _stem(image), image), names)
        for image in _images(root / "images")
    ]
    return DataSet("plain folder", root, _sorted(cases))


def _case_folders(root: Path) -> DataSet | None:
    cases = []
    # Folders that are links are looked into down to the second level; "**" leaves them out.
    found = {label for pattern in ("**", "*", "*/*") for label in root.glob(f"{pattern}/label.nii.gz")}
    for label in sorted(found):
        folder = label.parent
        if not (folder / "image.nii.gz").is_file():
            raise InputError(f"{folder} has a label.nii.gz but no image.nii.gz; put the image beside it.")
        if not (folder / "labels.json").is_file():
            raise InputError(f"{folder} has a label.nii.gz but no labels.json; add the names of its values.")
        # As splits.json names it on every system; a data folder that is a case itself is called as it is.
        name = root.resolve().name if folder == root else folder.relative_to(root).as_posix()
        cases.append(Case(name, folder / "image.nii.gz", label, read_names(folder / "labels.json")))
    return DataSet("case folders", root, _sorted(cases)) if cases else None


def _btcv(root: Path) -> DataSet | None:
    for top in (root, root / "Training", root / "RawData" / "Training"):
        for images, labels in (("img", "label"), ("imagesTr", "labelsTr")):
            files = [path for path in _images(top / images) if re.fullmatch(r"img\d{4}", _stem(path))]
            if files:
                cases = [
                    Case(
                        _stem(image)[3:],
                        image,
                        _partner(top / labels, f"label{_stem(image)[3:]}", image),
                        BTCV_NAMES,
                    )
                    for image in files
                ]
                test = tuple(case.name for case in cases if int(case.name) in SYNAPSE_TEST)
                train = tuple(case.name for case in cases if case.name not in test)
                return DataSet("Synapse/BTCV", root, _sorted(cases), {"train": train, "test": test})
    return None


def _flare22(root: Path) -> DataSet | None:
    for images, labels in (("images", "labels"), ("imagesTr", "labelsTr")):
        files = [path for path in _images(root / images) if re.fullmatch(r"FLARE22_.*_0000", _stem(path))]
        if files:
            stems = [_stem(path).removesuffix("_0000") for path in files]
            cases = [
                Case(stem, image, _partner(root / labels, stem, image), FLARE22_NAMES)
                for stem, image in zip(stems, files, strict=True)
            ]
            return DataSet("FLARE22", root, _sorted(cases))
    return None


def _amos(root: Path) -> DataSet | None:
    cases: list[Case] = []
    split: dict[str, tuple[str, ...]] = {}
    for part, ending in (("train", "Tr"), ("val", "Va")):
        files = [path for path in _images(root / f"images{ending}") if re.fullmatch(r"amos_\d{4}", _stem(path))]
        if not (root / f"labels{ending}").is_dir():
            continue
        found = [
            Case(_stem(image), image, _partner(root / f"labels{ending}", _stem(image), image), AMOS_NAMES)
            for image in files
            if int(_stem(image)[5:]) <= AMOS_LAST_CT
        ]
        if files:
            split[part] = tuple(case.name for case in found)
        cases += found
    return DataSet("AMOS", root, _sorted(cases), split) if split else None


def _nnunet(root: Path) -> DataSet | None:
    description = root / "dataset.json"
    if not description.is_file() or not any((root / f"images{ending}").is_dir() for ending in ("Tr", "Ts")):
        return None
    content = _json_object(description)
    if "channel_names" not in content:
        return None
    channels = content["channel_names"]
    found = [str(name) for name in channels.values()] if isinstance(channels, dict) else []
    if [name.upper() for name in found] != ["CT"]:
        raise InputError(
            f"{description} describes images of {' and '.join(found) or 'nothing'} instead of CT; choose a data set "
            "with CT as its one channel."
        )
    names = _nnunet_names(content.get("labels"), description)
    cases: list[Case] = []
    split: dict[str, tuple[str, ...]] = {}
    for part, ending in (("train", "Tr"), ("test", "Ts")):
        labels = _images(root / f"labels{ending}")  # test images mostly have none
        images = root / f"images{ending}"
        own = [Case(_stem(label), _image_of(images, label), label, names) for label in labels]
        split |= {part: tuple(case.name for case in own)} if own else {}
        cases += own
    if not cases:
        raise InputError(f"{root} has no labelled case; add labels as labelsTr/NAME.nii.gz.")
    return DataSet("nnU-Net", root, _sorted(cases), split if "test" in split else {})


def _nnunet_names(labels: object, description: Path) -> dict[int, str]:
    if not isinstance(labels, dict) or not all(isinstance(value, int) for value in labels.values()):
        raise InputError(f"{description} must give each structure one number as its label, not a list of them.")
    if "ignore" in labels:
        raise InputError(
            f"In {description} a label says 'ignore': what is in such parts is not known, and would be taught as "
            "background; take out the label, and cases that have it."
        )
    return {value: _called(name) for name, value in labels.items() if value != 0}


def _msd(root: Path) -> DataSet | None:
    description = root / "dataset.json"
    if not (description.is_file() and (root / "labelsTr").is_dir()):
        return None
    content = _json_object(description)
    modality = content.get("modality", {})
    if list(modality.values() if isinstance(modality, dict) else []) != ["CT"]:
        raise InputError(f"{description} describes {modality} instead of CT; choose a task of CT images.")
    try:
        names = {int(value): _called(name) for value, name in content["labels"].items()}
        listed = [(str(entry["image"]), str(entry["label"])) for entry in content["training"]]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{description} lacks proper labels or training images; fetch it again.") from error
    names.pop(0, None)
    cases = []
    for image_name, label_name in listed:
        image, label = root / image_name, root / label_name
        for path in (image, label):
            if not path.is_file():
                raise InputError(f"{description} lists {path.name}, which is not there; fetch the data set again.")
        cases.append(Case(_stem(image), image, label, names))
    return DataSet("MSD", root, _sorted(cases))


def _totalsegmentator(root: Path) -> DataSet | None:
    folders = [path.parent for path in sorted(root.glob("*/ct.nii.gz")) if (path.parent / "segmentations").is_dir()]
    if not folders:
        return None
    cases = []
    for folder in folders:
        masks = {_stem(path): path for path in _images(folder / "segmentations")}
        if not masks:
            raise InputError(f"{folder / 'segmentations'} holds no mask; fetch this case again.")
        cases.append(Case(folder.name, folder / "ct.nii.gz", masks=masks))
    return DataSet("TotalSegmentator", root, _sorted(cases), _totalsegmentator_split(root / "meta.csv", cases))


def _totalsegmentator_split(path: Path, cases: Iterable[Case]) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return {}
    here = {case.name for case in cases}
    split: dict[str, tuple[str, ...]] = {"train": (), "val": (), "test": ()}
    text = path.read_text(encoding="utf-8-sig", errors="replace")  # of other columns than those that count here
    heading = text.partition("\n")[0]
    if "image_id" not in heading:
        raise InputError(
            f"{path} has no column image_id, so it does not say what is for testing; fetch it again, or rename it if "
            "it is none of TotalSegmentator's."
        )
    # Spreadsheets save it with commas.
    for row in csv.DictReader(io.StringIO(text), delimiter=";" if ";" in heading else ","):
        name, part = row.get("image_id"), row.get("split")
        if part in split and name in here:
            split[part] += (str(name),)
    return split if split["train"] else {}


# One of nnU-Net says itself what its labels mean, and its images may still be called as in FLARE22.
LAYOUTS: tuple[Callable[[Path], DataSet | None], ...] = (
    _plain, _btcv, _amos, _nnunet, _flare22, _msd, _totalsegmentator, _case_folders,
)  # fmt: skip


def _images(folder: Path) -> list[Path]:
    # macOS leaves files such as ._liver_0.nii.gz in the archives of the decathlon.
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if ending_of(path) in IMAGE_ENDINGS and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending_of(path))]


def _called(name: object) -> str:
    return str(name).lower().replace(" ", "_")


def _partner(folder: Path, stem: str, image: Path) -> Path:
    found = _image_called(folder, stem)
    if found is None:
        raise InputError(f"{image} has no labels: {folder / stem}.nii.gz is missing; add it, or take the image away.")
    return found


def _image_of(folder: Path, label: Path) -> Path:
    stem = f"{_stem(label)}_0000"
    found = _image_called(folder, stem)
    if found is None:
        raise InputError(f"{label} has no image: {folder / stem}.nii.gz is missing; add it, or take it away.")
    return found


def _image_called(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}{ending}" for ending in IMAGE_ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _json_object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON; fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object; fetch it again.")
    return content


def _sorted(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(sorted(cases, key=lambda case: case.name))
