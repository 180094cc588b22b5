"""The Slicer module's logic on real MRML nodes; there are stand-ins only for the application around them.

What a script calls in Slicer gives what the command line gives for the same voxels and prompts.
"""

from __future__ import annotations

import importlib.util
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from blobs import two_blobs
from command_line import box_prompts, two_segments, write_prompts
from ct_files import rotation
from slicer_nodes import segment_voxels
from slicer_package import ROOT

from SAM2AssistLib import CTVolume
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompts import read_prompt_file

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")


class Logic:
    """Of Slicer's base class the module's logic uses nothing."""


def module_named(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    return module


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The scene of the application: a real one."""
    scene = slicer.vtkMRMLScene()

    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # registers the representations and their conversions
    logic.SetMRMLScene(scene)
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    yield scene
    scene.Clear(True)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, scene: Any) -> ModuleType:
    """The module's file, loaded as Slicer loads it."""
    bases = {f"ScriptedLoadableModule{part}": type(part or "Module", (), {}) for part in ("", "Widget")}
    stand_ins = (
        module_named("ctk"),
        module_named("qt"),
        module_named("slicer.parameterNodeWrapper", parameterNodeWrapper=lambda kind: kind, Choice=list),
        module_named("slicer.i18n", tr=str, translate=lambda _context, text: text),
        module_named(
            "slicer.ScriptedLoadableModule",
            ScriptedLoadableModuleLogic=Logic,
            ScriptedLoadableModuleTest=unittest.TestCase,
            **bases,
        ),
    )
    for stand_in in stand_ins:
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    spec = importlib.util.spec_from_file_location("SAM2Assist", ROOT / "SAM2Assist" / "SAM2Assist.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def node_of(volume: CTVolume) -> Any:
    return slicer.util.addVolumeFromArray(volume.array, volume.ijk_to_ras, "my CT")


@pytest.fixture
def an_oblique_volume() -> CTVolume:
    """Two balls on a grid that is turned against the patient."""
    straight = two_blobs((10, 64, 64)).volume
    matrix = straight.ijk_to_lps.copy()
    matrix[:3, :3] = rotation((10, 20, 30)) @ matrix[:3, :3]
    matrix[:3, 3] = (-12.5, 30.25, 7.0)
    return CTVolume.from_array(straight.array, straight.spacing_ijk, matrix)


def of_library(engine: Any, volume: CTVolume, prompts: Path) -> dict[str, np.ndarray]:
    with engine.open(volume) as session:
        for request in read_prompt_file(prompts, volume):
            session.add_prompts(request)
        list(session.propagate())
        return {segment.name: session.mask(segment) for segment in session.segments}


def names_of(segmentation: Any) -> list[str]:
    segments = segmentation.GetSegmentation()
    return [segments.GetNthSegment(n).GetName() for n in range(segments.GetNumberOfSegments())]


def test_a_volume_node_gets_a_segmentation_node_with_the_masks_of_the_library(
    module: ModuleType, engine: Any, an_oblique_volume: CTVolume, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.json", two_segments())
    node, steps = node_of(an_oblique_volume), list[tuple[int, int]]()
    segmentation = module.SAM2AssistLogic().segmentVolume(
        node, prompts, onProgress=lambda done, total: steps.append((done, total))
    )
    expected = of_library(engine, an_oblique_volume, prompts)
    assert names_of(segmentation) == list(expected) == ["ball", "little ball"]
    for number, mask in enumerate(expected.values()):
        found, ijk_to_lps = segment_voxels(segmentation, number, an_oblique_volume.shape_kji)
        assert mask.any()
        np.testing.assert_array_equal(found, mask)
        np.testing.assert_allclose(ijk_to_lps, an_oblique_volume.ijk_to_lps, atol=1e-6)
    assert segmentation.GetName().startswith("my CT segmentation")
    assert steps[-1][0] <= steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_on_an_oblique_grid_a_box_on_a_slice_stays_on_it(
    module: ModuleType, engine: Any, an_oblique_volume: CTVolume, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.json", box_prompts())
    segmentation = module.SAM2AssistLogic().segmentVolume(node_of(an_oblique_volume), prompts, device="cpu")
    found, _ = segment_voxels(segmentation, 0, an_oblique_volume.shape_kji)
    np.testing.assert_array_equal(found, of_library(engine, an_oblique_volume, prompts)["ball"])


def test_a_volume_under_a_linear_transform_is_segmented_where_it_is(
    module: ModuleType, scene: Any, engine: Any, an_oblique_volume: CTVolume, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.json", box_prompts())
    node, transform = node_of(an_oblique_volume), scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetAndObserveTransformNodeID(transform.GetID())
    segmentation = module.SAM2AssistLogic().segmentVolume(node, prompts)
    assert segmentation.GetTransformNodeID() == transform.GetID()
    found, _ = segment_voxels(segmentation, 0, an_oblique_volume.shape_kji)
    np.testing.assert_array_equal(found, of_library(engine, an_oblique_volume, prompts)["ball"])


def test_prompts_that_cannot_be_used_add_nothing_to_the_scene(
    module: ModuleType, scene: Any, engine: Any, a_blob_volume: CTVolume, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.json", {"frame": "IJK", "segments": []})
    with pytest.raises(InputError, match="no segments"):
        module.SAM2AssistLogic().segmentVolume(node_of(a_blob_volume), prompts)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_the_self_test_of_the_module_passes(module: ModuleType) -> None:
    module.SAM2AssistTest().runTest()
