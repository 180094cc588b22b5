"""`sam2assist auto DIR -o OUT.dcm`: a result that nobody prompted says so, and by what it was made."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from auto_scenes import BALLS, KNOWN, a_learned_head, balls
from command_line import run, sentence_of, write_ct
from ct_files import affine, write_dicom_series
from dicom_scenes import complaints

from SAM2AssistLib.cli.results import prompts_of
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.segment import PlacedPrompt
from SAM2AssistLib.io.algorithm import adapter_sha256
from SAM2AssistLib.io.dicom_seg_reader import read_dicom_seg
from SAM2AssistLib.io.segmentation import masks_on_grid_of
from SAM2AssistLib.prompts import BoxPrompt
from SAM2AssistLib.training.self_prompt_training import HeadSettings, write_adapter
from SAM2AssistLib.volume import CTVolume


@pytest.fixture(scope="module")
def an_adapter(tmp_path_factory, quick_engine):
    """An adapter that knows two balls."""
    folder = tmp_path_factory.mktemp("adapter") / "two-balls"
    settings = HeadSettings(KNOWN, BALLS, dict.fromkeys(BALLS, 0.5))
    write_adapter(find_model("mini"), a_learned_head(quick_engine()), settings, folder, {})
    return folder


@pytest.fixture
def place(tmp_path):
    """A series with the two balls."""
    volume, _ = balls()
    write_dicom_series(tmp_path / "ct", volume.array, affine(volume.spacing_ijk))
    return tmp_path


@pytest.fixture
def a_result(place, an_adapter, capfd, engine):
    """What came out, and where it is."""
    arguments = ["--adapter", an_adapter, "-o", place / "a.dcm", "--corrections", "1", "--json"]
    outcome = run(capfd, "auto", place / "ct", *arguments)
    assert outcome.code == 0, outcome
    return json.loads(outcome.out), place / "a.dcm"


def test_every_segment_is_automatic_and_names_model_and_adapter(a_result, an_adapter):
    told, path = a_result
    segments = pydicom.dcmread(path).SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == [row["name"] for row in told["segments"]] != []
    for segment in segments:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        parameters = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
        assert "model=mini,model_sha256=" in parameters
        assert f"adapter=two-balls,adapter_sha256={adapter_sha256(an_adapter)}" in parameters


def test_the_voxels_are_those_that_were_found(a_result):
    told, path = a_result
    seg = read_dicom_seg(path)
    volume = CTVolume.read(path.parent / "ct")
    found = masks_on_grid_of(volume, seg.masks, seg.ijk_to_lps)
    assert [int(named.mask.sum()) for named in found] == [row["voxels"] for row in told["segments"]]
    assert all(np.any(named.mask) for named in found)


def test_what_it_takes_to_make_it_again_is_kept_with_the_prompts(a_result):
    told, path = a_result
    beside = json.loads(path.with_name("a.prompts.json").read_text())
    assert json.loads(read_dicom_seg(path).prompts_json) == beside
    how = beside["made_with"]
    assert (how["command"], how["classes"], how["corrections"], how["support"]) == ("auto", list(BALLS), 1, [])
    assert [segment["name"] for segment in beside["segments"]] == [row["name"] for row in told["segments"]]
    assert all(segment["points"] or segment["boxes"] for segment in beside["segments"])


def test_the_prompts_that_it_chose_can_be_given_to_segment(a_result, capfd):
    _, path = a_result
    kept = path.with_name("a.prompts.json")
    outcome = run(capfd, "segment", path.parent / "ct", "--prompts", kept, "-o", path.parent / "b.dcm")
    assert outcome.code == 0, outcome


def test_each_prompt_is_kept_on_the_slice_on_which_it_was_given(a_quick_session):
    segment = a_quick_session.add_segment("ball")
    ball = {"points": np.array([[20.0, 31.0]]), "labels": np.array([1])}
    box = {"points": np.array([[10.0, 12.0], [30.0, 40.0]]), "labels": np.array([2, 3])}
    given = [PlacedPrompt(n, 3, **what, reach=(1, 8)) for n, what in enumerate((ball, box))]
    a_quick_session.place_template(segment, 0, given)
    a_quick_session.place_box(segment, BoxPrompt((12, 10, 2), (40, 30, 7), None))
    (kept,) = prompts_of(a_quick_session)
    assert [point.index_ijk for point in kept.points] == [(31, 20, 3)]
    flat, deep = kept.boxes
    assert (flat.axis, flat.min_ijk[2], flat.max_ijk[2]) == (0, 3, 3)
    assert (deep.axis, deep.min_ijk[2], deep.max_ijk[2]) == (None, 2, 7)


def test_dciodvfy_finds_no_error(a_result):
    assert complaints(a_result[1]) == []


def test_an_image_that_is_no_dicom_is_refused_before_any_work(tmp_path, capfd, an_adapter):
    image = write_ct(tmp_path / "ct.nii.gz")
    sentence = sentence_of(run(capfd, "auto", image, "--adapter", an_adapter, "-o", tmp_path / "a.dcm"))
    assert "DICOM folder" in sentence
