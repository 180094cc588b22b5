"""Segmenting a volume node from a prompt file, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from SAM2AssistLib.mrml.desk import Patch
from SAM2AssistLib.mrml.nodes import add_segment, make_segmentation
from SAM2AssistLib.mrml.painting import Painter
from SAM2AssistLib.mrml.volumes import array_view, volume_from_node
from SAM2AssistLib.mrml.voxels import Grid


def segment_from_file(
    scene: Any,
    volume_node: Any,
    prompt_file: str | Path,
    model: str = "mini",
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Segment a volume node from a prompt file; nothing is added to the scene if anything fails.

    Parameters
    ----------
    scene : vtkMRMLScene
    volume_node : vtkMRMLScalarVolumeNode in HU, under no or under a linear transform.
    prompt_file : as the command line takes it; its positions are in the volume's own coordinates.
    model : a name of the catalogue.
    device : "auto", "cpu", "cuda", "cuda:N" or "mps".
    on_progress : called with the slices done and the slices in all.

    Returns
    -------
    vtkMRMLSegmentationNode
        With one segment for each of the file, in the geometry of the volume and under its transform.

    Raises
    ------
    SAM2AssistError
        If the volume, the prompts or the model cannot be used.
    """
    from SAM2AssistLib.engine.loading import load_engine
    from SAM2AssistLib.prompts import read_prompt_file

    volume = volume_from_node(volume_node)
    prompts = read_prompt_file(prompt_file, volume)
    with load_engine(model, device=device).open(volume) as session:
        for request in prompts:
            session.add_prompts(request)
        for step in session.propagate():
            if on_progress is not None:
                on_progress(step.done, step.total)
        node = make_segmentation(scene, volume_node)
        painter = Painter(node, Grid.of(volume_node, node), 0, array_view(volume_node))
        for segment in session.segments:
            segment_id, mask = add_segment(node, segment.name), session.mask_view(segment)
            for index in range(mask.shape[0]):
                painter.write(Patch(segment_id, 0, index, mask[index]))
    painter.announce()
    painter.finish()
    return node
