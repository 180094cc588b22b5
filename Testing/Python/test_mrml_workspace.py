"""Prompts in the scene become segments in the scene: the bridge on real MRML, with the real engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_scene import a_scene, assistant_for, box, mask_of, paint, point, volume_node  # noqa: E402


@pytest.fixture
def desk(quick_engine, a_blob_volume):
    """A volume and a segmentation with one segment in a scene, and a workspace on them."""
    with a_scene() as scene:
        assistant = assistant_for(scene, quick_engine())
        errors: list[BaseException] = []
        assistant.listener.error = errors.append
        volume = volume_node(a_blob_volume)
        segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
        segmentation.CreateDefaultDisplayNodes()
        segment = segmentation.GetSegmentation().AddEmptySegment("ball", "ball")
        workspace = assistant.open(volume, segmentation)
        yield SimpleNamespace(
            scene=scene,
            assistant=assistant,
            ct=a_blob_volume,
            volume=volume,
            segmentation=segmentation,
            segment=segment,
            workspace=workspace,
            errors=errors,
            mask=lambda name=segment: mask_of(volume, segmentation, name),
        )
        assistant.close()


def library_mask(engine: Any, volume: Any, *gestures: Any, propagate: bool) -> np.ndarray:
    with engine.open(volume) as session:
        segment = session.add_segment("ball")
        for gesture in gestures:
            session.add_point(segment, gesture.points_ras[0], positive=gesture.positive)
        if propagate:
            list(session.propagate())
        return session.mask(segment)


def test_a_click_changes_its_slice_and_nothing_else(desk: Any, quick_engine: Any) -> None:
    desk.assistant.rules.auto_propagate = False
    click = point(desk.ct, (5, 32, 20))
    desk.workspace.add_prompt(desk.segment, click)
    assert desk.assistant.wait()
    assert not desk.errors
    expected = library_mask(quick_engine(), desk.ct, click, propagate=False)
    assert expected[5].any()
    np.testing.assert_array_equal(desk.mask(), expected)


def test_a_propagation_follows_a_click_by_itself(desk: Any, quick_engine: Any) -> None:
    click = point(desk.ct, (5, 32, 20))
    desk.workspace.add_prompt(desk.segment, click)
    assert desk.assistant.wait()
    expected = library_mask(quick_engine(), desk.ct, click, propagate=True)
    assert expected.any(axis=(1, 2)).sum() > 1
    np.testing.assert_array_equal(desk.mask(), expected)


def test_one_undo_takes_a_click_back_with_its_propagation_and_redo_brings_both_again(desk: Any) -> None:
    desk.workspace.add_prompt(desk.segment, point(desk.ct, (5, 32, 20)))
    desk.assistant.wait()
    first = desk.mask()
    desk.workspace.add_prompt(desk.segment, point(desk.ct, (3, 32, 44)))
    desk.assistant.wait()
    second = desk.mask()
    assert (first != second).any()
    assert desk.workspace.undo() == "add point"
    desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), first)
    assert len(desk.workspace.prompts.gestures(desk.segment)) == 1
    assert desk.workspace.undo() == "add point"
    desk.assistant.wait()
    assert not desk.mask().any()
    assert not desk.workspace.prompts.gestures(desk.segment)
    assert desk.workspace.undo() is None
    for expected, count in ((first, 1), (second, 2)):
        desk.workspace.redo()
        desk.assistant.wait()
        np.testing.assert_array_equal(desk.mask(), expected)
        assert len(desk.workspace.prompts.gestures(desk.segment)) == count
    assert not desk.errors


def test_a_slice_painted_in_the_segment_editor_is_taken_as_it_is_and_carried_on(desk: Any) -> None:
    desk.workspace.add_prompt(desk.segment, point(desk.ct, (5, 32, 20)))
    desk.assistant.wait()
    before = desk.mask()
    edited = np.zeros((64, 64), bool)
    edited[10:20, 30:50] = True
    paint(desk.volume, desk.segmentation, desk.segment, 0, 2, edited)
    desk.workspace.propagate([desk.segment])
    desk.assistant.wait()
    after = desk.mask()
    np.testing.assert_array_equal(after[2], edited)
    assert (after[1] != before[1]).any()
    for _ in range(2):
        desk.workspace.undo()
        desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask(), before)
    assert not desk.errors


def test_a_box_drawn_as_an_roi_is_a_box_prompt(desk: Any, quick_engine: Any) -> None:
    desk.workspace.add_prompt(desk.segment, box(desk.ct, (5, 20, 10), (5, 44, 30)))
    desk.assistant.wait()
    with quick_engine().open(desk.ct) as session:
        segment = session.add_segment("ball")
        low, high = desk.ct.ras_from_index_ijk([[10, 20, 5], [30, 44, 5]])
        session.add_box(segment, np.minimum(low, high), np.maximum(low, high))
        list(session.propagate())
        np.testing.assert_array_equal(desk.mask(), session.mask(segment))
    assert not desk.errors
