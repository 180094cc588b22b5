"""Arguments and options that several commands have, so that they read and mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from SAM2AssistLib.volume import WINDOW_PRESETS

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file, or a folder with a DICOM series.")]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="OUT", help=".seg.nrrd, .dcm (DICOM-SEG), or a label map .nii.gz, .nrrd or .mha."
    ),
]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="From 'sam2assist models list'.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="A LoRA adapter.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")]
Series = Annotated[
    str | None, typer.Option("--series", metavar="NUMBER|UID", help="Which series, where a folder holds several.")
]
HUWindow = Annotated[
    str | None,
    typer.Option(
        "--window", metavar="W", help=f"{', '.join(WINDOW_PRESETS)}, or LEVEL/WIDTH in HU; else as trained with."
    ),
]
Preview = Annotated[Path | None, typer.Option("--preview", metavar="PNG", help="Also draw slices with outlines.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
