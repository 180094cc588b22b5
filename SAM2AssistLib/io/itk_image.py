"""Segmentation images in and out of SimpleITK, with their geometry as one matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._image_checks import check_name, quiet_itk
from SAM2AssistLib.io._raw_headers import check_complete


def ijk_to_lps_of(image: sitk.Image) -> NDArray[np.float64]:
    """From voxel indices (i, j, k) of a 3D image to LPS mm, shape (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return matrix


def image_of(array_kji: NDArray[np.generic], ijk_to_lps: NDArray[np.float64]) -> sitk.Image:
    """A SimpleITK image of an array (k, j, i), placed by a matrix from voxel indices to LPS mm."""
    image = sitk.GetImageFromArray(array_kji)
    spacing = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((ijk_to_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(ijk_to_lps[:3, 3].tolist())
    return image


def read_label_image(path: Path) -> sitk.Image:
    """Read a 3D image of whole numbers, with one or more numbers per voxel.

    Raises
    ------
    InputError
        If it is not there, cannot be read, is cut short or damaged, is not three-dimensional or does not hold whole
        numbers.
    """
    if not path.is_file():
        raise InputError(f"The segmentation {path} is not there; check the path.")
    check_name(path)
    try:
        check_complete(path)
    except InputError as error:  # whose sentence has the name alone, which an image often shares
        raise InputError(f"The segmentation {path} cannot be read: {error}") from error
    try:
        with quiet_itk():
            image = sitk.ReadImage(str(path))
    except RuntimeError as error:  # SimpleITK has no finer class for a file that it cannot read
        raise InputError(f"The segmentation {path} cannot be read: it is damaged or in another format.") from error
    if image.GetDimension() != 3:
        raise InputError(f"The segmentation {path} has {image.GetDimension()} dimensions instead of 3.")
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(f"The image {path} holds complex numbers, so it is no label map; give a segmentation.")
    if "float" in image.GetPixelIDTypeAsString():
        return _as_whole_numbers(image, path)
    return image


def _as_whole_numbers(image: sitk.Image, path: Path) -> sitk.Image:
    """A float image that holds whole numbers (as some tools write label maps) as one of int32."""
    values = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(values).all() or not (values == np.round(values)).all() or np.abs(values).max(initial=0) > 2**31:
        raise InputError(f"The image {path} holds fractions, so it is no label map; give a segmentation.")
    is_vector = image.GetNumberOfComponentsPerPixel() > 1
    return sitk.Cast(image, sitk.sitkVectorInt32 if is_vector else sitk.sitkInt32)
