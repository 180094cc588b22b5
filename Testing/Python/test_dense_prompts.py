"""Prompts drawn as a picture into the mask prompt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from SAM2AssistLib.prompting.dense import BOX_INSIDE, BOX_OUTSIDE, CELL_PIXELS, CLICK_HEIGHT, LOGIT_LIMIT, draw_prompts

SIZE = 128
CELLS = SIZE // CELL_PIXELS
PIXELS = st.integers(0, SIZE - 1)


def drawn(prompts: list[tuple[float, float, int]], previous: torch.Tensor | None = None) -> torch.Tensor:
    """Draw (x, y, label) prompts of one object; (cells, cells)."""
    points = torch.tensor([[p[:2] for p in prompts]], dtype=torch.float32)
    result = draw_prompts(SIZE, points, torch.tensor([[p[2] for p in prompts]]), previous)
    assert result is not None
    assert result.shape == (1, 1, CELLS, CELLS)
    return result[0, 0]


def test_without_prompts_and_mask_nothing_is_drawn():
    assert draw_prompts(SIZE, None, None, None) is None


def test_without_prompts_the_mask_so_far_is_held_within_the_limit():
    previous = torch.linspace(-1024, 1024, CELLS * CELLS).view(1, 1, CELLS, CELLS)
    result = draw_prompts(SIZE, None, None, previous)
    assert result is not None
    assert result.min() == -LOGIT_LIMIT
    assert result.max() == LOGIT_LIMIT
    assert previous.max() == 1024


@given(PIXELS, PIXELS, st.booleans())
def test_a_click_is_a_bump_where_it_was_made(x, y, positive):
    picture = drawn([(x, y, int(positive))]) * (1 if positive else -1)
    row, column = divmod(int(picture.argmax()), CELLS)
    assert (row, column) == (y // CELL_PIXELS, x // CELL_PIXELS)
    assert 0.8 * CLICK_HEIGHT < picture.max() <= CLICK_HEIGHT
    assert picture.min() >= 0


def test_positive_and_negative_clicks_at_one_place_cancel():
    assert drawn([(40, 50, 1), (40, 50, 0)]).abs().max() < 1e-5


@given(st.tuples(PIXELS, PIXELS), st.tuples(PIXELS, PIXELS))
def test_a_box_is_bright_inside_and_dark_outside(one, other):
    low, high = (
        [min(a, b) for a, b in zip(one, other, strict=True)],
        [max(a, b) for a, b in zip(one, other, strict=True)],
    )
    picture = drawn([(*low, 2), (*high, 3)])
    assert set(picture.unique().tolist()) <= {BOX_INSIDE, BOX_OUTSIDE}
    for x, y in (low, high):
        assert picture[y // CELL_PIXELS, x // CELL_PIXELS] == BOX_INSIDE
    inside = picture == BOX_INSIDE
    assert inside.any(dim=0).sum() <= (high[0] - low[0]) / CELL_PIXELS + 2
    assert inside.any(dim=1).sum() <= (high[1] - low[1]) / CELL_PIXELS + 2


def test_a_box_and_a_click_in_it_add_up():
    box, click = [(20.0, 20.0, 2), (90.0, 90.0, 3)], [(50.0, 50.0, 0)]
    assert torch.allclose(drawn([*box, *click]), drawn(box) + drawn(click))


@pytest.mark.parametrize("prompts", [[(40, 50, -1)], [(40, 50, -1), (7, 9, -1)]])
def test_padding_draws_nothing(prompts):
    assert drawn(prompts).abs().max() == 0


def test_a_click_outweighs_the_mask_so_far_where_it_was_made():
    previous = torch.full((1, 1, CELLS, CELLS), -1024.0)
    plain = drawn([(64, 64, -1)], previous)
    corrected = drawn([(64, 64, 1)], previous)
    assert corrected[16, 16] - plain[16, 16] > 0.8 * CLICK_HEIGHT
    assert corrected[0, 0] == -LOGIT_LIMIT


def test_objects_of_a_batch_are_drawn_each_for_itself():
    points = torch.tensor([[[20.0, 20.0], [60.0, 60.0]], [[90.0, 10.0], [0.0, 0.0]]])
    labels = torch.tensor([[2, 3], [1, -1]])
    together = draw_prompts(SIZE, points, labels, None)
    assert together is not None
    assert torch.equal(together[0, 0], drawn([(20, 20, 2), (60, 60, 3)]))
    assert torch.allclose(together[1, 0], drawn([(90, 10, 1)]))
