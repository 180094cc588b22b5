"""The confidence strip is read from left to right: colour says how sure, a white mark where prompts are."""

from __future__ import annotations

import numpy as np
import pytest

from SAM2AssistLib.mrml.strip import strip_ppm

GRAY = (70, 70, 70)


def picture(values: list[float], width: int, prompted: tuple[int, ...] = ()) -> np.ndarray:
    """The picture (rows, columns, 3) of a strip ten pixels high."""
    head, _, pixels = strip_ppm(np.array(values), width, 10, prompted).partition(b" 255\n")
    assert head == f"P6 {width} 10".encode()
    return np.frombuffer(pixels, np.uint8).reshape(10, width, 3)


def test_what_is_sure_is_green_what_is_doubtful_is_red_and_what_was_not_seen_is_gray() -> None:
    row = picture([0.95, 0.3, np.nan], 3)[5].astype(int)
    assert row[0, 1] > row[0, 0]
    assert row[1, 0] > 2 * row[1, 1]
    assert tuple(row[2]) == GRAY


def test_a_prompted_slice_has_a_white_mark_above_its_color() -> None:
    shown = picture([0.95, 0.3, 0.95, 0.95], 40, prompted=(1,))
    assert (shown[0, 10:20] == 255).all()
    assert not (shown[0, :10] == 255).all(axis=1).any()
    np.testing.assert_array_equal(shown[5], picture([0.95, 0.3, 0.95, 0.95], 40)[5])


@pytest.mark.parametrize("width", [3, 64, 500])
def test_of_slices_that_share_a_pixel_the_least_sure_one_is_shown(width: int) -> None:
    values = [0.95] * 1000
    values[500] = 0.1
    row = picture(values, width, prompted=(0, 999))[5].astype(int)
    assert (row[:, 0] > 2 * row[:, 1]).any()
    assert len(row) == width
