"""DICOM series with masks on them, and the programs of others that read what is made of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import affine, ct_values, rotation, write_dicom_series

from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.volume import CTVolume

OBLIQUE = affine((0.7, 0.9, 2.5), rotation((20, -15, 40)), (-12.5, 30.25, 7.0))
AXIAL = affine((0.8, 0.8, 3.0), origin_lps=(-100.0, -120.0, 50.0))
SHAPE_KJI = (6, 24, 20)


def a_series(folder: Path, shape_kji=SHAPE_KJI, ijk_to_lps=OBLIQUE, **tags) -> CTVolume:
    """Write a series and read it."""
    write_dicom_series(folder, ct_values(shape_kji), ijk_to_lps, **tags)
    return CTVolume.read(folder)


def box_mask(shape_kji, low, high) -> np.ndarray:
    """A box of voxels from `low` to before `high`."""
    mask = np.zeros(shape_kji, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def liver_and_tumor(shape_kji=SHAPE_KJI) -> list[NamedMask]:
    """Two segments of which one lies within the other, on some of the slices."""
    return [
        NamedMask("liver", box_mask(shape_kji, (1, 4, 3), (5, 20, 15))),
        NamedMask("liver tumor", box_mask(shape_kji, (2, 8, 6), (4, 12, 10))),
    ]


def apart(shape_kji=SHAPE_KJI) -> list[NamedMask]:
    """Two segments that do not overlap."""
    return [
        NamedMask("left kidney", box_mask(shape_kji, (0, 2, 2), (3, 9, 8))),
        NamedMask("Milz (Größe?)", box_mask(shape_kji, (2, 10, 9), (6, 20, 18))),
    ]


def program(name: str) -> str:
    """Path of a program, from this environment or from the system; the test is skipped without."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(
            f"{name} is not installed (pip install dcmqi; apt-get install dicom3tools orthanc orthanc-dicomweb)"
        )
    return found


def call(*command: object) -> str:
    """Run a program to its end and give all it says."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    return done.stdout + done.stderr


def complaints(path: Path) -> list[str]:
    """Give the errors that dciodvfy finds in a DICOM file."""
    return [line for line in call(program("dciodvfy"), path).splitlines() if line.startswith("Error")]


def dcmqi_writing(
    writer: str, folder: Path, masks: Sequence[NamedMask], volume: CTVolume, output: Path
) -> tuple[object, ...]:
    """The command with which dcmqi's `itkimage2segimage` writes masks as DICOM-SEG, after making what it reads."""
    images = [folder / f"dcmqi-{number}.nrrd" for number in range(len(masks))]
    for path, named in zip(images, masks, strict=True):
        image = sitk.GetImageFromArray(named.mask.astype(np.uint8))
        image.SetSpacing(volume.spacing_ijk)
        image.SetDirection((volume.ijk_to_lps[:3, :3] / volume.spacing_ijk).ravel().tolist())
        image.SetOrigin(volume.ijk_to_lps[:3, 3].tolist())
        sitk.WriteImage(image, path, True)
    metadata = folder / "dcmqi.json"
    metadata.write_text(json.dumps(_dcmqi_metadata([named.name for named in masks])))
    return (
        writer, "--inputImageList", ",".join(map(str, images)), "--inputDICOMDirectory", volume.dicom_files[0].parent,
        "--inputMetadata", metadata, "--outputDICOM", output, "--skip", "1",
    )  # fmt: skip


def _dcmqi_metadata(names: Sequence[str]) -> dict[str, Any]:
    """What itkimage2segimage has to be told, one list for each input image."""
    tissue = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    return {
        "ContentCreatorName": "Reader1",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "BodyPartExamined": "",
        "segmentAttributes": [
            [
                {
                    "labelID": 1,
                    "SegmentDescription": name,
                    "SegmentLabel": name,
                    "SegmentAlgorithmType": "MANUAL",
                    "SegmentedPropertyCategoryCodeSequence": tissue,
                    "SegmentedPropertyTypeCodeSequence": tissue,
                    "recommendedDisplayRGBValue": [200, 100, 50],
                }
            ]
            for name in names
        ],
    }
