"""``sam2assist export``: a segmentation and the DICOM series it is of in, a DICOM object out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from SAM2AssistLib.cli.arguments import AsJson, Series
from SAM2AssistLib.cli.console import print_json, stdout, tell, working
from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.algorithm import Algorithm
from SAM2AssistLib.io.atomic import check_place, ending_of, is_same_file
from SAM2AssistLib.io.dicom_kinds import SegKind, check_highdicom
from SAM2AssistLib.io.segmentation import DICOM_ENDING, check_can_refer, prompts_path_of, read_on_grid
from SAM2AssistLib.volume import CTVolume


class ExportFormat(str, Enum):
    """What is written."""

    SEG = "seg"
    FRACTIONAL = "fractional"
    LABELMAP = "labelmap"
    RTSTRUCT = "rtstruct"


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
        masks, notes = read_on_grid(segmentation, volume)
    algorithm = Algorithm(is_automatic=automatic)
    with working(f"Writing {output.name}"):
        from SAM2AssistLib.io.dicom_seg import write_dicom_seg
        from SAM2AssistLib.io.rtstruct import write_rtstruct

        if form is ExportFormat.RTSTRUCT:
            notes += write_rtstruct(output, masks, volume, algorithm=algorithm)
        else:
            notes += write_dicom_seg(output, masks, volume, algorithm=algorithm, kind=_KINDS[form])
    notes += [f"'{named.name}' is empty in the series." for named in masks if not named.mask.any()]
    if prompts_path_of(output).exists():
        notes.append(f"{prompts_path_of(output).name} is still that of an earlier result; it did not lead to this one.")
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
    segments = "1 segment" if len(masks) == 1 else f"{len(masks)} segments"
    stdout().print(f"{output} written: {segments} on {volume.shape_kji[0]} slices.", soft_wrap=True)


def _check_paths(segmentation: Path, output: Path) -> None:
    if ending_of(output) != DICOM_ENDING:
        raise OutputError(f"{output.name} would not be a DICOM file; give it the ending {DICOM_ENDING}.")
    check_place(output)
    check_highdicom()
    if not segmentation.is_file():
        raise InputError(f"There is no segmentation '{segmentation}'; check the path.")
    if is_same_file(output, segmentation):
        raise OutputError(f"{output.name} is the segmentation itself and would be lost; choose another name.")
