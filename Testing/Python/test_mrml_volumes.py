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
from mrml_scene import a_scene, assistant_for, box, mask_of, paint, point  # noqa: E402

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
    made.assistant.rules.auto_propagate = False
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
    thousand.assistant.rules.auto_propagate = True
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
    made.assistant.rules.auto_propagate = False
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


def test_opening_a_large_volume_neither_copies_nor_reads_its_voxels(scene: Any, quick_engine: Any) -> None:
    array = np.full((400, 128, 128), -1000, np.int16)
    node = slicer.util.addVolumeFromArray(array, np.eye(4), "large")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    assistant = assistant_for(scene, quick_engine())
    assert most_bytes(lambda: assistant.open(node, segmentation)) < array.nbytes / 100
    volume = assistant.open(node, segmentation).desk.volume
    assert np.shares_memory(volume.array, slicer.util.arrayFromVolume(node))
    assert not volume.array.flags.writeable
    assistant.close()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_voxels_of_other_types_are_converted_in_the_workers_thread(
    scene: Any, quick_engine: Any, a_blob_volume: CTVolume, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    import threading

    from SAM2AssistLib import volume as volume_module

    threads, real = set(), volume_module.to_hounsfield_int16

    def convert(array: np.ndarray) -> Any:
        if array.dtype == dtype:
            threads.add(threading.current_thread())
        return real(array)

    values = np.clip(np.array(a_blob_volume.array), 0, 200).astype(dtype)
    monkeypatch.setattr(volume_module, "to_hounsfield_int16", convert)
    node = slicer.util.addVolumeFromArray(values, a_blob_volume.ijk_to_ras, "other type")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    segment = segmentation.GetSegmentation().AddEmptySegment("ball", "ball")
    assistant = assistant_for(scene, quick_engine())
    workspace = assistant.open(node, segmentation)
    workspace.add_prompt(segment, point(a_blob_volume, LEFT))
    assert assistant.wait()
    assert mask_of(node, segmentation, segment)[5].any()
    np.testing.assert_array_equal(workspace.desk.volume.array, values.astype(np.int16))
    assert threads
    assert threading.main_thread() not in threads
    assistant.close()


def test_voxels_that_are_no_numbers_are_told_and_the_click_is_taken_back(
    scene: Any, quick_engine: Any, a_blob_volume: CTVolume
) -> None:
    values = np.array(a_blob_volume.array, np.float32)
    values[3, 4, 5] = np.nan
    made = make_desk(scene, quick_engine(), a_blob_volume)
    node = slicer.util.addVolumeFromArray(values, a_blob_volume.ijk_to_ras, "holes")
    workspace = made.assistant.open(node, made.segmentation)
    workspace.add_prompt(made.segment, point(a_blob_volume, LEFT))
    assert made.assistant.wait()
    (error,) = made.errors
    assert "holes: The image holds 1 NaN" in str(error)
    assert not workspace.prompts.gestures(made.segment)
    made.assistant.close()


def test_voxels_that_were_set_to_the_limits_are_told_of(scene: Any, quick_engine: Any, a_blob_volume: CTVolume) -> None:
    values = np.array(a_blob_volume.array, np.int32)
    values[3, 4, 5] = 70000
    made = make_desk(scene, quick_engine(), a_blob_volume)
    notes: list[str] = []
    made.assistant.listener.note = notes.append
    node = slicer.util.addVolumeFromArray(values, a_blob_volume.ijk_to_ras, "metal")
    made.assistant.open(node, made.segmentation).add_prompt(made.segment, point(a_blob_volume, LEFT))
    assert made.assistant.wait()
    assert notes == ["1 voxels beyond -32768 to 32767 were set to these limits."]
    made.assistant.close()


def change_voxels(node: Any) -> np.ndarray:
    """Mirror a volume in place, as effects that change volumes do; returns its new voxels."""
    voxels = slicer.util.arrayFromVolume(node)
    voxels[:] = voxels[:, ::-1].copy()
    slicer.util.arrayFromVolumeModified(node)
    return voxels.copy()


def test_voxels_that_are_changed_in_mid_propagation_end_it_and_the_next_prompt_sees_the_new_ones(
    thousand: Desk, quick_engine: Any
) -> None:
    made, notes = thousand, list[str]()
    made.assistant.listener.note = notes.append
    earlier = made.add_segment("earlier")
    finished = made.do(earlier, point(made.ct, RIGHT))
    other = made.add_segment("other")
    made.assistant.rules.auto_propagate = True
    made.workspace.add_prompt(made.segment, point(made.ct, LEFT))
    made.some_steps(3)
    later = change_voxels(made.volume)
    assert made.assistant.wait()
    kept = made.mask().any(axis=(1, 2)).sum()
    assert 3 <= kept < made.ct.shape_kji[0]
    assert "CT has changed" in notes[0]
    made.assistant.rules.auto_propagate = False
    np.testing.assert_array_equal(made.mask(earlier), finished)

    made.workspace.add_prompt(other, point(made.ct, RIGHT))
    assert made.assistant.wait()
    (workspace,) = made.assistant.workspaces
    assert workspace is not made.workspace
    ct = CTVolume.from_array(later, made.ct.spacing_ijk, made.ct.ijk_to_lps)
    with quick_engine().open(ct) as session:
        segment = session.add_segment("other")
        session.add_point(segment, ct.ras_from_index_ijk(np.array(RIGHT, float)[::-1]))
        np.testing.assert_array_equal(made.mask(other), session.mask(segment))
    np.testing.assert_array_equal(made.mask(earlier), finished)
    assert not made.errors


def test_a_volume_that_gets_another_size_in_mid_propagation_ends_it_and_nothing_is_written_outside(
    thousand: Desk,
) -> None:
    made = thousand
    made.assistant.rules.auto_propagate = True
    made.workspace.add_prompt(made.segment, point(made.ct, LEFT))
    made.some_steps(3)
    slicer.util.updateVolumeFromArray(made.volume, np.full((4, 32, 32), -1000, np.int16))
    assert made.assistant.wait()
    assert not made.errors
    made.assistant.open(made.volume, made.segmentation).add_prompt(made.segment, point(made.ct, (2, 10, 10)))
    assert made.assistant.wait()
    assert not made.errors
