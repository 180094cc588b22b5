"""What a correction does to the slices around it, with the embedded model."""

from __future__ import annotations

import numpy as np
import pytest

from SAM2AssistLib import CTVolume, load_engine
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt

MIDDLE, END = 7, 12


@pytest.fixture
def a_column():
    """A round column of liver's HU in fat, on all slices, and a session with a box on its middle slice."""
    rows, columns = np.ogrid[:96, :96]
    inside = (rows - 48) ** 2 + (columns - 44) ** 2 < 17**2
    array = np.full((15, 96, 96), -100.0)
    array[:, inside] = 110
    array += np.random.default_rng(0).normal(0, 8, array.shape)
    volume = CTVolume.from_array(array.astype(np.int16), (2.0, 2.0, 3.0), np.diag([2.0, 2.0, 3.0, 1.0]))
    with load_engine("mini", device="cpu").open(volume) as session:
        segment = session.add_segment("column")
        session.place_box(segment, BoxPrompt((27.0, 31.0, MIDDLE), (61.0, 65.0, MIDDLE), 0))
        list(session.propagate())
        yield session, segment, inside


def _click(session, segment, index, *, positive):
    mask = session.place_point(segment, PointPrompt((44.0, 48.0, float(index)), positive))
    list(session.propagate())
    return mask


def _empty(session, segment, index):
    session.add_mask(segment, index, np.zeros((96, 96), bool))
    list(session.propagate())


def test_an_emptied_slice_leaves_the_slices_before_it_as_they_were(a_column):
    session, segment, _ = a_column
    before = session.mask(segment)
    _empty(session, segment, END)
    after = session.mask(segment)
    assert not after[END].any()
    for index in range(MIDDLE, END - 1):
        assert dice(after[index], before[index]) > 0.9


def test_a_positive_click_where_nothing_was_found_brings_back_a_whole_mask(a_column):
    session, segment, inside = a_column
    _empty(session, segment, END)
    mask = _click(session, segment, END, positive=True)
    assert dice(mask, inside) > 0.7


def test_between_two_prompted_slices_that_show_it_the_segment_is_on_every_slice(a_column):
    session, segment, inside = a_column
    _click(session, segment, END, positive=True)
    mask = session.mask(segment)
    assert all(dice(mask[index], inside) > 0.7 for index in range(MIDDLE, END + 1))
