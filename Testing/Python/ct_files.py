"""Small, valid CT files for tests: NIfTI, NRRD and MHA images and DICOM series on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from SAM2AssistLib.volume import CTVolume

# Tests look for these words in messages, where they must never appear.
PATIENT_NAME = "Secretname^Given"
PATIENT_ID = "SECRETID4711"
BIRTH_DATE = "19500203"


def ct_values(shape_kji: Sequence[int], seed: int = 0) -> NDArray[np.int16]:
    """Make noisy soft tissue in air, in HU from -1024 as scanners store them: int16 of shape (k, j, i)."""
    generator = np.random.default_rng(seed)
    values = generator.normal(40.0, 30.0, tuple(shape_kji))
    values[..., : max(1, shape_kji[2] // 3)] -= 1000.0
    return np.maximum(np.rint(values), -1024).astype(np.int16)


def affine(
    spacing_ijk: Sequence[float] = (1.0, 1.0, 1.0),
    direction: ArrayLike | None = None,
    origin_lps: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """Compose the matrix (4, 4) from voxel indices to LPS mm; the columns of `direction` are the i, j and k axes."""
    matrix = np.eye(4)
    axes = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64)
    matrix[:3, :3] = axes * np.asarray(spacing_ijk, dtype=np.float64)
    matrix[:3, 3] = origin_lps
    return matrix


def rotation(angles_degrees: Sequence[float]) -> NDArray[np.float64]:
    """Rotate about x, then y, then z: a right-handed orthonormal matrix (3, 3)."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_degrees)):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first] = np.sin(angle)
        turn[first, second] = -np.sin(angle)
        result = turn @ result
    return result


def empty_volume(
    direction: ArrayLike,
    shape_kji: tuple[int, int, int],
    spacing_ijk: Sequence[float] = (0.7, 0.9, 2.5),
    origin_lps: Sequence[float] = (-12.5, 30.25, 7.0),
) -> CTVolume:
    """Make a volume of zeros for a test of geometry; the columns of `direction` are the i, j and k axes."""
    matrix = affine(spacing_ijk, direction, origin_lps)
    return CTVolume.from_array(np.zeros(shape_kji, np.int16), spacing_ijk, matrix)


def write_image(path: Path, array_kji: NDArray[Any], ijk_to_lps: ArrayLike | None = None) -> Path:
    """Write an image by the ending of its name; an array with a fourth axis becomes a vector image."""
    matrix = affine() if ijk_to_lps is None else np.asarray(ijk_to_lps)
    image = sitk.GetImageFromArray(array_kji, isVector=array_kji.ndim == 4)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


def write_dicom_series(
    folder: Path,
    array_kji: NDArray[Any],
    ijk_to_lps: ArrayLike | None = None,
    *,
    positions_lps: ArrayLike | None = None,
    series_uid: str | None = None,
    prefix: str = "slice",
    slope: float = 1.0,
    intercept: float = -1024.0,
    **tags: Any,
) -> list[Path]:
    """Write one CT file for each slice, and give the files in the order of the slices.

    Parameters
    ----------
    folder : Path
        Made if it is absent.
    array_kji : ndarray, shape (k, j, i)
        Hounsfield units; stored values are those of the inverse of slope and intercept, as uint16.
    ijk_to_lps : array_like, shape (4, 4), optional
        Grid, by default 1 mm and no rotation. Slices are stacked along its third column.
    positions_lps : array_like, shape (k, 3), optional
        ImagePositionPatient of each slice instead of the third column of the grid.
    series_uid : str, optional
        SeriesInstanceUID, by default a new one.
    prefix : str
        How file names begin. They count down while k goes up, so that their order is not that of the slices.
    slope, intercept : float
        RescaleSlope and RescaleIntercept.
    **tags
        DICOM keywords to set in each file, or to remove where the value is None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matrix = affine() if ijk_to_lps is None else np.asarray(ijk_to_lps, dtype=np.float64)
    count = array_kji.shape[0]
    along_k = matrix[:3, 3] + np.arange(count)[:, None] * matrix[:3, 2]
    positions = along_k if positions_lps is None else np.asarray(positions_lps, dtype=np.float64)
    shared = {
        "SeriesInstanceUID": series_uid or generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        **tags,
    }
    paths = []
    for k, values in enumerate(array_kji):
        dataset = _ct_dataset(values, matrix, positions[k], slope, intercept)
        dataset.InstanceNumber = k + 1
        for keyword, value in shared.items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)
        path = folder / f"{prefix}_{count - k:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def changed(path: Path, **tags: Any) -> Path:
    """Set DICOM keywords in one file, or remove them where the value is None."""
    dataset = dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def _ct_dataset(
    values: NDArray[Any], matrix: NDArray[np.float64], position: NDArray[np.float64], slope: float, intercept: float
) -> Dataset:
    """One CT image with what readers and writers of derived objects ask for."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID = PATIENT_NAME, PATIENT_ID
    dataset.PatientBirthDate = BIRTH_DATE
    dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "120000", "1"
    dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber = "CT", "Test", 1
    dataset.SeriesDescription, dataset.ImageType = "test series", ["ORIGINAL", "PRIMARY", "AXIAL"]
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = (matrix[:3, :3] / spacing).T
    dataset.ImagePositionPatient = [f"{number:.8g}" for number in position]
    dataset.ImageOrientationPatient = [f"{number:.10f}" for number in (*directions[0], *directions[1])]
    dataset.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"]
    dataset.SliceThickness = f"{spacing[2]:.8g}"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = f"{slope:g}", f"{intercept:g}", "HU"
    stored = np.rint((values.astype(np.float64) - intercept) / slope)
    dataset.PixelData = np.clip(stored, 0, 65535).astype("<u2").tobytes()
    return dataset
