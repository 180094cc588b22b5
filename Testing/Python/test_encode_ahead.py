"""Encoding ahead of the user, and showing what a click would give."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import click

from SAM2AssistLib.prompts import PointPrompt


def test_slices_are_encoded_from_the_one_in_view_outward(a_quick_session):
    steps = list(a_quick_session.encode_ahead(4))
    assert [step.index for step in steps[:5]] == [4, 3, 5, 2, 6]
    assert sorted(step.index for step in steps) == list(range(a_quick_session.volume.array.shape[0]))
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} == {len(steps)}


def test_a_click_between_two_steps_is_answered_and_its_slice_not_encoded_twice(a_quick_session, a_segment):
    steps = a_quick_session.encode_ahead(0)
    next(steps)
    click(a_quick_session, a_segment, (9, 32, 20))
    encoder = a_quick_session._plane(0).encoder
    views = {key for key in encoder._cache if key[0] == 9}
    list(steps)
    assert encoder.encoded == len(encoder._cache)
    assert views <= set(encoder._cache)


def test_no_more_slices_are_encoded_ahead_than_the_budget_holds(quick_engine, a_blob_volume):
    with quick_engine(cache_slices=4, encode_batch=2).open(a_blob_volume) as session:
        steps = list(session.encode_ahead(5))
        assert [step.index for step in steps] == [5, 4, 6, 3]
        assert session._plane(0).encoder.encoded == 4


@pytest.mark.parametrize("with_segment", [False, True])
def test_a_preview_is_what_the_click_gives_and_changes_nothing(a_quick_session, a_segment, with_segment):
    session, point = a_quick_session, PointPrompt((20.0, 32.0, 5.0), True)
    before = session.mask(a_segment)
    shown = session.preview_point(a_segment if with_segment else None, point)
    assert session.prompts(a_segment) == ()
    assert np.array_equal(session.mask(a_segment), before)
    assert session.confidence(a_segment) == {}
    assert np.array_equal(shown, session.place_point(a_segment, point))


def test_a_preview_beside_earlier_clicks_is_what_the_next_click_gives(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    point = PointPrompt((50.0, 10.0, 5.0), False)
    shown = a_quick_session.preview_point(a_segment, point)
    assert len(a_quick_session.prompts(a_segment)) == 1
    assert np.array_equal(shown, a_quick_session.place_point(a_segment, point))


def test_there_is_no_preview_outside_the_volume(a_quick_session):
    assert a_quick_session.preview_point(None, PointPrompt((-9.0, 0.0, 0.0), True)) is None
