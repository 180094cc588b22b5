"""Real CT with references, where it is at hand: what the embedded model must reach on patients it has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command_line import run_script

from SAM2AssistLib import CTVolume
from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice, correction_click
from SAM2AssistLib.io.segmentation import read_segmentation
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompts import SegmentPrompts, write_prompt_file

DATA = Path(__file__).parents[3] / "shared" / "data"
SARCOMAS = ("sts_025", "sts_041", "sts_050")
"""Of the test split, for time's sake; `Testing/Benchmarks/accuracy.py` takes all six."""
LEAST_DICE = {"liver": 0.90, "spleen": 0.86, "aorta": 0.87}
"""From one box; below what was measured (0.94, 0.90, 0.91), so that a change for the worse is seen. What
is wanted of them is 0.85, 0.85 and 0.75."""

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real CTs (../shared/data) are not here")


def reference(case: Path, name: str) -> np.ndarray:
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(case / "label.nii.gz")))
    return labels == json.loads((case / "labels.json").read_text())[name]


@pytest.fixture(scope="module")
def an_abdomen_segmented_on_the_command_line(tmp_path_factory):
    """The DICOM folder of the upper abdomen, one box for each organ on its middle slice."""
    folder = tmp_path_factory.mktemp("abdomen")
    case = DATA / "ct_upper_abdomen_20slices"
    volume = CTVolume.read(case / "dicom")
    requests = [SegmentPrompts(name, (), (box_on_middle_slice(reference(case, name)),)) for name in LEAST_DICE]
    write_prompt_file(folder / "prompts.json", requests, volume)
    output = folder / "organs.seg.nrrd"
    done = run_script(
        "segment", case / "dicom", "--prompts", folder / "prompts.json", "-o", output, "--device", "cpu", "--json"
    )
    assert done.code == 0, done.err
    return case, volume, output


def organ_dice(segmented, organ: str) -> float:
    case, _, output = segmented
    masks, _ = read_segmentation(output)
    found = next(m.mask for m in masks if m.name == organ)
    return dice(found, reference(case, organ))


@pytest.mark.parametrize("organ", LEAST_DICE)
def test_one_box_on_the_middle_slice_segments_an_organ(an_abdomen_segmented_on_the_command_line, organ):
    assert organ_dice(an_abdomen_segmented_on_the_command_line, organ) >= LEAST_DICE[organ]


def test_slicer_loads_the_result_with_the_cts_geometry_and_equal_voxels(an_abdomen_segmented_on_the_command_line):
    slicer = pytest.importorskip("slicer")
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import vtk_to_numpy

    _, volume, output = an_abdomen_segmented_on_the_command_line
    masks, matrix = read_segmentation(output)
    assert np.allclose(matrix, volume.ijk_to_lps)
    scene = slicer.vtkMRMLScene()
    storage, node = slicer.vtkMRMLSegmentationStorageNode(), slicer.vtkMRMLSegmentationNode()
    scene.AddNode(storage)
    scene.AddNode(node)
    storage.SetFileName(str(output))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == len(masks)
    for number, ours in enumerate(masks):
        name = segmentation.GetNthSegment(number).GetName()
        assert name == ours.name
        image = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(number), image)
        ijk_to_ras = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(ijk_to_ras)
        theirs = np.array([[ijk_to_ras.GetElement(r, c) for c in range(4)] for r in range(4)])
        assert np.allclose(theirs, volume.ijk_to_ras, atol=1e-6)
        extent = image.GetExtent()
        part = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(
            extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1
        )
        whole = np.zeros(volume.shape_kji, bool)
        whole[extent[4] : extent[5] + 1, extent[2] : extent[3] + 1, extent[0] : extent[1] + 1] = part > 0
        assert np.array_equal(whole, ours.mask)


@pytest.fixture(scope="module")
def sarcoma_dice(an_engine) -> np.ndarray:
    """Dice of three tumours of the test split, from one box and after each of three clicks; (3, 4)."""
    scores = []
    for name in SARCOMAS:
        case = DATA / "ct_sarcoma" / name
        truth, volume = reference(case, "tumor"), CTVolume.read(case / "image.nii.gz")
        with an_engine.open(volume) as session:
            tumour = session.add_segment("tumor")
            session.place_box(tumour, box_on_middle_slice(truth))
            list(session.propagate())
            row = [dice(session.mask(tumour), truth)]
            for _ in range(3):
                session.place_point(tumour, correction_click(session.mask(tumour), truth, volume.spacing_ijk[::-1]))
                list(session.propagate())
                row.append(dice(session.mask(tumour), truth))
        scores.append(row)
    return np.array(scores)


def test_sarcomas_of_patients_never_seen_reach_070_from_one_box(sarcoma_dice):
    assert sarcoma_dice[:, 0].mean() >= 0.70, sarcoma_dice


def test_three_clicks_do_not_make_the_sarcomas_worse(sarcoma_dice):
    assert sarcoma_dice[:, 3].mean() >= sarcoma_dice[:, 0].mean(), sarcoma_dice


def test_sarcomas_of_patients_never_seen_reach_080_after_three_clicks(sarcoma_dice):
    assert sarcoma_dice[:, 3].mean() >= 0.80, sarcoma_dice
