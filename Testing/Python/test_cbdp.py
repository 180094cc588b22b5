"""CBDP: half of the slices in pruned epochs, the hard ones of every class among them, all in the last part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.cbdp import Pruner, Pruning

COMMON, RARE = 1, 2


def classes(count=100, rare=6) -> list[list[int]]:
    """Every slice shows the common class, and some in the middle the rare one."""
    return [[COMMON, RARE] if 40 <= n < 40 + rare else [COMMON] for n in range(count)]


def a_pruner(count=100, epochs=16, method="cbdp", seed=3, **settings_) -> Pruner:
    return Pruner(classes(count), epochs, Pruning(method, **settings_), seed)


def scored(pruner: Pruner, seed=0) -> Pruner:
    """Let the first slices be the hardest of the common class."""
    rng = np.random.default_rng(seed)
    for n, labels in enumerate(classes(len(pruner.shown))):
        pruner.record(n, {label: 1 - n / 100 + 0.01 * rng.random() for label in labels})
    return pruner


def kept(pruner: Pruner, epoch: int) -> set[int]:
    return {item.sample for item in pruner.plan(epoch)}


@pytest.mark.parametrize("method", ["cbdp", "random"])
def test_about_56_percent_of_the_iterations_are_made(method):
    pruner = a_pruner(method=method)
    sizes = [len(pruner.plan(epoch)) for epoch in range(16)]
    assert sum(sizes) / (16 * 100) == pytest.approx(0.5625)
    assert sizes == [pruner.size(epoch) for epoch in range(16)]
    assert sizes == [50] * 14 + [100] * 2


def test_without_pruning_every_epoch_sees_everything_with_weight_one():
    for epoch in range(4):
        plan = a_pruner(method="none", epochs=4).plan(epoch)
        assert sorted(item.sample for item in plan) == list(range(100))
        assert {item.weight for item in plan} == {1.0}


def test_a_run_of_few_epochs_leaves_nothing_out():
    assert len(a_pruner(epochs=3).plan(0)) == 100


@pytest.mark.parametrize("epochs", range(4, 10))
def test_the_last_epoch_sees_everything_however_few_there_are(epochs):
    pruner = a_pruner(epochs=epochs)
    assert pruner.size(0) == 50
    assert len(pruner.plan(epochs - 1)) == 100


def test_the_last_part_sees_everything_with_weight_one():
    plan = scored(a_pruner()).plan(15)
    assert sorted(item.sample for item in plan) == list(range(100))
    assert {item.weight for item in plan} == {1.0}


def test_no_slice_comes_twice_and_the_order_varies_from_epoch_to_epoch():
    pruner = scored(a_pruner())
    plans = [[item.sample for item in pruner.plan(epoch)] for epoch in (3, 4)]
    assert all(len(set(plan)) == 50 for plan in plans)
    assert plans[0] != plans[1]
    assert plans[0] == [item.sample for item in pruner.plan(3)]


def test_the_hardest_slices_are_always_kept_and_easy_ones_now_and_then():
    pruner = scored(a_pruner())
    plans = [kept(pruner, epoch) for epoch in range(14)]
    assert all(set(range(15)) <= plan for plan in plans)
    often = np.mean([[n in plan for n in range(60, 100)] for plan in plans])
    assert 0.15 < often < 0.55
    assert set.union(*plans) == set(range(100))


def test_a_rare_class_keeps_its_slices_though_they_are_easy():
    pruner = scored(a_pruner(), 1)
    for n in range(40, 46):
        pruner.record(n, {COMMON: 0.0, RARE: 0.01})
    for epoch in range(14):
        assert len(kept(pruner, epoch) & set(range(40, 46))) >= 4


def test_what_was_left_out_is_made_up_for_by_the_weights_of_its_like():
    plan = scored(a_pruner()).plan(2)
    weights = np.array([item.weight for item in plan])
    assert weights.mean() == pytest.approx(1)
    light, heavy = np.unique(weights.round(6))
    # 25 hard slices count once, 25 of the other 75 stand for three each.
    assert heavy / light == pytest.approx(3, rel=0.1)
    assert all(item.weight == pytest.approx(light) for item in plan if item.sample < 15)


def test_slices_that_were_never_seen_come_before_those_that_were():
    pruner = a_pruner()
    first = kept(pruner, 0)
    for n in first:
        pruner.record(n, dict.fromkeys(classes()[n], 0.5))
    assert len(kept(pruner, 1) - first) >= 20


def test_scores_follow_a_running_mean_and_nan_is_passed_over():
    pruner = a_pruner()
    for score in (1.0, 0.0, float("nan")):
        pruner.record(5, {COMMON: score})
    assert pruner.scores[5, pruner.labels.index(COMMON)] == pytest.approx(0.7)
    assert np.isnan(pruner.scores[5, pruner.labels.index(RARE)])


def test_a_class_with_more_loss_has_a_higher_keep_rate_within_limits():
    pruner = a_pruner()
    for n, labels in enumerate(classes()):
        pruner.record(n, {label: 0.9 if label == RARE else 0.1 for label in labels})
    common, rare = pruner.rates()
    assert rare == pytest.approx(0.9)
    assert 0.3 <= common < rare
    share = pruner.shown.sum(0) / pruner.shown.sum()
    assert float((pruner.rates() * share).sum()) == pytest.approx(0.5, abs=0.01)


def test_a_plan_is_the_same_after_the_scores_were_saved_and_loaded():
    pruner = scored(a_pruner())
    other = a_pruner()
    other.load_state_dict(pruner.state_dict())
    assert other.plan(5) == pruner.plan(5)


def test_scores_of_other_data_are_refused():
    with pytest.raises(InputError, match="of other slices or classes"):
        a_pruner().load_state_dict(a_pruner(count=99).state_dict())


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 1000))
def test_every_plan_has_its_size_whatever_is_known(count, epoch, seed):
    rng = np.random.default_rng(seed)
    labels = [sorted({int(v) for v in rng.integers(1, 5, rng.integers(1, 4))}) for _ in range(count)]
    pruner = Pruner(labels, 8, Pruning(), seed)
    for n in range(count):
        if rng.random() < 0.6:
            pruner.record(n, {label: float(rng.random()) for label in labels[n]})
    plan = pruner.plan(epoch)
    assert len(plan) == pruner.size(epoch) == len({item.sample for item in plan})
    assert all(item.weight > 0 for item in plan)


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"keep": 0.0}, {"full_from": 1.5}, {"memory": 1.0}])
def test_a_pruning_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError):
        Pruning(**wrong)
