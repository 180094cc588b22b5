"""``sam2assist export``: a segmentation and the DICOM series it is of in, a DICOM object out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from SAM2AssistLib.cli.arguments import AsJson, Series
from SAM2AssistLib.cli.console import print_json, stdout, tell, working
from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.algorithm import Algorithm
from SAM2AssistLib.io.atomic import check_place, ending_of
from SAM2AssistLib.io.dicom_kinds import SegKind, check_highdicom
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import DICOM_ENDING, check_can_refer, masks_on_grid_of, read_segmentation
from SAM2AssistLib.volume import CTVolume


class ExportFormat(str, Enum):
    """What is written."""

    SEG = "seg"
    FRACTIONAL = "fractional"
    LABELMAP = "labelmap"
    RTSTRUCT = "rtstruct"


# A segment may lose this part of its volume to another grid by rounding; beyond it lay outside of the series.
_LOST_PART = 0.01

_KINDS = {
    ExportFormat.SEG: SegKind.BINARY,
    ExportFormat.FRACTIONAL: SegKind.FRACTIONAL,
    ExportFormat.LABELMAP: SegKind.LABELMAP,
}


def export(
    segmentation: Annotated[
        Path, typer.Argument(metavar="SEGMENTATION", help=".seg.nrrd, DICOM-SEG, RTSTRUCT or a label map with names.")
    ],
    dicom: Annotated[Path, typer.Option("--dicom", metavar="DIR", help="Folder with the DICOM series it is of.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.dcm", help="The DICOM object to write.")],
    form: Annotated[
        ExportFormat,
        typer.Option("--as", help="DICOM-SEG (binary, fractional or one label map) or RTSTRUCT."),
    ] = ExportFormat.SEG,
    series: Series = None,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="Nobody prompted or corrected it: algorithm type AUTOMATIC.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a segmentation as DICOM that PACS and other viewers read, with references to the images it is of."""
    _check_paths(segmentation, output)
    with working("Reading the series"):
        volume = CTVolume.read(dicom, series=series)
        check_can_refer(output, volume)
    tell(volume.warnings)
    with working("Reading the segmentation"):
        masks, notes = _on_grid(segmentation, volume)
    algorithm = Algorithm(is_automatic=automatic)
    with working(f"Writing {output.name}"):
        from SAM2AssistLib.io.dicom_seg import write_dicom_seg
        from SAM2AssistLib.io.rtstruct import write_rtstruct

        if form is ExportFormat.RTSTRUCT:
            notes += write_rtstruct(output, masks, volume, algorithm=algorithm)
        else:
            notes += write_dicom_seg(output, masks, volume, algorithm=algorithm, kind=_KINDS[form])
    notes += [f"'{named.name}' is empty in the series." for named in masks if not named.mask.any()]
    tell(notes)
    if as_json:
        print_json(
            {
                "output": str(output),
                "format": form.value,
                "segments": [{"name": named.name, "voxels": int(named.mask.sum())} for named in masks],
                "images": len(set(volume.dicom_files)),
                "warnings": [*volume.warnings, *notes],
            }
        )
        return
    stdout().print(f"{output} written: {len(masks)} segments on {volume.shape_kji[0]} slices.", soft_wrap=True)


def _check_paths(segmentation: Path, output: Path) -> None:
    if ending_of(output) != DICOM_ENDING:
        raise OutputError(f"{output.name} would not be a DICOM file; give it the ending {DICOM_ENDING}.")
    check_place(output)
    check_highdicom()
    if not segmentation.is_file():
        raise InputError(f"There is no segmentation '{segmentation}'; check the path.")
    if output.exists() and output.samefile(segmentation):
        raise OutputError(f"{output.name} is the segmentation itself and would be lost; choose another name.")


def _on_grid(segmentation: Path, volume: CTVolume) -> tuple[list[NamedMask], list[str]]:
    """The segments on the grid of the series, and what was lost on the way."""
    masks, ijk_to_lps = read_segmentation(segmentation, volume)
    placed = masks_on_grid_of(volume, masks, ijk_to_lps)
    if any(named.mask.any() for named in masks) and not any(named.mask.any() for named in placed):
        raise InputError(
            f"{segmentation.name} has no voxel within the series in '{volume.source.name if volume.source else ''}'; "
            "give the series that was segmented."
        )
    voxel_ml = abs(float(np.linalg.det(ijk_to_lps[:3, :3]))) / 1000
    series_ml = float(np.prod(volume.spacing_ijk)) / 1000
    notes = []
    for named, before in zip(placed, masks, strict=True):
        before_ml = float(np.count_nonzero(before.mask)) * voxel_ml
        lost = before_ml - float(np.count_nonzero(named.mask)) * series_ml
        if lost > _LOST_PART * before_ml:
            notes.append(
                f"{lost:.3g} of {before_ml:.3g} ml of '{named.name}' lie outside of the series and are left out."
            )
    return placed, notes
