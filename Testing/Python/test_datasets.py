"""Labelled data sets in the layouts in which they are published, each on a miniature of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import ct_values

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training.datasets.case import Case, DataSet, read_labelled
from SAM2AssistLib.training.datasets.layouts import find_data
from SAM2AssistLib.training.datasets.split import split_of

SHAPE_KJI = (4, 12, 14)


def write(path: Path, array: np.ndarray, spacing=(2.0, 2.0, 5.0), origin=(0.0, 0.0, 0.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))
    return path


def a_ct(path: Path) -> Path:
    return write(path, ct_values(SHAPE_KJI, seed=1))


def labels_with(*values: int) -> np.ndarray:
    labels = np.zeros(SHAPE_KJI, np.uint8)
    for place, value in enumerate(values):
        labels[1:3, 2 + 3 * place : 4 + 3 * place, 3:9] = value
    return labels


def a_plain_folder(root: Path, names=("a", "b", "c", "d"), label_json='{"liver": 5, "spleen": 2}') -> Path:
    for name in names:
        a_ct(root / "images" / f"{name}.nii.gz")
        write(root / "labels" / f"{name}.nii.gz", labels_with(5, 2))
    (root / "labels.json").write_text(label_json)
    return root


def mask_of(data: DataSet, case: str, structure: str) -> np.ndarray:
    return read_labelled(data.case(case), data.names).labels == data.names[structure]


def test_the_plain_folder_is_read_with_its_own_label_values(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    assert (data.layout, data.names) == ("plain folder", {"spleen": 2, "liver": 5})
    read = read_labelled(data.case("b"), data.names)
    assert np.array_equal(read.labels, labels_with(5, 2))
    assert read.volume.array.shape == SHAPE_KJI
    assert read.spacing_kji == pytest.approx((5.0, 2.0, 2.0))
    assert read.pixels()[1, [0, 2, 5]].tolist() == [12 * 14 - 24, 12, 12]


def test_case_folders_may_give_one_structure_different_values(tmp_path):
    for name, value in (("x/one", 1), ("two", 7)):
        a_ct(tmp_path / name / "image.nii.gz")
        write(tmp_path / name / "label.nii.gz", labels_with(value))
        (tmp_path / name / "labels.json").write_text(json.dumps({"tumor": value, "other": 9 - value}))
    data = find_data(tmp_path)
    assert data.layout == "case folders"
    assert [case.name for case in data.cases] == ["two", "x/one"]
    for case in data.cases:
        assert np.array_equal(mask_of(data, case.name, "tumor"), labels_with(1) == 1)


def test_a_file_of_another_layout_that_cannot_be_read_keeps_no_folder_from_being_read(tmp_path):
    a_ct(tmp_path / "one" / "image.nii.gz")
    write(tmp_path / "one" / "label.nii.gz", labels_with(5))
    (tmp_path / "one" / "labels.json").write_text('{"liver": 5}')
    (tmp_path / "dataset.json").write_text("not JSON")
    assert find_data(tmp_path).layout == "case folders"


def test_case_folders_may_be_links_to_where_the_data_lie(tmp_path):
    stored, root = tmp_path / "store" / "one", tmp_path / "data"
    a_ct(stored / "image.nii.gz")
    write(stored / "label.nii.gz", labels_with(1))
    (stored / "labels.json").write_text('{"tumor": 1}')
    (root / "x").mkdir(parents=True)
    for link in (root / "two", root / "x" / "three"):
        try:
            link.symlink_to(stored, target_is_directory=True)
        except OSError:
            pytest.skip("links cannot be made here")
    assert [case.name for case in find_data(root).cases] == ["two", "x/three"]


@pytest.mark.parametrize("top", [".", "Training", "RawData/Training"])
def test_synapse_is_found_with_transunets_split(tmp_path, top):
    for number in (1, 5, 38, 40):
        a_ct(tmp_path / top / "img" / f"img{number:04}.nii.gz")
        write(tmp_path / top / "label" / f"label{number:04}.nii.gz", labels_with(6, 11))
    data = find_data(tmp_path)
    assert data.layout == "Synapse/BTCV"
    assert len(data.names) == 13
    assert mask_of(data, "0005", "liver").sum() == mask_of(data, "0005", "pancreas").sum() == 24
    split = split_of(data)
    assert (split.train, split.test) == (("0005", "0040"), ("0001", "0038"))


def test_flare22_is_found_and_its_liver_is_label_1(tmp_path):
    a_ct(tmp_path / "images" / "FLARE22_Tr_0001_0000.nii.gz")
    write(tmp_path / "labels" / "FLARE22_Tr_0001.nii.gz", labels_with(1, 13))
    data = find_data(tmp_path)
    assert data.layout == "FLARE22"
    assert mask_of(data, "FLARE22_Tr_0001", "liver").any()
    assert mask_of(data, "FLARE22_Tr_0001", "kidney_left").any()


def test_amos_gives_its_ct_with_its_split_and_leaves_mr_out(tmp_path):
    for part, number in (("Tr", 1), ("Tr", 507), ("Va", 8)):
        a_ct(tmp_path / f"images{part}" / f"amos_{number:04}.nii.gz")
        write(tmp_path / f"labels{part}" / f"amos_{number:04}.nii.gz", labels_with(10, 15))
    (tmp_path / "dataset.json").write_text("{}")
    data = find_data(tmp_path)
    assert data.layout == "AMOS"
    assert [case.name for case in data.cases] == ["amos_0001", "amos_0008"]
    assert mask_of(data, "amos_0008", "pancreas").any()
    split = split_of(data)
    assert (split.train, split.val, split.test) == (("amos_0001",), ("amos_0008",), ())


def an_msd_task(root: Path, modality="CT") -> Path:
    a_ct(root / "imagesTr" / "liver_0.nii.gz")
    write(root / "labelsTr" / "liver_0.nii.gz", labels_with(1, 2))
    (root / "imagesTr" / "._liver_0.nii.gz").write_bytes(b"left by macOS")
    content = {
        "modality": {"0": modality},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [{"image": "./imagesTr/liver_0.nii.gz", "label": "./labelsTr/liver_0.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_a_decathlon_task_is_read_by_its_own_description(tmp_path):
    data = find_data(an_msd_task(tmp_path))
    assert (data.layout, data.names) == ("MSD", {"liver": 1, "cancer": 2})
    assert mask_of(data, "liver_0", "cancer").sum() == 24


def test_a_decathlon_task_of_mr_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.json describes .*MRI.* instead of CT"):
        find_data(an_msd_task(tmp_path, "MRI"))


def test_a_decathlon_file_that_is_listed_and_missing_is_named(tmp_path):
    (an_msd_task(tmp_path) / "labelsTr" / "liver_0.nii.gz").unlink()
    with pytest.raises(InputError, match=r"lists liver_0\.nii\.gz, which is not there"):
        find_data(tmp_path)


def an_nnunet_data_set(root: Path, channels=("CT",), labels=("liver", "liver tumour"), **more) -> Path:
    for part, name in (("Tr", "case_1"), ("Tr", "case_2"), ("Ts", "case_3")):
        a_ct(root / f"images{part}" / f"{name}_0000.nii.gz")
        write(root / f"labels{part}" / f"{name}.nii.gz", labels_with(1, 2))
    a_ct(root / "imagesTs" / "without_reference_0000.nii.gz")
    named = {"background": 0, **{name: value for value, name in enumerate(labels, 1)}, **more}
    content = {"channel_names": dict(enumerate(channels)), "labels": named, "numTraining": 2, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_a_data_set_of_nnunet_is_read_and_its_test_cases_stay_out_of_training(tmp_path):
    data = find_data(an_nnunet_data_set(tmp_path))
    assert (data.layout, data.names) == ("nnU-Net", {"liver": 1, "liver_tumour": 2})
    assert mask_of(data, "case_2", "liver_tumour").sum() == 24
    split = split_of(data)
    assert (set(split.train), split.val, split.test) == ({"case_1", "case_2"}, (), ("case_3",))


def test_in_a_data_set_of_nnunet_labels_mean_what_it_says_also_where_its_cases_come_from_flare22(tmp_path):
    for path in an_nnunet_data_set(tmp_path).glob("*/case_*"):
        path.rename(path.with_name(path.name.replace("case_", "FLARE22_Tr_000")))
    data = find_data(tmp_path)
    assert (data.layout, data.names) == ("nnU-Net", {"liver": 1, "liver_tumour": 2})


def test_a_data_set_of_nnunet_without_references_for_its_tests_is_split_by_names(tmp_path):
    shutil.rmtree(an_nnunet_data_set(tmp_path) / "labelsTs")
    assert [case.name for case in find_data(tmp_path).cases] == ["case_1", "case_2"]
    assert split_of(find_data(tmp_path)).source == "a hash of the names"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": ("T1", "T2")}, "images of T1 and T2 instead of CT"),
        ({"ignore": 3}, "a label says 'ignore'"),
        ({"whole": [1, 2]}, "must give each structure one number"),
    ],
)
def test_a_data_set_of_nnunet_that_cannot_be_learned_from_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        find_data(an_nnunet_data_set(tmp_path, **changes))


def test_a_data_set_of_nnunet_without_any_labels_is_refused(tmp_path):
    shutil.rmtree(an_nnunet_data_set(tmp_path) / "labelsTr")
    shutil.rmtree(tmp_path / "labelsTs")
    with pytest.raises(InputError, match="add labels"):
        find_data(tmp_path)


def test_an_image_of_nnunet_that_is_missing_is_named(tmp_path):
    (an_nnunet_data_set(tmp_path) / "imagesTr" / "case_1_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case_1_0000\.nii\.gz is missing"):
        find_data(tmp_path)


META = "image_id;age;split\ns0001;50;train\ns0002;;val\ns0003;61;test\ns0004;61;test\n"


def totalsegmentator(root: Path, meta: bytes = META.encode()) -> Path:
    for name in ("s0001", "s0002", "s0003"):
        a_ct(root / name / "ct.nii.gz")
        for structure, value in (("liver", 5), ("spleen", 2)):
            mask = (labels_with(5, 2) == value).astype(np.uint8)
            write(root / name / "segmentations" / f"{structure}.nii.gz", mask)
    (root / "meta.csv").write_bytes(meta)
    return root


def test_totalsegmentator_merges_its_masks_and_takes_its_split(tmp_path):
    data = find_data(totalsegmentator(tmp_path))
    assert (data.layout, data.names) == ("TotalSegmentator", {"liver": 1, "spleen": 2})
    assert np.array_equal(mask_of(data, "s0002", "spleen"), labels_with(5, 2) == 2)
    split = split_of(data)
    assert (split.train, split.val, split.test) == (("s0001",), ("s0002",), ("s0003",))


@pytest.mark.parametrize("meta", [META.replace(";", ","), META.replace("50", "Köln")], ids=["commas", "latin-1"])
def test_the_test_set_of_totalsegmentator_stays_out_of_training_as_spreadsheets_save_its_table_too(tmp_path, meta):
    split = split_of(find_data(totalsegmentator(tmp_path, meta.encode("latin-1"))))
    assert (split.train, split.val, split.test) == (("s0001",), ("s0002",), ("s0003",))


def test_a_table_of_totalsegmentator_that_says_nothing_of_its_cases_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"meta\.csv has no column image_id"):
        find_data(totalsegmentator(tmp_path, META.encode("utf-16")))


def test_a_mask_with_several_values_per_voxel_is_refused_by_file(tmp_path):
    data = find_data(totalsegmentator(tmp_path))
    path = tmp_path / "s0001" / "segmentations" / "liver.nii.gz"
    sitk.WriteImage(sitk.Compose([sitk.ReadImage(str(path))] * 3), str(path))
    with pytest.raises(InputError, match=r"liver\.nii\.gz has several values per voxel"):
        read_labelled(data.case("s0001"), data.names)


def test_a_data_folder_that_is_one_case_is_called_as_the_folder(tmp_path):
    folder = tmp_path / "sts_001"
    a_ct(folder / "image.nii.gz")
    write(folder / "label.nii.gz", labels_with(5, 2))
    (folder / "labels.json").write_text('{"liver": 5, "spleen": 2}')
    assert [case.name for case in find_data(folder).cases] == ["sts_001"]


def test_a_folder_of_no_known_layout_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(InputError, match="no layout that is known; make it"):
        find_data(tmp_path)
    with pytest.raises(InputError, match="There is no data folder"):
        find_data(tmp_path / "nowhere")


def test_an_image_without_labels_is_named(tmp_path):
    (a_plain_folder(tmp_path) / "labels" / "b.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b\.nii\.gz has no labels"):
        find_data(tmp_path)


def test_labels_of_another_size_are_refused_by_file(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    write(tmp_path / "labels" / "b.nii.gz", labels_with(5)[:3])
    with pytest.raises(InputError, match=r"b\.nii\.gz has 14 x 12 x 3 voxels and its image .* has 14 x 12 x 4"):
        read_labelled(data.case("b"), data.names)


def test_labels_that_lie_elsewhere_are_refused_by_file(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    write(tmp_path / "labels" / "c.nii.gz", labels_with(5), origin=(0.0, 9.0, 0.0))
    with pytest.raises(InputError, match=r"c\.nii\.gz lies up to 9\.0 mm off"):
        read_labelled(data.case("c"), data.names)


def test_a_value_that_no_name_has_is_refused_by_file(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    write(tmp_path / "labels" / "a.nii.gz", labels_with(5, 9))
    with pytest.raises(InputError, match=r"a\.nii\.gz has the value 9, which is the label of no structure"):
        read_labelled(data.case("a"), data.names)


def test_a_value_below_0_is_refused_without_asking_for_a_name_that_it_cannot_have(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    write(tmp_path / "labels" / "a.nii.gz", labels_with(5, 2).astype(np.int16) - 1)
    with pytest.raises(InputError, match=r"a\.nii\.gz has the value -1, but labels are above 0"):
        read_labelled(data.case("a"), data.names)


def test_a_file_that_is_no_image_is_named(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    (tmp_path / "labels" / "a.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.nii\.gz cannot be read"):
        read_labelled(data.case("a"), data.names)


def test_structures_that_are_not_wanted_are_left_out(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    labels = read_labelled(data.case("a"), {"spleen": 2}).labels
    assert np.unique(labels).tolist() == [0, 2]


def test_a_split_by_hash_is_the_same_for_ever_and_leaves_a_patient_out(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    split = split_of(data)
    assert split == split_of(data)
    assert len(split.val) == 1
    assert set(split.train) | set(split.val) == {"a", "b", "c", "d"}
    assert not set(split.train) & set(split.val)


def test_two_cases_of_one_patient_are_never_parted():
    cases = tuple(Case(f"{p}{n}", Path("x"), Path("y"), {1: "liver"}, patient=p) for p in "abcde" for n in (1, 2))
    data = DataSet("made up", Path("nowhere"), cases)
    split = split_of(data)
    assert len(split.val) == 2
    assert split.val[0][0] == split.val[1][0]


def test_the_file_decides_and_what_is_for_testing_never_trains(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    (tmp_path / "splits.json").write_text('{"train": ["a"], "val": ["b"], "test": ["c", "elsewhere"]}')
    split = split_of(data)
    assert (split.train, split.val, split.test, split.source) == (("a",), ("b",), ("c",), "splits.json")


def test_a_case_that_a_split_names_twice_counts_once(tmp_path):
    data = find_data(a_plain_folder(tmp_path))
    (tmp_path / "splits.json").write_text('{"train": ["a", "a", "b"], "val": ["c"]}')
    assert split_of(data).train == ("a", "b")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no split"),
        ("[1]", "is no split"),
        ('{"train": "a"}', "is no split"),
        ('{"train": ["a"], "validation": ["b"]}', "calls a part 'validation', whose cases would not be used"),
        ('{"train": ["x"]}', "names 'x' in 'train', which .* does not hold"),
        ('{"train": []}', "no case .* to train on"),
        ('{"train": ["a"], "val": ["a"]}', "puts 'a' into two parts"),
        ('{"train": ["a", "b"], "test": ["b"]}', "puts 'b' into two parts"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, content, sentence):
    data = find_data(a_plain_folder(tmp_path))
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        split_of(data)
