"""Volumes out of the ordinary: a thousand slices, a time series, structures two pixels thin."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, make_desk  # noqa: E402
from mrml_scene import a_scene, box, mask_of, paint, point  # noqa: E402

from SAM2AssistLib.volume import CTVolume  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)


@pytest.fixture
def scene() -> Iterator[Any]:
    with a_scene() as scene:
        yield scene


@pytest.fixture
def thousand(scene: Any, quick_engine: Any, a_blob_volume: CTVolume) -> Iterator[Desk]:
    """A desk on a thousand slices."""
    array = np.tile(np.array(a_blob_volume.array), (100, 1, 1))
    ct = CTVolume.from_array(array, a_blob_volume.spacing_ijk, a_blob_volume.ijk_to_lps)
    made = make_desk(scene, quick_engine(), ct)
    made.workspace.auto_propagate = False
    yield made
    made.assistant.close()


def most_bytes(work: Any) -> int:
    """What work holds at its most, in bytes of Python and NumPy."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_click_into_a_thousand_slices_copies_no_volume(thousand: Desk) -> None:
    thousand.do(thousand.segment, point(thousand.ct, (505, 32, 20)))
    voxels = thousand.ct.array.size

    def click() -> None:
        thousand.workspace.add_prompt(thousand.segment, point(thousand.ct, (505, 32, 24)))
        assert thousand.assistant.wait()

    assert most_bytes(click) < voxels / 4
    assert thousand.mask()[505].any()
    assert not np.delete(thousand.mask(), 505, axis=0).any()


def test_of_a_thousand_slices_the_labelmap_holds_those_that_are_segmented(thousand: Desk) -> None:
    thousand.do(thousand.segment, point(thousand.ct, (505, 32, 20)))
    image = thousand.segmentation.GetBinaryLabelmapInternalRepresentation(thousand.segment)
    assert image.GetNumberOfPoints() < 0.1 * thousand.ct.array.size


def test_an_edit_in_a_thousand_slices_is_found_without_reading_all_of_them(thousand: Desk) -> None:
    thousand.do(thousand.segment, point(thousand.ct, (505, 32, 20)))
    square = np.zeros((64, 64), bool)
    square[10:20, 10:20] = True
    paint(thousand.volume, thousand.segmentation, thousand.segment, 0, 506, square)
    assert most_bytes(thousand.workspace.absorb_edits) < thousand.ct.array.size / 4
    assert [step.title for step in thousand.workspace.journal.done] == ["add point", "edit"]


def test_a_propagation_through_a_thousand_slices_can_be_left_at_once(thousand: Desk) -> None:
    thousand.workspace.auto_propagate = True
    thousand.workspace.add_prompt(thousand.segment, point(thousand.ct, (505, 32, 20)))
    thousand.some_steps(4)
    thousand.workspace.cancel()
    assert thousand.assistant.wait()
    shown = np.flatnonzero(thousand.mask().any(axis=(1, 2)))
    assert 4 <= len(shown) < 100
    assert 505 in shown


def test_a_time_series_is_browsed_and_gone_on_with(scene: Any, quick_engine: Any, a_blob_volume: CTVolume) -> None:
    """The sequence browser's own logic puts another time point into the proxy node."""
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(scene)
    sequence, browser = (scene.AddNewNodeByClass(f"vtkMRMLSequence{kind}Node") for kind in ("", "Browser"))
    times = [np.array(a_blob_volume.array), np.ascontiguousarray(np.array(a_blob_volume.array)[:, :, ::-1]) + 5]
    for number, array in enumerate(times):
        node = slicer.util.addVolumeFromArray(array, a_blob_volume.ijk_to_ras, f"time {number}")
        sequence.SetDataNodeAtValue(node, str(number))
        scene.RemoveNode(node)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic.UpdateProxyNodesFromSequences(browser)
    made = make_desk(scene, quick_engine(), a_blob_volume)
    proxy = browser.GetProxyNode(sequence)
    workspace = made.assistant.open(proxy, made.segmentation)
    workspace.add_prompt(made.segment, point(a_blob_volume, LEFT))
    assert made.assistant.wait()
    first = mask_of(proxy, made.segmentation, made.segment)
    assert first.any()

    browser.SetSelectedItemNumber(1)
    logic.UpdateProxyNodesFromSequences(browser)
    assert browser.GetProxyNode(sequence) is proxy
    later = made.add_segment("later")
    workspace = made.assistant.open(proxy, made.segmentation)
    np.testing.assert_array_equal(workspace.desk.volume.array, times[1])
    workspace.add_prompt(later, point(a_blob_volume, RIGHT))
    assert made.assistant.wait()
    assert mask_of(proxy, made.segmentation, later).any()
    np.testing.assert_array_equal(mask_of(proxy, made.segmentation, made.segment), first)
    workspace.undo()
    assert made.assistant.wait()
    assert not mask_of(proxy, made.segmentation, later).any()
    assert not made.errors
    made.assistant.close()


def test_a_structure_of_two_pixels_is_found_written_and_taken_back(
    scene: Any, an_engine: Any, a_blob_volume: CTVolume
) -> None:
    """A bright vessel, two pixels wide, through all slices."""
    array = np.full(a_blob_volume.shape_kji, -50, np.int16)
    array[:, 31:33, 40:42] = 350
    ct = CTVolume.from_array(array, a_blob_volume.spacing_ijk, a_blob_volume.ijk_to_lps)
    made = make_desk(scene, an_engine, ct)
    made.workspace.auto_propagate = False
    found = made.do(made.segment, box(ct, (5, 30, 39), (5, 33, 42)))
    vessel = array[5] > 0
    assert 2 * (found[5] & vessel).sum() / (found[5].sum() + vessel.sum()) > 0.4
    thin = np.zeros((64, 64), bool)
    thin[31:33, 40:42] = True
    paint(made.volume, made.segmentation, made.segment, 0, 5, thin)
    made.workspace.propagate([made.segment])
    assert made.assistant.wait()
    np.testing.assert_array_equal(made.mask()[5], thin)
    for _ in range(3):
        made.workspace.undo()
        assert made.assistant.wait()
    assert not made.mask().any()
    made.assistant.close()
