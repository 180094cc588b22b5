"""Broken and contradictory DICOM: one sentence each, without the patient in it, and nothing is lost or half-written."""

from __future__ import annotations

import re
import shutil
import warnings

import numpy as np
import pydicom
import pytest
from command_line import run, sentence_of
from ct_files import BIRTH_DATE, PATIENT_ID, PATIENT_NAME, changed, ct_values, write_dicom_series
from dicom_scenes import AXIAL, SHAPE_KJI, apart
from pydicom.dataelem import RawDataElement
from pydicom.uid import generate_uid

from SAM2AssistLib.io._dicom_headers import ends_early
from SAM2AssistLib.io.dicom_seg import write_dicom_seg
from SAM2AssistLib.io.rtstruct import write_rtstruct
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation
from SAM2AssistLib.volume import CTVolume


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A series, and a DICOM-SEG and an RTSTRUCT of it."""
    folder = tmp_path_factory.mktemp("originals")
    write_dicom_series(folder / "ct", ct_values(SHAPE_KJI), AXIAL)
    volume = CTVolume.read(folder / "ct")
    write_dicom_seg(folder / "seg.dcm", apart(), volume)
    write_rtstruct(folder / "contours.dcm", apart(), volume)
    return folder


@pytest.fixture
def place(originals, tmp_path):
    """A copy of them to be broken."""
    shutil.copytree(originals, tmp_path / "place")
    return tmp_path / "place"


def a_slice(place, number=3):
    """One of the images."""
    return sorted((place / "ct").iterdir())[number]


def cut(path, part):
    """Keep only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def edit(path, change):
    """Change a DICOM file by a function of its data set."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def written_as(path, keyword, vr, value):
    """Store an element with another VR than it should have."""
    dataset = pydicom.dcmread(path)
    del dataset[keyword]
    dataset.add(pydicom.DataElement(pydicom.datadict.tag_for_keyword(keyword), vr, value))
    dataset.save_as(path)


def all_slices(place, **tags):
    """Change elements in all the images."""
    for path in (place / "ct").iterdir():
        changed(path, **tags)


def of_a_frame(keyword):
    """Take something out of the first frame of the DICOM-SEG."""
    return lambda place: edit(place / "seg.dcm", lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[0], keyword))


def first_frame(dataset):
    """Functional groups of the first frame."""
    return dataset.PerFrameFunctionalGroupsSequence[0]


def move_frame(dataset):
    """Put the first frame sideways."""
    first_frame(dataset).PlanePositionSequence[0].ImagePositionPatient[0] += 40


def foreign_segment(dataset):
    """Have a frame of a segment that is not described."""
    first_frame(dataset).SegmentIdentificationSequence[0].ReferencedSegmentNumber = 99


def other_frame_of_reference(dataset):
    """Have the object lie in another scan."""
    dataset.FrameOfReferenceUID = generate_uid()


def contour_of_words(place):
    """Write words where the coordinates should be."""
    content = (place / "contours.dcm").read_bytes()
    found = re.search(rb"-?\d+\.\d{4}\\-?\d+\.\d{4}\\", content)
    text = b"x" * len(found.group())
    (place / "contours.dcm").write_bytes(content.replace(found.group(), text, 1))


def another_patient(place):
    """Have one image of another patient among them, under the same series."""
    changed(a_slice(place), PatientID="OTHER")


def same_place(place):
    """Have two images at one position."""
    changed(a_slice(place), ImagePositionPatient=pydicom.dcmread(a_slice(place, 2)).ImagePositionPatient)


def mixed_sizes(place):
    """Have images of two sizes."""
    for number in (0, 2, 4):
        changed(a_slice(place, number), Rows=12, Columns=40)


def no_segments(dataset):
    """Describe no segment."""
    del dataset.SegmentSequence


def more_rows(dataset):
    """Announce more pixels than there are."""
    dataset.Rows = 480


def in_seg(change):
    """Change the DICOM-SEG by a function of its data set."""
    return lambda place: edit(place / "seg.dcm", change)


FAULTS = {
    # name: what is broken, what the sentence says
    "image cut in its pixels": (lambda place: cut(a_slice(place), 0.7), "truncated"),
    "image cut in its header": (lambda place: cut(a_slice(place), 0.1), "damaged or truncated"),
    "empty image file": (lambda place: a_slice(place).write_bytes(b""), "empty"),
    "image of random bytes": (lambda place: a_slice(place).write_bytes(b"\7" * 999), "no DICOM file"),
    "no position": (lambda place: changed(a_slice(place), ImagePositionPatient=None), "does not say where"),
    "no orientation": (lambda place: changed(a_slice(place), ImageOrientationPatient=None), "does not say where"),
    "no pixel spacing": (lambda place: changed(a_slice(place), PixelSpacing=None), "does not say where"),
    "zero spacing": (lambda place: all_slices(place, PixelSpacing=[0, 0]), "does not say where"),
    "no rows": (lambda place: changed(a_slice(place), Rows=None), "damaged or truncated"),
    "rows in words": (lambda place: written_as(a_slice(place), "Rows", "LO", "many"), "damaged"),
    "position in words": (
        lambda place: written_as(a_slice(place), "ImagePositionPatient", "LO", ["a", "b"]),
        "damaged",
    ),
    "a missing slice": (lambda place: a_slice(place).unlink(), "slice is missing"),
    "two images at a place": (same_place, "two images"),
    "mixed patients": (another_patient, "several patients"),
    "mixed sizes": (mixed_sizes, "sizes or orientations"),
    "segmentation cut in its header": (lambda place: cut(place / "seg.dcm", 0.2), "seg.dcm"),
    "segmentation cut in its pixels": (lambda place: cut(place / "seg.dcm", 0.999), "seg.dcm"),
    "segmentation without segments": (in_seg(no_segments), "no segment"),
    "frame without a place": (of_a_frame("PlanePositionSequence"), "where each of its frames lies"),
    "frame beside the others": (in_seg(move_frame), "slip sideways"),
    "frame of an unknown segment": (in_seg(foreign_segment), "segment 99"),
    "segmentation of another scan": (in_seg(other_frame_of_reference), "another scan"),
    "segmentation that is an image": (lambda place: shutil.copy(a_slice(place), place / "seg.dcm"), "nor an RTSTRUCT"),
    "segmentation that is text": (lambda place: (place / "seg.dcm").write_text("dear diary"), "no DICOM file"),
    "more frames than pixels": (in_seg(more_rows), "seg.dcm"),
}


def refused(capfd, place, segmentation="seg.dcm"):
    """Give the sentence with which an export is refused, after making sure that nothing was changed or written."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    outcome = run(capfd, "export", place / segmentation, "--dicom", place / "ct", "-o", place / "out.dcm")
    sentence = sentence_of(outcome)
    for secret in (*PATIENT_NAME.split("^"), PATIENT_ID, BIRTH_DATE, "1.2.826"):
        assert secret not in sentence
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    return sentence


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_dicom_is_refused_in_a_sentence(place, capfd, fault):
    break_it, words = FAULTS[fault]
    break_it(place)
    assert words in refused(capfd, place)


def test_contours_of_words_are_refused(place, capfd):
    contour_of_words(place)
    assert "contours.dcm is damaged" in refused(capfd, place, "contours.dcm")


def test_a_cut_structure_set_is_refused(place, capfd):
    cut(place / "contours.dcm", 0.5)
    assert "contours.dcm" in refused(capfd, place, "contours.dcm")


@pytest.mark.parametrize(
    ("file", "sequence", "keyword"),
    [("seg.dcm", "SegmentSequence", "SegmentLabel"), ("contours.dcm", "StructureSetROISequence", "ROIName")],
)
def test_a_name_that_a_backslash_divides_is_read_as_one(place, file, sequence, keyword):
    edit(place / file, lambda dataset: setattr(dataset[sequence][0], keyword, "GTV\\boost"))
    masks, _ = read_segmentation(place / file, CTVolume.read(place / "ct"))
    assert masks[0].name == "GTV/boost"


def test_a_segmentation_that_refers_to_images_that_are_not_there_loses_nothing_unsaid(place, capfd):
    a_slice(place, 0).unlink()
    a_slice(place, 0).unlink()
    outcome = run(capfd, "export", place / "seg.dcm", "--dicom", place / "ct", "-o", place / "out.dcm")
    assert outcome.code == 0
    assert "lie outside of the CT and are left out" in outcome.err


def test_a_result_that_cannot_be_made_leaves_the_one_before(place, capfd):
    run(capfd, "export", place / "seg.dcm", "--dicom", place / "ct", "-o", place / "out.dcm")
    before = (place / "out.dcm").read_bytes()
    another_patient(place)
    sentence_of(run(capfd, "export", place / "seg.dcm", "--dicom", place / "ct", "-o", place / "out.dcm"))
    assert (place / "out.dcm").read_bytes() == before


def test_odd_but_harmless_headers_are_read(place, capfd):
    all_slices(place, PatientName="A\\B^^^^^^^", SeriesDescription="x" * 64, SliceThickness=None, InstanceNumber=None)
    outcome = run(capfd, "export", place / "seg.dcm", "--dicom", place / "ct", "-o", place / "out.dcm")
    assert outcome.code == 0, outcome
    found = pydicom.dcmread(place / "out.dcm")
    assert found.NumberOfFrames == sum(int(np.any(named.mask, axis=(1, 2)).sum()) for named in apart())


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "unknown"),
        ("PatientSex", "U"),
        ("PatientSex", "X"),
        ("StudyTime", "25:00"),
        ("StudyDate", "20201399"),
    ],
)
def test_a_value_that_an_anonymizer_made_impossible_is_left_empty_and_told(place, keyword, value):
    all_slices(place, **{keyword: value})
    volume = CTVolume.read(place / "ct")
    for write in (write_dicom_seg, write_rtstruct):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            notes = write(place / "out.dcm", apart(), volume)
        assert not pydicom.dcmread(place / "out.dcm")[keyword].value
        assert any(f"no valid {keyword}" in note for note in notes)
        assert not any(value in note for note in notes)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_valid_values_are_kept_and_not_told(place):
    all_slices(place, PatientSex="F", StudyTime="120000.123", StudyDate="2020.01.31")
    notes = write_dicom_seg(place / "out.dcm", apart(), CTVolume.read(place / "ct"))
    found = pydicom.dcmread(place / "out.dcm")
    assert (found.PatientSex, found.PatientBirthDate, found.StudyTime) == ("F", BIRTH_DATE, "120000.123")
    assert not any("valid" in note for note in notes)


def raw(path, keyword, vr, value):
    """Store the bytes of an element as they are, which pydicom refuses to write."""
    dataset = pydicom.dcmread(path)
    tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    dataset.save_as(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("SliceThickness", "DS", b"3,0 "),
        ("SeriesNumber", "IS", b"none"),
        ("SeriesNumber", "IS", b"1\\2 "),
        ("PregnancyStatus", "US", b"\1\0\2"),
    ],
    ids=lambda value: value.decode("latin-1") if isinstance(value, bytes) else value,
)
def test_a_damaged_value_that_decides_nothing_costs_no_result(place, keyword, vr, value):
    for path in (place / "ct").iterdir():
        raw(path, keyword, vr, value)
    volume = CTVolume.read(place / "ct")
    for write in (write_dicom_seg, write_rtstruct):
        write(place / "out.dcm", apart(), volume)
        found = read_segmentation(place / "out.dcm", volume)
        for named, expected in zip(masks_on_grid_of(volume, *found), apart(), strict=True):
            np.testing.assert_array_equal(named.mask, expected.mask)


def test_an_image_whose_pixels_share_their_colors_is_not_taken_for_cut_off(place):
    path = min((place / "ct").iterdir())
    screenshot = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "BitsAllocated": 8, "SamplesPerPixel": 3}
    changed(path, **screenshot, PhotometricInterpretation="YBR_FULL_422")
    assert not ends_early(path)
    path.write_bytes(path.read_bytes()[:-2])
    assert ends_early(path)
