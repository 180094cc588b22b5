"""Measuring: what is asked of a model, what is kept, how it is summed up and reported, and going on after a break."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from auto_scenes import a_learned_head, a_prompter, balls
from evaluation_data import a_trial, ball_labels, write_data

pytest.importorskip("monai", reason="measuring needs MONAI")

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.evaluation.automatic import OrganPlan, OrganScore, measure_organs, summarise_organs
from SAM2AssistLib.evaluation.cases import ReadCase, find_cases
from SAM2AssistLib.evaluation.interactive import Task, Trial, User, run_trial, users
from SAM2AssistLib.evaluation.measurements import Request
from SAM2AssistLib.evaluation.methods import EngineMethod
from SAM2AssistLib.evaluation.organs import SYNAPSE8
from SAM2AssistLib.evaluation.running import Plan, measure
from SAM2AssistLib.evaluation.sources import AutoSegment, FromBoxes, Source, SupportDraws
from SAM2AssistLib.evaluation.store import CaseResults, Store
from SAM2AssistLib.evaluation.summary import (
    area_under_steps,
    as_challenge,
    clicks_needed,
    human_factor,
    of_method,
)
from SAM2AssistLib.evaluation.tables import write_csv
from SAM2AssistLib.prompting import auto

SETTINGS = {"protocol": "cvpr25", "clicks": 2}


class Obedient:
    """A method that does what it is told: it corrects exactly the slice that is clicked."""

    name = "obedient"

    def __init__(self, reference: np.ndarray) -> None:
        self.reference, self.prompts, self.opened = reference, [], 0

    @contextmanager
    def open(self, volume):
        self.opened += 1
        yield self

    @contextmanager
    def attempt(self, name):
        self.prompts, self.found = [], np.zeros_like(self.reference)
        yield self

    def prompt(self, prompt):
        self.prompts.append(prompt)
        k = round((prompt.box.min_ijk if hasattr(prompt, "box") else prompt.index_ijk)[2])
        self.found[k] = self.reference[k]
        return self.found[k].copy()

    def mask(self):
        return self.found.copy()


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def a_task():
    return Task("one", "ball", ball_labels() == 2, (4.0, 1.5, 1.5))


# Trials


def test_a_trial_measures_after_the_first_prompt_and_after_each_click(a_task):
    method = Obedient(a_task.reference)
    trial, mask = run_trial(method, method, a_task, User("cvpr25", "box", 0), 5)
    assert len(trial.dsc) == len(trial.nsd) == len(trial.seconds) == 6
    assert list(trial.dsc) == sorted(trial.dsc)
    assert trial.slice_dsc == 1.0
    assert trial.dsc[-1] == 1.0
    assert np.array_equal(mask, a_task.reference)


def test_there_are_no_clicks_once_nothing_is_wrong_and_the_score_stays(a_task):
    method = Obedient(a_task.reference)
    trial, _ = run_trial(method, method, a_task, User("cvpr25", "box", 0), 9)
    slices = int(a_task.reference.any(axis=(1, 2)).sum())
    assert len(trial.clicks) == slices - 1
    assert trial.dsc[slices - 1 :] == (1.0,) * (10 - slices + 1)
    assert trial.seconds[-1] == 0.0


def test_replayed_clicks_are_given_as_they_were(a_task):
    first = Obedient(a_task.reference)
    trial, _ = run_trial(first, first, a_task, User("cvpr25", "box", 0), 2)
    given = first.prompts[1:]
    second = Obedient(np.zeros_like(a_task.reference))
    again, _ = run_trial(second, second, a_task, User("cvpr25", "box", 0), 2, replay=given)
    assert second.prompts == first.prompts
    assert again.clicks == trial.clicks


def test_every_method_gets_the_same_first_prompts_whatever_else_is_measured(a_task):
    for protocol, behaviour in (("cvpr25", "box"), ("clicks", "click"), ("human", "scribble")):
        user = User(protocol, behaviour, 3)
        assert user.first(a_task) == user.first(a_task)
    assert len({str(User("human", "shaky box", seed).first(a_task)) for seed in range(4)}) == 4


def test_what_is_not_random_is_not_repeated():
    people = users("human", seeds=3)
    assert sum(user.behaviour == "tight box" for user in people) == 1
    assert sum(user.behaviour == "scribble" for user in people) == 3
    assert len(users("cvpr25", seeds=2)) == 2
    assert len(users("clicks", seeds=5)) == 1
    with pytest.raises(InputError, match="no behaviour 'lasso'"):
        users("human", behaviours=["lasso"])


def test_the_session_of_the_engine_holds_nothing_of_a_structure_that_is_done(a_task, quick_engine, a_blob_volume):
    with EngineMethod(quick_engine()).open(a_blob_volume) as opened:
        for _ in range(2):
            with opened.attempt("ball") as attempt:
                attempt.prompt(User("clicks", "click", 0).first(a_task)[0])
                attempt.mask()
        assert opened.session.segments == ()
        assert opened.session.undo() is None


# Summaries


def test_the_challenges_area_leaves_the_box_out_and_is_four_at_most():
    assert area_under_steps((0.0, 1.0, 1.0, 1.0, 1.0, 1.0)) == 4.0
    assert area_under_steps((0.9, 0.0, 0.5, 0.5, 0.5, 1.0)) == pytest.approx(0.25 + 0.5 + 0.5 + 0.75)


def test_the_area_needs_nothing_that_came_with_numpy_2(monkeypatch):
    monkeypatch.delattr(np, "trapezoid", raising=False)
    assert [area_under_steps(scores) for scores in ([0.9], [0.9, 0.5], [0.9, 0.5, 1.0])] == [0.0, 0.0, 0.75]


def test_the_challenge_averages_classes_before_cases_and_drops_the_nsd_of_a_poor_case():
    trials = [
        a_trial((0.9,) * 6, case="a", structure="liver"),
        a_trial((0.7,) * 6, case="a", structure="spleen"),
        a_trial((0.2,) * 6, case="b"),
    ]
    scores = as_challenge(trials)
    assert scores["dsc_final"] == pytest.approx((0.8 + 0.2) / 2)
    assert scores["nsd_final"] == pytest.approx((0.7 + 0.0) / 2)
    assert of_method(trials)["dsc_final"] == pytest.approx(0.6)
    assert of_method(trials)["nsd_final"] == pytest.approx(0.5)


def test_the_seconds_of_a_click_are_those_of_clicks_that_were_made():
    click = (1.0, 2.0, 3.0, True)
    trials = [
        a_trial((0.5, 0.6, 0.7), clicks=(click, click), seconds=(5.0, 2.0, 4.0)),
        a_trial((0.9, 1.0, 1.0), clicks=(click,), seconds=(5.0, 3.0, 0.0)),
    ]
    assert of_method(trials)["seconds_click"]["mean"] == 3.0


def test_clicks_are_counted_from_the_first_prompt_and_a_failure_counts_all_of_them():
    trials = [a_trial((0.5, 0.86, 0.95)), a_trial((0.9, 0.8, 0.8)), a_trial((0.1, 0.2, 0.3))]
    needed = clicks_needed(trials, 0.85)
    assert needed == {"mean": pytest.approx((2 + 1 + 3) / 3, abs=1e-3), "missed": 1, "most": 3}


def test_the_human_factor_is_the_spread_over_users_of_the_same_structure():
    trials = [
        a_trial((score,), structure=structure, behaviour=behaviour)
        for structure, scores in (("liver", (0.9, 0.7)), ("spleen", (0.6, 0.6)))
        for behaviour, score in zip(("tight box", "scribble"), scores, strict=True)
    ]
    human = human_factor(trials)
    assert human["sd_over_users"] == pytest.approx((0.1 + 0.0) / 2)
    assert human["worst_user"] == pytest.approx((0.7 + 0.6) / 2)
    assert human["worst_of_all"] == 0.6
    assert human["behaviours"]["tight box"]["mean"] == pytest.approx(0.75)


# Keeping and going on


def test_a_mask_is_kept_as_it_is(tmp_path):
    store = Store(tmp_path, SETTINGS, Trial)
    rng = np.random.default_rng(0)
    for mask in (rng.random((5, 7, 9)) > 0.5, np.zeros((5, 7, 9), bool)):
        store.save_mask("sarcoma/one", ("tumor / left", "box", 0), mask)
        kept = store.load_mask("sarcoma/one", ("tumor / left", "box", 0))
        assert np.array_equal(kept, mask)
    assert store.load_mask("sarcoma/one", ("another",)) is None


def test_the_mask_of_a_structure_with_a_long_name_is_kept_apart_from_one_that_begins_alike(tmp_path):
    store = Store(tmp_path, SETTINGS, Trial)
    names = ["腫瘍" * 20 + end for end in ("", "縁")]
    for name, mask in zip(names, np.eye(2, dtype=bool), strict=True):
        store.save_mask(name, (name, 0), mask.reshape(1, 1, 2))
    assert [store.load_mask(name, (name, 0)).tolist() for name in names] == [[[[True, False]]], [[[False, True]]]]


def test_a_folder_that_masks_cannot_be_put_into_is_named(tmp_path):
    store = Store(tmp_path, SETTINGS, Trial)
    (tmp_path / "masks" / "one").touch()
    with pytest.raises(OutputError, match="masks/one cannot be made"):
        store.save_mask("one", ("ball", 0), np.ones((1, 1, 1), bool))


def test_results_are_read_back_as_they_were(tmp_path):
    store = Store(tmp_path, SETTINGS, Trial)
    results = CaseResults(("ball",), ("ball",), (a_trial((0.5, 0.6), clicks=((1.0, 2.0, 3.0, True),)),))
    store.save("sarcoma/one", results)
    assert Store(tmp_path, SETTINGS, Trial).load("sarcoma/one") == results
    assert store.load("two") is None


def test_a_folder_with_results_of_other_settings_is_refused_and_left_alone(tmp_path):
    Store(tmp_path, SETTINGS, Trial).save("one", CaseResults(("ball",), ("ball",), (a_trial((0.5,)),)))
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(InputError, match="holds results for clicks 2, not 5; choose another folder"):
        Store(tmp_path, {**SETTINGS, "clicks": 5}, Trial)
    assert (tmp_path / "settings.json").read_text() == before


def test_settings_of_another_program_are_not_replaced(tmp_path):
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')
    with pytest.raises(InputError, match="choose another folder"):
        Store(tmp_path, SETTINGS, Trial)


def test_damaged_results_are_named(tmp_path):
    store = Store(tmp_path, SETTINGS, Trial)
    (tmp_path / "cases" / "one.json").write_text('{"records": [')
    with pytest.raises(InputError, match="damaged"):
        store.load("one")
    (tmp_path / "cases" / "one.json").write_text(
        json.dumps({"structures": ["a"], "measured": ["a"], "records": [{"dsc": 1}]})
    )
    with pytest.raises(InputError, match="another version"):
        store.load("one")


def test_a_damaged_mask_is_named_and_how_to_have_it_made_anew(tmp_path):
    store = Store(tmp_path, SETTINGS, Trial)
    store.save_mask("one", ("ball", 0), ball_labels() == 2)
    (path,) = (tmp_path / "masks" / "one").glob("*.npz")
    whole = path.read_bytes()
    for content in (b"", b"x", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{path.name} is damaged; delete it and .*one\.json"):
            store.load_mask("one", ("ball", 0))


def a_plan(method) -> Plan:
    return Plan((method,), tuple(users("cvpr25")), 1)


def test_a_measurement_that_was_broken_off_goes_on_where_it_was(data, tmp_path):
    cases = find_cases(data)
    store = Store(tmp_path / "out", SETTINGS, Trial)
    method = Obedient(ball_labels() > 0)
    steps = measure(cases, a_plan(method), store)
    first = next(steps)
    steps.close()
    assert (first.case, first.structure) == ("one", "ball")
    later = list(measure(cases, a_plan(method), store))
    assert [(step.case, step.structure) for step in later] == [
        ("one", "little ball"),
        ("two", "ball"),
        ("two", "little ball"),
    ]
    assert [step.share for step in later] == pytest.approx([0.5, 0.75, 1.0])
    assert method.opened == 3
    known = store.load("one")
    assert known is not None
    assert [trial.structure for trial in known.records] == ["ball", "little ball"]
    assert [step.structure for step in measure(cases, a_plan(method), store)] == ["", ""]


def test_results_of_labels_that_have_changed_since_are_not_taken_for_those_of_the_new_ones(data, tmp_path):
    cases = find_cases(data)
    list(measure(cases, a_plan(Obedient(ball_labels() > 0)), Store(tmp_path / "out", SETTINGS, Trial)))
    label = cases[0].paths[1]
    image = sitk.ReadImage(str(label))
    image[0, 0, 0] = 2
    sitk.WriteImage(image, str(label))
    with pytest.raises(InputError, match=f"results of one with another labels/{label.name}"):
        list(measure(cases, a_plan(Obedient(ball_labels() > 0)), Store(tmp_path / "out", SETTINGS, Trial)))


def test_results_under_names_that_were_corrected_since_are_not_taken_for_those_of_the_new_ones(data, tmp_path):
    def go_on():
        list(measure(find_cases(data), a_plan(Obedient(ball_labels() > 0)), Store(tmp_path / "out", SETTINGS, Trial)))

    go_on()
    names = data / "labels.json"
    names.write_text(json.dumps({"ball": 5, "little ball": 2}))
    with pytest.raises(InputError, match="results of one with another set of names; choose another folder"):
        go_on()
    names.write_text(json.dumps({"little ball": 5, "ball": 2}))  # the same in another order
    go_on()


def test_an_adapter_is_known_by_its_heads_too(data, tmp_path):
    settings = []
    for content in (b"one", b"other"):
        adapter = tmp_path / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"updates of zero")
        (adapter / "self_prompt.safetensors").write_bytes(content)
        settings.append(Request(data, "auto", tmp_path / "out", adapter=adapter).settings())
    assert settings[0] != settings[1]


def test_an_adapter_that_is_the_working_folder_is_reported_by_its_name(monkeypatch, data, tmp_path):
    adapter = tmp_path / "liver-adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"updates of zero")
    monkeypatch.chdir(adapter)
    assert Request(data, "cvpr25", tmp_path / "out", adapter=Path()).settings()["adapter"] == "liver-adapter"


def test_structures_that_are_too_small_or_not_asked_for_are_left_out(data, tmp_path):
    cases = find_cases(data, only=["one"])
    plan = Plan((Obedient(ball_labels() > 0),), tuple(users("cvpr25")), 0, least_voxels=600)
    assert int((ball_labels() == 5).sum()) < 600 < int((ball_labels() == 2).sum())
    assert [s.structure for s in measure(cases, plan, Store(tmp_path / "a", SETTINGS, Trial))] == ["ball"]
    asked = Plan((Obedient(ball_labels() > 0),), tuple(users("cvpr25")), 0, structures=("little ball",))
    assert [s.structure for s in measure(cases, asked, Store(tmp_path / "b", SETTINGS, Trial))] == ["little ball"]


# Organs


class Fixed(Source):
    """A source that always gives the same masks."""

    name, told = "fixed", ""

    def __init__(self, **masks: np.ndarray) -> None:
        self.masks = masks

    def classes(self):
        return None

    def segment(self, case, organs, draw):
        return self.masks


def test_organs_are_scored_as_published_and_honestly_side_by_side(data, tmp_path):
    found = Fixed(ball=ball_labels() == 2, ghost=ball_labels() == 5)
    plan = OrganPlan(found, ("ball", "little ball", "ghost", "nothing"), SYNAPSE8)
    store = Store(tmp_path / "out", SETTINGS, OrganScore)
    assert len(list(measure_organs(find_cases(data), plan, store))) == 2
    results = store.load("one")
    assert results is not None
    ball, missed, invented, nothing = results.records
    assert (ball.dsc, ball.nsd, ball.hd95_mm, ball.published_dsc) == (1.0, 1.0, 0.0, 1.0)
    assert (missed.present, missed.found, missed.dsc, missed.published_second) == (True, False, 0.0, 0.0)
    assert missed.hd95_mm is not None
    assert missed.hd95_mm > 90
    assert (invented.present, invented.dsc, invented.published_dsc) == (False, 0.0, 1.0)
    assert (nothing.dsc, nothing.published_dsc) == (None, 0.0)


def test_the_mean_over_organs_leaves_out_what_is_neither_there_nor_found_and_counts_misses(data, tmp_path):
    plan = OrganPlan(Fixed(ball=ball_labels() == 2), ("ball", "little ball", "nothing"))
    store = Store(tmp_path / "out", SETTINGS, OrganScore)
    list(measure_organs(find_cases(data), plan, store))
    scores = [s for case in ("one", "two") for s in store.load(case).records]
    summary = summarise_organs(scores, None)
    assert summary["mean"]["dsc"] == 0.5
    assert summary["mean"]["missed"] == 2
    assert summary["organs"]["nothing"]["dsc"] is None
    assert "dsc_sd" not in summary["mean"]


def test_a_row_of_a_csv_file_ends_as_lines_of_its_system_do(tmp_path):
    write_csv(tmp_path / "rows.csv", ["a", "b"], [[1, None]])
    assert (tmp_path / "rows.csv").read_bytes() == f"a,b{os.linesep}1,{os.linesep}".encode()


def test_draws_give_a_mean_and_the_standard_deviation_of_a_sample():
    base = {"case": "a", "organ": "ball", "present": True, "found": True, "nsd": 0.5, "hd95_mm": 3.0}
    scores = [
        OrganScore(**base, draw=draw, dsc=dsc, published_dsc=None, published_second=None, seconds=1.0)
        for draw, dsc in enumerate((0.6, 0.8, 0.7))
    ]
    mean = summarise_organs(scores, None)["mean"]
    assert (mean["dsc"], mean["dsc_sd"]) == (pytest.approx(0.7), pytest.approx(0.1))


def test_boxes_are_drawn_for_organs_that_are_there_only(data, quick_engine):
    (case, _) = find_cases(data)
    masks = FromBoxes(quick_engine()).segment(case.read(), ("ball", "ghost"), 0)
    assert set(masks) == {"ball"}


def test_a_case_never_supports_itself_and_a_draw_is_the_same_again(data):
    cases = tuple(find_cases(write_data(data, ("one", "two", "three"))))
    draws = SupportDraws(cases, 1)
    for draw in range(6):
        (drawn,) = draws.drawn("one", draw)
        assert drawn.name != "one"
        assert draws.drawn("one", draw) == [drawn]
    assert {draws.drawn("one", draw)[0].name for draw in range(6)} == {"two", "three"}
    with pytest.raises(InputError, match="2 cases to support one and 3 are wanted"):
        SupportDraws(cases, 3).drawn("one", 0)


def test_the_head_of_an_adapter_compares_support_cases_but_finds_nothing_that_they_do_not_show(
    data, quick_engine, monkeypatch
):
    asked = []
    monkeypatch.setattr(auto, "auto_segment", lambda _, **how: asked.append(how) or iter(()))
    engine, cases = quick_engine(), tuple(find_cases(data))
    prompter = a_prompter(engine, None)
    source = AutoSegment(engine, prompter, SupportDraws(cases, 1))
    assert source.classes() is None
    source.segment(cases[0].read(), ("ball", prompter.classes[0]), 0)
    (how,) = asked
    assert how["adapter"] is prompter
    assert [one.name for one in how["support"]] == ["two"]
    assert how["classes"] == ["ball"]


class BySupport(AutoSegment):
    """Finds nothing; what counts is whom it goes by."""

    def __init__(self, draws: SupportDraws) -> None:
        super().__init__(None, None, draws)

    def segment(self, case, organs, draw):
        return {}


@pytest.mark.parametrize("changed", ["images", "labels"])
def test_results_by_support_cases_are_held_to_those_as_they_were(data, tmp_path, changed):
    write_data(data, ("one", "two", "three"))

    def measured(supports=1):
        cases = tuple(find_cases(data))
        plan = OrganPlan(BySupport(SupportDraws(cases[1:], supports)), ("ball",), draws=1)
        list(measure_organs(cases[:1], plan, Store(tmp_path / "out", SETTINGS, OrganScore)))

    measured()
    measured()
    (drawn,) = SupportDraws(tuple(find_cases(data))[1:], 1).drawn(find_cases(data)[0].name, 0)
    path = next(path for path in drawn.paths if path.parent.name == changed)
    image = sitk.ReadImage(str(path))
    image[0, 0, 0] = 2
    sitk.WriteImage(image, str(path))
    with pytest.raises(InputError, match=f"with another {changed}/{path.name}"):
        measured()


def test_auto_segment_is_asked_for_what_its_head_knows_and_nothing_else(quick_engine):
    engine = quick_engine()
    volume, masks = balls()
    names = {name: value for value, name in enumerate((*masks, "liver"), 1)}
    labels = sum(names[name] * mask.astype(np.uint8) for name, mask in masks.items())
    source = AutoSegment(engine, a_prompter(engine, a_learned_head(engine)), None)
    assert "cube" in source.classes()
    found = source.segment(ReadCase("one", volume, labels, names), ("liver", *masks), 0)
    assert "liver" not in found
    assert set(found) == set(masks)
    assert all(mask.any() for mask in found.values())
    assert source.segment(ReadCase("one", volume, labels, names), ("liver",), 0) == {}
