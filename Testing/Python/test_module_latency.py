"""The module answers and its window goes on meanwhile; how fast is measured by Testing/SlicerHost/latency.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from slicer_window import a_host, host_or_skip, one_host

from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.network import Network

host_or_skip()
__all__ = ["a_host", "one_host"]

CLICKS = 3
TURNS = 2
PATIENCE_S = 30.0


def test_each_click_is_answered_and_the_window_goes_on_while_a_mask_is_propagated(
    a_host: Any, a_phantom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slicer
    from latency import measure

    turns: list[int] = []
    with a_host.user.heartbeat() as beat:
        track = Network.track

        def track_once_the_window_had_its_turns(network: Network, rows: Sequence[Any]) -> list[SliceState]:
            before, latest = beat.beats, time.monotonic() + PATIENCE_S
            while beat.beats < before + TURNS and time.monotonic() < latest:
                time.sleep(0.001)
            turns.append(beat.beats - before)
            return track(network, rows)

        monkeypatch.setattr(Network, "track", track_once_the_window_had_its_turns)
        ct = a_phantom.volume
        volume = slicer.util.addVolumeFromArray(np.array(ct.array), ct.ijk_to_ras, "CT")
        answers = measure(a_host, volume, a_phantom.labels == a_phantom.names["liver"], clicks=CLICKS)
    assert a_host.unhandled == []
    assert answers.clicks == CLICKS
    # An event loop that waited for the engine would have no turn while the engine waits for it.
    assert len(turns) >= answers.slices // 2
    assert min(turns) >= TURNS
