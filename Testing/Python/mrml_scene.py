"""A real MRML scene for tests, and the gestures of a user in it; needs slicer-core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from SAM2AssistLib.mrml.assistant import Assistant
from SAM2AssistLib.mrml.gestures import Gesture, Kind
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels
from SAM2AssistLib.volume import CTVolume


@contextmanager
def a_scene() -> Iterator[Any]:
    """Make a scene in which segmentations and subject hierarchy work as in the application."""
    import slicer

    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # registers the representations and their conversions
    logic.SetMRMLScene(scene)
    before = getattr(slicer, "mrmlScene", None)
    slicer.mrmlScene = scene
    try:
        yield scene
    finally:
        scene.Clear(True)
        scene.RemoveAllObservers()  # of a test that failed; else they would be called while they are garbage
        slicer.mrmlScene = before


def volume_node(volume: CTVolume, name: str = "CT") -> Any:
    """Put a volume into the scene."""
    import slicer

    return slicer.util.addVolumeFromArray(volume.array, volume.ijk_to_ras, name)


def mask_of(volume: Any, segmentation: Any, segment_id: str) -> np.ndarray:
    """Read a segment on the volume's grid, bool (k, j, i)."""
    return SegmentVoxels(segmentation, segment_id, Grid.of(volume, segmentation)).read()


def point(volume: CTVolume, index_kji: Any, *, positive: bool = True) -> Gesture:
    """A click on a voxel (k, j, i)."""
    return Gesture.of(Kind.POINT, volume.ras_from_index_ijk(np.array(index_kji, float)[::-1]), positive=positive)


def box(volume: CTVolume, low_kji: Any, high_kji: Any) -> Gesture:
    """A box between two voxels (k, j, i)."""
    low, high = np.array(low_kji, float)[::-1], np.array(high_kji, float)[::-1]
    corners = np.array([[low[0], high[0]], [low[1], high[1]], [low[2], high[2]]])
    grid = np.array(np.meshgrid(*corners, indexing="ij")).reshape(3, -1).T
    return Gesture.of(Kind.BOX, volume.ras_from_index_ijk(grid))


def paint(volume: Any, segmentation: Any, segment_id: str, axis: int, index: int, mask: np.ndarray) -> None:
    """Change a slice as an effect of the Segment Editor does: the labelmap, and everybody is told."""
    voxels = SegmentVoxels(segmentation, segment_id, Grid.of(volume, segmentation))
    voxels.write_slice(axis, index, mask)
    segmentation.GetBinaryLabelmapInternalRepresentation(segment_id).Modified()


def assistant_for(scene: Any, engine: Any) -> Assistant:
    """An assistant whose engine is in memory."""
    return Assistant(scene, loader=lambda _choice: engine)
