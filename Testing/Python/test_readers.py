"""Reading CT from image files: exact geometry, and one sentence for each file that cannot be used."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import affine, ct_values, rotation, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io import readers
from SAM2AssistLib.volume import CTVolume

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
FORMATS = ("scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "scan.mhd", "scan.nhdr")

GRIDS = {
    "axis-aligned": affine((1, 2, 3), origin_lps=(-100.5, 20.25, 300.125)),
    "oblique": affine((0.7, 0.8, 2.5), rotation((10, -25, 40)), (10, 20, -30)),
    "flipped": affine((1, 1, 5), np.diag([-1.0, -1.0, 1.0])),
    "left-handed": affine((0.5, 0.5, 3), np.diag([1.0, 1.0, -1.0]), (1, 2, 3)),
    "left-handed and oblique": affine((0.5, 0.6, 3), rotation((5, 60, -80)) * (1, -1, 1), (1, 2, 3)),
    "sagittal slices": affine((0.5, 0.5, 3), np.eye(3)[:, [1, 2, 0]]),
}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real CT of ../shared/data are not here")


def refusal(path):
    """Give the sentence with which a file is refused, which has to name it."""
    with pytest.raises(InputError) as caught:
        CTVolume.read(path)
    sentence = str(caught.value)
    assert path.name in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", FORMATS)
def test_voxels_and_geometry_of_a_file_come_back_exactly(tmp_path, name, grid):
    values = ct_values((4, 5, 6))
    volume = CTVolume.read(write_image(tmp_path / name, values, GRIDS[grid]))
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.ijk_to_lps, GRIDS[grid], atol=2e-4)
    assert volume.source == tmp_path / name
    assert volume.warnings == ()
    assert volume.dicom_files == ()


@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.2, 8)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.sampled_from(["scan.nii.gz", "scan.nrrd", "scan.mha"]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rectangular_grid_comes_back(tmp_path, angles, spacing, origin, flip, name):
    matrix = affine(spacing, rotation(angles) * np.array(flip), origin)
    volume = CTVolume.read(write_image(tmp_path / name, ct_values((3, 4, 5)), matrix))
    corners = np.array([(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2)])
    expected = corners @ matrix[:3, :3].T + matrix[:3, 3]
    # NIfTI keeps positions and directions in single precision.
    np.testing.assert_allclose(volume.lps_from_index_ijk(corners), expected, atol=1e-3)


def test_a_series_cannot_be_chosen_in_an_image_that_is_not_dicom(tmp_path):
    path = write_image(tmp_path / "scan.nii.gz", ct_values((3, 4, 5)))
    with pytest.raises(InputError, match=r"scan\.nii\.gz is one image .* leave out --series"):
        CTVolume.read(path, series="3")


def test_a_path_may_be_a_string(tmp_path):
    assert CTVolume.read(str(write_image(tmp_path / "scan.mha", ct_values((3, 4, 5))))).shape_kji == (3, 4, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_values_of_other_types_are_rounded_to_hounsfield_units(tmp_path, dtype):
    values = ct_values((3, 4, 5)).astype(dtype) + dtype(0.4)
    volume = CTVolume.read(write_image(tmp_path / "scan.mha", values))
    np.testing.assert_array_equal(volume.array, np.rint(values).astype(np.int16))


def test_slope_and_intercept_of_nifti_are_applied(tmp_path):
    path = write_image(tmp_path / "scan.nii", (ct_values((3, 4, 5)) // 2).astype(np.int16))
    patch(path, 112, "<2f", 2.0, -10.0)
    np.testing.assert_array_equal(CTVolume.read(path).array, ct_values((3, 4, 5)) // 2 * 2 - 10)


def test_values_beyond_int16_are_clipped_with_a_warning(tmp_path):
    values = ct_values((3, 4, 5)).astype(np.int32)
    values[0, 0, :2] = (100_000, -100_000)
    volume = CTVolume.read(write_image(tmp_path / "scan.nrrd", values))
    assert volume.array[0, 0, :2].tolist() == [32767, -32768]
    assert "2 voxels" in volume.warnings[0]


@pytest.mark.parametrize("offset", [1100, 2000])
def test_values_that_are_hardly_hounsfield_units_are_read_with_a_warning(tmp_path, offset):
    volume = CTVolume.read(write_image(tmp_path / "mr.nii.gz", np.abs(ct_values((3, 4, 5)) + offset)))
    assert "does not look like CT in Hounsfield units" in volume.warnings[0]
    assert "mr.nii.gz" in volume.warnings[0]


def test_a_normalized_float_image_is_read_with_a_warning(tmp_path):
    values = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    assert "does not look like CT" in CTVolume.read(write_image(tmp_path / "mr.mha", values)).warnings[0]


def test_a_fourth_dimension_of_one_time_point_is_taken_off(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(ct_values((3, 4, 5)))])
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    np.testing.assert_array_equal(CTVolume.read(tmp_path / "scan.mha").array, ct_values((3, 4, 5)))


def test_a_file_with_a_name_in_other_scripts_is_read(tmp_path):
    assert CTVolume.read(write_image(tmp_path / "Bauch – 腹部.nrrd", ct_values((3, 4, 5)))).shape_kji == (3, 4, 5)


def test_an_uncompressed_nifti_named_as_compressed_is_read(tmp_path):
    write_image(tmp_path / "scan.nii", ct_values((3, 4, 5))).rename(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(CTVolume.read(tmp_path / "scan.nii.gz").array, ct_values((3, 4, 5)))


# What is refused


def patch(path, offset, layout, *numbers):
    """Overwrite numbers in the header of a .nii file."""
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *numbers)
    path.write_bytes(content)
    return path


def replaced(path, old, new):
    """Replace one text in the header of a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.fixture
def nifti(tmp_path):
    return write_image(tmp_path / "scan.nii", ct_values((10, 20, 30)), affine((1, 2, 3)))


@pytest.fixture
def nrrd(tmp_path):
    return write_image(tmp_path / "scan.nrrd", ct_values((10, 20, 30)), affine((1, 2, 3)))


@pytest.fixture
def mha(tmp_path):
    return write_image(tmp_path / "scan.mha", ct_values((10, 20, 30)), affine((1, 2, 3)))


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    assert "no file or folder" in refusal(tmp_path / "absent.nii.gz")


@pytest.mark.parametrize("name", [*FORMATS, "scan.dcm", "scan.vtk"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert "empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", [*FORMATS, "scan.hdr", "scan.dcm", "notes.txt", "scan"])
def test_a_text_file_with_the_name_of_an_image_is_refused(tmp_path, name):
    (tmp_path / name).write_text("This is no image.\n" * 100)
    assert "not a" in refusal(tmp_path / name)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_nifti_is_refused_and_not_filled_up_with_zeros(nifti, kept):
    content = nifti.read_bytes()
    nifti.write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refusal(nifti) or kept == 0.02


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_truncated_compressed_nifti_is_refused(tmp_path, kept):
    path = write_image(tmp_path / "scan.nii.gz", ct_values((10, 20, 30)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refusal(path)


def test_a_compressed_nifti_with_too_little_data_is_refused(nifti, tmp_path):
    path = tmp_path / "short.nii.gz"
    path.write_bytes(gzip.compress(nifti.read_bytes()[:-100]))
    assert "truncated" in refusal(path)


def test_a_compressed_nifti_with_a_flipped_bit_is_refused(tmp_path):
    path = write_image(tmp_path / "scan.nii.gz", ct_values((10, 20, 30)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_a_truncated_nrrd_or_mha_is_refused(tmp_path, name, compressed):
    image = sitk.GetImageFromArray(ct_values((10, 20, 30)))
    sitk.WriteImage(image, str(tmp_path / name), compressed)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-3000])
    assert "truncated" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data"), [("scan.mhd", "scan.raw"), ("scan.nhdr", "scan.raw"), ("scan.hdr", "scan.img")]
)
def test_a_header_whose_data_file_is_missing_is_refused(tmp_path, name, data):
    write_image(tmp_path / name, ct_values((3, 4, 5)))
    (tmp_path / data).unlink()
    refusal(tmp_path / name)


@pytest.mark.parametrize("spacing", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_nifti_spacing_that_itk_would_repair_in_silence_is_refused(nifti, axis, spacing):
    assert "above 0 mm" in refusal(patch(nifti, 80 + 4 * axis, "<f", spacing))


def test_a_compressed_nifti_with_a_spacing_of_zero_is_refused(nifti, tmp_path):
    path = tmp_path / "zero.nii.gz"
    path.write_bytes(gzip.compress(patch(nifti, 80, "<f", 0.0).read_bytes()))
    assert "above 0 mm" in refusal(path)


@pytest.mark.parametrize("spacing", [b"1 0 3", b"1 -2 3", b"1 nan 3"])
def test_an_mha_spacing_that_is_not_above_zero_is_refused(mha, spacing):
    assert "above 0 mm" in refusal(replaced(mha, b"ElementSpacing = 1 2 3", b"ElementSpacing = " + spacing))


def test_an_nrrd_axis_without_length_is_refused(nrrd):
    assert "above 0 mm" in refusal(replaced(nrrd, b"(0,2,0)", b"(0,0,0)"))


@pytest.mark.parametrize("spacing", [b"0", b"-2"])
def test_an_nrrd_spacing_that_is_not_above_zero_is_refused(nrrd, spacing):
    replaced(nrrd, b"space: left-posterior-superior\n", b"")
    replaced(nrrd, b"space origin: (0,0,0)\n", b"")
    path = replaced(nrrd, b"space directions: (1,0,0) (0,2,0) (0,0,3)", b"spacings: 1 " + spacing + b" 3")
    assert "above 0 mm" in refusal(path)


def test_an_nrrd_that_does_not_say_how_it_lies_is_read_with_a_warning(nrrd):
    replaced(nrrd, b"space: left-posterior-superior\n", b"")
    replaced(nrrd, b"space origin: (0,0,0)\n", b"")
    path = replaced(nrrd, b"space directions: (1,0,0) (0,2,0) (0,0,3)", b"spacings: 1 2 3")
    volume = CTVolume.read(path)
    assert volume.spacing_ijk == (1, 2, 3)
    assert "check left and right" in volume.warnings[0]


def test_a_nifti_without_orientation_is_read_with_a_warning(nifti):
    volume = CTVolume.read(patch(nifti, 252, "<2h", 0, 0))
    assert volume.spacing_ijk == (1, 2, 3)
    assert "check left and right" in volume.warnings[0]


def test_a_nifti_whose_two_spacings_contradict_is_read_with_a_warning(nifti):
    volume = CTVolume.read(patch(nifti, 80, "<3f", 1.0, 1.0, 1.0))
    assert "two different spacings" in volume.warnings[0]


def test_singular_orientations_are_refused(nifti, nrrd, mha):
    assert "singular" in refusal(patch(nifti, 280, "<4f", 0, 1, 0, 0))
    assert "singular" in refusal(replaced(nrrd, b"(0,2,0)", b"(1,0,0)"))
    assert "singular" in refusal(replaced(mha, b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 1 0 0"))


def test_sheared_orientations_are_refused(nifti, nrrd, mha):
    patch(nifti, 252, "<h", 0)
    assert "sheared" in refusal(patch(nifti, 284, "<f", 0.8))
    assert "sheared" in refusal(replaced(nrrd, b"(0,2,0)", b"(0.5,2,0)"))
    assert "sheared" in refusal(replaced(mha, b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 0.5 1 0"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_an_image_with_voxels_that_are_no_numbers_is_refused_with_their_count(tmp_path, name, bad):
    values = ct_values((3, 4, 5)).astype(np.float32)
    values[1, 2, :3] = bad
    assert "3 NaN or infinite" in refusal(write_image(tmp_path / name, values))


@pytest.mark.parametrize("shape", [(1, 20, 30), (10, 1, 30), (10, 20, 1)])
def test_an_image_of_one_slice_is_refused(tmp_path, shape):
    assert "one slice" in refusal(write_image(tmp_path / "scan.mha", ct_values(shape)))


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii.gz", "scan.png"])
def test_a_two_dimensional_image_is_refused(tmp_path, name):
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((20, 30), np.uint8)), str(tmp_path / name))
    assert "two-dimensional" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "scan.nii.gz"])
def test_a_colour_image_is_refused(tmp_path, name):
    assert "colour" in refusal(write_image(tmp_path / name, np.zeros((4, 5, 6, 3), dtype=np.uint8)))


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "scan.nii.gz"])
def test_an_image_of_several_time_points_is_refused(tmp_path, name):
    image = sitk.GetImageFromArray(ct_values((3, 4, 5)))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / name))
    assert "extract one" in refusal(tmp_path / name)


def test_an_image_of_complex_numbers_is_refused(tmp_path):
    assert "complex" in refusal(write_image(tmp_path / "scan.nii", np.zeros((3, 4, 5), dtype=np.complex64)))


def test_images_without_voxels_are_refused(nifti, mha, nrrd):
    assert "no voxels" in refusal(patch(nifti, 46, "<h", 0))
    assert "no voxels" in refusal(replaced(mha, b"DimSize = 30 20 10", b"DimSize = 30 20 0"))
    assert "no voxels" in refusal(replaced(nrrd, b"sizes: 30 20 10", b"sizes: 30 20 0"))


def test_an_image_that_cannot_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write_image(tmp_path / "scan.mha", ct_values((3, 4, 5)))
    monkeypatch.setattr(readers, "MAX_VOXELS", 59)
    assert "memory" in refusal(path)


def test_a_header_that_announces_far_more_than_the_file_holds_is_refused(nifti):
    assert "truncated" in refusal(patch(nifti, 42, "<3h", 30000, 30000, 30000))


@pytest.mark.parametrize("offset", [1e30, 2e9])
def test_a_header_that_puts_the_voxels_beyond_any_file_is_refused(nifti, offset):
    assert "damaged header" in refusal(patch(nifti, 108, "<f", offset))


def labels(count, shape=(12, 24, 30)):
    """Boxes of 4 x 6 x 6 voxels with labels from 0 to count - 1."""
    k, j, i = np.indices(shape) // np.array([4, 6, 6]).reshape(3, 1, 1, 1)
    return ((k * 20 + j * 5 + i) % count).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("count", [2, 3, 4, 20, 60])
def test_a_label_map_in_the_place_of_the_image_is_refused(tmp_path, count, dtype):
    assert "label map" in refusal(write_image(tmp_path / "label.nii.gz", labels(count).astype(dtype)))


def test_a_segmentation_with_named_segments_in_the_place_of_the_image_is_refused(tmp_path):
    image = sitk.GetImageFromArray(labels(4))
    image.SetMetaData("Segment0_ID", "Segment_1")
    sitk.WriteImage(image, str(tmp_path / "scan.seg.nrrd"))
    assert "segmentation" in refusal(tmp_path / "scan.seg.nrrd")


@pytest.mark.parametrize("window", [(0, 20), (0, 80), (0, 255), (-160, 240), (-1000, 1000)])
def test_a_ct_that_was_clipped_to_a_window_is_no_label_map(tmp_path, window):
    values = np.clip(ct_values((6, 24, 30)), *window)
    np.testing.assert_array_equal(CTVolume.read(write_image(tmp_path / "ct.mha", values)).array, values)


def test_a_ct_of_air_only_is_no_label_map(tmp_path):
    assert CTVolume.read(write_image(tmp_path / "ct.mha", np.full((3, 4, 5), -1000, np.int16))).warnings == ()


def test_the_reason_comes_as_one_sentence_and_nothing_of_itk_reaches_the_terminal(nifti, mha):
    patch(nifti, 80, "<f", 0.0)
    mha.write_bytes(mha.read_bytes()[:-3000])
    paths = json.dumps([str(nifti), str(mha), str(nifti.parent / "none.nrrd")])
    code = f"""
from SAM2AssistLib.volume import CTVolume
from SAM2AssistLib.errors import InputError
for path in {paths}:
    try:
        CTVolume.read(path)
    except InputError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 3
    assert done.stderr == ""


def test_warnings_of_itk_are_shown_again_after_reading(tmp_path):
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    try:
        CTVolume.read(write_image(tmp_path / "scan.mha", ct_values((3, 4, 5))))
        assert sitk.ProcessObject.GetGlobalWarningDisplay()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


# Real CT


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.rglob("image.nii.gz")), ids=lambda path: path.parent.name)
def test_real_ct_are_read_without_a_warning(path):
    volume = CTVolume.read(path)
    assert volume.warnings == ()
    assert min(volume.shape_kji) > 1
    assert volume.array_axis_of("axial") == 0


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.rglob("label.nii.gz")), ids=lambda path: path.parent.name)
def test_real_label_maps_are_refused_as_images(path):
    assert "label map" in refusal(path)


@needs_data
@pytest.mark.parametrize("window", [(0, 80), (0, 255)])
@pytest.mark.parametrize("name", ["ct_abdomen_pelvis_3mm", "ct_sarcoma/sts_003"])
def test_real_ct_clipped_to_a_window_are_no_label_maps(name, window):
    assert not readers.is_label_map(np.clip(CTVolume.read(DATA / name / "image.nii.gz").array, *window))
