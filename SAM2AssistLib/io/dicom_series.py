"""Read a CT volume from the single-frame DICOM images of one series in a folder.

Headers are read with pydicom and decide what belongs together and where it lies; voxels are decoded and rescaled to
Hounsfield units by ITK (GDCM). Attributes and their meaning: DICOM PS3.3, C.7.6.2 Image Plane and C.8.2.1 CT Image.
No sentence made here contains the name or the number of a patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import DamagedFile, ImageHeader, is_dicom_file, scan_folder, series_of_file
from SAM2AssistLib.io._image_checks import quiet_itk, scale_warnings
from SAM2AssistLib.volume import MAX_SHEAR_COSINE, CTVolume

__all__ = ["DicomSeries", "is_dicom_file", "list_series", "read_dicom_series", "series_of_file"]

# Images closer than this are at the same position.
_SAME_POSITION_MM = 0.01

# Slices that are off an even grid by less, in mm or in parts of their distance, were rounded in writing.
_EVEN_WITHIN_MM = 0.01
_EVEN_WITHIN_PART = 0.01

# By how much a slice distance may be smaller or larger than the usual one before the series is refused: beyond this,
# interpolated slices would look different from acquired ones.
_UNEVEN_WITHIN_PART = 0.25

# A distance this near to 2, 3, ... times the usual one is a gap where slices are missing.
_MULTIPLE_WITHIN = 0.15

# Sideways slip of slices that rounding of positions explains.
_SLIP_WITHIN_MM = 0.05

# Direction cosines and pixel spacings that differ by less are the same, written with fewer digits.
_SAME_GRID_WITHIN = 1e-3

# A few other images among many slices are left out; with a larger share of them the series is not one stack.
_ODD_IMAGES_PART = 0.25


@dataclass(frozen=True)
class DicomSeries:
    """One image series of a folder.

    Attributes
    ----------
    uid : str
        SeriesInstanceUID.
    description : str
        SeriesDescription, empty if there is none.
    modality : str
        "CT", "MR", ...
    count : int
        Number of images.
    """

    uid: str
    description: str
    modality: str
    count: int

    def __str__(self) -> str:
        """Give what a user needs to choose a series, without patient data."""
        images = "1 image" if self.count == 1 else f"{self.count} images"
        description, modality = self.description or "no description", self.modality or "no modality"
        return f"{self.uid or 'no UID'} ('{description}', {modality}, {images})"


@dataclass(frozen=True)
class _Stack:
    """Images of one grid in the order of their position along the normal of the slices.

    Attributes
    ----------
    headers : tuple of ImageHeader
        One for each slice.
    normal_lps : ndarray, shape (3,)
        Unit vector across the slices: cross product of the directions of rows and columns, so the grid is right-handed.
    distances : ndarray, shape (n,)
        Positions along the normal in mm, ascending.
    """

    headers: tuple[ImageHeader, ...]
    normal_lps: NDArray[np.float64]
    distances: NDArray[np.float64]

    @property
    def step(self) -> float:
        """Mean distance of slices in mm."""
        return float(self.distances[-1] - self.distances[0]) / (len(self.distances) - 1)

    @property
    def even_distances(self) -> NDArray[np.float64]:
        """Positions of an even grid from the first slice to the last, in mm along the normal."""
        return np.asarray(self.distances[0] + self.step * np.arange(len(self.distances)), dtype=np.float64)

    @property
    def is_even(self) -> bool:
        """Whether the slices lie on the even grid but for rounding."""
        allowed = max(_EVEN_WITHIN_MM, _EVEN_WITHIN_PART * self.step)
        return bool(np.abs(self.distances - self.even_distances).max() <= allowed)


def list_series(folder: str | Path) -> list[DicomSeries]:
    """List the image series in a folder, those with most images first; its subfolders are not searched.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    headers, _ = scan_folder(_existing_folder(folder))
    return [_summary(members) for members in _by_series(headers)]


def read_dicom_series(folder: str | Path, *, series: str | None = None) -> CTVolume:
    """Read the images of one series as a volume.

    Parameters
    ----------
    folder : str or Path
        Folder with the DICOM files, among which other files and localizers may be; subfolders are not searched.
    series : str, optional
        SeriesInstanceUID, needed where the folder holds several series of more than one image.

    Returns
    -------
    CTVolume
        k ascends along the normal of the slices. `dicom_files` names the file of each slice, unless the slices were
        slightly uneven and had to be resampled on an even grid.

    Raises
    ------
    InputError
        If there is no such series, several to choose from, or if the images are truncated, duplicate, missing, strongly
        uneven, tilted, in colour, or multi-frame.
    """
    place = _existing_folder(folder)
    headers, damaged = scan_folder(place)
    _refuse_damaged(damaged)
    members, notes = _chosen(place, _by_series(headers), series)
    grid, odd_notes = _one_grid(place, _without_localizers(place, members))
    _refuse_unusable(grid)
    stack = _stacked(place, grid)
    _refuse_uneven(place, stack)
    voxels = _read_voxels(stack)
    name = f"The series in '{place.name}'"
    warnings = [*notes, *odd_notes, *_modality_warnings(name, members[0]), *scale_warnings(name, voxels)]
    files = tuple(header.path for header in stack.headers)
    if not stack.is_even:
        voxels, files = _resampled(voxels, stack), ()
        warnings.append(
            f"{name} has slightly uneven slice distances and was resampled to {stack.step:.3f} mm, so its slices are "
            "no longer those of the files."
        )
    voxels.flags.writeable = False
    matrix, spacing = _geometry(stack)
    try:
        return CTVolume.from_array(voxels, spacing, matrix, source=place, warnings=warnings, dicom_files=files)
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}") from error


def _existing_folder(folder: str | Path) -> Path:
    """Give the folder as a path if there is one."""
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder '{place}'.")
    return place


def _by_series(headers: Iterable[ImageHeader]) -> list[list[ImageHeader]]:
    """Images of each series, series with most images first."""
    members: dict[str, list[ImageHeader]] = {}
    for header in headers:
        members.setdefault(header.series_uid, []).append(header)
    return sorted(members.values(), key=lambda group: (-len(group), group[0].series_uid))


def _summary(members: Sequence[ImageHeader]) -> DicomSeries:
    """Give the summary of a series."""
    first = members[0]
    return DicomSeries(first.series_uid, first.description, first.modality, len(members))


def _refuse_damaged(damaged: Sequence[DamagedFile]) -> None:
    """Refuse a folder with a DICOM file that does not say to which series it belongs: it may be a slice of any."""
    if damaged:
        raise InputError(f"{damaged[0].path.name} {damaged[0].reason}; copy the folder again, or remove the file.")


def _chosen(
    folder: Path, groups: Sequence[list[ImageHeader]], series: str | None
) -> tuple[list[ImageHeader], tuple[str, ...]]:
    """Give the images of the series that is meant, and a warning about others."""
    if not groups:
        raise InputError(_no_images(folder))
    listed = "; ".join(str(_summary(group)) for group in groups)
    if series is not None:
        for group in groups:
            if group[0].series_uid == series:
                return group, ()
        raise InputError(f"The folder '{folder.name}' holds no series {series}, only: {listed}.")
    candidates = [group for group in groups if _may_be_volume(group)] or list(groups)
    if len(candidates) > 1:
        raise InputError(
            f"The folder '{folder.name}' holds {len(candidates)} series, choose one with --series UID: {listed}."
        )
    others = [str(_summary(group)) for group in groups if group is not candidates[0]]
    if not others:
        return candidates[0], ()
    return candidates[0], (f"In '{folder.name}' this was not read because it is no volume: {'; '.join(others)}.",)


def _may_be_volume(members: Sequence[ImageHeader]) -> bool:
    """Whether a series is more than a localizer or a single image."""
    images = [header for header in members if not header.is_localizer]
    return len(images) > 1 or any(header.frames > 1 for header in images)


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
    """Refuse enhanced objects, whose geometry is told frame by frame."""
    if header.frames > 1 or header.is_enhanced:
        raise InputError(
            f"{header.path.name} is an enhanced multi-frame DICOM image, which cannot be read yet; convert it to one "
            "file per slice or to NIfTI."
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


def _stacked(folder: Path, images: Sequence[ImageHeader]) -> _Stack:
    """Sort images along their normal, and make sure that they are above one another and not twice the same."""
    if len(images) < 2:
        raise InputError(f"The series in '{folder.name}' has one slice only; a volume of several is needed.")
    normal = _grid_of(images[0]).normal_lps
    positions = np.array([_grid_of(header).position_lps for header in images])
    order = np.argsort(positions @ normal, kind="stable")
    stack = _Stack(tuple(images[index] for index in order), normal, (positions @ normal)[order])
    gaps = np.diff(stack.distances)
    if gaps.min() < _SAME_POSITION_MM:
        first = int(np.argmin(gaps))
        names = " and ".join(header.path.name for header in stack.headers[first : first + 2])
        raise InputError(
            f"The series in '{folder.name}' has two images at {_place(stack, stack.distances[first])} ({names}), as in "
            "a series of several time points; keep one image for each position."
        )
    _refuse_tilted(folder, stack, positions[order])
    return stack


def _refuse_tilted(folder: Path, stack: _Stack, positions: NDArray[np.float64]) -> None:
    """Refuse slices that are shifted sideways against one another, as a tilted gantry makes them."""
    along = stack.distances - stack.distances[0]
    slip = positions - positions[0] - along[:, None] * stack.normal_lps
    if np.linalg.norm(slip, axis=1).max() <= max(_SLIP_WITHIN_MM, MAX_SHEAR_COSINE * along[-1]):
        return
    angle = np.degrees(np.arctan2(np.linalg.norm(slip[-1]), along[-1]))
    raise InputError(
        f"The series in '{folder.name}' was scanned with a tilted gantry ({angle:.1f} degrees), so its slices slip "
        "sideways and form no rectangular grid; convert it with a tool that corrects the tilt, for example dcm2niix."
    )


def _refuse_uneven(folder: Path, stack: _Stack) -> None:
    """Refuse missing slices and strongly uneven distances."""
    gaps = np.diff(stack.distances)
    # The lower of two middle values, so that of two distances the smaller is the usual one.
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    ratios = gaps / usual
    for index, ratio in enumerate(ratios):
        missing = round(float(ratio)) - 1
        if missing >= 1 and abs(ratio - missing - 1) <= _MULTIPLE_WITHIN:
            first = _place(stack, stack.distances[index] + gaps[index] / (missing + 1))
            what = f"a slice is missing at {first}" if missing == 1 else f"{missing} slices are missing from {first} on"
            raise InputError(
                f"The series in '{folder.name}' has a gap: {what} (usual distance {usual:.2f} mm); copy all its files."
            )
    worst = int(np.argmax(np.abs(ratios - 1)))
    if abs(ratios[worst] - 1) > _UNEVEN_WITHIN_PART:
        raise InputError(
            f"The series in '{folder.name}' has uneven slice distances, {gaps[worst]:.2f} mm at "
            f"{_place(stack, stack.distances[worst])} where {usual:.2f} mm is usual; resample it to even slices first."
        )


def _place(stack: _Stack, distance: float) -> str:
    """Give the position of a slice as a user finds it in the headers: "z = 12.0 mm" in axial slices."""
    first = _grid_of(stack.headers[0]).position_lps
    position = first + (distance - stack.distances[0]) * stack.normal_lps
    axis = int(np.argmax(np.abs(stack.normal_lps)))
    return f"{'xyz'[axis]} = {position[axis]:.1f} mm"


def _read_voxels(stack: _Stack) -> NDArray[Any]:
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
    return voxels


def _read_pixels(header: ImageHeader) -> NDArray[Any]:
    """Decode one slice into an array (j, i)."""
    try:
        with quiet_itk():
            image = sitk.ReadImage(str(header.path))
    except RuntimeError as error:
        raise InputError(
            f"{header.path.name} cannot be decoded: it is damaged, or compressed in a way that is not supported."
        ) from error
    pixels = sitk.GetArrayFromImage(image)
    if pixels.size != header.shape[0] * header.shape[1]:
        raise InputError(f"{header.path.name} holds another number of pixels than its header announces.")
    return pixels.reshape(header.shape)


def _whole_units(pixels: NDArray[Any], header: ImageHeader) -> NDArray[Any]:
    """Round one slice, which a fractional slope has made float64, so that the whole volume need never be that wide."""
    if pixels.dtype.kind != "f":
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


def _resampled(voxels: NDArray[Any], stack: _Stack) -> NDArray[Any]:
    """Interpolate linearly between the two nearest slices at each position of the even grid."""
    even = np.empty_like(voxels)
    for index, distance in enumerate(stack.even_distances):
        upper = int(np.clip(np.searchsorted(stack.distances, distance), 1, len(stack.distances) - 1))
        low, high = stack.distances[upper - 1], stack.distances[upper]
        part = np.float32(np.clip((distance - low) / (high - low), 0.0, 1.0))
        even[index] = np.rint(voxels[upper - 1] * (1 - part) + voxels[upper] * part)
    return even


def _geometry(stack: _Stack) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Matrix from voxel indices (i, j, k) to LPS mm, and spacing along i, j and k in mm."""
    grid = _grid_of(stack.headers[0])
    spacing = (grid.column_spacing, grid.row_spacing, stack.step)
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([grid.direction_i, grid.direction_j, stack.normal_lps]) * np.array(spacing)
    matrix[:3, 3] = grid.position_lps
    return matrix, spacing


def _modality_warnings(name: str, header: ImageHeader) -> tuple[str, ...]:
    """One sentence if this is not CT."""
    if header.modality == "CT":
        return ()
    return (f"{name} is not CT but of modality {header.modality or 'unknown'}; models trained on CT may fail on it.",)


def _grid_of(header: ImageHeader) -> Any:
    """Give the grid of a header for which it was made sure that there is one."""
    return header.grid
