"""A segment that the tracker loses between two slices on which it is shown stays where it was."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import BLOB_HU, BODY_HU, click, draw_box, extent, run

from SAM2AssistLib import CTVolume
from SAM2AssistLib.engine.tracker import Tracker

LOST = 5


def a_rod() -> CTVolume:
    """A round rod through eleven slices."""
    _, j, i = np.indices((11, 64, 64))
    hu = np.where((j - 32) ** 2 + (i - 32) ** 2 <= 64, BLOB_HU, BODY_HU).astype(np.int16)
    return CTVolume.from_array(hu, (1.5, 1.5, 3.0), np.diag([1.5, 1.5, 3.0, 1.0]))


@pytest.fixture
def scene(a_bare_engine):
    with a_bare_engine.open(a_rod()) as session:
        yield session, session.add_segment("rod")


@pytest.fixture
def forgetful(monkeypatch):
    """Let trackers find nothing any more on one slice."""
    look = Tracker._look

    def lose() -> None:
        def forgetting(self, lanes):
            states, masks = look(self, lanes)
            for n, lane in enumerate(lanes):
                if lane.next_index == LOST:
                    states[n], masks[n] = self._emptied(states[n]), np.zeros_like(masks[n])
            return states, masks

        monkeypatch.setattr(Tracker, "_look", forgetting)

    return lose


def boxed(session, segment, k: int) -> None:
    draw_box(session, segment, (k, 24, 24), (k, 40, 40))


def test_a_click_does_not_make_a_segment_vanish_between_two_slices_that_show_it(scene, forgetful):
    session, segment = scene
    for k in (2, 8):
        boxed(session, segment, k)
    run(session)
    before = session.mask(segment)[LOST]
    assert before.any()
    forgetful()
    click(session, segment, (2, 32, 39))
    run(session)
    after = session.mask(segment)[LOST]
    assert (before & after).sum() > 0.9 * before.sum()


def test_where_it_ends_nobody_knows_that_it_was_lost(scene, forgetful):
    session, segment = scene
    boxed(session, segment, 2)
    run(session)
    assert LOST in extent(session.mask(segment))
    forgetful()
    click(session, segment, (2, 32, 39))
    run(session)
    assert LOST not in extent(session.mask(segment))


def test_what_a_prompt_has_made_goes_with_it(scene, forgetful):
    session, segment = scene
    for k in (2, 4, 8):
        boxed(session, segment, k)
    run(session)
    forgetful()
    session.remove_prompt(segment, session.prompts(segment)[1])
    run(session)
    assert LOST not in extent(session.mask(segment))


def test_what_a_prompt_has_made_goes_also_if_another_one_takes_its_place(scene, forgetful):
    session, segment = scene
    for k in (2, 8):
        boxed(session, segment, k)
    run(session)
    forgetful()
    session.remove_prompt(segment, session.prompts(segment)[0])
    boxed(session, segment, 2)
    run(session)
    assert LOST not in extent(session.mask(segment))
