"""Labels grown from seeds that a person has placed."""

from __future__ import annotations

import numpy as np
import pytest

from SAM2AssistLib.training import seeded
from SAM2AssistLib.training.volumes import LabelledVolume

SPACING = (4.0, 1.5, 1.5)


def two_organs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two touching blocks of 110 and 60 HU in fat, with noise; returns HU and the truth of each."""
    first, second = np.zeros((2, 8, 40, 40), bool)
    first[1:7, 8:32, 6:20] = True
    second[1:7, 8:32, 20:34] = True
    hu = np.full(first.shape, -100.0)
    hu[first], hu[second] = 110, 60
    return (hu + np.random.default_rng(0).normal(0, 6, hu.shape)).astype(np.int16), first, second


SEEDS = {"liver": [[3, 20, 12, 3]], "stomach": [[4, 20, 27, 3]]}


def test_two_touching_organs_are_parted_at_their_edge():
    hu, first, second = two_organs()
    labels = seeded.grow_seeds(hu, SPACING, SEEDS)
    assert set(np.unique(labels)) == {0, 1, 2}
    for value, truth in ((1, first), (2, second)):
        shared = (labels == value) & truth
        assert 2 * shared.sum() / ((labels == value).sum() + truth.sum()) > 0.95


def test_seeds_of_other_keep_an_organ_away_and_get_no_label():
    hu, first, second = two_organs()
    labels = seeded.grow_seeds(hu, SPACING, {"liver": SEEDS["liver"], "other": SEEDS["stomach"]})
    assert set(np.unique(labels)) == {0, 1}
    assert ((labels == 1) & second).sum() < 0.05 * second.sum()


def test_an_organ_does_not_reach_far_beyond_its_outermost_seeds():
    hu = np.full((24, 24, 24), -100, np.int16)
    hu[:, 6:18, 3:12], hu[:, 6:18, 12:21] = 110, 50
    labels = seeded.grow_seeds(hu, SPACING, {"liver": [[10, 12, 7, 3]], "other": [[10, 12, 16, 2]]})
    found = np.flatnonzero((labels == 1).any((1, 2)))
    assert found[0] == 10 - seeded.SLICE_REACH
    assert found[-1] == 10 + seeded.SLICE_REACH


def test_a_case_without_seeds_is_passed_through_as_it_is(tmp_path):
    hu, first, _ = two_organs()
    volume = LabelledVolume("nobody", hu, first.astype(np.uint8), SPACING)
    assert seeded.with_grown_labels([volume], tmp_path) == [volume]
    assert not list(tmp_path.iterdir())


def test_grown_labels_are_kept_and_read_again(tmp_path, monkeypatch):
    hu, *_ = two_organs()
    monkeypatch.setattr(seeded, "seeds_of", lambda case: SEEDS)
    volume = LabelledVolume("case", hu, np.full(hu.shape, 9, np.uint8), SPACING)
    (grown,) = seeded.with_grown_labels([volume], tmp_path / "grown")
    monkeypatch.setattr(seeded, "grow_seeds", lambda *_: pytest.fail("the walk was done twice"))
    (again,) = seeded.with_grown_labels([volume], tmp_path / "grown")
    np.testing.assert_array_equal(again.labels, grown.labels)
    assert again.labels_along(0) == [1, 2]


def test_every_seed_in_the_package_is_a_disc_of_whole_numbers():
    cases = ("ct_abdomen_crlm_1004", "ct_abdomen_crlm_1006")
    for case in cases:
        for discs in seeded.seeds_of(case).values():
            assert all(len(disc) == 4 and all(isinstance(n, int) and n >= 0 for n in disc) for disc in discs)
