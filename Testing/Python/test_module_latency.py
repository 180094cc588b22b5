"""The module answers and its window goes on meanwhile; how fast is measured by Testing/SlicerHost/latency.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "one_host"]

CLICKS = 3


def test_each_click_is_answered_and_the_window_goes_on_while_a_mask_is_propagated(a_host: Any, a_phantom: Any) -> None:
    import slicer
    from latency import measure

    ct = a_phantom.volume
    volume = slicer.util.addVolumeFromArray(np.array(ct.array), ct.ijk_to_ras, "CT")
    answers = measure(a_host, volume, a_phantom.labels == a_phantom.names["liver"], clicks=CLICKS)
    assert a_host.unhandled == []
    # An event loop that waited for the engine would not have had a turn between two slices.
    assert answers.propagation_beats > answers.slices
