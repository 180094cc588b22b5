"""``sam2assist demo``: the whole path on a phantom or on a file, and advice that works when it is pasted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from command_line import SCRIPT, box_prompts, quiet_environment, run, run_script, sentence_of, write_ct, write_prompts

from SAM2AssistLib import CTVolume
from SAM2AssistLib.cli import demo
from SAM2AssistLib.cli.console import own_command
from SAM2AssistLib.engine import loading
from SAM2AssistLib.io import preview
from SAM2AssistLib.io.segmentation import read_segmentation
from SAM2AssistLib.prompts import PointPrompt, SegmentPrompts, read_prompt_file
from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.volume import WINDOW_PRESETS, Window

RESULTS = ["ct.nrrd", "preview.png", "prompts.json", "segmentation.seg.nrrd"]
ORGANS = ["liver", "kidney_right", "aorta"]


@pytest.fixture
def a_small_demo(monkeypatch: pytest.MonkeyPatch, quick_engine: Any) -> Any:
    """The phantom of the demo, but small, and an engine that is quick."""
    monkeypatch.setattr(demo, "DEMO_SEED", 7)
    monkeypatch.setattr(demo, "DEMO_SHAPE_KJI", (8, 64, 64))
    monkeypatch.setattr(demo, "DEMO_SPACING_IJK", (5.0, 5.0, 12.0))
    monkeypatch.setattr(demo, "DEMO_ORGANS", (*ORGANS, "wings"))
    engine = quick_engine()
    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: engine)
    # The embedded adapter is for the embedded weights, which a quick engine does not have.
    monkeypatch.setattr(demo, "_knows_organs", lambda model: False)
    # Drawing takes longer than all the rest; the tests of the script below have the picture drawn.
    monkeypatch.setattr(
        preview, "write_preview", lambda path, *_, window: path.write_text(f"{window.level:g}/{window.width:g}")
    )
    return make_phantom(7, (8, 64, 64), (5.0, 5.0, 12.0))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_demo_leaves_a_ct_a_segmentation_prompts_and_a_picture(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    out = tmp_path / "new" / "out"
    outcome = run(capfd, "demo", "--out", out, "--corrections", "2")
    assert outcome.code == 0, outcome
    assert names_in(out) == RESULTS
    volume = CTVolume.read(out / "ct.nrrd")
    np.testing.assert_array_equal(volume.array, a_small_demo.volume.array)
    np.testing.assert_allclose(volume.ijk_to_lps, a_small_demo.volume.ijk_to_lps)
    masks, ijk_to_lps = read_segmentation(out / "segmentation.seg.nrrd")
    assert [named.name for named in masks] == ORGANS
    assert all(named.mask.shape == (8, 64, 64) for named in masks)
    np.testing.assert_allclose(ijk_to_lps, volume.ijk_to_lps)
    requests = read_prompt_file(out / "prompts.json", volume)
    assert [request.name for request in requests] == ORGANS
    assert [len(request.boxes) for request in requests] == [1, 1, 1]


def test_the_table_shows_the_dice_of_each_organ_after_the_box_and_after_each_click(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    text = run(capfd, "demo", "--out", tmp_path, "--corrections", "2").out
    assert all(heading in text for heading in ("one box", "first", "1 click", "2 clicks", "mean"))
    assert all(organ in text for organ in ORGANS)
    assert f"In 3D Slicer: Add Data, {tmp_path / 'ct.nrrd'} and {tmp_path / 'segmentation.seg.nrrd'}; then Show" in text


def test_json_has_the_dice_of_every_step_and_is_alone_on_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    outcome = run(capfd, "demo", "--out", tmp_path, "--corrections", "1", "--json")
    report = json.loads(outcome.out)
    assert [sorted(step) for step in report["dice"]] == [sorted(ORGANS)] * 2
    assert all(0 <= value <= 1 for step in report["dice"] for value in step.values())
    assert [row["name"] for row in report["segments"]] == ORGANS
    assert sorted(Path(path).name for path in report["files"].values()) == RESULTS
    assert all(Path(path).is_file() for path in report["files"].values())
    assert report["axis"] == "k"
    window = Window(**report["window"])
    assert window == WINDOW_PRESETS["abdomen"]
    assert (tmp_path / "preview.png").read_text() == "40/400"


def test_without_corrections_only_the_box_is_scored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    report = json.loads(run(capfd, "demo", "--out", tmp_path, "--corrections", "0", "--json").out)
    assert len(report["dice"]) == 1


def test_auto_segment_comes_first_and_what_it_does_not_know_gets_a_box(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DEMO_ORGANS", ("liver", "kidney_right", "pancreas"))
    monkeypatch.setattr(demo, "DEMO_SHAPE_KJI", (16, 96, 96))
    monkeypatch.setattr(demo, "DEMO_SPACING_IJK", (3.7, 3.7, 15.0))
    monkeypatch.setattr(preview, "write_preview", lambda path, *_, window: path.write_text("drawn"))
    report = json.loads(run(capfd, "demo", "--out", tmp_path, "--corrections", "1", "--json").out)
    known = report["auto_segmented"]
    assert {"liver", "kidney_right"} <= set(known)
    names = [row["name"] for row in report["segments"]]
    assert sorted(names[: len(known)]) == known
    assert names[len(known) :] == ["pancreas"]
    assert report["dice"][0]["liver"] > 0.7
    assert len(report["dice"]) == 2
    own = json.loads(run(capfd, "demo", "--out", tmp_path / "again", "--ct", tmp_path / "ct.nrrd", "--json").out)
    assert {"liver", "kidney_right"} <= set(own["auto_segmented"])
    assert own["dice"] == []
    boxes = read_prompt_file(tmp_path / "again" / "prompts.json", CTVolume.read(tmp_path / "ct.nrrd"))
    assert [request.name for request in boxes] == [row["name"] for row in own["segments"]]


@pytest.fixture
def an_own_ct(tmp_path: Path, a_small_demo: Any) -> Path:
    return write_ct(tmp_path / "own ct.nii.gz")


def test_a_ct_of_ones_own_is_segmented_from_ones_own_prompts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], an_own_ct: Path
) -> None:
    prompts = write_prompts(tmp_path / "mine.json", box_prompts())
    outcome = run(capfd, "demo", "--out", tmp_path / "out", "--ct", an_own_ct, "--prompts", prompts, "--json")
    report = json.loads(outcome.out)
    assert report["dice"] == []
    assert [row["name"] for row in report["segments"]] == ["ball"]
    assert names_in(tmp_path / "out") == RESULTS
    copy, own = CTVolume.read(tmp_path / "out" / "ct.nrrd"), CTVolume.read(an_own_ct)
    np.testing.assert_array_equal(copy.array, own.array)
    assert read_prompt_file(tmp_path / "out" / "prompts.json", copy) == read_prompt_file(prompts, own)


def test_a_ct_of_ones_own_without_prompts_gets_proposed_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], an_own_ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    click = SegmentPrompts("region 1", (PointPrompt((30.0, 24.0, 4.0)),), ())
    monkeypatch.setattr("SAM2AssistLib.prompting.proposals.propose_prompts", lambda volume: (click,))
    outcome = run(capfd, "demo", "--out", tmp_path / "out", "--ct", an_own_ct)
    assert outcome.code == 0, outcome
    assert "region 1" in outcome.out
    assert "Dice" not in outcome.out
    assert "Note: The regions are numbered, not named" in outcome.err
    assert read_prompt_file(tmp_path / "out" / "prompts.json", CTVolume.read(an_own_ct)) == (click,)


def test_the_phantom_written_to_a_file_is_a_ct_for_which_prompts_are_proposed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    assert run(capfd, "demo", "--out", tmp_path / "one", "--corrections", "0").code == 0
    outcome = run(capfd, "demo", "--out", tmp_path / "two", "--ct", tmp_path / "one" / "ct.nrrd", "--json")
    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    assert "region 1" in [row["name"] for row in report["segments"]]
    assert demo.NOT_NAMED in report["warnings"]


def test_a_ct_that_lies_where_its_copy_would_go_stays_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    own, prompts = write_ct(tmp_path / "ct.nrrd"), write_prompts(tmp_path / "mine.json", box_prompts())
    before = own.read_bytes()
    assert run(capfd, "demo", "--out", tmp_path, "--ct", own, "--prompts", prompts).code == 0
    assert own.read_bytes() == before


def test_prompts_of_ones_own_that_lie_where_their_copy_would_go_stay_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], an_own_ct: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.json", box_prompts())
    before = prompts.read_bytes()
    assert run(capfd, "demo", "--out", tmp_path, "--ct", an_own_ct, "--prompts", prompts).code == 0
    assert prompts.read_bytes() == before


@pytest.mark.parametrize("name", ["ct.nrrd", "prompts.json", "segmentation.seg.nrrd", "preview.png"])
def test_a_file_that_is_not_from_a_demo_is_not_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], an_own_ct: Path, name: str
) -> None:
    somebodys = tmp_path / name
    somebodys.write_text("work of hours")
    prompts = write_prompts(tmp_path / "mine.json", box_prompts())
    sentence = sentence_of(run(capfd, "demo", "--out", tmp_path, "--ct", an_own_ct, "--prompts", prompts))
    assert name in sentence
    assert "another folder" in sentence
    assert somebodys.read_text() == "work of hours"


def test_the_results_of_an_earlier_demo_are_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], an_own_ct: Path
) -> None:
    prompts = write_prompts(tmp_path / "mine.json", box_prompts())
    for _ in range(2):
        assert run(capfd, "demo", "--out", tmp_path / "out", "--ct", an_own_ct, "--prompts", prompts).code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompts", "{place}/mine.json"], "--ct IMAGE"),
        (["--prompts", "{place}/absent.json"], "no prompt file"),
        (["--ct", "{place}/absent.nii.gz"], "no file or folder"),
        (["--ct", "{place}/absent.nii.gz", "--corrections", "3"], "leave --corrections out"),
        (["--ct", "{place}/mine.json"], "mine.json"),
        (["--out", "{place}/mine.json"], "cannot be made"),
        (["--model", "maxi"], "maxi"),
    ],
    ids=[
        "prompts without CT",
        "missing prompts",
        "missing CT",
        "clicks without truth",
        "no CT",
        "file as folder",
        "unknown model",
    ],
)
def test_what_the_demo_cannot_use_is_refused_in_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    write_prompts(tmp_path / "mine.json", box_prompts())
    given = ["--out", "{place}/out", *arguments]
    assert expected in sentence_of(run(capfd, "demo", *(text.format(place=tmp_path) for text in given)))


def advice(text: str) -> list[str]:
    """Give the command lines that a text advises to type."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ") and " segment " in line]


def test_the_advice_of_the_installed_script_works_when_it_is_pasted_even_if_the_script_is_not_on_the_path(
    tmp_path: Path,
) -> None:
    write_ct(tmp_path / "my ct.nii.gz")
    write_prompts(tmp_path / "mine.json", box_prompts())
    shell = {**quiet_environment(), "PATH": os.pathsep.join(["/usr/bin", "/bin"])}
    program = shlex.quote(str(SCRIPT))
    line = f"{program} demo --ct 'my ct.nii.gz' --prompts mine.json --out 'my results' --device cpu"
    first = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=shell, capture_output=True, text=True, check=True)
    (pasted,) = advice(first.stdout)
    assert pasted.startswith(f"{program} segment ")
    subprocess.run(["sh", "-c", pasted], cwd=tmp_path, env=shell, capture_output=True, check=True)
    assert names_in(tmp_path / "my results") == sorted([*RESULTS, "result.png", "result.seg.nrrd"])
    for picture in ("preview.png", "result.png"):
        assert sitk.ReadImage(str(tmp_path / "my results" / picture)).GetSize()[0] > 1000
    made = [read_segmentation(tmp_path / "my results" / f"{name}.seg.nrrd")[0] for name in ("segmentation", "result")]
    np.testing.assert_array_equal(made[0][0].mask, made[1][0].mask)


def test_the_advice_names_the_program_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert own_command() == "sam2assist"
    monkeypatch.setenv("PATH", "/nowhere")
    assert own_command() == shlex.quote(str(SCRIPT))
    monkeypatch.setattr(sys, "argv", ["/some where/SAM2AssistLib/__main__.py"])
    assert own_command() == f"{shlex.quote(sys.executable)} -m SAM2AssistLib"


def test_the_advice_after_the_phantom_works_when_it_is_pasted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], a_small_demo: Any
) -> None:
    outcome = run(capfd, "demo", "--out", tmp_path, "--corrections", "0")
    (pasted,) = advice(outcome.out)
    assert run(capfd, *shlex.split(pasted)[1:]).code == 0
    boxes_only, again = (read_segmentation(tmp_path / f"{n}.seg.nrrd")[0] for n in ("segmentation", "result"))
    assert [named.name for named in again] == ORGANS
    for first, second in zip(boxes_only, again, strict=True):
        np.testing.assert_array_equal(first.mask, second.mask)


def test_the_phantom_of_the_demo_has_organs_to_show_and_was_never_trained_on() -> None:
    assert demo.DEMO_SEED < 10**11
    phantom = make_phantom(demo.DEMO_SEED, demo.DEMO_SHAPE_KJI, demo.DEMO_SPACING_IJK)
    assert len(set(demo.DEMO_ORGANS) & set(phantom.names)) >= 5


def test_help_shows_the_options_of_the_contract() -> None:
    text = run_script("demo", "--help").out
    assert all(option in text for option in ("--out", "--ct", "--prompts", "--json"))
