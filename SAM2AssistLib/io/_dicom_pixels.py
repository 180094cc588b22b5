"""Decode the slices of a DICOM series to Hounsfield units, by ITK (GDCM), else by pydicom's plugins.

ITK decodes most encodings and is quickest. Frames of enhanced images, whose rescaling may differ from frame to frame,
and encodings that it does not know are left to pydicom.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS, ImageHeader, read_dicom
from SAM2AssistLib.io._dicom_stack import Stack
from SAM2AssistLib.io._image_checks import check_name, quiet_itk
from SAM2AssistLib.io._image_grid import functional_group


def read_voxels(stack: Stack) -> NDArray[Any]:
    """Decode the slices into one array (k, j, i), rescaled to HU by the slope and intercept of each file."""
    count = len(stack.headers)
    voxels = np.empty((0, 0, 0), dtype=np.int16)
    for index, header in enumerate(stack.headers):
        pixels = _whole_units(_read_pixels(header), header)
        if index == 0:
            voxels = np.empty((count, *pixels.shape), dtype=pixels.dtype)
        elif not np.can_cast(pixels.dtype, voxels.dtype):
            voxels = voxels.astype(np.result_type(voxels, pixels))
        voxels[index] = pixels
    _enhanced.cache_clear()
    return voxels


def _read_pixels(header: ImageHeader) -> NDArray[Any]:
    """Decode one slice into an array (j, i)."""
    if header.frame is not None:
        frames, rescaling = _enhanced(header.path)
        if len(frames) <= header.frame:
            raise InputError(f"{header.path.name} holds fewer frames than its header announces; copy it again.")
        return _rescaled(frames[header.frame], *rescaling[header.frame])
    check_name(header.path)
    try:
        with quiet_itk():
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(header.path)))
    except RuntimeError:  # SimpleITK has no finer class for an encoding that it does not know
        dataset, array = _decoded(header.path)
        pixels = _rescaled(array, *_rescaling(dataset))
    if pixels.size != header.shape[0] * header.shape[1]:
        raise InputError(f"{header.path.name} holds another number of pixels than its header announces.")
    return pixels.reshape(header.shape)


@lru_cache(maxsize=1)
def _enhanced(path: Path) -> tuple[NDArray[Any], list[tuple[float, float]]]:
    """Stored values (frame, j, i) of an enhanced image, with slope and intercept of each frame."""
    dataset, array = _decoded(path)
    groups = len(dataset.PerFrameFunctionalGroupsSequence)
    rescaling = [
        _rescaling(functional_group(dataset, frame, "PixelValueTransformationSequence")) for frame in range(groups)
    ]
    return array.reshape(-1, *array.shape[-2:]), rescaling


def _decoded(path: Path) -> tuple[Dataset, NDArray[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = read_dicom(path, with_pixels=True)
            return dataset, dataset.pixel_array
        except (*PARSE_ERRORS, RuntimeError):
            raise InputError(
                f"{path.name} cannot be decoded: it is damaged, or compressed in a way that is not supported."
            ) from None


def _rescaling(holder: Dataset) -> tuple[float, float]:
    """Slope and intercept from stored values to HU (PS3.3 C.11.1)."""
    slope = holder.get("RescaleSlope")
    return float(1 if slope is None else slope), float(holder.get("RescaleIntercept") or 0)


def _rescaled(pixels: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if slope == 1 and intercept.is_integer():
        return pixels.astype(np.int32) + int(intercept)
    return np.asarray(pixels * slope + intercept)


def _whole_units(pixels: NDArray[Any], header: ImageHeader) -> NDArray[Any]:
    """Round one slice, which a fractional slope has made float64, so that the whole volume need never be that wide."""
    if pixels.dtype.kind != "f" and pixels.dtype != np.int32:
        return pixels
    rounded = np.rint(pixels)
    limits = np.iinfo(np.int32)
    if not (np.isfinite(rounded).all() and rounded.min() >= limits.min and rounded.max() <= limits.max):
        raise InputError(
            f"{header.path.name} has a RescaleSlope or RescaleIntercept that gives impossible values; export it again."
        )
    narrow = np.iinfo(np.int16)
    fits = rounded.min() >= narrow.min and rounded.max() <= narrow.max
    return rounded.astype(np.int16 if fits else np.int32)
