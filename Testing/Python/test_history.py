"""Undo and redo: every change of prompts and masks can be taken back and brought back, exactly."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from blobs import click, draw_box, run, two_blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAM2AssistLib.engine.history import Command, History, SliceDelta
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.segment import Findings, Segment, SegmentRecord
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompts import PointPrompt, SegmentPrompts

SHAPE = (6, 48, 48)
PLACES = st.tuples(st.integers(0, 5), st.integers(4, 43), st.integers(4, 43))
NAMES = st.sampled_from(["one", "two"])
CHANGES = st.one_of(
    st.tuples(st.just("click"), NAMES, PLACES, st.booleans()),
    st.tuples(st.just("box"), NAMES, PLACES, st.sampled_from([0, 2])),
    st.tuples(st.just("mask"), NAMES, PLACES),
    st.tuples(st.just("remove prompt"), NAMES, st.integers(0, 9)),
    st.tuples(st.just("remove segment"), NAMES),
    st.tuples(st.just("propagate"), NAMES, st.integers(1, 12)),
    st.tuples(st.just("undo")),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
)


@pytest.fixture(scope="module")
def a_small_volume():
    return two_blobs(SHAPE).volume


class Model:
    """What a user who wrote everything down would expect of undo and redo."""

    def __init__(self, session) -> None:
        self.session = session
        self.done: list[dict] = [snapshot(session)]
        self.undone: list[dict] = []

    def change(self, kind, *arguments) -> None:
        if kind == "undo":
            self.undo()
        elif kind == "redo":
            self.redo()
        else:
            before = len(self.session.history._done)
            carry_out(self.session, kind, *arguments)
            if len(self.session.history._done) > before:
                self.done.append(snapshot(self.session))
                self.undone.clear()
        assert_same(snapshot(self.session), self.done[-1])

    def undo(self) -> bool:
        taken_back = self.session.undo() is not None
        assert taken_back == (len(self.done) > 1)
        if taken_back:
            self.undone.append(self.done.pop())
        assert_same(snapshot(self.session), self.done[-1])
        return taken_back

    def redo(self) -> bool:
        brought_back = self.session.redo() is not None
        assert brought_back == bool(self.undone)
        if brought_back:
            self.done.append(self.undone.pop())
        assert_same(snapshot(self.session), self.done[-1])
        return brought_back


def snapshot(session) -> dict:
    return {
        segment.name: (
            session.mask(segment),
            [(prompt.id, prompt.index) for prompt in session.prompts(segment)],
            session.confidence(segment),
            session.segment_axis(segment),
            session._record(segment).findings.stale,
        )
        for segment in session.segments
    }


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, of_segment in one.items():
        assert np.array_equal(of_segment[0], other[name][0])
        assert of_segment[1:] == other[name][1:]


def carry_out(session, kind, name, *arguments) -> None:
    segment = next((s for s in session.segments if s.name == name), None)
    if segment is None:
        session.add_segment(name)
        return
    if kind == "click":
        click(session, segment, arguments[0], positive=arguments[1])
    elif kind == "box":
        (k, row, column), axis = arguments
        low, high = [max(k - 1, 0), row - 4, column - 4], [min(k + 1, 5), row + 4, column + 4]
        if axis == session.segment_axis(segment) or not session.prompts(segment):
            low[axis] = high[axis] = (low[axis] + high[axis]) // 2
        draw_box(session, segment, low, high)
    elif kind == "mask":
        k, row, column = arguments[0]
        axis = session.segment_axis(segment)
        drawn = np.zeros([n for a, n in enumerate(SHAPE) if a != axis], bool)
        drawn[row // 8 : row, column // 2 : column] = True
        session.add_mask(segment, k, drawn)
    elif kind == "remove prompt":
        prompts = session.prompts(segment)
        if prompts:
            session.remove_prompt(segment, prompts[arguments[0] % len(prompts)])
    elif kind == "remove segment":
        session.remove_segment(segment)
    else:
        for step in session.propagate([segment]):
            if step.done == arguments[0]:
                session.cancel()


def assert_masks_lie_on_known_slices(session) -> None:
    for segment in session.segments:
        mask, axis = session.mask(segment), session.segment_axis(segment)
        others = tuple(a for a in range(3) if a != axis)
        assert set(np.flatnonzero(mask.any(axis=others))) <= set(session.confidence(segment))


@pytest.mark.parametrize("options", [{}, {"stop_rules": True}, asdict(EngineOptions.like_upstream())])
@given(changes=st.lists(CHANGES, max_size=14))
@settings(max_examples=15)
def test_any_sequence_of_changes_is_undone_and_redone_exactly(quick_engine, a_small_volume, options, changes):
    with quick_engine(**options).open(a_small_volume) as session:
        session.add_segment("one")
        model = Model(session)
        model.done.insert(0, {})
        for change in changes:
            model.change(*change)
            assert_masks_lie_on_known_slices(session)
        while model.undo():
            pass
        assert session.segments == ()
        while model.redo():
            pass


def test_many_levels_are_undone_and_redone_one_by_one(quick_engine, a_small_volume):
    with quick_engine().open(a_small_volume) as session:
        model = Model(session)
        for change in [("click", "one", None, True)] + [
            ("click", "one", (k, 24, 10 + 3 * n), n % 3 > 0) for n, k in enumerate((1, 3, 3, 5, 1, 0, 3, 4))
        ]:
            model.change(*change)
            model.change("propagate", "one", 99)
        assert len(model.done) > 15
        while model.undo():
            pass
        while model.redo():
            pass


def test_undo_and_redo_tell_what_they_did_and_none_when_there_is_nothing(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    run(a_quick_session)
    titles = ["add ball", "add point", "propagate"]
    assert [a_quick_session.undo() for _ in range(4)] == [*reversed(titles), None]
    assert [a_quick_session.redo() for _ in range(4)] == [*titles, None]


def test_a_propagation_of_several_segments_is_one_step_of_undo(a_quick_session, a_segment):
    other = a_quick_session.add_segment("other")
    click(a_quick_session, a_segment, (5, 32, 20))
    click(a_quick_session, other, (5, 32, 44))
    before = [a_quick_session.mask(s) for s in (a_segment, other)]
    run(a_quick_session)
    after = [a_quick_session.mask(s) for s in (a_segment, other)]
    assert a_quick_session.undo() == "propagate"
    assert all(np.array_equal(a_quick_session.mask(s), m) for s, m in zip((a_segment, other), before, strict=True))
    assert a_quick_session.redo() == "propagate"
    assert all(np.array_equal(a_quick_session.mask(s), m) for s, m in zip((a_segment, other), after, strict=True))


def test_prompts_of_a_file_are_one_step_of_undo_and_a_refused_one_leaves_nothing(a_quick_session):
    good = PointPrompt((20.0, 32.0, 5.0))
    a_quick_session.add_prompts(SegmentPrompts("good", (good, good), ()))
    beyond = PointPrompt((20.0, 32.0, 500.0))
    with pytest.raises(InputError):
        a_quick_session.add_prompts(SegmentPrompts("bad", (good, beyond), ()))
    assert [s.name for s in a_quick_session.segments] == ["good"]
    assert a_quick_session.redo() is None
    assert a_quick_session.undo() == "add good"
    assert a_quick_session.segments == ()


def test_prompts_of_a_file_end_a_suspended_propagation_and_keep_what_it_finished(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    running = a_quick_session.propagate()
    for _ in range(3):
        next(running)
    kept = a_quick_session.mask(a_segment)
    a_quick_session.add_prompts(SegmentPrompts("other", (PointPrompt((44.0, 32.0, 5.0)),), ()))
    assert np.array_equal(a_quick_session.mask(a_segment), kept)
    assert a_quick_session.undo() == "add other"
    assert np.array_equal(a_quick_session.mask(a_segment), kept)
    assert a_quick_session.undo() == "propagate"


def test_an_old_step_leaves_when_the_budget_is_spent_but_the_last_one_stays(a_quick_session, a_segment):
    a_quick_session.history.budget_bytes = 1
    click(a_quick_session, a_segment, (5, 32, 20))
    click(a_quick_session, a_segment, (5, 32, 22))
    assert a_quick_session.undo() == "add point"
    assert a_quick_session.undo() is None


def test_after_undoing_a_propagation_the_next_one_does_it_again(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    run(a_quick_session)
    mask = a_quick_session.mask(a_segment)
    a_quick_session.undo()
    assert len(run(a_quick_session)) == 9
    assert np.array_equal(a_quick_session.mask(a_segment), mask)


def test_a_new_change_ends_what_could_be_redone(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    a_quick_session.undo()
    click(a_quick_session, a_segment, (5, 32, 44))
    assert a_quick_session.redo() is None


@pytest.mark.parametrize("position", [(20.0, 32.0, 500.0), (20.0, 32.0, 5.0)])
def test_what_is_refused_or_changes_nothing_leaves_redo_and_adds_no_step(a_quick_session, a_segment, position):
    click(a_quick_session, a_segment, (5, 32, 20))
    clicked = a_quick_session.mask(a_segment)
    a_quick_session.undo()
    name = "beyond" if position[-1] > 100 else a_segment.name
    with pytest.raises(InputError):
        a_quick_session.add_prompts(SegmentPrompts(name, (PointPrompt((20.0, 32.0, 5.0)), PointPrompt(position)), ()))
    with a_quick_session.attempt():
        pass
    assert a_quick_session.settle_conflicts([a_segment]) == 0
    assert a_quick_session.redo() == "add point"
    assert np.array_equal(a_quick_session.mask(a_segment), clicked)
    a_quick_session.settle_conflicts([a_segment])
    assert a_quick_session.undo() == "add point"


def test_undo_brings_a_removed_segment_back_with_mask_prompts_and_place_in_the_list(a_quick_session, a_segment):
    a_quick_session.add_segment("other")
    click(a_quick_session, a_segment, (5, 32, 20))
    before = snapshot(a_quick_session)
    a_quick_session.remove_segment(a_segment)
    a_quick_session.undo()
    assert_same(snapshot(a_quick_session), before)
    assert [segment.name for segment in a_quick_session.segments] == ["ball", "other"]


# The parts


def a_record(mask: np.ndarray) -> SegmentRecord:
    return SegmentRecord(Segment(1, "any"), mask)


@given(arrays(bool, (2, 9, 11)), st.sampled_from([0, 1, 2]))
def test_a_delta_turns_one_mask_into_the_other_and_back(masks, axis):
    before, after = masks
    delta = SliceDelta.between(axis, 3, before, after)
    if delta is None:
        assert np.array_equal(before, after)
        return
    volume = np.zeros(np.insert((9, 11), axis, 5), bool)
    record = a_record(volume)
    record.slice_of(axis, 3)[...] = before
    delta.apply(record)
    assert np.array_equal(record.slice_of(axis, 3), after)
    delta.apply(record)
    assert np.array_equal(record.slice_of(axis, 3), before)
    assert record.mask.sum() == before.sum()


def test_a_delta_holds_little_where_little_changed():
    before = np.random.default_rng(0).random((512, 512)) > 0.5
    after = before.copy()
    after[200:210, 300:310] ^= True
    delta = SliceDelta.between(0, 0, before, after)
    assert delta is not None
    assert delta.shape == (10, 10)
    assert len(delta.bits) < 100


def a_command(number: int) -> Command:
    noise = np.random.default_rng(number).random((64, 64)) > 0.5
    delta = SliceDelta.between(0, 0, np.zeros_like(noise), noise)
    assert delta is not None
    return Command(str(number), 1, Findings(), Findings(), (delta,), a_record(np.zeros((1, 64, 64), bool)))


def test_the_oldest_commands_leave_when_the_budget_is_used_up():
    size = a_command(0).size_bytes
    history = History(budget_bytes=int(3.5 * size))
    for number in range(6):
        history.add(a_command(number))
    assert [history.undo({}) for _ in range(4)] == ["5", "4", "3", None]


def test_masks_of_prompts_that_are_gone_count_in_the_budget(a_quick_session, a_segment):
    drawn = np.ones((64, 64), bool)
    a_quick_session.add_mask(a_segment, 5, drawn)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[0])
    assert a_quick_session.history._done[-1].size_bytes >= drawn.nbytes


def test_the_last_command_stays_even_if_it_alone_exceeds_the_budget():
    history = History(budget_bytes=1)
    history.add(a_command(0))
    history.add(a_command(1))
    assert [history.undo({}), history.undo({})] == ["1", None]


def test_steps_that_are_joined_outlast_the_budget_together():
    history = History(budget_bytes=1)
    history.add(a_command(0))
    with history.joined("all"):
        for number in range(1, 4):
            history.add(a_command(number))
    assert len(history._done) == 3
    assert [history.undo({}), history.undo({})] == ["all", None]
    assert history.redo({}) == "all"
    history.add(a_command(4))
    assert [history.undo({}), history.undo({})] == ["4", None]


def test_the_history_tells_the_oldest_mark_that_undo_comes_back_to():
    history = History(budget_bytes=1)
    assert (history.oldest, history.newest) == (0, 0)
    for number in range(3):
        history.add(a_command(number))
    assert (history.oldest, history.newest) == (2, 3)
    history.undo({})
    assert (history.oldest, history.newest) == (2, 2)
    history.take_back(0, {})
    assert history.newest == 2


def test_a_step_of_several_commands_leaves_the_budget_as_a_whole():
    size = a_command(0).size_bytes
    history = History(budget_bytes=int(2.5 * size))
    with history.one_step("both", {}):
        history.add(a_command(0))
        history.add(a_command(1))
    history.add(a_command(2))
    assert [history.undo({}), history.undo({})] == ["2", None]


def test_what_is_done_aside_is_no_step_and_ends_no_redo(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    clicked = a_quick_session.mask(a_segment)
    a_quick_session.undo()
    with a_quick_session.aside():
        other = a_quick_session.add_segment("other")
        a_quick_session.adopt(other, {k: np.eye(64, dtype=bool) for k in range(5)}, [0, 4])
    adopted = a_quick_session.mask(other)
    assert a_quick_session.redo() == "add point"
    assert np.array_equal(a_quick_session.mask(a_segment), clicked)
    while a_quick_session.undo():
        pass
    assert a_quick_session.segments == (other,)
    assert np.array_equal(a_quick_session.mask(other), adopted)
    assert adopted.any()


def test_what_a_suspended_propagation_has_finished_is_noted_before_something_is_done_aside(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    clicked = a_quick_session.mask(a_segment)
    running = a_quick_session.propagate()
    for _ in range(3):
        next(running)
    with a_quick_session.aside():
        a_quick_session.add_segment("other")
    assert a_quick_session.undo() == "propagate"
    assert np.array_equal(a_quick_session.mask(a_segment), clicked)


def test_a_segment_that_is_forgotten_comes_back_with_neither_undo_nor_redo(a_quick_session, a_segment):
    other = a_quick_session.add_segment("other")
    click(a_quick_session, other, (5, 32, 44))
    click(a_quick_session, a_segment, (5, 32, 20))
    clicked = a_quick_session.mask(a_segment)
    a_quick_session.undo()
    a_quick_session.forget_segment(other)
    assert a_quick_session.redo() == "add point"
    assert a_quick_session.redo() is None
    assert np.array_equal(a_quick_session.mask(a_segment), clicked)
    assert [a_quick_session.undo() for _ in range(3)] == ["add point", "add ball", None]
    assert a_quick_session.segments == ()
