"""On a slice that Auto-Segment has had a part in, a click changes the region it points at."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAM2AssistLib.engine.local_clicks import merged_around

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
