"""A volume, a segmentation and a workspace in a scene, as a fixture: import ``desk`` into a test file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from mrml_scene import a_scene, assistant_for, mask_of, volume_node

from SAM2AssistLib.engine.tracker import Tracker
from SAM2AssistLib.engine.worker import Worker
from SAM2AssistLib.mrml.assistant import Assistant
from SAM2AssistLib.mrml.workspace import Workspace
from SAM2AssistLib.volume import CTVolume


def slices_visited_after(leave: Callable[[], object], worker: Worker, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count for how many more slices the engine's thread goes on, the one it is at included, when all is left."""
    visits, advance = [], Tracker.advance
    monkeypatch.setattr(Tracker, "advance", lambda tracker, lanes: visits.append(lanes) or advance(tracker, lanes))
    (thread,) = (thread for thread in threading.enumerate() if thread in worker._pool._threads)
    leave()
    thread.join(300)
    assert not thread.is_alive()
    return len(visits)


@dataclass
class Desk:
    """What a test works with.

    Attributes
    ----------
    ct, volume : the CT and its node.
    segmentation, segment : the node, and the id of its one segment "ball".
    errors : what the user has been told.
    """

    scene: Any
    assistant: Assistant
    ct: CTVolume
    volume: Any
    segmentation: Any
    segment: str
    workspace: Workspace
    errors: list[BaseException] = field(default_factory=list)

    def mask(self, segment_id: str | None = None) -> np.ndarray:
        """The voxels of a segment, (k, j, i)."""
        return mask_of(self.volume, self.segmentation, segment_id or self.segment)

    def do(self, segment_id: str, gesture: Any) -> np.ndarray:
        """Place a prompt, wait, and return the segment's voxels."""
        self.workspace.add_prompt(segment_id, gesture)
        assert self.assistant.wait()
        return self.mask(segment_id)

    def add_segment(self, name: str) -> str:
        """Add an empty segment."""
        return str(self.segmentation.GetSegmentation().AddEmptySegment(name, name))

    def some_steps(self, slices: int) -> None:
        """Take in what comes until so many slices of the segment are there, while the engine goes on."""
        while self.assistant.pump(0.0):
            if self.mask().any(axis=(1, 2)).sum() >= slices:
                return
            time.sleep(0.002)  # whoever asks without rest leaves the engine's thread no turn


def make_desk(scene: Any, engine: Any, ct: CTVolume) -> Desk:
    """Set everything up in a scene."""
    assistant = assistant_for(scene, engine)
    volume = volume_node(ct)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    segmentation.CreateDefaultDisplayNodes()
    segment = str(segmentation.GetSegmentation().AddEmptySegment("ball", "ball"))
    desk = Desk(scene, assistant, ct, volume, segmentation, segment, assistant.open(volume, segmentation))
    assistant.listener.error = desk.errors.append
    return desk


@pytest.fixture
def desk(quick_engine: Any, a_blob_volume: CTVolume) -> Iterator[Desk]:
    """A desk with the quick engine on two balls."""
    with a_scene() as scene:
        made = make_desk(scene, quick_engine(), a_blob_volume)
        yield made
        made.assistant.close()
