"""Segments out of the scene into files.

The window's thread takes a snapshot, which is quick; the worker's thread reads and writes it, step by step.
"""

from __future__ import annotations

import errno
import gzip
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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
from SAM2AssistLib.mrml.jobs import Stage
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels, check_labelmaps
from SAM2AssistLib.mrml.words import translator
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt, SegmentPrompts, prompt_file_content, prompt_file_text

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.assistant import EngineChoice
    from SAM2AssistLib.mrml.workspace import Workspace
    from SAM2AssistLib.volume import CTVolume

_ = translator(__file__)

CHUNK_BYTES, GZIP_LEVEL = 1 << 20, 4
"""Higher levels take several times as long for a few percent of masks."""

_NRRD_TYPE_BYTES = {
    **dict.fromkeys(("signed char", "unsigned char", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "unsigned short", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "unsigned int", "int32", "uint32", "float"), 4),
    **dict.fromkeys(("long long int", "unsigned long long int", "int64", "uint64", "double"), 8),
}
"""Of the voxel types that VTK writes (http://teem.sourceforge.net/nrrd/format.html)."""

NRRD_ENDING = ".seg.nrrd"
UIDS = "DICOM.instanceUIDs"
"""Attribute in which Slicer's DICOM reader notes the images a volume was made of."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A segmentation as it was at a moment, for the worker's thread: nobody else holds what is in it.

    Attributes
    ----------
    node : vtkMRMLSegmentationNode, a copy that is in no scene.
    grid : of the volume, in the coordinates of the segmentation.
    """

    node: Any
    grid: Grid

    @classmethod
    def of(cls, volume_node: Any, segmentation_node: Any) -> Snapshot:
        """Copy the segments, whose size is what this costs; raises as `Grid.of` and `check_labelmaps`."""
        import slicer

        check_labelmaps(segmentation_node)
        node = slicer.vtkMRMLSegmentationNode()
        node.SetName(segmentation_node.GetName())
        node.GetSegmentation().DeepCopy(segmentation_node.GetSegmentation())
        return cls(node, Grid.of(volume_node, segmentation_node))

    def masks(self) -> Iterator[NamedMask]:
        """Read the segments that are not empty, one after the other, on the grid of the volume.

        Raises
        ------
        InputError
            If there is none, in the end.
        """
        segmentation, found = self.node.GetSegmentation(), 0
        for segment_id in segmentation.GetSegmentIDs():
            mask = SegmentVoxels(self.node, segment_id, self.grid).read()
            if mask.any():
                found += 1
                yield _named_mask(segmentation.GetSegment(segment_id), mask)
        if not found:
            said = _("{name} has no segment with voxels; segment something first.")
            raise InputError(said.format(name=self.node.GetName()))


def _named_mask(segment: Any, mask: NDArray[np.bool_]) -> NamedMask:
    import vtk

    tag, name = vtk.reference(""), str(segment.GetName())
    entry = str(tag) if segment.GetTag(segment.GetTerminologyEntryTagName(), tag) else ""
    red, green, blue = segment.GetColor()
    return NamedMask(name, mask, terminology_of_segment(name, entry, (red, green, blue)))


def nrrd_path(path: str | Path) -> str:
    """Return where a segmentation is to be saved, with the ending that Slicer knows a segmentation by.

    Raises
    ------
    OutputError
        If the name has the ending of another format, the file with the ending added is there already (nobody has been
        asked whether it may be replaced), or `check_place` refuses it.
    """
    place = Path(path)
    if place.suffix.lower() != ".nrrd":
        if place.suffix:
            said = _("{name} does not end in .seg.nrrd; give the file a name that does.")
            raise OutputError(said.format(name=place.name))
        place = place.with_suffix(NRRD_ENDING)
        if place.exists():
            taken = _("There is a file {name} already; choose it, or another name.")
            raise OutputError(taken.format(name=place.name))
    check_place(place)
    return str(place)


def save_nrrd(segments: Snapshot, path: str | Path) -> Iterator[Stage | str]:
    """Write a segmentation as Slicer itself writes it, as a whole or not at all.

    Left before its end, it leaves no file, and one that was there before as it was.

    Yields
    ------
    Stages; last a sentence for the user.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    import slicer

    check_place(path)
    title, storage = _("save as NRRD"), slicer.vtkMRMLSegmentationStorageNode()
    with atomic_path(path) as part, TemporaryDirectory(prefix="sam2assist-") as folder:
        raw = Path(folder) / part.name
        storage.SetFileName(str(raw))
        # Not compressed by VTK: it would hold Python's lock, and with it the window, for seconds.
        storage.SetUseCompression(False)
        if not storage.WriteData(segments.node):
            said = _("{path} cannot be written; free some space or choose another place.")
            raise OutputError(said.format(path=path))
        for done, total in _compress_nrrd(raw, part):
            yield Stage(title, done, total)
    yield _("Saved {name}.").format(name=Path(path).name)


def _compress_nrrd(raw: Path, path: Path) -> Iterator[tuple[int, int]]:
    """Write a NRRD file again with its voxels compressed; yields the MB that are done and those in all.

    Raises
    ------
    OSError
        If a file cannot be read or written, also if the first one is cut off, which VTK does not tell of a full disk.
    """
    with raw.open("rb") as source, path.open("wb") as target:
        size_bytes = 1
        while (line := source.readline()) not in (b"\n", b""):
            key, _colon, value = line.decode(errors="replace").partition(": ")
            if key == "sizes":
                size_bytes *= math.prod(map(int, value.split()))
            elif key == "type":
                size_bytes *= _NRRD_TYPE_BYTES[value.strip()]
            target.write(b"encoding: gzip\n" if key == "encoding" else line)
        target.write(b"\n")
        done, total = 0, math.ceil(size_bytes / CHUNK_BYTES)
        if raw.stat().st_size - source.tell() != size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(raw.parent))
        with gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as packed:
            while voxels := source.read(CHUNK_BYTES):
                packed.write(voxels)
                done += 1
                yield done, total


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
        said = _("{name} was not read from DICOM, so no DICOM can refer to it; save as NRRD.")
        raise InputError(said.format(name=volume_node.GetName()))
    files = [Path(file_of(uid) or "") for uid in uids]
    missing = [uid for uid, file in zip(uids, files, strict=True) if not file.is_file()]
    if missing:
        said = _(
            "{missing} of the {total} DICOM images of {name} are not in the DICOM database; import the series again."
        )
        raise InputError(said.format(missing=len(missing), total=len(uids), name=volume_node.GetName()))
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
    segments: Snapshot,
    volume: CTVolume,
    source_files: Sequence[Path],
    path: str | Path,
    choice: EngineChoice | None = None,
    prompts: Sequence[SegmentPrompts] = (),
) -> Iterator[Stage | str]:
    """Write all segments that are not empty as one DICOM Segmentation object.

    Left before its end, it leaves no file, and one that was there before as it was.

    Parameters
    ----------
    volume : whose grid the segments are on; its voxels do not matter.
    choice : engine that made them, and `prompts` : of what, both kept in the object.

    Yields
    ------
    Stages; last what the user should know, in sentences.

    Raises
    ------
    InputError, OutputError
        If there is nothing to write, the sources do not fit, or the file cannot be written.
    """
    from SAM2AssistLib.io.dicom_seg import make_dicom_seg, save_dicom

    check_place(path)
    count, masks = segments.node.GetSegmentation().GetNumberOfSegments(), []
    for number, named in enumerate(segments.masks(), 1):
        masks.append(named)
        yield Stage(_("read the segments"), number, count)
    title, algorithm = _("export DICOM-SEG"), None if choice is None else made_by(choice)
    made_with = None if algorithm is None else algorithm.made_with
    text = prompt_file_text(prompt_file_content(prompts, volume, made_with=made_with)) if prompts else ""
    yield Stage(title, 0, 2)
    dataset, notes = make_dicom_seg(
        masks,
        volume,
        source_files=source_files,
        algorithm=algorithm,
        prompts_json=text,
        description=segments.node.GetName(),
    )
    yield Stage(title, 1, 2)
    save_dicom(dataset, path)
    yield " ".join([_("Exported {name}.").format(name=Path(path).name), *notes])
