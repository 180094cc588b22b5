"""Carried masks that training misplaces, so that the model does not learn to copy them."""

from __future__ import annotations

import numpy as np
import torch

from SAM2AssistLib.training.rollout import _shaken


def disc_logits(count: int) -> torch.Tensor:
    axis = torch.arange(64) - 31.5
    inside = (axis[:, None] ** 2 + axis[None] ** 2) < 12**2
    return (inside.float() * 20 - 10).expand(count, 1, 64, 64).clone()


def test_some_masks_are_moved_and_some_are_left_where_they_are():
    before = disc_logits(64)
    after = _shaken(before, np.random.default_rng(0))
    changed = ((after > 0) != (before > 0)).flatten(1).any(1)
    assert 16 < int(changed.sum()) < 60
    assert after.isfinite().all()


def test_a_moved_mask_stays_near_its_place_and_size():
    after = _shaken(disc_logits(200), np.random.default_rng(1)) > 0
    area = after.flatten(1).sum(1).float()
    assert 0.5 < float(area.median() / (np.pi * 12**2)) < 1.5
    assert bool((area > 0).all())


def test_an_empty_mask_stays_empty():
    after = _shaken(torch.full((8, 1, 64, 64), -1024.0), np.random.default_rng(2))
    assert not (after > 0).any()
