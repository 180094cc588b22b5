"""From class maps to templates: presence, slices and prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SAM2AssistLib.engine.views import View
from SAM2AssistLib.prompting.class_maps import ClassMaps, competing
from SAM2AssistLib.prompting.templates import TemplateOptions, choose_slices, find_class

SIDE = 32
VIEW = View(-8, 4, 64, 64)
CELL_ML = 1.0


def maps_of(*organs, slices: int = 12, sure: float = 0.95, distance_mm: float = 5.0) -> ClassMaps:
    """Maps with boxes (first slice, last slice, row, column, side) as organs a, b, ..."""
    probabilities = torch.zeros(slices, len(organs) + 1, SIDE, SIDE)
    for number, (first, last, row, column, side) in enumerate(organs, 1):
        probabilities[first : last + 1, number, row : row + side, column : column + side] = sure
    probabilities[:, 0] = 1 - probabilities.sum(dim=1)
    return ClassMaps(tuple("abc"[: len(organs)]), probabilities.half(), VIEW, distance_mm)


def test_an_organ_is_found_with_prompts_on_it():
    maps = maps_of((2, 9, 10, 12, 8))
    finding = find_class(maps, "a", CELL_ML, TemplateOptions())
    assert finding.presence > 0.9
    assert finding.reach == (0, 11)
    assert [t.index for t in finding.templates] == [2, 6]
    for template in finding.templates:
        # Two pixels of the slice for each cell, and the view begins at (-8, 4).
        np.testing.assert_allclose(template.box, [[-8 + 20, 4 + 24], [-8 + 35.5, 4 + 39.5]], atol=1.5)
        inside = template.points[template.positive][0]
        assert (template.box[0] < inside).all()
        assert (inside < template.box[1]).all()
        assert float(template.logits[14, 16]) > 0 > float(template.logits[2, 2])


def test_an_organ_that_is_nowhere_probable_is_absent_and_gets_no_template():
    finding = find_class(maps_of((2, 9, 10, 12, 8), sure=0.4), "a", CELL_ML, TemplateOptions())
    assert not finding.templates
    assert finding.presence < 0.5


def test_a_speck_is_no_organ():
    finding = find_class(maps_of((4, 4, 10, 12, 1)), "a", 0.01, TemplateOptions())
    assert not finding.templates
    assert finding.presence == 0.0


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_a_class_that_wins_no_voxel_is_absent(least):
    maps = maps_of((2, 9, 10, 12, 8), (0, 0, 0, 0, 0))
    finding = find_class(maps, "b", CELL_ML, TemplateOptions(presence=least))
    assert not finding.templates
    assert finding.presence == 0.0


def test_a_competing_organ_next_door_gives_a_negative_point():
    maps = maps_of((2, 9, 10, 8, 8), (2, 9, 10, 17, 8))
    template = find_class(maps, "a", CELL_ML, TemplateOptions(negatives=1)).templates[0]
    wrong = template.points[~template.positive]
    assert len(wrong) == 1
    row, column = (wrong[0] - (VIEW.row, VIEW.column)) / 2
    assert 17 <= column < 25
    assert 10 <= row < 18


@pytest.mark.parametrize("give", ["box", "hint", "positives"])
def test_each_kind_of_prompt_can_be_left_out(give):
    options = TemplateOptions(box=give == "box", hint=give == "hint", positives=int(give == "positives"), negatives=0)
    template = find_class(maps_of((2, 9, 10, 12, 8)), "a", CELL_ML, options).templates[0]
    assert (template.box is not None) == (give == "box")
    assert (template.logits is not None) == (give == "hint")
    assert len(template.points) == int(give == "positives")


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.integers(1, 8))
def test_templates_keep_their_distance_and_the_best_slice_is_one(confidence, spacing):
    values = np.array(confidence, np.float32)
    chosen = choose_slices(values, spacing, 0.5)
    assert chosen == sorted(chosen)
    assert all(b - a >= spacing for a, b in zip(chosen, chosen[1:], strict=False))
    assert all(values[k] >= 0.5 for k in chosen)
    if values.max() >= 0.5:
        assert int(values.argmax()) in chosen


def test_classes_found_one_by_one_share_what_both_claim():
    alone = torch.zeros(1, 2, 1, 3)
    alone[0, 0, 0], alone[0, 1, 0] = torch.tensor([0.9, 0.9, 0.0]), torch.tensor([0.0, 0.9, 0.0])
    shared = competing(("a", "b"), alone, VIEW, 5.0, np.ones((2, 1), np.float32)).probabilities[0, :, 0].float()
    assert shared[:, 0].argmax() == 1
    assert shared[1, 1] == pytest.approx(float(shared[2, 1]), abs=1e-3)
    assert shared[:, 2].argmax() == 0
    torch.testing.assert_close(shared.sum(dim=0), torch.ones(3), atol=5e-3, rtol=0)


def test_classes_that_are_left_out_become_background():
    maps = maps_of((2, 9, 10, 8, 8), (2, 9, 10, 17, 8)).only(("b",))
    assert maps.names == ("b",)
    assert float(maps.probabilities[5, 0, 12, 10]) > 0.9
    assert float(maps.probabilities[5, 1, 12, 20]) > 0.9
