"""The application is left while the engine works: nothing hangs, nothing is said on the console, no voxel is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slicer_package import ROOT

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, make_desk, slices_visited_after  # noqa: E402
from mrml_scene import a_scene, mask_of, point  # noqa: E402
from mrml_view import RecordingView  # noqa: E402

from SAM2AssistLib.mrml.panel import Panel  # noqa: E402
from SAM2AssistLib.volume import CTVolume  # noqa: E402

LEFT, RIGHT = (505, 32, 20), (505, 32, 44)


@pytest.fixture
def working(quick_engine: Any, a_blob_volume: CTVolume) -> Any:
    """A desk on a thousand slices with a finished segment, in the midst of another's propagation; and the panel."""
    array = np.tile(np.array(a_blob_volume.array), (100, 1, 1))
    with a_scene() as scene:
        desk = make_desk(
            scene, quick_engine(), CTVolume.from_array(array, a_blob_volume.spacing_ijk, a_blob_volume.ijk_to_lps)
        )
        panel = Panel(scene, desk.assistant, RecordingView())
        desk.assistant.rules.auto_propagate = False
        earlier = desk.add_segment("earlier")
        finished = desk.do(earlier, point(desk.ct, RIGHT))
        desk.assistant.rules.auto_propagate = True
        desk.workspace.add_prompt(desk.segment, point(desk.ct, LEFT))
        desk.some_steps(5)
        yield desk, panel, earlier, finished
        panel.close()
        desk.assistant.close()


def leave(desk: Desk, panel: Panel) -> None:
    """Do what the module does when the application quits."""
    panel.close()
    desk.assistant.close()


def test_quitting_in_mid_propagation_is_quick_and_keeps_what_was_there_and_what_had_come(
    working: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, panel, earlier, finished = working
    shown = desk.mask()
    assert 5 <= shown.any(axis=(1, 2)).sum() < desk.ct.shape_kji[0]
    assert slices_visited_after(lambda: leave(desk, panel), desk.assistant.worker, monkeypatch) <= 1
    np.testing.assert_array_equal(desk.mask(), shown)
    np.testing.assert_array_equal(desk.mask(earlier), finished)
    assert desk.segmentation.GetModifiedSinceRead()
    path = str(tmp_path / "scene.seg.nrrd")
    storage = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(path)
    assert storage.WriteData(desk.segmentation)
    read = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    assert storage.ReadData(read)
    np.testing.assert_array_equal(mask_of(desk.volume, read, desk.segment), shown)
    np.testing.assert_array_equal(mask_of(desk.volume, read, earlier), finished)
    assert panel.view.errors == []


def test_what_had_come_last_is_told_to_the_views_when_the_workspace_is_closed(working: Any) -> None:
    desk, panel, *_ = working
    segmentation, told = desk.segmentation.GetSegmentation(), []
    desk.assistant.pump()
    before = desk.mask()
    while (desk.mask() == before).all():
        desk.assistant.worker.pump()
        time.sleep(0.002)
    tag = segmentation.AddObserver(segmentation.SourceRepresentationModified, lambda *_: told.append(desk.mask()))
    leave(desk, panel)
    segmentation.RemoveObserver(tag)
    np.testing.assert_array_equal(told[-1], desk.mask())
    assert (told[-1] != before).any()


def test_quitting_while_a_file_is_written_leaves_no_part_of_it(working: Any, tmp_path: Path) -> None:
    desk, panel, *_ = working
    panel.volume_node, panel.segmentation_node = desk.volume, desk.segmentation
    desk.workspace.cancel()
    panel.save_nrrd(str(tmp_path / "result.seg.nrrd"))
    (thread,) = [t for t in threading.enumerate() if t in desk.assistant.worker._pool._threads]
    leave(desk, panel)
    thread.join(300)
    assert [p.name for p in tmp_path.iterdir() if p.name != "result.seg.nrrd"] == []


PROGRAM = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
import torch
from blobs import two_blobs
from mrml_desk import make_desk
from mrml_scene import a_scene, point
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.loading import engine_for
from SAM2AssistLib.engine.options import EngineOptions

torch.manual_seed(0)
engine = engine_for(build_sam2("mini", 64), find_model("mini"), EngineOptions(stop_rules=False))
with a_scene() as scene:
    desk = make_desk(scene, engine, two_blobs((1000, 64, 64)).volume)
    desk.workspace.add_prompt(desk.segment, point(desk.ct, (500, 32, 20)))
    while not desk.assistant.pump() or not desk.workspace.journal.done[0].entries:
        pass
    assert desk.assistant.busy
    if {tidy}:
        desk.assistant.close()
    print("quit")
"""


@pytest.mark.parametrize("tidy", [True, False])
def test_a_process_that_is_left_while_the_engine_works_ends_by_itself_and_says_nothing(tidy: bool) -> None:
    """Tidily as the module does, and without: a program that has just come to its end."""
    program = PROGRAM.format(root=str(ROOT), tests=str(Path(__file__).parent), tidy=tidy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "quit"), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
