"""RTSTRUCT: contours come back as the same voxels, and others can read them."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from ct_files import affine
from dicom_scenes import AXIAL, OBLIQUE, SHAPE_KJI, a_series, apart, complaints, liver_and_tumor
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid
from skimage.draw import polygon

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.algorithm import Algorithm
from SAM2AssistLib.io.dicom_seg import write_dicom_seg
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


def test_a_name_that_had_to_be_changed_is_told_as_for_a_dicom_seg(tmp_path):
    volume = a_series(tmp_path / "ct")
    masks = [NamedMask(name, apart()[0].mask) for name in ("x" * 70, "left\\right", "liver")]
    notes = write_rtstruct(tmp_path / "a.dcm", masks, volume)
    assert len(notes) == 2
    assert notes == write_dicom_seg(tmp_path / "b.dcm", masks, volume)


# ----------------------------------------------------------------------------------------- contours of other slices

FRAME = generate_uid()


def a_scan(folder, count, step, offset=0.0, **tags):
    """A series of slices `step` mm apart, of which the first lies at `offset` mm, all in one frame of reference."""
    grid = affine((0.8, 0.8, step), origin_lps=(-5.0, 3.0, offset))
    return a_series(folder, (count, 24, 20), grid, **{"FrameOfReferenceUID": FRAME, **tags})


def growing(count, slices):
    """A structure that is another one on each of these slices."""
    mask = np.zeros((count, 24, 20), bool)
    for k in slices:
        mask[k, 3 : 6 + k % 15, 4:16] = True
    return mask


def read_with_notes(path, volume):
    """The mask of the first structure, and the sentences."""
    notes = []
    return read_rtstruct(path, volume, notes)[0].mask, notes


@pytest.mark.parametrize(
    ("drawn_mm", "read_mm", "offset"),
    [(1.0, 2.0, 0.0), (1.0, 1.5, 0.0), (4.0, 1.0, 0.0), (1.0, 2.0, 0.5), (2.0, 1.0, 0.3), (3.0, 2.0, 0.0)],
)
def test_contours_of_other_slices_are_brought_to_the_nearest_and_the_user_is_told(tmp_path, drawn_mm, read_mm, offset):
    drawn, there = a_scan(tmp_path / "a", 12, drawn_mm), a_scan(tmp_path / "b", int(12 * drawn_mm), read_mm, offset)
    mask = growing(12, range(2, 10))
    write_rtstruct(tmp_path / "a.dcm", [NamedMask("liver", mask)], drawn)
    found, notes = read_with_notes(tmp_path / "a.dcm", there)
    expected = np.zeros_like(found)
    for k in range(len(found)):
        nearest = int(np.floor((k * read_mm + offset) / drawn_mm + 0.5 + 1e-6))
        expected[k] = nearest < len(mask) and mask[nearest]
    assert expected.any()
    np.testing.assert_array_equal(found, expected)
    (note,) = notes
    assert "'liver'" in note
    assert "other slices" in note


def test_where_a_structure_of_other_slices_is_absent_it_stays_absent(tmp_path):
    mask = growing(20, [2, 3, 4, 5, 12, 13, 14, 15])
    write_rtstruct(tmp_path / "a.dcm", [NamedMask("lungs", mask)], a_scan(tmp_path / "a", 20, 1.0))
    found, _ = read_with_notes(tmp_path / "a.dcm", a_scan(tmp_path / "b", 10, 2.0, 0.2))
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [1, 2, 6, 7]


def test_holes_of_contours_of_other_slices_are_kept(tmp_path):
    whole, hole = (NamedMask(name, np.zeros((12, 24, 20), bool)) for name in ("liver", "hole"))
    whole.mask[2:10, 3:20, 3:18] = hole.mask[2:10, 8:12, 7:11] = True
    write_rtstruct(tmp_path / "a.dcm", [whole, hole], a_scan(tmp_path / "a", 12, 1.0))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    outside, inside = dataset.ROIContourSequence
    outside.ContourSequence.extend(inside.ContourSequence)
    dataset.save_as(tmp_path / "a.dcm")
    found, _ = read_with_notes(tmp_path / "a.dcm", a_scan(tmp_path / "b", 6, 2.0))
    np.testing.assert_array_equal(found, (whole.mask & ~hole.mask)[::2])


def test_a_structure_with_contours_in_one_plane_between_slices_is_not_lost(tmp_path):
    write_rtstruct(tmp_path / "a.dcm", [NamedMask("node", growing(12, [5]))], a_scan(tmp_path / "a", 12, 1.0))
    found, notes = read_with_notes(tmp_path / "a.dcm", a_scan(tmp_path / "b", 6, 2.0, 0.5))
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [2]
    assert notes


def test_a_structure_in_one_plane_is_as_thick_as_the_slices_of_the_others(tmp_path):
    masks = [NamedMask("node", growing(6, [3])), NamedMask("liver", growing(6, range(1, 5)))]
    write_rtstruct(tmp_path / "a.dcm", masks, a_scan(tmp_path / "a", 6, 4.0))
    found, _ = read_with_notes(tmp_path / "a.dcm", a_scan(tmp_path / "b", 24, 1.0))
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [10, 11, 12, 13]


def test_contours_in_a_few_slices_of_their_own_series_stay_in_these(tmp_path):
    volume = a_scan(tmp_path / "a", 12, 2.0)
    mask = growing(12, [1, 4, 7, 10])
    write_rtstruct(tmp_path / "a.dcm", [NamedMask("lesions", mask)], volume)
    found, notes = read_with_notes(tmp_path / "a.dcm", volume)
    np.testing.assert_array_equal(found, mask)
    assert notes == []


@pytest.mark.parametrize("beside", [[], [1, 2, 3, 4]], ids=["alone", "beside whole ones"])
def test_contours_in_a_few_slices_of_a_copy_of_their_series_stay_in_these(tmp_path, beside):
    masks = [NamedMask("lesions", growing(12, [1, 8])), NamedMask("liver", growing(12, beside))]
    write_rtstruct(tmp_path / "a.dcm", masks, a_scan(tmp_path / "a", 12, 2.0))
    found, notes = read_with_notes(tmp_path / "a.dcm", a_scan(tmp_path / "b", 12, 2.0))
    np.testing.assert_array_equal(found, masks[0].mask)
    assert notes == []


# --------------------------------------------------------------------------------------------------------- refusals


def without_roi_frames(dataset):
    """Leave the frame of reference where it stands for the whole structure set alone."""
    for item in dataset.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID


def without_any_frame(dataset):
    """Say nothing of a frame of reference."""
    without_roi_frames(dataset)
    del dataset.ReferencedFrameOfReferenceSequence, dataset.FrameOfReferenceUID


def read_in_another_frame(tmp_path, edit):
    """Open a structure set, edited, with a CT on the same grid in another frame of reference."""
    write_rtstruct(tmp_path / "a.dcm", liver_and_tumor(), a_series(tmp_path / "ct"))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    edit(dataset)
    dataset.save_as(tmp_path / "a.dcm")
    return read_segmentation(tmp_path / "a.dcm", a_series(tmp_path / "other"))


@pytest.mark.parametrize("edit", [lambda dataset: None, without_roi_frames], ids=["of regions", "of the set"])
def test_one_of_another_frame_of_reference_is_refused(tmp_path, edit):
    with pytest.raises(InputError, match="another scan"):
        read_in_another_frame(tmp_path, edit)


def test_one_that_tells_no_frame_of_reference_is_accepted(tmp_path):
    assert_same(read_in_another_frame(tmp_path, without_any_frame)[0], liver_and_tumor())


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


def test_what_lies_outside_of_a_shorter_ct_is_told_and_left_out(a_structure_set, tmp_path):
    path, volume = a_structure_set
    upper = CTVolume.from_array(volume.array[4:], volume.spacing_ijk, volume.ijk_to_lps @ affine(origin_lps=(0, 0, 4)))
    notes = []
    found = read_rtstruct(path, upper, notes)
    expected = [NamedMask(named.name, named.mask[4:]) for named in liver_and_tumor()]
    assert_same(found, expected)
    voxel_ml = np.prod(volume.spacing_ijk) / 1000
    sizes = [(int(named.mask[:4].sum()) * voxel_ml, int(named.mask.sum()) * voxel_ml) for named in liver_and_tumor()]
    assert notes == [
        f"{out:.3g} of {whole:.3g} ml of '{named.name}' lie outside of the CT and are left out."
        for (out, whole), named in zip(sizes, expected, strict=True)
    ]


def test_what_lies_beside_a_narrower_ct_is_told_and_left_out(a_structure_set):
    path, volume = a_structure_set
    narrow = CTVolume.from_array(volume.array[:, :, :8], volume.spacing_ijk, volume.ijk_to_lps)
    notes = []
    found = read_rtstruct(path, narrow, notes)
    assert_same(found, [NamedMask(named.name, named.mask[:, :, :8]) for named in liver_and_tumor()])
    assert [note.partition(" ml of ")[2] for note in notes] == [
        "'liver' lie outside of the CT and are left out.",
        "'liver tumor' lie outside of the CT and are left out.",
    ]


def test_nothing_is_told_of_one_that_fills_its_ct(tmp_path):
    volume, notes = a_series(tmp_path / "ct"), []
    write_rtstruct(tmp_path / "a.dcm", [NamedMask("all", np.ones(SHAPE_KJI, bool))], volume)
    assert read_rtstruct(tmp_path / "a.dcm", volume, notes)[0].mask.all()
    assert notes == []


def test_one_without_contours_is_refused(a_structure_set):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    del dataset.ROIContourSequence
    dataset.save_as(path)
    with pytest.raises(InputError, match="no closed contour"):
        read_rtstruct(path, volume)


@pytest.mark.parametrize("number", ["nan", "inf", "1e9"])
def test_one_with_a_coordinate_that_is_no_place_is_damaged(a_structure_set, number):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    contour = dataset.ROIContourSequence[0].ContourSequence[1]
    text = [number, *map(str, list(contour.ContourData)[1:])]
    contour["ContourData"] = pydicom.DataElement("ContourData", "DS", text, already_converted=True)
    dataset.save_as(path)
    with pytest.raises(InputError, match="damaged"):
        read_rtstruct(path, volume)


def test_a_contour_with_half_a_point_is_damaged_and_not_left_out(a_structure_set):
    path, volume = a_structure_set
    dataset = pydicom.dcmread(path)
    contour = dataset.ROIContourSequence[0].ContourSequence[1]
    contour.ContourData = list(contour.ContourData)[:-1]
    dataset.save_as(path)
    with pytest.raises(InputError, match="damaged"):
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
