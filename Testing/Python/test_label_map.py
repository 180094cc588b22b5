"""Label maps keep voxels, geometry and names; what they cannot hold is said."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import empty_volume, rotation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.label_map import names_path_of
from SAM2AssistLib.io.segmentation import (
    NamedMask,
    check_output_path,
    masks_on_grid_of,
    read_segmentation,
    write_segmentation,
)

SHAPE = (4, 6, 7)
ENDINGS = (".nii.gz", ".nrrd", ".mha")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def volume_of(directions, shape_kji=SHAPE, **grid):
    return empty_volume(directions, shape_kji, **grid)


OBLIQUE = volume_of(rotation((10, 20, 30)))
GEOMETRIES = [
    volume_of(np.eye(3)),
    volume_of(np.diag([-1.0, 1, -1])),
    volume_of(np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])),  # left-handed
    OBLIQUE,
]


def mask_of(*voxels):
    mask = np.zeros(SHAPE, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


LIVER = NamedMask("liver", mask_of((0, 1, 2), (1, 1, 2)))
TUMOR = NamedMask("liver tumor", mask_of((2, 3, 4)))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("volume", GEOMETRIES)
def test_segments_come_back_with_their_names_voxels_and_geometry(tmp_path, ending, volume):
    path = tmp_path / f"out{ending}"
    assert write_segmentation(path, [LIVER, TUMOR], volume) == ()
    masks, ijk_to_lps = read_segmentation(path)
    assert [named.name for named in masks] == ["liver", "liver tumor"]
    for back, given_mask in zip(masks, (LIVER, TUMOR), strict=True):
        np.testing.assert_array_equal(back.mask, given_mask.mask)
    tolerance = 1e-5 if ending == ".nii.gz" else 1e-9  # NIfTI keeps its matrix in single precision
    np.testing.assert_allclose(ijk_to_lps, volume.ijk_to_lps, atol=tolerance)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3), flip=st.booleans())
def test_any_rotation_survives_nifti(tmp_path, angles, flip):
    volume = volume_of(rotation(angles) @ np.diag([1, 1, -1 if flip else 1]))
    write_segmentation(tmp_path / "a.nii.gz", [LIVER], volume)
    np.testing.assert_allclose(read_segmentation(tmp_path / "a.nii.gz")[1], volume.ijk_to_lps, atol=1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_another_program_sees_small_labels_from_one_on_the_grid_of_the_volume(tmp_path, ending):
    write_segmentation(tmp_path / f"out{ending}", [LIVER, TUMOR], OBLIQUE)
    image = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert sorted(np.unique(sitk.GetArrayFromImage(image)).tolist()) == [0, 1, 2]
    np.testing.assert_allclose(image.GetSpacing(), OBLIQUE.spacing_ijk, rtol=1e-6)


def test_where_segments_overlap_the_later_one_wins_and_it_is_said(tmp_path):
    tumor = NamedMask("tumor", LIVER.mask & mask_of((1, 1, 2)))
    (warning,) = write_segmentation(tmp_path / "out.nii.gz", [LIVER, tumor], OBLIQUE)
    assert "1 of 'liver' to 'tumor'" in warning
    assert ".seg.nrrd" in warning
    masks, _ = read_segmentation(tmp_path / "out.nii.gz")
    assert [int(named.mask.sum()) for named in masks] == [1, 1]


def test_an_empty_segment_keeps_its_name(tmp_path):
    empty = NamedMask("spleen", mask_of())
    write_segmentation(tmp_path / "out.mha", [LIVER, empty], OBLIQUE)
    masks, _ = read_segmentation(tmp_path / "out.mha")
    assert [(named.name, int(named.mask.sum())) for named in masks] == [("liver", 2), ("spleen", 0)]


def test_more_than_255_segments_get_a_wider_type(tmp_path):
    shape = (1, 20, 20)
    volume = volume_of(np.eye(3), shape_kji=shape)
    masks = [NamedMask(f"s{n}", np.arange(400).reshape(shape) == n) for n in range(300)]
    write_segmentation(tmp_path / "out.nrrd", masks, volume)
    back, _ = read_segmentation(tmp_path / "out.nrrd")
    assert [named.name for named in back] == [named.name for named in masks]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(back, masks, strict=True))


def test_names_go_to_a_file_of_their_own_so_that_results_in_one_folder_do_not_mix(tmp_path):
    (tmp_path / "labels.json").write_text('{"spleen": 1}')
    write_segmentation(tmp_path / "one.nii.gz", [LIVER], OBLIQUE)
    write_segmentation(tmp_path / "two.nii.gz", [TUMOR], OBLIQUE)
    assert names_path_of(tmp_path / "one.nii.gz").name == "one.labels.json"
    assert read_segmentation(tmp_path / "one.nii.gz")[0][0].name == "liver"
    assert read_segmentation(tmp_path / "two.nii.gz")[0][0].name == "liver tumor"
    assert json.loads((tmp_path / "labels.json").read_text()) == {"spleen": 1}


def test_label_maps_of_one_name_and_two_endings_keep_their_own_names(tmp_path):
    write_segmentation(tmp_path / "one.nii.gz", [LIVER, TUMOR], OBLIQUE)
    write_segmentation(tmp_path / "one.mha", [TUMOR], OBLIQUE)
    assert [named.name for named in read_segmentation(tmp_path / "one.nii.gz")[0]] == ["liver", "liver tumor"]
    assert [named.name for named in read_segmentation(tmp_path / "one.mha")[0]] == ["liver tumor"]
    write_segmentation(tmp_path / "one.mha", [LIVER], OBLIQUE)  # and again
    assert [named.name for named in read_segmentation(tmp_path / "one.mha")[0]] == ["liver"]
    assert [named.name for named in read_segmentation(tmp_path / "one.nii.gz")[0]] == ["liver", "liver tumor"]


def test_the_same_segments_in_two_formats_share_one_file_of_names(tmp_path):
    for ending in ENDINGS:
        write_segmentation(tmp_path / f"one{ending}", [LIVER, TUMOR], OBLIQUE)
    assert [path.name for path in tmp_path.glob("*.json")] == ["one.labels.json"]


def test_a_file_that_holds_no_names_is_not_replaced_by_names(tmp_path):
    (tmp_path / "one.labels.json").write_text("my notes")
    for refused in (check_output_path, lambda path: write_segmentation(path, [LIVER], OBLIQUE)):
        with pytest.raises(OutputError, match=r"one\.labels\.json is there and holds something else"):
            refused(tmp_path / "one.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["one.labels.json"]
    check_output_path(tmp_path / "one.seg.nrrd")  # which has its names inside


def test_old_names_are_replaced_after_the_label_map(tmp_path, monkeypatch):
    write_segmentation(tmp_path / "a.nii.gz", [LIVER], OBLIQUE)
    replace, replaced = os.replace, []

    def noted(source, target):
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    write_segmentation(tmp_path / "a.nii.gz", [TUMOR], OBLIQUE)
    assert replaced == ["a.nii.gz", "a.labels.json"]
    assert [named.name for named in read_segmentation(tmp_path / "a.nii.gz")[0]] == ["liver tumor"]


def label_map_with_value_5(folder):
    folder.mkdir(exist_ok=True)
    array = np.zeros(SHAPE, np.uint8)
    array[1, 2, 3] = 5
    path = folder / "case.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def test_names_come_from_labels_json_beside_the_label_map(tmp_path):
    path = label_map_with_value_5(tmp_path)
    (tmp_path / "labels.json").write_text('{"background": 0, "spleen": 1, "liver": 5}')
    assert [named.name for named in read_segmentation(path)[0]] == ["liver"]


def test_in_a_data_folder_names_come_from_labels_json_above_the_folder_of_labels(tmp_path):
    path = label_map_with_value_5(tmp_path / "labels")
    (tmp_path / "labels.json").write_text('{"liver": 5}')
    assert [named.name for named in read_segmentation(path)[0]] == ["liver"]


def test_a_label_without_a_name_is_named_after_its_value(tmp_path):
    assert [named.name for named in read_segmentation(label_map_with_value_5(tmp_path))[0]] == ["label_5"]


@pytest.mark.parametrize(
    "names",
    [
        "{", "[]", '{"liver": "5"}', '{"liver": -5}', '{"liver": true}', '{"liver": 5, "spleen": 5}', b"\xff",
        '{"liver": 5, "liver": 6}', '{"liver": 5, "liver ": 6}', '{"\\ud83d": 5}', 100_000 * "[",
    ],
    ids=range(11),
)  # fmt: skip
def test_names_that_are_no_names_are_refused(tmp_path, names):
    path = label_map_with_value_5(tmp_path)
    (tmp_path / "labels.json").write_bytes(names if isinstance(names, bytes) else names.encode())
    with pytest.raises(InputError, match=r"labels\.json"):
        read_segmentation(path)


def test_a_label_map_of_floats_is_read_if_they_are_whole_numbers(tmp_path):
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0] = 2
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    assert [named.name for named in read_segmentation(tmp_path / "a.nii.gz")[0]] == ["label_2"]
    array[0, 0, 0] = 2.5
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "b.nii.gz"))
    with pytest.raises(InputError, match="fractions"):
        read_segmentation(tmp_path / "b.nii.gz")


def test_what_is_no_segmentation_is_refused(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no image")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, *SHAPE), np.uint8)), str(tmp_path / "four.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True), str(tmp_path / "color.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE, np.complex64)), str(tmp_path / "complex.nrrd"))
    for name in ("text.nii.gz", "four.nii.gz", "color.mha", "missing.nii.gz", "dicom.dcm", "complex.nrrd"):
        with pytest.raises(InputError, match=name):
            read_segmentation(tmp_path / name)


def test_masks_that_are_not_on_the_grid_are_refused_and_nothing_is_written(tmp_path):
    for wrong in (NamedMask("a", np.zeros((1, 2, 3), bool)), NamedMask("a", np.zeros(SHAPE, np.uint8))):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="mask of 'a'"):
            write_segmentation(tmp_path / "out.nii.gz", [wrong], OBLIQUE)
    with pytest.raises(InputError, match="no segment"):
        write_segmentation(tmp_path / "out.nii.gz", [], OBLIQUE)
    assert list(tmp_path.iterdir()) == []


def test_two_segments_of_one_name_do_not_fit_into_a_label_map(tmp_path):
    with pytest.raises(OutputError, match="same name"):
        write_segmentation(tmp_path / "out.nii.gz", [LIVER, NamedMask("liver", TUMOR.mask)], OBLIQUE)


# ------------------------------------------------------------------------------------------------- where it is written


@pytest.mark.parametrize("name", ["a.seg.nrrd", "a.nii.gz", "a.nrrd", "a.mha", "a.b.NII.GZ"])
def test_these_endings_are_written(tmp_path, name):
    check_output_path(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.png", "a", ".nrrdx", "a.gz"])
def test_other_endings_are_refused_with_the_ones_that_work(tmp_path, name):
    with pytest.raises(OutputError, match=r"use \.seg\.nrrd, \.nii\.gz, \.nrrd, \.mha or \.dcm"):
        check_output_path(tmp_path / name)


def test_dicom_seg_without_highdicom_is_refused_with_what_to_install(tmp_path, monkeypatch):
    from SAM2AssistLib.io import dicom_kinds

    check_output_path(tmp_path / "a.dcm")
    monkeypatch.setattr(dicom_kinds.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(OutputError, match="pip install highdicom"):
        check_output_path(tmp_path / "a.dcm")


def test_a_missing_folder_a_folder_and_a_file_as_folder_are_refused(tmp_path):
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "a.nii.gz", tmp_path / "folder.nii.gz", tmp_path / "file" / "a.nii.gz"):
        with pytest.raises(OutputError):
            check_output_path(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(OutputError, match="may not be written"):
        check_output_path(folder / "a.nii.gz")


# --------------------------------------------------------------------------------------------------------- other grids


def test_masks_of_a_part_of_the_grid_are_put_in_their_place():
    part = OBLIQUE.ijk_to_lps.copy()
    part[:3, 3] = OBLIQUE.lps_from_index_ijk([2, 1, 1])
    cropped = NamedMask("liver", LIVER.mask[1:, 1:, 2:])
    (moved,) = masks_on_grid_of(OBLIQUE, [cropped], part)
    np.testing.assert_array_equal(moved.mask, LIVER.mask & (np.arange(4) > 0)[:, None, None])


def test_masks_of_a_flipped_grid_are_turned():
    flipped = OBLIQUE.ijk_to_lps @ np.array([[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]])
    (moved,) = masks_on_grid_of(OBLIQUE, [NamedMask("liver", LIVER.mask[::-1, :, ::-1])], flipped)
    np.testing.assert_array_equal(moved.mask, LIVER.mask)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared CT data are not here")
def test_a_real_reference_is_read_with_its_names():
    folder = DATA / "ct_upper_abdomen_20slices"
    masks, _ = read_segmentation(folder / "label.nii.gz")
    assert {named.name for named in masks} <= set(json.loads((folder / "labels.json").read_text()))
    assert all(named.mask.any() for named in masks)
