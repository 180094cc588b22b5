"""The mask a click would give, shown under the cursor before clicking."""

from __future__ import annotations

from typing import Any

import numpy as np

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.desk import Patch
from SAM2AssistLib.mrml.gestures import Gesture, Kind
from SAM2AssistLib.mrml.volumes import voxel_state, world_to_local
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels, draw
from SAM2AssistLib.mrml.workspace import Workspace

NAME = "SAM2 Assist preview"
_COLOR = (1.0, 0.9, 0.2)


class Preview:
    """One hidden segmentation node that holds one slice; it is neither listed nor saved.

    Parameters
    ----------
    scene : vtkMRMLScene
    """

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self._node: Any = None
        self._grid: Grid | None = None
        self._shown: tuple[int, int] | None = None
        self._asked: Gesture | None = None

    def ask(self, workspace: Workspace, segment_id: str, point_ras: list[float], *, positive: bool) -> None:
        """Ask for the mask of a click at a world RAS position, and show it when it comes.

        Nothing is shown while the engine looks at other voxels than the volume has now, such as those of another time
        point: the click would be answered on the ones that are there.
        """
        if voxel_state(workspace.volume_node) != workspace.voxels:
            self.hide()
            return
        try:
            local = world_to_local(workspace.volume_node, point_ras)
        except InputError:
            return
        gesture = Gesture.of(Kind.POINT, local, positive=positive)
        inside = workspace.desk.volume.contains_index_ijk(workspace.desk.volume.index_ijk_from_ras(local))
        if gesture == self._asked:
            return
        self._asked = gesture
        if not inside:
            self.hide()
            return
        held = workspace.painter.has(segment_id) and workspace.painter.holds_voxels(segment_id)
        workspace.ask(
            "preview",
            lambda: workspace.desk.preview(segment_id, gesture, held=held),
            lambda patch: self.show(workspace, patch) if self._asked == gesture else None,
        )

    def show(self, workspace: Workspace, patch: Patch | None) -> None:
        """Show a slice, and nothing else; None for nothing."""
        if patch is None or voxel_state(workspace.volume_node) != workspace.voxels:
            self.hide()
            return
        voxels = self._voxels(workspace)
        self._clear(voxels)
        voxels.write_slice(patch.axis, patch.index, patch.mask)
        voxels.announce()
        draw(self._node)
        self._shown = (patch.axis, patch.index)

    def hide(self) -> None:
        """Show nothing."""
        self._asked = None
        if self._node is not None and self._node.GetScene() is self.scene:
            self._node.SetDisplayVisibility(False)

    def close(self) -> None:
        """Remove the node."""
        if self._node is not None and self._node.GetScene() is self.scene:
            self.scene.RemoveNode(self._node)
        self._node = None

    def _voxels(self, workspace: Workspace) -> SegmentVoxels:
        grid = Grid.of(workspace.volume_node, workspace.segmentation_node)
        if self._grid is None or not grid.is_that_of(self._grid):
            self.close()  # another volume's slice would stay, and the voxels grow to hold both
        self._grid = grid
        if self._node is None or self._node.GetScene() is not self.scene:
            node = self.scene.CreateNodeByClass("vtkMRMLSegmentationNode")
            node.UnRegister(None)
            node.SetName(NAME)
            node.SetHideFromEditors(True)
            node.SetSaveWithScene(False)
            self._node = self.scene.AddNode(node)
            self._node.CreateDefaultDisplayNodes()
            self._node.GetDisplayNode().SetSaveWithScene(False)
            self._node.GetSegmentation().AddEmptySegment(NAME, NAME, _COLOR)
            self._shown = None
        self._node.SetAndObserveTransformNodeID(workspace.segmentation_node.GetTransformNodeID())
        self._node.SetDisplayVisibility(True)
        return SegmentVoxels(self._node, NAME, grid)

    def _clear(self, voxels: SegmentVoxels) -> None:
        if self._shown is not None:
            axis, index = self._shown
            shape = tuple(n for a, n in enumerate(voxels.grid.shape_kji) if a != axis)
            if index < voxels.grid.shape_kji[axis]:
                voxels.write_slice(axis, index, np.zeros(shape, bool))
        self._shown = None
