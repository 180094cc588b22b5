"""Metrics: surfaces and distances in mm, against cases that can be computed by hand; and the published quirks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

pytest.importorskip("monai", reason="measuring needs MONAI")

from SAM2AssistLib.evaluation.metrics import hausdorff95, largest_distance_mm, surface_dice
from SAM2AssistLib.evaluation.organs import (
    BTCV13,
    FLARE22,
    PUBLISHED,
    SYNAPSE8,
    Published,
    honest_score,
    published_means,
)
from SAM2AssistLib.training.datasets.layouts import BTCV_NAMES, FLARE22_NAMES

SHAPE = (6, 8, 9)
THICK = (5.0, 1.0, 1.0)
MASKS = arrays(bool, SHAPE)


def voxels(*places: tuple[int, int, int], shape=SHAPE) -> np.ndarray:
    """Return a mask of single voxels (k, j, i)."""
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def block(low, high, shape=(12, 24, 24)) -> np.ndarray:
    """Fill voxels from low to high, both (k, j, i) and both included."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    return mask


@pytest.mark.parametrize(
    ("other", "tolerance", "expected"),
    [
        ((3, 4, 4), 2.0, 0.5),  # the corners that both voxels share agree, the four beyond are 5 mm off
        ((3, 4, 4), 5.0, 1.0),
        ((2, 4, 5), 2.0, 1.0),  # in the slice a voxel is 1 mm
        ((2, 4, 5), 0.5, 0.5),
    ],
)
def test_surface_dice_of_two_neighbouring_voxels_is_in_millimetres(other, tolerance, expected):
    assert surface_dice(voxels((2, 4, 4)), voxels(other), THICK, tolerance) == pytest.approx(expected)


def test_surface_dice_weighs_by_area_and_not_by_the_number_of_voxels():
    # A plate seen from its edge has little area; that of its faces counts.
    plate, shifted = block((5, 2, 2), (5, 20, 20)), block((6, 2, 2), (6, 20, 20))
    assert surface_dice(plate, shifted, (3.0, 1.0, 1.0), 2.0) == pytest.approx(0.5, abs=0.02)
    assert surface_dice(plate, shifted, (3.0, 1.0, 1.0), 3.0) == pytest.approx(1.0)


def test_surface_dice_of_nothing_and_nothing_is_one_and_of_nothing_and_something_zero():
    nothing, something = voxels(), voxels((1, 1, 1))
    assert surface_dice(nothing, nothing, THICK, 2.0) == 1.0
    assert surface_dice(nothing, something, THICK, 2.0) == 0.0
    assert surface_dice(something, nothing, THICK, 2.0) == 0.0


def test_the_edge_of_the_volume_is_no_place_where_surfaces_are_lost():
    inside, at_edge = block((4, 4, 4), (8, 9, 9)), block((0, 0, 0), (4, 5, 5))
    moved = block((5, 4, 4), (9, 9, 9)), block((1, 0, 0), (5, 5, 5))
    assert surface_dice(inside, moved[0], THICK, 2.0) == pytest.approx(surface_dice(at_edge, moved[1], THICK, 2.0))
    assert hausdorff95(inside, moved[0], THICK) == hausdorff95(at_edge, moved[1], THICK)


@given(MASKS, MASKS)
@settings(max_examples=15)
def test_surface_dice_is_symmetric_and_grows_with_the_tolerance(one, other):
    scores = [surface_dice(one, other, THICK, tolerance) for tolerance in (0.5, 2.0, 60.0)]
    assert scores == pytest.approx([surface_dice(other, one, THICK, tolerance) for tolerance in (0.5, 2.0, 60.0)])
    assert scores == sorted(scores)
    if one.any() and other.any():
        assert scores[-1] == pytest.approx(1.0)


def test_the_distance_is_in_millimetres_with_a_spacing_and_in_voxels_without():
    one, other = voxels((2, 4, 4)), voxels((3, 4, 6))
    assert hausdorff95(one, other, THICK) == pytest.approx(math.hypot(5, 2))
    assert hausdorff95(one, other) == pytest.approx(math.hypot(1, 2))


def test_the_percentile_is_taken_over_both_directions_together_as_medpy_does():
    line = block((0, 0, 0), (0, 0, 19))
    with_strays = line | block((10, 0, 0), (10, 0, 1))
    # Of 20 + 22 distances two are 10, which is less than 5 % of them; of the 22 in one direction it would be more.
    assert hausdorff95(line, with_strays) == 0.0


def test_there_is_no_distance_to_nothing():
    with pytest.raises(ValueError, match="not empty"):
        hausdorff95(voxels(), voxels((1, 1, 1)))


def test_nothing_in_a_volume_is_farther_apart_than_its_diagonal():
    assert largest_distance_mm((3, 4, 2), (1.0, 1.0, 6.0)) == pytest.approx(13.0)


# Published protocols


def test_protocols_name_the_organs_in_the_order_of_their_label_values():
    assert list(BTCV13.organs) == [BTCV_NAMES[value] for value in sorted(BTCV_NAMES)]
    assert list(FLARE22.organs) == [FLARE22_NAMES[value] for value in sorted(FLARE22_NAMES)]
    assert set(SYNAPSE8.organs) < set(BTCV13.organs)
    assert [len(PUBLISHED[name].organs) for name in ("synapse8", "btcv13", "flare22")] == [8, 13, 13]


def test_synapse_gives_a_missed_organ_the_distance_zero_and_an_invented_one_the_dice_one():
    nothing, organ = voxels(), voxels((2, 4, 4))
    assert SYNAPSE8.score(nothing, organ, THICK, "spleen") == Published(0.0, 0.0)
    assert SYNAPSE8.score(organ, nothing, THICK, "spleen") == Published(1.0, 0.0)
    assert SYNAPSE8.score(nothing, nothing, THICK, "spleen") == Published(0.0, 0.0)


def test_synapse_measures_in_voxels_whatever_the_spacing():
    one, other = voxels((2, 4, 4)), voxels((3, 4, 4))
    assert (
        SYNAPSE8.score(one, other, THICK, "liver").second
        == SYNAPSE8.score(one, other, (1.0, 1.0, 1.0), "liver").second
        == 1
    )


def test_btcv_gives_zero_where_there_is_no_reference():
    nothing, organ = voxels(), voxels((2, 4, 4))
    assert BTCV13.score(nothing, nothing, THICK, "liver") == Published(0.0)
    assert BTCV13.score(organ, nothing, THICK, "liver") == Published(0.0)
    assert BTCV13.score(organ, organ, THICK, "liver") == Published(1.0)


def test_flare_scores_tubes_on_the_slices_of_the_reference_without_the_uppermost():
    reference, longer = block((3, 4, 4), (6, 8, 8)), block((0, 4, 4), (11, 8, 8))
    assert FLARE22.score(longer, reference, THICK, "aorta") == Published(1.0, 1.0)
    only_top_wrong = reference.copy()
    only_top_wrong[6] = False
    assert FLARE22.score(only_top_wrong, reference, THICK, "esophagus").dsc == 1.0
    assert FLARE22.score(longer, reference, THICK, "liver").dsc < 1.0


def test_flare_counts_an_organ_that_is_neither_there_nor_found_and_nothing_for_a_low_dice():
    nothing, organ = voxels(), voxels((2, 4, 4))
    assert FLARE22.score(nothing, nothing, THICK, "gallbladder") == Published(1.0, 1.0)
    assert FLARE22.score(organ, nothing, THICK, "gallbladder") == Published(0.0, 0.0)
    assert FLARE22.score(nothing, organ, THICK, "aorta") == Published(0.0, 0.0)
    small, large = block((5, 5, 5), (5, 5, 5)), block((5, 5, 5), (6, 7, 7))
    scored = FLARE22.score(small, large, (0.1, 0.1, 0.1), "duodenum")
    assert 0 < scored.dsc < 0.2
    assert scored.second == 0.0


def test_flare_has_a_tolerance_for_each_organ():
    one, other = block((2, 4, 4), (8, 12, 12)), block((2, 8, 4), (8, 16, 12))  # 4 mm off
    liver, spleen = (FLARE22.score(one, other, THICK, organ).second for organ in ("liver", "spleen"))
    assert liver == pytest.approx(1.0)
    assert spleen is not None
    assert spleen < 0.9


def test_the_honest_score_punishes_a_miss_with_the_largest_distance_there_is():
    nothing, organ = voxels(), voxels((2, 4, 4))
    diagonal = largest_distance_mm(SHAPE, THICK)
    for mask, reference in ((nothing, organ), (organ, nothing)):
        scored = honest_score(mask, reference, THICK)
        assert (scored.dsc, scored.nsd, scored.hd95_mm) == (0.0, 0.0, diagonal)
    assert honest_score(nothing, nothing, THICK).dsc is None


def test_published_means_are_over_cases_by_organ_and_then_over_organs():
    scores = [
        ("a", "liver", Published(0.9, 2.0)),
        ("b", "liver", Published(0.7, 4.0)),
        ("a", "spleen", Published(0.4, 9.0)),
        ("b", "spleen", Published(0.6, 0.0)),
    ]
    by_organ, overall = published_means(SYNAPSE8, scores)
    assert by_organ["liver"] == Published(0.8, 3.0)
    assert overall == Published(0.65, 3.75)
