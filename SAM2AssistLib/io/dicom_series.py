"""Read a CT volume from the DICOM images of one series: single-frame or enhanced, in a folder or named by a DICOMDIR.

Headers are read with pydicom and decide what belongs together and where it lies; voxels are decoded and rescaled to
Hounsfield units by ITK (GDCM). Attributes and their meaning: DICOM PS3.3, C.7.6.2 Image Plane and C.8.2.1 CT Image.
No sentence made here contains the name or the number of a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_choice import DicomSeries, chosen, grouped, without_copies
from SAM2AssistLib.io._dicom_headers import (
    DamagedFile,
    ImageHeader,
    is_dicom_file,
    scan_files,
    scan_folder,
    series_of_file,
)
from SAM2AssistLib.io._dicom_pixels import read_voxels
from SAM2AssistLib.io._dicom_stack import geometry, refuse_uneven, resampled, stacked
from SAM2AssistLib.io._dicomdir import dicomdir_in, is_dicomdir, listed_files
from SAM2AssistLib.io._image_checks import scale_warnings
from SAM2AssistLib.volume import CTVolume

__all__ = ["DicomSeries", "is_dicom_file", "is_dicomdir", "list_series", "read_dicom_series", "series_of_file"]

# Direction cosines and pixel spacings that differ by less are the same, written with fewer digits.
_SAME_GRID_WITHIN = 1e-3

# A few other images among many slices are left out; with a larger share of them the series is not one stack.
_ODD_IMAGES_PART = 0.25


def list_series(folder: str | Path) -> list[DicomSeries]:
    """List the image series in a folder, those with most images first; its subfolders are not searched.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    headers, _ = scan_folder(_existing_folder(folder))
    return [group.summary for group in grouped(headers)]


def read_dicom_series(folder: str | Path, *, series: str | None = None, image: Path | None = None) -> CTVolume:
    """Read the images of one series as a volume.

    Parameters
    ----------
    folder : str or Path
        Folder with the DICOM files, among which other files and localizers may be. Subfolders are not searched, except
        for the files that a DICOMDIR names; the DICOMDIR itself may be given as well.
    series : str, optional
        Number of the series as messages list it, or its UID; needed where there are several of more than one image.
    image : Path, optional
        A file of the series, which tells more than a UID that is empty or of several acquisitions; before `series`.

    Returns
    -------
    CTVolume
        k ascends along the normal of the slices. `dicom_files` names the file of each slice, unless the slices were
        slightly uneven and had to be resampled on an even grid; an enhanced image is named once for each frame.

    Raises
    ------
    InputError
        If there is no such series, several to choose from, or if the images are truncated, duplicate, missing, strongly
        uneven, tilted, in colour, or frames without a place.
    """
    place, headers, damaged = _scanned(Path(folder))
    _refuse_damaged(damaged)
    if not headers:
        raise InputError(_no_images(place))
    group, notes = chosen(place, grouped(headers), series, image)
    members, copy_notes = without_copies(place, group.members)
    grid, odd_notes = _one_grid(place, _without_localizers(place, members))
    _refuse_unusable(grid)
    stack = stacked(place, grid)
    refuse_uneven(place, stack)
    voxels = read_voxels(stack)
    name = f"The series in '{place.name}'"
    warnings = [*notes, *copy_notes, *odd_notes, *_modality_warnings(name, members[0]), *scale_warnings(name, voxels)]
    files = tuple(header.path for header in stack.headers)
    if not stack.is_even:
        voxels, files = resampled(voxels, stack), ()
        warnings.append(
            f"{name} has slightly uneven slice distances and was resampled to {stack.step:.3f} mm, so its slices are "
            "no longer those of the files."
        )
    voxels.flags.writeable = False
    matrix, spacing = geometry(stack)
    try:
        return CTVolume.from_array(voxels, spacing, matrix, source=place, warnings=warnings, dicom_files=files)
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}") from error


def _scanned(path: Path) -> tuple[Path, list[ImageHeader], list[DamagedFile]]:
    """The folder that sentences name, with the headers of its images, else of those that its DICOMDIR lists."""
    if is_dicomdir(path):
        return (path.parent, *scan_files(listed_files(path)))
    place = _existing_folder(path)
    headers, damaged = scan_folder(place)
    directory = dicomdir_in(place)
    if headers or damaged or directory is None:
        return place, headers, damaged
    return (place, *scan_files(listed_files(directory)))


def _existing_folder(folder: str | Path) -> Path:
    """Give the folder as a path if there is one."""
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder '{place}'.")
    return place if place.name else place.absolute()  # the working folder, '.', has no name to be told by


def _refuse_damaged(damaged: Sequence[DamagedFile]) -> None:
    """Refuse a folder with a DICOM file that does not say to which series it belongs: it may be a slice of any."""
    if damaged:
        raise InputError(f"{damaged[0].path.name} {damaged[0].reason}; copy the folder again, or remove the file.")


def _no_images(folder: Path) -> str:
    """Say why there is nothing to read in a folder, and where there may be something."""
    if not any(folder.iterdir()):
        return f"The folder '{folder.name}' is empty; give the one that holds the DICOM files, or an image file."
    for subfolder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if any(is_dicom_file(entry) for entry in subfolder.iterdir() if entry.is_file()):
            return f"The folder '{folder.name}' holds no DICOM images itself; give its subfolder '{subfolder.name}'."
    return f"The folder '{folder.name}' holds no DICOM images; give the one that does, or an image file."


def _without_localizers(folder: Path, members: Sequence[ImageHeader]) -> list[ImageHeader]:
    """Leave out overview images that share the series with the slices."""
    images = [header for header in members if not header.is_localizer]
    if not images:
        raise InputError(f"The series in '{folder.name}' has only localizers (overview images), so it is no volume.")
    return images


def _one_grid(folder: Path, images: Sequence[ImageHeader]) -> tuple[list[ImageHeader], tuple[str, ...]]:
    """Give the images with the size, pixel spacing and orientation most of them have, and a warning about others."""
    for header in images:
        _refuse_multiframe(header)
        if header.grid is None:
            raise InputError(
                f"{header.path.name} does not say where its image lies: ImagePositionPatient, ImageOrientationPatient "
                "or PixelSpacing is missing or impossible."
            )
    groups: list[list[ImageHeader]] = []
    for header in images:
        matching = (group for group in groups if _same_grid(group[0], header))
        group = next(matching, None)
        if group is None:
            groups.append([header])
        else:
            group.append(header)
    main = max(groups, key=len)
    odd = [header.path.name for group in groups if group is not main for header in group]
    if len(odd) > _ODD_IMAGES_PART * len(main):
        raise InputError(
            f"The series in '{folder.name}' mixes images of {len(groups)} sizes or orientations, for example "
            f"{main[0].path.name} and {odd[0]}; put those of one stack in a folder of their own."
        )
    if not odd:
        return main, ()
    return main, (f"In '{folder.name}' images of another size or orientation were not read: {', '.join(odd)}.",)


def _refuse_multiframe(header: ImageHeader) -> None:
    """Refuse frames of which it is not told where they lie."""
    if header.frame is None and (header.frames > 1 or header.is_enhanced):
        raise InputError(
            f"{header.path.name} is a multi-frame DICOM image that does not say where its frames lie; convert it to "
            "one file per slice or to NIfTI."
        )


def _same_grid(first: ImageHeader, second: ImageHeader) -> bool:
    """Whether two images could be slices of one stack, apart from their position."""
    if first.grid is None or second.grid is None or first.shape != second.shape:
        return False
    return bool(np.allclose(first.grid.numbers, second.grid.numbers, rtol=0, atol=_SAME_GRID_WITHIN))


def _refuse_unusable(images: Sequence[ImageHeader]) -> None:
    """Refuse truncated and colour images."""
    for header in images:
        if not header.is_complete:
            raise InputError(f"{header.path.name} is truncated: its pixel data ends early; copy it again.")
        if header.samples > 1:
            raise InputError(f"{header.path.name} is a colour image ({header.samples} values per pixel), not CT.")


def _modality_warnings(name: str, header: ImageHeader) -> tuple[str, ...]:
    """One sentence if this is not CT."""
    if header.modality == "CT":
        return ()
    return (f"{name} is not CT but of modality {header.modality or 'unknown'}; models trained on CT may fail on it.",)
