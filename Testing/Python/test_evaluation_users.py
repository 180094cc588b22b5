"""Simulated users: the boxes and clicks of published protocols, and people who differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.behaviours import BEHAVIOURS, first_prompts, is_random
from SAM2AssistLib.evaluation.simulated_user import (
    RangedBox,
    box_on_middle_slice,
    challenge_box,
    challenge_click,
    deepest_click,
)
from SAM2AssistLib.prompts import PointPrompt

ISOTROPIC = (1.0, 1.0, 1.0)
SHAPE = (5, 9, 11)
MASKS = arrays(bool, SHAPE)


def block(low, high, shape=(12, 64, 128)) -> np.ndarray:
    """Fill voxels from low to high, both (k, j, i) and both included."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    return mask


def kji(prompt: PointPrompt) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(prompt.index_ijk))


def test_the_challenges_box_lies_on_the_slice_of_the_middle_voxel_not_on_the_middle_slice():
    reference = block((0, 10, 10), (7, 11, 11)) | block((8, 10, 10), (9, 40, 40))
    prompt = challenge_box(reference, np.random.default_rng(0))
    assert prompt.box.min_ijk[2] == 8
    assert box_on_middle_slice(reference).min_ijk[2] == 5


def test_the_challenges_box_comes_with_the_first_and_last_slice():
    assert challenge_box(block((3, 5, 5), (9, 9, 9)), np.random.default_rng(0)).reach == (3, 9)


def test_the_challenges_box_is_pushed_outwards_by_at_most_five_pixels_of_256_on_all_sides_alike():
    reference = block((3, 20, 40), (9, 30, 60), (12, 256, 512))
    pushes = set()
    for seed in range(60):
        box = challenge_box(reference, np.random.default_rng(seed)).box
        left, top = 40 - box.min_ijk[0], 20 - box.min_ijk[1]
        assert (box.max_ijk[0] - 60, box.max_ijk[1] - 30) == (left, top)
        assert left == 2 * top  # the slice is twice as wide as 256
        pushes.add(top)
    assert pushes == {0, 1, 2, 3, 4, 5}


def test_the_challenges_box_stays_on_the_slice():
    everywhere = np.ones((4, 256, 256), bool)
    box = challenge_box(everywhere, np.random.default_rng(1)).box
    assert (box.min_ijk[:2], box.max_ijk[:2]) == ((0, 0), (255, 255))


@pytest.mark.parametrize("draw", [challenge_box, lambda reference, _: box_on_middle_slice(reference)])
def test_there_is_no_box_around_nothing(draw):
    with pytest.raises(InputError, match="empty"):
        draw(np.zeros(SHAPE, bool), np.random.default_rng(0))


def test_the_challenges_click_is_the_deepest_voxel_of_the_largest_error_counted_in_voxels():
    reference = block((2, 10, 10), (8, 20, 20))
    click = challenge_click(np.zeros_like(reference), reference)
    assert click is not None
    assert click.positive
    # Seven slices thick: the middle one is deepest, and there all voxels at least 4 from the sides are alike.
    assert kji(click)[0] == 5
    assert all(13 <= n <= 17 for n in kji(click)[1:])


def test_the_challenges_choice_among_equally_deep_voxels_is_the_one_its_seed_makes():
    reference = block((2, 10, 10), (2, 10, 19))  # ten voxels, each one deep
    click = challenge_click(np.zeros_like(reference), reference)
    assert click is not None
    expected = np.random.RandomState(42).choice(10)
    assert kji(click) == (2, 10, 10 + expected)


def test_the_deepest_click_compares_what_is_missing_with_what_is_too_much():
    reference, mask = block((2, 10, 10), (8, 20, 20)), block((2, 40, 40), (8, 44, 44))
    click = deepest_click(mask, reference, ISOTROPIC)
    assert click is not None
    assert click.positive
    swapped = deepest_click(reference, mask, ISOTROPIC)
    assert swapped is not None
    assert not swapped.positive


def test_the_deepest_click_takes_depth_and_not_size_as_the_challenge_does():
    flat, thick = block((0, 0, 0), (0, 50, 100)), block((4, 10, 10), (10, 16, 16))
    click = deepest_click(np.zeros_like(flat), flat | thick, ISOTROPIC)
    assert click is not None
    assert kji(click) == (7, 13, 13)
    challenge = challenge_click(np.zeros_like(flat), flat | thick)
    assert challenge is not None
    assert kji(challenge)[0] == 0


def test_no_voxel_is_clicked_twice():
    reference = block((2, 10, 10), (2, 10, 12))
    given: list[PointPrompt] = []
    while (click := deepest_click(np.zeros_like(reference), reference, ISOTROPIC, given)) is not None:
        given.append(click)
    assert {kji(click) for click in given} == {(2, 10, 10), (2, 10, 11), (2, 10, 12)}


@given(MASKS, MASKS)
@settings(max_examples=40)
@pytest.mark.parametrize("chosen", ["challenge", "deepest"])
def test_every_click_is_on_an_error_and_says_the_truth(chosen, mask, reference):
    click = challenge_click(mask, reference) if chosen == "challenge" else deepest_click(mask, reference, (4, 1, 1))
    if click is None:
        assert np.array_equal(mask, reference)
        return
    assert mask[kji(click)] != reference[kji(click)]
    assert reference[kji(click)] == click.positive


# People


@given(MASKS, st.sampled_from(BEHAVIOURS), st.integers(0, 5))
@settings(max_examples=150)
def test_whatever_people_do_it_is_on_the_middle_slice_inside_the_volume_and_clicks_are_inside(mask, behaviour, seed):
    if not mask.any():
        return
    k = round(box_on_middle_slice(mask).min_ijk[2])
    for prompt in first_prompts(behaviour, mask, (3.0, 1.0, 1.0), np.random.default_rng(seed)):
        if isinstance(prompt, RangedBox):
            low, high = np.array(prompt.box.min_ijk), np.array(prompt.box.max_ijk)
            assert low[2] == high[2] == k
            assert (low >= 0).all()
            assert (high <= np.array(SHAPE[::-1]) - 1).all()
            assert (low <= high).all()
        else:
            assert kji(prompt)[0] == k
            assert prompt.positive
            assert mask[kji(prompt)]


def test_a_loose_box_holds_the_tight_one_and_is_at_most_half_as_large_again():
    reference = block((2, 20, 30), (8, 40, 70))
    (tight,) = first_prompts("tight box", reference, ISOTROPIC, np.random.default_rng(0))
    for seed in range(20):
        (loose,) = first_prompts("loose box", reference, ISOTROPIC, np.random.default_rng(seed))
        grown = np.array(tight.box.min_ijk) - loose.box.min_ijk
        assert (grown[:2] >= np.array([41, 21]) * 0.1).all()
        assert (grown[:2] <= np.array([41, 21]) * 0.25).all()


def test_a_border_click_is_nearer_to_the_border_than_the_centre_click():
    reference = block((2, 10, 10), (8, 50, 50))
    (centre,) = first_prompts("centre click", reference, ISOTROPIC, np.random.default_rng(0))
    assert kji(centre) == (5, 30, 30)
    for seed in range(20):
        (border,) = first_prompts("border click", reference, ISOTROPIC, np.random.default_rng(seed))
        assert min(min(n - 10, 50 - n) for n in kji(border)[1:]) <= 8


def test_a_scribble_is_several_points_along_the_object():
    reference = block((2, 20, 10), (8, 26, 90))
    points = first_prompts("scribble", reference, ISOTROPIC, np.random.default_rng(0))
    along = [kji(point)[2] for point in points]
    assert len(points) == 5
    assert max(along) - min(along) > 50


def test_random_behaviours_differ_from_seed_to_seed_and_the_others_do_not():
    reference = block((2, 10, 10), (8, 50, 90))
    for behaviour in BEHAVIOURS:
        made = {str(first_prompts(behaviour, reference, ISOTROPIC, np.random.default_rng(s))) for s in range(4)}
        assert (len(made) > 1) == is_random(behaviour), behaviour


def test_a_behaviour_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no behaviour 'lasso'"):
        first_prompts("lasso", block((2, 10, 10), (8, 50, 90)), ISOTROPIC, np.random.default_rng(0))
