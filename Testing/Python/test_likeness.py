"""What the encoder sees in a segment is learned from all of its slices, and has a say when masks settle."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from blobs import TwoBlobs, draw_box, run, two_blobs
from hypothesis import given
from hypothesis import strategies as st

from SAM2AssistLib.engine import sharpening
from SAM2AssistLib.engine.blending import SliceOpinion
from SAM2AssistLib.engine.encoder import SliceFeatures
from SAM2AssistLib.engine.likeness import MOST_CELLS, MOST_SLICES, ODDS_LIMIT, Learner, grid_of, likeness
from SAM2AssistLib.engine.loading import Engine
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.random_walk import INSIDE, OUTSIDE
from SAM2AssistLib.engine.segment import Segment
from SAM2AssistLib.engine.session import Session
from SAM2AssistLib.engine.views import View


def features(image: torch.Tensor, width: int = 2, noise: float = 0.1, seed: int = 0) -> SliceFeatures:
    """Features of a slice (S, S), of which the first of each level shows it; the others are noise."""
    generator = torch.Generator().manual_seed(seed)

    def level(side: int) -> torch.Tensor:
        planes = noise * torch.randn(width, side, side, generator=generator)
        planes[0] += torch.nn.functional.adaptive_avg_pool2d(image[None, None], side)[0, 0]
        return planes

    side = image.shape[-1]
    return SliceFeatures(level(side), level(side // 2), level(side // 4))


def a_disc(side: int = 32, radius: float = 8.0) -> torch.Tensor:
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    return torch.from_numpy((rows**2 + columns**2 < radius**2).astype(np.float32))


def learned_from(*slices: tuple[SliceFeatures, torch.Tensor]):
    learner = Learner()
    for seen, inside in slices:
        learner.look(seen, inside, 1 - inside)
    return learner.learned()


def test_a_slice_on_which_the_network_was_wrong_is_told_by_the_others():
    disc = a_disc()
    wrong = disc.clone()
    wrong[:, :16] = 0
    slices = [(features(disc, seed=n), disc) for n in range(4)] + [(features(disc, seed=9), wrong)]
    learned = learned_from(*slices)
    odds = learned.odds(slices[-1][0])
    missed = (disc > 0) & (wrong == 0)
    assert (odds[missed] > 0).float().mean() > 0.9
    assert (odds[disc == 0] < 0).float().mean() > 0.9
    assert odds.abs().max() <= ODDS_LIMIT


def test_what_looks_the_same_inside_and_outside_says_next_to_nothing():
    disc = a_disc()
    nothing = [(features(torch.zeros(32, 32), seed=n), disc) for n in range(8)]
    odds = learned_from(*nothing).odds(features(torch.zeros(32, 32), seed=99))
    assert odds.abs().mean() < 0.2


@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_units_of_the_features_do_not_matter(scale: float, shift: float):
    disc = a_disc()

    def moved(seen: SliceFeatures) -> SliceFeatures:
        return SliceFeatures(*(scale * (level + shift) for level in (seen.fine, seen.middle, seen.plain)))

    seen = features(disc)
    odds, other = (learned_from((f, disc)).odds(f) for f in (seen, moved(seen)))
    assert torch.allclose(odds, other, atol=0.1)


def test_features_that_are_the_same_everywhere_say_nothing():
    disc, same = a_disc(), SliceFeatures(torch.ones(2, 32, 32), torch.ones(2, 16, 16), torch.zeros(2, 8, 8))
    assert not learned_from((same, disc)).odds(same).any()


def test_too_few_pixels_teach_nothing():
    learner = Learner()
    assert learner.learned() is None
    disc = a_disc(radius=2.0)
    learner.look(features(disc), disc, 1 - disc)
    assert learner.learned() is None


def test_finer_grids_are_looked_at_as_coarsely():
    disc = a_disc(side=4 * MOST_CELLS, radius=60)
    seen = features(disc)
    assert grid_of(4 * MOST_CELLS) == grid_of(MOST_CELLS) == MOST_CELLS
    assert grid_of(96) == 48
    coarse = a_disc(side=MOST_CELLS, radius=15)
    odds = learned_from((seen, coarse)).odds(seen)
    assert odds.shape == (MOST_CELLS, MOST_CELLS)
    assert ((odds > 0) == (coarse > 0)).float().mean() > 0.95


@pytest.mark.parametrize("shown", ["fine", "middle", "plain"])
def test_what_only_one_level_shows_is_seen_where_it_lies(shown: str):
    image = torch.zeros(32, 32)
    image[4:12, 16:28] = 1
    levels = {"fine": 32, "middle": 16, "plain": 8}
    blank = {name: torch.zeros(1, side, side) for name, side in levels.items()}
    blank[shown] = torch.nn.functional.adaptive_avg_pool2d(image[None], levels[shown])
    seen = SliceFeatures(**blank)
    odds = learned_from((seen, image)).odds(seen)
    assert ((odds > 0) == (image > 0)).float().mean() > 0.95


# ------------------------------------------------------------------------------------------------ on slices


class Shown:
    """A plane of slices that show a disc, with features that are counted; the network's word is given for each."""

    def __init__(self, said: list[torch.Tensor], spacing_mm: tuple[float, float] = (1.0, 1.0)) -> None:
        self.spacing_mm, self.distance_mm = spacing_mm, 3.0
        self.network = self.encoder = self
        self.device, self.batch, self.asked, self.batches = torch.device("cpu"), 4, Counter(), []
        view = View(0, 0, 64, 64)
        self.states = {k: SliceState(view, word, 0.9, 5.0, torch.zeros(1), None) for k, word in enumerate(said)}

    def holds(self, index: int, _view: View) -> bool:
        return index % 2 == 0

    def features_of(self, keys: list[tuple[int, View]]) -> list[SliceFeatures]:
        self.asked.update(index for index, _ in keys)
        self.batches.append([index for index, _ in keys])
        return [features(a_disc(), seed=index) for index, _ in keys]

    def likeness(self, seeds: dict[int, np.ndarray] | None = None) -> dict[int, torch.Tensor] | None:
        nothing = np.zeros((64, 64), np.int8)
        walking = likeness(self, self.states, lambda k: (seeds or {}).get(k, nothing))
        while True:
            try:
                next(walking)
            except StopIteration as done:
                return done.value


TRUE = a_disc() * 12 - 6
NOTHING = torch.full((32, 32), -6.0)


def test_what_a_prompt_makes_certain_counts_whatever_the_network_says():
    beside = NOTHING.clone()
    beside[:8, :8] = 6
    plane = Shown([beside] * 3)
    assert plane.likeness()[1][16, 16] < 0
    disc = np.kron(a_disc().numpy(), np.ones((2, 2))).astype(np.int8) * INSIDE
    elsewhere = np.where(disc == INSIDE, INSIDE, OUTSIDE).astype(np.int8)
    odds = plane.likeness({1: disc, 0: elsewhere, 2: elsewhere})
    assert (odds[1][a_disc() > 0] > 0).float().mean() > 0.9


def test_a_slice_on_which_nothing_was_found_is_told_of_but_not_learned_from():
    plane = Shown([TRUE, TRUE, NOTHING])
    odds = plane.likeness()
    assert (odds[2][a_disc() > 0] > 0).float().mean() > 0.9
    assert plane.asked == {0: 2, 1: 2, 2: 1}


def test_of_many_slices_some_teach_and_all_are_told_of():
    plane = Shown([TRUE] * (2 * MOST_SLICES + 1))
    assert len(plane.likeness()) == 2 * MOST_SLICES + 1
    assert MOST_SLICES / 2 < sum(count - 1 for count in plane.asked.values()) <= MOST_SLICES


def test_what_is_held_is_looked_at_before_it_has_to_make_room_and_the_rest_is_encoded_together():
    plane = Shown([TRUE] * 12)
    plane.likeness()
    once = [[0, 2, 4, 6], [8, 10, 1, 3], [5, 7, 9, 11]]
    assert plane.batches == once + once


def test_no_slice_is_left_out_where_memory_runs_out_and_batches_become_smaller(monkeypatch: pytest.MonkeyPatch):
    plane, features_of = Shown([TRUE] * 12), Shown.features_of

    def smaller(self: Shown, keys: list[tuple[int, View]]) -> list[SliceFeatures]:
        self.batch = 1
        return features_of(self, keys)

    monkeypatch.setattr(Shown, "features_of", smaller)
    assert sorted(plane.likeness()) == list(range(12))
    assert plane.asked == dict.fromkeys(range(12), 2)


def test_surroundings_are_millimetres_in_both_directions(monkeypatch: pytest.MonkeyPatch):
    looked_at = []
    monkeypatch.setattr(Learner, "look", lambda _self, _features, *shares: looked_at.append(shares))
    disc = a_disc(radius=5.0) * 12 - 6
    Shown([disc], spacing_mm=(1.0, 3.0)).likeness()
    ((inside, outside),) = looked_at
    near, shown = inside + outside > 0, disc > 0
    around = [int(near.any(dim=dim).sum()) - int(shown.any(dim=dim).sum()) for dim in (1, 0)]
    assert around == [2 * 6, 2 * 2]  # cells of 2 mm by 6 mm


def test_what_is_only_some_cells_thin_is_left_to_its_grey_values():
    thin = NOTHING.clone()
    thin[15:17] = 6
    plane = Shown([thin] * 3)
    assert plane.likeness() is None
    assert not plane.asked


def test_where_nothing_was_found_there_is_nothing_to_learn():
    plane = Shown([NOTHING] * 3)
    assert plane.likeness() is None
    assert not plane.asked


# ------------------------------------------------------------------------------------------------ in a session


def boxed(session: Session, blobs: TwoBlobs, slices: int = 2) -> Segment:
    """Draw a box around a blob, and so many slices to each side of its middle."""
    segment, (k, j, i) = session.add_segment("blob"), blobs.centres_kji[0].astype(int)
    draw_box(session, segment, (k - slices, j - 9, i - 9), (k + slices, j + 9, i + 9))
    return segment


def test_settling_encodes_no_slice_that_was_not_encoded_before(an_engine: Engine, a_bare_engine: Engine):
    encoded = []
    for engine in (an_engine, a_bare_engine):
        with engine.open(two_blobs().volume) as session:
            boxed(session, two_blobs())
            run(session)
            encoded.append(session._plane(0).encoder.encoded)
    assert encoded[0] == encoded[1]


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_told_of_cells_counts_at_their_place_in_the_slice(
    an_engine: Engine, monkeypatch: pytest.MonkeyPatch, axis: int
):
    edge, odds_of = 24, sharpening._Walker._slice

    def beyond_an_edge(_plane: object, states: dict[int, SliceState], _sown: object):
        odds = {}
        for k, state in states.items():
            first, count = ((state.view.row, state.view.rows), (state.view.column, state.view.columns))[axis]
            gone = torch.where(first + (torch.arange(32) + 0.5) * count / 32 < edge, -30.0, 0.0).expand(32, 32)
            odds[k] = gone.T if axis == 0 else gone
        yield
        return odds

    told: list[tuple[torch.Tensor, int]] = []

    def noted(walker: sharpening._Walker, index: int):
        grey, odds, seeds = odds_of(walker, index)
        if walker.alike is not None and index in walker.free:
            told.append((odds if axis == 0 else odds.T, (walker.region.rows, walker.region.columns)[axis].start))
        return grey, odds, seeds

    monkeypatch.setattr(sharpening, "likeness", beyond_an_edge)
    monkeypatch.setattr(sharpening._Walker, "_slice", noted)
    blobs = two_blobs()
    with an_engine.open(blobs.volume) as session:
        boxed(session, blobs)
        run(session)
    assert told
    assert all((odds[: edge - start - 3] < -6).all() for odds, start in told)
    assert any((odds[edge - start + 3 :] > 0).any() for odds, start in told)


@pytest.fixture
def never_asked(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        pytest.fail("it was asked")

    monkeypatch.setattr(sharpening, "likeness", never)


@pytest.mark.usefixtures("never_asked")
def test_one_slice_alone_is_settled_without_it(an_engine: Engine):
    with an_engine.open(two_blobs().volume) as session:
        assert session.mask(boxed(session, two_blobs())).any()


@pytest.mark.usefixtures("never_asked")
def test_where_nobody_has_told_its_ends_a_segment_is_settled_without_it(an_engine: Engine):
    with an_engine.open(two_blobs().volume) as session:
        segment = boxed(session, two_blobs(), slices=0)
        run(session)
        assert session.mask(segment).any(axis=(1, 2)).sum() > 1


@pytest.mark.usefixtures("never_asked")
def test_what_auto_segment_has_had_a_part_in_is_settled_without_it(an_engine: Engine):
    blobs = two_blobs()
    with an_engine.open(blobs.volume) as session:
        segment = boxed(session, blobs)
        for _ in session.propagate(sharpen=False):
            pass
        there = torch.from_numpy(session.mask(segment))
        opinion = SliceOpinion(View(0, 0, *there.shape[1:]), torch.where(there.any(0), 4.0, -4.0))
        session.blend(segment, dict.fromkeys(range(len(there)), opinion), 0.7)
        session.sharpen(segment)
        assert session.mask(segment).any(axis=(1, 2)).sum() > 1
