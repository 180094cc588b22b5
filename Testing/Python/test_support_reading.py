"""How support cases come in: what is told of their files, and how their classes are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from auto_scenes import BALLS, a_learned_head, a_prompter, balls
from command_line import run

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.itk_image import image_of
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import write_segmentation
from SAM2AssistLib.mrml.desk import Desk, Note, Patch, Verdicts
from SAM2AssistLib.prompting import auto
from SAM2AssistLib.prompting.auto import auto_segment
from SAM2AssistLib.prompting.support import SupportCase, read_support
from SAM2AssistLib.prompting.support_library import SupportLibrary
from SAM2AssistLib.volume import CTVolume

VOXELS = 64
"""Along a row of the balls."""


@pytest.fixture(autouse=True)
def an_empty_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A support library of the test's own."""
    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path / "supports"))


@pytest.fixture
def an_image(tmp_path: Path) -> Path:
    """The balls as an image."""
    volume, _ = balls()
    return write_image(tmp_path / "ct.nrrd", volume.array)


def write_image(path: Path, array: np.ndarray) -> Path:
    sitk.WriteImage(image_of(array, balls()[0].ijk_to_lps), str(path))
    return path


def masks_moved_by(voxels: int, path: Path, ending: str) -> Path:
    """Write the masks of the balls with an origin that is off along a row."""
    volume, masks = balls()
    ijk_to_lps = volume.ijk_to_lps.copy()
    ijk_to_lps[:3, 3] += voxels * ijk_to_lps[:3, 0]
    moved = CTVolume(volume.array, ijk_to_lps)
    write_segmentation(path / f"moved{ending}", [NamedMask(n, m) for n, m in masks.items()], moved)
    return path / f"moved{ending}"


def edge_of(name: str) -> int:
    """First column after a ball."""
    return int(np.flatnonzero(balls()[1][name].any(axis=(0, 1)))[-1]) + 1


# What is told


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz"])
def test_what_of_a_support_mask_lies_outside_of_its_image_is_told(tmp_path: Path, an_image: Path, ending: str) -> None:
    half = VOXELS - edge_of(BALLS[1]) + 4
    case = read_support(an_image, masks_moved_by(half, tmp_path, ending))
    (told,) = case.notes
    assert told.startswith(f"moved{ending}: ")
    assert f"ml of '{BALLS[1]}' lie outside" in told
    volume, masks = balls()
    kept = masks[BALLS[1]][:, :, : VOXELS - half].sum()
    assert 0 < kept == case.masks[BALLS[1]].sum()


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz"])
def test_a_class_that_has_no_voxel_left_in_the_image_is_told_by_its_name(
    tmp_path: Path, an_image: Path, ending: str
) -> None:
    notes = read_support(an_image, masks_moved_by(VOXELS - edge_of(BALLS[0]), tmp_path, ending)).notes
    assert f"moved{ending}: No voxel of '{BALLS[1]}' is in the image, so that is not looked for by it." in notes


def test_a_mask_that_lies_wholly_outside_is_refused(tmp_path: Path, an_image: Path) -> None:
    with pytest.raises(InputError, match="no voxel within 'ct.nrrd'"):
        read_support(an_image, masks_moved_by(VOXELS, tmp_path, ".seg.nrrd"))


def test_nothing_is_told_of_a_case_that_fits(tmp_path: Path, an_image: Path) -> None:
    assert read_support(an_image, masks_moved_by(0, tmp_path, ".seg.nrrd")).notes == ()


def test_adding_a_case_tells_what_is_lost_and_what_is_odd_about_its_image(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "raw.nrrd", balls()[0].array + np.int16(1024))
    mask = masks_moved_by(VOXELS - edge_of(BALLS[1]) + 4, tmp_path, ".seg.nrrd")
    done = run(capfd, "support", "add", image, mask, "--name", "mine", "--json")
    assert done.code == 0, done.err
    for told in (done.err, " ".join(json.loads(done.out)["warnings"])):
        assert "raw.nrrd does not look like CT" in told
        assert f"of '{BALLS[1]}' lie outside" in told


@pytest.mark.parametrize("from_library", [False, True])
def test_auto_tells_what_is_lost_of_its_support_cases(
    tmp_path: Path, an_image: Path, engine: Any, capfd: pytest.CaptureFixture[str], from_library: bool
) -> None:
    mask = masks_moved_by(VOXELS - edge_of(BALLS[1]) + 4, tmp_path, ".seg.nrrd")
    how: tuple[object, ...] = ("--support", an_image, mask)
    if from_library:
        SupportLibrary().add(SupportCase("mine", *balls()))
        mask.replace(SupportLibrary().masks_file("mine"))  # saved there by another program
        how = ("--case", "mine")
    done = run(capfd, "auto", an_image, "-o", tmp_path / "out.seg.nrrd", *how, "--json")
    assert done.code == 0, done.err
    for told in (done.err, " ".join(json.loads(done.out)["warnings"])):
        assert f"of '{BALLS[1]}' lie outside" in told


def a_desk(engine: Any) -> Desk:
    """What the module works with, on the balls."""
    volume, _ = balls()
    return Desk(volume, 0, lambda: engine, lambda: volume)


def test_the_module_tells_what_is_lost_of_a_case_of_the_library(tmp_path: Path, quick_engine: Any) -> None:
    SupportLibrary().add(SupportCase("mine", *balls()))
    moved = masks_moved_by(VOXELS - edge_of(BALLS[1]) + 4, tmp_path, ".seg.nrrd")
    moved.replace(SupportLibrary().masks_file("mine"))
    steps = a_desk(quick_engine()).auto({BALLS[0]: "Segment_1"}, None, ["mine"])
    (told,) = [step.sentence for step in steps if isinstance(step, Note)]
    assert told.startswith("Support case 'mine': ")
    assert f"of '{BALLS[1]}' lie outside" in told


# How classes are named


@pytest.mark.parametrize(
    ("given", "name"), [("liver ", "liver"), ("\tliver", "liver"), ("", "segment"), (" ", "segment")]
)
def test_a_class_is_called_as_its_segment_will_be(a_quick_session: Any, given: str, name: str) -> None:
    volume, masks = balls()
    *_, last = auto_segment(a_quick_session, support=[SupportCase("one", volume, {given: masks[BALLS[0]]})])
    assert [verdict.name for verdict in last.verdicts] == [name]


def test_the_module_knows_a_class_of_an_adapter_by_its_segment_even_with_blanks_in_its_name(
    quick_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = quick_engine()
    prompter = a_prompter(engine, a_learned_head(engine))
    names = tuple(f"{name} " for name in prompter.known)
    prompter = replace(prompter, known=names, classes=names, presence=dict.fromkeys(names, 0.5))
    monkeypatch.setattr(auto, "load_finder", lambda *_: prompter)
    steps = list(a_desk(engine).auto({f"{BALLS[0]} ": "Segment_1"}, "an adapter", []))
    (verdicts,) = [step for step in steps if isinstance(step, Verdicts)]
    assert verdicts.present == {f"{BALLS[0]} ": True}
    assert any(isinstance(step, Patch) and step.mask.any() and step.segment_id == "Segment_1" for step in steps)


def test_classes_whose_names_differ_by_blanks_are_one(a_quick_session: Any) -> None:
    volume, masks = balls()
    case = SupportCase("two", volume, {"liver": masks[BALLS[0]], "liver ": masks[BALLS[1]]})
    np.testing.assert_array_equal(case.masks["liver"], masks[BALLS[0]] | masks[BALLS[1]])
    *_, last = auto_segment(a_quick_session, support=[case])
    assert [verdict.name for verdict in last.verdicts] == ["liver"]


def test_a_file_with_blanks_in_names_is_searched_by_names_without(
    tmp_path: Path, an_image: Path, engine: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    volume, masks = balls()
    labels = masks[BALLS[0]] + np.uint8(2) * masks[BALLS[1]]
    mask = write_image(tmp_path / "label.nrrd", labels)
    (tmp_path / "label.labels.json").write_text(json.dumps({" liver": 1, "spleen ": 2}))
    done = run(capfd, "auto", an_image, "-o", tmp_path / "out.seg.nrrd", "--support", an_image, mask, "--json")
    assert done.code == 0, done.err
    assert [found["name"] for found in json.loads(done.out)["classes"]] == ["liver", "spleen"]


def test_a_case_that_was_kept_with_blanks_in_names_is_listed_and_used_without(a_quick_session: Any) -> None:
    volume, masks = balls()
    library = SupportLibrary()
    library.add(SupportCase("old", volume, {"liver": masks[BALLS[0]]}))
    write_segmentation(library.masks_file("old"), [NamedMask("liver ", masks[BALLS[0]])], volume)
    description = library.folder / "old" / "support.json"
    description.write_text(description.read_text().replace('"liver"', '"liver "'))
    assert library.entry("old").classes == ("liver",)
    assert set(library.case("old").masks) == {"liver"}
    assert library.prepare(a_quick_session.engine, "old", a_quick_session.window).classes == ("liver",)


# How cases are named


@pytest.mark.parametrize("image_name", ["image.nrrd", "ct.nrrd"])
def test_a_case_is_named_after_its_image_or_the_folder_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_name: str
) -> None:
    folder = tmp_path / "patient 7"
    folder.mkdir()
    write_image(folder / image_name, balls()[0].array)
    masks_moved_by(0, folder, ".seg.nrrd")
    monkeypatch.chdir(folder)
    expected = "patient 7" if image_name == "image.nrrd" else "ct.nrrd"
    assert read_support(Path(image_name), Path("moved.seg.nrrd")).name == expected
