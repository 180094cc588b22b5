"""``sam2assist evaluate``: the report it writes, what it refuses, and going on after Ctrl-C."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from command_line import GRID, balls, run, sentence_of
from ct_files import write_image
from evaluation_data import ball_labels, write_data
from PIL import Image

pytest.importorskip("monai", reason="measuring needs MONAI")

from SAM2AssistLib.evaluation import running
from SAM2AssistLib.prompting.self_prompt import embedded_adapter


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def measured(capfd, data, out, protocol, *more):
    outcome = run(capfd, "evaluate", "--data", data, "--out", out, "--protocol", protocol, "--device", "cpu", *more)
    assert outcome.code == 0, outcome
    return outcome


def refused(capfd, data, out, protocol, *more) -> str:
    return sentence_of(run(capfd, "evaluate", "--data", data, "--out", out, "--protocol", protocol, *more))


@pytest.mark.usefixtures("engine")
def test_cvpr25_gives_six_scores_for_each_structure_and_a_report_with_pictures(capfd, data, out):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    outcome = measured(capfd, data, out, "cvpr25", "--least-voxels", "1", "--json")
    content = json.loads(outcome.out)
    (found,) = content["methods"].values()
    assert found["trials"] == 4
    assert len(found["dsc"]) == 6
    assert found["challenge"]["dsc_auc"] <= 4.0
    held = json.loads((out / "results.json").read_text())
    assert {(t["case"], t["structure"]) for t in held["trials"]} == {
        (case, ball) for case in ("one", "two") for ball in ("ball", "little ball")
    }
    with (out / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * 6
    report = (out / "report.md").read_text()
    assert "little ball" in report
    for picture in ("curves.png", "structures.png", "outlines.png"):
        assert f"({picture})" in report
        with Image.open(out / picture) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 200


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("protocol", ["cvpr25", "flare22"])
def test_an_image_that_is_hardly_in_hounsfield_units_is_told_once(capfd, data, out, protocol):
    write_image(data / "images" / "two.nii.gz", balls() + 3000, GRID)
    (data / "labels.json").write_text(json.dumps({"liver": 2, "spleen": 5}))
    outcome = measured(capfd, data, out, protocol, "--least-voxels", "1", "--json")
    told = [line for line in outcome.err.splitlines() if "Hounsfield" in line]
    assert len(told) == 1
    assert told[0].startswith("Note: two: two.nii.gz does not look like CT")
    assert told[0].removeprefix("Note: ") in json.loads(outcome.out)["warnings"]


@pytest.mark.usefixtures("engine")
def test_clicks_tells_how_many_are_needed_and_human_how_much_users_differ(capfd, data, out):
    only = ("--case", "one", "--structure", "ball", "--json")
    clicks = json.loads(measured(capfd, data, out / "c", "clicks", "--clicks", "1", *only).out)
    assert set(clicks["methods"]["SAM2Assist"]["clicks_needed"]) == {"0.85", "0.90"}
    human = json.loads(measured(capfd, data, out / "h", "human", "--seeds", "1", *only).out)
    assert human["methods"]["SAM2Assist"]["human"]["users"] == 8
    assert "worst user" in (out / "h" / "report.md").read_text()


@pytest.mark.usefixtures("engine")
def test_peers_get_the_same_prompts_and_stand_in_the_same_report(capfd, data, out):
    more = ("--case", "one", "--structure", "ball", "--clicks", "2", "--peers", "walker")
    measured(capfd, data, out / "same", "cvpr25", *more)
    ours, walker = json.loads((out / "same" / "results.json").read_text())["trials"]
    assert (ours["method"], walker["method"]) == ("SAM2Assist", "Random walker")
    assert walker["clicks"] == ours["clicks"]
    assert walker["first_box"] == ours["first_box"]
    measured(capfd, data, out / "own", "cvpr25", *more, "--peer-clicks", "own")
    ours, walker = json.loads((out / "own" / "results.json").read_text())["trials"]
    assert walker["clicks"] != ours["clicks"]


def test_results_of_another_program_are_scored_without_a_model(capfd, data, out, tmp_path, monkeypatch):
    from SAM2AssistLib.engine import loading

    monkeypatch.setattr(loading, "load_engine", None)
    results = tmp_path / "results"
    results.mkdir()
    labels = ball_labels()
    labels[labels == 5] = 0
    for case in ("one", "two"):
        write_image(results / f"{case}.nii.gz", labels, GRID)
    (results / "labels.json").write_text(json.dumps({"ball": 2}))
    content = json.loads(measured(capfd, data, out, "auto", "--predictions", results, "--json").out)
    organs = content["summary"]["organs"]
    assert organs["ball"]["dsc"] == 1.0
    assert organs["little ball"]["missed"] == 2
    assert "Dice" in (out / "report.md").read_text()


@pytest.mark.usefixtures("engine")
def test_a_published_protocol_without_an_adapter_says_that_it_was_told_where_the_organs_are(capfd, data, out):
    (data / "labels.json").write_text(json.dumps({"liver": 2, "spleen": 5}))
    measured(capfd, data, out, "synapse8")
    report = (out / "report.md").read_text()
    assert "told where the organs are" in report
    assert "published HD95 (voxels)" in report
    assert json.loads((out / "results.json").read_text())["summary"]["organs"]["pancreas"]["published_dsc"] == 0.0


@pytest.mark.usefixtures("engine")
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(capfd, data, out, monkeypatch):
    done = []
    one_trial = running.run_trial

    def then_ctrl_c(opened, method, task, *rest):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(task.structure)
        return one_trial(opened, method, task, *rest)

    monkeypatch.setattr(running, "run_trial", then_ctrl_c)
    given = ("evaluate", "--data", data, "--out", out, "--protocol", "cvpr25", "--device", "cpu")
    given = (*given, "--clicks", "1", "--least-voxels", "1")
    outcome = run(capfd, *given)
    assert outcome.code == 130
    assert "the same command goes on from there" in outcome.err
    assert "Not complete" in (out / "report.md").read_text()
    monkeypatch.setattr(running, "run_trial", lambda *a: done.append(a[2].structure) or one_trial(*a))
    assert run(capfd, *given).code == 0
    assert done == ["ball", "little ball", "ball", "little ball"]
    assert "Not complete" not in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--case", "three"), "no case 'three' with a reference"),
        (("--structure", "ghost"), "No case has a structure 'ghost'; there are ball, little ball"),
        (("--part", "test"), "splits.json"),
        (("--peers", "unet"), "no peer 'unet'"),
        (("--peer-clicks", "all"), "choose --peer-clicks same or own"),
        (("--model", "maxi"), "maxi"),
        (("--adapter", "nowhere"), "nowhere"),
        (("--predictions", "."), "leave --predictions out of cvpr25"),
        (("--clicks", "-1"), "--clicks"),
        (("--least-voxels", "100000"), "lower --least-voxels"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_what_cannot_be_measured_is_refused_in_one_sentence(capfd, data, out, more, words):
    assert words in refused(capfd, data, out, "cvpr25", *more)


@pytest.mark.usefixtures("engine")
def test_data_that_do_not_fit_are_refused_by_name(capfd, data, out, tmp_path):
    assert "no protocol 'cvpr26'" in refused(capfd, data, out, "cvpr26")
    assert "no data folder" in refused(capfd, tmp_path / "nowhere", out, "cvpr25")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capfd, tmp_path / "empty", out, "cvpr25")
    write_image(data / "labels" / "two.nii.gz", ball_labels()[:5], GRID)
    assert "two.nii.gz" in refused(capfd, data, out, "cvpr25", "--case", "two")
    (data / "splits.json").write_text(json.dumps({"train": ["one"], "odd": ["ghost"]}))
    assert "has no part 'test' with a list of cases; it has train, odd" in refused(
        capfd, data, out, "cvpr25", "--part", "test"
    )
    assert "names no case with a reference" in refused(capfd, data, out, "cvpr25", "--part", "odd")


@pytest.mark.usefixtures("engine")
def test_a_folder_with_another_measurement_and_a_place_that_is_a_file_are_refused(capfd, data, out):
    measured(capfd, data, out, "cvpr25", "--clicks", "0", "--case", "one")
    before = (out / "results.json").read_bytes()
    assert "holds results for clicks 0, not 1" in refused(capfd, data, out, "cvpr25", "--clicks", "1", "--case", "one")
    assert (out / "results.json").read_bytes() == before
    (out.parent / "file").write_text("a file")
    assert "cannot be made" in refused(capfd, data, out.parent / "file", "cvpr25")


def test_peers_and_supports_that_make_no_sense_are_refused(capfd, data, out, engine):
    assert "leave --peers out" in refused(capfd, data, out, "synapse8", "--peers", "walker")
    only = ("--case", "one", "--supports", "2")
    assert "1 cases to support one and 2 are wanted" in refused(capfd, data, out, "support", *only)


@pytest.mark.parametrize(
    ("protocol", "more", "words"),
    [
        ("auto", ("--clicks", "3"), "leave --clicks out"),
        ("auto", ("--seeds", "3"), "leave --seeds out"),
        ("clicks", ("--seeds", "3"), "leave --seeds out"),
        ("auto", ("--supports", "2"), "leave --supports and --support-part out"),
        ("cvpr25", ("--support-part", "train"), "leave --supports and --support-part out"),
        ("auto", ("--predictions", ".", "--adapter", "ADAPTER"), "leave --adapter out"),
        ("support", ("--predictions", "."), "choose the protocol auto"),
    ],
)
def test_what_a_protocol_would_leave_out_of_account_is_refused(capfd, data, out, engine, protocol, more, words):
    embedded = str(embedded_adapter("mini"))
    given = [embedded if word == "ADAPTER" else word for word in more]
    assert words in refused(capfd, data, out, protocol, *given)
    assert not out.exists()


def test_a_protocol_whose_organs_nobody_asks_for_or_names_is_refused(capfd, data, out):
    without = ("--predictions", data / "labels")
    sentence = refused(capfd, data, out, "synapse8", "--structure", "ball", *without)
    assert "synapse8 scores none of the structures asked for (ball); choose from spleen, kidney_right" in sentence
    sentence = refused(capfd, data, out, "flare22", *without)
    assert "data name no organ that flare22 scores (liver, kidney_right" in sentence
    assert "check the names in labels.json" in sentence
    assert not out.exists()


def test_organs_of_a_protocol_that_the_data_do_not_name_are_told(capfd, data, out):
    (data / "labels.json").write_text(json.dumps({"liver": 2, "spleen": 5}))
    outcome = measured(capfd, data, out, "synapse8", "--predictions", data / "labels", "--json")
    absent = ["kidney_right", "kidney_left", "gallbladder", "stomach", "aorta", "pancreas"]
    assert json.loads(outcome.out)["not_named"] == absent
    told = f"The data do not name {', '.join(absent[:-1])} and {absent[-1]}"
    assert told in (out / "report.md").read_text()
    assert told in outcome.err.replace("\n", " ")
    outcome = measured(capfd, data, out / "named", "synapse8", "--structure", "liver", "--predictions", data / "labels")
    assert "do not name" not in outcome.err + (out / "named" / "report.md").read_text()


def test_a_missing_result_and_a_missing_folder_of_results_are_refused_by_name(capfd, data, out, tmp_path):
    assert "no folder of results" in refused(capfd, data, out, "auto", "--predictions", tmp_path / "nowhere")
    (tmp_path / "results").mkdir()
    assert "no result for the case one" in refused(capfd, data, out, "auto", "--predictions", tmp_path / "results")


@pytest.mark.usefixtures("engine")
def test_support_draws_its_cases_with_several_seeds_and_gives_the_spread(capfd, data, out):
    content = json.loads(measured(capfd, data, out, "support", "--case", "one", "--seeds", "2", "--json").out)
    assert content["summary"]["draws"] == 2
    assert set(content["summary"]["organs"]) == {"ball", "little ball"}
    assert "dsc_sd" in content["summary"]["mean"]
    assert "over 2 draws" in (out / "report.md").read_text()
    assert "1 support case in each draw" in (out / "report.md").read_text()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("protocol", ["cvpr25", "synapse8"])
def test_a_case_that_the_model_was_trained_on_is_told_before_and_in_the_report(capfd, tmp_path, out, protocol):
    data = write_data(tmp_path / "data", ("sts_001",))
    (data / "labels.json").write_text(json.dumps({"liver": 2, "spleen": 5}))
    outcome = measured(capfd, data, out, protocol, "--structure", "liver", "--json")
    (warning, *_) = json.loads(outcome.out)["warnings"]
    assert warning.startswith("This case is named among the training cases of what segments (sts_001)")
    assert f"Note: {warning}" in outcome.err
    assert warning in (out / "report.md").read_text()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("protocol", "wrong", "right"),
    [
        ("cvpr25", ("--least-voxels", "100000"), ("--least-voxels", "1")),
        ("support", ("--seeds", "1", "--supports", "9"), ("--seeds", "1")),
    ],
)
def test_after_a_run_that_measured_nothing_the_same_folder_takes_what_was_corrected(
    capfd, data, out, protocol, wrong, right
):
    refused(capfd, data, out, protocol, "--case", "one", *wrong)
    measured(capfd, data, out, protocol, "--case", "one", *right)
    assert json.loads((out / "results.json").read_text())
