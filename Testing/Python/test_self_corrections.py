"""Doubtful slices, attempts, competition and blending of a session, and the corrections the engine makes itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import click, run

from SAM2AssistLib.engine.blending import SliceOpinion
from SAM2AssistLib.engine.segment import PlacedPrompt
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompting.corrections import CorrectionOptions, correct, error_opinion
from SAM2AssistLib.prompting.error_head import ErrorHead, channels_of


@pytest.fixture
def a_propagated(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (4, 32, 19))
    run(a_quick_session)
    return a_segment


def opinion_of(session, row: int, column: int) -> SliceOpinion:
    """A square of 16 pixels, as sure as can be."""
    view = session._plane(0).whole
    logits = torch.full((16, 16), -6.0)
    logits[row // 4 : row // 4 + 4, column // 4 : column // 4 + 4] = 6.0
    return SliceOpinion(view, logits)


# Doubt


def test_doubtful_slices_come_from_the_least_sure_on_and_have_no_prompt(a_quick_session, a_propagated):
    found = a_quick_session.doubtful_slices()
    assert found
    assert [d.confidence for d in found] == sorted(d.confidence for d in found)
    sure = a_quick_session.confidence(a_propagated)
    for item in found:
        assert item.index != 4
        assert all(sure[item.index] <= sure.get(item.index + side, 2.0) for side in (-1, 1))


def test_the_next_doubtful_slice_goes_through_all_of_them_once(a_quick_session, a_propagated):
    seen, index = [], a_quick_session.next_doubtful_slice(a_propagated)
    while index is not None:
        seen.append(index)
        index = a_quick_session.next_doubtful_slice(a_propagated, index)
    assert seen == [d.index for d in a_quick_session.doubtful_slices()]


def test_a_segment_without_prompts_has_no_doubtful_slice(a_quick_session, a_segment):
    assert a_quick_session.next_doubtful_slice(a_segment) is None


# Attempts


def test_an_attempt_that_is_not_kept_leaves_no_trace(a_quick_session, a_propagated):
    before, mark = a_quick_session.mask(a_propagated), a_quick_session.history.newest
    with a_quick_session.attempt():
        click(a_quick_session, a_propagated, (7, 10, 50), positive=False)
        run(a_quick_session)
    np.testing.assert_array_equal(a_quick_session.mask(a_propagated), before)
    assert len(a_quick_session.prompts(a_propagated)) == 1
    assert a_quick_session.history.newest == mark
    assert a_quick_session.redo() is None


def test_an_attempt_that_is_kept_can_be_undone(a_quick_session, a_propagated):
    with a_quick_session.attempt() as attempt:
        click(a_quick_session, a_propagated, (7, 10, 50), positive=False)
        attempt.keep()
    assert len(a_quick_session.prompts(a_propagated)) == 2
    assert a_quick_session.undo() == "add point"


def test_an_attempt_that_fails_leaves_no_trace(a_quick_session, a_propagated):
    def failing():
        with a_quick_session.attempt():
            click(a_quick_session, a_propagated, (7, 10, 50))
            click(a_quick_session, a_propagated, (99, 10, 50))

    with pytest.raises(InputError):
        failing()
    assert len(a_quick_session.prompts(a_propagated)) == 1


# Templates


def test_prompts_of_one_slice_are_placed_at_once_and_undone_at_once(a_quick_session, a_segment):
    new_id = a_quick_session.new_prompt_id
    prompts = [
        PlacedPrompt(new_id(), 3, np.array([[20.0, 10.0], [40.0, 30.0]]), np.array([2, 3]), reach=(1, 6)),
        PlacedPrompt(new_id(), 3, np.array([[30.0, 20.0]]), np.array([1])),
    ]
    a_quick_session.place_template(a_segment, 0, prompts)
    assert len(a_quick_session.prompts(a_segment)) == 2
    assert {step.index for step in run(a_quick_session)} <= set(range(1, 7))
    a_quick_session.undo()
    a_quick_session.undo()
    assert a_quick_session.prompts(a_segment) == ()


def test_a_template_across_another_axis_is_refused(a_quick_session, a_propagated):
    prompt = PlacedPrompt(a_quick_session.new_prompt_id(), 3, np.array([[3.0, 20.0]]), np.array([1]))
    with pytest.raises(InputError, match="travels along k"):
        a_quick_session.place_template(a_propagated, 1, [prompt])


# Competition


def test_a_contested_voxel_goes_to_one_segment_whatever_their_order(a_quick_session):
    results = []
    for order in ((0, 1), (1, 0)):
        segments = [a_quick_session.add_segment(f"{order} {n}") for n in range(2)]
        click(a_quick_session, segments[0], (4, 32, 19))
        click(a_quick_session, segments[1], (4, 30, 40))
        run(a_quick_session, segments)
        before = sum(a_quick_session.mask(s).astype(int) for s in segments)
        contested = a_quick_session.settle_conflicts([segments[n] for n in order])
        after = [a_quick_session.mask(s) for s in segments]
        assert contested == int((before > 1).sum()) > 0
        np.testing.assert_array_equal(after[0] | after[1], before > 0)
        assert not (after[0] & after[1]).any()
        results.append(after)
    np.testing.assert_array_equal(results[0][0], results[1][0])


def test_what_a_user_has_drawn_outweighs_what_the_network_says(a_quick_session):
    drawn, found = (a_quick_session.add_segment(name) for name in ("drawn", "found"))
    click(a_quick_session, found, (4, 32, 19))
    own = np.ones((64, 64), bool)
    a_quick_session.add_mask(drawn, 4, own)
    a_quick_session.settle_conflicts([found, drawn])
    np.testing.assert_array_equal(a_quick_session.mask(drawn)[4], own)
    assert not a_quick_session.mask(found)[4].any()


def test_competition_is_undone_in_one_step(a_quick_session):
    segments = [a_quick_session.add_segment(name) for name in "ab"]
    for segment in segments:
        click(a_quick_session, segment, (4, 32, 19))
    before = [a_quick_session.mask(s) for s in segments]
    a_quick_session.settle_conflicts(segments)
    assert a_quick_session.undo() == "compete"
    for segment, mask in zip(segments, before, strict=True):
        np.testing.assert_array_equal(a_quick_session.mask(segment), mask)


# Blending


def test_an_opinion_of_full_weight_is_taken_over(a_quick_session, a_propagated):
    a_quick_session.blend(a_propagated, {6: opinion_of(a_quick_session, 40, 40)}, 1.0)
    mask = a_quick_session.mask(a_propagated)[6]
    assert mask[45:52, 45:52].all()
    assert not mask[:32, :32].any()
    assert a_quick_session.undo() == "blend"


def test_an_opinion_of_no_weight_changes_nothing_within_the_view(a_quick_session, a_propagated):
    before = a_quick_session.mask(a_propagated)
    view = a_quick_session._record(a_propagated).findings.states[6].view
    opinion = SliceOpinion(view, torch.full((16, 16), -6.0))
    a_quick_session.blend(a_propagated, {6: opinion}, 0.0)
    np.testing.assert_array_equal(a_quick_session.mask(a_propagated), before)


def test_what_a_user_has_drawn_is_not_blended(a_quick_session, a_propagated):
    own = np.zeros((64, 64), bool)
    own[5:9, 5:9] = True
    a_quick_session.add_mask(a_propagated, 6, own)
    a_quick_session.blend(a_propagated, {6: opinion_of(a_quick_session, 40, 40)}, 1.0)
    np.testing.assert_array_equal(a_quick_session.mask(a_propagated)[6], own)


def test_a_segment_without_states_has_nothing_to_blend(a_quick_session, a_segment):
    a_quick_session.blend(a_segment, {6: opinion_of(a_quick_session, 40, 40)}, 1.0)
    assert not a_quick_session.mask(a_segment).any()


# Corrections


def contrary(session):
    """Somebody who thinks the opposite of every slice."""
    return lambda segment, index: (session.probability(segment, index) < 0.5).astype(np.float32)


def test_a_correction_that_does_not_make_the_engine_surer_leaves_no_trace(a_quick_session, a_propagated):
    before = a_quick_session.mask(a_propagated)
    options = CorrectionOptions(least_gain=2.0)
    found = list(correct(a_quick_session, [a_propagated], 3, options, contrary(a_quick_session)))
    assert len(found) > 0
    assert not any(c.accepted for c in found)
    np.testing.assert_array_equal(a_quick_session.mask(a_propagated), before)
    assert len(a_quick_session.prompts(a_propagated)) == 1


def test_a_correction_that_stays_is_a_prompt_like_a_users(a_quick_session, a_propagated):
    options = CorrectionOptions(least_gain=-2.0)
    found = list(correct(a_quick_session, [a_propagated], 2, options, contrary(a_quick_session)))
    accepted = [c for c in found if c.accepted]
    assert len(accepted) == len(found) > 0
    prompts = a_quick_session.prompts(a_propagated)
    assert len(prompts) == 1 + len(accepted)
    a_quick_session.remove_prompt(a_propagated, prompts[-1])
    assert len(a_quick_session.prompts(a_propagated)) == len(accepted)


def test_corrections_keep_to_their_rounds_and_to_their_time(a_quick_session, a_propagated):
    other = contrary(a_quick_session)
    assert len(list(correct(a_quick_session, [a_propagated], 1, CorrectionOptions(), other))) <= 1
    assert not list(correct(a_quick_session, [a_propagated], 5, CorrectionOptions(seconds=0.0), other))


def test_where_nobody_contradicts_there_is_no_correction(a_quick_session, a_propagated):
    def same(segment, index):
        return a_quick_session.probability(segment, index)

    assert not list(correct(a_quick_session, [a_propagated], 5, CorrectionOptions(), same))


def test_an_error_head_is_asked_about_every_pixel_and_its_opinion_is_that_of_a_contradictor(
    a_quick_session, a_propagated
):
    model = a_quick_session.engine.model
    head = ErrorHead(channels_of(model))
    with torch.no_grad():
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.fill_(20.0)  # it expects an error everywhere
    error = a_quick_session.predicted_error(a_propagated, 6, head)
    assert error.shape == (64, 64)
    assert error.mean() > 0.9
    own = a_quick_session.probability(a_propagated, 6)
    opinion = error_opinion(a_quick_session, head)(a_propagated, 6)
    np.testing.assert_allclose(opinion[error > 0.99], 1 - own[error > 0.99], atol=0.02)
    assert error_opinion(a_quick_session, head)(a_quick_session.add_segment("other"), 6) is None
