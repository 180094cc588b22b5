"""Paint and Erase with a disc in the slice views, applied by the real logic of the Segment Editor."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

EFFECTS = ("Paint", "Erase")
_PRIORITY = 10.0
_DEFAULT_DIAMETER_MM = 10.0


class Brush:
    """Paints while the left button is down; the segment changes when it is let go, as in Slicer."""

    def __init__(self, editor: Any) -> None:
        self._editor = editor
        self._effect = ""
        self._tags: list[tuple[Any, int]] = []
        self._stroke: list[np.ndarray] = []
        self._painting = False

    def use(self, effect: str) -> None:
        """Paint with an effect from now on, or with none."""
        self.stop()
        self._effect = effect
        if effect not in EFFECTS or not hasattr(slicer, "app"):
            return
        manager = slicer.app.layoutManager()
        for name in manager.sliceViewNames():
            view = manager.sliceWidget(name).sliceView()
            for event in ("LeftButtonPressEvent", "MouseMoveEvent", "LeftButtonReleaseEvent"):
                interactor = view.interactor()
                tag = interactor.AddObserver(event, self._handler(view.mrmlSliceNode()), _PRIORITY)
                self._tags.append((interactor, tag))

    def stop(self, *_: Any) -> None:
        """Listen to the views no more."""
        for interactor, tag in self._tags:
            interactor.RemoveObserver(tag)
        self._tags = []
        self._stroke = []
        self._painting = False

    def _handler(self, slice_node: Any) -> Any:
        def handle(interactor: Any, event: str) -> None:
            if event == "LeftButtonPressEvent":
                self._painting = True
            if not self._painting:
                return
            x, y = interactor.GetEventPosition()
            self._stroke.append(np.array(slice_node.GetXYToRAS().MultiplyPoint((x, y, 0.0, 1.0))[:3]))
            if event == "LeftButtonReleaseEvent":
                self._painting = False
                self._apply(slice_node)

        return handle

    def _apply(self, slice_node: Any) -> None:
        stroke, self._stroke = self._stroke, []
        logic, editor = self._editor.logic, self._editor
        segment_id = editor.currentSegmentID()
        if not segment_id or editor.segmentationNode() is None:
            return
        logic.UpdateReferenceGeometryImage()
        logic.ResetModifierLabelmapToDefault()
        modifier = logic.GetModifierLabelmap()
        _draw_discs(modifier, stroke, slice_node, self._radius())
        logic.SaveStateForUndo()
        way = logic.ModificationModeAdd if self._effect == "Paint" else logic.ModificationModeRemove
        logic.ModifySegmentByLabelmap(editor.segmentationNode(), segment_id, modifier, way, False, False)

    def _radius(self) -> float:
        return 0.5 * (
            self._editor.effectByName(self._effect).doubleParameter("BrushAbsoluteDiameter") or _DEFAULT_DIAMETER_MM
        )


def _draw_discs(image: Any, centers_ras: list[np.ndarray], slice_node: Any, radius_mm: float) -> None:
    """Set the voxels within a radius of the positions, half a voxel up and down of the slice at most."""
    low = np.array(image.GetExtent()[::2])
    size_ijk = np.array(image.GetDimensions())
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_ras = slicer.util.arrayFromVTKMatrix(matrix)
    indices = np.indices(tuple(size_ijk)).reshape(3, -1) + low[:, None]
    positions = (to_ras[:3, :3] @ indices + to_ras[:3, 3:]).T
    normal = np.array([slice_node.GetSliceToRAS().GetElement(row, 2) for row in range(3)])
    thickness = np.abs(np.linalg.inv(to_ras[:3, :3]) @ normal).max()
    chosen = np.zeros(len(positions), bool)
    for center in centers_ras:
        offset = positions - center
        across = offset @ normal
        beside = np.linalg.norm(offset - across[:, None] * normal, axis=1)
        chosen |= (np.abs(across) * thickness <= 0.5) & (beside <= radius_mm)
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(tuple(size_ijk), order="F")
    voxels[chosen.reshape(tuple(size_ijk))] = 1
    image.Modified()
