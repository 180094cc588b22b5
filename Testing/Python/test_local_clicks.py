"""A click is heeded; and on a slice that Auto-Segment has had a part in, it changes only the region it points at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import click
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAM2AssistLib.engine.local_clicks import (
    GENTLE_MARGIN,
    GENTLE_SPREAD,
    MARGIN,
    SPREAD,
    heeded,
    merged_around,
)

SIDE = 24


def logits_of(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 4.0, -4.0))


def square(row: int, column: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row : row + side, column : column + side] = True
    return mask


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


CELLS = st.floats(0, SIDE - 1)


HOW = st.sampled_from([(MARGIN, SPREAD), (GENTLE_MARGIN, GENTLE_SPREAD)])


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20.0), CELLS, CELLS, st.booleans(), HOW)
def test_a_click_is_heeded_at_its_place_and_hardly_anything_changes_far_away(seed, scale, row, column, positive, how):
    logits = scale * torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    result = heeded(logits, [(row, column, positive)], *how)
    around = result[round(row - 0.499) : round(row) + 1, round(column - 0.499) : round(column) + 1]
    assert ((around > 0) == positive).all()
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    far = torch.hypot(rows - row, columns - column) > 14
    assert (result - logits)[far].abs().max() <= 1e-3 * (MARGIN + logits.abs().max())


@given(CELLS, CELLS)
def test_a_click_that_is_heeded_already_changes_nothing(row, column):
    logits = torch.full((SIDE, SIDE), 4.0)
    assert heeded(logits, [(row, column, True)]) is logits


def test_where_two_clicks_contradict_each_other_the_newer_one_holds():
    logits = torch.zeros(SIDE, SIDE)
    assert heeded(logits, [(8, 8, True), (8, 8, False)])[8, 8] < 0
    assert heeded(logits, [(8, 8, False), (8, 8, True)])[8, 8] > 0


def test_what_is_nearly_decided_gives_way_farther_around_than_what_is_certain():
    vague, sure = torch.full((SIDE, SIDE), -0.5), torch.full((SIDE, SIDE), -10.0)
    assert (heeded(vague, [(12, 12, True)]) > 0).sum() > (heeded(sure, [(12, 12, True)]) > 0).sum() >= 1


@pytest.mark.parametrize("positive", [True, False])
def test_a_voxel_that_is_clicked_belongs_to_the_segment_as_the_click_says(quick_engine, a_blob_volume, positive):
    with quick_engine().open(a_blob_volume) as session:
        segment = session.add_segment("blob")
        click(session, segment, (5, 32, 20))
        wanted = np.argwhere(session.mask(segment)[5] != positive)
        for row, column in wanted[:: max(1, len(wanted) // 8)]:
            assert click(session, segment, (5, int(row), int(column)), positive=positive)[row, column] == positive
            session.undo()
