"""Masks settle on the edges of the image after a prompt and after a propagation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blobs import BLOB_HU, click, draw_box, two_blobs
from mrml_scene import box
from scipy import ndimage

from SAM2AssistLib import CTVolume
from SAM2AssistLib.engine import plane, sharpening
from SAM2AssistLib.engine.worker import Leave
from SAM2AssistLib.mrml.desk import Desk, Patch, Progress
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompts import PointPrompt

SPACING = (1.0, 1.0, 3.0)


def a_bar(shape=(9, 96, 96)) -> tuple[CTVolume, np.ndarray]:
    """An oblique bar, six pixels wide, in noisy soft tissue; thinner than a cell of the network's grid."""
    k, j, i = np.indices(shape)
    bar = (abs(j - 48 - (k - 4) * 2) <= 3) & (abs(i - 48) <= 14)
    hu = np.where(bar, 300, 40) + np.random.default_rng(3).normal(0, 12, shape)
    hu[:, 0] = -1000
    return CTVolume.from_array(hu.astype(np.int16), SPACING, np.diag([*SPACING, 1.0])), bar


def boxed(session, bar, k=4):
    rows, columns = np.nonzero(bar[k])
    segment = session.add_segment("bar")
    return segment, draw_box(session, segment, (k, rows.min(), columns.min()), (k, rows.max(), columns.max()))


def run(session, **how) -> None:
    for _ in session.propagate(**how):
        pass


@pytest.fixture
def bar_session(an_engine):
    volume, bar = a_bar()
    with an_engine.open(volume) as session:
        yield session, bar


def test_a_thin_bar_is_found_to_its_edges_which_the_network_alone_does_not(bar_session, a_bare_engine):
    session, bar = bar_session
    segment, shown = boxed(session, bar)
    assert dice(shown, bar[4]) > 0.95
    run(session)
    sharp = dice(session.mask(segment), bar)
    with a_bare_engine.open(session.volume) as bare:
        alone, _ = boxed(bare, bar)
        run(bare)
        assert sharp > dice(bare.mask(alone), bar)
    assert sharp > 0.8


def test_a_propagation_leaves_prompted_slices_as_they_were_shown(bar_session):
    session, bar = bar_session
    segment, shown = boxed(session, bar)
    run(session)
    assert np.array_equal(session.mask(segment)[4], shown)


@pytest.mark.parametrize("clicked", [False, True])
def test_a_drawn_slice_never_gives_way_not_even_with_a_click_on_it(bar_session, clicked):
    session, bar = bar_session
    segment, half = session.add_segment("bar"), bar[2].copy()
    half[:, 50:] = False
    session.add_mask(segment, 2, half)
    if clicked:
        rows, columns = np.nonzero(half)
        click(session, segment, (2, rows[0], columns[0] - 1))
    shown = session.mask(segment)[2]
    for k in (4, 7):
        click(session, segment, (k, 48 + (k - 4) * 2, 44))
    run(session)
    assert np.array_equal(session.mask(segment)[2], shown)


@pytest.fixture
def half_an_answer(monkeypatch):
    """Let the network find but half of the bar on slice 2, whatever it is asked."""
    settled = plane.sharpened_slice

    def half(where, findings, index, mask):
        new = settled(where, findings, index, mask).copy()
        if index == 2:
            new[:, 50:] = False
        return new

    monkeypatch.setattr(plane, "sharpened_slice", half)


@pytest.mark.parametrize(("others", "gives_way"), [((7,), False), ((4, 7), True)])
def test_a_prompted_slice_that_others_contradict_gives_way_once_three_are_prompted(
    bar_session, half_an_answer, others, gives_way
):
    session, bar = bar_session
    segment = session.add_segment("bar")
    for k in (2, *others):
        click(session, segment, (k, 48 + (k - 4) * 2, 44))
    shown = session.mask(segment)[2]
    assert dice(shown, bar[2]) < 0.75
    run(session)
    after = session.mask(segment)
    assert (dice(after[2], bar[2]) > 0.9) == gives_way
    assert gives_way or np.array_equal(after[2], shown)
    assert dice(after, bar) > 0.9 or not gives_way
    session.undo()
    assert np.array_equal(session.mask(segment)[2], shown)


def test_what_was_drawn_emptied_or_found_by_auto_segment_does_not_give_way(bar_session):
    session, bar = bar_session
    segment = session.add_segment("bar")
    for k in (2, 4):
        click(session, segment, (k, 48 + (k - 4) * 2, 48))
    session.add_mask(segment, 7, bar[7])
    run(session)
    findings = session._record(segment).findings

    def chosen(backed, empty, anew=True, unsettled=(6,)):
        states = {k: replace(s, backed=k in backed) for k, s in findings.states.items()}
        told = replace(findings, states=states, unsettled=frozenset(unsettled))
        return sharpening.to_settle(told, lambda k: k not in empty, anew=anew)

    assert chosen({5}, {1, 4}) == ({0, 3, 6, 8}, {2})
    assert chosen({2, 5}, {1}) == ({0, 3, 6, 8}, {4})
    assert chosen({5}, {1, 4}, anew=False) == ({6}, set())
    assert chosen({5}, {1, 4}, unsettled=()) == (set(), set())


def test_without_the_prompt_that_made_others_give_way_they_are_as_they_would_have_been(
    bar_session, half_an_answer, an_engine
):
    session, bar = bar_session
    segment = session.add_segment("bar")
    for k in (2, 4, 7):
        click(session, segment, (k, 48 + (k - 4) * 2, 44))
    run(session)
    session.remove_prompt(segment, session.prompts(segment)[-1])
    run(session)
    with an_engine.open(session.volume) as other:
        twice = other.add_segment("bar")
        for k in (2, 4):
            click(other, twice, (k, 48 + (k - 4) * 2, 44))
        run(other)
        assert np.array_equal(session.mask(segment), other.mask(twice))


def test_settling_again_changes_nothing_and_neither_does_an_interruption(bar_session, half_an_answer):
    session, bar = bar_session
    segment = session.add_segment("bar")
    for k in (2, 4, 7):
        click(session, segment, (k, 48 + (k - 4) * 2, 44))
    run(session)
    whole = session.mask(segment)
    record = session._record(segment)
    for count in (1, 4, 9):
        record.findings = replace(record.findings, unsettled=frozenset({3}))
        for number, _ in enumerate(session.propagate()):
            if number == count:
                break
        run(session)
        assert np.array_equal(session.mask(segment), whole)


def test_nothing_settles_unless_asked_for(bar_session, a_bare_engine):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    run(session, sharpen=False)
    with a_bare_engine.open(session.volume) as bare:
        alone, _ = boxed(bare, bar)
        run(bare)
        others = [k for k in range(9) if k != 4]
        assert np.array_equal(session.mask(segment)[others], bare.mask(alone)[others])


def test_what_was_left_early_has_not_settled_and_one_undo_takes_it_back(bar_session):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    before = session.mask(segment)
    for step in session.propagate():
        if step.done == 2:
            break
    assert session.undo() == "propagate"
    assert np.array_equal(session.mask(segment), before)


def test_what_was_left_while_it_settled_settles_with_the_next_propagation(bar_session):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    run(session)
    whole = session.mask(segment)
    session.undo()
    done = -1
    for step in session.propagate():
        assert step.done < step.total
        if step.done == done:  # told, but none the more done: masks are settling
            break
        done = step.done
    assert not np.array_equal(session.mask(segment), whole)
    run(session)
    assert np.array_equal(session.mask(segment), whole)
    assert list(session.propagate()) == []


def test_undo_and_redo_restore_settled_masks_exactly(bar_session):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    before = session.mask(segment)
    run(session)
    after = session.mask(segment)
    assert not np.array_equal(before, after)
    session.undo()
    assert np.array_equal(session.mask(segment), before)
    session.redo()
    assert np.array_equal(session.mask(segment), after)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(
    "directions",
    [None, np.diag([1, 1, -1]), np.diag([-1, -1, 1]), np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])],
    ids=["straight", "left-handed", "flipped", "sagittal"],
)
def test_a_click_is_taken_at_its_word_in_every_geometry(an_engine, directions, positive):
    scene = two_blobs((6, 48, 96), (2.0, 2.0, 5.0), directions)
    clicked = scene.centres_kji[0].astype(int)
    with an_engine.open(scene.volume) as session:
        segment = session.add_segment("ball")
        if not positive:
            draw_box(session, segment, (clicked[0], 0, 0), (clicked[0], 47, 95))
        shown = click(session, segment, clicked, positive=positive)
        run(session)
        for mask in (shown, session.mask(segment)[clicked[0]]):
            assert mask[tuple(clicked[1:])] == positive


def test_a_box_keeps_out_what_looks_the_same_outside_of_it(an_engine):
    scene = two_blobs((6, 72, 72), (2.0, 2.0, 5.0))
    (k, j, i), other = scene.centres_kji.astype(int)
    blobs = scene.volume.array[k] == BLOB_HU
    mine = blobs & (abs(np.arange(72) - i) < abs(np.arange(72) - other[2]))
    rows, columns = np.nonzero(mine)
    with an_engine.open(scene.volume) as session:
        segment = session.add_segment("ball")
        shown = draw_box(session, segment, (k, rows.min(), columns.min()), (k, rows.max(), columns.max()))
        assert dice(shown, mine) > 0.97
        run(session)
        assert not session.mask(segment)[k][tuple(other[1:])]


def test_a_slice_that_was_drawn_stays_as_it_was_drawn(bar_session):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    run(session)
    drawn = np.zeros(bar.shape[1:], bool)
    drawn[40:44, 40:44] = True
    session.add_mask(segment, 6, drawn)
    run(session)
    assert np.array_equal(session.mask(segment)[6], drawn)


def test_what_was_said_of_a_slice_before_it_was_drawn_does_not_change_the_drawing(bar_session):
    session, bar = bar_session
    rows, columns = np.nonzero(bar[4])
    segment = session.add_segment("bar")
    draw_box(session, segment, (4, rows.min(), columns.min()), (4, rows.max(), 48))
    click(session, segment, (4, 48, 58), positive=False)
    session.add_mask(segment, 4, bar[4])
    shown = click(session, segment, (4, 48, 50))
    assert shown[48, 58]
    assert dice(shown, bar[4]) > 0.9


def test_a_click_beyond_a_box_that_was_too_small_extends_the_segment(bar_session):
    session, bar = bar_session
    rows, columns = np.nonzero(bar[4])
    segment = session.add_segment("bar")
    draw_box(session, segment, (4, rows.min(), columns.min()), (4, rows.max(), 48))
    assert dice(click(session, segment, (4, 48, 57)), bar[4]) > 0.9


def test_what_is_too_faint_for_edges_to_hold_it_stays_as_the_network_has_it(an_engine, a_bare_engine):
    rows, columns = np.ogrid[:96, :96]
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 <= 4**2
    hu = np.where(disc, 55, 40) + np.random.default_rng(5).normal(0, 5, (5, 96, 96))
    hu[:, 0] = -1000
    volume = CTVolume.from_array(hu.astype(np.int16), SPACING, np.diag([*SPACING, 1.0]))
    shown = []
    for engine in (an_engine, a_bare_engine):
        with engine.open(volume) as session:
            shown.append(draw_box(session, session.add_segment("lesion"), (2, 44, 44), (2, 52, 52)))
    assert shown[0].any()
    assert np.array_equal(shown[0], shown[1])


def a_cylinder_corrected(engine, radius: int, hu: int, beside: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompt two slices of a cylinder, then click its rim away on one between them; returns both masks."""
    rows, columns = np.ogrid[:96, :96]
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 <= radius**2
    array = np.where(disc, hu, 40) + np.random.default_rng(5).normal(0, 5, (9, 96, 96))
    array[:, 0] = -1000
    volume = CTVolume.from_array(array.astype(np.int16), SPACING, np.diag([*SPACING, 1.0]))
    with engine.open(volume) as session:
        segment = session.add_segment("lesion")
        draw_box(session, segment, (2, 48 - radius, 48 - radius), (2, 48 + radius, 48 + radius))
        run(session)
        click(session, segment, (6, 48, 48))
        run(session)
        before = session.mask(segment).copy()
        click(session, segment, (4, 48 - radius + beside, 48), positive=False)
        run(session)
        return before, session.mask(segment).copy()


def test_a_negative_click_takes_nothing_faint_from_slices_that_were_prompted(an_engine):
    before, after = a_cylinder_corrected(an_engine, radius=4, hu=55, beside=1)
    assert (after[[2, 6]] & before[[2, 6]]).sum() > 0.8 * before[[2, 6]].sum()


def test_a_negative_click_leaves_the_slices_beside_it_what_the_network_still_sees_there(an_engine):
    before, after = a_cylinder_corrected(an_engine, radius=8, hu=120, beside=3)
    assert not after[4, 43, 48]
    assert after[[3, 5]].sum() > 0.95 * before[[3, 5]].sum()


def test_noise_leaves_no_specks_but_a_negative_click_leaves_its_hole(an_engine):
    rows, columns = np.ogrid[:96, :96]
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 <= 24**2
    hu = np.where(disc, 110, 40) + np.random.default_rng(5).normal(0, 35, (3, 96, 96))
    hu[:, 0] = -1000
    volume = CTVolume.from_array(hu.astype(np.int16), SPACING, np.diag([*SPACING, 1.0]))
    with an_engine.open(volume) as session:
        segment = session.add_segment("organ")
        shown = draw_box(session, segment, (1, 24, 24), (1, 72, 72))
        assert dice(shown, disc) > 0.9
        for part in (shown, ~shown):
            parts, _ = ndimage.label(part)
            sizes = np.bincount(parts.ravel())[1:]
            assert sizes.min() >= min(sharpening.SPECK_MM2, sizes.max() / sharpening.SPECK_SHARE)
        assert not click(session, segment, (1, 48, 48), positive=False)[48, 48]


def test_a_preview_shows_what_the_click_will_give(bar_session):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    run(session)
    point = PointPrompt((60.0, 50.0, 5.0), positive=True)
    shown = session.preview_point(segment, point)
    assert np.array_equal(session.place_point(segment, point), shown)


@pytest.mark.parametrize("depth", [1, 2, 20])
def test_what_is_large_is_solved_thinned_and_then_in_slabs_with_nearly_the_same_result(
    bar_session, an_engine, monkeypatch, depth
):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    run(session)
    at_once = session.mask(segment)
    monkeypatch.setattr(sharpening, "COARSE_VOXELS", 5000)
    monkeypatch.setattr(sharpening, "FINE_VOXELS", depth * 3000)
    with an_engine.open(session.volume) as small:
        again, _ = boxed(small, bar)
        run(small)
        in_slabs = small.mask(again)
    assert dice(in_slabs, at_once) > 0.95


def test_settling_all_of_a_segment_is_one_step_of_undo(bar_session):
    session, bar = bar_session
    segment, _ = boxed(session, bar)
    run(session, sharpen=False)
    before = session.mask(segment)
    session.sharpen(segment)
    assert dice(session.mask(segment), bar) > dice(before, bar)
    assert session.undo() == "sharpen"
    assert np.array_equal(session.mask(segment), before)


def test_a_segment_without_prompts_has_nothing_to_settle(bar_session):
    session, _ = bar_session
    segment = session.add_segment("nothing yet")
    session.sharpen(segment)
    assert not session.mask(segment).any()


def test_along_another_axis_masks_settle_as_well(an_engine):
    volume, bar = a_bar((48, 64, 64))
    k, j, i = (int(c) for c in np.argwhere(bar).mean(axis=0).round())
    rows, columns = np.nonzero(bar[:, :, i])
    with an_engine.open(volume, axis=2) as session:
        segment = session.add_segment("bar")
        shown = draw_box(session, segment, (rows.min(), columns.min(), i), (rows.max(), columns.max(), i))
        assert bar[k, j, i]
        assert shown[k, j]
        run(session)
        assert session.mask(segment)[k, j, i]


def test_a_volume_of_one_slice_settles(an_engine):
    volume, bar = a_bar()
    flat = CTVolume.from_array(volume.array[4:5], SPACING, np.diag([*SPACING, 1.0]))
    with an_engine.open(flat) as session:
        segment, shown = boxed(session, bar[4:5], k=0)
        run(session)
        assert dice(session.mask(segment)[0], bar[4]) > 0.95
        assert np.array_equal(session.mask(segment)[0], shown)


def a_desk_with_a_boxed_bar(engine):
    volume, bar = a_bar()
    rows, columns = np.nonzero(bar[4])
    drawn = box(volume, (4, rows.min(), columns.min()), (4, rows.max(), columns.max()))
    desk, shown = Desk(volume, 0, lambda: engine, lambda: volume), np.zeros_like(bar)
    for report in desk.sync("bar", "bar", [drawn]):
        if isinstance(report, Patch):
            shown[report.index] = report.mask
    return desk, shown


def test_a_window_is_told_again_of_slices_that_settled_after_it_had_been_told(an_engine):
    desk, shown = a_desk_with_a_boxed_bar(an_engine)
    told = []
    for report in desk.propagate():
        if isinstance(report, Patch):
            shown[report.index] = report.mask
            told.append(report.index)
    (segment,) = desk.session.segments
    assert np.array_equal(shown, desk.session.mask(segment))
    assert len(told) > len(set(told))


def test_whenever_a_window_leaves_it_has_been_told_of_all_that_has_changed(an_engine):
    desk, first = a_desk_with_a_boxed_bar(an_engine)
    (segment,) = desk.session.segments
    reports = sum(isinstance(report, Progress) for report in desk.propagate())
    assert reports > 10
    # At its beginning, within it, and where slices are finished together at its end.
    for count in {1, 2, reports // 2, reports - 1, reports}:
        desk.session.undo()
        assert np.array_equal(desk.session.mask(segment), first)
        shown, work, seen = first.copy(), desk.propagate(), 0
        while seen < count:
            report = next(work)
            seen += isinstance(report, Progress)
            if isinstance(report, Patch):
                shown[report.index] = report.mask
        for report in [work.throw(Leave()), *work]:
            if isinstance(report, Patch):
                shown[report.index] = report.mask
        assert np.array_equal(shown, desk.session.mask(segment)), count
