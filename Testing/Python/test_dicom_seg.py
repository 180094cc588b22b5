"""DICOM-SEG: what is written is read back voxel by voxel, by this program and by those of others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_files import PATIENT_NAME, affine, changed, ct_values, rotation, write_dicom_series
from dicom_scenes import (
    AXIAL,
    OBLIQUE,
    SHAPE_KJI,
    a_series,
    apart,
    box_mask,
    call,
    complaints,
    dcmqi_writing,
    liver_and_tumor,
    program,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slicer_nodes import segment_voxels

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.algorithm import Algorithm, adapter_sha256
from SAM2AssistLib.io.dicom_seg import SegKind, write_dicom_seg
from SAM2AssistLib.io.dicom_seg_reader import read_dicom_seg
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation, write_segmentation
from SAM2AssistLib.io.terminology import Code, terminology_of, terminology_of_segment
from SAM2AssistLib.volume import CTVolume

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct_liver_3slices"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")


def assert_same(found, expected):
    """The same names and voxels in the same order."""
    assert [named.name for named in found] == [named.name for named in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


def read_on(volume, path):
    """Read a segmentation on the grid of a volume."""
    masks, ijk_to_lps = read_segmentation(path, volume)
    return masks_on_grid_of(volume, masks, ijk_to_lps)


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("masks", [apart(), liver_and_tumor()], ids=["apart", "overlapping"])
@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.FRACTIONAL])
def test_segments_of_an_oblique_series_come_back_with_names_and_voxels(tmp_path, masks, kind):
    volume = a_series(tmp_path / "ct")
    assert write_dicom_seg(tmp_path / "a.dcm", masks, volume, kind=kind) == ()
    assert_same(read_on(volume, tmp_path / "a.dcm"), masks)


def test_a_label_map_comes_back(tmp_path):
    volume = a_series(tmp_path / "ct")
    write_dicom_seg(tmp_path / "a.dcm", apart(), volume, kind=SegKind.LABELMAP)
    assert pydicom.dcmread(tmp_path / "a.dcm").SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert_same(read_on(volume, tmp_path / "a.dcm"), apart())


@st.composite
def scenes(draw):
    """A grid turned any way, with random masks on it of which one has a voxel for sure."""
    shape = draw(st.tuples(st.integers(2, 6), st.integers(3, 9), st.integers(3, 9)))
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 5)] * 3))
    origin = draw(st.tuples(*[st.floats(-400, 400)] * 3))
    seed = draw(st.integers(0, 2**32 - 1))
    count = draw(st.integers(1, 3))
    generator = np.random.default_rng(seed)
    masks = [generator.random(shape) < draw(st.sampled_from([0.02, 0.3, 0.9])) for _ in range(count)]
    masks[0][tuple(generator.integers(0, size) for size in shape)] = True
    return affine(spacing, rotation(angles), origin), shape, masks, generator.permutation(shape[0])


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(scenes())
def test_any_mask_on_any_grid_comes_back_whatever_the_order_of_files(tmp_path_factory, scene):
    ijk_to_lps, shape, arrays, order = scene
    folder = tmp_path_factory.mktemp("scene")
    volume = a_series(folder / "ct", shape, ijk_to_lps)
    masks = [NamedMask(f"part {number}", array) for number, array in enumerate(arrays)]
    files = [volume.dicom_files[index] for index in order]
    write_dicom_seg(folder / "a.dcm", masks, volume, source_files=files)
    assert_same(read_on(volume, folder / "a.dcm"), masks)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(axes=st.permutations((0, 1, 2)), flips=st.tuples(*[st.booleans()] * 3))
def test_a_volume_that_was_turned_and_flipped_is_brought_back_to_its_images(tmp_path_factory, axes, flips):
    folder = tmp_path_factory.mktemp("turned")
    volume = a_series(folder / "ct")
    turned = turned_volume(volume, axes, flips)
    masks = [NamedMask(named.name, turned_array(named.mask, axes, flips)) for named in liver_and_tumor()]
    assert write_dicom_seg(folder / "a.dcm", masks, turned, source_files=volume.dicom_files) == ()
    assert_same(read_on(volume, folder / "a.dcm"), liver_and_tumor())
    frames = pydicom.dcmread(folder / "a.dcm").PerFrameFunctionalGroupsSequence
    assert all(frame.DerivationImageSequence[0].SourceImageSequence for frame in frames)


def turned_array(array, axes, flips):
    """An array with its axes in another order, and some of these flipped."""
    return np.flip(array.transpose(axes), [axis for axis in range(3) if flips[axis]])


def turned_volume(volume, axes, flips):
    """A volume with its array axes in another order and flipped, at the same place in the patient."""
    matrix = volume.ijk_to_lps.copy()
    columns = [2 - axis for axis in axes][::-1]
    matrix[:3, :3] = volume.ijk_to_lps[:3, columns]
    shape_ijk = turned_array(volume.array, axes, flips).shape[::-1]
    for axis in range(3):
        if flips[2 - axis]:
            matrix[:3, 3] += matrix[:3, axis] * (shape_ijk[axis] - 1)
            matrix[:3, axis] *= -1
    return CTVolume(np.ascontiguousarray(turned_array(volume.array, axes, flips)), matrix)


def test_masks_on_a_finer_grid_than_the_images_are_written_as_they_are_and_the_user_is_told(tmp_path):
    volume = a_series(tmp_path / "ct", ijk_to_lps=AXIAL)
    finer = CTVolume(np.zeros((12, 48, 40), np.int16), affine((0.4, 0.4, 1.5), origin_lps=AXIAL[:3, 3]))
    masks = liver_and_tumor(finer.shape_kji)
    (note,) = write_dicom_seg(tmp_path / "a.dcm", masks, finer, source_files=volume.dicom_files)
    assert "another grid" in note
    assert_same(read_on(finer, tmp_path / "a.dcm"), masks)


def test_an_empty_segment_beside_others_comes_back_empty(tmp_path):
    volume = a_series(tmp_path / "ct")
    masks = [*apart(), NamedMask("spleen", np.zeros(SHAPE_KJI, bool))]
    write_dicom_seg(tmp_path / "a.dcm", masks, volume)
    assert_same(read_on(volume, tmp_path / "a.dcm"), masks)


def test_a_segment_on_a_single_slice_keeps_its_place(tmp_path):
    volume = a_series(tmp_path / "ct")
    masks = [NamedMask("liver", box_mask(SHAPE_KJI, (3, 4, 4), (4, 9, 9)))]
    write_dicom_seg(tmp_path / "a.dcm", masks, volume)
    assert_same(read_on(volume, tmp_path / "a.dcm"), masks)


@pytest.mark.parametrize(("slices", "thickness"), [([1, 8], "3"), ([1, 8], "2.9999"), ([1, 2, 4], "2"), ([1, 2], "8")])
def test_a_segment_is_not_thickened_where_only_the_thickness_tells_the_slice_distance(tmp_path, slices, thickness):
    volume = a_series(tmp_path / "ct", (10, 24, 20), AXIAL)
    mask = np.zeros(volume.shape_kji, bool)
    mask[slices, 4:9, 4:9] = True
    write_dicom_seg(tmp_path / "a.dcm", [NamedMask("lesions", mask)], volume)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices
    measures.SliceThickness = thickness
    dataset.save_as(tmp_path / "a.dcm")
    assert_same(read_on(volume, tmp_path / "a.dcm"), [NamedMask("lesions", mask)])


def test_by_the_ending_dcm_a_result_becomes_a_dicom_seg(tmp_path):
    volume = a_series(tmp_path / "ct")
    write_segmentation(tmp_path / "a.dcm", apart(), volume)
    assert pydicom.dcmread(tmp_path / "a.dcm").Modality == "SEG"


# ------------------------------------------------------------------------------------------------------ what it says


@pytest.fixture
def a_seg(tmp_path):
    """A DICOM-SEG of liver and tumour as a data set."""
    volume = a_series(tmp_path / "ct")
    algorithm = Algorithm(model="mini", model_sha256="ab" * 32, adapter="mine", adapter_sha256="cd" * 32)
    text = json.dumps({"frame": "RAS", "segments": []})
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume, algorithm=algorithm, prompts_json=text)
    return pydicom.dcmread(tmp_path / "a.dcm")


def test_it_belongs_to_the_patient_study_and_frame_of_its_images(a_seg, tmp_path):
    image = pydicom.dcmread(next((tmp_path / "ct").iterdir()))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert a_seg[keyword].value == image[keyword].value
    assert a_seg.PatientName == PATIENT_NAME
    assert a_seg.SeriesInstanceUID != image.SeriesInstanceUID


def test_it_refers_to_every_source_image_and_each_frame_to_its_own(a_seg, tmp_path):
    images = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, (tmp_path / "ct").iterdir())}
    (series,) = a_seg.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(images)
    assert series.SeriesInstanceUID == next(iter(images.values())).SeriesInstanceUID
    for frame in a_seg.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert position == images[source.ReferencedSOPInstanceUID].ImagePositionPatient


def test_only_frames_with_a_voxel_are_stored(a_seg):
    assert a_seg.NumberOfFrames == 4 + 2
    assert a_seg.SegmentationType == "BINARY"
    assert len(a_seg.PixelData) == 6 * 24 * 20 // 8


def test_each_segment_has_its_codes_color_and_tracking_id(a_seg):
    liver, tumor = a_seg.SegmentSequence
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert tumor.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
    assert tumor.AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert len(liver.RecommendedDisplayCIELabValue) == 3
    assert liver.TrackingID == "liver"
    assert liver.TrackingUID != tumor.TrackingUID


def test_the_side_of_an_organ_is_a_modifier_of_its_type(tmp_path):
    write_dicom_seg(tmp_path / "a.dcm", apart(), a_series(tmp_path / "ct"))
    kidney = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0]
    (side,) = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (side.CodeValue, side.CodeMeaning) == ("7771000", "Left")


def test_it_says_which_weights_and_adapter_made_it(a_seg):
    for segment in a_seg.SegmentSequence:
        assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
        (made_by,) = segment.SegmentationAlgorithmIdentificationSequence
        assert made_by.AlgorithmName == "SAM2Assist"
        assert made_by.AlgorithmVersion
        expected = f"model=mini,model_sha256={'ab' * 32},adapter=mine,adapter_sha256={'cd' * 32}"
        assert made_by.AlgorithmParameters == expected


def test_what_nobody_prompted_is_automatic(tmp_path):
    algorithm = Algorithm(is_automatic=True)
    write_dicom_seg(tmp_path / "a.dcm", apart(), a_series(tmp_path / "ct"), algorithm=algorithm)
    assert pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_the_prompts_are_kept_inside(a_seg, tmp_path):
    assert json.loads(read_dicom_seg(tmp_path / "a.dcm").prompts_json) == {"frame": "RAS", "segments": []}


def test_a_refined_segment_keeps_its_codes_color_and_tracking_id(tmp_path):
    volume = a_series(tmp_path / "ct")
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume)
    first = read_on(volume, tmp_path / "a.dcm")
    write_dicom_seg(tmp_path / "b.dcm", first, volume)
    second = read_on(volume, tmp_path / "b.dcm")
    for one, other in zip(first, second, strict=True):
        assert one.tracking_uid == other.tracking_uid != ""
        assert (one.coded.type, one.coded.region) == (other.coded.type, other.coded.region)
        np.testing.assert_allclose(one.coded.color_rgb, other.coded.color_rgb, atol=0.01)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("meaning", ["", 13 * "Liver "], ids=["no meaning", "a long meaning"])
def test_codes_and_a_tracking_id_of_others_that_dicom_does_not_allow_cost_no_result(tmp_path, meaning):
    volume = a_series(tmp_path / "ct")
    codes = replace(terminology_of("liver"), type=Code("10200004", meaning))
    write_dicom_seg(tmp_path / "a.dcm", [NamedMask("liver", apart()[0].mask, codes, "none")], volume)
    (segment,) = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert 0 < len(segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) <= 64
    assert segment.TrackingUID.is_valid


def test_the_color_of_a_segment_with_codes_of_another_scheme_is_kept_and_its_name_says_what_it_is(tmp_path):
    volume = a_series(tmp_path / "ct")
    orange = replace(terminology_of("spleen"), color_rgb=(0.9, 0.5, 0.1))
    write_dicom_seg(tmp_path / "a.dcm", [NamedMask("spleen", apart()[0].mask, orange)], volume)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
        dataset.SegmentSequence[0][keyword].value[0].CodingSchemeDesignator = "SRT"
    dataset.save_as(tmp_path / "a.dcm")
    (found,) = read_dicom_seg(tmp_path / "a.dcm").masks
    assert found.coded.type == terminology_of("spleen").type
    assert found.coded.color_rgb == pytest.approx(orange.color_rgb, abs=0.01)


def test_codes_and_color_that_were_chosen_in_slicer_are_exported(tmp_path):
    volume = a_series(tmp_path / "ct")
    chosen = replace(terminology_of("left kidney tumor"), color_rgb=(0.1, 0.5, 0.9))
    write_segmentation(tmp_path / "a.seg.nrrd", [NamedMask("finding 3", apart()[0].mask, chosen)], volume)
    write_segmentation(tmp_path / "a.dcm", read_on(volume, tmp_path / "a.seg.nrrd"), volume)
    (found,) = read_dicom_seg(tmp_path / "a.dcm").masks
    assert found.name == "finding 3"
    for part in ("category", "type", "region", "region_modifier"):
        assert getattr(found.coded, part) == getattr(chosen, part) != None  # noqa: E711 - it has all of them
    assert found.coded.color_rgb == pytest.approx(chosen.color_rgb, abs=0.01)


@pytest.mark.parametrize("tag", ["", "~~~", "context~SRT^T-62000^Liver~SRT^T-62000^Liver~^^~~^^~^^", "tissue"])
def test_where_slicer_knows_no_better_the_name_says_what_a_segment_is(tag):
    tag = terminology_of("Segment_1").to_slicer_tag() if tag == "tissue" else tag
    assert terminology_of_segment("spleen", tag, None) == terminology_of("spleen")


@pytest.mark.parametrize("color", ["", "0.5", "a b c", "nan 0 0", "0.1 0.2 0.3 0.4"])
def test_a_color_that_is_none_is_passed_over(tmp_path, color):
    volume = a_series(tmp_path / "ct")
    write_segmentation(tmp_path / "a.seg.nrrd", [NamedMask("spleen", apart()[0].mask)], volume)
    content = (tmp_path / "a.seg.nrrd").read_bytes()
    colored = re.sub(rb"Segment0_Color:=.*", f"Segment0_Color:={color}".encode(), content, count=1)
    (tmp_path / "a.seg.nrrd").write_bytes(colored)
    ((found,), _) = read_segmentation(tmp_path / "a.seg.nrrd")
    assert found.coded.color_rgb == terminology_of("spleen").color_rgb


@pytest.mark.parametrize("name", ["x" * 100, "x" * 63 + " yz", "left\\right", "two\nlines", "肝臓"])
def test_any_name_comes_back(tmp_path, name):
    volume = a_series(tmp_path / "ct")
    write_dicom_seg(tmp_path / "a.dcm", [NamedMask(name, apart()[0].mask)], volume)
    (found,) = read_dicom_seg(tmp_path / "a.dcm").masks
    assert found.name == name or (name == "left\\right" and found.name == "left/right")
    assert pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0].SegmentLabel.isprintable()


def test_a_patient_name_in_latin_1_survives_a_segment_name_in_japanese(tmp_path):
    volume = a_series(tmp_path / "ct", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen")
    write_dicom_seg(tmp_path / "a.dcm", [NamedMask("肝臓", apart()[0].mask)], volume)
    assert str(pydicom.dcmread(tmp_path / "a.dcm").PatientName) == "Müller^Jürgen"


def test_the_hash_of_an_adapter_depends_on_its_files_and_not_on_its_place(tmp_path):
    for name, content in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "adapter_model.safetensors").write_bytes(content)
    one, same, other = (adapter_sha256(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other


# ------------------------------------------------------------------------------------------------- odd source images


def test_images_whose_study_and_series_an_anonymizer_took_are_referred_to_one_by_one(tmp_path):
    volume = a_series(tmp_path / "ct", StudyInstanceUID="", SeriesInstanceUID="", PatientID=None)
    (note,) = write_dicom_seg(tmp_path / "a.dcm", apart(), volume)
    assert "no StudyInstanceUID" in note
    write_dicom_seg(tmp_path / "b.dcm", apart(), volume)
    first, second = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(tmp_path / "b.dcm")
    assert first.StudyInstanceUID == second.StudyInstanceUID != ""


def test_a_wrong_slice_distance_in_the_headers_does_not_reach_the_result(tmp_path):
    volume = a_series(tmp_path / "ct", SliceThickness="7.5", SpacingBetweenSlices="9")
    write_dicom_seg(tmp_path / "a.dcm", apart(), volume)
    assert_same(read_on(volume, tmp_path / "a.dcm"), apart())


def test_orientations_that_differ_by_rounding_are_one(tmp_path):
    paths = write_dicom_series(tmp_path / "ct", ct_values(SHAPE_KJI), AXIAL)
    changed(paths[2], ImageOrientationPatient=[1.0, 0.0000001, 0, 0, 1, 0])
    volume = CTVolume.read(tmp_path / "ct")
    write_dicom_seg(tmp_path / "a.dcm", apart(), volume)
    assert_same(read_on(volume, tmp_path / "a.dcm"), apart())


# --------------------------------------------------------------------------------------------------------- refusals


def refused(write, *words):
    """The write is refused with all the words in its sentence, and no file is left."""
    with pytest.raises((InputError, OutputError)) as caught:
        write()
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "Secretname" not in sentence
    assert "SECRETID" not in sentence


def test_a_volume_that_is_not_from_dicom_is_refused(tmp_path):
    volume = CTVolume(np.zeros(SHAPE_KJI, np.int16), AXIAL)
    refused(lambda: write_segmentation(tmp_path / "a.dcm", apart(), volume), "no DICOM series or was resampled")
    assert not list(tmp_path.iterdir())


def test_empty_segments_alone_are_refused(tmp_path):
    volume = a_series(tmp_path / "ct")
    empty = [NamedMask("liver", np.zeros(SHAPE_KJI, bool))]
    refused(lambda: write_dicom_seg(tmp_path / "a.dcm", empty, volume), "empty")


def test_overlapping_segments_as_a_label_map_are_refused(tmp_path):
    volume = a_series(tmp_path / "ct")
    write = lambda: write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume, kind=SegKind.LABELMAP)  # noqa: E731
    refused(write, "liver tumor", "overlaps")


def test_images_of_two_patients_are_refused_and_an_old_file_stays(tmp_path):
    volume = a_series(tmp_path / "ct")
    changed(volume.dicom_files[0], PatientID="OTHER")
    (tmp_path / "a.dcm").write_bytes(b"old")
    refused(lambda: write_dicom_seg(tmp_path / "a.dcm", apart(), volume), "several patients")
    assert (tmp_path / "a.dcm").read_bytes() == b"old"


def test_an_image_that_is_gone_is_refused(tmp_path):
    volume = a_series(tmp_path / "ct")
    volume.dicom_files[1].unlink()
    refused(lambda: write_dicom_seg(tmp_path / "a.dcm", apart(), volume), volume.dicom_files[1].name, "not there")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    volume = a_series(tmp_path / "ct")
    refused(lambda: write_dicom_seg(tmp_path / "none" / "a.dcm", apart(), volume), "does not exist")


# ------------------------------------------------------------------------------------------------ programs of others


def test_highdicom_reads_it(tmp_path):
    volume = a_series(tmp_path / "ct")
    write_dicom_seg(tmp_path / "a.dcm", apart(), volume)
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    found = seg.get_volume(combine_segments=True, skip_overlap_checks=True)
    assert seg.number_of_segments == 2
    assert sorted(np.unique(found.array)) == [0, 1, 2]


@pytest.mark.parametrize("grid", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_slicer_loads_the_seg_nrrd_made_of_it(tmp_path, grid):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    volume = a_series(tmp_path / "ct", ijk_to_lps=grid)
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume)
    write_segmentation(tmp_path / "a.seg.nrrd", read_on(volume, tmp_path / "a.dcm"), volume)
    scene = slicer.vtkMRMLScene()
    node, storage = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationStorageNode()
    for item in (node, storage):
        scene.AddNode(item)
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    assert storage.ReadData(node)
    for number, named in enumerate(liver_and_tumor()):
        mask, ijk_to_lps = segment_voxels(node, number, SHAPE_KJI)
        np.testing.assert_array_equal(mask, named.mask)
        np.testing.assert_allclose(ijk_to_lps, volume.ijk_to_lps, atol=1e-5)


@pytest.mark.parametrize("masks", [apart(), liver_and_tumor()], ids=["apart", "overlapping"])
@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.FRACTIONAL])
def test_dciodvfy_finds_no_error(tmp_path, masks, kind):
    write_dicom_seg(tmp_path / "a.dcm", masks, a_series(tmp_path / "ct"), kind=kind, prompts_json="{}")
    assert complaints(tmp_path / "a.dcm") == []


@pytest.mark.parametrize("grid", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_dcmqi_reads_it_voxel_for_voxel(tmp_path, grid):
    reader = program("segimage2itkimage")
    volume = a_series(tmp_path / "ct", ijk_to_lps=grid)
    write_dicom_seg(tmp_path / "a.dcm", liver_and_tumor(), volume)
    said = call(reader, "--inputDICOM", tmp_path / "a.dcm", "--outputDirectory", tmp_path, "-t", "nrrd", "-p", "x")
    for number, named in enumerate(liver_and_tumor(), 1):
        path = tmp_path / f"x-{number}.nrrd"
        assert path.is_file(), said
        image = sitk.ReadImage(path)
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
        matrix[:3, 3] = image.GetOrigin()
        array = sitk.GetArrayFromImage(image) > 0
        (found,) = masks_on_grid_of(volume, [NamedMask(named.name, array)], matrix)
        np.testing.assert_array_equal(found.mask, named.mask)


def test_what_dcmqi_wrote_opens_voxel_for_voxel(tmp_path):
    writer = program("itkimage2segimage")
    volume = a_series(tmp_path / "ct")
    said = call(*dcmqi_writing(writer, tmp_path, liver_and_tumor(), volume, tmp_path / "a.dcm"))
    assert (tmp_path / "a.dcm").is_file(), said
    assert_same(read_on(volume, tmp_path / "a.dcm"), liver_and_tumor())


@needs_real_data
def test_the_liver_that_dcmqi_ships_opens_right():
    volume = CTVolume.read(REAL / "dicom")
    (liver,) = read_on(volume, REAL / "liver_seg.dcm")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(REAL / "liver_seg.nrrd")) > 0
    assert liver.name == "Liver"
    np.testing.assert_array_equal(liver.mask, expected)


@needs_real_data
def test_the_overlapping_example_that_dcmqi_ships_opens_right():
    masks, _ = read_segmentation(REAL / "partial_overlaps.dcm", CTVolume.read(REAL / "dicom"))
    assert [named.name for named in masks] == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    images = [sitk.GetArrayFromImage(sitk.ReadImage(REAL / f"partial_overlaps-{n}.nrrd")) for n in (1, 2, 3)]
    expected = sorted(int((image == value).sum()) for image in images for value in np.unique(image) if value)
    assert sorted(int(named.mask.sum()) for named in masks) == expected
    assert sum(bool((a.mask & b.mask).any()) for a in masks for b in masks if a is not b) > 0
