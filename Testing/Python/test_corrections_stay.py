"""A correction of what Auto-Segment has found is a place: what lies far from it stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from SAM2AssistLib import CTVolume
from SAM2AssistLib.engine.blending import SliceOpinion
from SAM2AssistLib.engine.views import View
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompts import BoxPrompt


@pytest.fixture
def columns(a_bare_engine):
    """Two round columns in fat; a box around the first, on the middle slice."""
    rows, cols = np.ogrid[:96, :96]
    column = (rows - 48) ** 2 + (cols - 44) ** 2 < 15**2
    array = np.where(column, 110.0, -100.0) + np.random.default_rng(0).normal(0, 8, (31, 96, 96))
    volume = CTVolume.from_array(array.astype(np.int16), (2.0, 2.0, 3.0), np.diag([2.0, 2.0, 3.0, 1.0]))
    with a_bare_engine.open(volume) as session:
        segment = session.add_segment("column")
        session.place_box(segment, BoxPrompt((29.0, 33.0, 15.0), (59.0, 63.0, 15.0), 0))
        list(session.propagate())
        yield session, segment, column


@pytest.fixture
def backed(columns):
    """The same after somebody else has told where the column is, as Auto-Segment's maps do."""
    session, segment, column = columns
    logits = torch.from_numpy(np.where(column, 4.0, -4.0))[16:80, 16:80]
    opinion = SliceOpinion(View(16, 16, 64, 64), logits)
    session.blend(segment, {k: opinion for k in range(31) if k != 15}, 0.7)
    return session, segment, session.mask(segment)


def edit(session, segment, index: int, mask: np.ndarray) -> np.ndarray:
    session.add_mask(segment, index, mask)
    list(session.propagate())
    return session.mask(segment)


def test_a_correction_that_leads_nowhere_changes_its_own_slice_and_nothing_far(backed) -> None:
    session, segment, before = backed
    edited = np.zeros((96, 96), bool)
    edited[40:50, 62:72] = True
    after = edit(session, segment, 18, edited)
    np.testing.assert_array_equal(after[18], edited)
    assert all(dice(after[k], before[k]) > 0.95 for k in (*range(15), *range(24, 31)))


def test_beyond_a_slice_that_was_emptied_there_is_nothing(backed) -> None:
    session, segment, before = backed
    after = edit(session, segment, 22, np.zeros((96, 96), bool))
    assert before[23:].any(axis=(1, 2)).all()
    assert not after[22:].any()
    assert all(dice(after[k], before[k]) > 0.9 for k in range(20))


def test_a_click_where_nothing_was_found_does_not_copy_the_mask_next_door(columns) -> None:
    session, segment, column = columns
    here, nothing = (
        SliceOpinion(View(16, 16, 64, 64), torch.from_numpy(np.where(is_there, 4.0, -4.0))[16:80, 16:80])
        for is_there in (column, np.zeros_like(column))
    )
    session.blend(segment, {k: here if k < 22 else nothing for k in range(31) if k != 15}, 0.9)
    shown = session.mask(segment)[:22].any(axis=0)
    assert not session.mask(segment)[22:].any()
    session.add_point(segment, session.volume.ras_from_index_ijk((84.0, 84.0, 24.0)))
    found = session.mask(segment)[24]
    assert found[84, 84]
    # What the network makes of the click and of the mask next door may overlap with that mask, but is no copy of it.
    assert (found & shown).sum() < 0.9 * shown.sum()
