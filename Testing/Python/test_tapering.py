"""Towards the ends that a 3D box tells, a segment gets smaller, as what is in such boxes does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import click, draw_box, run
from hypothesis import given
from hypothesis import strategies as st

from SAM2AssistLib import CTVolume
from SAM2AssistLib.engine import sharpening
from SAM2AssistLib.engine.segment import Findings, PlacedPrompt
from SAM2AssistLib.engine.tapering import CERTAIN, expected_areas, leaned, narrowed
from SAM2AssistLib.overlap import dice

SLICES = 40
AREA = 400


def a_box(index: int, reach: tuple[int, int] | None) -> PlacedPrompt:
    return PlacedPrompt(0, index, np.array([[0.0, 0.0], [19.0, 19.0]]), np.array([2, 3]), reach=reach)


def a_click(index: int) -> PlacedPrompt:
    return PlacedPrompt(1, index, np.array([[9.0, 9.0]]), np.array([1]))


def expected(*prompts: PlacedPrompt, areas: dict[int, int] | None = None, distance_mm: float = 1.0) -> dict[int, float]:
    return expected_areas(Findings(prompts=prompts), SLICES, distance_mm, 1.0, lambda k: (areas or {}).get(k, AREA))


def test_between_the_middle_and_both_ends_less_and_less_is_expected():
    areas = expected(a_box(20, (10, 30)))
    assert sorted(areas) == [k for k in range(10, 31) if k != 20]
    below = [areas[k] for k in range(10, 20)]
    assert below == sorted(below)
    assert [areas[k] for k in range(30, 20, -1)] == pytest.approx(below)
    assert below[0] < 0.15 * AREA
    assert AREA / 2 < areas[15] < AREA


def test_without_a_told_end_nothing_is_expected():
    assert expected(a_box(20, None)) == {}
    assert expected(a_click(20)) == {}
    assert expected() == {}


def test_how_far_auto_segment_lets_a_propagation_go_is_no_end():
    assert expected(replace(a_box(20, (10, 30)), is_guess=True)) == {}


def test_an_object_that_the_volume_cuts_off_is_expected_to_go_on():
    assert min(expected(a_box(12, (0, 30)))) == 13
    assert max(expected(a_box(25, (10, SLICES - 1)))) == 24


def test_a_box_in_which_nothing_was_found_expects_nothing():
    assert expected(a_box(20, (10, 30)), areas={20: 0}) == {}


def test_a_prompted_slice_on_the_way_tells_more_than_the_middle_does():
    alone, told = expected(a_box(20, (10, 30))), expected(a_box(20, (10, 30)), a_click(14), areas={20: AREA, 14: 80})
    assert 14 not in told
    assert told[12] < alone[12] / 2
    assert alone[17] > told[17] > 80
    assert told[25] == alone[25]


def test_a_prompt_on_the_last_slice_makes_none_before_it_larger_than_what_is_shown():
    for told in (30, 29):
        areas = expected(a_box(20, (10, 30)), a_click(told), areas={20: AREA, told: 300})
        assert max(areas.values()) <= AREA


def test_beyond_the_box_nothing_is_expected_and_a_click_there_is_no_end():
    areas = expected(a_box(20, (10, 30)), a_click(33))
    assert sorted(areas) == [k for k in range(10, 31) if k != 20]


def test_several_boxes_may_be_around_several_parts():
    assert expected(a_box(12, (8, 16)), a_box(26, (22, 30))) == {}


def test_a_box_of_two_slices_has_nothing_between_middle_and_end():
    assert expected(a_box(20, (20, 21))) == {}


def test_something_long_gets_smaller_only_near_its_ends():
    long, short = expected(a_box(20, (5, 35)), distance_mm=10.0), expected(a_box(20, (5, 35)), distance_mm=1.0)
    assert long[10] == pytest.approx(AREA)
    assert short[10] < 0.7 * AREA


def some_odds(seed: int) -> torch.Tensor:
    """Different ones on each pixel; what is inside is one blob."""
    rng = np.random.default_rng(seed)
    row, column = np.indices((24, 24)) - 11.5
    return torch.from_numpy((4 - 0.6 * np.hypot(row, column) + 0.2 * rng.normal(size=(24, 24))).astype(np.float32))


@given(area=st.floats(0, 600), seed=st.integers(0, 9))
def test_what_is_too_large_is_brought_down_to_what_is_expected_and_what_is_too_small_some_way_up(area, seed):
    odds, everywhere = some_odds(seed), torch.ones(24, 24, dtype=torch.bool)
    before, after = int((odds > 0).sum()), int((leaned(odds, everywhere, area) > 0).sum())
    if before > area:
        assert after <= max(area, 1)
    else:
        assert before <= after
        assert after <= area + 60  # what a quarter of a logit adds


@given(area=st.floats(0, 600), seed=st.integers(0, 9))
def test_only_the_least_probable_pixels_are_taken_off_and_none_that_is_certain(area, seed):
    found, everywhere = some_odds(seed).sigmoid(), torch.ones(24, 24, dtype=torch.bool)
    inside = found > 0.5
    kept = narrowed(found, everywhere, area) > 0.5
    certain, gone = int((found >= CERTAIN).sum()), inside & ~kept
    assert int(kept.sum()) == min(int(inside.sum()), max(1, int(area), certain))
    assert not gone.any() or found[kept].min() >= found[gone].max()


def test_what_a_box_forbids_does_not_count_as_found():
    odds, allowed = some_odds(0), torch.zeros(24, 24, dtype=torch.bool)
    allowed[:12] = True
    found = int((odds[allowed] > 0).sum())
    assert int((leaned(odds, allowed, found / 2)[allowed] > 0).sum()) <= found / 2


def an_egg(shape=(15, 96, 96)) -> tuple[CTVolume, np.ndarray]:
    """An egg that stands on one just like it and carries another, all as bright as each other."""
    spacing = (1.0, 1.0, 3.0)
    k, j, i = np.indices(shape)
    eggs = [((k - c) * 3 / 15) ** 2 + ((j - 48) / 20) ** 2 + ((i - 48) / 24) ** 2 <= 1 for c in (-2, 7, 16)]
    hu = np.where(eggs[0] | eggs[1] | eggs[2], 90, 30) + np.random.default_rng(3).normal(0, 20, shape)
    hu[:, 0] = -1000
    return CTVolume.from_array(hu.astype(np.int16), spacing, np.diag([*spacing, 1.0])), eggs[1]


def segmented(engine, volume: CTVolume, egg: np.ndarray) -> np.ndarray:
    with engine.open(volume) as session:
        segment = session.add_segment("egg")
        k, j, i = (np.flatnonzero(egg.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
        draw_box(session, segment, (k[0], j[0], i[0]), (k[-1], j[-1], i[-1]))
        run(session)
        return session.mask(segment)


def test_the_ends_of_an_object_are_found_that_the_network_carries_on(an_engine, monkeypatch):
    volume, egg = an_egg()
    held = segmented(an_engine, volume, egg)
    monkeypatch.setattr(sharpening, "expected_areas", lambda *_: {})
    carried = segmented(an_engine, volume, egg)
    assert dice(held, egg) > dice(carried, egg)


@pytest.mark.parametrize("thickness", [2, 3, 4, 7])
def test_thin_balls_keep_their_outer_slices(an_engine, thickness):
    """A lymph node on few thick slices."""
    k, j, i = np.indices((15, 96, 96))
    middle, radius_mm = 7 + (thickness - 1) / 2 - thickness // 2, thickness * 4.0 / 2
    ball = ((k - middle) * 4) ** 2 + (j - 48) ** 2 + (i - 48) ** 2 <= radius_mm**2
    hu = np.where(ball, 140, 20) + np.random.default_rng(1).normal(0, 8, ball.shape)
    volume = CTVolume.from_array(hu.astype(np.int16), (1.0, 1.0, 4.0), np.diag([1.0, 1.0, 4.0, 1.0]))
    found = segmented(an_engine, volume, ball)
    for index in np.flatnonzero(ball.any(axis=(1, 2))):
        assert found[index].sum() > 0.6 * ball[index].sum()


def test_a_click_brings_back_what_tapering_took(an_engine):
    volume, egg = an_egg()
    with an_engine.open(volume) as session:
        segment = session.add_segment("part of a tube")
        draw_box(session, segment, (3, 26, 22), (11, 70, 74))
        run(session)
        before = session.mask(segment)[11].sum()
        click(session, segment, (11, 48, 66))
        run(session)
        assert session.mask(segment)[11, 48, 66]
        assert session.mask(segment)[11].sum() > before
