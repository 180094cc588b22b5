"""The simulated user: a box to begin with, then a click into the deepest point of the largest error; and the Dice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice, correction_click
from SAM2AssistLib.overlap import dice

SHAPE = (5, 6, 7)
MASKS = arrays(bool, SHAPE)
ISOTROPIC = (1.0, 1.0, 1.0)


def block(low: tuple[int, int, int], high: tuple[int, int, int], shape=(12, 24, 24)) -> np.ndarray:
    """Fill voxels from low to high, both (k, j, i) and both included."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    return mask


@pytest.mark.parametrize(
    ("axis", "low", "high"),
    [(0, (8, 5, 4), (15, 9, 4)), (1, (8, 7, 2), (15, 7, 6)), (2, (12, 5, 2), (12, 9, 6))],
)
def test_the_box_is_the_references_on_its_middle_slice(axis, low, high):
    box = box_on_middle_slice(block((2, 5, 8), (6, 9, 15)), axis)
    assert (box.min_ijk, box.max_ijk, box.axis) == (low, high, axis)


def test_the_middle_slice_holds_the_reference_even_if_it_has_a_gap():
    reference = block((0, 5, 5), (2, 9, 9)) | block((8, 11, 11), (11, 20, 20))
    box = box_on_middle_slice(reference)
    assert reference[int(box.min_ijk[2])].any()


def test_there_is_no_box_around_nothing():
    with pytest.raises(InputError, match="empty"):
        box_on_middle_slice(np.zeros(SHAPE, bool))


@given(MASKS, st.sampled_from([0, 1, 2]))
@settings(max_examples=50)
def test_the_box_touches_the_reference_on_all_sides(reference, axis):
    if not reference.any():
        return
    box = box_on_middle_slice(reference, axis)
    low, high = (np.array(corner)[::-1].astype(int) for corner in (box.min_ijk, box.max_ijk))
    assert low[axis] == high[axis]
    section = np.zeros_like(reference)
    chosen: list[slice | int] = [slice(None)] * 3
    chosen[axis] = int(low[axis])
    section[tuple(chosen)] = reference[tuple(chosen)]
    found = np.argwhere(section)
    assert np.array_equal(found.min(axis=0), low)
    assert np.array_equal(found.max(axis=0), high)


def test_there_is_no_click_if_nothing_is_wrong():
    mask = block((2, 5, 8), (6, 9, 15))
    assert correction_click(mask, mask, ISOTROPIC) is None


def test_something_missing_is_clicked_positively_in_its_middle():
    reference = block((2, 4, 4), (8, 10, 10))
    click = correction_click(np.zeros_like(reference), reference, ISOTROPIC)
    assert click is not None
    assert click.positive
    assert click.index_ijk == (7.0, 7.0, 5.0)


def test_something_too_much_is_clicked_negatively():
    mask = block((2, 4, 4), (8, 10, 10))
    click = correction_click(mask, np.zeros_like(mask), ISOTROPIC)
    assert click is not None
    assert not click.positive


def test_the_largest_connected_error_is_clicked():
    small, large = block((1, 1, 1), (3, 3, 3)), block((4, 10, 10), (10, 16, 16))
    click = correction_click(small, large, ISOTROPIC)
    assert click is not None
    assert click.positive
    assert click.index_ijk == (13.0, 13.0, 7.0)


def test_voxels_that_touch_at_a_corner_are_one_error():
    chain = np.zeros((12, 24, 24), bool)
    for n in range(10):
        chain[n, n, n] = True
    click = correction_click(np.zeros_like(chain), chain | block((0, 20, 20), (1, 21, 21)), ISOTROPIC)
    assert click is not None
    assert chain[tuple(int(n) for n in reversed(click.index_ijk))]


def test_depth_is_measured_in_millimetres():
    reference = block((0, 2, 2), (11, 8, 20), (12, 24, 24)) & ~block((0, 2, 2), (2, 8, 11))
    thick = correction_click(np.zeros_like(reference), reference, (10.0, 1.0, 1.0))
    assert thick is not None
    assert thick.index_ijk[1] == 5.0


@given(MASKS, MASKS)
@settings(max_examples=50)
def test_a_click_is_on_an_error_and_says_the_truth(mask, reference):
    click = correction_click(mask, reference, (5.0, 1.5, 1.5))
    if click is None:
        assert np.array_equal(mask, reference)
        return
    place = tuple(int(n) for n in reversed(click.index_ijk))
    assert mask[place] != reference[place]
    assert reference[place] == click.positive


@given(MASKS, MASKS)
@settings(max_examples=50)
def test_dice_is_symmetric_and_between_zero_and_one(one, other):
    assert dice(one, other) == dice(other, one)
    assert 0.0 <= dice(one, other) <= 1.0
    assert dice(one, one) == 1.0
    if one.any():
        assert dice(one, ~one) == 0.0


def test_two_halves_that_overlap_by_half_have_a_dice_of_a_half():
    assert dice(block((0, 0, 0), (3, 1, 0)), block((2, 0, 0), (5, 1, 0))) == 0.5
