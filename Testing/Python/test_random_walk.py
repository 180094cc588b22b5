"""The random walk with a prior: one sparse linear system on the voxel grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve

from SAM2AssistLib.engine.random_walk import (
    FIXED,
    GREY_BINS,
    INSIDE,
    OUTSIDE,
    PRIOR_WEIGHT,
    grey_bins,
    grey_odds,
    passages,
    walk,
)

EVEN = (1.0, 1.0, 1.0)


def solved(*system, **how) -> torch.Tensor:
    """Walk to the end."""
    steps = walk(*system, **how)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def solved_directly(ways, target, force) -> np.ndarray:
    """Write the matrix down and factorise it."""
    numbers = np.arange(target.numel()).reshape(target.shape)
    rows, columns, values = [numbers.ravel()], [numbers.ravel()], [force.numpy().ravel().astype(float)]
    for axis, way in enumerate(ways):
        before, after = np.moveaxis(numbers, axis, 0)[:-1].ravel(), np.moveaxis(numbers, axis, 0)[1:].ravel()
        passing = np.moveaxis(way.numpy(), axis, 0).ravel().astype(float)
        for a, b in ((before, after), (after, before)):
            rows += [a, a]
            columns += [a, b]
            values += [passing, -passing]
    matrix = coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))).tocsc()
    return spsolve(matrix, (force * target).numpy().ravel()).reshape(target.shape)


@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    seed=st.integers(0, 1000),
)
def test_it_solves_the_system_that_it_states(shape, spacing, seed):
    torch.manual_seed(seed)
    image, target, force = torch.rand(shape), torch.rand(shape), 0.05 + torch.rand(shape)
    ways = passages(image, spacing)
    found = solved(ways, target, force, torch.rand(shape), steps=500, tolerance=1e-6)
    np.testing.assert_allclose(found.numpy(), solved_directly(ways, target, force), atol=2e-3)


def test_a_seed_fills_what_looks_alike_and_stops_at_the_edge():
    image = torch.zeros(4, 20, 20)
    image[:, 5:15, 5:15] = 0.5
    target, force = torch.full_like(image, 0.3), torch.full_like(image, PRIOR_WEIGHT)
    for place, value in (((2, 10, 10), 1.0), ((2, 1, 1), 0.0)):
        target[place], force[place] = value, FIXED
    inside = solved(passages(image, EVEN), target, force, target, steps=300, tolerance=1e-4) > 0.5
    assert torch.equal(inside, image > 0)


def test_without_edges_a_sure_prior_stays_as_it_is():
    prior = torch.zeros(3, 24, 24)
    prior[:, :, 12:] = 1.0
    force = torch.full_like(prior, PRIOR_WEIGHT)
    found = solved(passages(torch.zeros_like(prior), EVEN), prior, force, prior, steps=300, tolerance=1e-4)
    assert torch.equal(found > 0.5, prior > 0.5)


def test_fewer_walkers_pass_between_thick_slices():
    across, along, _ = passages(torch.zeros(3, 4, 4), (5.0, 1.0, 1.0))
    assert float(across.max()) == pytest.approx(float(along.max()) / 25)


def test_a_start_that_is_the_solution_is_left_alone():
    force = torch.full((2, 5, 5), PRIOR_WEIGHT)
    solution = torch.full((2, 5, 5), 0.7)
    found = solved(passages(torch.zeros(2, 5, 5), EVEN), solution, force, solution, steps=10, tolerance=1e-3)
    torch.testing.assert_close(found, solution)


def test_grey_values_of_the_segment_speak_for_it_and_others_against_it():
    image = torch.zeros(1, 30, 30)
    image[0, 10:20, 10:20] = 0.8
    odds = grey_odds(image, (image > 0).float() * 0.9 + 0.05, torch.zeros(1, 30, 30, dtype=torch.int8), EVEN)
    assert odds.shape == (GREY_BINS + 1,)
    bright, dark = (float(odds[grey_bins(torch.tensor([grey]))[0]]) for grey in (0.8, 0.0))
    assert bright > 1
    assert dark < -1


def test_grey_values_say_nothing_where_inside_and_outside_look_alike():
    prior = torch.zeros(1, 30, 30)
    prior[0, 10:20, 10:20] = 1.0
    image = torch.rand(1, 30, 30, generator=torch.Generator().manual_seed(0))
    assert float(grey_odds(image, prior, torch.zeros(1, 30, 30, dtype=torch.int8), EVEN).abs().mean()) < 0.5


def test_a_click_teaches_what_the_segment_looks_like():
    image = torch.full((1, 30, 30), 0.2)
    image[0, :, 15:] = 0.6
    prior, seeds = torch.full((1, 30, 30), 0.4), torch.zeros(1, 30, 30, dtype=torch.int8)
    seeds[0, 15, 25], seeds[0, 15, 5] = INSIDE, OUTSIDE
    odds = grey_odds(image, prior, seeds, EVEN)
    assert float(odds[grey_bins(torch.tensor([0.6]))[0]]) > float(odds[grey_bins(torch.tensor([0.2]))[0]])
