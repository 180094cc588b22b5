"""`sam2assist export`, and `segment` to a DICOM-SEG."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from command_line import GRID, SHAPE_KJI, balls, box_prompts, run, sentence_of, two_segments, write_ct, write_prompts
from ct_files import BIRTH_DATE, PATIENT_ID, PATIENT_NAME, affine, changed, ct_values, write_dicom_series
from dicom_scenes import apart, complaints
from pydicom.uid import generate_uid

from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation, write_segmentation
from SAM2AssistLib.volume import CTVolume

FORMS = {"seg": "SEG", "fractional": "SEG", "labelmap": "SEG", "rtstruct": "RTSTRUCT"}


@pytest.fixture
def place(tmp_path):
    """A folder with a DICOM series, a segmentation of it, and prompts."""
    write_dicom_series(tmp_path / "ct", balls(), GRID)
    volume = CTVolume.read(tmp_path / "ct")
    write_segmentation(tmp_path / "made.seg.nrrd", apart(SHAPE_KJI), volume)
    write_segmentation(tmp_path / "made.nii.gz", apart(SHAPE_KJI), volume)
    write_prompts(tmp_path / "prompts.json", two_segments())
    return tmp_path


def read_in(place, name):
    """Segments of a file on the grid of the series."""
    volume = CTVolume.read(place / "ct")
    return masks_on_grid_of(volume, *read_segmentation(place / name, volume))


def assert_apart(masks):
    """The segments that were exported."""
    for found, expected in zip(masks, apart(SHAPE_KJI), strict=True):
        assert found.name == expected.name
        np.testing.assert_array_equal(found.mask, expected.mask)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["made.seg.nrrd", "made.nii.gz"])
def test_a_segmentation_is_exported_in_every_form(place, capfd, form, source):
    outcome = run(capfd, "export", place / source, "--dicom", place / "ct", "-o", place / "a.dcm", "--as", form)
    assert outcome.code == 0, outcome
    assert outcome.out.strip().endswith("2 segments on 8 slices.")
    assert pydicom.dcmread(place / "a.dcm").Modality == FORMS[form]
    assert_apart(read_in(place, "a.dcm"))


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
def test_a_dicom_object_can_be_exported_again_as_another(place, capfd, form):
    other = "rtstruct" if form == "seg" else "seg"
    run(capfd, "export", place / "made.seg.nrrd", "--dicom", place / "ct", "-o", place / "a.dcm", "--as", form)
    outcome = run(capfd, "export", place / "a.dcm", "--dicom", place / "ct", "-o", place / "b.dcm", "--as", other)
    assert outcome.code == 0, outcome
    assert_apart(read_in(place, "b.dcm"))


def test_json_is_one_object_on_stdout(place, capfd):
    options = ["--dicom", place / "ct", "-o", place / "a.dcm", "--json", "--automatic"]
    outcome = run(capfd, "export", place / "made.seg.nrrd", *options)
    told = json.loads(outcome.out)
    assert told["format"] == "seg"
    assert [segment["name"] for segment in told["segments"]] == ["left kidney", "Milz (Größe?)"]
    assert pydicom.dcmread(place / "a.dcm").SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_what_lies_outside_of_the_series_is_told(place, capfd):
    volume = CTVolume.read(place / "ct")
    longer = CTVolume(np.zeros((12, *SHAPE_KJI[1:]), np.int16), volume.ijk_to_lps)
    mask = np.zeros(longer.shape_kji, bool)
    mask[6:10, 5:9, 5:9] = True
    write_segmentation(place / "long.seg.nrrd", [NamedMask("liver", mask)], longer)
    outcome = run(capfd, "export", place / "long.seg.nrrd", "--dicom", place / "ct", "-o", place / "a.dcm")
    assert outcome.code == 0
    assert "ml of 'liver' lie outside of the CT" in outcome.err


def test_prompts_of_a_result_that_is_replaced_stay_and_are_told_of(place, capfd):
    (place / "a.prompts.json").write_text("{}")
    export = ["export", place / "made.seg.nrrd", "--dicom", place / "ct", "-o"]
    assert "a.prompts.json is still that of an earlier result" in run(capfd, *export, place / "a.dcm").err
    assert (place / "a.prompts.json").read_text() == "{}"
    assert "prompts" not in run(capfd, *export, place / "b.dcm").err


# ------------------------------------------------------------------------------------------------- segment to DICOM


def test_segment_writes_a_dicom_seg_with_its_prompts_inside_and_beside(place, capfd, engine):
    arguments = ["segment", place / "ct", "--prompts"]
    outcome = run(capfd, *arguments, place / "prompts.json", "-o", place / "a.dcm")
    assert outcome.code == 0, outcome
    assert complaints(place / "a.dcm") == []
    beside = json.loads((place / "a.prompts.json").read_text())
    assert [segment["name"] for segment in beside["segments"]] == ["ball", "little ball"]
    assert beside["made_with"]["model"] == "mini"
    assert len(beside["made_with"]["model_sha256"]) == 64
    parameters = pydicom.dcmread(place / "a.dcm").SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert beside["made_with"]["model_sha256"] in parameters.AlgorithmParameters


def test_what_no_dicom_can_refer_to_is_told_before_anything_is_segmented(place, capfd, monkeypatch):
    monkeypatch.setattr("SAM2AssistLib.engine.loading.load_engine", lambda *_, **__: pytest.fail("too late"))
    image = next((place / "ct").glob("*.dcm"))
    changed(image, PatientID="somebody else")
    arguments = ["segment", place / "ct", "--prompts", place / "prompts.json"]
    assert "several patients" in sentence_of(run(capfd, *arguments, "-o", place / "a.dcm"))


def test_the_prompts_beside_a_result_make_it_again(place, capfd, engine):
    run(capfd, "segment", place / "ct", "--prompts", place / "prompts.json", "-o", place / "a.dcm")
    outcome = run(capfd, "segment", place / "ct", "--prompts", place / "a.prompts.json", "-o", place / "b.dcm")
    assert outcome.code == 0, outcome
    for first, second in zip(read_in(place, "a.dcm"), read_in(place, "b.dcm"), strict=True):
        np.testing.assert_array_equal(first.mask, second.mask)


def test_the_prompts_of_a_result_are_not_overwritten_by_it(place, capfd, engine):
    mine = write_prompts(place / "a.prompts.json", box_prompts())
    before = mine.read_bytes()
    sentence = sentence_of(run(capfd, "segment", place / "ct", "--prompts", mine, "-o", place / "a.dcm"))
    assert "would be lost" in sentence
    assert mine.read_bytes() == before


def test_a_dicom_seg_of_an_image_that_is_no_dicom_is_refused_before_any_work(place, capfd):
    image = write_ct(place / "ct.nii.gz")
    sentence = sentence_of(run(capfd, "segment", image, "--prompts", place / "prompts.json", "-o", place / "a.dcm"))
    assert "DICOM folder" in sentence
    assert not (place / "a.dcm").exists()


# ---------------------------------------------------------------------------------------------------------- refusals


def export_sentence(capfd, place, segmentation="made.seg.nrrd", output="a.dcm", dicom="ct", **others):
    """The sentence with which an export is refused; it does not name the patient, and nothing is written."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    extra = [part for name, value in others.items() for part in (f"--{name.rstrip('_')}", value)]
    sentence = sentence_of(
        run(capfd, "export", place / segmentation, "--dicom", place / dicom, "-o", place / output, *extra)
    )
    for secret in (*PATIENT_NAME.split("^"), PATIENT_ID, BIRTH_DATE):
        assert secret not in sentence
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    return sentence


@pytest.mark.parametrize("command", ["export", "segment", "auto"])
def test_a_result_never_replaces_an_image_of_the_series(place, capfd, command):
    image = sorted((place / "ct").iterdir())[2]
    before = image.read_bytes()
    wanted = image.with_suffix(".dcm")
    image.rename(wanted)
    given = {
        "export": (place / "made.seg.nrrd", "--dicom", place / "ct"),
        "segment": (place / "ct", "--prompts", place / "prompts.json"),
        "auto": (place / "ct",),
    }[command]
    assert "would be lost" in sentence_of(run(capfd, command, *given, "-o", wanted))
    assert wanted.read_bytes() == before


def test_prompts_that_somebody_has_written_are_not_replaced_by_those_of_a_result(place, capfd):
    mine = place / "case.prompts.json"
    mine.write_text((place / "prompts.json").read_text())
    given = (place / "ct", "--prompts", place / "prompts.json", "-o", place / "case.dcm", "--device", "cpu")
    assert "case.prompts.json is there" in sentence_of(run(capfd, "segment", *given))
    assert mine.read_text() == (place / "prompts.json").read_text()
    mine.unlink()
    for _ in range(2):  # those of a result are
        assert run(capfd, "segment", *given).code == 0
    assert "made_with" in json.loads(mine.read_text())


def test_another_ending_is_refused(place, capfd):
    assert ".dcm" in export_sentence(capfd, place, output="a.nrrd")


def test_a_segmentation_that_is_not_there_is_refused(place, capfd):
    assert "no segmentation" in export_sentence(capfd, place, segmentation="gone.seg.nrrd")


def test_a_series_that_is_not_there_is_refused(place, capfd):
    assert "no file or folder" in export_sentence(capfd, place, dicom="gone")


def test_an_image_that_is_no_dicom_is_refused(place, capfd):
    write_ct(place / "ct.nii.gz")
    assert "DICOM" in export_sentence(capfd, place, dicom="ct.nii.gz")


def test_the_segmentation_is_not_written_over(place, capfd):
    run(capfd, "export", place / "made.seg.nrrd", "--dicom", place / "ct", "-o", place / "a.dcm")
    assert "would be lost" in export_sentence(capfd, place, segmentation="a.dcm")


def test_no_image_of_another_series_in_the_folder_is_written_over(place, capfd):
    scout = place / "ct" / "scout.dcm"
    header = pydicom.dcmread(next((place / "ct").glob("*.dcm")))
    header.SeriesInstanceUID, header.SOPInstanceUID = generate_uid(), generate_uid()
    header.save_as(scout)
    before = scout.read_bytes()
    options = ["--dicom", place / "ct", "--series", "1", "-o", scout]
    outcome = run(capfd, "export", place / "made.seg.nrrd", *options)
    assert "scout.dcm is a DICOM image and would be lost" in outcome.err
    assert scout.read_bytes() == before


def test_overlaps_in_a_label_map_are_refused(place, capfd):
    masks = [NamedMask("a", apart(SHAPE_KJI)[0].mask), NamedMask("b", apart(SHAPE_KJI)[0].mask)]
    write_segmentation(place / "over.seg.nrrd", masks, CTVolume.read(place / "ct"))
    assert "overlaps" in export_sentence(capfd, place, segmentation="over.seg.nrrd", as_="labelmap")


def test_a_segmentation_of_another_place_in_the_patient_is_refused(place, capfd):
    far = CTVolume(ct_values(SHAPE_KJI), affine(origin_lps=(4000, 0, 0)))
    write_segmentation(place / "far.seg.nrrd", apart(SHAPE_KJI), far)
    assert "no voxel within" in export_sentence(capfd, place, segmentation="far.seg.nrrd")
