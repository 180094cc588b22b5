"""Segmentations in Slicer's own format: what is written here is read by the real MRML, and the other way round."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import empty_volume, rotation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from slicer_nodes import segment_voxels

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.seg_nrrd import pack_layers
from SAM2AssistLib.io.segmentation import NamedMask, masks_on_grid_of, read_segmentation, write_segmentation
from SAM2AssistLib.io.terminology import Code, terminology_of
from SAM2AssistLib.volume import CTVolume

SHAPE = (5, 6, 7)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def volume_of(directions, shape_kji=SHAPE, **grid):
    return empty_volume(directions, shape_kji, **grid)


AXIAL = volume_of(np.eye(3))
OBLIQUE = volume_of(rotation((10, 20, 30)))
GEOMETRIES = {
    "axial": AXIAL,
    "flipped": volume_of(np.diag([-1.0, 1, -1])),
    "left-handed": volume_of(np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])),
    "oblique": OBLIQUE,
    "oblique left-handed": volume_of(rotation((100, -30, 60)) @ np.diag([1.0, 1, -1])),
    "anisotropic": volume_of(np.eye(3), spacing_ijk=(0.1, 3.0, 12.0)),
}
ALL_GEOMETRIES = pytest.mark.parametrize("volume", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def block(*bounds):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(low, high) for low, high in bounds)] = True
    return mask


LIVER = NamedMask("liver", block((0, 3), (0, 3), (0, 3)))
KIDNEY = NamedMask("kidney_left", block((3, 5), (3, 5), (3, 5)))
TUMOR = NamedMask("liver tumor", block((1, 2), (1, 4), (1, 2)))
MINE = NamedMask("my thing", block((4, 5), (0, 1), (6, 7)))
APART = [LIVER, KIDNEY, MINE]
OVERLAPPING = [LIVER, KIDNEY, TUMOR, MINE]


def header_of(path):
    return path.read_bytes().split(b"\n\n")[0].decode().splitlines()


def assert_same(masks, expected):
    assert [named.name for named in masks] == [named.name for named in expected]
    for back, given_mask in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(back.mask, given_mask.mask)


# ------------------------------------------------------------------------------------------------------- round trips


@ALL_GEOMETRIES
@pytest.mark.parametrize("masks", [APART, OVERLAPPING], ids=["apart", "overlapping"])
def test_segments_come_back_with_their_names_voxels_and_exact_geometry(tmp_path, volume, masks):
    path = tmp_path / "out.seg.nrrd"
    assert write_segmentation(path, masks, volume) == ()
    back, ijk_to_lps = read_segmentation(path)
    assert_same(back, masks)
    np.testing.assert_allclose(ijk_to_lps, volume.ijk_to_lps, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["Lésion – 左腎", "a|b:c~d^e", "back\\slash", "two\nlines", "  blanks  ", "x:=y", "#1"]
)
def test_any_name_survives(tmp_path, name):
    write_segmentation(tmp_path / "a.seg.nrrd", [NamedMask(name, LIVER.mask), KIDNEY], AXIAL)
    assert read_segmentation(tmp_path / "a.seg.nrrd")[0][0].name == name


@pytest.mark.parametrize("between", ["|", "~", "^", "\\", "\r\n"])
def test_a_code_meaning_of_another_program_never_breaks_the_file(tmp_path, between):
    tumor = terminology_of("liver tumor")
    odd = replace(tumor, type=Code(tumor.type.value, f"Mass{between}node"))
    named = NamedMask("finding", LIVER.mask, odd)
    write_segmentation(tmp_path / "result.seg.nrrd", [named], AXIAL)
    (read,), _ = read_segmentation(tmp_path / "result.seg.nrrd")
    assert read.terminology == replace(odd, type=Code(tumor.type.value, "Mass node"))


def test_empty_segments_and_equal_names_survive(tmp_path):
    masks = [NamedMask("a", np.zeros(SHAPE, bool)), NamedMask("a", LIVER.mask), NamedMask("b", np.ones(SHAPE, bool))]
    write_segmentation(tmp_path / "a.seg.nrrd", masks, AXIAL)
    assert_same(read_segmentation(tmp_path / "a.seg.nrrd")[0], masks)


def test_more_than_255_segments_survive_in_one_layer(tmp_path):
    shape = (1, 20, 20)
    masks = [NamedMask(f"s{n}", np.arange(400).reshape(shape) == n) for n in range(300)]
    write_segmentation(tmp_path / "a.seg.nrrd", masks, volume_of(np.eye(3), shape_kji=shape))
    assert "type: unsigned short" in header_of(tmp_path / "a.seg.nrrd")
    assert_same(read_segmentation(tmp_path / "a.seg.nrrd")[0], masks)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(hnp.arrays(bool, (2, 3, 4)), min_size=1, max_size=6))
def test_any_masks_survive(tmp_path, arrays):
    masks = [NamedMask(f"s{n}", array) for n, array in enumerate(arrays)]
    write_segmentation(tmp_path / "a.seg.nrrd", masks, volume_of(np.eye(3), shape_kji=(2, 3, 4)))
    assert_same(read_segmentation(tmp_path / "a.seg.nrrd")[0], masks)


# ------------------------------------------------------------------------------------------------------------- layers


def test_segments_that_do_not_overlap_share_one_layer():
    layers, places = pack_layers([named.mask for named in APART])
    assert len(layers) == 1
    assert places == [(0, 1), (0, 2), (0, 3)]


def test_only_what_overlaps_goes_to_another_layer():
    layers, places = pack_layers([named.mask for named in OVERLAPPING])
    assert len(layers) == 2
    assert places == [(0, 1), (0, 2), (1, 1), (0, 3)]


@given(st.lists(hnp.arrays(bool, (2, 3, 4)), max_size=6))
def test_packing_loses_no_voxel(arrays):
    layers, places = pack_layers(arrays)
    for array, (layer, value) in zip(arrays, places, strict=True):
        np.testing.assert_array_equal(layers[layer] == value, array)


# ------------------------------------------------------------------------------------------------------------- header


def test_one_layer_is_a_plain_three_dimensional_nrrd(tmp_path):
    write_segmentation(tmp_path / "a.seg.nrrd", APART, AXIAL)
    lines = header_of(tmp_path / "a.seg.nrrd")
    assert lines[0] == "NRRD0004"
    assert {"dimension: 3", "sizes: 7 6 5", "kinds: domain domain domain", "encoding: gzip"} <= set(lines)
    assert "space: left-posterior-superior" in lines


def test_layers_are_the_first_axis_of_kind_list(tmp_path):
    write_segmentation(tmp_path / "a.seg.nrrd", OVERLAPPING, AXIAL)
    lines = header_of(tmp_path / "a.seg.nrrd")
    assert {"dimension: 4", "sizes: 2 7 6 5", "kinds: list domain domain domain"} <= set(lines)
    assert "space directions: none (0.7,0.0,0.0) (0.0,0.9,0.0) (0.0,0.0,2.5)" in lines


def test_the_same_segments_give_the_same_bytes(tmp_path):
    for name in ("a.seg.nrrd", "b.seg.nrrd"):
        write_segmentation(tmp_path / name, OVERLAPPING, AXIAL)
    assert (tmp_path / "a.seg.nrrd").read_bytes() == (tmp_path / "b.seg.nrrd").read_bytes()


# ----------------------------------------------------------------------------------------------------------- failures


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, APART, AXIAL)
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_segmentation(path, [NamedMask("a", np.zeros((1, 1, 1), bool))], AXIAL)
    with pytest.raises(InputError, match="no segment"):
        write_segmentation(path, [], AXIAL)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.seg.nrrd"]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        write_segmentation(tmp_path / "none" / "a.seg.nrrd", APART, AXIAL)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, APART, AXIAL)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_segmentation(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("Segment0_Layer:=0", "Segment0_Layer:=7"), ("Segment1_LabelValue:=2", "Segment1_LabelValue:=two")],
)
def test_keys_that_make_no_sense_are_refused(tmp_path, old, new):
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, APART, AXIAL)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(InputError, match="damaged"):
        read_segmentation(path)


def test_a_name_in_the_letters_of_windows_is_read_and_can_be_written_again(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, APART, AXIAL)
    name = f"Segment0_Name:={APART[0].name}\n".encode()
    path.write_bytes(path.read_bytes().replace(name, "Segment0_Name:=Größe\n".encode("cp1252")))
    masks, _ = read_segmentation(path)
    assert masks[0].name == "Größe"
    write_segmentation(path, masks, AXIAL)
    assert_same(read_segmentation(path)[0], masks)


def test_the_older_format_with_one_layer_for_each_segment_is_read(tmp_path):
    """Before Slicer 4.11 there were no keys for layer and label value."""
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 7 6 5\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: list domain domain domain\nencoding: gzip\n"
        "space origin: (0,0,0)\nSegment0_ID:=one\nSegment0_Name:=liver\nSegment1_ID:=two\n\n"
    )
    voxels = np.stack([LIVER.mask, TUMOR.mask], axis=-1).astype(np.uint8)
    (tmp_path / "old.seg.nrrd").write_bytes(header.encode() + gzip.compress(voxels.tobytes()))
    masks, _ = read_segmentation(tmp_path / "old.seg.nrrd")
    assert_same(masks, [LIVER, NamedMask("two", TUMOR.mask)])


# ----------------------------------------------------------------------------------------------------- with real Slicer


class Slicer:
    """A scene of the real MRML, with what a test wants to know about a segmentation node in it."""

    def __init__(self):
        self.slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
        self.vtk = pytest.importorskip("vtk", reason="slicer-core is not installed")
        self.scene = self.slicer.vtkMRMLScene()

    def _add(self, node):
        self.scene.AddNode(node)
        return node

    def load(self, path):
        node = self._add(self.slicer.vtkMRMLSegmentationNode())
        storage = self._add(self.slicer.vtkMRMLSegmentationStorageNode())
        storage.SetFileName(str(path))
        assert storage.ReadData(node)
        return node

    def save(self, node, path):
        storage = self._add(self.slicer.vtkMRMLSegmentationStorageNode())
        storage.SetFileName(str(path))
        assert storage.WriteData(node)

    def segments(self, node):
        segmentation = node.GetSegmentation()
        return [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]

    def tag(self, segment, name):
        value = self.vtk.reference("")
        return str(value) if segment.GetTag(name, value) else None

    def node_of(self, masks, volume):
        """A segmentation node as Slicer makes it of separate label maps."""
        node = self._add(self.slicer.vtkMRMLSegmentationNode())
        matrix = self.vtk.vtkMatrix4x4()
        matrix.DeepCopy(volume.ijk_to_ras.ravel().tolist())
        for named in masks:
            image = self.slicer.vtkOrientedImageData()
            image.SetDimensions(*named.mask.shape[::-1])
            image.AllocateScalars(self.vtk.VTK_UNSIGNED_CHAR, 1)
            np.asarray(image.GetPointData().GetScalars())[:] = named.mask.ravel()
            image.SetGeometryFromImageToWorldMatrix(matrix)
            segment = self.slicer.vtkSegment()
            segment.SetName(named.name)
            segment.AddRepresentation("Binary labelmap", image)
            node.GetSegmentation().AddSegment(segment)
        node.GetSegmentation().CollapseBinaryLabelmaps(False)
        return node


@pytest.fixture
def slicer():
    return Slicer()


@ALL_GEOMETRIES
@pytest.mark.parametrize("masks", [APART, OVERLAPPING], ids=["apart", "overlapping"])
def test_slicer_reads_the_same_voxels_in_the_same_place(tmp_path, slicer, volume, masks):
    write_segmentation(tmp_path / "a.seg.nrrd", masks, volume)
    node = slicer.load(tmp_path / "a.seg.nrrd")
    assert [segment.GetName() for segment in slicer.segments(node)] == [named.name for named in masks]
    for number, named in enumerate(masks):
        mask, ijk_to_lps = segment_voxels(node, number, SHAPE)
        np.testing.assert_array_equal(mask, named.mask)
        np.testing.assert_allclose(ijk_to_lps, volume.ijk_to_lps, atol=1e-6)


def test_slicer_keeps_what_is_apart_in_one_layer_and_what_overlaps_in_two(tmp_path, slicer):
    for masks, count in ((APART, 1), (OVERLAPPING, 2)):
        write_segmentation(tmp_path / "a.seg.nrrd", masks, AXIAL)
        assert slicer.load(tmp_path / "a.seg.nrrd").GetSegmentation().GetNumberOfLayers() == count


def test_slicer_reads_color_and_terminology(tmp_path, slicer):
    write_segmentation(tmp_path / "a.seg.nrrd", OVERLAPPING, AXIAL)
    for segment in slicer.segments(slicer.load(tmp_path / "a.seg.nrrd")):
        expected = terminology_of(segment.GetName())
        assert slicer.tag(segment, "TerminologyEntry") == expected.to_slicer_tag()
        np.testing.assert_allclose(segment.GetColor(), expected.color_rgb, atol=1e-6)
        assert not segment.GetNameAutoGenerated()


def test_slicer_knows_the_grid_to_go_on_segmenting_on(tmp_path, slicer):
    write_segmentation(tmp_path / "a.seg.nrrd", APART, OBLIQUE)
    text = slicer.load(tmp_path / "a.seg.nrrd").GetSegmentation().GetConversionParameter("Reference image geometry")
    numbers = [float(number) for number in text.rstrip(";").split(";")]
    np.testing.assert_allclose(numbers[:16], OBLIQUE.ijk_to_ras.ravel())
    assert numbers[16:] == [0, 6, 0, 5, 0, 4]


@pytest.mark.parametrize("name", ["Lésion – 左腎", "back\\slash", "two\nlines", "x:=y", "a|b"])
def test_slicer_reads_any_name(tmp_path, slicer, name):
    write_segmentation(tmp_path / "a.seg.nrrd", [NamedMask(name, LIVER.mask)], AXIAL)
    assert slicer.segments(slicer.load(tmp_path / "a.seg.nrrd"))[0].GetName() == name


@ALL_GEOMETRIES
def test_what_slicer_writes_is_read_although_slicer_crops_it(tmp_path, slicer, volume):
    expected = [LIVER, TUMOR]
    slicer.save(slicer.node_of(expected, volume), tmp_path / "by_slicer.seg.nrrd")
    masks, ijk_to_lps = read_segmentation(tmp_path / "by_slicer.seg.nrrd")
    assert masks[0].mask.size < LIVER.mask.size
    assert_same(masks_on_grid_of(volume, masks, ijk_to_lps), expected)


def test_slicer_writes_what_it_read_so_that_nothing_is_lost_on_the_way_back(tmp_path, slicer):
    write_segmentation(tmp_path / "a.seg.nrrd", OVERLAPPING, OBLIQUE)
    slicer.save(slicer.load(tmp_path / "a.seg.nrrd"), tmp_path / "b.seg.nrrd")
    masks, ijk_to_lps = read_segmentation(tmp_path / "b.seg.nrrd")
    assert_same(masks_on_grid_of(OBLIQUE, masks, ijk_to_lps), OVERLAPPING)
    of_segments = [
        {line for line in header_of(tmp_path / name) if "_Name:" in line or "_Tags:" in line or "_ID:" in line}
        for name in ("a.seg.nrrd", "b.seg.nrrd")
    ]
    assert of_segments[0] == of_segments[1]


# --------------------------------------------------------------------------------------------------------- real files


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared CT data are not here")
def test_segmentations_of_another_program_are_read_on_their_grid():
    for path in sorted((DATA / "ct_liver_3slices").glob("*.nrrd")):
        masks, ijk_to_lps = read_segmentation(path)
        assert len(masks) >= 1
        assert all(named.mask.shape == (3, 512, 512) for named in masks)
        np.testing.assert_allclose(np.diag(ijk_to_lps), [0.810547, 0.810547, 1, 1], atol=1e-6)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared CT data are not here")
def test_a_real_segmentation_goes_through_the_format_unchanged(tmp_path):
    folder = DATA / "ct_upper_abdomen_20slices"
    masks, ijk_to_lps = read_segmentation(folder / "label.nii.gz")
    image = sitk.ReadImage(str(folder / "label.nii.gz"))
    volume = CTVolume.from_array(np.zeros(masks[0].mask.shape, np.int16), image.GetSpacing(), ijk_to_lps)
    write_segmentation(tmp_path / "a.seg.nrrd", masks, volume)
    back, _ = read_segmentation(tmp_path / "a.seg.nrrd")
    assert_same(back, masks)
