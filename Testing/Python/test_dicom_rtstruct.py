"""RTSTRUCT: contours come back as the same voxels, and others can read them."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from ct_files import affine
from dicom_scenes import AXIAL, OBLIQUE, SHAPE_KJI, a_series, apart, complaints, liver_and_tumor
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.algorithm import Algorithm
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.rtstruct import outlines, read_rtstruct, write_rtstruct
from SAM2AssistLib.io.segmentation import read_segmentation
from SAM2AssistLib.prompting.support import read_support
from SAM2AssistLib.volume import CTVolume


def assert_same(found, expected):
    """The same names and voxels in the same order."""
    assert [named.name for named in found] == [named.name for named in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


@pytest.fixture
def a_structure_set(tmp_path):
    """Two structures on a series, as a file and a data set, and the volume."""
    volume = a_series(tmp_path / "ct")
    write_rtstruct(tmp_path / "a.dcm", liver_and_tumor(), volume, algorithm=Algorithm(is_automatic=True))
    return tmp_path / "a.dcm", volume


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.8, 0.95]), st.integers(1, 14), st.integers(1, 14))
def test_outlines_of_any_mask_hold_just_its_pixels(seed, share, rows, columns):
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    filled = np.zeros_like(mask)
    for outline in outlines(mask):
        filled[polygon(outline[:, 0], outline[:, 1], mask.shape)] ^= True
    np.testing.assert_array_equal(filled, mask)


def test_a_hole_within_a_hole_is_kept():
    mask = np.zeros((15, 15), bool)
    for margin, value in ((1, True), (3, False), (5, True), (7, False)):
        mask[margin:-margin, margin:-margin] = value
    parts = list(outlines(mask))
    assert len(parts) == 2
    filled = np.zeros_like(mask)
    for outline in parts:
        filled[polygon(outline[:, 0], outline[:, 1], mask.shape)] ^= True
    np.testing.assert_array_equal(filled, mask)


@pytest.mark.parametrize("grid", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("masks", [apart(), liver_and_tumor()], ids=["apart", "overlapping"])
def test_structures_come_back_with_names_and_voxels(tmp_path, grid, masks):
    volume = a_series(tmp_path / "ct", ijk_to_lps=grid)
    write_rtstruct(tmp_path / "a.dcm", masks, volume)
    assert_same(read_rtstruct(tmp_path / "a.dcm", volume), masks)


def test_masks_with_holes_and_single_voxels_come_back(tmp_path):
    volume = a_series(tmp_path / "ct", (4, 40, 40))
    generator = np.random.default_rng(5)
    masks = [NamedMask(f"{share}", generator.random((4, 40, 40)) < share) for share in (0.02, 0.5, 0.9)]
    write_rtstruct(tmp_path / "a.dcm", masks, volume)
    assert_same(read_rtstruct(tmp_path / "a.dcm", volume), masks)


def test_contours_longer_than_64_kilobytes_can_be_written(tmp_path):
    volume = a_series(tmp_path / "ct", (2, 150, 150))
    comb = np.zeros((2, 150, 150), bool)
    comb[0, ::2, :] = comb[0, :, 0] = True
    comb[0, 1::2, ::3] = True
    write_rtstruct(tmp_path / "a.dcm", [NamedMask("comb", comb)], volume)
    (contours,) = pydicom.dcmread(tmp_path / "a.dcm").ROIContourSequence
    assert max(len(item.get_item("ContourData").value) for item in contours.ContourSequence) > 65536
    assert_same(read_rtstruct(tmp_path / "a.dcm", volume), [NamedMask("comb", comb)])


def test_it_opens_like_any_segmentation_for_its_volume(a_structure_set):
    path, volume = a_structure_set
    masks, ijk_to_lps = read_segmentation(path, volume)
    assert_same(masks, liver_and_tumor())
    np.testing.assert_array_equal(ijk_to_lps, volume.ijk_to_lps)


def test_dciodvfy_finds_no_error(a_structure_set):
    assert complaints(a_structure_set[0]) == []


def test_each_contour_lies_in_the_image_that_it_refers_to(a_structure_set):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, volume.dicom_files)}
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            normal = np.cross(image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:])
            points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
            off = (points - np.array(image.ImagePositionPatient, float)) @ normal
            assert np.abs(off).max() < 1e-3
            assert contour.NumberOfContourPoints == len(points)
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    referenced = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced} == set(images)


def test_it_says_how_structures_were_made_and_what_color_they_have(a_structure_set):
    dataset = pydicom.dcmread(a_structure_set[0])
    assert {item.ROIGenerationAlgorithm for item in dataset.StructureSetROISequence} == {"AUTOMATIC"}
    assert [int(part) for part in dataset.ROIContourSequence[0].ROIDisplayColor] == [221, 130, 101]


def test_contours_inside_one_another_make_a_hole(a_structure_set):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    liver, tumor = dataset.ROIContourSequence
    liver.ContourSequence.extend(tumor.ContourSequence)
    dataset.save_as(path)
    found = read_rtstruct(path, volume)[0].mask
    expected = liver_and_tumor()
    np.testing.assert_array_equal(found, expected[0].mask & ~expected[1].mask)


def test_points_of_reference_are_passed_over(a_structure_set):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    for contour in dataset.ROIContourSequence[1].ContourSequence:
        contour.ContourGeometricType = "POINT"
    dataset.save_as(path)
    assert [named.name for named in read_rtstruct(path, volume)] == ["liver"]


# --------------------------------------------------------------------------------------------------------- refusals


def test_without_its_ct_it_is_refused(a_structure_set):
    with pytest.raises(InputError, match="give its CT"):
        read_segmentation(a_structure_set[0])


def test_with_another_ct_it_is_refused(a_structure_set, tmp_path):
    far = a_series(tmp_path / "far", ijk_to_lps=affine((1, 1, 1), origin_lps=(5000, 5000, 5000)))
    tilted = CTVolume(far.array, OBLIQUE[:, [2, 1, 0, 3]])
    with pytest.raises(InputError, match="outside of the CT|across the slices"):
        read_rtstruct(a_structure_set[0], far)
    with pytest.raises(InputError, match="across the slices"):
        read_rtstruct(a_structure_set[0], tilted)


def test_one_without_contours_is_refused(a_structure_set):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    del dataset.ROIContourSequence
    dataset.save_as(path)
    with pytest.raises(InputError, match="no closed contour"):
        read_rtstruct(path, volume)


def test_an_image_is_no_structure_set(a_structure_set):
    _, volume = a_structure_set
    with pytest.raises(InputError, match="no RTSTRUCT"):
        read_rtstruct(volume.dicom_files[0], volume)


def test_masks_on_another_grid_than_the_images_are_refused(tmp_path):
    volume = a_series(tmp_path / "ct")
    moved = CTVolume(volume.array, volume.ijk_to_lps @ affine(origin_lps=(3, 0, 0)))
    with pytest.raises(InputError, match="another grid"):
        write_rtstruct(tmp_path / "a.dcm", apart(), moved, source_files=volume.dicom_files)
    assert not (tmp_path / "a.dcm").exists()


def test_empty_segments_alone_are_refused(tmp_path):
    with pytest.raises(InputError, match="empty"):
        write_rtstruct(tmp_path / "a.dcm", [NamedMask("a", np.zeros(SHAPE_KJI, bool))], a_series(tmp_path / "ct"))


def test_an_rtstruct_can_be_the_mask_of_a_support_case(a_structure_set, tmp_path):
    path, _ = a_structure_set
    found = read_support(tmp_path / "ct", path)
    expected = liver_and_tumor()
    assert set(found.masks) == {named.name for named in expected}
    for named in expected:
        np.testing.assert_array_equal(found.masks[named.name], named.mask)
