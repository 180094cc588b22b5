"""Whatever is wrong with the input: one sentence on stderr, exit code 2, and every file as it was."""

from __future__ import annotations

import gzip
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from command_line import GRID, balls, box_prompts, run, run_script, sentence_of, write_ct, write_prompts
from ct_files import PATIENT_ID, PATIENT_NAME, write_dicom_series, write_image

from SAM2AssistLib.engine import loading, store

Files = dict[Path, bytes]
SERIES = ("1.2.3.1", "1.2.3.2")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a CT, prompts for it, and results of yesterday."""
    write_ct(tmp_path / "ct.nii.gz")
    write_prompts(tmp_path / "prompts.json", box_prompts())
    (tmp_path / "result.seg.nrrd").write_bytes(b"the result of yesterday")
    (tmp_path / "result.png").write_bytes(b"its picture")
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a model is loaded before the input is known to be good."""

    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded for nothing")

    monkeypatch.setattr(loading, "load_engine", loaded)


def arguments(place: Path, image: str = "ct.nii.gz", prompts: str = "prompts.json") -> list[object]:
    return ["segment", place / image, "--prompts", place / prompts, "-o", place / "result.seg.nrrd", "--device", "cpu"]


def contents(place: Path) -> Files:
    return {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def refused(capfd: pytest.CaptureFixture[str], place: Path, *given: object) -> str:
    """Give the sentence of a command that is refused and leaves every file as it was."""
    before = contents(place)
    sentence = sentence_of(run(capfd, *given))
    assert contents(place) == before
    return sentence


# ----------------------------------------------------------------------------------------------------------- images


def with_value(path: Path, value: float) -> None:
    values = balls().astype(np.float32)
    values[1, 2, 3] = value
    write_image(path, values, GRID)


def patched_nifti(path: Path, offset: int, code: str, *numbers: float) -> None:
    """Write a NIfTI with other numbers at an offset of its header."""
    content = bytearray(gzip.decompress((path.parent / "ct.nii.gz").read_bytes()))
    struct.pack_into(code, content, offset, *numbers)
    path.write_bytes(gzip.compress(bytes(content)))


def time_series(path: Path) -> None:
    image = sitk.ReadImage(str(path.parent / "ct.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries(image, image), str(path))


def truncated(path: Path) -> None:
    whole = (path.parent / "ct.nii.gz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BAD_IMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no file": ("absent.nii.gz", lambda path: None, "no file or folder"),
    "an empty folder": ("scans", lambda path: path.mkdir(), "is empty; give the one"),
    "an empty file": ("scan.nii.gz", lambda path: path.write_bytes(b""), "empty"),
    "text named .nii.gz": ("scan.nii.gz", lambda path: path.write_text("dear diary\n" * 50), "scan.nii.gz"),
    "text named .dcm": ("scan.dcm", lambda path: path.write_text("dear diary\n" * 50), "scan.dcm"),
    "a truncated NIfTI": ("scan.nii.gz", truncated, "truncated"),
    "a NaN": ("scan.nii.gz", lambda path: with_value(path, np.nan), "1 NaN or infinite"),
    "an infinite voxel": ("scan.nrrd", lambda path: with_value(path, np.inf), "1 NaN or infinite"),
    "one slice": ("scan.nii.gz", lambda path: write_image(path, balls()[:1], GRID), "one slice"),
    "a 2D image": ("scan.mha", lambda path: sitk.WriteImage(sitk.Image(8, 8, sitk.sitkInt16), str(path)), "two-dim"),
    "an RGB image": ("scan.nrrd", lambda path: write_image(path, np.zeros((4, 5, 6, 3), np.uint8)), "colour"),
    "a 4D image": ("scan.nii.gz", time_series, "four dimensions"),
    "zero spacing": ("scan.nii.gz", lambda path: patched_nifti(path, 80, "<f", 0.0), "spacing"),
    "a label map": ("scan.nii.gz", lambda path: write_image(path, (balls() > 100).astype(np.uint8), GRID), "label map"),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
@pytest.mark.usefixtures("no_model")
def test_an_image_that_cannot_be_used_is_refused_in_one_sentence(
    place: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    name, make, expected = BAD_IMAGES[what]
    make(place / name)
    sentence = refused(capfd, place, *arguments(place, name))
    assert expected in sentence
    assert name in sentence


def two_series(folder: Path) -> None:
    for uid in SERIES:
        write_dicom_series(folder, balls(), GRID, series_uid=uid, prefix=f"series{uid[-1]}")


@pytest.mark.usefixtures("no_model")
def test_two_series_in_a_folder_are_listed_for_a_choice_without_the_name_of_the_patient(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two_series(place / "scans")
    sentence = refused(capfd, place, *arguments(place, "scans"))
    assert "--series NUMBER" in sentence
    assert not any(uid in sentence for uid in SERIES)  # UIDs identify patients
    assert not any(secret in sentence for secret in (*PATIENT_NAME.split("^"), PATIENT_ID))
    assert "no such series" in refused(capfd, place, *arguments(place, "scans"), "--series", "1.2.3.9")


def test_the_series_that_was_chosen_is_segmented(
    place: Path, capfd: pytest.CaptureFixture[str], an_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: an_engine)
    two_series(place / "scans")
    outcome = run(capfd, *arguments(place, "scans"), "--series", SERIES[1])
    assert outcome.code == 0, outcome
    assert sitk.ReadImage(str(place / "result.seg.nrrd")).GetSpacing() == pytest.approx((1.5, 1.5, 4.0))


@pytest.mark.usefixtures("no_model")
def test_a_series_with_a_missing_slice_is_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_dicom_series(place / "scans", balls(), GRID)[3].unlink()
    assert "missing" in refused(capfd, place, *arguments(place, "scans"))


# ----------------------------------------------------------------------------------------------------- prompt files


def changed(**changes: Any) -> dict[str, Any]:
    """Give good prompts with keys of their segment changed."""
    content = box_prompts()
    content["segments"][0].update(changes)
    return content


BAD_PROMPTS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{frame: RAS", "not JSON"),
    "an empty file": ("", "not JSON"),
    "a list": ([], "object"),
    "no frame": ({"segments": box_prompts()["segments"]}, "frame"),
    "a wrong frame": (box_prompts(frame="XYZ"), "XYZ"),
    "an unknown key": (box_prompts(colour="red"), "colour"),
    "an unknown key of a segment": (changed(box=[]), "'box'"),
    "no segments": ({"frame": "RAS", "segments": []}, "no segments"),
    "a segment without prompts": (changed(boxes=[]), "neither points nor boxes"),
    "a name of two lines": (changed(name="a\nb", points=[{"position": [0, 0, 99]}]), "outside"),
    "a point outside": (changed(points=[{"position": [0, 0, 99]}]), "outside"),
    "a point of two numbers": (changed(points=[{"position": [0, 0]}]), "three numbers"),
    "a box outside": (changed(boxes=[{"min": [500, 0, 4], "max": [600, 9, 4]}]), "outside"),
    "an empty box": (changed(boxes=[{"min": [9, 9, 4], "max": [9, 9, 4]}]), "empty"),
    "a box inside out": (changed(boxes=[{"min": [9, 9, 4], "max": [2, 20, 4]}]), "empty"),
    "a duplicate name": (box_prompts(segments=box_prompts()["segments"] * 2), "two segments"),
    "NaN": ('{"frame": "IJK", "segments": [{"name": "a", "points": [{"position": [NaN, 1, 1]}]}]}', "NaN"),
}


@pytest.mark.parametrize("what", BAD_PROMPTS)
@pytest.mark.usefixtures("no_model")
def test_prompts_that_cannot_be_used_are_refused_in_one_sentence(
    place: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    content, expected = BAD_PROMPTS[what]
    write_prompts(place / "mine.json", content)
    sentence = refused(capfd, place, *arguments(place, prompts="mine.json"))
    assert expected in sentence
    assert "mine.json" in sentence


def test_boxes_of_one_segment_that_are_flat_in_two_axes_are_refused(
    place: Path, capfd: pytest.CaptureFixture[str], an_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: an_engine)
    boxes = [{"min": [20, 14, 4], "max": [40, 34, 4]}, {"min": [20, 24, 2], "max": [40, 24, 6]}]
    write_prompts(place / "mine.json", changed(boxes=boxes))
    assert "flat in" in refused(capfd, place, *arguments(place, prompts="mine.json"))


# ------------------------------------------------------------------------------------------- arguments, output, model


BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "a missing prompt file": (["--prompts", "{place}/absent.json"], "no prompt file"),
    "a folder as prompt file": (["--prompts", "{place}"], "no prompt file"),
    "an unknown ending": (["-o", "{place}/result.stl"], ".stl"),
    "no ending": (["-o", "{place}/result"], "without ending"),
    "DICOM-SEG of an image that is not DICOM": (["-o", "{place}/result.dcm"], ".seg.nrrd"),
    "a folder that is missing": (["-o", "{place}/absent/result.seg.nrrd"], "does not exist"),
    "a file as folder": (["-o", "{place}/ct.nii.gz/result.seg.nrrd"], "does not exist"),
    "a folder as output": (["-o", "{place}/folder.seg.nrrd"], "is a folder"),
    "a name that is too long": (["-o", "{place}/" + 300 * "x" + ".seg.nrrd"], "File name too long"),
    "the image as output": (["-o", "{place}/ct.nii.gz"], "is the image itself"),
    "a preview that is no PNG": (["--preview", "{place}/result.jpg"], ".png"),
    "the prompts as names of labels": (
        ["--prompts", "{place}/mine.labels.json", "-o", "{place}/mine.nii.gz"],
        "is the prompt file itself",
    ),
    "a file that is no names file where names go": (["-o", "{place}/notes.nii.gz"], "notes.labels.json"),
    "a preview in a folder that is missing": (["--preview", "{place}/absent/result.png"], "does not exist"),
    "a folder as preview": (["--preview", "{place}/folder.png"], "is a folder"),
    "an unknown axis": (["--axis", "z"], "choose --axis k, j or i"),
    "an unknown window": (["--window", "belly"], "abdomen"),
    "half a window": (["--window", "40/"], "LEVEL/WIDTH"),
    "a window without width": (["--window", "40/0"], "width above 0"),
    "a window of no number": (["--window", "nan/400"], "finite"),
    "an unknown model": (["--model", "maxi"], "choose"),
    "a model that was not fetched": (["--model", "sam2.1-tiny"], "sam2assist models fetch sam2.1-tiny"),
    "an adapter that is missing": (["--adapter", "{place}/absent"], "no adapter"),
    "a folder that is no adapter": (["--adapter", "{place}"], "no adapter, because adapter_config.json is missing"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
@pytest.mark.usefixtures("no_model")
def test_an_argument_that_cannot_be_used_is_refused_before_the_image_is_read(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(place / "cache"))
    for folder in ("folder.seg.nrrd", "folder.png"):
        (place / folder).mkdir()
    write_prompts(place / "mine.labels.json", box_prompts())
    write_prompts(place / "notes.labels.json", "my notes")
    given, expected = BAD_ARGUMENTS[what]
    # An image that is not there would be the reason if it were looked at.
    image = "ct.nii.gz" if "image" in what else "absent.nii.gz"
    sentence = refused(capfd, place, *arguments(place, image), *(text.format(place=place) for text in given))
    assert expected in sentence


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", "meta"])
def test_an_unknown_device_is_refused(place: Path, capfd: pytest.CaptureFixture[str], device: str) -> None:
    assert "device" in refused(capfd, place, *arguments(place), "--device", device)


def test_prompts_that_were_not_given_are_asked_for(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capfd, place, "segment", place / "ct.nii.gz", "-o", place / "result.seg.nrrd")
    assert "--prompts FILE.json" in sentence


@pytest.fixture
def a_weights_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded weights that the engine uses instead of them."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(store.EMBEDDED_FOLDER, folder, dirs_exist_ok=True)
    monkeypatch.setattr(store, "EMBEDDED_FOLDER", folder)
    return folder


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


TAMPERINGS: dict[str, Callable[[Path], Any]] = {
    "mini.safetensors is not there": lambda folder: (folder / "mini.safetensors").unlink(),
    "mini.safetensors has a flipped bit": lambda folder: flipped(folder / "mini.safetensors"),
    "mini.safetensors lacks a byte": lambda folder: shortened(folder / "mini.safetensors"),
    "mini.card.json is not there": lambda folder: (folder / "mini.card.json").unlink(),
    "mini.card.json is no JSON": lambda folder: (folder / "mini.card.json").write_text("sha256"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_weights_that_are_not_the_published_ones_are_refused_by_name(
    place: Path, capfd: pytest.CaptureFixture[str], a_weights_folder: Path, what: str
) -> None:
    TAMPERINGS[what](a_weights_folder)
    assert what.split(maxsplit=1)[0] in refused(capfd, place, *arguments(place))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["segment"], "'IMAGE'"),
        (["segment", "ct.nii.gz"], "-o"),
        (["segment", "ct.nii.gz", "-o"], "-o"),
        (["segment", "ct.nii.gz", "-o", "a.seg.nrrd", "--colour"], "--colour"),
        (["segment", "ct.nii.gz", "more.nii.gz", "-o", "a.seg.nrrd"], "more.nii.gz"),
        (["demo", "--corrections", "-1"], "--corrections"),
        (["demo", "--corrections", "many"], "--corrections"),
        (["dance"], "dance"),
        (["models", "dance"], "dance"),
        (["models", "fetch"], "NAME"),
    ],
)
def test_wrong_usage_is_one_sentence_that_names_the_help(
    capfd: pytest.CaptureFixture[str], given: list[str], expected: str
) -> None:
    sentence = sentence_of(run(capfd, *given))
    assert expected in sentence
    assert "--help" in sentence


def test_a_file_name_with_control_characters_stays_on_one_line(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "a b" in refused(capfd, place, *arguments(place, "a\nb\x1b.nii.gz"))


@pytest.mark.parametrize("option", ["IMAGE", "--prompts", "--refine", "--preview", "--adapter"])
def test_a_path_that_the_system_refuses_is_told_in_one_sentence(
    place: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    path = place / (300 * "x" + ".png")
    given = arguments(place, path.name) if option == "IMAGE" else [*arguments(place), option, path]
    sentence = refused(capfd, place, *given)
    assert path.name in sentence
    assert "File name too long" in sentence


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (OSError(28, "No space left on device"), r"free some space or choose another place\.$"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
    ids=["a full disk", "a place that may not be written to"],
)
def test_a_fault_while_writing_leaves_the_old_result(
    place: Path,
    capfd: pytest.CaptureFixture[str],
    an_engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    fault: OSError,
    expected: str,
) -> None:
    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: an_engine)

    def fail(path: str, *_: Any) -> None:
        raise type(fault)(fault.errno, fault.strerror, path)

    monkeypatch.setattr("os.replace", fail)
    before = contents(place)
    outcome = run(capfd, *arguments(place))
    assert outcome.code == 2
    assert re.search(expected, outcome.err.splitlines()[-1])
    assert contents(place) == before


# ------------------------------------------------------------------------------------------ the script, as installed


SCRIPT_CASES = ("a truncated NIfTI", "an RGB image", "zero spacing", "an empty folder")


@pytest.mark.parametrize("what", SCRIPT_CASES)
def test_the_installed_script_says_one_sentence_too_and_nothing_of_itk(place: Path, what: str) -> None:
    name, make, expected = BAD_IMAGES[what]
    make(place / name)
    before = contents(place)
    assert expected in sentence_of(run_script(*arguments(place, name)))
    assert contents(place) == before


def test_the_installed_script_refuses_a_prompt_outside_and_a_wrong_device(place: Path) -> None:
    write_prompts(place / "mine.json", BAD_PROMPTS["a point outside"][0])
    before = contents(place)
    assert "outside" in sentence_of(run_script(*arguments(place, prompts="mine.json")))
    assert "abacus" in sentence_of(run_script(*arguments(place), "--device", "abacus"))
    assert contents(place) == before
