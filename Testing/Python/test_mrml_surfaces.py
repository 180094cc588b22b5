"""Closed surfaces that are shown: kept while results come, made anew once it is quiet."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml_desk import Desk, desk  # noqa: E402, F401
from mrml_scene import point  # noqa: E402

from SAM2AssistLib.mrml.surfaces import QUIET_S, Surfaces  # noqa: E402
from SAM2AssistLib.mrml.voxels import SURFACE  # noqa: E402

LEFT, RIGHT = (5, 32, 20), (5, 32, 44)


def surface_of(desk: Desk, segment_id: str) -> Any:  # noqa: F811
    return desk.segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation(SURFACE)


@pytest.fixture
def shown(desk: Desk) -> tuple[str, str]:  # noqa: F811
    """Two finished segments whose surfaces are shown."""
    other = desk.add_segment("other")
    desk.assistant.rules.auto_propagate = False
    desk.do(desk.segment, point(desk.ct, LEFT))
    desk.do(other, point(desk.ct, RIGHT))
    desk.assistant.rules.auto_propagate = True
    assert desk.segmentation.CreateClosedSurfaceRepresentation()
    return desk.segment, other


def test_no_surface_is_made_before_it_has_been_quiet_for_a_while(
    desk: Desk,  # noqa: F811
    shown: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[float] = []
    real = Surfaces.renew_one

    def renew(self: Surfaces) -> None:
        before = surface_of(desk, shown[0])
        real(self)
        if surface_of(desk, shown[0]) is not before:
            made.append(time.perf_counter())

    monkeypatch.setattr(Surfaces, "renew_one", renew)
    before, others = surface_of(desk, shown[0]), surface_of(desk, shown[1])
    desk.workspace.add_prompt(shown[0], point(desk.ct, (4, 32, 22)))
    while desk.assistant.worker.busy:
        desk.assistant.pump(0.0)
        assert surface_of(desk, shown[0]) is before
        time.sleep(0.002)
    finished = time.perf_counter()
    assert desk.assistant.busy
    assert desk.assistant.wait()
    (when,) = made
    assert when - finished > 0.8 * QUIET_S
    assert surface_of(desk, shown[1]) is others


def test_the_surface_is_in_the_end_the_one_that_slicer_makes_of_the_voxels(desk: Desk, shown: tuple[str, str]) -> None:  # noqa: F811
    before = surface_of(desk, shown[0]).GetNumberOfPoints()
    desk.do(shown[0], point(desk.ct, (4, 32, 22)))
    renewed = surface_of(desk, shown[0])
    assert renewed.GetNumberOfPoints() > before
    desk.segmentation.GetSegmentation().GetSegment(shown[0]).RemoveRepresentation(SURFACE)
    desk.segmentation.CreateClosedSurfaceRepresentation()
    slicers_own = surface_of(desk, shown[0])
    assert slicers_own is not renewed
    assert slicers_own.GetNumberOfPoints() == renewed.GetNumberOfPoints()
    assert slicers_own.GetBounds() == pytest.approx(renewed.GetBounds())


def test_without_a_surface_nothing_is_waited_for(desk: Desk) -> None:  # noqa: F811
    desk.do(desk.segment, point(desk.ct, LEFT))
    assert not desk.assistant.surfaces.waiting
    assert surface_of(desk, desk.segment) is None


def test_a_segment_or_scene_that_is_gone_by_then_is_passed_over(desk: Desk, shown: tuple[str, str]) -> None:  # noqa: F811
    for segment_id, index in zip(shown, ((4, 32, 22), (4, 32, 44)), strict=True):
        desk.workspace.add_prompt(segment_id, point(desk.ct, index))
        while desk.assistant.worker.busy:
            desk.assistant.pump()
            time.sleep(0.002)
    desk.segmentation.GetSegmentation().RemoveSegment(shown[0])
    assert desk.assistant.wait()
    desk.workspace.add_prompt(shown[1], point(desk.ct, (6, 32, 44)))
    while desk.assistant.worker.busy:
        desk.assistant.pump()
        time.sleep(0.002)
    desk.scene.Clear(False)
    assert desk.assistant.wait()
    assert not desk.errors
