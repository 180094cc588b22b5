"""What can go wrong while the engine works: nothing reaches the console, and other segments stay as they were."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import mask_of, paint, point  # noqa: E402

from SAM2AssistLib.errors import ModelError, OutputError  # noqa: E402
from SAM2AssistLib.mrml import export, nodes  # noqa: E402
from SAM2AssistLib.mrml.assistant import Assistant  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exceptions that nobody handled, in observers and in threads; a test asserts that there are none."""
    import sys
    import threading

    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    monkeypatch.setattr(sys, "excepthook", lambda *details: seen.append(details))
    monkeypatch.setattr(threading, "excepthook", seen.append)
    return seen


@pytest.fixture
def earlier(desk: Desk) -> tuple[str, np.ndarray]:  # noqa: F811
    """A segment that was finished before."""
    segment_id = desk.add_segment("earlier")
    return segment_id, desk.do(segment_id, point(desk.ct, RIGHT))


def saved(desk: Desk, path: Path) -> None:  # noqa: F811
    """Save the segmentation, waiting for it."""
    list(export.save_nrrd(export.Snapshot.of(desk.volume, desk.segmentation), path))


def begin(desk: Desk) -> None:  # noqa: F811
    """Click, and stop looking when the propagation is under way."""
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.some_steps(3)


def test_a_volume_deleted_in_mid_propagation_ends_it_quietly(
    desk: Desk,  # noqa: F811
    earlier: tuple[str, np.ndarray],
    unraisable: list[Any],
) -> None:
    volume, segmentation = desk.volume, desk.segmentation
    begin(desk)
    desk.scene.RemoveNode(desk.volume)
    assert desk.assistant.wait()
    assert desk.assistant.workspaces == ()
    np.testing.assert_array_equal(mask_of(volume, segmentation, earlier[0]), earlier[1])
    assert not desk.errors
    assert not unraisable


def test_a_segmentation_deleted_in_mid_propagation_ends_it_quietly(desk: Desk, unraisable: list[Any]) -> None:  # noqa: F811
    begin(desk)
    desk.scene.RemoveNode(desk.segmentation)
    assert desk.assistant.wait()
    assert desk.assistant.workspaces == ()
    assert not desk.errors
    assert not unraisable


def test_closing_the_scene_in_mid_propagation_ends_it_quietly(desk: Desk, unraisable: list[Any]) -> None:  # noqa: F811
    begin(desk)
    desk.scene.Clear(False)
    assert desk.assistant.wait()
    assert desk.assistant.workspaces == ()
    assert not desk.errors
    assert not unraisable


@pytest.mark.parametrize("error", [RuntimeError("cuDNN is not itself"), MemoryError(), OSError(errno.EIO, "disk")])
def test_an_engine_that_fails_in_mid_propagation_is_told_and_leaves_the_others_alone(
    desk: Desk,  # noqa: F811
    earlier: tuple[str, np.ndarray],
    unraisable: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    from SAM2AssistLib.engine.tracker import Tracker

    real, calls = Tracker.advance, []

    def fails(self: Tracker, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(Tracker, "advance", fails)
    clicked = desk.do(desk.segment, point(desk.ct, LEFT))
    assert desk.errors == [error]
    np.testing.assert_array_equal(desk.mask(earlier[0]), earlier[1])
    assert clicked[5].any()
    monkeypatch.setattr(Tracker, "advance", real)
    desk.errors.clear()
    desk.workspace.propagate([desk.segment])
    assert desk.assistant.wait()
    assert desk.mask().any(axis=(1, 2)).all()
    assert not desk.errors
    assert not unraisable


def test_an_out_of_memory_error_is_told_in_a_sentence_that_says_what_to_do(
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from mrml_view import RecordingView

    from SAM2AssistLib.mrml.panel import Panel

    view = RecordingView()
    panel = Panel(desk.scene, desk.assistant, view)
    monkeypatch.setattr(
        type(desk.workspace.desk), "sync", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA"))
    )
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    desk.assistant.wait()
    assert "smaller model" in view.errors[0]
    assert not desk.workspace.prompts.gestures(desk.segment)
    panel.close()


def test_weights_that_have_vanished_are_told_and_the_click_is_taken_back(
    desk: Desk,  # noqa: F811
    unraisable: list[Any],
) -> None:
    gone = ModelError("The weights of mini are missing from the package; install it again.")

    def load(_choice: Any) -> Any:
        raise gone

    assistant = Assistant(desk.scene, loader=load)
    assistant.listener.error = desk.errors.append
    desk.assistant.close_workspaces()
    workspace = assistant.open(desk.volume, desk.segmentation)
    workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    assert assistant.wait()
    assert desk.errors == [gone]
    assert not workspace.prompts.gestures(desk.segment)
    assert not workspace.journal.done
    assert not unraisable
    assistant.close()


def test_a_full_disk_on_saving_leaves_the_older_file(
    desk: Desk,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.do(desk.segment, point(desk.ct, LEFT))
    path = tmp_path / "result.seg.nrrd"
    saved(desk, path)
    older = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("SAM2AssistLib.io.atomic.os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        saved(desk, path)
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]


def test_a_segment_renamed_in_mid_propagation_is_finished_under_its_new_name(
    desk: Desk,  # noqa: F811
    unraisable: list[Any],
) -> None:
    begin(desk)
    desk.segmentation.GetSegmentation().GetSegment(desk.segment).SetName("spleen")
    assert desk.assistant.wait()
    assert desk.mask().any(axis=(1, 2)).all()
    (node,) = desk.workspace.prompts.nodes(desk.segment)
    assert node.GetName() == "spleen points +"
    assert not desk.errors
    assert not unraisable


def test_a_segment_deleted_in_mid_propagation_takes_its_prompts_with_it(
    desk: Desk,  # noqa: F811
    earlier: tuple[str, np.ndarray],
    unraisable: list[Any],
) -> None:
    begin(desk)
    desk.segmentation.GetSegmentation().RemoveSegment(desk.segment)
    assert desk.assistant.wait()
    assert not desk.workspace.prompts.nodes(desk.segment)
    np.testing.assert_array_equal(desk.mask(earlier[0]), earlier[1])
    assert not desk.errors
    assert not unraisable


def test_a_segment_that_gets_the_id_of_one_deleted_in_mid_propagation_gets_nothing_of_it(
    desk: Desk,  # noqa: F811
    unraisable: list[Any],
) -> None:
    segments, propagate = desk.segmentation.GetSegmentation(), desk.workspace.desk.propagate
    ready, go_on = Event(), Event()

    def held(*chosen: Any, **how: Any) -> Iterator[Any]:
        for item in propagate(*chosen, **how):
            ready.set()
            assert go_on.wait(300)
            yield item

    desk.workspace.desk.propagate = held  # type: ignore[method-assign]
    desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
    while not ready.wait(0.002):
        desk.assistant.pump()
    segments.RemoveSegment(desk.segment)
    segments.AddEmptySegment(desk.segment, "another")  # as Slicer does, whose new segment is "Segment_1" again
    go_on.set()
    assert desk.assistant.wait()
    assert not desk.mask().any()
    assert not desk.workspace.prompts.gestures(desk.segment)
    assert desk.segment not in desk.workspace.confidence
    assert not desk.workspace.journal.done
    assert desk.do(desk.segment, point(desk.ct, LEFT))[LEFT]
    assert not desk.errors
    assert not unraisable


def test_a_missing_table_of_terms_costs_the_codes_and_nothing_else(
    desk: Desk,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_name: str) -> Any:
        raise FileNotFoundError("terminology.json")

    monkeypatch.setattr(nodes, "terminology_of", missing)
    segment_id = nodes.add_segment(desk.segmentation, "liver")
    assert desk.do(segment_id, point(desk.ct, LEFT)).any()


def test_undo_in_mid_propagation_takes_the_click_and_what_came_of_it_back(
    desk: Desk,  # noqa: F811
    earlier: tuple[str, np.ndarray],
    unraisable: list[Any],
) -> None:
    begin(desk)
    desk.workspace.undo()
    assert desk.assistant.wait()
    assert not desk.mask().any()
    assert not desk.workspace.prompts.gestures(desk.segment)
    np.testing.assert_array_equal(desk.mask(earlier[0]), earlier[1])
    desk.workspace.redo()
    assert desk.assistant.wait()
    assert desk.mask()[5].any()
    assert not desk.errors
    assert not unraisable


def test_what_is_painted_while_a_propagation_runs_is_not_painted_over(desk: Desk, unraisable: list[Any]) -> None:  # noqa: F811
    begin(desk)
    drawn = np.zeros((64, 64), bool)
    drawn[3:9, 3:9] = True
    paint(desk.volume, desk.segmentation, desk.segment, 0, 9, drawn)
    assert desk.assistant.wait()
    desk.workspace.propagate([desk.segment])
    assert desk.assistant.wait()
    np.testing.assert_array_equal(desk.mask()[9], drawn)
    assert not desk.errors
    assert not unraisable
