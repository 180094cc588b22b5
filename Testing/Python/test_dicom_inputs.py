"""Series as they come from scanners, archives and CDs: enhanced, compressed, named by a DICOMDIR, taken twice."""

from __future__ import annotations

import shutil

import highdicom
import numpy as np
import pydicom
import pytest
from ct_files import PATIENT_ID, changed, ct_values, write_dicom_series
from dicom_scenes import AXIAL, OBLIQUE, SHAPE_KJI, a_series, apart, liver_and_tumor
from dicom_server import busy_at_first, storage
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet
from pydicom.filewriter import write_dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.dicom_seg import write_dicom_seg
from SAM2AssistLib.io.dicom_series import list_series
from SAM2AssistLib.io.rtstruct import read_rtstruct, write_rtstruct
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation
from SAM2AssistLib.transfer.dicomweb import DicomWebArchive
from SAM2AssistLib.transfer.dimse import DimseArchive, Peer
from SAM2AssistLib.transfer.moving import push
from SAM2AssistLib.volume import CTVolume


def assert_same_volume(found, expected):
    """The same voxels at the same place."""
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.ijk_to_lps, expected.ijk_to_lps, atol=1e-4)


def an_enhanced_image(folder, volume, order=None, **settings):
    """Make a multi-frame image of a series, by highdicom, frames in the given order."""
    datasets = [pydicom.dcmread(path) for path in volume.dicom_files]
    for dataset in datasets:
        dataset.FrameAcquisitionNumber = 1
        dataset.AcquisitionDateTime = "20200101120000"
    image = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [datasets[k] for k in order or range(len(datasets))], generate_uid(), 2, generate_uid(), 1, **settings
    )
    folder.mkdir()
    image.save_as(folder / "enhanced.dcm")
    return folder / "enhanced.dcm"


# ------------------------------------------------------------------------------------------------------- multi-frame


@pytest.mark.parametrize("grid", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("order", [None, [3, 0, 5, 1, 2, 4]], ids=["in order", "mixed"])
def test_an_enhanced_image_is_the_volume_of_its_frames(tmp_path, grid, order):
    volume = a_series(tmp_path / "ct", ijk_to_lps=grid)
    path = an_enhanced_image(tmp_path / "enhanced", volume, order)
    found = CTVolume.read(path.parent)
    assert_same_volume(found, volume)
    assert found.dicom_files == (path,) * SHAPE_KJI[0]
    assert_same_volume(CTVolume.read(path), volume)


def test_each_frame_is_rescaled_by_its_own_slope_and_intercept(tmp_path):
    volume = a_series(tmp_path / "ct")
    path = an_enhanced_image(tmp_path / "enhanced", volume)
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if "PixelValueTransformationSequence" in shared:
        del shared.PixelValueTransformationSequence
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item = pydicom.Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = "1", str(-1024 + 10 * number), "HU"
        frame.PixelValueTransformationSequence = [item]
    dataset.save_as(path)
    steps = (CTVolume.read(path).array.astype(int) - volume.array)[:, 0, 0]
    assert sorted(steps) == [0, 10, 20, 30, 40, 50]


def test_a_segmentation_of_an_enhanced_image_refers_to_its_frames_and_comes_back(tmp_path):
    volume = CTVolume.read(an_enhanced_image(tmp_path / "enhanced", a_series(tmp_path / "ct"), [3, 0, 5, 1, 2, 4]))
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume)
    masks = masks_on_grid_of(volume, *read_segmentation(tmp_path / "a.dcm", volume))
    for found, expected in zip(masks, liver_and_tumor(), strict=True):
        np.testing.assert_array_equal(found.mask, expected.mask)
    image = pydicom.dcmread(volume.dicom_files[0])
    for frame in pydicom.dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        referred = image.PerFrameFunctionalGroupsSequence[int(source.ReferencedFrameNumber) - 1]
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
        expected = referred.PlanePositionSequence[0].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == expected


def test_contours_on_an_enhanced_image_come_back(tmp_path):
    volume = CTVolume.read(an_enhanced_image(tmp_path / "enhanced", a_series(tmp_path / "ct"), [3, 0, 5, 1, 2, 4]))
    write_rtstruct(tmp_path / "a.dcm", liver_and_tumor(), volume)
    for found, expected in zip(read_rtstruct(tmp_path / "a.dcm", volume), liver_and_tumor(), strict=True):
        np.testing.assert_array_equal(found.mask, expected.mask)


def test_frames_without_a_place_are_refused(tmp_path):
    path = an_enhanced_image(tmp_path / "enhanced", a_series(tmp_path / "ct"))
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    dataset.save_as(path)
    with pytest.raises(InputError, match="does not say where its frames lie"):
        CTVolume.read(path.parent)


def without_shared_groups(path, *, is_empty):
    """Move what the frames of an enhanced image share into each frame, and leave the shared sequence empty or out."""
    dataset = pydicom.dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for element in dataset.SharedFunctionalGroupsSequence[0]:
            frame.setdefault(element.tag, element)
    del dataset.SharedFunctionalGroupsSequence
    if is_empty:
        dataset.SharedFunctionalGroupsSequence = []
    dataset.save_as(path)


@pytest.mark.parametrize("is_empty", [False, True], ids=["absent", "empty"])
def test_results_are_written_for_an_enhanced_image_whose_frames_share_nothing(tmp_path, is_empty):
    path = an_enhanced_image(tmp_path / "enhanced", a_series(tmp_path / "ct"))
    without_shared_groups(path, is_empty=is_empty)
    volume = CTVolume.read(path)
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume)
    write_rtstruct(tmp_path / "b.dcm", liver_and_tumor(), volume)
    segments = masks_on_grid_of(volume, *read_segmentation(tmp_path / "a.dcm", volume))
    for masks in (segments, read_rtstruct(tmp_path / "b.dcm", volume)):
        for found, expected in zip(masks, liver_and_tumor(), strict=True):
            np.testing.assert_array_equal(found.mask, expected.mask)


def test_a_wrong_slice_distance_of_an_enhanced_image_does_not_reach_the_result(tmp_path):
    path = an_enhanced_image(tmp_path / "enhanced", a_series(tmp_path / "ct"))
    dataset = pydicom.dcmread(path)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = 1.25
    del measures.SliceThickness
    dataset.save_as(path)
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), CTVolume.read(path))
    told = pydicom.dcmread(tmp_path / "a.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (told.SpacingBetweenSlices, told.SliceThickness) == pytest.approx((2.5, 2.5))


# --------------------------------------------------------------------------------------------------- without preamble


def without_preamble(path):
    """Leave out the first 132 bytes, as old archives do."""
    path.write_bytes(path.read_bytes()[132:])


def without_meta(path):
    """Leave out the preamble and the file meta information: only the data set as it goes over the network."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    write_dataset(buffer, pydicom.dcmread(path))
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("strip", [without_preamble, without_meta])
def test_results_refer_to_images_whose_files_have_no_preamble(tmp_path, strip):
    volume = a_series(tmp_path / "ct")
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in volume.dicom_files}
    for path in volume.dicom_files:
        strip(path)
    write_dicom_seg(tmp_path / "a.dcm", apart(), volume)
    write_rtstruct(tmp_path / "b.dcm", apart(), volume)
    (series,) = pydicom.dcmread(tmp_path / "a.dcm").ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == uids


def test_images_without_preamble_and_meta_information_are_read(tmp_path):
    volume = a_series(tmp_path / "ct")
    for path in volume.dicom_files:
        without_meta(path)
    assert_same_volume(CTVolume.read(tmp_path / "ct"), volume)


class Kept:
    """An archive that keeps the identity of what it is sent."""

    name = "kept:104"

    def __init__(self):
        self.asked = []

    def store(self, files):
        yield from files

    def holds(self, instance):
        self.asked.append(instance.sop_uid)
        return True


@pytest.mark.parametrize("strip", [without_preamble, without_meta])
def test_files_without_a_preamble_are_sent(tmp_path, strip):
    files = write_dicom_series(tmp_path / "ct", ct_values((3, 16, 16)))
    uids = sorted(pydicom.dcmread(path).SOPInstanceUID for path in files)
    for path in files:
        strip(path)
    archive = Kept()
    list(push(archive, files))
    assert sorted(archive.asked) == uids
    with storage() as (port, received):
        assert list(DimseArchive(Peer("localhost", port, "STORAGE")).store(files)) == files
    assert sorted(received) == uids
    with busy_at_first(0, 503) as (address, asked):
        assert list(DicomWebArchive(address).store(files)) == files
    assert asked == ["POST"] * len(files)


# --------------------------------------------------------------------------------------------------------- compressed


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless], ids=["JPEG-LS", "JPEG 2000", "RLE"])
@pytest.mark.parametrize("is_enhanced", [False, True], ids=["single", "enhanced"])
def test_lossless_compression_changes_nothing(tmp_path, syntax, is_enhanced):
    volume = a_series(tmp_path / "ct", (3, 64, 64))  # JPEG 2000 has no smaller tiles by default
    files = [an_enhanced_image(tmp_path / "enhanced", volume)] if is_enhanced else volume.dicom_files
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    assert_same_volume(CTVolume.read(files[0].parent), volume)


def test_what_itk_cannot_decode_is_left_to_pydicom(tmp_path, monkeypatch):
    from SAM2AssistLib.io import _dicom_pixels

    volume = a_series(tmp_path / "ct")

    def unknown(*_):
        raise RuntimeError("GDCM does not know this transfer syntax")

    monkeypatch.setattr(_dicom_pixels.sitk, "ReadImage", unknown)
    assert_same_volume(CTVolume.read(tmp_path / "ct"), volume)


# ----------------------------------------------------------------------------------------------------------- DICOMDIR


@pytest.fixture
def a_medium(tmp_path):
    """A folder as on a CD: a DICOMDIR, and the files of a series below it."""
    volume = a_series(tmp_path / "ct")
    medium = FileSet()
    for path in volume.dicom_files:
        medium.add(path)
    medium.write(tmp_path / "cd")
    return tmp_path / "cd", volume


def test_a_medium_is_read_by_its_dicomdir(a_medium):
    folder, volume = a_medium
    assert_same_volume(CTVolume.read(folder), volume)
    assert_same_volume(CTVolume.read(folder / "DICOMDIR"), volume)


def test_a_dicomdir_that_lists_files_that_are_gone_is_refused(a_medium):
    folder, _ = a_medium
    next(path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR").unlink()
    with pytest.raises(InputError, match="not there"):
        CTVolume.read(folder)


def test_a_damaged_dicomdir_is_refused(a_medium):
    folder, _ = a_medium
    (folder / "DICOMDIR").write_bytes((folder / "DICOMDIR").read_bytes()[:400])
    with pytest.raises(InputError, match="DICOMDIR"):
        CTVolume.read(folder / "DICOMDIR")


# ---------------------------------------------------------------------------------------------- copies, acquisitions


def test_the_same_image_in_two_files_counts_once(tmp_path):
    volume = a_series(tmp_path / "ct")
    shutil.copy(volume.dicom_files[2], tmp_path / "ct" / "zz copy.dcm")
    found = CTVolume.read(tmp_path / "ct")
    assert_same_volume(found, volume)
    assert any("several files" in note and "zz copy.dcm" in note for note in found.warnings)


def two_acquisitions(folder):
    """Write one series whose slices were taken twice."""
    uid, values = generate_uid(), ct_values(SHAPE_KJI)
    for number in (1, 2):
        write_dicom_series(
            folder, values + 10 * number, AXIAL, series_uid=uid, prefix=f"a{number}", SeriesNumber=7,
            AcquisitionNumber=number,
        )  # fmt: skip
    return values


def test_of_several_acquisitions_in_a_series_one_has_to_be_chosen(tmp_path):
    values = two_acquisitions(tmp_path / "ct")
    with pytest.raises(InputError, match=r"--series NUMBER: 7\.1 \(.*; 7\.2 \("):
        CTVolume.read(tmp_path / "ct")
    np.testing.assert_array_equal(CTVolume.read(tmp_path / "ct", series="7.2").array, values + 20)


def test_the_uid_of_a_series_of_several_acquisitions_is_not_enough(tmp_path):
    two_acquisitions(tmp_path / "ct")
    (uid,) = {series.uid for series in list_series(tmp_path / "ct")}
    with pytest.raises(InputError, match="several times") as caught:
        CTVolume.read(tmp_path / "ct", series=uid)
    assert uid not in str(caught.value)


def test_acquisitions_one_above_the_other_are_one_volume(tmp_path):
    volume = a_series(tmp_path / "ct")
    for path in volume.dicom_files[:3]:
        changed(path, AcquisitionNumber=2)
    assert_same_volume(CTVolume.read(tmp_path / "ct"), volume)


def test_an_image_stands_for_the_acquisition_that_it_is_in(tmp_path):
    values = two_acquisitions(tmp_path / "ct")
    found = CTVolume.read(tmp_path / "ct" / "a2_003.dcm")
    np.testing.assert_array_equal(found.array, values + 20)


@pytest.mark.parametrize("uid", ["", None], ids=["empty", "absent"])
def test_an_image_stands_for_its_series_where_an_anonymizer_took_its_uid(tmp_path, uid):
    values = ct_values(SHAPE_KJI)
    files = write_dicom_series(tmp_path / "ct", values, AXIAL, prefix="anonymous")
    for path in files:
        changed(path, SeriesInstanceUID=uid)
    write_dicom_series(tmp_path / "ct", values[:4] + 10, AXIAL, prefix="other")
    np.testing.assert_array_equal(CTVolume.read(files[2]).array, values)


def test_series_are_chosen_by_their_numbers(tmp_path):
    for number in (3, 8):
        write_dicom_series(
            tmp_path / "ct", ct_values((number, 9, 9)), prefix=f"s{number}", SeriesNumber=number, SeriesDescription="x"
        )
    assert [str(series) for series in list_series(tmp_path / "ct")] == [
        "8 ('x', CT, 8 images)",
        "3 ('x', CT, 3 images)",
    ]
    assert CTVolume.read(tmp_path / "ct", series="3").shape_kji == (3, 9, 9)


def test_a_segmentation_among_the_images_is_passed_over(tmp_path):
    volume = a_series(tmp_path / "ct")
    write_dicom_seg(tmp_path / "ct" / "result.dcm", apart(), volume)
    write_rtstruct(tmp_path / "ct" / "contours.dcm", apart(), volume)
    assert_same_volume(CTVolume.read(tmp_path / "ct"), volume)


def test_no_sentence_about_series_names_the_patient(tmp_path):
    two_acquisitions(tmp_path / "ct")
    with pytest.raises(InputError) as caught:
        CTVolume.read(tmp_path / "ct")
    assert PATIENT_ID not in str(caught.value)
