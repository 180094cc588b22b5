"""Prompts as markups nodes: saved with the scene, grouped in a folder, dragged and deleted like any others.

Each segment has one list of points inside and one of points outside of it; every box is an ROI, every scribble a curve
and every lasso a closed curve. An attribute of the node says what it is, references say what it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.gestures import Gesture, Kind
from SAM2AssistLib.mrml.observing import forget, observe
from SAM2AssistLib.mrml.volumes import array_of, ijk_to_ras, local_to_world, moved

ROLE = "SAM2Assist.Role"
SEGMENT = "SAM2Assist.SegmentID"
SIGN = "SAM2Assist.Sign"
VOLUME_REFERENCE = "SAM2Assist.volume"
SEGMENTATION_REFERENCE = "SAM2Assist.segmentation"
FOLDER = "SAM2 Assist prompts"

POSITIVE_COLOR, NEGATIVE_COLOR = (0.2, 0.9, 0.3), (0.95, 0.25, 0.2)

_NODE_CLASS = {
    Kind.POINT: "vtkMRMLMarkupsFiducialNode",
    Kind.BOX: "vtkMRMLMarkupsROINode",
    Kind.SCRIBBLE: "vtkMRMLMarkupsCurveNode",
    Kind.LASSO: "vtkMRMLMarkupsClosedCurveNode",
}
_NOUN = {Kind.POINT: "points", Kind.BOX: "box", Kind.SCRIBBLE: "scribble", Kind.LASSO: "lasso"}
_FEWEST_POINTS = {Kind.BOX: 1, Kind.SCRIBBLE: 2, Kind.LASSO: 3}


class PromptNodes:
    """The prompt nodes of one volume and one segmentation.

    Parameters
    ----------
    scene : vtkMRMLScene
    volume_node, segmentation_node : which they belong to.
    on_change : called with a segment's id after the user has added, moved or deleted one of its prompts.
    """

    def __init__(self, scene: Any, volume_node: Any, segmentation_node: Any, on_change: Callable[[str], None]) -> None:
        self.scene, self.volume_node, self.segmentation_node = scene, volume_node, segmentation_node
        self._on_change = on_change
        self._grid = ijk_to_ras(volume_node)
        self._observed: dict[str, _Observed] = {}
        self._quiet = False
        self._drawn: Any = None
        self._solid = False
        self._remove_left_behind()
        for node in self.nodes():
            self._observe(node)

    def close(self) -> None:
        """Stop listening; the nodes stay in the scene."""
        for observed in self._observed.values():
            observed.close()
        self._observed.clear()

    # Nodes

    @property
    def observed_nodes(self) -> list[Any]:
        """The prompt nodes that are listened to, also after what they belong to has left the scene."""
        return [observed.node for observed in self._observed.values()]

    def nodes(self, segment_id: str | None = None) -> list[Any]:
        """List the prompt nodes, of one segment or of all."""
        count = self.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")
        every = (self.scene.GetNthNodeByClass(n, "vtkMRMLMarkupsNode") for n in range(count))
        return [node for node in every if self._is_ours(node) and segment_id in (None, node.GetAttribute(SEGMENT))]

    def node_for(self, segment_id: str, kind: Kind, *, positive: bool = True) -> Any:
        """Return the node to place a prompt in: the segment's list for points, a new node for anything else."""
        if kind is Kind.POINT:
            for node in self.nodes(segment_id):
                if _kind(node) is kind and _is_positive(node) == positive:
                    return node
        return self._make(segment_id, kind, positive)

    def gestures(self, segment_id: str) -> tuple[Gesture, ...]:
        """Read the prompts of a segment; the one that is being drawn is left out."""
        nodes = (node for node in self.nodes(segment_id) if node is not self._drawn)
        return tuple(gesture for node in nodes for gesture in self._read(node))

    def begin_drawing(self, node: Any, *, solid: bool = False) -> None:
        """Leave a box, a scribble or a lasso out until it is finished.

        Parameters
        ----------
        node : that is drawn.
        solid : whether a box gets a depth across the slice it is drawn on.
        """
        self._drawn, self._solid = node, solid

    def end_drawing(self) -> None:
        """Take in what has been drawn: a box lies on its slice or is solid; what was left unfinished is removed."""
        node, self._drawn = self._drawn, None
        if node is None or self.scene.GetNodeByID(node.GetID()) is not node:
            return
        with self._silent():
            if not self._read(node):
                self._remove(node)
            elif _kind(node) is Kind.BOX:
                _set_depth(node, solid=self._solid)
        self._on_change(node.GetAttribute(SEGMENT))

    def show(self, segment_id: str, gestures: Sequence[Gesture]) -> None:
        """Let the nodes hold these prompts, after undo and redo; what already does stays untouched."""
        with self._silent():
            wanted = list(gestures)
            for node in self.nodes(segment_id):
                if _kind(node) is Kind.POINT:
                    self._keep_points(node, wanted)
                    continue
                for gesture in self._read(node):
                    if gesture in wanted:
                        wanted.remove(gesture)
                    else:
                        self._remove(node)
            for gesture in wanted:
                self.add(segment_id, gesture)

    def add(self, segment_id: str, gesture: Gesture) -> Any:
        """Make the markups of a gesture, without telling anybody; returns the node."""
        import vtk

        with self._silent():
            node = self.node_for(segment_id, gesture.kind, positive=gesture.positive)
            points = moved(np.linalg.inv(self._to_local(node)), np.array(gesture.points_ras))
            if gesture.kind is Kind.BOX:
                _set_box(node, points)
            else:
                for x, y, z in points:
                    node.AddControlPoint(vtk.vtkVector3d(x, y, z))
        return node

    def remove_segment(self, segment_id: str) -> None:
        """Remove all prompts of a segment that is gone."""
        with self._silent():
            for node in self.nodes(segment_id):
                self._remove(node)

    def rename_segment(self, segment_id: str) -> None:
        """Name the prompts after their segment."""
        for node in self.nodes(segment_id):
            node.SetName(self._name(segment_id, _kind(node), positive=_is_positive(node)))

    def follow_volume(self) -> None:
        """Put the prompts under the transform that the volume is under, so that they move with it.

        One that has been hardened on the volume, which stays where it is, is hardened on them, too.
        """
        transform, grid = self.volume_node.GetTransformNodeID(), ijk_to_ras(self.volume_node)
        with self._silent():
            for node in self.nodes():
                if node.GetTransformNodeID() != transform:
                    if transform is None and np.allclose(grid, _placed_by(node) @ self._grid):
                        node.HardenTransform()
                    node.SetAndObserveTransformNodeID(transform)
        self._grid = grid

    # Inside

    def _is_ours(self, node: Any) -> bool:
        return (
            node.GetAttribute(ROLE) is not None
            and node.GetNodeReferenceID(VOLUME_REFERENCE) == self.volume_node.GetID()
            and node.GetNodeReferenceID(SEGMENTATION_REFERENCE) == self.segmentation_node.GetID()
        )

    def _make(self, segment_id: str, kind: Kind, positive: bool) -> Any:
        node = self.scene.CreateNodeByClass(_NODE_CLASS[kind])
        node.UnRegister(None)
        node.SetName(self._name(segment_id, kind, positive=positive))
        node.SetAttribute(ROLE, kind.value)
        node.SetAttribute(SEGMENT, segment_id)
        node.SetAttribute(SIGN, "positive" if positive else "negative")
        node = self.scene.AddNode(node)
        node.SetNodeReferenceID(VOLUME_REFERENCE, self.volume_node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_REFERENCE, self.segmentation_node.GetID())
        node.SetAndObserveTransformNodeID(self.volume_node.GetTransformNodeID())
        node.CreateDefaultDisplayNodes()
        _decorate(node, kind, positive)
        self._into_folder(node)
        self._observe(node)
        return node

    def _name(self, segment_id: str, kind: Kind, *, positive: bool) -> str:
        segment = self.segmentation_node.GetSegmentation().GetSegment(segment_id)
        sign = "+" if positive else "-"
        return f"{segment.GetName() if segment is not None else segment_id} {_NOUN[kind]} {sign}"

    def _into_folder(self, node: Any) -> None:
        import slicer

        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        item = hierarchy.GetItemByDataNode(node)
        if not item:  # without Slicer's plugins nothing is added by itself
            item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        beside = hierarchy.GetItemByDataNode(self.volume_node)
        parent = hierarchy.GetItemParent(beside) if beside else hierarchy.GetSceneItemID()
        name = f"{FOLDER} ({self.segmentation_node.GetName()})"
        folder = hierarchy.GetItemChildWithName(parent, name) or hierarchy.CreateFolderItem(parent, name)
        hierarchy.SetItemParent(item, folder)

    def _read(self, node: Any) -> list[Gesture]:
        kind, positive = _kind(node), _is_positive(node)
        matrix = self._to_local(node)
        if kind is Kind.POINT:
            return [Gesture.of(kind, moved(matrix, point), positive=positive) for _, point in _defined_points(node)]
        if len(_defined_points(node)) < _FEWEST_POINTS[kind] or node.GetNumberOfUndefinedControlPoints(True):
            return []
        points = _box_corners(node) if kind is Kind.BOX else _curve_points(node)
        if kind is Kind.BOX and np.ptp(points, axis=0).max() == 0:
            return []
        return [Gesture.of(kind, moved(matrix, points), positive=positive)]

    def _keep_points(self, node: Any, wanted: list[Gesture]) -> None:
        matrix, positive = self._to_local(node), _is_positive(node)
        for number, point in reversed(_defined_points(node)):
            gesture = Gesture.of(Kind.POINT, moved(matrix, point), positive=positive)
            if gesture in wanted:
                wanted.remove(gesture)
            else:
                node.RemoveNthControlPoint(number)

    def _to_local(self, node: Any) -> NDArray[np.float64]:
        """Matrix from a prompt node's own coordinates to the volume's own."""
        if node.GetTransformNodeID() == self.volume_node.GetTransformNodeID():
            return np.eye(4)
        return np.linalg.inv(local_to_world(self.volume_node)) @ local_to_world(node)

    def _remove(self, node: Any) -> None:
        self._forget(node.GetID())
        self.scene.RemoveNode(node)

    def _remove_left_behind(self) -> None:
        """Remove the prompts of segments that were deleted while nobody listened.

        Slicer gives their ids to new segments, which would get these prompts. A segmentation without any segment may be
        one whose file could not be read: its prompts stay.
        """
        segmentation = self.segmentation_node.GetSegmentation()
        for node in self.nodes() if segmentation.GetNumberOfSegments() else ():
            if segmentation.GetSegment(node.GetAttribute(SEGMENT)) is None:
                self._remove(node)

    # Events

    def _observe(self, node: Any) -> None:
        self._observed[node.GetID()] = _Observed(self, node)

    def changed(self, node: Any) -> None:
        """Take note that the user has changed a prompt node."""
        if not self._quiet and node is not self._drawn:
            if _kind(node) is Kind.BOX:
                _show_in_3d(node)
            self._on_change(node.GetAttribute(SEGMENT))

    def node_removed(self, node: Any) -> None:
        """Take note that a node has left the scene."""
        if node.GetID() in self._observed:
            self._forget(node.GetID())
            if not self._quiet:
                self._on_change(node.GetAttribute(SEGMENT))

    def _forget(self, node_id: str) -> None:
        observed = self._observed.pop(node_id, None)
        if observed is not None:
            observed.close()

    @contextmanager
    def _silent(self) -> Any:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


class _Observed:
    """Tells the prompt nodes when the user has changed one of them, and not while it is being dragged."""

    def __init__(self, owner: PromptNodes, node: Any) -> None:
        self.owner, self.node = owner, node
        self.dragging = False
        self._observations = [
            observe(node, node.PointPositionDefinedEvent, self.change),
            observe(node, node.PointRemovedEvent, self.change),
            observe(node, node.PointModifiedEvent, self.change),
            observe(node, node.PointStartInteractionEvent, self.begin),
            observe(node, node.PointEndInteractionEvent, self.end),
        ]

    def close(self) -> None:
        """Stop listening."""
        forget(self._observations)

    def begin(self) -> None:
        """A drag begins."""
        self.dragging = True

    def end(self) -> None:
        """A drag ends."""
        self.dragging = False
        self.change()

    def change(self) -> None:
        """Something has changed."""
        if not self.dragging:
            self.owner.changed(self.node)


def _placed_by(node: Any) -> NDArray[np.float64]:
    """Matrix of the transform that a node is under; nothing but NaN for one that is not linear."""
    try:
        return local_to_world(node)
    except InputError:
        return np.full((4, 4), np.nan)


def _kind(node: Any) -> Kind:
    return Kind(node.GetAttribute(ROLE))


def _is_positive(node: Any) -> bool:
    return node.GetAttribute(SIGN) != "negative"


def _decorate(node: Any, kind: Kind, positive: bool) -> None:
    display = node.GetDisplayNode()
    color = POSITIVE_COLOR if positive else NEGATIVE_COLOR
    display.SetSelectedColor(*color)
    display.SetColor(*color)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetGlyphScale(1.5)
    if kind is Kind.BOX:
        display.SetFillOpacity(0.0)
        display.SetHandlesInteractive(True)


def _defined_points(node: Any) -> list[tuple[int, NDArray[np.float64]]]:
    """Numbers and positions, in the node's own coordinates, of the control points that have been placed."""
    found = []
    for number in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(number) == node.PositionDefined:
            position = [0.0, 0.0, 0.0]
            node.GetNthControlPointPosition(number, position)
            found.append((number, np.array(position)))
    return found


def _curve_points(node: Any) -> NDArray[np.float64]:
    """The control points of a curve, in the node's own coordinates."""
    return np.array([point for _, point in _defined_points(node)])


def _box_corners(node: Any) -> NDArray[np.float64]:
    """The eight corners of an ROI, (8, 3) in the node's own coordinates."""
    size = np.array(node.GetSize())
    signs = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], indexing="ij")).reshape(3, -1).T
    return moved(array_of(node.GetObjectToNodeMatrix()), signs * size)


def _set_depth(node: Any, *, solid: bool) -> None:
    """Let an ROI lie on the slice it was drawn on, or be as deep as its shorter side is long.

    Slicer gives it a depth of its own, of which the user has said nothing. Most organs are about as deep as they are
    wide; the handles of the ROI in the other views change it.
    """
    center, scene = np.array(node.GetCenterWorld()), node.GetScene()
    count = scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")
    planes = [array_of(scene.GetNthNodeByClass(n, "vtkMRMLSliceNode").GetSliceToRAS()) for n in range(count)]
    if not planes:
        return
    plane = min(planes, key=lambda p: abs(float((center - p[:3, 3]) @ p[:3, 2])))
    across = int(np.abs(array_of(node.GetObjectToWorldMatrix())[:3, :3].T @ plane[:3, 2]).argmax())
    size = [float(s) for s in node.GetSize()]
    size[across] = min(side for axis, side in enumerate(size) if axis != across) if solid else 0.0
    node.SetSize(*size)
    _show_in_3d(node)


def _show_in_3d(node: Any) -> None:
    """Show a box in 3D views if it is one; a flat one says something of a single slice, and hides surfaces there."""
    node.GetDisplayNode().SetVisibility3D(min(node.GetSize()) > 0)


def _set_box(node: Any, corners: NDArray[np.float64]) -> None:
    """Give an ROI the eight corners that `_box_corners` has read."""
    import vtk

    edges = np.stack([corners[4] - corners[0], corners[2] - corners[0], corners[1] - corners[0]], axis=1)
    size = np.linalg.norm(edges, axis=0)
    directions = edges / np.where(size > 0, size, 1)
    for column in (a for a in range(3) if size[a] == 0):  # a flat box has no direction of its own across
        directions[:, column] = np.cross(directions[:, (column + 1) % 3], directions[:, (column + 2) % 3])
    matrix = vtk.vtkMatrix4x4()
    for row in range(3):
        for column in range(3):
            matrix.SetElement(row, column, float(directions[row, column]))
        matrix.SetElement(row, 3, float(corners[:, row].mean()))
    node.SetAndObserveObjectToNodeMatrix(matrix)
    node.SetSize(*(float(s) for s in size))
    _show_in_3d(node)
