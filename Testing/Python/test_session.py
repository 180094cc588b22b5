"""What a session promises: prompts in, masks out, and nothing changes that was not meant to."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import click, draw_box, extent, ras, run, two_blobs

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompts import BoxPrompt, PointPrompt, SegmentPrompts
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume

BALL = (5, 32, 20)
OTHER_BALL = (5, 32, 44)


def is_blank(session, segment) -> bool:
    return not session.mask(segment).any() and not session.prompts(segment) and not session.confidence(segment)


# Segments


def test_segments_are_listed_in_the_order_in_which_they_were_added(a_quick_session):
    for name in ("liver", "aorta", "spleen"):
        a_quick_session.add_segment(name)
    assert [segment.name for segment in a_quick_session.segments] == ["liver", "aorta", "spleen"]


@pytest.mark.parametrize("name", ["", "  ", "liver", " liver "])
def test_a_name_that_is_empty_or_taken_is_refused(a_quick_session, name):
    a_quick_session.add_segment("liver")
    with pytest.raises(InputError, match="name"):
        a_quick_session.add_segment(name)
    assert len(a_quick_session.segments) == 1


@pytest.mark.parametrize("name", ["", "  ", "other", " other "])
def test_a_segment_is_not_renamed_to_nothing_or_to_what_another_is_called(a_quick_session, a_segment, name):
    other = a_quick_session.add_segment("other")
    with pytest.raises(InputError, match="name"):
        a_quick_session.rename_segment(a_segment, name)
    assert a_quick_session.segments == (a_segment, other)


def test_a_segment_is_renamed_and_may_keep_its_name(a_quick_session, a_segment):
    assert a_quick_session.rename_segment(a_segment, a_segment.name) == a_segment
    assert a_quick_session.rename_segment(a_segment, " spleen ").name == "spleen"
    assert [s.name for s in a_quick_session.segments] == ["spleen"]


def test_a_removed_segment_is_refused_and_its_name_is_free_again(a_quick_session, a_segment):
    a_quick_session.remove_segment(a_segment)
    with pytest.raises(InputError, match="removed"):
        a_quick_session.mask(a_segment)
    assert a_quick_session.add_segment("ball") != a_segment


def test_the_mask_is_a_copy(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    a_quick_session.mask(a_segment)[...] = True
    assert not a_quick_session.mask(a_segment).all()


# Prompts


@pytest.mark.parametrize("index_kji", [(-1, 5, 5), (5, -0.6, 5), (5, 5, 63.6), (10, 5, 5)])
def test_a_click_outside_the_volume_is_refused_and_changes_nothing(a_quick_session, a_segment, index_kji):
    click(a_quick_session, a_segment, BALL)
    mask, prompts = a_quick_session.mask(a_segment), a_quick_session.prompts(a_segment)
    with pytest.raises(InputError, match="outside the volume"):
        click(a_quick_session, a_segment, index_kji)
    assert np.array_equal(a_quick_session.mask(a_segment), mask)
    assert a_quick_session.prompts(a_segment) == prompts
    assert a_quick_session.undo() == "add point"
    assert is_blank(a_quick_session, a_segment)


def test_a_refused_click_leaves_a_propagation_running(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    steps = a_quick_session.propagate()
    next(steps)
    with pytest.raises(InputError):
        a_quick_session.add_point(a_segment, (np.nan, 0, 0))
    last = list(steps)[-1]
    assert last.done == last.total


def test_a_click_returns_the_mask_of_its_slice_at_once(a_quick_session, a_segment):
    shown = click(a_quick_session, a_segment, BALL)
    assert shown.dtype == bool
    assert shown.shape == (64, 64)
    assert shown.any()
    assert np.array_equal(a_quick_session.mask(a_segment)[5], shown)
    assert extent(a_quick_session.mask(a_segment)) == [5]


def test_a_negative_click_alone_is_taken(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL, positive=False)
    assert len(a_quick_session.prompts(a_segment)) == 1


@pytest.mark.parametrize(("position", "index"), [(2.4, 2), (2.5, 3), (3.5, 4), (-0.5, 0), (9.49, 9)])
def test_a_click_between_two_slices_belongs_to_the_nearer_and_to_the_upper_of_two_equally_near(
    a_quick_session, a_segment, position, index
):
    a_quick_session.place_point(a_segment, PointPrompt((20.0, 32.0, position)))
    assert a_quick_session.prompts(a_segment)[0].index == index


def test_the_last_click_of_a_volume_of_one_slice_is_on_that_slice(quick_engine):
    with quick_engine().open(two_blobs((1, 64, 64)).volume) as session:
        segment = session.add_segment("ball")
        session.place_point(segment, PointPrompt((20.0, 32.0, np.nextafter(0.5, 0))))
        assert session.prompts(segment)[0].index == 0
        assert run(session) == []


def test_several_clicks_on_a_slice_are_understood_together(a_quick_session, a_segment):
    one = click(a_quick_session, a_segment, BALL)
    two = click(a_quick_session, a_segment, OTHER_BALL)
    assert not np.array_equal(one, two)
    assert len(a_quick_session.prompts(a_segment)) == 2


def test_a_failing_network_changes_nothing(a_quick_session, a_segment, monkeypatch):
    click(a_quick_session, a_segment, BALL)
    mask = a_quick_session.mask(a_segment)
    plane = a_quick_session._plane(0)
    monkeypatch.setattr(plane, "mask_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        click(a_quick_session, a_segment, OTHER_BALL)
    assert np.array_equal(a_quick_session.mask(a_segment), mask)
    assert len(a_quick_session.prompts(a_segment)) == 1


def test_a_3d_box_shows_its_middle_slice_and_bounds_the_propagation(a_quick_session, a_segment):
    shown = draw_box(a_quick_session, a_segment, (3, 20, 10), (7, 44, 30))
    assert np.array_equal(a_quick_session.mask(a_segment)[5], shown)
    assert {step.index for step in run(a_quick_session)} == {3, 4, 6, 7}
    assert set(extent(a_quick_session.mask(a_segment))) <= set(range(3, 8))


def test_a_3d_box_drawn_after_a_propagation_cuts_off_what_lies_beyond_it(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    before = a_quick_session.mask(a_segment)
    assert set(extent(before)) - set(range(3, 8))
    draw_box(a_quick_session, a_segment, (3, 20, 10), (7, 44, 30))
    run(a_quick_session)
    assert set(extent(a_quick_session.mask(a_segment))) <= set(range(3, 8))
    assert set(a_quick_session.confidence(a_segment)) <= set(range(3, 8))
    a_quick_session.undo()
    a_quick_session.undo()
    assert np.array_equal(a_quick_session.mask(a_segment), before)


def test_a_removed_3d_box_no_longer_bounds_the_propagation(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    draw_box(a_quick_session, a_segment, (2, 20, 10), (6, 44, 30))
    run(a_quick_session)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert {step.index for step in run(a_quick_session)} == set(range(10)) - {5}


def test_of_two_3d_boxes_the_one_that_is_left_bounds_the_propagation(a_quick_session, a_segment):
    draw_box(a_quick_session, a_segment, (1, 20, 10), (3, 44, 30))
    draw_box(a_quick_session, a_segment, (6, 20, 10), (8, 44, 30))
    run(a_quick_session)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert {step.index for step in run(a_quick_session)} == {3}
    assert set(extent(a_quick_session.mask(a_segment))) <= {1, 2, 3}


@pytest.mark.parametrize(("axis", "low", "high"), [(1, (2, 32, 10), (8, 32, 30)), (2, (2, 20, 20), (8, 44, 20))])
def test_a_coronal_or_sagittal_box_makes_the_segment_travel_along_that_axis(
    a_quick_session, a_segment, axis, low, high
):
    shown = draw_box(a_quick_session, a_segment, low, high)
    assert a_quick_session.segment_axis(a_segment) == axis
    assert shown.shape == (10, 64)
    assert shown.any()
    mask = a_quick_session.mask(a_segment)
    assert np.array_equal(np.take(mask, low[axis], axis=axis), shown)
    assert mask.sum() == shown.sum()
    assert {step.axis for step in run(a_quick_session)} == {axis}


def test_clicks_follow_the_axis_that_a_box_has_settled(a_quick_session, a_segment):
    draw_box(a_quick_session, a_segment, (2, 32, 10), (8, 32, 30))
    click(a_quick_session, a_segment, (5, 36, 20))
    assert [prompt.index for prompt in a_quick_session.prompts(a_segment)] == [32, 36]


def test_a_box_flat_in_another_axis_than_the_segments_is_refused_and_changes_nothing(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    mask = a_quick_session.mask(a_segment)
    with pytest.raises(InputError, match="flat in i, but its other prompts are on slices along k"):
        draw_box(a_quick_session, a_segment, (2, 20, 20), (8, 44, 20))
    assert np.array_equal(a_quick_session.mask(a_segment), mask)
    assert a_quick_session.segment_axis(a_segment) == 0


def test_once_its_only_prompt_is_gone_a_segment_may_travel_along_another_axis(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[0])
    draw_box(a_quick_session, a_segment, (2, 20, 20), (8, 44, 20))
    assert a_quick_session.segment_axis(a_segment) == 2


def test_a_prompt_file_entry_becomes_a_segment_with_its_boxes_first(a_quick_session):
    box = BoxPrompt((10.0, 20.0, 4.0), (30.0, 44.0, 4.0), 0)
    segment = a_quick_session.add_prompts(SegmentPrompts("ball", (PointPrompt((20.0, 32.0, 5.0)),), (box,)))
    assert [prompt.is_box for prompt in a_quick_session.prompts(segment)] == [True, False]
    assert extent(a_quick_session.mask(segment)) == [4, 5]


# Edited masks


def test_an_edited_mask_stays_voxel_equal_through_propagations(a_quick_session, a_segment):
    drawn = np.random.default_rng(1).random((64, 64)) > 0.6
    a_quick_session.add_mask(a_segment, 4, drawn)
    run(a_quick_session)
    click(a_quick_session, a_segment, (8, 32, 20))
    run(a_quick_session)
    assert np.array_equal(a_quick_session.mask(a_segment)[4], drawn)


def test_an_edited_mask_is_not_changed_by_what_the_caller_does_with_the_array_later(a_quick_session, a_segment):
    drawn = np.zeros((64, 64), bool)
    drawn[10:30, 10:30] = True
    a_quick_session.add_mask(a_segment, 4, drawn)
    drawn[...] = False
    a_quick_session.undo()
    a_quick_session.redo()
    assert a_quick_session.mask(a_segment).sum() == 400
    assert a_quick_session.prompts(a_segment)[0].mask.sum() == 400


def test_an_empty_edited_mask_says_that_the_segment_is_not_there(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    a_quick_session.add_mask(a_segment, 7, np.zeros((64, 64), bool))
    run(a_quick_session)
    assert 7 not in extent(a_quick_session.mask(a_segment))


def test_a_click_on_an_edited_slice_goes_on_from_the_edit(a_quick_session, a_segment):
    drawn = np.zeros((64, 64), bool)
    drawn[24:40, 12:28] = True
    a_quick_session.add_mask(a_segment, 5, drawn)
    click(a_quick_session, a_segment, OTHER_BALL)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert np.array_equal(a_quick_session.mask(a_segment)[5], drawn)


@pytest.mark.parametrize("shape", [(63, 64), (64,), (10, 64, 64)])
def test_a_mask_of_another_shape_is_refused_and_changes_nothing(a_quick_session, a_segment, shape):
    with pytest.raises(InputError, match="64 x 64 pixels"):
        a_quick_session.add_mask(a_segment, 4, np.ones(shape, bool))
    assert is_blank(a_quick_session, a_segment)


@pytest.mark.parametrize("index", [-1, 10])
def test_a_mask_on_a_slice_that_is_not_there_is_refused(a_quick_session, a_segment, index):
    with pytest.raises(InputError, match="slice"):
        a_quick_session.add_mask(a_segment, index, np.ones((64, 64), bool))
    assert is_blank(a_quick_session, a_segment)


@pytest.mark.parametrize("wider", [True, False])
def test_a_second_3d_box_that_reaches_further_opens_both_ends(a_quick_session, a_segment, wider):
    for k in (3, 6):
        click(a_quick_session, a_segment, (k, 32, 20))
    draw_box(a_quick_session, a_segment, (3, 20, 10), (7, 44, 30))
    run(a_quick_session)
    draw_box(a_quick_session, a_segment, (1, 20, 10) if wider else (4, 20, 10), (9, 44, 30) if wider else (7, 44, 30))
    visited = {step.index for step in run(a_quick_session)}
    assert visited == ({1, 2, 4, 7, 8, 9} if wider else {4})


# Removing prompts


def test_removing_the_second_click_brings_the_first_ones_mask_back(a_quick_session, a_segment):
    one = click(a_quick_session, a_segment, BALL)
    click(a_quick_session, a_segment, OTHER_BALL)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert np.array_equal(a_quick_session.mask(a_segment)[5], one)


def test_removing_the_only_prompt_empties_the_segment(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[0])
    assert is_blank(a_quick_session, a_segment)
    assert run(a_quick_session) == []


def test_removing_a_correction_shows_what_was_tracked_there_before(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    run(a_quick_session)
    tracked = a_quick_session.mask(a_segment)
    click(a_quick_session, a_segment, (7, *np.argwhere(tracked[7])[0]), positive=False)
    assert not np.array_equal(a_quick_session.mask(a_segment), tracked)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert np.array_equal(a_quick_session.mask(a_segment), tracked)


def test_removing_one_of_two_prompted_slices_propagates_the_whole_gap_between_its_neighbours(
    a_quick_session, a_segment
):
    for k in (2, 5, 8):
        click(a_quick_session, a_segment, (k, 32, 20))
    run(a_quick_session)
    a_quick_session.remove_prompt(a_segment, a_quick_session.prompts(a_segment)[1])
    assert {step.index for step in run(a_quick_session)} == set(range(3, 8))


def test_a_prompt_that_is_not_the_segments_is_refused(a_quick_session, a_segment):
    click(a_quick_session, a_segment, BALL)
    prompt = a_quick_session.prompts(a_segment)[0]
    a_quick_session.remove_prompt(a_segment, prompt)
    with pytest.raises(InputError, match="removed before"):
        a_quick_session.remove_prompt(a_segment, prompt)


# What a session tells


def test_masks_stay_readable_after_closing(a_quick_session, a_segment):
    shown = click(a_quick_session, a_segment, BALL)
    a_quick_session.close()
    assert np.array_equal(a_quick_session.mask(a_segment)[5], shown)


def test_confidence_tells_the_predicted_iou_of_every_slice_reached(a_quick_session, a_segment):
    assert a_quick_session.confidence(a_segment) == {}
    click(a_quick_session, a_segment, BALL)
    assert list(a_quick_session.confidence(a_segment)) == [5]
    run(a_quick_session)
    confidence = a_quick_session.confidence(a_segment)
    assert list(confidence) == list(range(10))
    assert all(0 <= value <= 1 for value in confidence.values())


def test_positions_are_given_in_the_patient(a_quick_session, a_segment):
    a_quick_session.add_point(a_segment, ras(a_quick_session, BALL))
    assert a_quick_session.prompts(a_segment)[0].index == 5
    assert a_quick_session.prompts(a_segment)[0].points == pytest.approx(np.array([[32.0, 20.0]]))


def test_a_volume_outside_of_hounsfield_units_gets_a_window_of_its_own(quick_engine):
    ct = two_blobs((4, 64, 64)).volume
    other = CTVolume.from_array(np.abs(ct.array) * 20, ct.spacing_ijk, ct.ijk_to_lps)
    with quick_engine().open(ct) as one, quick_engine().open(other) as two:
        assert one.window == WINDOW_PRESETS["abdomen"]
        assert two.window != one.window


# The embedded model


def test_a_box_in_which_the_network_is_sure_of_nothing_shows_what_is_likeliest_there(a_bare_engine):
    _, j, i = np.indices((3, 96, 96))
    frame = (i < 16) | (i > 80) | (j < 16) | (j > 80)
    hu = np.where(frame, 100, np.random.default_rng(1).normal(40, 10, frame.shape))
    volume = CTVolume.from_array(hu.astype(np.int16), (1.0, 1.0, 3.0), np.diag([1.0, 1.0, 3.0, 1.0]))
    with a_bare_engine.open(volume) as session:
        shown = draw_box(session, session.add_segment("loop"), (1, 5, 5), (1, 90, 90))
    assert 0.1 < shown[5:91, 5:91].mean() < 0.9


def test_the_embedded_model_segments_a_phantom_organ_from_one_box(a_session, a_phantom):
    organ = a_phantom.labels == a_phantom.names["liver"]
    k = int(organ.sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(organ[k])
    segment = a_session.add_segment("liver")
    shown = draw_box(a_session, segment, (k, rows.min(), columns.min()), (k, rows.max(), columns.max()))
    assert shown.any()
    steps = run(a_session)
    assert steps[-1].done == steps[-1].total
    assert np.array_equal(a_session.mask(segment)[k], shown)


def turned(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]
    )


SCENES = {
    "square": two_blobs((6, 72, 72), (2.0, 2.0, 5.0)),
    "wide": two_blobs((6, 48, 96), (2.0, 2.0, 5.0)),
    "high": two_blobs((6, 96, 48), (2.0, 2.0, 5.0), apart=1),
    "anisotropic": two_blobs((6, 48, 96), (1.0, 3.0, 5.0)),
    "left-handed": two_blobs((6, 72, 72), (2.0, 2.0, 5.0), np.diag([1, 1, -1])),
    "flipped": two_blobs((6, 72, 72), (2.0, 2.0, 5.0), np.diag([-1, -1, 1])),
    "oblique": two_blobs((6, 72, 72), (2.0, 2.0, 5.0), turned(25)),
    "sagittal": two_blobs((6, 72, 72), (2.0, 2.0, 5.0), np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", SCENES)
def test_clicks_land_where_they_should_in_every_geometry(a_bare_engine, name, which):
    scene = SCENES[name]
    with a_bare_engine.open(scene.volume) as session:
        segment = session.add_segment("ball")
        clicked, other = scene.centres_kji[[which, 1 - which]]
        shown = click(session, segment, clicked)
        assert extent(session.mask(segment)) == [int(clicked[0])]
    centre = np.argwhere(shown).mean(axis=0)
    assert np.linalg.norm(centre - clicked[1:]) < np.linalg.norm(centre - other[1:])


def test_an_object_of_one_slice_can_be_clicked(an_engine):
    hu = np.full((6, 64, 64), 20, np.int16)
    hu[3, 20:40, 20:40] = 160
    hu[:, 0] = -1000
    volume = CTVolume.from_array(hu, (1.5, 1.5, 5.0), np.diag([1.5, 1.5, 5.0, 1.0]))
    with an_engine.open(volume) as session:
        segment = session.add_segment("plate")
        shown = draw_box(session, segment, (3, 20, 20), (3, 39, 39))
        run(session)
        assert shown.any()
        assert 3 in extent(session.mask(segment))
