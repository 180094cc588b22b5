"""Segments out of the scene into files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.atomic import atomic_path, check_place
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.mrml.volumes import volume_from_node
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels

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
    found = [
        NamedMask(segmentation.GetSegment(s).GetName(), SegmentVoxels(segmentation_node, s, grid).read()) for s in ids
    ]
    shown = [named for named in found if named.mask.any()]
    if not shown:
        raise InputError(f"{segmentation_node.GetName()} has no segment with voxels; segment something first.")
    return shown


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


def export_dicom_seg(
    volume_node: Any, segmentation_node: Any, source_files: Sequence[Path], path: str | Path
) -> tuple[str, ...]:
    """Write all segments that are not empty as one DICOM Segmentation object; returns what the user should know.

    Raises
    ------
    InputError, OutputError
        If there is nothing to write, the sources do not fit, or the file cannot be written.
    """
    from SAM2AssistLib.io.dicom_seg import write_dicom_seg

    masks = named_masks(volume_node, segmentation_node)
    volume = volume_from_node(volume_node)
    name = segmentation_node.GetName()
    return write_dicom_seg(path, masks, volume, source_files=source_files, description=name)
