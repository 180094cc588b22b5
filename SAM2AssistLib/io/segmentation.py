"""Segmentations in and out of files, in the format that the ending of the path says."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.algorithm import Algorithm
from SAM2AssistLib.io.atomic import check_place, ending_of
from SAM2AssistLib.io.dicom_kinds import check_highdicom
from SAM2AssistLib.io.itk_image import image_of, read_label_image
from SAM2AssistLib.io.label_map import (
    LABEL_MAP_ENDINGS,
    check_names_path,
    own_names_path_of,
    segments_of_label_image,
    write_label_map,
)
from SAM2AssistLib.io.named_mask import LOST_PART, NamedMask, notes_on_outside
from SAM2AssistLib.io.seg_nrrd import has_segments, segments_of_image, write_seg_nrrd

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

__all__ = [
    "NamedMask",
    "check_before_segmenting",
    "check_can_refer",
    "check_keeps_series",
    "check_output_path",
    "masks_on_grid_of",
    "prompts_path_of",
    "read_on_grid",
    "read_segmentation",
    "write_segmentation",
    "written_files",
]

SEGMENTATION_ENDING = ".seg.nrrd"
DICOM_ENDING = ".dcm"

# Grids that agree so well in all their voxels differ by rounding only.
_SAME_WITHIN_VOXELS = 0.05


def check_output_path(path: str | Path) -> None:
    """Refuse, before any work is done, a path that a segmentation cannot be written to.

    Raises
    ------
    OutputError
        If the ending is not one that is written, the folder is missing or may not be written to, or the names of a
        label map would replace a file that is something else.
    """
    path = Path(path)
    ending = ending_of(path)
    if ending not in (SEGMENTATION_ENDING, *LABEL_MAP_ENDINGS, DICOM_ENDING):
        kind = f"a {ending} file" if ending else "a file without ending"
        raise OutputError(
            f"{path.name}: a segmentation is not written to {kind};"
            f" use {SEGMENTATION_ENDING}, {', '.join(LABEL_MAP_ENDINGS)} or {DICOM_ENDING}."
        )
    check_place(path)
    if ending == DICOM_ENDING:
        check_highdicom()
        check_own_prompts(prompts_path_of(path))
    if ending in LABEL_MAP_ENDINGS:
        check_names_path(own_names_path_of(path))


def check_own_prompts(path: Path) -> None:
    """Refuse to replace prompts that somebody has written by those that led to a DICOM-SEG.

    Raises
    ------
    OutputError
        If there is a file of that name that no result was written with, or a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder, but the prompts of the result go there; choose another name.")
    if path.is_file() and not _is_written_beside(path):
        raise OutputError(
            f"{path} is there and was not written beside a result, whose prompts would replace it; choose another name "
            "for the result."
        )


def _is_written_beside(path: Path) -> bool:
    """Tell whether a file holds prompts that were written beside a result, and not by somebody."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "made_with" in content


def check_can_refer(path: str | Path, volume: CTVolume) -> None:
    """Refuse, before a volume is segmented, a result in place of one of its images, or that cannot refer to them.

    Raises
    ------
    OutputError
        If the result would replace a DICOM image of the volume.
    InputError
        If the path ends in .dcm and the volume names no DICOM files.
    """
    check_keeps_series(path, volume)
    if ending_of(path) == DICOM_ENDING and not volume.dicom_files:
        raise InputError(
            f"{Path(path).name}: a DICOM-SEG refers to the DICOM images it is of, and this image is no DICOM series or "
            f"was resampled to even slices; give a DICOM folder, or write to a {SEGMENTATION_ENDING} file."
        )


def check_before_segmenting(path: str | Path, volume: CTVolume) -> None:
    """Do as `check_can_refer`, and read the headers that a DICOM object refers to, as its writer will after the work.

    Raises
    ------
    OutputError, InputError
        As `check_can_refer`, or if nothing can refer to these images, for example those of several patients.
    """
    check_can_refer(path, volume)
    if ending_of(path) == DICOM_ENDING:
        from SAM2AssistLib.io._dicom_sources import read_sources

        read_sources(volume.dicom_files)


def check_keeps_series(path: str | Path, volume: CTVolume) -> None:
    """Refuse a result in place of a DICOM image, of the series of a volume or of another; raises `OutputError`."""
    images = {os.path.realpath(file) for file in volume.dicom_files}
    for file in written_files(path):
        if os.path.realpath(file) in images:
            raise OutputError(f"{file.name} is an image of the series and would be lost; choose another name.")
        if _is_dicom_image(file):
            raise OutputError(f"{file.name} is a DICOM image and would be lost; choose another name.")


def _is_dicom_image(path: Path) -> bool:
    """Tell whether a DICOM image is there, and not a segmentation or contours."""
    from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS, is_dicom_file, read_dicom

    if not path.is_file() or not is_dicom_file(path):
        return False
    try:
        header = read_dicom(path)
    except PARSE_ERRORS:
        return False
    return "Rows" in header and header.get("Modality") != "SEG"


def written_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that a result at this path makes or replaces."""
    path = Path(path)
    if ending_of(path) == DICOM_ENDING:
        return (path, prompts_path_of(path))
    return (path, own_names_path_of(path)) if ending_of(path) in LABEL_MAP_ENDINGS else (path,)


def prompts_path_of(path: Path) -> Path:
    """Where the prompts that led to a DICOM-SEG are kept: `NAME.prompts.json` beside it."""
    return path.with_name(path.name[: -len(DICOM_ENDING)] + ".prompts.json")


def write_segmentation(
    path: str | Path,
    masks: Sequence[NamedMask],
    volume: CTVolume,
    *,
    algorithm: Algorithm | None = None,
    prompts_json: str = "",
) -> tuple[str, ...]:
    """Write segments as the ending says; a file that was there is replaced in one step, or stays if that fails.

    Parameters
    ----------
    path : str or Path
        `.seg.nrrd` and `.dcm` (DICOM-SEG) keep names, colors, terminology and overlaps. `.nii.gz`, `.nrrd` and `.mha`
        are label maps, whose names go to `NAME.labels.json` beside it.
    masks : sequence of NamedMask
        At least one, on the grid of the volume.
    volume : CTVolume
        Whose geometry the file gets; for DICOM-SEG read from DICOM images.
    algorithm, prompts_json
        Who made the segments and of what, which only DICOM-SEG keeps (see `write_dicom_seg`).

    Returns
    -------
    tuple of str
        Sentences for the user about what the format could not hold; empty if nothing was lost.

    Raises
    ------
    InputError
        If there is no mask or one is not on the grid of the volume; for DICOM-SEG if the volume is not from DICOM.
    OutputError
        If the ending is not one that is written, or the file cannot be written.
    """
    check_output_path(path)
    if ending_of(path) == SEGMENTATION_ENDING:
        write_seg_nrrd(path, masks, volume)
        return ()
    if ending_of(path) == DICOM_ENDING:
        from SAM2AssistLib.io.dicom_seg import write_dicom_seg

        check_can_refer(path, volume)
        return write_dicom_seg(path, masks, volume, algorithm=algorithm, prompts_json=prompts_json)
    return write_label_map(path, masks, volume)


def read_segmentation(
    path: str | Path, volume: CTVolume | None = None, notes: list[str] | None = None
) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """Read the segments of a `.seg.nrrd`, a DICOM-SEG, an RTSTRUCT, or a label map with names beside it.

    Parameters
    ----------
    path : str or Path
        Any file that SimpleITK reads. One with Slicer's keys is read as a segmentation whatever its ending is.
    volume : CTVolume, optional
        The image they belong to. The contours of an RTSTRUCT are rasterised on its grid, so it needs one; a DICOM-SEG
        of another patient position is refused with it.
    notes : list of str, optional
        Gets a sentence for each thing that the user should know of how it was read.

    Returns
    -------
    masks : list of NamedMask
        Masks (k, j, i).
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) of the masks to LPS mm. Slicer crops what it saves, so this may be a part of the
        grid of the volume; `masks_on_grid_of` brings the masks there.

    Raises
    ------
    InputError
        If the file cannot be read or is no segmentation, or an RTSTRUCT comes without its volume.
    """
    path = Path(path)
    # Here and above, because pydicom takes its time to load, and the command line imports this module.
    from SAM2AssistLib.io.dicom_objects import is_dicom_object, read_dicom_segments

    if is_dicom_object(path):
        return read_dicom_segments(path, volume, notes)
    image = read_label_image(path)
    if has_segments(image):
        return segments_of_image(image, path)
    return segments_of_label_image(image, path)


def masks_on_grid_of(volume: CTVolume, masks: Sequence[NamedMask], ijk_to_lps: NDArray[np.float64]) -> list[NamedMask]:
    """Masks of another grid on the grid of a volume: moved if the grids match, else by the nearest voxel.

    Parameters
    ----------
    volume : CTVolume
    masks : sequence of NamedMask
        All of one shape.
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) of the masks to LPS mm.

    Returns
    -------
    list of NamedMask
        Of the shape of the volume; False outside the given grid.
    """
    shift = _whole_voxels_between(volume.ijk_to_lps, ijk_to_lps, volume.shape_kji)
    if shift is not None:
        return [replace(named, mask=_moved(named.mask, shift, volume.shape_kji)) for named in masks]
    grid = image_of(np.broadcast_to(np.uint8(0), volume.shape_kji), volume.ijk_to_lps)
    moved = []
    for named in masks:
        image = image_of(named.mask.astype(np.uint8), ijk_to_lps)
        on_grid = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        moved.append(replace(named, mask=sitk.GetArrayViewFromImage(on_grid) > 0))
    return moved


def _whole_voxels_between(
    target_ijk_to_lps: NDArray[np.float64], source_ijk_to_lps: NDArray[np.float64], shape_kji: Sequence[int]
) -> tuple[int, int, int] | None:
    """By how many voxels (k, j, i) one grid is shifted against another with the same axes; None if they differ more."""
    target_from_source = np.linalg.solve(target_ijk_to_lps, source_ijk_to_lps)
    shift = np.rint(target_from_source[:3, 3])
    off = np.abs(target_from_source[:3, :3] - np.eye(3)) @ shape_kji[::-1] + np.abs(target_from_source[:3, 3] - shift)
    if off.max() > _SAME_WITHIN_VOXELS:
        return None
    i, j, k = (int(steps) for steps in shift)
    return k, j, i


def _moved(mask: NDArray[np.bool_], shift_kji: Sequence[int], shape_kji: Sequence[int]) -> NDArray[np.bool_]:
    """A mask on a grid of another size that begins elsewhere; the mask itself if that changes nothing."""
    if not any(shift_kji) and mask.shape == tuple(shape_kji):
        return mask
    placed = np.zeros(tuple(shape_kji), np.bool_)
    bounds = [
        (max(0, step), min(size, step + length))
        for step, size, length in zip(shift_kji, shape_kji, mask.shape, strict=True)
    ]
    if all(first < end for first, end in bounds):
        source = tuple(slice(a - step, b - step) for (a, b), step in zip(bounds, shift_kji, strict=True))
        placed[tuple(slice(a, b) for a, b in bounds)] = mask[source]
    return placed


def read_on_grid(path: str | Path, volume: CTVolume) -> tuple[list[NamedMask], list[str]]:
    """Read the segments of a file onto the grid of the CT that they are of.

    Returns
    -------
    masks : list of NamedMask
        All segments, (k, j, i) as the volume; some may be empty there.
    notes : list of str
        A sentence for each of which a part lay outside or is lost, and what else the user should know.

    Raises
    ------
    InputError
        As `read_segmentation`, or if no voxel lies within the volume.
    """
    notes: list[str] = []
    masks, ijk_to_lps = read_segmentation(path, volume, notes)
    placed = masks_on_grid_of(volume, masks, ijk_to_lps)
    if any(named.mask.any() for named in masks) and not any(named.mask.any() for named in placed):
        raise InputError(
            f"{Path(path).name} has no voxel within '{volume.source.name if volume.source else 'the CT'}'; give the CT "
            "that was segmented."
        )
    voxel_ml = abs(float(np.linalg.det(ijk_to_lps[:3, :3]))) / 1000
    volume_ml = float(np.prod(volume.spacing_ijk)) / 1000
    for named, before in zip(placed, masks, strict=True):
        before_ml = float(np.count_nonzero(before.mask)) * voxel_ml
        lost = before_ml - float(np.count_nonzero(named.mask)) * volume_ml
        if lost <= LOST_PART * before_ml:
            continue
        outside_ml = _outside(before.mask, ijk_to_lps, volume) * voxel_ml
        between = f"of '{named.name}' are lost between the voxels of the CT, which are larger."
        told = notes_on_outside(named.name, outside_ml, before_ml)
        notes += told or [f"{lost:.3g} of {before_ml:.3g} ml {between}"]
    return placed, notes


def _outside(mask: NDArray[np.bool_], ijk_to_lps: NDArray[np.float64], volume: CTVolume) -> int:
    """Count the voxels of a mask (k, j, i) whose centres lie outside of a volume."""
    points_lps = np.argwhere(mask)[:, ::-1] @ ijk_to_lps[:3, :3].T + ijk_to_lps[:3, 3]
    index_ijk = volume.index_ijk_from_lps(points_lps)
    inside = (index_ijk >= -0.5) & (index_ijk < np.array(volume.shape_kji[::-1]) - 0.5)
    return len(points_lps) - int(np.count_nonzero(inside.all(axis=1)))
