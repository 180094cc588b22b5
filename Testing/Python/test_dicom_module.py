"""DICOM out of the module's scene: by the same code, and with all that the scene knows of the segments."""

from __future__ import annotations

import json
from dataclasses import replace

import pydicom
import pytest
from ct_files import affine, write_dicom_series

pytest.importorskip("vtk", reason="slicer-core is not installed")
pytest.importorskip("slicer", reason="slicer-core is not installed")

from blobs import two_blobs  # noqa: E402
from dicom_scenes import complaints  # noqa: E402
from mrml_desk import make_desk  # noqa: E402
from mrml_scene import a_scene, box, point  # noqa: E402

from SAM2AssistLib.io.dicom_seg_reader import read_dicom_seg  # noqa: E402
from SAM2AssistLib.io.terminology import terminology_of  # noqa: E402
from SAM2AssistLib.mrml import export  # noqa: E402
from SAM2AssistLib.mrml.assistant import EngineChoice  # noqa: E402
from SAM2AssistLib.prompts import read_prompt_file  # noqa: E402
from SAM2AssistLib.volume import CTVolume  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)


@pytest.fixture
def exported(tmp_path, quick_engine):
    """A segment of clicks and one of a box, on a volume from DICOM, exported; and the desk."""
    balls = two_blobs((10, 64, 64)).volume
    files = write_dicom_series(tmp_path / "ct", balls.array, affine((0.9, 0.9, 2.0), origin_lps=(5.0, -7.0, 11.0)))
    with a_scene() as scene:
        desk = make_desk(scene, quick_engine(), CTVolume.read(tmp_path / "ct"))
        segmentation = desk.segmentation.GetSegmentation()
        desk.do(desk.segment, point(desk.ct, LEFT))
        other = desk.add_segment("liver tumor")
        desk.do(other, box(desk.ct, (5, 20, 36), (5, 44, 54)))
        segmentation.GetSegment(desk.segment).SetColor(0.2, 0.4, 0.6)
        spleen = segmentation.GetSegment(desk.segment)
        spleen.SetTag(spleen.GetTerminologyEntryTagName(), terminology_of("spleen").to_slicer_tag())
        path, prompts = tmp_path / "a.dcm", export.prompts_of(desk.workspace)
        segments = export.Snapshot.of(desk.volume, desk.segmentation)
        list(export.export_dicom_seg(segments, desk.ct, files, path, EngineChoice("mini"), prompts))
        yield path, desk
        desk.assistant.close()


def test_the_codes_and_colors_of_the_scene_are_exported(exported):
    ball, tumor = read_dicom_seg(exported[0]).masks
    assert ball.name == "ball"
    assert ball.coded.type == terminology_of("spleen").type
    assert ball.coded.color_rgb == pytest.approx((0.2, 0.4, 0.6), abs=0.01)
    assert tumor.coded.region == terminology_of("liver tumor").region


def test_the_voxels_of_the_scene_are_exported(exported):
    path, desk = exported
    found = read_dicom_seg(path)
    for named, segment_id in zip(found.masks, desk.segmentation.GetSegmentation().GetSegmentIDs(), strict=True):
        assert named.mask.sum() == desk.mask(segment_id).sum() > 0


def test_the_model_is_told_and_a_user_was_part_of_it(exported):
    for segment in pydicom.dcmread(exported[0]).SegmentSequence:
        assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
        parameters = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
        assert parameters.startswith("model=mini,model_sha256=")


def test_the_prompts_are_kept_as_a_prompt_file(exported, tmp_path):
    path, desk = exported
    kept = tmp_path / "kept.json"
    kept.write_text(read_dicom_seg(path).prompts_json)
    assert json.loads(kept.read_text())["made_with"]["model"] == "mini"
    ball, tumor = read_prompt_file(kept, desk.ct)
    assert ball.points[0].index_ijk == pytest.approx(LEFT[::-1], abs=1e-3)
    assert tumor.boxes[0].max_ijk == pytest.approx((54, 44, 5), abs=1e-3)


def test_dciodvfy_finds_no_error(exported):
    assert complaints(exported[0]) == []


def test_the_hash_of_a_chosen_adapter_is_told(tmp_path):
    adapter = tmp_path / "mine"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    made_by = export.made_by(replace(EngineChoice("mini"), adapter=str(adapter)))
    assert made_by.parameters["adapter"] == "mine"
    assert len(made_by.parameters["adapter_sha256"]) == 64
