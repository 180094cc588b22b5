"""The commands behind Resources/Docs/ablation.md: alike but for one setting, and counted rightly."""

from __future__ import annotations

import statistics

import pytest

pytest.importorskip("peft", reason="fine-tuning needs the package peft")
pytest.importorskip("accelerate", reason="fine-tuning needs the package accelerate")

from SAM2AssistLib.training import ablation  # noqa: E402
from SAM2AssistLib.training.behaviours import BEHAVIOURS  # noqa: E402


@pytest.fixture(scope="module")
def a_report():
    return ablation.compare(
        ablation.variants_of("prompting"), None, steps=1, batch=2, most=2, draws=2, phantoms=1, from_scratch=True
    )


def test_phpg_is_compared_with_one_click_on_the_same_slices_at_equal_steps(a_report):
    phpg, click = a_report["PHPG"], a_report["centre click"]
    assert phpg["steps"] == click["steps"] == 1
    assert phpg["slices_encoded"] == click["slices_encoded"] == 2
    assert phpg["rows_decoded"] > 2 * click["rows_decoded"]


def test_behaviours_are_compared_at_once_and_after_corrections_on_the_regions_of_unseen_phantoms(a_report):
    assert set(a_report) == {"base", "PHPG", "centre click"}
    for name in a_report:
        first, corrected = a_report[name]["phantoms"]
        assert (first["corrections"], corrected["corrections"]) == (0, 3)
        assert first["regions"] == corrected["regions"] > 0
        assert set(first["by_behaviour"]) == set(BEHAVIOURS)
        assert (
            first["worst"] <= first["mean"] == pytest.approx(statistics.mean(first["by_behaviour"].values()), abs=1e-3)
        )


def test_the_spread_is_that_over_behaviours_and_not_over_regions_or_draws(monkeypatch, a_tiny_scene):
    model, samples = a_tiny_scene
    shares = {name: 0.1 * number for number, name in enumerate(BEHAVIOURS)}
    asked = []

    def dice_rows(_model, _head, regions, way, *_):
        asked.append(tuple(map(tuple, regions.keys)))
        (name,) = way.behaviours
        return [shares[name] + 0.05 * n for n in range(len(regions.masks))]

    monkeypatch.setattr(ablation, "_dice_rows", dice_rows)
    once, twice = (ablation.measure_spread(model, samples, 1, drawn_prompts=True, draws=draws) for draws in (1, 2))
    assert twice.regions == 2 * once.regions
    assert once.deviation == twice.deviation == pytest.approx(statistics.pstdev(shares.values()), abs=1e-4)
    assert len(set(asked)) == 2, "each draw has random numbers of its own"


@pytest.fixture(scope="module")
def a_tiny_scene():
    spec = ablation.find_model("mini")
    recipe = ablation.FineTuneRecipe(steps=1)
    names = ablation.with_synthetic_names({}, 1, 0)
    store = ablation.CaseStore([], names, [ablation.phantom_ct(ablation.HELD_OUT_SEED, names)])
    look = ablation.appearance_for(spec, recipe, varied=False)
    return ablation.build_base(spec, untrained=True), ablation.SliceSamples(store, store.index(), look, 8)


def test_regions_of_a_slice_are_timed_together_and_one_at_a_time_in_turn():
    timed = ablation.time_regions(2, repeats=2)
    assert timed["regions"] == 2
    assert 0 < timed["ratio_least"] <= timed["ratio_median"] <= timed["ratio_most"]
