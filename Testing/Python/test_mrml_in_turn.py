"""Two volumes and two segmentations in one scene, chosen in turn in the panel while the engine is still at work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_scene import a_scene, assistant_for, mask_of, paint, point, volume_node  # noqa: E402
from mrml_view import RecordingView  # noqa: E402

from SAM2AssistLib.mrml.panel import Panel  # noqa: E402
from SAM2AssistLib.volume import CTVolume  # noqa: E402


@dataclass
class Pair:
    """A volume and a segmentation with one segment, and where the user clicks in it."""

    ct: CTVolume
    volume: Any
    segmentation: Any
    segment: str
    click_kji: tuple[int, int, int]

    def mask(self) -> np.ndarray:
        return mask_of(self.volume, self.segmentation, self.segment)


@dataclass
class Room:
    """The panel, and the pairs that are chosen in it."""

    panel: Panel
    pairs: list[Pair]
    engine: Any

    def choose(self, pair: Pair) -> None:
        """Choose volume and segmentation in the panel."""
        self.panel.set_parameters(
            SimpleNamespace(
                volume=pair.volume,
                segmentation=pair.segmentation,
                autoPropagate=True,
                livePreview=False,
                model="mini",
                device="auto",
                adapter="",
                axis="automatic",
            )
        )

    def click(self, pair: Pair) -> None:
        """Choose a pair and click in it, without waiting for what comes of it."""
        self.choose(pair)
        workspace = self.panel.workspace()
        assert workspace is not None
        workspace.add_prompt(pair.segment, point(pair.ct, pair.click_kji))

    def expected(self, pair: Pair) -> np.ndarray:
        """What the library makes of the click alone."""
        with self.engine.open(pair.ct) as session:
            segment = session.add_segment("ball")
            session.add_point(segment, pair.ct.ras_from_index_ijk(np.array(pair.click_kji, float)[::-1]))
            list(session.propagate())
            return session.mask(segment)


@pytest.fixture
def room(quick_engine: Any, a_blob_volume: CTVolume) -> Iterator[Room]:
    engine = quick_engine()
    mirrored = np.ascontiguousarray(np.array(a_blob_volume.array)[:, ::-1, ::-1])
    shifted = a_blob_volume.ijk_to_lps.copy()
    shifted[:3, 3] += (30.0, -20.0, 10.0)
    other = CTVolume.from_array(mirrored, a_blob_volume.spacing_ijk, shifted)
    with a_scene() as scene:
        assistant = assistant_for(scene, engine)
        panel, pairs = Panel(scene, assistant, RecordingView()), []
        panel.installed = False
        nodes = [(a_blob_volume, volume_node(a_blob_volume, "one")), (other, volume_node(other, "two"))]
        clicks = iter([(5, 32, 20), (3, 32, 44), (6, 32, 20), (4, 32, 44)])
        for ct, node in nodes:
            for name in ("first", "second"):
                segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{node.GetName()} {name}")
                segmentation.CreateDefaultDisplayNodes()
                segment = str(segmentation.GetSegmentation().AddEmptySegment("ball", "ball"))
                pairs.append(Pair(ct, node, segmentation, segment, next(clicks)))
        yield Room(panel, pairs, engine)
        assert panel.view.errors == []
        panel.close()
        assistant.close()


def test_each_pair_gets_what_was_clicked_in_it_although_others_are_chosen_meanwhile(room: Room) -> None:
    for pair in room.pairs:
        room.click(pair)
    assert room.panel.assistant.wait()
    for pair in room.pairs:
        np.testing.assert_array_equal(pair.mask(), room.expected(pair))


def test_undo_and_redo_are_those_of_the_pair_that_is_chosen(room: Room) -> None:
    for pair in room.pairs:
        room.click(pair)
    assert room.panel.assistant.wait()
    first, last = room.pairs[0], room.pairs[-1]
    room.choose(first)
    room.panel.undo()
    assert room.panel.assistant.wait()
    assert not first.mask().any()
    for pair in room.pairs[1:]:
        np.testing.assert_array_equal(pair.mask(), room.expected(pair))
    room.choose(last)
    assert not room.panel.can_redo()
    room.choose(first)
    room.panel.redo()
    assert room.panel.assistant.wait()
    np.testing.assert_array_equal(first.mask(), room.expected(first))


def test_what_is_painted_in_one_pair_is_a_prompt_there_and_nowhere_else(room: Room) -> None:
    first, other = room.pairs[0], room.pairs[3]
    for pair in (first, other):
        room.click(pair)
    assert room.panel.assistant.wait()
    square = np.zeros((64, 64), bool)
    square[10:20, 10:20] = True
    paint(first.volume, first.segmentation, first.segment, 0, 2, square)
    room.choose(other)
    room.panel.propagate()
    assert room.panel.assistant.wait()
    np.testing.assert_array_equal(other.mask(), room.expected(other))
    room.choose(first)
    room.panel.propagate()
    assert room.panel.assistant.wait()
    np.testing.assert_array_equal(first.mask()[2], square)
    np.testing.assert_array_equal(other.mask(), room.expected(other))


def test_two_volumes_may_share_one_segmentation_and_each_click_goes_to_the_volume_that_is_chosen(room: Room) -> None:
    one, two = room.pairs[0], room.pairs[2]
    segmentation = one.segmentation
    other = str(segmentation.GetSegmentation().AddEmptySegment("other", "other"))
    shared = Pair(two.ct, two.volume, segmentation, other, two.click_kji)
    room.click(one)
    room.click(shared)
    assert room.panel.assistant.wait()
    np.testing.assert_array_equal(one.mask(), room.expected(one))
    np.testing.assert_array_equal(shared.mask(), room.expected(shared))


def test_a_segmentation_stays_in_its_own_study_while_another_volume_is_chosen_before_another_segmentation(
    room: Room,
) -> None:
    one, two = room.pairs[0], room.pairs[2]
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(room.panel.scene)
    for volume in (one.volume, two.volume):
        patient = tree.CreateSubjectItem(tree.GetSceneItemID(), f"patient of {volume.GetName()}")
        tree.CreateItem(tree.CreateStudyItem(patient, f"study of {volume.GetName()}"), volume)
    for pair in (one, two):
        tree.CreateItem(tree.GetSceneItemID(), pair.segmentation)

    def study(pair: Pair) -> str:
        return tree.GetItemName(tree.GetItemParent(tree.GetItemByDataNode(pair.segmentation)))

    room.choose(one)
    room.panel.workspace()
    room.choose(Pair(two.ct, two.volume, one.segmentation, one.segment, two.click_kji))
    room.panel.workspace()
    room.choose(two)
    room.panel.workspace()
    assert (study(one), study(two)) == ("study of one", "study of two")


def test_a_pair_that_is_deleted_takes_nothing_of_the_others_along(room: Room) -> None:
    for pair in room.pairs:
        room.click(pair)
    scene = room.panel.scene
    scene.RemoveNode(room.pairs[0].volume)
    assert room.panel.assistant.wait()
    for pair in room.pairs[2:]:
        np.testing.assert_array_equal(pair.mask(), room.expected(pair))
