"""A support library that somebody has edited, damaged or left half-way, and names that no folder can have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auto_scenes import BALLS, balls
from command_line import run, run_script, sentence_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import write_segmentation
from SAM2AssistLib.prompting.support import Support, SupportCase
from SAM2AssistLib.prompting.support_library import SupportLibrary


@pytest.fixture
def a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SupportLibrary:
    """A library with one case, "balls"."""
    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path / "supports"))
    library = SupportLibrary()
    library.add(a_case())
    return library


def a_case() -> SupportCase:
    return SupportCase("balls", *balls())


def prepared(library: SupportLibrary, engine: Any) -> Support:
    return library.prepare(engine, "balls", default_window(balls()[0]))


def cached(library: SupportLibrary) -> Path:
    (path,) = (library.folder / "balls").glob("features-*")
    return path


# What was made of a case


def test_what_was_made_of_a_case_is_read_back_while_nothing_changes(a_library: SupportLibrary, an_engine: Any) -> None:
    prepared(a_library, an_engine)
    assert prepared(a_library, an_engine).plane.encoder.encoded == 0


def test_masks_that_were_corrected_in_the_library_count(a_library: SupportLibrary, an_engine: Any) -> None:
    volume, masks = balls()
    before = prepared(a_library, an_engine)
    first = cached(a_library)
    swapped = [NamedMask(BALLS[0], masks[BALLS[1]]), NamedMask(BALLS[1], masks[BALLS[0]])]
    write_segmentation(a_library.masks_file("balls"), swapped, volume)
    after = prepared(a_library, an_engine)
    np.testing.assert_array_equal(after.shares.numpy(), before.shares[:, [1, 0]].numpy())
    assert cached(a_library) != first


def test_an_image_that_was_replaced_in_the_library_is_looked_at_anew(a_library: SupportLibrary, an_engine: Any) -> None:
    before = prepared(a_library, an_engine)
    a_library.remove("balls")
    volume, masks = balls()
    a_library.add(SupportCase("other", type(volume)(volume.array - np.int16(40), volume.ijk_to_lps), masks))
    (a_library.folder / "other").rename(a_library.folder / "balls")
    assert not torch.equal(prepared(a_library, an_engine).features.levels[0], before.features.levels[0])


def a_level_of_fewer_slices(tensors: dict[str, torch.Tensor]) -> None:
    tensors["level 1"] = tensors["level 1"][:3].contiguous()


def a_level_of_other_channels(tensors: dict[str, torch.Tensor]) -> None:
    tensors["level 2"] = tensors["level 2"][:, :5].contiguous()


def a_level_of_another_side(tensors: dict[str, torch.Tensor]) -> None:
    tensors["level 0"] = tensors["level 0"][..., :4].contiguous()


def levels_that_changed_places(tensors: dict[str, torch.Tensor]) -> None:
    tensors["level 0"], tensors["level 2"] = tensors["level 2"], tensors["level 0"]


def shares_of_another_grid(tensors: dict[str, torch.Tensor]) -> None:
    tensors["shares"] = tensors["shares"][..., :8].contiguous()


def shares_in_single_precision(tensors: dict[str, torch.Tensor]) -> None:
    tensors["shares"] = tensors["shares"].float()


@pytest.mark.parametrize(
    "change",
    [
        a_level_of_fewer_slices,
        a_level_of_other_channels,
        a_level_of_another_side,
        levels_that_changed_places,
        shares_of_another_grid,
        shares_in_single_precision,
    ],
)
def test_features_of_another_shape_are_made_again(
    a_library: SupportLibrary, an_engine: Any, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    before = prepared(a_library, an_engine)
    path = cached(a_library)
    with safe_open(path, "pt") as file:
        description = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=description)
    again = prepared(a_library, an_engine)
    for one, other in zip(
        (*again.features.levels, again.shares), (*before.features.levels, before.shares), strict=True
    ):
        assert torch.equal(one, other)


def test_features_of_other_classes_are_made_again(a_library: SupportLibrary, an_engine: Any) -> None:
    prepared(a_library, an_engine)
    path = cached(a_library)
    with safe_open(path, "pt") as file:
        description = file.metadata() | {"classes": json.dumps(["somebody", "else"])}
    save_file(load_file(path), path, metadata=description)
    assert prepared(a_library, an_engine).classes == BALLS


# Cases that are damaged


DAMAGE = ["", "{", "[]", '{"classes": 3, "added": "2026"}', '{"added": "2026"}']


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_case_is_named_and_the_others_are_listed(
    a_library: SupportLibrary, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    a_library.add(a_case(), "whole")
    (a_library.folder / "balls" / "support.json").write_text(content)
    listed = run(capfd, "support", "list", "--json")
    assert listed.code == 0
    told = json.loads(listed.out)
    assert [case["name"] for case in told["cases"]] == ["whole"]
    (sentence,) = told["warnings"]
    assert sentence.startswith("The support case 'balls' is damaged")
    assert sentence in listed.err
    assert run(capfd, "support", "remove", "balls").code == 0
    assert run(capfd, "support", "add", *files_of(a_library, "whole"), "--name", "balls").code == 0
    assert json.loads(run(capfd, "support", "list", "--json").out)["warnings"] == []


def files_of(library: SupportLibrary, name: str) -> tuple[Path, Path]:
    return library.folder / name / "image.nrrd", library.masks_file(name)


def test_what_was_begun_and_other_peoples_folders_are_no_cases(a_library: SupportLibrary) -> None:
    (a_library.folder / "balls").rename(a_library.folder / ".balls.part")
    notes = a_library.folder / "notes"
    notes.mkdir()
    (notes / "letter.txt").write_text("Dear colleague")
    scan = a_library.folder / "patient"
    scan.mkdir()
    (scan / "image.nrrd").write_bytes(b"")
    assert a_library.entries() == ()
    assert a_library.damaged() == ()


@pytest.mark.parametrize(
    "left", [(), ("image.nrrd", "masks.seg.nrrd"), ("features-mini-0123.safetensors", "masks.seg.nrrd")]
)
def test_a_folder_that_is_left_of_a_case_is_told_of_and_can_be_removed(
    a_library: SupportLibrary, left: tuple[str, ...]
) -> None:
    rest = a_library.folder / "rest"
    rest.mkdir()
    for name in left:
        (rest / name).write_bytes(b"")
    (sentence,) = a_library.damaged()
    assert "'rest' is damaged" in sentence
    with pytest.raises(InputError, match="already; remove it"):
        a_library.add(a_case(), "rest")
    a_library.remove("rest")
    assert not rest.exists()
    assert a_library.add(a_case(), "rest").name == "rest"


@pytest.mark.parametrize("file", ["letter.txt", "image.nrrd"])
def test_a_folder_with_other_files_is_never_removed(a_library: SupportLibrary, file: str) -> None:
    notes = a_library.folder / "notes"
    notes.mkdir()
    (notes / file).write_text("Dear colleague")
    with pytest.raises(InputError, match="holds other files"):
        a_library.remove("notes")
    assert (notes / file).exists()


def test_of_a_link_nothing_but_the_link_is_removed(a_library: SupportLibrary, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (a_library.folder / "balls").rename(elsewhere)
    (a_library.folder / "balls").symlink_to(elsewhere)
    assert [entry.name for entry in a_library.entries()] == ["balls"]
    a_library.remove("balls")
    assert a_library.entries() == ()
    assert (elsewhere / "image.nrrd").exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../elsewhere", ".balls.part"])
def test_nothing_outside_of_the_library_is_removed(a_library: SupportLibrary, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (a_library.folder / ".balls.part").mkdir()
    with pytest.raises(InputError, match="cannot name"):
        a_library.remove(name)
    assert (tmp_path / "elsewhere").is_dir()
    assert a_library.entries() != ()


# Names


@pytest.mark.parametrize(
    ("name", "told"),
    [("x" * 300, "has 300 bytes"), ("é" * 101, "has 202 bytes"), ("caf\udce9", "is no text"), ("a/b", "cannot name")],
)
def test_a_name_that_no_folder_can_have_is_refused_in_a_sentence(
    a_library: SupportLibrary, capfd: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    sentence = sentence_of(run(capfd, "support", "add", *files_of(a_library, "balls"), "--name", name))
    assert told in sentence
    assert "--name" in sentence
    assert [entry.name for entry in a_library.entries()] == ["balls"]
    for command in (("support", "remove", name), ("auto", *files_of(a_library, "balls")[:1], "--case", name)):
        out = ("-o", a_library.folder.parent / "out.seg.nrrd") if command[0] == "auto" else ()
        assert told in sentence_of(run(capfd, *command, *out))


def test_the_longest_name_is_kept(a_library: SupportLibrary) -> None:
    assert a_library.add(a_case(), "é" * 100).name == "é" * 100
    assert len(a_library.entries()) == 2


def test_a_name_in_another_encoding_does_not_end_the_process(a_library: SupportLibrary) -> None:
    done = run_script("support", "add", *files_of(a_library, "balls"), "--name", "caf\udce9")
    assert "is no text in UTF-8" in sentence_of(done)


def test_a_library_whose_path_is_no_text_is_refused(a_library: SupportLibrary) -> None:
    with pytest.raises(OutputError, match="SAM2ASSIST_SUPPORTS"):
        SupportLibrary(a_library.folder / "caf\udce9").add(a_case())
