"""The voxel prompt head and the features it works on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import View
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures, read_features
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead, step_for

CHANNELS = (16, 8, 4)


def a_head(classes: int = 3) -> VoxelPromptHead:
    torch.manual_seed(0)
    return VoxelPromptHead(CHANNELS, classes, width=8)


def some_features(slices: int, side: int = 4, distance_mm: float = 5.0) -> VoxelFeatures:
    torch.manual_seed(slices)
    levels = tuple(torch.randn(slices, c, side * 2**n, side * 2**n).half() for n, c in enumerate(CHANNELS))
    return VoxelFeatures(levels, View(0, 0, 64, 64), distance_mm)


def test_the_gradient_reaches_every_parameter():
    head = a_head()
    levels = tuple(level.float() for level in some_features(5).levels)
    head(levels).square().mean().backward()
    unreached = [n for n, p in head.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not unreached


@settings(max_examples=15)
@given(slices=st.integers(1, 7), side=st.integers(2, 9), step=st.integers(1, 4))
def test_nothing_is_hard_wired_to_one_size(slices, side, step):
    levels = tuple(level.float() for level in some_features(slices, side).levels)
    assert a_head()(levels, step).shape == (slices, 4, 4 * side, 4 * side)


@pytest.mark.parametrize("distance_mm", [1.0, 2.5, 5.0])
@pytest.mark.parametrize("part", [1, 4, 100])
def test_a_volume_done_in_parts_gives_what_it_gives_at_once(distance_mm, part):
    features = some_features(23, distance_mm=distance_mm)
    head = a_head()
    whole = head(tuple(level.float() for level in features.levels), step_for(distance_mm)).softmax(dim=1)
    torch.testing.assert_close(head.probabilities(features, part).float(), whole, atol=2e-3, rtol=0)


def roomy_for(head: VoxelPromptHead, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a head run out of memory on more slices than these."""
    trunk = head.trunk

    def limited(levels: tuple[torch.Tensor, ...], step: int) -> torch.Tensor:
        if len(levels[0]) > slices:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return trunk(levels, step)

    monkeypatch.setattr(head, "trunk", limited)


def test_a_head_that_runs_out_of_memory_takes_fewer_slices_and_finds_the_same(monkeypatch, caplog):
    features, head = some_features(23), a_head()
    wanted = head.probabilities(features)
    roomy_for(head, 12, monkeypatch)
    torch.testing.assert_close(head.probabilities(features), wanted, atol=2e-3, rtol=0)
    assert "8 slices at a time" in caplog.text
    assert "2 slices at a time" in caplog.text


def test_a_head_without_memory_for_one_slice_says_so(monkeypatch):
    head = a_head()
    roomy_for(head, 0, monkeypatch)
    with pytest.raises(ModelError, match="not enough memory"):
        head.probabilities(some_features(3))


def test_probabilities_of_a_voxel_sum_to_one():
    total = a_head().probabilities(some_features(3)).float().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=5e-3, rtol=0)


def test_a_slice_is_seen_with_those_above_and_below_it():
    levels = tuple(level.float() for level in some_features(9).levels)
    changed = tuple(level.clone() for level in levels)
    for level in changed:
        level[0] += 1
    head = a_head()
    difference = (head(levels) - head(changed)).abs().amax(dim=(1, 2, 3))
    assert bool((difference[: head.looks + 1] > 0).all())
    assert difference[head.looks + 1 :].max().item() == 0.0


def test_thin_slices_are_passed_over_so_that_the_reach_is_in_millimetres():
    assert [step_for(mm) for mm in (0.7, 1.25, 2.5, 5.0, 10.0)] == [7, 4, 2, 1, 1]


def test_features_of_a_volume_are_read_once_and_kept_small(quick_engine, a_blob_volume):
    engine = quick_engine()
    plane = Plane(engine.model, a_blob_volume, 0, default_window(a_blob_volume), engine.channels, engine.options)
    *counts, features = read_features(plane, plane.whole)
    assert counts == [4, 8, 10]
    assert plane.encoder.encoded == 10
    assert [tuple(level.shape) for level in features.levels] == [(10, 128, 4, 4), (10, 32, 8, 8), (10, 16, 16, 16)]
    assert all(level.dtype == torch.float16 for level in features.levels)
    assert features.part(2, 5).slices == 3
