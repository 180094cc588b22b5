"""``sam2assist segment``: what it writes is what the library gives for the same prompts."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from command_line import (
    GRID,
    SCRIPT,
    Outcome,
    balls,
    box_prompts,
    quiet_environment,
    run,
    run_script,
    two_segments,
    write_ct,
    write_prompts,
)
from ct_files import write_dicom_series, write_image

from SAM2AssistLib import CTVolume, __version__
from SAM2AssistLib.io import preview
from SAM2AssistLib.io.segmentation import read_segmentation
from SAM2AssistLib.prompts import read_prompt_file
from SAM2AssistLib.volume import WINDOW_PRESETS, Window

Masks = dict[str, np.ndarray]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a CT of two balls and prompts for one of them."""
    write_ct(tmp_path / "ct.nii.gz")
    write_prompts(tmp_path / "prompts.json", box_prompts())
    return tmp_path


def segment(capfd: pytest.CaptureFixture[str], place: Path, *more: object, out: str = "result.seg.nrrd") -> Outcome:
    outcome = run(capfd, "segment", place / "ct.nii.gz", "--prompts", place / "prompts.json", "-o", place / out, *more)
    assert outcome.code == 0, outcome
    return outcome


def written(path: Path) -> Masks:
    masks, _ = read_segmentation(path)
    return {named.name: named.mask for named in masks}


def of_library(engine: Any, place: Path, image: str = "ct.nii.gz", **settings: Any) -> Masks:
    """Give the masks that a script gets from the library for the same image and prompts."""
    volume = CTVolume.read(place / image)
    with engine.open(volume, **settings) as session:
        handles = [session.add_prompts(request) for request in read_prompt_file(place / "prompts.json", volume)]
        for _ in session.propagate():
            pass
        return {handle.name: session.mask(handle) for handle in handles}


def assert_same(found: Masks, expected: Masks) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert mask.any()
        np.testing.assert_array_equal(found[name], mask)


@pytest.mark.parametrize("out", ["result.seg.nrrd", "result.nii.gz", "result.nrrd", "result.mha"])
def test_each_format_holds_the_masks_of_the_library_on_the_grid_of_the_image(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any, out: str
) -> None:
    segment(capfd, place, out=out)
    assert_same(written(place / out), of_library(engine, place))
    _, ijk_to_lps = read_segmentation(place / out)
    np.testing.assert_allclose(ijk_to_lps, GRID, atol=1e-4)


def test_the_embedded_model_gives_on_the_command_line_what_it_gives_in_the_library(
    place: Path, capfd: pytest.CaptureFixture[str], an_engine: Any
) -> None:
    segment(capfd, place, "--device", "cpu")
    expected = of_library(an_engine, place)
    found = written(place / "result.seg.nrrd")
    np.testing.assert_array_equal(found["ball"], expected["ball"])


def test_two_segments_with_a_box_and_with_points_are_kept_apart_by_name(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    write_prompts(place / "prompts.json", two_segments())
    segment(capfd, place)
    expected = of_library(engine, place)
    assert list(expected) == ["ball", "little ball"]
    assert_same(written(place / "result.seg.nrrd"), expected)


def test_a_dicom_folder_gives_the_same_masks_as_a_file_with_the_same_voxels(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    write_dicom_series(place / "scans", balls(), GRID)
    given = ("--prompts", place / "prompts.json", "-o", place / "result.seg.nrrd")
    assert run(capfd, "segment", place / "scans", *given).code == 0
    assert_same(written(place / "result.seg.nrrd"), of_library(engine, place))


def test_masks_travel_along_the_axis_that_is_asked_for(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    content = box_prompts()
    content["segments"][0] = {"name": "ball", "points": [{"position": [30, 24, 4]}]}
    write_prompts(place / "prompts.json", content)
    segment(capfd, place, "--axis", "j")
    assert_same(written(place / "result.seg.nrrd"), of_library(engine, place, axis=1))


@pytest.mark.parametrize(
    ("text", "window"),
    [("lung", WINDOW_PRESETS["lung"]), ("Mediastinum", WINDOW_PRESETS["mediastinum"]), ("-20/350.5", None)],
)
def test_a_window_is_a_preset_or_level_and_width(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any, text: str, window: Window | None
) -> None:
    segment(capfd, place, "--window", text)
    assert_same(written(place / "result.seg.nrrd"), of_library(engine, place, window=window or Window(-20, 350.5)))


def test_the_preview_is_a_picture_beside_the_result(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    segment(capfd, place, "--preview", place / "result.png")
    assert sitk.ReadImage(str(place / "result.png")).GetSize()[0] > 1000


@pytest.mark.parametrize("given", [("--window", "lung"), ("--window", "-20/350.5"), ()], ids=str)
def test_the_preview_has_the_window_that_the_model_sees_and_json_tells_it_with_the_axis(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    write_image(place / "ct.nii.gz", balls() + 2000, GRID)  # not in HU, so that the window is chosen by the values
    windows: list[Window] = []
    monkeypatch.setattr(preview, "write_preview", lambda *_, window: windows.append(window))
    outcome = segment(capfd, place, "--preview", place / "result.png", "--axis", "K", *given, "--json")
    report = json.loads(outcome.out)
    (window,) = windows
    with engine.open(CTVolume.read(place / "ct.nii.gz")) as session:
        chosen = {"lung": WINDOW_PRESETS["lung"], "-20/350.5": Window(-20, 350.5)}
        assert window == (chosen[given[1]] if given else session.window)
    assert report["window"] == {"level": window.level, "width": window.width}
    assert report["axis"] == "k"


def test_json_is_one_object_on_stdout_and_describes_the_result(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    outcome = segment(capfd, place, "--json")
    report = json.loads(outcome.out)
    mask = written(place / "result.seg.nrrd")["ball"]
    assert report["output"] == str(place / "result.seg.nrrd")
    assert report["preview"] is None
    assert (report["model"], report["device"]) == ("mini", "cpu")
    assert report["warnings"] == []
    assert (report["axis"], report["window"]) == ("k", {"level": 40, "width": 400})
    (row,) = report["segments"]
    assert (row["name"], row["axis"], row["voxels"], row["slices"]) == ("ball", "k", int(mask.sum()), 8)
    assert row["volume_ml"] == pytest.approx(mask.sum() * 1.5 * 1.5 * 4.0 / 1000, abs=0.01)
    assert 0 <= row["confidence"] <= 1
    assert {"read", "load", "prompts", "propagate", "write"} == set(report["seconds"])


def test_without_json_the_result_is_told_on_stdout_and_progress_on_stderr(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    outcome = segment(capfd, place)
    assert "ball" in outcome.out
    assert "result.seg.nrrd written" in outcome.out
    advice = f"In 3D Slicer: Add Data, {place / 'ct.nii.gz'} and {place / 'result.seg.nrrd'}; then Show 3D"
    assert advice in outcome.out
    assert re.fullmatch(r"Propagating: \d of 7 slice masks at most\n", outcome.err)


def test_a_name_that_looks_like_markup_is_shown_as_it_is(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    write_prompts(place / "prompts.json", box_prompts(name="[/b] :smile: 肝"))
    assert "[/b] :smile: 肝" in segment(capfd, place).out
    assert json.loads(segment(capfd, place, "--json").out)["segments"][0]["name"] == "[/b] :smile: 肝"


def test_voxels_that_a_label_map_cannot_hold_twice_are_told_of(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    content = box_prompts()
    content["segments"].append({**content["segments"][0], "name": "again"})
    write_prompts(place / "prompts.json", content)
    outcome = segment(capfd, place, "--json", out="result.nii.gz")
    assert "Note: result.nii.gz has one label per voxel" in outcome.err
    lost, shared = json.loads(outcome.out)["warnings"]
    assert lost.startswith("result.nii.gz has one label per voxel")
    assert "ml belong to both 'ball' and 'again'" in shared


def test_a_segment_that_came_out_empty_is_told_of(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SAM2AssistLib.engine.session.Session.mask", lambda *_: np.zeros((8, 64, 64), bool))
    outcome = segment(capfd, place, "--json")
    assert "Note: 'ball' is empty" in outcome.err
    assert json.loads(outcome.out)["warnings"] == ["'ball' is empty; check where its prompts are."]
    assert not written(place / "result.seg.nrrd")["ball"].any()


def test_what_is_unusual_in_an_image_is_told_of_and_it_is_segmented(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    image = sitk.GetImageFromArray(balls() + 2000)
    sitk.WriteImage(image, str(place / "ct.nii.gz"))
    outcome = segment(capfd, place, "--json")
    assert "Note: ct.nii.gz does not look like CT" in outcome.err
    assert "does not look like CT" in json.loads(outcome.out)["warnings"][0]


def test_an_old_result_is_replaced_and_nothing_else_is_left(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any
) -> None:
    (place / "result.seg.nrrd").write_bytes(b"the result of yesterday")
    segment(capfd, place)
    assert sorted(path.name for path in place.iterdir()) == ["ct.nii.gz", "prompts.json", "result.seg.nrrd"]
    assert written(place / "result.seg.nrrd")["ball"].any()


# --------------------------------------------------------------------------------------------- the installed script


def test_the_installed_script_segments_and_keeps_stdout_for_json_and_control_characters_away(place: Path) -> None:
    outcome = run_script("segment", "ct.nii.gz", "--prompts", "prompts.json", "-o", "a.nrrd", "--json", cwd=place)
    assert outcome.code == 0, outcome
    assert json.loads(outcome.out)["segments"][0]["name"] == "ball"
    assert outcome.err.replace("\n", "").isprintable()
    assert set(written(place / "a.nrrd")) == {"ball"}


def test_a_console_without_the_letters_of_a_name_is_no_reason_to_fail(
    place: Path, capfd: pytest.CaptureFixture[str], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"frame": "IJK", "segments": [{"name": "肝臓", "points": [{"position": [32, 32, 4]}]}]}
    prompts = write_prompts(place / "liver.json", request)
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    outcome = run(capfd, "segment", place / "ct.nii.gz", "--prompts", prompts, "-o", place / "liver.seg.nrrd")
    assert outcome.code == 0, outcome
    console.flush()
    assert rb"\u809d\u81d3" in console.buffer.getvalue()


def test_on_a_terminal_the_bar_goes_to_stderr_and_json_stays_alone_on_stdout(place: Path) -> None:
    ours, theirs = pytest.importorskip("pty").openpty()
    given = ("segment", "ct.nii.gz", "--prompts", "prompts.json", "-o", "a.nrrd", "--json", "--device", "cpu")
    terminal = {**quiet_environment(), "TERM": "xterm-256color"}
    with subprocess.Popen([SCRIPT, *given], cwd=place, stdout=subprocess.PIPE, stderr=theirs, env=terminal) as process:
        os.close(theirs)
        seen = read_all(ours)
        assert process.stdout is not None
        json.loads(process.stdout.read())
    assert process.returncode == 0, seen
    assert "Loading mini" in seen
    assert "slice masks" in seen
    assert seen.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in seen[-40:]  # the bar is gone, the cursor is back


def read_all(terminal: int) -> str:
    """Read what is written to a terminal until the other side is closed, which Linux tells with an error."""
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            piece = b""
        if not piece:
            break
        pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


@pytest.mark.parametrize("given", [["--version"], ["segment", "--help"]], ids=str)
def test_the_module_is_the_same_program_as_the_script(given: list[str]) -> None:
    by_name = run_script(*given)
    assert by_name.code == 0
    assert by_name.err == ""
    assert by_name == run_script(*given, program=(sys.executable, "-m", "SAM2AssistLib"))


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "--version").out.strip() == __version__


def test_the_help_names_every_command_and_option_of_the_contract(capfd: pytest.CaptureFixture[str]) -> None:
    assert all(command in run(capfd, "--help").out for command in ("segment", "demo", "models"))
    text = run(capfd, "segment", "--help").out
    for option in ("--output", "--prompts", "--model", "--adapter", "--device", "--json", "--keep-partial", "--axis"):
        assert option in text


def test_without_arguments_the_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run(capfd)
    assert "segment" in outcome.out + outcome.err
    assert "Traceback" not in outcome.err


def test_help_needs_no_torch(place: Path) -> None:
    code = "import sys; from SAM2AssistLib.cli import app; print('torch' in sys.modules, 'sam2' in sys.modules)"
    assert run_script("-c", code, program=(sys.executable,)).out == "False False\n"
