"""Peers: seeds painted from prompts, GrowCut and random walker on a bright ball, and SAM2's own predictor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blobs import two_blobs

pytest.importorskip("monai", reason="measuring needs MONAI")

from SAM2AssistLib.engine.loading import engine_for
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.interactive import Task, User, run_trial
from SAM2AssistLib.evaluation.methods import EngineMethod
from SAM2AssistLib.evaluation.peers import INSIDE, OUTSIDE, check_peers, make_peers, region_of, seeds_of
from SAM2AssistLib.evaluation.simulated_user import RangedBox, box_on_middle_slice
from SAM2AssistLib.evaluation.upstream import UpstreamMethod
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt

SHAPE, SPACING = (10, 64, 64), (4.0, 1.5, 1.5)
BOX = RangedBox(BoxPrompt((20.0, 16.0, 5.0), (35.0, 31.0, 5.0), 0), (2, 7))


@pytest.fixture(scope="module")
def a_ball():
    """A volume with two bright balls, and where the first is."""
    volume = two_blobs((10, 64, 64)).volume
    reference = volume.array > 100
    reference[:, :, 32:] = False
    return Task("case", "ball", reference, (4.0, 1.5, 1.5)), volume


def masks_of(method, volume, *prompts) -> np.ndarray:
    with method.open(volume) as opened, opened.attempt("ball") as attempt:
        for prompt in prompts:
            attempt.prompt(prompt)
        return attempt.mask()


# Seeds


def test_a_box_says_what_is_outside_on_its_slice_and_beyond_its_range_and_its_core_is_inside():
    seeds = seeds_of([BOX], SHAPE, SPACING)
    assert (seeds[5, :16] == OUTSIDE).all()
    assert seeds[5, 23, 27] == INSIDE
    assert seeds[5, 17, 21] == 0
    assert (seeds[:2] == OUTSIDE).all()
    assert (seeds[8:] == OUTSIDE).all()
    assert seeds[4, 23, 27] == 0


def test_on_other_slices_the_object_may_be_half_a_box_larger():
    seeds = seeds_of([BOX], SHAPE, SPACING)
    region = region_of([BOX], SHAPE, SPACING)
    k, j, i = (seeds[4], *region[1:])[0], region[1], region[2]
    assert k[j.start, i.start] == OUTSIDE
    assert (j.start, j.stop) == (16 - 8 - 1, 31 + 8 + 2)
    assert (i.start, i.stop) == (20 - 8 - 1, 35 + 8 + 2)


def test_a_click_is_a_ball_of_three_millimetres_and_wins_over_the_box():
    click = PointPrompt((21.0, 17.0, 5.0), positive=False)
    seeds = seeds_of([BOX, click], SHAPE, SPACING)
    around = np.argwhere(seeds[5, 16:32, 20:36] == OUTSIDE)
    assert {tuple(place) for place in around} >= {(1, 1), (1, 3), (3, 1), (0, 1), (1, 0)}
    assert seeds[4, 17, 21] == 0  # the next slice is 4 mm away
    core = seeds_of([BOX, PointPrompt((27.0, 23.0, 5.0), positive=False)], SHAPE, SPACING)
    assert core[5, 23, 27] == OUTSIDE


def test_seeds_that_a_click_paints_never_leave_the_volume():
    seeds = seeds_of([PointPrompt((0.0, 63.0, 0.0))], SHAPE, SPACING)
    assert seeds[0, 63, 0] == INSIDE
    assert seeds.shape == SHAPE


# Methods


@pytest.mark.parametrize("peer", ["growcut", "walker"])
def test_a_seeded_method_finds_a_ball_that_is_boxed(peer, a_ball, quick_engine):
    if peer == "growcut":
        pytest.importorskip("slicer", reason="GrowCut is in slicer-core")
    task, volume = a_ball
    slices = np.flatnonzero(task.reference.any(axis=(1, 2)))
    box = RangedBox(box_on_middle_slice(task.reference), (int(slices[0]), int(slices[-1])))
    (method,) = make_peers([peer], quick_engine())
    mask = masks_of(method, volume, box)
    assert dice(mask, task.reference) > 0.85
    assert not mask[: slices[0]].any()
    assert not mask[slices[-1] + 1 :].any()


@pytest.mark.parametrize("peer", ["growcut", "walker"])
def test_a_seeded_method_obeys_a_negative_click(peer, a_ball, quick_engine):
    if peer == "growcut":
        pytest.importorskip("slicer", reason="GrowCut is in slicer-core")
    task, volume = a_ball
    box = box_on_middle_slice(task.reference)
    (method,) = make_peers([peer], quick_engine())
    centre = PointPrompt(tuple((a + b) / 2 for a, b in zip(box.min_ijk, box.max_ijk, strict=True)), positive=False)
    place = tuple(round(n) for n in reversed(centre.index_ijk))
    assert masks_of(method, volume, RangedBox(box))[place]
    assert not masks_of(method, volume, RangedBox(box), centre)[place]


def test_a_seeded_method_with_nothing_but_a_negative_click_finds_nothing(a_ball, quick_engine):
    _, volume = a_ball
    (method,) = make_peers(["walker"], quick_engine())
    assert not masks_of(method, volume, PointPrompt((20.0, 30.0, 5.0), positive=False)).any()


def test_the_video_predictor_gives_our_masks_with_the_same_weights_and_the_choices_that_are_its_own(
    an_engine, a_phantom
):
    options = replace(EngineOptions.like_upstream(), drawn_prompts=True, carried_logits=True)
    like_upstream = engine_for(an_engine.model, an_engine.spec, options)
    reference = a_phantom.labels == a_phantom.names["liver"]
    task = Task("phantom", "liver", reference, (5.0, 3.0, 3.0))
    found = {}
    for method in (EngineMethod(like_upstream), UpstreamMethod(like_upstream)):
        with method.open(a_phantom.volume) as opened:
            trial, mask = run_trial(opened, method, task, User("human", "tight box", 0), 0)
            found[method.name] = mask
            assert trial.slice_dsc is not None
    ours, theirs = found.values()
    assert theirs.any()
    assert dice(ours, theirs) > 0.98


def test_the_video_predictor_clears_what_lies_beyond_the_range_that_the_user_gave(an_engine, a_phantom):
    reference = a_phantom.labels == a_phantom.names["liver"]
    box = box_on_middle_slice(reference)
    k = round(box.min_ijk[2])
    mask = masks_of(UpstreamMethod(an_engine), a_phantom.volume, RangedBox(box, (k, k)))
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) <= {k}


def test_a_peer_that_does_not_exist_is_refused_and_all_is_all():
    with pytest.raises(InputError, match="no peer 'unet'; choose from sam2, growcut, walker"):
        check_peers("walker,unet")
    assert check_peers("walker, walker,sam2") == ["walker", "sam2"]
    assert check_peers("") == []
    pytest.importorskip("slicer", reason="GrowCut is in slicer-core")
    assert check_peers("all") == ["sam2", "growcut", "walker"]
