"""Reading CT from DICOM series: order, rescale and geometry of slices, choice of a series, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_files import PATIENT_ID, PATIENT_NAME, affine, changed, ct_values, rotation, write_dicom_series, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.dicom_series import DicomSeries, list_series
from SAM2AssistLib.volume import CTVolume

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real CT of ../shared/data are not here")

SHAPE = (5, 16, 20)
EVERY_2_MM = affine((0.8, 0.7, 2.0), origin_lps=(-10, 20, 100))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "scan"


def refusal(path, *, names, series=None):
    """Give the sentence with which a folder or file is refused, which names it or the file at fault and no patient."""
    with pytest.raises(InputError) as caught:
        CTVolume.read(path, series=series)
    sentence = str(caught.value)
    assert names in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert PATIENT_NAME.split("^", maxsplit=1)[0] not in sentence
    assert PATIENT_ID not in sentence
    return sentence


def compressed(path):
    """Compress one file without loss."""
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    return path


def with_heights(z_mm, folder, **tags):
    """Write a series of axial slices at given heights."""
    positions = [(0.0, 0.0, z) for z in z_mm]
    return write_dicom_series(folder, ct_values((len(z_mm), *SHAPE[1:])), positions_lps=positions, **tags)


# What is read


def test_slices_are_sorted_by_position_and_rescaled_to_hounsfield_units(folder):
    values = ct_values(SHAPE)
    files = write_dicom_series(folder, values, EVERY_2_MM)
    volume = CTVolume.read(folder)
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.ijk_to_lps, EVERY_2_MM, atol=1e-6)
    assert volume.dicom_files == tuple(files)
    assert volume.source == folder
    assert volume.warnings == ()


def test_slices_stored_from_head_to_feet_are_turned_so_that_the_grid_is_right_handed(folder):
    downwards = affine((1, 1, 2), np.diag([1.0, 1.0, -1.0]), (0, 0, 50))
    values = ct_values(SHAPE)
    files = write_dicom_series(folder, values, downwards)
    volume = CTVolume.read(folder)
    np.testing.assert_array_equal(volume.array, values[::-1])
    assert volume.dicom_files == tuple(reversed(files))
    np.testing.assert_allclose(volume.ijk_to_lps, affine((1, 1, 2), origin_lps=(0, 0, 42)), atol=1e-6)


@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_oblique_and_anisotropic_series_keep_their_geometry(tmp_path_factory, angles, spacing, origin):
    folder = tmp_path_factory.mktemp("scan")
    matrix = affine(spacing, rotation(angles), origin)
    values = ct_values((3, 4, 5))
    write_dicom_series(folder, values, matrix)
    volume = CTVolume.read(folder)
    np.testing.assert_array_equal(volume.array, values)
    corners = np.array([(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2)])
    np.testing.assert_allclose(
        volume.lps_from_index_ijk(corners), corners @ matrix[:3, :3].T + matrix[:3, 3], atol=2e-4
    )


def test_rows_and_columns_have_the_spacing_that_dicom_gives_them(folder):
    write_dicom_series(folder, ct_values(SHAPE), affine((0.5, 0.9, 2)))
    volume = CTVolume.read(folder)
    assert volume.spacing_ijk == pytest.approx((0.5, 0.9, 2))
    assert volume.slice_spacing(0) == pytest.approx((0.9, 0.5))


def test_a_compressed_series_is_read(folder):
    values = ct_values(SHAPE)
    for path in write_dicom_series(folder, values, EVERY_2_MM):
        compressed(path)
    np.testing.assert_array_equal(CTVolume.read(folder).array, values)


def test_a_series_with_implicit_value_representations_is_read(folder):
    values = ct_values(SHAPE)
    for path in write_dicom_series(folder, values, EVERY_2_MM):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(path, implicit_vr=True)
    np.testing.assert_array_equal(CTVolume.read(folder).array, values)


def test_files_without_the_dicom_preamble_are_read(folder):
    values = ct_values(SHAPE)
    for path in write_dicom_series(folder, values, EVERY_2_MM):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(CTVolume.read(folder).array, values)


def test_a_series_without_identifiers_as_anonymizers_leave_it_is_read(folder):
    write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM, SeriesInstanceUID="", StudyInstanceUID="")
    assert CTVolume.read(folder).shape_kji == SHAPE


def test_one_file_of_a_series_stands_for_the_series(folder):
    values = ct_values(SHAPE)
    files = write_dicom_series(folder, values, EVERY_2_MM)
    write_dicom_series(folder, ct_values((7, 16, 20)), EVERY_2_MM, prefix="other")
    volume = CTVolume.read(files[3])
    np.testing.assert_array_equal(volume.array, values)
    assert len(volume.dicom_files) == 5


def test_other_files_in_the_folder_are_passed_over(folder):
    write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM)
    (folder / "readme.txt").write_text("made on a Monday")
    (folder / "._slice_001.dcm").write_bytes(b"\x00\x05\x16\x07" * 50)
    write_image(folder / "other.nii.gz", ct_values((3, 4, 5)))
    (folder / "subfolder").mkdir()
    volume = CTVolume.read(folder)
    assert volume.shape_kji == SHAPE
    assert volume.warnings == ()


def test_a_dicom_object_without_pixels_is_passed_over(folder):
    files = write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM)
    report = pydicom.dcmread(files[0])
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    report.save_as(folder / "dose_report.dcm")
    assert CTVolume.read(folder).shape_kji == SHAPE


def test_a_series_of_another_modality_is_read_with_a_warning(folder):
    write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM, Modality="MR")
    assert "not CT but of modality MR" in CTVolume.read(folder).warnings[0]


def test_a_series_that_is_not_in_hounsfield_units_is_read_with_a_warning(folder):
    write_dicom_series(folder, ct_values(SHAPE) + 1100, EVERY_2_MM, intercept=0)
    assert "does not look like CT in Hounsfield units" in CTVolume.read(folder).warnings[0]


# Which series


def test_the_series_of_a_folder_are_listed_with_most_images_first(folder):
    write_dicom_series(folder, ct_values((2, 4, 5)), series_uid="1.2.3", SeriesDescription="short", prefix="a")
    write_dicom_series(folder, ct_values((3, 4, 5)), series_uid="1.2.4", SeriesDescription="long", prefix="b")
    assert list_series(folder) == [DicomSeries("1.2.4", "long", "CT", 3), DicomSeries("1.2.3", "short", "CT", 2)]


def test_a_description_that_a_backslash_divides_is_read_as_one(folder):
    write_dicom_series(folder, ct_values((2, 4, 5)), SeriesDescription=r"venous\thin")
    assert [series.description for series in list_series(folder)] == ["venous/thin"]


def test_a_folder_without_dicom_has_no_series(tmp_path):
    assert list_series(tmp_path) == []


def test_the_series_of_a_folder_that_does_not_exist_cannot_be_listed(tmp_path):
    with pytest.raises(InputError, match="absent"):
        list_series(tmp_path / "absent")


def test_several_series_in_a_folder_are_refused_with_a_list_to_choose_from(folder):
    write_dicom_series(folder, ct_values(SHAPE), series_uid="1.2.3", SeriesDescription="Abdomen venous", prefix="a")
    write_dicom_series(folder, ct_values(SHAPE[:1] + (8, 8)), series_uid="1.2.4", prefix="b")
    sentence = refusal(folder, names="scan")
    for words in ("--series", "1 ('Abdomen venous', CT, 5 images)", "2 ("):
        assert words in sentence
    assert "1.2.3" not in sentence


def test_the_series_with_the_given_uid_is_read(folder):
    values = ct_values((4, 8, 9), seed=3)
    write_dicom_series(folder, ct_values(SHAPE), series_uid="1.2.3", prefix="a")
    files = write_dicom_series(folder, values, series_uid="1.2.4", prefix="b")
    volume = CTVolume.read(folder, series="1.2.4")
    np.testing.assert_array_equal(volume.array, values)
    assert volume.dicom_files == tuple(files)


def test_a_series_that_is_not_in_the_folder_is_refused_with_those_that_are(folder):
    write_dicom_series(folder, ct_values(SHAPE), series_uid="1.2.3")
    sentence = refusal(folder, names="scan", series="9.9.9")
    assert "no such series, only: 1 (" in sentence
    assert "9.9.9" not in sentence


def test_a_localizer_series_beside_the_slices_is_left_out_with_a_warning(folder):
    write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM, prefix="a")
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_dicom_series(folder, ct_values((2, 30, 40)), ImageType=kind, SeriesDescription="Topogram", prefix="b")
    volume = CTVolume.read(folder)
    assert volume.shape_kji == SHAPE
    assert "Topogram" in volume.warnings[0]


def test_a_localizer_within_the_series_is_left_out(folder):
    write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM, series_uid="1.2.3", prefix="a")
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_dicom_series(folder, ct_values((1, 30, 40)), ImageType=kind, series_uid="1.2.3", prefix="b")
    assert CTVolume.read(folder).shape_kji == SHAPE


def test_a_series_of_localizers_only_is_refused(folder):
    write_dicom_series(folder, ct_values((2, 8, 9)), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert "localizers" in refusal(folder, names="scan")


def test_a_single_image_of_another_size_is_left_out_with_a_warning_that_names_it(folder):
    write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM, series_uid="1.2.3", prefix="a")
    odd = write_dicom_series(folder, ct_values((1, 8, 9)), series_uid="1.2.3", prefix="odd")
    volume = CTVolume.read(folder)
    assert volume.shape_kji == SHAPE
    assert odd[0].name in volume.warnings[0]


@pytest.mark.parametrize(
    "other", [affine(direction=rotation((90, 0, 0))), affine((2, 2, 2)), affine(direction=rotation((0, 0, 5)))]
)
def test_a_series_that_mixes_two_stacks_is_refused(folder, other):
    write_dicom_series(folder, ct_values(SHAPE), series_uid="1.2.3", prefix="a")
    write_dicom_series(folder, ct_values(SHAPE), other, series_uid="1.2.3", prefix="b")
    assert "mixes" in refusal(folder, names="scan")


# What is refused


def test_an_empty_folder_is_refused(tmp_path):
    assert "empty" in refusal(tmp_path, names=tmp_path.name)


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    assert "no DICOM images" in refusal(tmp_path, names=tmp_path.name)


def test_the_working_folder_is_told_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"'{tmp_path.name}'" in refusal(Path(), names=tmp_path.name)


def test_a_folder_with_dicom_one_level_below_is_refused_with_the_folder_to_give(tmp_path, folder):
    write_dicom_series(folder, ct_values(SHAPE))
    assert "subfolder 'scan'" in refusal(tmp_path, names=tmp_path.name)


@pytest.mark.parametrize(("removed", "height"), [(1, "102.0"), (2, "104.0"), (4, "108.0")])
def test_a_missing_slice_is_refused_with_its_position(folder, removed, height):
    files = write_dicom_series(folder, ct_values((7, 8, 9)), EVERY_2_MM)
    files[removed].unlink()
    assert f"a slice is missing at z = {height} mm" in refusal(folder, names="scan")


def test_several_missing_slices_are_refused_with_their_number(folder):
    files = write_dicom_series(folder, ct_values((9, 8, 9)), EVERY_2_MM)
    for path in files[3:6]:
        path.unlink()
    assert "3 slices are missing from z = 106.0 mm on" in refusal(folder, names="scan")


def test_a_missing_slice_is_found_among_three(folder):
    with_heights([0, 2, 6], folder)
    assert "missing at z = 4.0 mm" in refusal(folder, names="scan")


def test_the_position_of_a_missing_slice_is_told_along_the_axis_that_slices_are_stacked_on(folder):
    coronal = affine((1, 1, 3), rotation((90, 0, 0)), (0, 60, 0))
    files = write_dicom_series(folder, ct_values((6, 8, 9)), coronal)
    files[2].unlink()
    assert "missing at y = 54.0 mm" in refusal(folder, names="scan")


def test_duplicate_positions_are_refused_with_both_files(folder):
    files = with_heights([0, 2, 4, 4, 6], folder)
    sentence = refusal(folder, names=files[2].name)
    assert files[3].name in sentence
    assert "z = 4.0 mm" in sentence


def test_slightly_uneven_slices_are_resampled_on_an_even_grid_with_a_warning(folder):
    heights = np.array([0.0, 2.0, 4.3, 6.1, 8.0])
    # Values that rise along z, so that interpolation has to give the height back.
    values = np.broadcast_to(np.rint(heights * 100)[:, None, None] - 500, (5, 8, 9)).astype(np.int16)
    write_dicom_series(folder, values, positions_lps=[(0, 0, z) for z in heights])
    volume = CTVolume.read(folder)
    assert volume.spacing_ijk[2] == pytest.approx(2.0)
    assert volume.array[:, 0, 0].tolist() == pytest.approx([-500, -300, -100, 100, 300], abs=1)
    assert "uneven" in volume.warnings[0]
    assert volume.dicom_files == ()


def test_rounding_of_positions_does_not_count_as_uneven(folder):
    with_heights(np.round(np.arange(6) * 1.2345, 2), folder)
    volume = CTVolume.read(folder)
    assert volume.warnings == ()
    assert len(volume.dicom_files) == 6


def test_strongly_uneven_slices_are_refused_with_the_place(folder):
    with_heights([0, 2, 4, 7, 9, 11], folder)
    sentence = refusal(folder, names="scan")
    assert "3.00 mm" in sentence
    assert "z = 4.0 mm" in sentence


def test_slices_of_a_tilted_gantry_are_refused_with_the_angle(folder):
    tilt = np.tan(np.radians(12))
    write_dicom_series(folder, ct_values(SHAPE), positions_lps=[(0, 3 * k * tilt, 3 * k) for k in range(5)])
    assert "12.0 degrees" in refusal(folder, names="scan")


def test_a_series_of_one_slice_is_refused(folder):
    write_dicom_series(folder, ct_values((1, 8, 9)))
    assert "one slice" in refusal(folder, names="scan")


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused_by_its_name(folder, kept):
    files = write_dicom_series(folder, ct_values((4, 64, 64)))
    content = files[1].read_bytes()
    files[1].write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refusal(folder, names=files[1].name)


def test_a_truncated_compressed_file_is_refused_by_its_name(folder):
    files = write_dicom_series(folder, ct_values((4, 32, 32)))
    content = compressed(files[2]).read_bytes()
    files[2].write_bytes(content[:-200])
    assert "truncated" in refusal(folder, names=files[2].name)


def test_a_file_named_as_dicom_that_is_none_is_refused_because_it_may_be_a_slice(folder):
    write_dicom_series(folder, ct_values(SHAPE))
    (folder / "slice_last.dcm").write_text("The file you asked for was not found on this server.")
    assert "no DICOM file" in refusal(folder, names="slice_last.dcm")


def test_an_empty_dicom_file_is_refused_by_its_name(folder):
    write_dicom_series(folder, ct_values(SHAPE))
    (folder / "slice_last.dcm").touch()
    assert "empty" in refusal(folder, names="slice_last.dcm")


def test_a_slice_that_may_not_be_read_is_told_by_its_name(folder, monkeypatch):
    last = write_dicom_series(folder, ct_values(SHAPE))[-1]
    real = Path.open

    def refusing(path, *arguments, **settings):
        if path == last:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refusing)
    assert "Permission denied" in refusal(folder, names=last.name)


def test_a_slice_that_is_a_link_to_nothing_is_refused_by_its_name(folder):
    last = write_dicom_series(folder, ct_values(SHAPE))[-1]
    last.unlink()
    last.symlink_to(folder / "not-fetched.dcm")
    (folder / "lock").symlink_to("nobody@nowhere")
    assert "link to a file that is not there" in refusal(folder, names=last.name)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_slice_that_does_not_say_where_it_lies_is_refused(folder, tag):
    files = write_dicom_series(folder, ct_values(SHAPE))
    changed(files[0], **{tag: None})
    assert "where its image lies" in refusal(folder, names=files[0].name)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": ["0", "1"]},
        {"PixelSpacing": ["1", "-1"]},
        {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]},
        {"ImageOrientationPatient": ["0", "0", "0", "0", "1", "0"]},
    ],
)
def test_an_impossible_spacing_or_orientation_is_refused(folder, tags):
    write_dicom_series(folder, ct_values(SHAPE), **tags)
    assert "impossible" in refusal(folder, names="slice_")


def test_a_multi_frame_image_is_refused(folder):
    files = write_dicom_series(folder, ct_values((1, 8, 9)))
    dataset = pydicom.dcmread(files[0])
    dataset.NumberOfFrames, dataset.PixelData = 4, dataset.PixelData * 4
    dataset.save_as(files[0])
    assert "multi-frame" in refusal(folder, names=files[0].name)
    assert "multi-frame" in refusal(files[0], names=files[0].name)


def test_a_colour_series_is_refused(folder):
    files = write_dicom_series(folder, ct_values((3, 8, 9)))
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3
        dataset.save_as(path)
    assert "colour" in refusal(folder, names="slice_")


def test_a_file_whose_pixels_cannot_be_decoded_is_refused_by_its_name(folder):
    files = write_dicom_series(folder, ct_values((3, 8, 9)))
    dataset = pydicom.dcmread(compressed(files[1]))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(files[1])
    assert "cannot be decoded" in refusal(folder, names=files[1].name)


def test_a_dicom_file_that_is_no_image_is_refused(folder):
    files = write_dicom_series(folder, ct_values((1, 8, 9)), Modality="SEG")
    assert "not an image of a patient" in refusal(files[0], names=files[0].name)


def test_no_sentence_and_no_warning_holds_the_name_or_number_of_the_patient(folder):
    write_dicom_series(folder, ct_values(SHAPE) + 1100, intercept=0, Modality="MR", SeriesInstanceUID=generate_uid())
    text = " ".join(CTVolume.read(folder).warnings) + str(list_series(folder)[0])
    assert "Secretname" not in text
    assert PATIENT_ID not in text


# Real CT


@needs_data
def test_a_real_compressed_series_equals_the_same_ct_as_nifti():
    series = CTVolume.read(DATA / "ct_upper_abdomen_20slices" / "dicom")
    nifti = CTVolume.read(DATA / "ct_upper_abdomen_20slices" / "image.nii.gz")
    np.testing.assert_array_equal(series.array, nifti.array)
    np.testing.assert_allclose(series.ijk_to_lps, nifti.ijk_to_lps, atol=1e-4)
    assert len(series.dicom_files) == 20


@needs_data
def test_a_real_series_of_three_slices_equals_what_itk_reads():
    place = DATA / "ct_liver_3slices" / "dicom"
    volume = CTVolume.read(place)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place)))
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
    assert volume.spacing_ijk == pytest.approx(image.GetSpacing(), abs=1e-5)
    np.testing.assert_allclose(volume.lps_from_index_ijk((0, 0, 0)), image.GetOrigin(), atol=1e-5)


@needs_data
def test_a_real_segmentation_object_is_refused_as_image():
    refusal(DATA / "ct_liver_3slices" / "liver_seg.dcm", names="liver_seg.dcm")
