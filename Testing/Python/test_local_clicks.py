"""A click is heeded where it points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import click
from hypothesis import given
from hypothesis import strategies as st

from SAM2AssistLib.engine.local_clicks import MARGIN, heeded

SIDE = 24
CELLS = st.floats(0, SIDE - 1)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20.0), CELLS, CELLS, st.booleans())
def test_a_click_is_heeded_at_its_place_and_hardly_anything_changes_far_away(seed, scale, row, column, positive):
    logits = scale * torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    result = heeded(logits, [(row, column, positive)])
    around = result[round(row - 0.499) : round(row) + 1, round(column - 0.499) : round(column) + 1]
    assert ((around > 0) == positive).all()
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    far = torch.hypot(rows - row, columns - column) > 14
    assert (result - logits)[far].abs().max() <= 1e-3 * (MARGIN + logits.abs().max())


@given(CELLS, CELLS)
def test_a_click_that_is_heeded_already_changes_nothing(row, column):
    logits = torch.full((SIDE, SIDE), 4.0)
    assert heeded(logits, [(row, column, True)]) is logits


def test_where_two_clicks_contradict_each_other_the_newer_one_holds():
    logits = torch.zeros(SIDE, SIDE)
    assert heeded(logits, [(8, 8, True), (8, 8, False)])[8, 8] < 0
    assert heeded(logits, [(8, 8, False), (8, 8, True)])[8, 8] > 0


def test_what_is_nearly_decided_gives_way_farther_around_than_what_is_certain():
    vague, sure = torch.full((SIDE, SIDE), -0.5), torch.full((SIDE, SIDE), -10.0)
    assert (heeded(vague, [(12, 12, True)]) > 0).sum() > (heeded(sure, [(12, 12, True)]) > 0).sum() >= 1


@pytest.mark.parametrize("positive", [True, False])
def test_a_voxel_that_is_clicked_belongs_to_the_segment_as_the_click_says(quick_engine, a_blob_volume, positive):
    with quick_engine().open(a_blob_volume) as session:
        segment = session.add_segment("blob")
        click(session, segment, (5, 32, 20))
        wanted = np.argwhere(session.mask(segment)[5] != positive)
        for row, column in wanted[:: max(1, len(wanted) // 8)]:
            assert click(session, segment, (5, int(row), int(column)), positive=positive)[row, column] == positive
            session.undo()
