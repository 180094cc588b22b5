"""Read a CT volume from an image file or a DICOM series, or say in one sentence why that cannot be.

An image that would give a wrong segmentation without anybody noticing is refused: a truncated file, an impossible
spacing, a label map in the place of the image. One that is merely unusual is read, and `CTVolume.warnings` says how.
"""

from __future__ import annotations

import math
from pathlib import Path

import SimpleITK as sitk

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._image_checks import check_name, is_label_map, quiet_itk, scale_warnings
from SAM2AssistLib.io._raw_headers import check_header
from SAM2AssistLib.io.dicom_series import is_dicom_file, is_dicomdir, read_dicom_series, series_of_file
from SAM2AssistLib.io.itk_image import ijk_to_lps_of
from SAM2AssistLib.volume import CTVolume

# 4 GB of int16; the longest clinical CT, 5000 slices of 512 x 512, has 1.3e9 voxels.
MAX_VOXELS = 2**31


def read_volume(path: str | Path, *, series: str | None = None) -> CTVolume:
    """Read a CT from a file or from a folder with a DICOM series.

    Parameters
    ----------
    path : str or Path
        A NIfTI, NRRD or MHA file, any other file SimpleITK reads, a folder with DICOM files, a DICOMDIR, or a DICOM
        image, which stands for its whole series.
    series : str, optional
        Number, as messages list it, or UID of the series, where a folder holds several.

    Returns
    -------
    CTVolume
        On exactly the grid of the file: oblique, flipped and left-handed directions are kept.

    Raises
    ------
    InputError
        If it does not exist, cannot be read, or is not one CT volume; if a series is chosen in what is not DICOM.
    """
    source = Path(path)
    if not source.is_dir() and not source.is_file():
        raise InputError(f"There is no file or folder '{source}'; check the path.")
    try:
        if source.is_dir() or is_dicomdir(source):
            return read_dicom_series(source, series=series)
        if is_dicom_file(source):
            if series:
                return read_dicom_series(source.parent, series=series)
            return read_dicom_series(source.parent, series=series_of_file(source) or None, image=source)
        if series:
            raise InputError(f"{source.name} is one image and holds no series to choose from; leave out --series.")
        return read_image_file(source)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str | Path) else source.name
        raise InputError(f"{name} cannot be opened ({error.strerror}).") from error


def read_image_file(path: Path) -> CTVolume:
    """Read a CT from one file that is not DICOM.

    Parameters
    ----------
    path : Path
        An existing file.

    Raises
    ------
    InputError
        If it cannot be read, or is not one three-dimensional CT volume with finite values and a proper grid.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty (0 bytes).")
    check_name(path)
    notes = check_header(path)
    with quiet_itk():
        image = _read_with_itk(path)
    array = sitk.GetArrayFromImage(image)
    array.flags.writeable = False
    if is_label_map(array):
        raise InputError(
            f"{path.name} holds whole numbers from {array.min():g} to {array.max():g} in uniform regions, so it is a "
            "label map and not a CT; give the image that it belongs to."
        )
    try:
        return CTVolume.from_array(
            array,
            image.GetSpacing(),
            ijk_to_lps_of(image),
            source=path,
            warnings=(*notes, *scale_warnings(path.name, array)),
        )
    except InputError as error:
        raise InputError(f"{path.name} cannot be used: {error}") from error


def _read_with_itk(path: Path) -> sitk.Image:
    """Read a file as a three-dimensional scalar image, after looking at what it announces."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(_unreadable(path, str(error))) from error
    _check_announced(path, reader)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(_unreadable(path, str(error))) from error
    return image[:, :, :, 0] if image.GetDimension() == 4 else image


def _unreadable(path: Path, itk_message: str) -> str:
    """One sentence instead of ITK's page."""
    name = path.name
    if "Unable to determine ImageIO" in itk_message:
        return f"{name} is not an image that can be read; NIfTI, NRRD, MHA and DICOM can."
    if "orthonormal" in itk_message:
        return f"{name} has a sheared orientation matrix; resample it to a rectangular grid."
    if "ero-valued spacing" in itk_message:
        return f"{name} has a spacing that is not above 0 mm; correct its header or convert it again from its source."
    if "determinant is 0" in itk_message:
        return f"{name} has a singular orientation matrix: its axes span no volume."
    return f"{name} cannot be read: it is damaged or truncated, or a kind of image that is not supported."


def _check_announced(path: Path, reader: sitk.ImageFileReader) -> None:
    """Refuse, before its voxels are read, what is not one three-dimensional scalar image of a size that fits."""
    name, size = path.name, reader.GetSize()
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()).lower():
        raise InputError(f"{name} holds complex numbers; a CT has one real number in each voxel.")
    if reader.GetNumberOfComponents() > 1:
        raise InputError(
            f"{name} is a colour or vector image ({reader.GetNumberOfComponents()} values per voxel); a CT has one."
        )
    if len(size) < 3:
        raise InputError(f"{name} is a two-dimensional image; a CT volume with several slices is needed.")
    if len(size) == 4 and size[3] > 1:
        raise InputError(f"{name} has four dimensions ({size[3]} time points or channels); extract one of them first.")
    if len(size) > 4:
        raise InputError(f"{name} has {len(size)} dimensions; extract one three-dimensional volume first.")
    if min(size) < 1:
        raise InputError(f"{name} holds no voxels: its size is {' x '.join(map(str, size))}.")
    if math.prod(size) > MAX_VOXELS:
        raise InputError(
            f"{name} announces {' x '.join(map(str, size))} voxels, which need more than {MAX_VOXELS * 2 // 10**9} GB "
            "of memory; crop or resample it."
        )
    if min(size[:3]) == 1:
        raise InputError(f"{name} has one slice only ({' x '.join(map(str, size))}); a volume of several is needed.")
