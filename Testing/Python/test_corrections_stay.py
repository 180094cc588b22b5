"""A correction of what Auto-Segment has found is a place: what lies far from it stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from SAM2AssistLib import CTVolume, load_engine
from SAM2AssistLib.engine.blending import SliceOpinion
from SAM2AssistLib.engine.views import View
from SAM2AssistLib.evaluation.metrics import dice
from SAM2AssistLib.prompts import BoxPrompt


@pytest.fixture
def columns():
    """Two round columns in fat; a box around the first, on the middle slice."""
    rows, cols = np.ogrid[:96, :96]
    column = (rows - 48) ** 2 + (cols - 44) ** 2 < 15**2
    array = np.where(column, 110.0, -100.0) + np.random.default_rng(0).normal(0, 8, (31, 96, 96))
    volume = CTVolume.from_array(array.astype(np.int16), (2.0, 2.0, 3.0), np.diag([2.0, 2.0, 3.0, 1.0]))
    engine = load_engine("mini", device="cpu")
    with engine.open(volume) as session:
        segment = session.add_segment("column")
        session.place_box(segment, BoxPrompt((29.0, 33.0, 15.0), (59.0, 63.0, 15.0), 0))
        list(session.propagate())
        yield session, segment, column


def edit(session, segment, index: int, mask: np.ndarray) -> None:
    session.add_mask(segment, index, mask)
    list(session.propagate())


def test_what_is_found_with_an_opinion_from_outside_is_changed_near_a_correction_only(columns) -> None:
    session, segment, column = columns
    edited = column & (np.arange(96) < 44)
    logits = torch.from_numpy(np.where(column, 4.0, -4.0))[16:80, 16:80]
    view = View(16, 16, 64, 64)
    session.blend(segment, {k: SliceOpinion(view, logits) for k in range(31) if k != 15}, 0.7)
    before = session.mask(segment)
    edit(session, segment, 18, edited)
    after = session.mask(segment)
    np.testing.assert_array_equal(after[18], edited)
    assert dice(after[19], before[19]) < 0.9
    assert all(dice(after[k], before[k]) > 0.95 for k in range(26, 31))
    assert all(dice(after[k], before[k]) > 0.95 for k in range(16))
