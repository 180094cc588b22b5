"""Views: from slice pixels to the network's square and back; and focus: which part of a slice that square shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from SAM2AssistLib.engine.focus import Focus
from SAM2AssistLib.engine.views import View, cut, move_logits, square_around, stretched_slice, uncut, whole_slice

SPACINGS = st.floats(0.3, 6.0)
SIDES = st.integers(1, 90)


def holds(outer: View, inner: View) -> bool:
    """Tell whether a view lies wholly inside another one."""
    starts = outer.row <= inner.row and outer.column <= inner.column
    rows_end = inner.row + inner.rows <= outer.row + outer.rows
    return starts and rows_end and inner.column + inner.columns <= outer.column + outer.columns


@given(SIDES, SIDES, SPACINGS, SPACINGS)
def test_the_whole_slice_is_seen_and_squeezed_by_less_than_one_pixel(rows, columns, row_mm, column_mm):
    view = whole_slice((rows, columns), (row_mm, column_mm))
    assert holds(view, stretched_slice((rows, columns)))
    assert abs(view.rows * row_mm - view.columns * column_mm) <= max(row_mm, column_mm)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 90), st.integers(1, 90))
def test_edges_of_a_view_are_edges_of_the_networks_input(row, column, rows, columns):
    view = View(row, column, rows, columns)
    corners = np.array([[row - 0.5, column - 0.5], [row + rows - 0.5, column + columns - 0.5]])
    assert view.to_input(corners, 256) == pytest.approx(np.array([[-0.5, -0.5], [255.5, 255.5]]), abs=1e-3)


def test_rows_become_y_and_columns_x():
    assert View(0, 0, 64, 128).to_input(np.array([[31.5, 0.0]]), 256)[0] == pytest.approx([0.5, 127.5])


@given(st.integers(8, 40), st.integers(8, 40), st.integers(-12, 12), st.integers(-12, 12), st.integers(8, 60))
def test_what_is_cut_comes_back_where_it_was(rows, columns, row, column, side):
    view = View(row, column, side, side)
    hu = np.add.outer(3.0 * np.arange(rows), 2.0 * np.arange(columns)).astype(np.float32)
    seen = cut(hu, view, 4 * side, fill=0.0)
    assert seen.shape == (4 * side, 4 * side)
    back, inside = uncut(seen, view, hu.shape)
    assert back.shape == hu[inside].shape
    # Next to the view's edges and the slice's, what is beyond them is blended in.
    inner = (slice(2, -2), slice(2, -2))
    assert back[inner] == pytest.approx(hu[inside][inner], abs=0.5)


@given(st.integers(-30, 90), st.integers(-30, 90), st.integers(1, 40))
def test_uncut_returns_the_pixels_that_view_and_slice_share(row, column, side):
    view, shape = View(row, column, side, side), (50, 60)
    values, inside = uncut(torch.ones(16, 16), view, shape)
    shared = np.zeros(shape, bool)
    shared[max(row, 0) : max(row + side, 0), max(column, 0) : max(column + side, 0)] = True
    painted = np.zeros(shape, bool)
    painted[inside] = values > 0
    assert np.array_equal(painted, shared)


def test_beyond_the_slice_there_is_the_fill():
    seen = cut(np.zeros((10, 20), np.int16), View(-5, 0, 20, 20), 40, fill=-1000.0)
    assert seen[0].unique().tolist() == [-1000.0]
    assert seen[20].unique().tolist() == [0.0]
    assert cut(np.zeros((10, 20), np.int16), View(50, 50, 8, 8), 16, fill=-1000.0).unique().tolist() == [-1000.0]


def test_cut_leaves_a_read_only_slice_as_it_is():
    hu = np.arange(64, dtype=np.int16).reshape(8, 8)
    hu.flags.writeable = False
    cut(hu, View(0, 0, 8, 8), 32, 0.0)
    assert hu.sum() == 2016


def ramp(view: View, size: int = 32) -> torch.Tensor:
    """Return logits that equal row + 2 * column of the slice."""
    cells = (torch.arange(size) + 0.5) / size
    rows, columns = view.row - 0.5 + cells * view.rows, view.column - 0.5 + cells * view.columns
    return rows[:, None] + 2 * columns[None]


@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(12, 40), st.integers(0, 8), st.integers(0, 8))
def test_logits_moved_to_a_view_inside_are_those_of_the_same_places(row, column, side, down, right):
    old = View(row, column, side, side)
    new = View(row + down, column + right, side - max(down, right) - 1, side - max(down, right) - 1)
    assume(new.rows >= 3 and holds(old, new))
    moved = move_logits(ramp(old), old, new, -10.0)[2:-2, 2:-2]
    assert torch.allclose(moved, ramp(new)[2:-2, 2:-2], atol=2.0)


def test_logits_moved_to_the_same_view_are_equal():
    view = View(3, -4, 20, 30)
    logits = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(move_logits(logits, view, view, -10.0), logits, atol=1e-4)


def test_what_the_old_view_did_not_see_is_outside():
    moved = move_logits(torch.ones(32, 32), View(0, 0, 16, 16), View(0, 0, 64, 64), -10.0)
    assert moved[:7, :7].min() > 0
    assert moved[9:].max() == moved[:, 9:].max() == -10.0


# Focus


@pytest.fixture
def a_focus():
    return Focus((200, 300), (1.0, 1.0))


def ball(shape: tuple[int, int], row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@given(st.data(), SPACINGS, SPACINGS)
def test_a_focus_view_holds_its_object_with_room(data, row_mm, column_mm):
    focus = Focus((120, 160), (row_mm, column_mm))
    low = data.draw(st.tuples(st.integers(0, 118), st.integers(0, 158)))
    high = (data.draw(st.integers(low[0], 119)), data.draw(st.integers(low[1], 159)))
    view = focus.around(low, high)
    assert holds(view, View(low[0], low[1], high[0] - low[0] + 1, high[1] - low[1] + 1))
    mask = np.zeros((120, 160), bool)
    mask[low[0] : high[0] + 1, low[1] : high[1] + 1] = True
    assert not focus.outgrown(mask, view)


def test_a_small_object_is_seen_through_a_crop_and_a_larger_one_in_the_whole_slice(a_focus):
    small = a_focus.around_mask(ball((200, 300), 100, 150, 8))
    assert small.rows == small.columns < a_focus.whole.rows
    for radius in (60, 90):
        assert a_focus.around_mask(ball((200, 300), 100, 150, radius)) == a_focus.whole


def test_a_tiny_object_still_has_anatomy_around_it(a_focus):
    assert a_focus.around((50, 50), (50, 50)) == a_focus.around((49, 49), (51, 51))


def test_a_crop_is_square_in_the_patient_where_pixels_are_not():
    view = Focus((60, 300), (5.0, 1.0)).around((30, 150), (31, 155))
    assert view.rows * 5.0 == pytest.approx(view.columns * 1.0, abs=5.0)


def test_a_mask_near_an_edge_has_outgrown_its_view_and_the_next_view_holds_it(a_focus):
    view = square_around((100, 150), 70, (1.0, 1.0))
    small, grown = ball((200, 300), 100, 150, 20), ball((200, 300), 100, 150, 33)
    assert not a_focus.outgrown(small, view)
    assert a_focus.outgrown(grown, view)
    larger = a_focus.around_mask(grown, view)
    assert larger.rows > view.rows
    assert not a_focus.outgrown(grown, larger)


def test_a_view_never_shrinks_when_it_follows_a_mask(a_focus):
    view = square_around((100, 150), 120, (1.0, 1.0))
    assert a_focus.around_mask(ball((200, 300), 60, 100, 6), view).rows >= view.rows


def test_no_view_is_outgrown_at_the_slices_own_edge(a_focus):
    corner = np.zeros((200, 300), bool)
    corner[:20, :20] = True
    assert not a_focus.outgrown(corner, View(-10, -10, 70, 70))
    assert not a_focus.outgrown(corner, View(0, 0, 70, 70))


@pytest.mark.parametrize("mask", [np.zeros((200, 300), bool), np.ones((200, 300), bool)])
def test_neither_nothing_nor_the_whole_view_is_ever_outgrown(a_focus, mask):
    assert not a_focus.outgrown(mask, a_focus.whole)
