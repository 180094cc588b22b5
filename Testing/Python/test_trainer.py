"""The trainer and its feed: a run can be killed at any moment, and what it saves is what it had."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_scenes import TINY_SIZE, a_case, a_tiny_sam2, an_l_and_a_block

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.training import feed as feed_module
from SAM2AssistLib.training import trainer as trainer_module
from SAM2AssistLib.training.feed import ClipFeed, Plan, load_batches, training_phantom
from SAM2AssistLib.training.optimizers import MUON_PACE, REFINER_PACE, MuonWithAdamW, hidden_matrices
from SAM2AssistLib.training.trainer import Recipe, StageTrainer, clips_recipe, slices_recipe, train_mini
from SAM2AssistLib.training.volumes import LabelledVolume

STEPS = 5
RECIPE = Recipe(
    "stage",
    STEPS,
    clip_share=0.4,
    learning_rate=1e-3,
    warm_up=2,
    rounds=2,
    image_size=TINY_SIZE,
    images=Plan(clips=2, slices=1, objects=2),
    clips=Plan(clips=1, slices=3, objects=2),
    phantoms=1,
)
MUON_RECIPE = replace(RECIPE, optimizer="muon")


class Killed(BaseException):
    """What ends a run in these tests, as nothing in the trainer may catch it."""


def cubes(seed: int) -> LabelledVolume:
    volume = an_l_and_a_block()
    return LabelledVolume(f"phantom {seed}", volume.hu, volume.labels, volume.spacing_kji)


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """The feed asks for a single thread in its process, which here may be this one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch):
    """Cubes instead of phantoms, made without a process of their own, and a checkpoint every two steps."""
    monkeypatch.setattr(feed_module, "training_phantom", cubes)
    monkeypatch.setattr(trainer_module, "load_batches", lambda feed: feed)
    monkeypatch.setattr(StageTrainer, "CHECKPOINT_EVERY", 2)


@pytest.fixture
def new_trainer(monkeypatch, tmp_path, quick):
    def make(seed: int = 0, recipe: Recipe = RECIPE) -> StageTrainer:
        return StageTrainer(a_tiny_sam2(monkeypatch, seed), recipe, None, tmp_path / "run")

    return make


def kill_after(steps: int, monkeypatch) -> None:
    def batches(feed) -> Iterator:
        yield from islice(feed, steps)
        raise Killed

    monkeypatch.setattr(trainer_module, "load_batches", batches)


def run_until_killed(trainer: StageTrainer, steps: int, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        kill_after(steps, patch)
        with pytest.raises(Killed):
            trainer.run()


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def copied(model) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moments(trainer: StageTrainer) -> list[dict]:
    optimizer = trainer.optimizer
    parts = [optimizer.adamw, optimizer.muon] if isinstance(optimizer, MuonWithAdamW) else [optimizer]
    return [{k: v.clone() for k, v in s.items()} for part in parts for s in part.state_dict()["state"].values()]


# ---- checkpoints


def test_a_finished_stage_leaves_its_checkpoint_and_the_averaged_weights_and_nothing_half_written(new_trainer):
    trainer = new_trainer()
    before = copied(trainer.model)
    trainer.run()
    assert trainer.step == STEPS
    assert sorted(path.name for path in trainer.out.iterdir()) == ["stage.pt", "stage.safetensors"]
    weights = load_file(trainer.out / "stage.safetensors")
    assert same(weights, trainer.average.module.state_dict())
    assert not same(weights, before)
    assert not same(weights, trainer.model.state_dict())


def test_saved_weights_fit_the_network(new_trainer):
    new_trainer().run()
    trainer = new_trainer(seed=9)
    trainer.model.load_state_dict(load_file(trainer.out / "stage.safetensors"))


@pytest.mark.parametrize("recipe", [RECIPE, MUON_RECIPE], ids=["adamw", "muon"])
def test_a_killed_run_goes_on_exactly_from_its_last_checkpoint(new_trainer, monkeypatch, recipe):
    first = new_trainer(recipe=recipe)
    saved: dict[str, Any] = {}
    save = StageTrainer._save

    def save_and_remember(trainer, spent):
        save(trainer, spent)
        saved.update(
            step=trainer.step,
            model=copied(trainer.model),
            average=copied(trainer.average.module),
            moments=moments(trainer),
        )

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "_save", save_and_remember)
        run_until_killed(first, 3, patch)
    assert (first.step, saved["step"]) == (3, 2)

    second = new_trainer(seed=77, recipe=recipe)
    assert not same(copied(second.model), saved["model"])
    run_until_killed(second, 0, monkeypatch)
    assert second.step == 2
    assert same(copied(second.model), saved["model"])
    assert same(copied(second.average.module), saved["average"])
    assert int(second.average.n_averaged) == 2
    assert all(same(mine, theirs) for mine, theirs in zip(moments(second), saved["moments"], strict=True))
    assert second.seconds > 0


def test_a_resumed_run_ends_after_the_planned_number_of_steps(new_trainer, monkeypatch):
    run_until_killed(new_trainer(), 3, monkeypatch)
    trainer = new_trainer()
    trainer.run()
    assert trainer.step == STEPS
    assert torch.load(trainer.out / "stage.pt", weights_only=True)["step"] == STEPS


def test_a_half_written_checkpoint_beside_the_last_one_is_ignored(new_trainer, monkeypatch):
    trainer = new_trainer()
    run_until_killed(trainer, 3, monkeypatch)
    for name in ("stage.pt.part", "stage.safetensors.part"):
        (trainer.out / name).write_bytes(b"half a file")
    again = new_trainer()
    again.run()
    assert again.step == STEPS
    assert not list(again.out.glob("*.part"))


def test_a_run_killed_before_its_first_checkpoint_starts_afresh(new_trainer, monkeypatch):
    run_until_killed(new_trainer(), 1, monkeypatch)
    trainer = new_trainer()
    run_until_killed(trainer, 0, monkeypatch)
    assert trainer.step == 0


@pytest.mark.parametrize("writer", ["save_file", "torch.save"])
def test_a_run_killed_while_it_writes_the_last_checkpoint_can_still_be_finished(new_trainer, monkeypatch, writer):
    trainer = new_trainer()
    run_until_killed(trainer, 4, monkeypatch)

    def write_half(_content, path):
        path.write_bytes(b"half a file")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((trainer_module, "save_file") if writer == "save_file" else (torch, "save")), write_half)
        with pytest.raises(Killed):
            new_trainer().run()
    last = new_trainer()
    last.run()
    assert last.step == STEPS
    assert same(load_file(last.out / "stage.safetensors"), last.average.module.state_dict())


def test_a_finished_stage_is_not_trained_again(new_trainer, monkeypatch):
    new_trainer().run()
    trainer = new_trainer(seed=5)
    kill_after(0, monkeypatch)
    trainer.run()
    assert same(load_file(trainer.out / "stage.safetensors"), trainer.average.module.state_dict())


def test_equal_runs_give_equal_weights(new_trainer, tmp_path, monkeypatch):
    one = new_trainer()
    two = StageTrainer(a_tiny_sam2(monkeypatch), RECIPE, None, tmp_path / "other")
    for trainer in (one, two):
        trainer.run()
    assert same(copied(one.model), copied(two.model))


# ---- a step


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_almost_nothing(new_trainer):
    trainer = new_trainer(recipe=slices_recipe(1000))
    rates = []
    for step in range(1001):
        trainer.step = step
        rates.append(trainer._rate())
    peak = int(np.argmax(rates))
    assert 99 <= peak <= 100
    assert rates[peak] == pytest.approx(5e-4)
    assert (np.diff(rates[:100]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()
    assert 0 < rates[-1] < 0.03 * rates[peak]


def test_a_step_whose_gradient_is_not_finite_changes_nothing(new_trainer):
    trainer = new_trainer()
    before = copied(trainer.model)
    parameter = next(trainer.model.parameters())
    trainer._update((parameter * torch.nan).sum())
    assert same(copied(trainer.model), before)
    assert int(trainer.average.n_averaged) == 0


def test_the_average_follows_the_weights_closely_at_first_and_slowly_later(new_trainer):
    average = new_trainer()._average
    zero, one = torch.zeros(()), torch.ones(())
    assert float(average(zero, one, 0)) == pytest.approx(0.9)
    assert float(average(zero, one, 100_000)) == pytest.approx(1 - RECIPE.averaging)


def test_norms_and_biases_do_not_decay(new_trainer):
    groups = new_trainer().optimizer.param_groups
    assert len(groups) == 4
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_the_refiner_learns_faster_than_the_rest(new_trainer):
    trainer = new_trainer()
    trainer.run()
    rest, refiner = trainer.optimizer.param_groups[0], trainer.optimizer.param_groups[2]
    assert refiner["lr"] == pytest.approx(REFINER_PACE * rest["lr"])
    assert any(p is trainer.model.refiner.change.weight for p in refiner["params"])


def test_muon_trains_the_hidden_matrices_and_adamw_each_of_the_other_parameters(new_trainer):
    trainer = new_trainer(recipe=MUON_RECIPE)
    assert isinstance(trainer.optimizer, MuonWithAdamW)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    own, rest = (
        [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (trainer.optimizer.muon, trainer.optimizer.adamw)
    )
    assert set(own) == set(hidden_matrices(trainer.model))
    assert any("attn.qkv" in name for name in own)
    assert not any("embed" in name or name.startswith("refiner.") for name in own)
    assert sorted(own + rest) == sorted(names.values())


def test_muon_has_its_own_pace_and_moves_the_matrices(new_trainer):
    trainer = new_trainer(recipe=MUON_RECIPE)
    before = copied(trainer.model)
    trainer.run()
    rest, muon = trainer.optimizer.param_groups[0], trainer.optimizer.param_groups[-1]
    assert muon["lr"] == pytest.approx(MUON_PACE * rest["lr"])
    moved = [not torch.equal(p, before[name]) for name, p in hidden_matrices(trainer.model).items()]
    assert np.mean(moved) > 0.9


# ---- all stages


def test_each_stage_starts_from_the_average_of_the_one_before_and_all_are_recorded(tmp_path, monkeypatch, quick):
    starts = []

    class Watched(StageTrainer):
        def __init__(self, model, *args):
            starts.append(copied(model))
            super().__init__(model, *args)

    def tiny_recipe(name: str, steps: int) -> Recipe:
        return Recipe(**{**vars(RECIPE), "name": name, "steps": steps})

    a_tiny_sam2(monkeypatch)
    monkeypatch.setattr(trainer_module, "StageTrainer", Watched)
    monkeypatch.setattr(trainer_module, "build_sam2", lambda *_: build_sam2("tiny", TINY_SIZE))
    names = ("slices", "left out", "clips", "refine")
    recipes = {name: functools.partial(tiny_recipe, name) for name in names}
    monkeypatch.setattr(trainer_module, "RECIPES", recipes)
    out = tmp_path / "run"
    train_mini(out, None, {"slices": 2, "left out": 0, "clips": 1, "refine": 1})
    assert same(starts[1], load_file(out / "slices.safetensors"))
    assert same(starts[2], load_file(out / "clips.safetensors"))
    assert (out / "refine.safetensors").is_file()
    record = json.loads((out / "training.json").read_text())
    assert [(stage["name"], stage["steps"]) for stage in record["stages"]] == [
        ("slices", 2),
        ("clips", 1),
        ("refine", 1),
    ]
    assert str(tmp_path) not in (out / "training.json").read_text()


def test_the_first_stage_has_slices_alone_and_the_second_mostly_clips():
    assert slices_recipe(10).clip_share == 0
    assert 0.5 < clips_recipe(10).clip_share < 1
    assert slices_recipe(10).seed != clips_recipe(10).seed


# ---- the feed


def a_feed(**changes) -> ClipFeed:
    settings = {"image_size": TINY_SIZE, "phantoms": 2, "seed": 3}
    plans = [Plan(clips=2, slices=1, objects=2), Plan(clips=1, slices=3, objects=1)]
    return ClipFeed(changes.pop("real", []), plans, changes.pop("shares", [0.5, 0.5]), **{**settings, **changes})


def test_batches_have_the_shape_of_their_plan(quick):
    feed, kinds = a_feed(), set()
    for images, masks, kind in islice(feed, 10):
        plan = feed.plans[kind]
        assert images.shape == (plan.clips, plan.slices, 3, TINY_SIZE, TINY_SIZE)
        assert masks.shape == (plan.clips, plan.slices, plan.objects, TINY_SIZE, TINY_SIZE)
        assert masks[:, 0].flatten(2).any(-1).all()  # slice 0 is the one that is prompted
        kinds.add(kind)
    assert kinds == {0, 1}


def test_a_plan_without_a_share_never_comes(quick):
    assert {kind for *_, kind in islice(a_feed(shares=[1.0, 0.0]), 8)} == {0}


def test_the_stream_of_one_seed_is_always_the_same(quick):
    for (one, one_masks, _), (two, two_masks, _) in zip(islice(a_feed(), 4), islice(a_feed(), 4), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one_masks, two_masks)


def test_phantoms_are_renewed_as_the_stream_goes_on(quick, monkeypatch):
    made: list[int] = []

    def noted_cubes(seed: int) -> LabelledVolume:
        made.append(seed)
        return cubes(seed)

    monkeypatch.setattr(feed_module, "training_phantom", noted_cubes)
    list(islice(a_feed(renew_every=4), 12))
    assert len(made) > 3
    assert len(set(made)) == len(made)


def test_real_volumes_share_their_part_by_how_much_they_show(quick):
    rich, volume = an_l_and_a_block(), an_l_and_a_block()
    poor = LabelledVolume("poor", volume.hu, (volume.labels == 1).astype(np.uint8), volume.spacing_kji)
    feed = a_feed(real=[rich, poor], phantom_share=0.25)
    weights = feed._weights([cubes(0), cubes(1)])
    assert sum(weights) == pytest.approx(1)
    assert weights[2:] == pytest.approx([0.125, 0.125])
    assert weights[0] > weights[1] > 0


def test_a_training_phantom_is_labelled_and_depends_on_its_seed_alone():
    one, two, other = training_phantom(1), training_phantom(1), training_phantom(2)
    assert np.array_equal(one.hu, two.hu)
    assert np.array_equal(one.labels, two.labels)
    assert one.hu.shape != other.hu.shape or not np.array_equal(one.hu, other.hu)
    assert len(one.labels_along(0)) > 5


def test_batches_come_from_a_process_of_their_own_and_are_the_same_there():
    feed = a_feed(real=[an_l_and_a_block()], phantoms=1)
    batches = iter(load_batches(feed))
    for (one, _, kind), (two, _, wanted) in zip(islice(batches, 2), islice(feed, 2), strict=True):
        assert kind == wanted
        assert torch.equal(one, two)


def test_the_trainer_reads_real_volumes_and_never_the_test_part(tmp_path, monkeypatch, quick):
    volume = an_l_and_a_block()
    for name in ("a", "b"):
        a_case(tmp_path, name, volume.hu, volume.labels)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "unlabelled": [], "test": ["b"]}))
    trainer = StageTrainer(a_tiny_sam2(monkeypatch), RECIPE, tmp_path, tmp_path / "run")
    assert [v.name for v in trainer.volumes] == ["a"]
