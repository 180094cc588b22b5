"""What is measured: cases of a data folder, by part, by name, with their structures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import GRID, balls
from ct_files import write_image
from evaluation_data import ball_labels, write_data

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.cases import check_structures, find_cases
from SAM2AssistLib.evaluation.seen import learned_from

REAL = Path(__file__).parents[3] / "shared" / "data"


def test_a_case_is_read_with_its_structures_by_label_value(tmp_path):
    (case,) = find_cases(write_data(tmp_path, ("one",)))
    held = case.read()
    assert held.structures() == ["ball", "little ball"]
    assert held.structures(least_voxels=600) == ["ball"]
    assert held.structures(("little ball", "ghost")) == ["little ball"]
    assert held.spacing_kji == pytest.approx((4.0, 1.5, 1.5))
    assert np.array_equal(held.reference("little ball"), ball_labels() == 5)
    assert not held.reference("ghost").any()


def test_splits_json_names_the_cases_of_a_part_and_their_order(tmp_path):
    data = write_data(tmp_path, ("one", "two", "three"))
    (data / "splits.json").write_text(json.dumps({"test": ["two", "one"], "train": ["three", "not here"]}))
    assert [case.name for case in find_cases(data, "test")] == ["two", "one"]
    assert [case.name for case in find_cases(data, "train")] == ["three"]
    assert len(find_cases(data)) == 3
    assert [case.name for case in find_cases(data, only=("three", "three"))] == ["three"]


def test_cases_of_a_part_that_have_no_reference_are_told(tmp_path):
    data = write_data(tmp_path, ("one", "two"))
    (data / "splits.json").write_text(json.dumps({"test": ["one", "tow", "two"], "train": ["two"]}))
    notes = []
    assert [case.name for case in find_cases(data, "test", notes=notes)] == ["one", "two"]
    (note,) = notes
    assert note.startswith("1 of the 3 cases of the part 'test' have no image with a reference in")
    assert note.endswith("and are left out: tow.")
    assert find_cases(data, "train", notes=notes)
    assert notes == [note]


def test_without_a_splits_json_the_publishers_split_counts(tmp_path):
    for number in ("0001", "0005"):  # the first is in Synapse's test part
        for folder, name in (("img", f"img{number}"), ("label", f"label{number}")):
            (tmp_path / folder).mkdir(exist_ok=True)
            values = balls() if folder == "img" else ball_labels()
            write_image(tmp_path / folder / f"{name}.nii.gz", values, GRID)
    assert [case.name for case in find_cases(tmp_path, "test")] == ["0001"]
    assert [case.name for case in find_cases(tmp_path, "train")] == ["0005"]
    with pytest.raises(InputError, match=r"no splits\.json; leave --part out"):
        find_cases(tmp_path, "odd")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ('["one"]', "has no part 'test' with a list of cases; it has none"),
        ('{"test": "one"}', "has no part 'test' with a list of cases"),
        ('{"test": ["ghost"]}', "names no case with a reference"),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(tmp_path, content, words):
    data = write_data(tmp_path)
    (data / "splits.json").write_text(content)
    with pytest.raises(InputError, match=words):
        find_cases(data, "test")


def test_a_structure_that_no_case_names_is_refused(tmp_path):
    cases = find_cases(write_data(tmp_path))
    check_structures(cases, ("ball",))
    with pytest.raises(InputError, match="No case has a structure 'spleen'; there are ball, little ball"):
        check_structures(cases, ("ball", "spleen"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CTs (../shared/data) are not here")
def test_the_test_part_of_the_real_cts_is_six_sarcomas_and_an_abdomen():
    cases = {case.name: case for case in find_cases(REAL, "test")}
    assert sum(name.startswith("ct_sarcoma/") for name in cases) == 6
    assert "ct_upper_abdomen_20slices" in cases
    structures = cases["ct_upper_abdomen_20slices"].read().structures(least_voxels=500)
    assert {"liver", "spleen", "aorta"} <= set(structures)
    assert 15 < len(structures) <= 29


def test_cases_that_an_adapter_or_its_base_was_trained_on_are_found_by_name(tmp_path):
    cases = find_cases(write_data(tmp_path / "data", ("one", "two", "sts_001", "sts_005")))
    assert learned_from(cases, "mini", None) == ["sts_001"]
    (tmp_path / "card.json").write_text(json.dumps({"data": {"cases": {"train": ["one"], "val": ["two"], "test": []}}}))
    assert learned_from(cases, "mini", tmp_path) == ["one", "sts_001"]


def test_cases_of_a_folder_are_found_whether_it_was_trained_on_by_itself_or_within_another(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"data": {"cases": {"train": ["tumours/one", "two", "e"]}}}))
    cases = find_cases(write_data(tmp_path / "data", ("one", "two")))
    assert learned_from(cases, "sam2.1-tiny", tmp_path) == ["one", "two"]
    elsewhere = [SimpleNamespace(name=name) for name in ("tumours/one", "healthy/one", "healthy/two")]
    assert learned_from(elsewhere, "sam2.1-tiny", tmp_path) == ["tumours/one", "healthy/two"]


@pytest.mark.parametrize("card", ["{", "[]", '{"data": []}', '{"data": {"cases": {"train": "one"}}}', None])
def test_a_card_that_tells_nothing_of_cases_names_none(tmp_path, card):
    cases = find_cases(write_data(tmp_path / "data", ("one",)))
    if card is not None:
        (tmp_path / "card.json").write_text(card)
    assert learned_from(cases, "sam2.1-tiny", tmp_path) == []
