"""Segmentation nodes as Slicer's other modules expect them, and small services of the scene."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from SAM2AssistLib.io.terminology import terminology_of
from SAM2AssistLib.mrml.gestures import Kind
from SAM2AssistLib.mrml.prompt_nodes import ROLE
from SAM2AssistLib.mrml.volumes import ijk_to_ras, local_to_world, moved, world_to_local

NAMED_TAG = "SAM2Assist.Named"
"""Tag of a segment with the name its codes were chosen for."""

COLORS = (
    (0.34, 0.71, 0.91),
    (0.90, 0.62, 0.00),
    (0.80, 0.47, 0.74),
    (0.00, 0.62, 0.45),
    (0.84, 0.37, 0.00),
    (0.00, 0.45, 0.70),
)
"""Colors (red, green, blue, from 0 to 1) of segments whose name stands for none: after Okabe and Ito, "Color universal
design" (2008), who chose them so that the color-blind can tell them apart; without black and yellow."""

_ALIKE = 0.1


def first_volume(scene: Any) -> Any:
    """Return the first volume node that is listed and is no label map; None if there is none."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    every = (scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode") for number in range(count))
    listed = (node for node in every if not node.GetHideFromEditors() and not node.IsA("vtkMRMLLabelMapVolumeNode"))
    return next(listed, None)


def make_segmentation(scene: Any, volume_node: Any, name: str = "") -> Any:
    """Add a segmentation node for a volume."""
    node = scene.AddNewNodeByClass(
        "vtkMRMLSegmentationNode", name or scene.GenerateUniqueName(f"{volume_node.GetName()} segmentation")
    )
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    link_to_volume(node, volume_node)
    return node


def link_to_volume(segmentation_node: Any, volume_node: Any) -> None:
    """Note which volume a segmentation belongs to, as saving, the Segment Editor and DICOM export ask for it.

    The reference geometry is set and the node moved into the volume's study; a segmentation that belongs to another
    volume keeps that geometry, and stays in that study: it may be another patient's.
    """
    import slicer

    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    if segmentation_node.GetDisplayNode() is None:
        segmentation_node.CreateDefaultDisplayNodes()
    if not segmentation_node.GetNodeReferenceID(role):
        segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    if segmentation_node.GetNodeReferenceID(role) != volume_node.GetID():
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    if hierarchy is None:
        return
    beside, item = hierarchy.GetItemByDataNode(volume_node), hierarchy.GetItemByDataNode(segmentation_node)
    if beside and item:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))


def add_segment(segmentation_node: Any, name: str = "") -> str:
    """Add an empty segment with the color and the SNOMED CT codes its name stands for; returns its id.

    Where a name stands for no color, or where there is none, it is one that the other segments do not have. Left to
    itself Slicer draws lots, and a gray one is not seen on a CT.
    """
    segmentation = segmentation_node.GetSegmentation()
    segment_id = str(segmentation.AddEmptySegment("", name, _free_color(segmentation)))
    follow_name(segmentation_node, segment_id)
    return segment_id


def _free_color(segmentation: Any) -> tuple[float, float, float]:
    """Return the color that the fewest segments have, and of those the one least like any other's."""
    present = [segmentation.GetNthSegment(n).GetColor() for n in range(segmentation.GetNumberOfSegments())]

    def rank(color: tuple[float, float, float]) -> tuple[int, float]:
        apart = [float(np.linalg.norm(np.subtract(color, other))) for other in present]
        return -sum(distance < _ALIKE for distance in apart), min(apart, default=0.0)

    return max(COLORS, key=rank)


def keep_codes(segmentation_node: Any, segment_id: str) -> None:
    """Leave a segment that comes with codes its codes and its color, until it gets another name."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is not None and not _tag(segment, NAMED_TAG) and _tag(segment, segment.GetTerminologyEntryTagName()):
        segment.SetTag(NAMED_TAG, segment.GetName())


def follow_name(segmentation_node: Any, segment_id: str) -> None:
    """Give a segment the codes and the color its name stands for, once for every name; other names change nothing."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is None or _tag(segment, NAMED_TAG) == segment.GetName():
        return
    try:
        terminology = terminology_of(segment.GetName())
    except (OSError, ValueError) as error:
        # A segment without codes can be segmented all the same.
        logging.warning("SAM2 Assist: the table of terms cannot be read (%s); a segment gets no codes.", error)
        return
    segment.SetTag(NAMED_TAG, segment.GetName())
    if terminology.known:
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology.to_slicer_tag())
        segment.SetColor(*terminology.color_rgb)


def _tag(segment: Any, name: str) -> str:
    import vtk

    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def start_placing(scene: Any, node: Any, kind: Kind) -> None:
    """Let clicks in the views place control points of a prompt node: points until told to stop, anything else once."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
    selection.SetActivePlaceNodeID(node.GetID())
    interaction.SetPlaceModePersistence(int(kind is Kind.POINT))
    interaction.SetCurrentInteractionMode(interaction.Place)


def stop_placing(scene: Any) -> None:
    """Let the mouse scroll and window again, unless it places control points of a node that is no prompt of ours."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    node = scene.GetNodeByID(selection.GetActivePlaceNodeID() or "") if selection is not None else None
    if is_placing(scene) and (node is None or node.GetAttribute(ROLE) is not None):
        interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)


def is_placing(scene: Any) -> bool:
    """Whether clicks place control points."""
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    return interaction is not None and interaction.GetCurrentInteractionMode() == interaction.Place


def slice_center_ras(volume_node: Any, axis: int, index: int) -> np.ndarray:
    """Return the middle of a slice, (3,) world RAS mm."""
    size_ijk = np.array(volume_node.GetImageData().GetDimensions(), float)
    middle = (size_ijk - 1) / 2
    middle[2 - axis] = index
    return moved(local_to_world(volume_node) @ ijk_to_ras(volume_node), middle)


def jump_views(volume_node: Any, axis: int, index: int) -> None:
    """Show a slice in the views that look along an axis; the others stay where they are."""
    scene = volume_node.GetScene()
    point = slice_center_ras(volume_node, axis, index)
    along = (local_to_world(volume_node) @ ijk_to_ras(volume_node))[:3, 2 - axis]
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
        view = scene.GetNthNodeByClass(number, "vtkMRMLSliceNode")
        to_ras = view.GetSliceToRAS()
        normal = np.array([to_ras.GetElement(row, 2) for row in range(3)])
        if abs(normal @ along) > 0.7 * np.linalg.norm(along):
            view.JumpSliceByOffsetting(*point)


def slice_in_view(volume_node: Any, axis: int) -> int:
    """Return the index of the slice along an axis that a view shows; the middle one if no view looks that way."""
    scene = volume_node.GetScene()
    count = volume_node.GetImageData().GetDimensions()[2 - axis]
    along = (local_to_world(volume_node) @ ijk_to_ras(volume_node))[:3, 2 - axis]
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
        to_ras = scene.GetNthNodeByClass(number, "vtkMRMLSliceNode").GetSliceToRAS()
        normal = np.array([to_ras.GetElement(row, 2) for row in range(3)])
        if abs(normal @ along) > 0.7 * np.linalg.norm(along):
            origin = [to_ras.GetElement(row, 3) for row in range(3)]
            return int(np.clip(round(float(index_ijk(volume_node, origin)[2 - axis])), 0, count - 1))
    return int(count // 2)


def index_ijk(volume_node: Any, point_ras: ArrayLike) -> np.ndarray:
    """Carry a world RAS point (3,) over to continuous voxel indices (i, j, k)."""
    return moved(np.linalg.inv(ijk_to_ras(volume_node)), world_to_local(volume_node, point_ras))
