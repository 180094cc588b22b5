"""The whole way in small, for the module's self-test: a CT of a ball, a click, its segment, undo and redo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.mrml.assistant import Assistant
from SAM2AssistLib.mrml.gestures import Kind
from SAM2AssistLib.mrml.nodes import add_segment, make_segmentation, slice_center_ras
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

SHAPE_KJI, RADIUS_VOXELS = (24, 96, 96), 9
BALL_HU, AROUND_HU = 120, -90
WAIT_S = 300.0
"""A computer that is slow, and loads the model for the first time."""


@dataclass(frozen=True)
class SmallRun:
    """What came of it.

    Attributes
    ----------
    dice : of the segment after the click, with the ball.
    left_by_undo : voxels of the segment after undo.
    lost_by_redo : voxels in which the segment after redo is not that of the click.
    errors : sentences the user would have read.
    """

    dice: float
    left_by_undo: int
    lost_by_redo: int
    errors: tuple[str, ...]


def small_run(scene: Any, assistant: Assistant) -> SmallRun:
    """Segment a ball in a scene by one click, with the embedded model; takes seconds.

    Parameters
    ----------
    scene : vtkMRMLScene, to which a volume, a segmentation and a prompt are added.
    assistant : of that scene.

    Raises
    ------
    TimeoutError
        If the engine does not come to an end.
    """
    import slicer

    errors: list[str] = []
    assistant.listener.error = lambda error: errors.append(str(error))
    away = np.indices(SHAPE_KJI) - np.array(SHAPE_KJI).reshape(3, 1, 1, 1) // 2
    ball = np.linalg.norm(away, axis=0) <= RADIUS_VOXELS
    voxels = np.where(ball, BALL_HU, AROUND_HU).astype(np.int16)
    voxels[:, :4] = -1000  # air, as around every patient
    volume_node = slicer.util.addVolumeFromArray(voxels, name="SAM2Assist self-test")
    segmentation_node = make_segmentation(scene, volume_node)
    segment_id = add_segment(segmentation_node, "ball")
    workspace = assistant.open(volume_node, segmentation_node)

    def settled() -> NDArray[np.bool_]:
        if not assistant.wait(WAIT_S):
            raise TimeoutError(_("The engine has not come to an end."))
        return workspace.painter.voxels(segment_id).read()

    clicked_ras = slice_center_ras(volume_node, 0, SHAPE_KJI[0] // 2)
    workspace.prompts.node_for(segment_id, Kind.POINT).AddControlPoint(clicked_ras)
    found = settled()
    workspace.undo()
    undone = settled()
    workspace.redo()
    redone = settled()
    dice = 2 * int((found & ball).sum()) / max(1, int(found.sum()) + int(ball.sum()))
    return SmallRun(dice, int(undone.sum()), int((redone != found).sum()), tuple(errors))
