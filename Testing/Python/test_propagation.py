"""Propagation: from the prompted slices through the volume; it may be left, cancelled, taken back and done again."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from blobs import click, draw_box, extent, run, two_blobs

from SAM2AssistLib.engine.heads import ABSENT_LOGIT
from SAM2AssistLib.engine.network import Network
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.segment import gaps

BALL = (5, 32, 20)
OTHER_BALL = (5, 32, 44)


def memories(session, segment) -> set[int]:
    """Slices whose memory features are held."""
    return {k for k, state in session._record(segment).findings.states.items() if state.memory is not None}


def finished_mask(session, segment) -> np.ndarray:
    run(session)
    return session.mask(segment)


def test_propagation_counts_up_to_the_total(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    steps = run(a_quick_session)
    assert [step.done for step in steps] == list(range(1, 10))
    assert {step.total for step in steps} == {9}
    assert {step.index for step in steps} == set(range(10)) - {5}
    assert {step.segment for step in steps} == {a_segment}


@pytest.mark.parametrize("options", [{}, {"stop_rules": True}, {"meet_between": False}])
def test_done_reaches_the_total_only_with_the_last_step(quick_engine, a_blob_volume, options):
    with quick_engine(**options).open(a_blob_volume) as session:
        for name, places in (("one", (4,)), ("two", (2, 7))):
            segment = session.add_segment(name)
            for k in places:
                click(session, segment, (k, 32, 20))
        sagittal = session.add_segment("three")
        draw_box(session, sagittal, (2, 20, 20), (8, 44, 20))
        steps = run(session)
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert [step.done >= step.total for step in steps] == [False] * (len(steps) - 1) + [True]


def test_without_prompts_there_is_nothing_to_propagate(a_quick_session, a_segment):
    assert run(a_quick_session) == []
    assert a_quick_session.undo() == "add ball"


def test_a_second_propagation_without_new_prompts_does_nothing(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    assert run(a_quick_session) == []


def test_only_the_named_segments_are_propagated(a_quick_session, a_segment):
    other = a_quick_session.add_segment("other")
    click(a_quick_session, a_segment, BALL)
    click(a_quick_session, other, OTHER_BALL)
    assert {step.segment for step in run(a_quick_session, [other])} == {other}
    assert extent(a_quick_session.mask(a_segment)) == [5]


def test_a_segment_named_twice_is_propagated_once_and_undone_exactly(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    before = a_quick_session.mask(a_segment)
    assert len(run(a_quick_session, [a_segment, a_segment])) == 9
    a_quick_session.undo()
    assert np.array_equal(a_quick_session.mask(a_segment), before)


def test_after_a_correction_only_slices_between_the_neighbouring_prompted_slices_change(a_quick_session, a_segment):
    for k in (2, 8):
        click(a_quick_session, a_segment, (k, 32, 20))
    run(a_quick_session)
    before = a_quick_session.mask(a_segment)
    click(a_quick_session, a_segment, (5, 32, 44))
    steps = run(a_quick_session)
    after = a_quick_session.mask(a_segment)
    assert {step.index for step in steps} == {3, 4, 6, 7}
    for k in (0, 1, 2, 8, 9):
        assert np.array_equal(before[k], after[k])
    assert not np.array_equal(before[3:8], after[3:8])


def test_a_slice_between_two_prompts_is_visited_from_both_sides(a_quick_session, a_segment):
    for k in (2, 6):
        click(a_quick_session, a_segment, (k, 32, 20))
    visited = [step.index for step in run(a_quick_session)]
    assert sorted(visited) == [0, 1, 3, 3, 4, 4, 5, 5, 7, 8, 9]


def test_segments_never_change_each_other(a_quick_session, a_segment):
    other = a_quick_session.add_segment("other")
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    before = a_quick_session.mask(a_segment)
    click(a_quick_session, other, OTHER_BALL)
    run(a_quick_session)
    click(a_quick_session, other, BALL)
    a_quick_session.undo()
    a_quick_session.remove_segment(other)
    assert np.array_equal(a_quick_session.mask(a_segment), before)


def test_segments_propagated_together_are_what_each_is_alone(quick_engine, a_blob_volume):
    def masks(*places):
        with quick_engine().open(a_blob_volume) as session:
            segments = [session.add_segment(f"ball {n}") for n, _ in enumerate(places)]
            for segment, place in zip(segments, places, strict=True):
                click(session, segment, place)
            run(session)
            return [session.mask(segment) for segment in segments]

    together, alone = masks(BALL, OTHER_BALL), [*masks(BALL), *masks(OTHER_BALL)]
    for one, two in zip(together, alone, strict=True):
        assert (one ^ two).sum() <= 0.01 * (one | two).sum()


@pytest.mark.parametrize("left_after", range(1, 10))
def test_leaving_early_keeps_finished_slices_and_one_undo_restores_everything(a_quick_session, a_segment, left_after):
    click(a_quick_session, a_segment, BALL)
    before, confidence = a_quick_session.mask(a_segment), a_quick_session.confidence(a_segment)
    whole = finished_mask(a_quick_session, a_segment)
    a_quick_session.undo()
    told = set()
    for step in a_quick_session.propagate():
        told.add(step.index)
        if step.done == left_after:
            break
    kept = a_quick_session.mask(a_segment)
    assert np.array_equal(kept[5], before[5])
    assert a_quick_session.undo() == "propagate"
    assert np.array_equal(a_quick_session.mask(a_segment), before)
    assert a_quick_session.confidence(a_segment) == confidence
    a_quick_session.redo()
    assert np.array_equal(a_quick_session.mask(a_segment), kept)
    assert told <= set(a_quick_session.confidence(a_segment))
    for k in told:
        assert np.array_equal(whole[k], kept[k])


@pytest.mark.parametrize("both_directions", [True, False])
@pytest.mark.parametrize("left_after", range(1, 10))
def test_what_was_left_early_is_finished_by_the_next_propagation(
    quick_engine, a_blob_volume, left_after, both_directions
):
    with quick_engine(both_directions=both_directions, meet_between=both_directions).open(a_blob_volume) as session:
        segment = session.add_segment("ball")
        click(session, segment, BALL)
        for step in session.propagate():
            if step.done == left_after:
                break
        run(session)
        left = session.mask(segment)
    with quick_engine(both_directions=both_directions, meet_between=both_directions).open(a_blob_volume) as session:
        segment = session.add_segment("ball")
        click(session, segment, BALL)
        assert set(extent(finished_mask(session, segment))) == set(extent(left))


def test_cancel_from_inside_ends_a_propagation_before_its_next_slice(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    before = a_quick_session.mask(a_segment)
    steps = 0
    for step in a_quick_session.propagate():
        steps += 1
        if step.done == 3:
            a_quick_session.cancel()
    assert steps == 3
    a_quick_session.undo()
    assert np.array_equal(a_quick_session.mask(a_segment), before)


def test_a_cancellation_does_not_stop_the_next_propagation(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    a_quick_session.cancel()
    assert len(run(a_quick_session)) == 9


@pytest.mark.parametrize("change", ["click", "mask", "remove prompt", "remove segment", "undo", "propagate", "close"])
def test_any_change_ends_a_suspended_propagation_cleanly(a_quick_session, a_segment, change):
    session = a_quick_session
    click(session, a_segment, BALL)
    before = session.mask(a_segment)
    suspended = session.propagate()
    next(suspended)
    {
        "click": lambda: click(session, a_segment, (8, 32, 20)),
        "mask": lambda: session.add_mask(a_segment, 8, np.ones((64, 64), bool)),
        "remove prompt": lambda: session.remove_prompt(a_segment, session.prompts(a_segment)[0]),
        "remove segment": lambda: session.remove_segment(a_segment),
        "undo": session.undo,
        "propagate": lambda: run(session),
        "close": session.close,
    }[change]()
    assert list(suspended) == []
    while session.undo() != "add ball":
        pass
    assert session.segments == ()
    assert [session.redo(), session.redo()] == ["add ball", "add point"]
    assert np.array_equal(session.mask(a_segment), before)


def test_a_removed_segment_is_not_revived_by_undoing_its_suspended_propagation(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    next(a_quick_session.propagate())
    kept = a_quick_session.mask(a_segment)
    a_quick_session.remove_segment(a_segment)
    assert a_quick_session.segments == ()
    assert a_quick_session.undo() == "remove ball"
    assert np.array_equal(a_quick_session.mask(a_segment), kept)
    assert a_quick_session.undo() == "propagate"


def test_memories_of_far_slices_are_dropped_and_made_again_for_a_correction(quick_engine):
    with quick_engine().open(two_blobs((20, 64, 64)).volume) as session:
        segment = session.add_segment("ball")
        click(session, segment, (0, 32, 20))
        run(session)
        assert memories(session, segment) == set(range(13, 20))
        assert set(session.confidence(segment)) == set(range(20))
        assert click(session, segment, (8, 32, 20)).any()
        assert run(session)


def test_what_is_remembered_of_a_click_is_made_when_it_is_needed_and_once_for_both_directions(
    a_quick_session, a_segment, monkeypatch
):
    made = []
    remember = Network.remember

    def counted(network, indices, states):
        made.extend(indices)
        return remember(network, indices, states)

    monkeypatch.setattr(Network, "remember", counted)
    click(a_quick_session, a_segment, BALL)
    assert not made
    run(a_quick_session)
    assert sorted(made) == list(range(10))


def test_what_absent_segments_remember_of_a_slice_is_made_once_and_is_what_each_would_make(
    a_quick_session, a_segment, monkeypatch
):
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    network = a_quick_session._plane(0).network
    shown = a_quick_session._record(a_segment).findings.states[6]
    absent = replace(shown, object_score=-3.0, iou=0.0, logits=torch.full_like(shown.logits, ABSENT_LOGIT))
    states, indices = [absent, shown, replace(absent), replace(absent)], [2, 6, 2, 7]
    apart = [network.remember([k], [state])[0].memory for k, state in zip(indices, states, strict=True)]
    rows = []
    make = Network._memories
    monkeypatch.setattr(
        Network, "_memories", lambda *args, **kwargs: rows.append(len(args[3])) or make(*args, **kwargs)
    )
    together = [state.memory for state in network.remember(indices, states)]
    assert rows == [3]
    for ours, alone in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, alone, rtol=0.02, atol=0.02)
    assert not torch.equal(together[0], together[3])


def test_a_prompt_removed_while_a_propagation_is_suspended_takes_what_it_has_found_with_it(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    running = a_quick_session.propagate()
    for _ in range(4):
        next(running)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[0])
    assert extent(a_quick_session.mask(a_segment)) == []
    assert a_quick_session.confidence(a_segment) == {}
    a_quick_session.undo()
    assert len(extent(a_quick_session.mask(a_segment))) > 1


def test_one_of_two_prompts_removed_while_a_propagation_is_suspended_leaves_what_it_has_found(
    a_quick_session, a_segment
):
    click(a_quick_session, a_segment, BALL)
    click(a_quick_session, a_segment, (8, 32, 20))
    running = a_quick_session.propagate()
    found = {next(running).index for _ in range(4)}
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert found | {5} <= set(a_quick_session.confidence(a_segment))


# Options


def test_like_upstream_all_slices_are_visited_in_one_direction_after_the_other(quick_engine, a_blob_volume):
    with quick_engine(**asdict(EngineOptions.like_upstream())).open(a_blob_volume) as session:
        segment = session.add_segment("ball")
        click(session, segment, BALL)
        click(session, segment, (8, 32, 20))
        assert [step.index for step in run(session)] == [6, 7, 9, 4, 3, 2, 1, 0]
        assert len(run(session)) == 8


def test_like_upstream_the_whole_slice_is_seen_always(quick_engine, a_blob_volume):
    with quick_engine(**asdict(EngineOptions.like_upstream())).open(a_blob_volume) as session:
        segment = session.add_segment("ball")
        draw_box(session, segment, (5, 28, 16), (5, 36, 24))
        run(session)
        views = {state.view for state in session._record(segment).findings.states.values()}
    assert {(view.row, view.column, view.rows, view.columns) for view in views} == {(0, 0, 64, 64)}


@pytest.mark.parametrize(
    ("prompted", "stale", "expected"),
    [
        ([4], {4}, [(None, 4, 0, 3), (4, None, 5, 9)]),
        ([2, 6], {2}, [(None, 2, 0, 1), (2, 6, 3, 5)]),
        ([2, 6], {4}, [(2, 6, 3, 5)]),
        ([2, 3], {2, 3}, [(None, 2, 0, 1), (3, None, 4, 9)]),
        ([0, 9], {0}, [(0, 9, 1, 8)]),
        ([4], {12}, [(4, None, 5, 9)]),
        ([4], set(), []),
        ([], {4}, []),
    ],
)
def test_gaps_are_those_that_touch_a_stale_slice(prompted, stale, expected):
    found = gaps(prompted, frozenset(stale), 0, 9)
    assert [(gap.low, gap.high, gap.first, gap.last) for gap in found] == expected
