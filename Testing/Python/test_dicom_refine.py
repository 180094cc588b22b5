"""`sam2assist segment --refine`: a finished DICOM-SEG or RTSTRUCT is opened, and prompts correct it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pydicom
import pytest
from command_line import GRID, SHAPE_KJI, balls, box_prompts, run, sentence_of, write_prompts
from ct_files import affine, changed, write_dicom_series
from dicom_scenes import box_mask
from pydicom.uid import generate_uid

from SAM2AssistLib.cli.refine import read_refined
from SAM2AssistLib.io.dicom_seg import write_dicom_seg
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.rtstruct import write_rtstruct
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation, write_segmentation
from SAM2AssistLib.volume import CTVolume

FINISHED = [
    NamedMask("liver", box_mask(SHAPE_KJI, (1, 30, 30), (7, 50, 50))),
    NamedMask("spleen", box_mask(SHAPE_KJI, (2, 5, 40), (6, 20, 60))),
]


@pytest.fixture
def place(tmp_path):
    """A series, with a finished segmentation of it in every form, and a click that corrects the liver."""
    write_dicom_series(tmp_path / "ct", balls(), GRID)
    volume = CTVolume.read(tmp_path / "ct")
    write_dicom_seg(tmp_path / "old.dcm", FINISHED, volume)
    write_rtstruct(tmp_path / "contours.dcm", FINISHED, volume)
    write_segmentation(tmp_path / "old.seg.nrrd", FINISHED, volume)
    click = {"position": [35, 35, 4], "positive": False}
    write_prompts(tmp_path / "click.json", {"frame": "IJK", "segments": [{"name": "liver", "points": [click]}]})
    return tmp_path


def refined(capfd, place, old, output="new.dcm", prompts="click.json"):
    """Refine a segmentation and give the masks of the result by name."""
    arguments = ["--refine", place / old, "--prompts", place / prompts, "-o", place / output]
    outcome = run(capfd, "segment", place / "ct", *arguments)
    assert outcome.code == 0, outcome
    volume = CTVolume.read(place / "ct")
    return {named.name: named for named in masks_on_grid_of(volume, *read_segmentation(place / output, volume))}


@pytest.mark.parametrize("old", ["old.dcm", "contours.dcm", "old.seg.nrrd"])
def test_what_is_prompted_changes_and_the_rest_stays_voxel_for_voxel(place, capfd, engine, old):
    liver, spleen = refined(capfd, place, old).values()
    np.testing.assert_array_equal(spleen.mask, FINISHED[1].mask)
    assert (liver.mask[4] != FINISHED[0].mask[4]).any()
    anchored = [1, 7 - 1]  # the ends of the segment
    np.testing.assert_array_equal(liver.mask[anchored], FINISHED[0].mask[anchored])


def test_codes_color_and_tracking_identifier_go_on(place, capfd, engine):
    found = refined(capfd, place, "old.dcm")
    before = {named.name: named for named in read_segmentation(place / "old.dcm")[0]}
    for name, named in found.items():
        assert named.tracking_uid == before[name].tracking_uid != ""
        assert named.coded.type == before[name].coded.type


def test_the_result_tells_what_it_was_refined_from(place, capfd, engine):
    refined(capfd, place, "old.dcm")
    told = json.loads((place / "new.prompts.json").read_text())
    assert told["made_with"]["refined_sha256"] == hashlib.sha256((place / "old.dcm").read_bytes()).hexdigest()
    assert pydicom.dcmread(place / "new.dcm").SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_a_segment_of_another_name_is_added(place, capfd, engine):
    write_prompts(place / "more.json", box_prompts("ball"))
    found = refined(capfd, place, "old.dcm", prompts="more.json")
    assert list(found) == ["liver", "spleen", "ball"]
    np.testing.assert_array_equal(found["liver"].mask, FINISHED[0].mask)


def test_segments_of_one_name_are_told_apart(place, capfd, engine):
    twins = [NamedMask("lesion", named.mask) for named in FINISHED]
    write_dicom_seg(place / "twins.dcm", twins, CTVolume.read(place / "ct"))
    write_prompts(place / "second.json", box_prompts("lesion (2)"))
    first, second = refined(capfd, place, "twins.dcm", prompts="second.json").values()
    assert (first.name, second.name) == ("lesion", "lesion (2)")
    np.testing.assert_array_equal(first.mask, FINISHED[0].mask)


def test_a_number_that_tells_two_names_apart_is_not_one_that_another_name_ends_in(place):
    volume = CTVolume.read(place / "ct")
    names = ["lesion", "lesion", "lesion (2)", "lesion"]
    write_dicom_seg(place / "twins.dcm", [NamedMask(name, FINISHED[0].mask) for name in names], volume)
    found, _ = read_refined(place / "twins.dcm", volume)
    assert [named.name for named in found] == ["lesion", "lesion (3)", "lesion (2)", "lesion (4)"]


def refusal(capfd, place, old, output="new.dcm"):
    """The sentence with which it is refused, after making sure that nothing has changed."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    arguments = ["--refine", place / old, "--prompts", place / "click.json", "-o", place / output]
    sentence = sentence_of(run(capfd, "segment", place / "ct", *arguments))
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    return sentence


def test_one_that_is_not_there_is_refused(place, capfd):
    assert "--refine" in refusal(capfd, place, "none.dcm")


def test_one_of_another_scan_is_refused(place, capfd):
    changed(place / "old.dcm", FrameOfReferenceUID=generate_uid())
    assert "another scan" in refusal(capfd, place, "old.dcm")
    write_dicom_series(place / "other", balls(), GRID)
    write_rtstruct(place / "contours.dcm", FINISHED, CTVolume.read(place / "other"))
    assert "another scan" in refusal(capfd, place, "contours.dcm")


def test_one_that_lies_elsewhere_is_refused(place, capfd):
    far = CTVolume(np.zeros(SHAPE_KJI, np.int16), affine((1.5, 1.5, 4.0), origin_lps=(5000.0, 0.0, 0.0)))
    write_segmentation(place / "far.seg.nrrd", FINISHED, far)
    assert "no voxel within" in refusal(capfd, place, "far.seg.nrrd")


def test_what_lies_outside_of_the_ct_and_what_is_empty_is_told(place, capfd):
    volume = CTVolume.read(place / "ct")
    longer = CTVolume(np.zeros((2 * SHAPE_KJI[0], *SHAPE_KJI[1:]), np.int16), volume.ijk_to_lps)
    mask = np.zeros(longer.shape_kji, bool)
    mask[2:, 20:30, 20:30] = True
    segments = [NamedMask("long", mask), NamedMask("none", np.zeros_like(mask))]
    write_segmentation(place / "long.seg.nrrd", segments, longer)
    told = read_refined(place / "long.seg.nrrd", volume)[1]
    assert len(told) == 2
    assert "ml of 'long' lie outside of the CT" in told[0]
    assert told[1] == "'none' is empty and left out."


def test_what_is_lost_between_larger_voxels_is_not_said_to_lie_outside(place):
    volume = CTVolume.read(place / "ct")
    finer = volume.ijk_to_lps @ np.diag([0.25, 0.25, 1.0, 1.0])
    mask = np.zeros((SHAPE_KJI[0], 4 * SHAPE_KJI[1], 4 * SHAPE_KJI[2]), bool)
    mask[:, 40:120, 41:43] = True
    mask[0, 0:8, 0:8] = True
    write_segmentation(
        place / "fine.seg.nrrd", [NamedMask("vessel", mask)], CTVolume(np.zeros(mask.shape, np.int16), finer)
    )
    (told,) = read_refined(place / "fine.seg.nrrd", volume)[1]
    assert "of 'vessel' are lost between the voxels of the CT" in told


def test_it_is_not_written_over(place, capfd):
    assert "would be lost" in refusal(capfd, place, "old.dcm", output="old.dcm")
