"""Segments out of the scene into files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.store import expected_sha256
from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.algorithm import Algorithm, adapter_sha256
from SAM2AssistLib.io.atomic import atomic_path, check_place
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.terminology import terminology_of_segment
from SAM2AssistLib.mrml.volumes import volume_from_node
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt, SegmentPrompts, prompt_file_content, prompt_file_text

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.assistant import EngineChoice
    from SAM2AssistLib.mrml.workspace import Workspace

UIDS = "DICOM.instanceUIDs"
"""Attribute in which Slicer's DICOM reader notes the images a volume was made of."""


def named_masks(volume_node: Any, segmentation_node: Any) -> list[NamedMask]:
    """Read the segments that are not empty, on the grid of a volume.

    Raises
    ------
    InputError
        If there is none.
    """
    segmentation, grid = segmentation_node.GetSegmentation(), Grid.of(volume_node, segmentation_node)
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    found = [_named_mask(segmentation.GetSegment(s), SegmentVoxels(segmentation_node, s, grid).read()) for s in ids]
    shown = [named for named in found if named.mask.any()]
    if not shown:
        raise InputError(f"{segmentation_node.GetName()} has no segment with voxels; segment something first.")
    return shown


def _named_mask(segment: Any, mask: NDArray[np.bool_]) -> NamedMask:
    import vtk

    tag, name = vtk.reference(""), str(segment.GetName())
    entry = str(tag) if segment.GetTag(segment.GetTerminologyEntryTagName(), tag) else ""
    red, green, blue = segment.GetColor()
    return NamedMask(name, mask, terminology_of_segment(name, entry, (red, green, blue)))


def save_nrrd(segmentation_node: Any, path: str | Path) -> None:
    """Write a segmentation as Slicer itself writes it, as a whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    import slicer

    check_place(path)
    scene, storage = segmentation_node.GetScene(), slicer.vtkMRMLSegmentationStorageNode()
    with atomic_path(path) as part:
        storage.SetScene(scene)
        storage.SetFileName(str(part))
        storage.SetUseCompression(True)
        if not storage.WriteData(segmentation_node) or not part.is_file():
            raise OutputError(f"{path} cannot be written; free some space or choose another place.")


def dicom_files_of(volume_node: Any, file_of: Callable[[str], str]) -> list[Path]:
    """Find the DICOM files a volume was made of.

    Parameters
    ----------
    file_of : finds the file of a SOP instance UID, as `slicer.dicomDatabase.fileForInstance` does; '' for none.

    Raises
    ------
    InputError
        If the volume was not read from DICOM or a file is no longer where it was.
    """
    uids = (volume_node.GetAttribute(UIDS) or "").split()
    if not uids:
        raise InputError(f"{volume_node.GetName()} was not read from DICOM, so no DICOM can refer to it; save as NRRD.")
    files = [Path(file_of(uid) or "") for uid in uids]
    missing = [uid for uid, file in zip(uids, files, strict=True) if not file.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(uids)} DICOM images of {volume_node.GetName()} are not in the DICOM database;"
            " import the series again."
        )
    return files


def made_by(choice: EngineChoice) -> Algorithm:
    """Describe, for DICOM objects, the program with the chosen model and adapter; a user has looked at its results."""
    spec = find_model(choice.model)
    return Algorithm(
        model=spec.name,
        model_sha256=expected_sha256(spec) or "",
        adapter=Path(choice.adapter).resolve().name if choice.adapter else "",
        adapter_sha256=adapter_sha256(choice.adapter) if choice.adapter else "",
    )


def prompts_of(workspace: Workspace) -> list[SegmentPrompts]:
    """Return the clicks, scribbles, lassos and boxes in the scene as a prompt file holds them."""
    segmentation, desk = workspace.segmentation_node.GetSegmentation(), workspace.desk
    found = []
    for number in range(segmentation.GetNumberOfSegments()):
        gestures = workspace.prompts.gestures(segmentation.GetNthSegmentID(number))
        prompts = [prompt for gesture in gestures for prompt in gesture.prompts(desk.volume, desk.axis)]
        points = tuple(prompt for prompt in prompts if isinstance(prompt, PointPrompt))
        boxes = tuple(prompt for prompt in prompts if isinstance(prompt, BoxPrompt))
        if prompts:
            found.append(SegmentPrompts(str(segmentation.GetNthSegment(number).GetName()), points, boxes))
    return found


def export_dicom_seg(
    volume_node: Any,
    segmentation_node: Any,
    source_files: Sequence[Path],
    path: str | Path,
    algorithm: Algorithm | None = None,
    prompts: Sequence[SegmentPrompts] = (),
) -> tuple[str, ...]:
    """Write all segments that are not empty as one DICOM Segmentation object; returns what the user should know.

    Parameters
    ----------
    algorithm : who made them, and `prompts` : of what, both kept in the object.

    Raises
    ------
    InputError, OutputError
        If there is nothing to write, the sources do not fit, or the file cannot be written.
    """
    from SAM2AssistLib.io.dicom_seg import write_dicom_seg

    masks = named_masks(volume_node, segmentation_node)
    volume = volume_from_node(volume_node)
    made_with = None if algorithm is None else algorithm.made_with
    text = prompt_file_text(prompt_file_content(prompts, volume, made_with=made_with)) if prompts else ""
    name = segmentation_node.GetName()
    return write_dicom_seg(
        path, masks, volume, source_files=source_files, algorithm=algorithm, prompts_json=text, description=name
    )
