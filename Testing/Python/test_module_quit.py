"""The window is closed while the engine works."""

from __future__ import annotations

import numpy as np
import pytest
from module_window import Window, liver, window
from mrml_desk import slices_visited_after
from mrml_scene import mask_of
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "liver", "one_host", "window"]


def test_quitting_in_mid_propagation_ends_the_module_at_once_and_keeps_the_voxels(
    window: Window, liver: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.click(liver)
    window.host.user.wait_until(lambda: window.mask("Segment_1").any(axis=(1, 2)).sum() >= 2, 60)
    assert window.panel.busy()
    segmentation, segment_id, worker = window.segmentation, window.segment("Segment_1"), window.panel.assistant.worker
    shown = window.mask("Segment_1")
    assert slices_visited_after(window.host.unload_modules, worker, monkeypatch) <= 1
    window.host.process_events()
    assert not worker.busy
    kept = mask_of(window.volume, segmentation, segment_id)
    np.testing.assert_array_equal(kept & shown, shown)
    assert window.host.unhandled == []
