"""Results of other programs in files, as ``sam2assist evaluate --predictions`` scores them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import GRID
from ct_files import write_image
from evaluation_data import NAMES, ball_labels, write_data

pytest.importorskip("monai", reason="measuring needs MONAI")

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.automatic import OrganPlan, OrganScore, measure_organs
from SAM2AssistLib.evaluation.cases import find_cases
from SAM2AssistLib.evaluation.sources import FromFiles
from SAM2AssistLib.evaluation.store import CaseResults, Store
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import write_segmentation

SETTINGS = {"protocol": "auto"}


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.mark.parametrize("place", ["labels.json", "one.labels.json", "one.nii.gz.labels.json"])
def test_predictions_whose_names_were_corrected_are_not_taken_for_those_that_were_measured(data, tmp_path, place):
    predictions = tmp_path / "results"
    predictions.mkdir()
    write_image(predictions / "one.nii.gz", ball_labels(), GRID)
    names = predictions / place
    names.write_text(json.dumps({"Ball": 2, "little ball": 5}))
    plan = OrganPlan(FromFiles(predictions), ("ball", "little ball"))

    def measured(out):
        store = Store(tmp_path / out, SETTINGS, OrganScore)
        list(measure_organs(find_cases(data, only=["one"]), plan, store))
        return [score.dsc for score in store.load("one").records]

    assert measured("out") == [0.0, 1.0]
    names.write_text(json.dumps(NAMES))
    with pytest.raises(InputError, match=f"results of one with another results/{place}"):
        measured("out")
    assert measured("again") == [1.0, 1.0]


def test_a_structure_that_a_result_holds_in_several_segments_is_scored_as_a_whole(data, tmp_path):
    (case, _) = (found.read() for found in find_cases(data))
    ball = case.reference("ball")
    lower = ball & (np.arange(len(ball))[:, None, None] < np.flatnonzero(ball.any(axis=(1, 2))).mean())
    segments = [NamedMask("ball", part) for part in (lower, ball & ~lower)]
    write_segmentation(tmp_path / "one.seg.nrrd", segments, case.volume)
    masks = FromFiles(tmp_path).segment(case, ("ball",), 0)
    np.testing.assert_array_equal(masks["ball"], ball)


def test_a_label_map_and_a_result_of_the_same_folder_name_are_both_held_to(data, tmp_path):
    predictions = tmp_path / "labels"
    predictions.mkdir()
    (case,) = find_cases(data, only=["one"])
    for path in (case.paths[1], predictions / "one.nii.gz"):
        write_image(path, ball_labels(), GRID)
    store = Store(tmp_path / "out", SETTINGS, OrganScore)
    files = (*case.paths, predictions / "one.nii.gz")
    store.hold_to("one", files, {})
    store.save("one", CaseResults(("ball",), ("ball",), ()))
    write_image(case.paths[1], ball_labels() * 0, GRID)
    with pytest.raises(InputError, match=r"another labels/one\.nii\.gz"):
        store.hold_to("one", files, {})


def test_a_case_that_was_refused_is_measured_once_it_is_put_right(data, tmp_path):
    labels = tmp_path / "data" / "labels.json"
    plan = OrganPlan(FromFiles(data / "labels"), ("ball",))
    store = Store(tmp_path / "out", SETTINGS, OrganScore)
    labels.write_text(json.dumps({"ball": 2}))
    with pytest.raises(InputError, match="the value 5, which is the label of no structure"):
        list(measure_organs(find_cases(data, only=["one"]), plan, store))
    labels.write_text(json.dumps(NAMES))
    list(measure_organs(find_cases(data, only=["one"]), plan, store))
    assert [score.dsc for score in store.load("one").records] == [1.0]


@pytest.mark.parametrize(
    ("names", "told"), [(None, "label_2, label_5"), ({"Ball": 2, "Little ball": 5}, "Ball, Little ball")]
)
def test_a_label_map_that_names_nothing_of_the_data_is_refused_and_not_scored_as_missed(data, tmp_path, names, told):
    (case, _) = (found.read() for found in find_cases(data))
    write_image(tmp_path / "one.nii.gz", ball_labels(), GRID)
    if names:
        (tmp_path / "labels.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=f"holds {told}, but the data name ball, little ball; write what"):
        FromFiles(tmp_path).segment(case, tuple(NAMES), 0)


def test_a_result_that_found_nothing_is_scored_whether_it_has_names_or_not(data, tmp_path):
    (case, _) = (found.read() for found in find_cases(data))
    write_image(tmp_path / "one.nii.gz", ball_labels() * 0, GRID)
    assert FromFiles(tmp_path).segment(case, tuple(NAMES), 0) == {}


def test_a_result_whose_own_names_are_of_other_structures_has_missed_those_of_the_data(data, tmp_path):
    (case, _) = (found.read() for found in find_cases(data))
    write_image(tmp_path / "one.nii.gz", ball_labels(), GRID)
    (tmp_path / "one.labels.json").write_text('{"lung": 2, "heart": 5}')
    assert set(FromFiles(tmp_path).segment(case, tuple(NAMES), 0)) == {"lung", "heart"}


def test_a_result_that_lost_the_place_of_its_image_is_refused_and_one_with_turned_axes_is_not(data, tmp_path):
    (case, _) = (found.read() for found in find_cases(data))
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    write_image(tmp_path / "one.nii.gz", ball_labels(), np.diag([1.5, 1.5, 4.0, 1.0]))
    with pytest.raises(InputError, match=r"as many voxels as its image .* but lies \d+ mm off"):
        FromFiles(tmp_path).segment(case, tuple(NAMES), 0)
    turned = GRID @ np.array([[-1, 0, 0, 63], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_image(tmp_path / "one.nii.gz", ball_labels()[:, :, ::-1], turned)
    masks = FromFiles(tmp_path).segment(case, tuple(NAMES), 0)
    np.testing.assert_array_equal(masks["ball"], case.reference("ball"))


def test_blanks_around_a_name_do_not_make_another_structure_of_it(data, tmp_path):
    (data / "labels.json").write_text(json.dumps({"ball ": 2, "little ball": 5}))
    (case, _) = (found.read() for found in find_cases(data))
    masks = FromFiles(data / "labels").segment(case, tuple(case.names), 0)
    assert set(masks) == set(case.names)
