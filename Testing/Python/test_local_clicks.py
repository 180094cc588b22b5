"""A correction is a place: what lies far from it stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAM2AssistLib import CTVolume, load_engine
from SAM2AssistLib.engine.blending import SliceOpinion
from SAM2AssistLib.engine.local_clicks import merged_around
from SAM2AssistLib.engine.views import whole_slice
from SAM2AssistLib.evaluation.metrics import dice
from SAM2AssistLib.prompts import BoxPrompt

SIDE = 24


def logits_of(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 4.0, -4.0))


def square(row: int, column: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row : row + side, column : column + side] = True
    return mask


# ---- on one slice


def test_of_two_changes_the_one_at_the_click_is_taken() -> None:
    before, near, far = square(8, 8, 6), square(4, 8), square(18, 18)
    merged = merged_around(logits_of(before), logits_of(before | near | far), (5.0, 9.0))
    np.testing.assert_array_equal((merged > 0).numpy(), before | near)


def test_what_a_click_takes_away_elsewhere_stays() -> None:
    before, click = square(2, 2, 8) | square(14, 14, 6), (4.0, 4.0)
    after = square(2, 2, 8) & ~square(3, 3, 3)
    merged = merged_around(logits_of(before), logits_of(after), click)
    np.testing.assert_array_equal((merged > 0).numpy(), after | square(14, 14, 6))


def test_a_click_where_nothing_changes_is_taken_for_the_whole_slice() -> None:
    before, after = square(8, 8, 8), square(4, 8, 14)
    assert torch.equal(merged_around(logits_of(before), logits_of(after), (12.0, 1.0)), logits_of(after))


@given(arrays(bool, (SIDE, SIDE)), arrays(bool, (SIDE, SIDE)), st.tuples(*[st.floats(-2, SIDE + 1)] * 2))
def test_every_cell_is_as_it_was_or_as_it_has_become(before: np.ndarray, after: np.ndarray, cell: tuple) -> None:
    merged = (merged_around(logits_of(before), logits_of(after), cell) > 0).numpy()
    assert ((merged == before) | (merged == after)).all()


# ---- through the volume


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


def test_a_correction_changes_its_neighbour_more_than_what_is_far(columns) -> None:
    session, segment, column = columns
    before = session.mask(segment)
    half = column & (np.arange(96) < 44)
    edit(session, segment, 18, half)
    after = session.mask(segment)
    np.testing.assert_array_equal(after[18], half)
    assert dice(after[19], before[19]) < dice(after[29], before[29])
    assert dice(after[22], before[22]) < dice(after[30], before[30])


def test_what_is_found_with_an_opinion_from_outside_is_changed_near_a_correction_only(columns) -> None:
    session, segment, column = columns
    view = whole_slice((96, 96), (2.0, 2.0))
    logits = torch.nn.functional.interpolate(logits_of(column)[None, None], (64, 64), mode="area")[0, 0]
    session.blend(segment, {k: SliceOpinion(view, logits) for k in range(31) if k != 15}, 0.7)
    before = session.mask(segment)
    edit(session, segment, 18, column & (np.arange(96) < 44))
    after = session.mask(segment)
    assert all(dice(after[k], before[k]) > 0.95 for k in range(26, 31))


def test_after_a_prompt_was_removed_nothing_of_what_it_made_has_a_say(columns) -> None:
    session, segment, column = columns
    wrong = np.zeros((96, 96), bool)
    wrong[4:20, 4:20] = True
    plain = session.mask(segment)
    edit(session, segment, 18, wrong)
    session.remove_prompt(segment, session.prompts(segment)[-1])
    list(session.propagate())
    assert dice(session.mask(segment), plain) > 0.99


def test_without_reach_a_correction_counts_fully_everywhere(columns) -> None:
    session, segment, column = columns
    engine = load_engine("mini", device="cpu", options=replace(session.engine.options, correction_reach=0.0))
    with engine.open(session.volume) as other:
        twin = other.add_segment("column")
        other.place_box(twin, BoxPrompt((29.0, 33.0, 15.0), (59.0, 63.0, 15.0), 0))
        list(other.propagate())
        half = column & (np.arange(96) < 44)
        edit(other, twin, 18, half)
        edit(session, segment, 18, half)
        whole = column.sum()
        assert other.mask(twin)[24].sum() < session.mask(segment)[24].sum() <= 1.1 * whole
