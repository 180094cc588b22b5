"""Knowing when to stop: the rules that end a propagation where the object ends."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import click, extent, run, two_blobs

from SAM2AssistLib.engine import stopping
from SAM2AssistLib.engine.stopping import StopJudge

SURE, UNSURE = 0.95, 0.05


def test_a_slice_without_the_object_is_not_accepted():
    assert not StopJudge([100]).accepts(0, SURE)
    assert not StopJudge().accepts(0, SURE)


def test_without_a_mask_to_compare_with_anything_is_accepted():
    assert StopJudge().accepts(1, UNSURE)


def test_a_mask_like_the_ones_before_is_accepted_even_if_the_model_is_unsure():
    assert StopJudge([100, 110]).accepts(105, UNSURE)


def test_a_mere_remnant_is_not_accepted_however_sure_the_model_is():
    judge = StopJudge([1000])
    assert not judge.accepts(int(1000 * stopping.LEAST_SHARE) - 1, SURE)
    assert judge.accepts(int(1000 * stopping.LEAST_SHARE) + 1, SURE)


def test_a_remnant_is_measured_by_the_largest_mask_so_far():
    judge = StopJudge([1000])
    for area in (800, 400, 200, 100):
        assert judge.accepts(area, SURE)
        judge.ends(area)
    assert not judge.accepts(int(1000 * stopping.LEAST_SHARE) - 1, SURE)


def test_a_sudden_leak_is_accepted_only_if_the_model_is_sure():
    judge = StopJudge([100, 100, 100])
    assert not judge.accepts(int(100 * stopping.LEAK) + 1, UNSURE)
    assert judge.accepts(int(100 * stopping.LEAK) + 1, SURE)


def test_an_object_may_grow_slowly_to_many_times_its_size():
    judge, area = StopJudge([100]), 100
    for _ in range(20):
        area = int(area * 1.2)
        assert judge.accepts(area, UNSURE)
        assert not judge.ends(area)


def test_a_propagation_ends_after_some_absent_slices_in_a_row():
    judge = StopJudge([100])
    assert [judge.ends(0) for _ in range(stopping.ABSENT_IN_A_ROW)] == [False] * (stopping.ABSENT_IN_A_ROW - 1) + [True]


def test_one_absent_slice_is_forgiven_when_the_object_comes_back():
    judge = StopJudge([100])
    for _ in range(5):
        assert not judge.ends(0)
        assert not judge.ends(90)


def test_a_propagation_ends_where_the_network_sees_no_object(quick_engine, monkeypatch):
    with quick_engine(stop_rules=True).open(two_blobs((12, 64, 64)).volume) as session:
        segment = session.add_segment("ball")
        click(session, segment, (2, 32, 20))
        monkeypatch.setattr(StopJudge, "accepts", lambda *_: False)
        steps = run(session)
        assert extent(session.mask(segment)) == [2]
        assert {step.index for step in steps} == {0, 1, *range(3, 3 + stopping.ABSENT_IN_A_ROW)}
        assert [step.total for step in steps] == sorted((step.total for step in steps), reverse=True)


def test_slices_beyond_the_end_lose_the_mask_of_an_earlier_propagation(quick_engine, monkeypatch):
    with quick_engine(stop_rules=True).open(two_blobs((12, 64, 64)).volume) as session:
        segment = session.add_segment("ball")
        monkeypatch.setattr(StopJudge, "accepts", lambda *_: True)
        click(session, segment, (2, 32, 20))
        run(session)
        before = session.mask(segment)
        monkeypatch.setattr(StopJudge, "accepts", lambda *_: False)
        click(session, segment, (2, 32, 24))
        run(session)
        assert len(extent(before)) > 1
        assert extent(session.mask(segment)) == [2]
        session.undo()
        session.undo()
        assert np.array_equal(session.mask(segment), before)


def test_between_two_prompted_slices_a_propagation_never_stops(quick_engine, monkeypatch):
    monkeypatch.setattr(StopJudge, "accepts", lambda *_: False)
    with quick_engine(stop_rules=True).open(two_blobs((12, 64, 64)).volume) as session:
        segment = session.add_segment("ball")
        for k in (2, 9):
            click(session, segment, (k, 32, 20))
        assert {step.index for step in run(session)} >= set(range(3, 9))


@pytest.mark.parametrize("stop_rules", [True, False])
def test_without_the_rules_every_slice_is_visited(quick_engine, monkeypatch, stop_rules):
    monkeypatch.setattr(StopJudge, "accepts", lambda *_: False)
    with quick_engine(stop_rules=stop_rules).open(two_blobs((12, 64, 64)).volume) as session:
        segment = session.add_segment("ball")
        click(session, segment, (2, 32, 20))
        assert (len(run(session)) == 11) is not stop_rules
