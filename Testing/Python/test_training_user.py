"""The simulated user of the training: boxes, clicks and corrections lie where a person would put them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from training_scenes import logits_of

from SAM2AssistLib.training.user import (
    BOX_JITTER,
    BOX_JITTER_LIMIT,
    boxes_around,
    clicks_inside,
    correction_clicks,
    first_prompts,
)

SIZE = 256
CELL = 16
coarse_masks = hnp.arrays(bool, (SIZE // CELL, SIZE // CELL))
seeds = st.integers(0, 2**31)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def enlarged(mask: np.ndarray) -> torch.Tensor:
    """(1, S, S) of a mask on cells of 16 pixels."""
    return torch.from_numpy(mask.repeat(CELL, 0).repeat(CELL, 1))[None]


def a_rectangle(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


def hits(mask: torch.Tensor, point: torch.Tensor) -> bool:
    """Whether a point (x, y), which may lie between pixel centres, lies in a mask (S, S)."""
    x, y = (min(max(int(np.floor(float(v) + 0.5)), 0), mask.shape[-1] - 1) for v in point)
    return bool(mask[y, x])


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 56), st.integers(1, 56), seeds)
@settings(max_examples=40)
def test_a_box_contains_its_object_up_to_the_jitter(top, left, height, width, seed):
    box = boxes_around(a_rectangle(top, left, top + height, left + width), random(seed))[0].numpy()
    for axis, (start, side) in enumerate(((left, width), (top, height))):
        reach = min(side * BOX_JITTER, BOX_JITTER_LIMIT) + 1e-4
        assert abs(box[0, axis] - start) <= reach
        assert abs(box[1, axis] - (start + side - 1)) <= reach
    assert (box >= 0).all()
    assert (box <= SIZE - 1).all()
    assert (box[0] <= box[1]).all()


def test_a_box_without_jitter_ends_on_the_outermost_pixels():
    box = boxes_around(a_rectangle(20, 30, 61, 92), random(0), jitter=0.0)
    assert box.tolist() == [[[30.0, 20.0], [91.0, 60.0]]]


def test_boxes_of_one_object_differ_from_time_to_time():
    masks = a_rectangle(40, 40, 120, 120).repeat(2, 1, 1)
    one, two = boxes_around(masks, random(0))
    assert not torch.equal(one, two)


@given(coarse_masks.filter(np.any), seeds)
@settings(max_examples=40)
def test_a_first_click_lies_inside_its_object(mask, seed):
    masks = enlarged(mask)
    assert hits(masks[0], clicks_inside(masks, random(seed))[0])


@pytest.mark.parametrize("corner", [(0, 0), (0, SIZE - 1), (SIZE - 1, SIZE - 1)])
def test_an_object_of_one_pixel_in_a_corner_is_hit_exactly(corner):
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[0, corner[0], corner[1]] = True
    for seed in range(6):
        assert clicks_inside(masks, random(seed))[0].tolist() == [corner[1], corner[0]]


def test_every_object_is_prompted_with_a_box_or_a_click_and_what_is_padding_says_so():
    masks = torch.cat([a_rectangle(10 * n, 20, 10 * n + 30, 90) for n in range(6)])
    kinds = set()
    for seed in range(40):
        points, labels = first_prompts(masks, random(seed))
        assert points.shape == (6, labels.shape[1], 2)
        assert not points[labels == -1].any()
        for mask, object_points, object_labels in zip(masks, points, labels, strict=True):
            kind = tuple(sorted(label for label in object_labels.tolist() if label != -1))
            kinds.add(kind)
            for point, label in zip(object_points, object_labels, strict=True):
                assert label != 1 or hits(mask, point)
    assert kinds == {(1,), (2, 3), (1, 2, 3)}


def test_the_same_seed_gives_the_same_prompts():
    masks = a_rectangle(30, 40, 90, 100).repeat(3, 1, 1)
    for seed in range(4):
        one, two = first_prompts(masks, random(seed)), first_prompts(masks, random(seed))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@given(coarse_masks, coarse_masks, seeds)
@settings(max_examples=60)
def test_a_correction_lies_in_the_larger_error_and_has_its_sign(truth, guess, seed):
    masks, predicted = enlarged(truth), enlarged(guess)
    points, labels = correction_clicks(logits_of(predicted), masks, random(seed))
    assert points.shape == (1, 1, 2)
    assert labels.shape == (1, 1)
    missing, excess = masks & ~predicted, predicted & ~masks
    if missing.any() or excess.any():
        positive = bool(missing.sum() > excess.sum())
        region = missing if positive else excess
    else:
        positive = bool(masks.any())
        region = masks if positive else ~masks
    assert labels.item() == int(positive)
    assert hits(region[0], points[0, 0])


def test_a_perfect_mask_gets_one_more_click_inside():
    masks = a_rectangle(64, 32, 128, 160)
    for seed in range(6):
        points, labels = correction_clicks(logits_of(masks), masks, random(seed))
        assert labels.item() == 1
        assert hits(masks[0], points[0, 0])


def test_a_mask_of_an_object_that_is_not_there_is_clicked_away():
    ghost = a_rectangle(64, 32, 128, 160)
    for seed in range(6):
        points, labels = correction_clicks(logits_of(ghost), torch.zeros_like(ghost), random(seed))
        assert labels.item() == 0
        assert hits(ghost[0], points[0, 0])


def test_each_object_of_a_batch_is_corrected_on_its_own():
    masks = torch.cat([a_rectangle(32, 32, 96, 96), a_rectangle(160, 160, 224, 224)])
    guesses = torch.cat([torch.zeros_like(masks[:1]), torch.ones_like(masks[:1])])
    points, labels = correction_clicks(logits_of(guesses), masks, random(0))
    assert labels.flatten().tolist() == [1, 0]
    assert hits(masks[0], points[0, 0])
    assert not hits(masks[1], points[1, 0])
