"""The support library on disk, and the commands that keep it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from auto_scenes import BALLS, balls
from command_line import run, sentence_of
from ct_files import affine, write_dicom_series
from dicom_scenes import a_series, liver_and_tumor
from safetensors import SafetensorError

from SAM2AssistLib.cli import auto
from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.engine.store import file_sha256
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.itk_image import image_of
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import write_segmentation
from SAM2AssistLib.prompting.support import SupportCase, prepare_support, read_support
from SAM2AssistLib.prompting.support_library import SupportLibrary
from SAM2AssistLib.volume import Window


@pytest.fixture
def a_case():
    return SupportCase("balls", *balls())


@pytest.fixture
def a_library(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path / "supports"))
    return SupportLibrary()


@pytest.fixture
def files(tmp_path):
    """An image and its masks on disk."""
    volume, masks = balls()
    image, mask = tmp_path / "ct.nrrd", tmp_path / "ct.seg.nrrd"
    sitk.WriteImage(image_of(volume.array, volume.ijk_to_lps), str(image))
    write_segmentation(mask, [NamedMask(n, m) for n, m in masks.items()], volume)
    return image, mask


def test_a_case_comes_back_as_it_was_added(a_library, a_case):
    a_library.add(a_case)
    back = a_library.case("balls")
    np.testing.assert_array_equal(back.volume.array, a_case.volume.array)
    np.testing.assert_allclose(back.volume.ijk_to_lps, a_case.volume.ijk_to_lps, atol=1e-5)
    for name in BALLS:
        np.testing.assert_array_equal(back.masks[name], a_case.masks[name])


def test_segments_of_one_name_are_one_class_of_a_support_case(files):
    volume, masks = balls()
    write_segmentation(files[1], [NamedMask("metastasis", mask) for mask in masks.values()], volume)
    (read,) = read_support(*files).masks.values()
    np.testing.assert_array_equal(read, np.logical_or(*masks.values()))


def test_a_dicom_seg_is_the_mask_of_a_support_case_whatever_its_name(tmp_path):
    volume, masks = a_series(tmp_path / "ct"), liver_and_tumor()  # which are not on all slices
    write_segmentation(tmp_path / "a.dcm", masks, volume)
    read = read_support(tmp_path / "ct", (tmp_path / "a.dcm").rename(tmp_path / "IM0001"))
    for named in masks:
        np.testing.assert_array_equal(read.masks[named.name], named.mask)


def test_a_name_is_given_once(a_library, a_case):
    a_library.add(a_case)
    with pytest.raises(InputError, match="already"):
        a_library.add(a_case)
    assert a_library.add(a_case, "other").name == "other"
    assert [e.name for e in a_library.entries()] == ["balls", "other"]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a:b"])
def test_a_name_that_could_leave_the_library_is_refused(a_library, a_case, name):
    with pytest.raises(InputError, match="cannot name"):
        a_library.add(a_case, name)


def test_features_are_cached_and_read_back_the_same(a_library, a_case, quick_engine):
    engine, window = quick_engine(), default_window(a_case.volume)
    a_library.add(a_case)
    made = a_library.prepare(engine, "balls", window)
    read = a_library.prepare(engine, "balls", window)
    assert read.plane.encoder.encoded == 0
    assert read.classes == made.classes
    assert read.view == made.view
    np.testing.assert_array_equal(read.features.levels[0].numpy(), made.features.levels[0].numpy())
    np.testing.assert_array_equal(read.shares.numpy(), made.shares.numpy())


def test_features_are_made_again_for_another_window_and_the_old_ones_go(a_library, a_case, quick_engine):
    engine = quick_engine()
    a_library.add(a_case)
    a_library.prepare(engine, "balls", default_window(a_case.volume))
    (first,) = (a_library.folder / "balls").glob("features-*")
    a_library.prepare(engine, "balls", Window(300, 900))
    (second,) = (a_library.folder / "balls").glob("features-*")
    assert first.name != second.name


def test_a_library_that_cannot_be_written_to_costs_time_and_nothing_else(a_library, a_case, quick_engine, monkeypatch):
    engine, window = quick_engine(), default_window(a_case.volume)
    a_library.add(a_case)
    a_library.prepare(engine, "balls", window)

    def refused(*_args, **_kwargs):
        raise SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)")

    monkeypatch.setattr("safetensors.torch.save_file", refused)
    again = a_library.prepare(engine, "balls", Window(300, 900))
    assert again.classes == prepare_support(engine, a_case, window).classes
    (_,) = (a_library.folder / "balls").glob("features-*")  # of the other window
    assert a_library.prepare(engine, "balls", window).plane.encoder.encoded == 0


def test_features_that_are_damaged_are_made_again(a_library, a_case, quick_engine):
    engine, window = quick_engine(), default_window(a_case.volume)
    a_library.add(a_case)
    a_library.prepare(engine, "balls", window)
    (cached,) = (a_library.folder / "balls").glob("features-*")
    cached.write_bytes(b"damaged")
    again = a_library.prepare(engine, "balls", window)
    expected = prepare_support(engine, a_case, window)
    np.testing.assert_array_equal(again.features.levels[0].numpy(), expected.features.levels[0].numpy())


def test_a_damaged_description_is_told_in_a_sentence(a_library, a_case):
    a_library.add(a_case)
    (a_library.folder / "balls" / "support.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        a_library.entry("balls")


# The commands


def test_a_case_is_added_listed_and_removed(capfd, a_library, files):
    added = run(capfd, "support", "add", *files, "--name", "mine", "--json")
    assert json.loads(added.out)["classes"] == list(BALLS)
    listed = json.loads(run(capfd, "support", "list", "--json").out)
    assert [case["name"] for case in listed["cases"]] == ["mine"]
    assert run(capfd, "support", "remove", "mine").code == 0
    assert json.loads(run(capfd, "support", "list", "--json").out)["cases"] == []


def test_removing_what_is_not_there_is_refused(capfd, a_library):
    assert "no support case 'mine'" in sentence_of(run(capfd, "support", "remove", "mine"))


def test_a_support_without_a_mask_is_wrong_usage(capfd, a_library, files, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    for how in (("--support", files[0]), (f"--support={files[0]}",)):
        assert "two values" in sentence_of(run(capfd, "auto", files[0], "-o", out, *how))


def test_auto_by_a_support_case_writes_segments_and_tells_of_each_class(capfd, engine, a_library, files, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    done = run(capfd, "auto", files[0], "-o", out, "--support", *files, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [c["name"] for c in told["classes"]] == list(BALLS)
    assert out.exists() == any(c["present"] for c in told["classes"])


def test_auto_by_a_case_of_the_library_is_as_by_its_files(capfd, engine, a_library, files, tmp_path):
    run(capfd, "support", "add", *files, "--name", "mine")
    told = [
        json.loads(run(capfd, "auto", files[0], "-o", tmp_path / "out.seg.nrrd", *how, "--json").out)["classes"]
        for how in (("--case", "mine"), ("--support", *files), (f"--support={files[0]}", files[1]))
    ]
    assert told[0] == told[1] == told[2]


def test_a_dicom_seg_tells_the_masks_of_all_support_cases_wherever_they_are_kept(
    capfd, engine, a_library, files, tmp_path, monkeypatch
):
    volume, _ = balls()
    write_dicom_series(tmp_path / "series", volume.array, affine(volume.spacing_ijk))
    run(capfd, "support", "add", *files, "--name", "mine")
    found = NamedMask(BALLS[0], balls()[1][BALLS[0]])  # whatever the quick model makes of it
    monkeypatch.setattr(auto, "masks_of", lambda _: [found])
    how = ("--support", *files, "--case", "mine")
    done = run(capfd, "auto", tmp_path / "series", "-o", tmp_path / "a.dcm", *how)
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "a.prompts.json").read_text())["made_with"]["support"]
    assert told == [file_sha256(files[1]), file_sha256(a_library.masks_file("mine"))]


def test_a_case_that_is_not_in_the_library_is_refused_before_any_work(capfd, a_library, files, tmp_path):
    sentence = sentence_of(run(capfd, "auto", files[0], "-o", tmp_path / "out.seg.nrrd", "--case", "mine"))
    assert "no support case 'mine'" in sentence


def test_a_class_that_nobody_knows_is_refused(capfd, engine, a_library, files, tmp_path):
    done = run(capfd, "auto", files[0], "-o", tmp_path / "o.seg.nrrd", "--support", *files, "--classes", "heart")
    assert done.code == 2
    assert "Nothing here knows the class 'heart'" in done.err


def test_a_result_is_not_written_over_a_support_mask(capfd, a_library, files):
    sentence = sentence_of(run(capfd, "auto", files[0], "-o", files[1], "--support", *files))
    assert "is the support mask itself and would be lost" in sentence
