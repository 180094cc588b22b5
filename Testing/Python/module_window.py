"""The module's panel in the host's window, and what a radiologist does with it.

The fixtures ``window`` and ``liver`` are imported into a test file, with those of slicer_window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mrml_scene import mask_of
from scipy import ndimage
from slicer_package import ROOT

from SAM2AssistLib.volume import CTVolume

WAIT_S = 90.0


@dataclass
class Window:
    """The module over a CT.

    Attributes
    ----------
    host, widget : of the window.
    volume : the node; `ct` what it shows.
    truth : masks (k, j, i) of structures by name, where they are known.
    """

    host: Any
    widget: Any
    volume: Any
    ct: CTVolume
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def ui(self) -> Any:
        """The panel's widgets."""
        return self.widget.ui

    @property
    def panel(self) -> Any:
        """The panel's deeds."""
        return self.widget.panel

    @property
    def segmentation(self) -> Any:
        """The chosen segmentation node."""
        return self.panel.segmentation_node

    def segment(self, name: str) -> str:
        """The id of a segment."""
        return self.segmentation.GetSegmentation().GetSegmentIdBySegmentName(name)

    def mask(self, name: str) -> np.ndarray:
        """The voxels of a segment, (k, j, i)."""
        return mask_of(self.volume, self.segmentation, self.segment(name))

    def settle(self) -> None:
        """Wait until the engine has nothing to do."""
        timer = self.widget.deliveryTimer
        self.host.user.wait_until(lambda: not self.panel.busy() and not timer.isActive(), WAIT_S)
        self.host.process_events()

    def ras(self, index_kji: Any) -> np.ndarray:
        """Where a voxel (k, j, i) lies."""
        return self.ct.ras_from_index_ijk(np.array(index_kji, float)[::-1])

    def draw(self, view: str, *indices_kji: Any) -> None:
        """Click along a line of voxels in a view, and twice at its end."""
        for number, index in enumerate(indices_kji):
            self.host.user.move(view, self.ras(np.array(index) + 2))  # a mouse that is there already sends no event
            last = number == len(indices_kji) - 1
            (self.host.user.double_click if last else self.host.user.click)(view, self.ras(index))

    def click(self, index_kji: Any) -> None:
        """Click a voxel in the red view."""
        self.host.user.show_position("Red", self.ras(index_kji))
        self.host.user.move("Red", self.ras(np.array(index_kji) + 2))  # a mouse that is there already sends no event
        self.host.user.click("Red", self.ras(index_kji))

    def choose_segment(self, name: str) -> None:
        """Choose a segment in the list."""
        self.ui.segmentEditorWidget.setCurrentSegmentID(self.segment(name))

    def add_segment(self, name: str) -> str:
        """Add a segment in the list and name it."""
        segmentation = self.segmentation.GetSegmentation()
        before = set(segmentation.GetSegmentIDs())
        self.ui.segmentEditorWidget.addSegment()
        (segment_id,) = set(segmentation.GetSegmentIDs()) - before
        segmentation.GetSegment(segment_id).SetName(name)
        self.choose_segment(name)
        return segment_id


@pytest.fixture
def window(a_host: Any, a_phantom: Any, an_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    """The module's panel over a phantom's CT; the engine is in memory already."""
    from SAM2AssistLib.engine import loading

    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: an_engine)
    yield open_module(a_host, a_phantom.volume)
    assert a_host.unhandled == []


@pytest.fixture
def liver(a_phantom: Any) -> np.ndarray:
    """A voxel (k, j, i) in the phantom's liver."""
    return middle_of(a_phantom.labels == a_phantom.names["liver"])


def open_module(host: Any, ct: CTVolume, name: str = "CT") -> Window:
    """Load the module's file, show a CT, open the panel."""
    import slicer

    host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    volume = slicer.util.addVolumeFromArray(np.array(ct.array), ct.ijk_to_ras, name)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return Window(host, host.open_module("SAM2Assist"), volume, ct)


def middle_of(mask: np.ndarray) -> np.ndarray:
    """The voxel (k, j, i) that lies deepest in a mask."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), mask.shape))


def dicom_database(files: list[Path]) -> SimpleNamespace:
    """What the module asks Slicer's DICOM database: the file of a SOP instance UID."""
    from pydicom import dcmread

    known = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): str(path) for path in files}
    return SimpleNamespace(fileForInstance=lambda uid: known.get(uid, ""), uids=known)
