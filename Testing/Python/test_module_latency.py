"""How fast the module answers in the host's window; for figures there is Testing/SlicerHost/latency.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "one_host"]

CLICK_MS = 150
BLOCK_MS = 100


def test_a_click_is_answered_and_the_window_never_waits_long_for_the_engine(a_host: Any, a_phantom: Any) -> None:
    import slicer
    from latency import measure

    ct = a_phantom.volume
    volume = slicer.util.addVolumeFromArray(np.array(ct.array), ct.ijk_to_ras, "CT")
    answers = measure(a_host, volume, a_phantom.labels == a_phantom.names["liver"], clicks=5)
    assert a_host.unhandled == []
    if answers.idle_longest_block > BLOCK_MS:
        pytest.skip(f"even an idle window was held up for {answers.idle_longest_block:.0f} ms: times say nothing here")
    # What others do on this machine is not the module's doing: the work that was done counts, if the clock says more.
    assert min(answers.click_to_segment_median, answers.click_to_segment_median_of_work) <= CLICK_MS
    assert min(answers.propagation_longest_block, answers.propagation_longest_own_work) <= BLOCK_MS
