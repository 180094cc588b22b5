"""A click on a mask that is shown corrects it around the click; the rest stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blobs import click, draw_box, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from SAM2AssistLib.depth import depth_in
from SAM2AssistLib.engine.local_corrections import LOBE_SHARE, is_middle, with_part, without_lobe
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.sharpening import CLICK_MM
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.volume import CTVolume

SIDE = 48
SQUARE_MM = (1.0, 1.0)
MASKS = arrays(bool, (SIDE, SIDE)).map(lambda noise: ndimage.binary_opening(noise, iterations=1))
PIXELS = st.tuples(*[st.integers(0, SIDE - 1)] * 2)
SPACINGS = st.tuples(*[st.floats(0.5, 5.0)] * 2)
BALL, ELSEWHERE = (5, 32, 20), 7


def ball(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


BODY, LOBE = ball(24, 16, 12), ball(24, 34, 7)


# ------------------------------------------------------------------------------------------------- masks by themselves


def test_a_negative_click_in_a_lobe_takes_the_lobe_and_leaves_the_body():
    left = without_lobe(BODY | LOBE, depth_in(BODY | LOBE, SQUARE_MM), (24, 35), SQUARE_MM)
    assert (left & BODY).sum() >= 0.97 * BODY.sum()
    assert (left & LOBE & ~BODY).sum() <= 0.05 * LOBE.sum()


@given(MASKS, PIXELS, SPACINGS)
def test_a_negative_click_takes_its_pixel_and_nothing_beyond_its_lobe(shown, pixel, spacing):
    depth = depth_in(shown, spacing)
    left = without_lobe(shown, depth, pixel, spacing)
    assert not left[pixel]
    assert not (left & ~shown).any()
    rows, columns = np.nonzero(shown & ~left)
    away = np.hypot((rows - pixel[0]) * spacing[0], (columns - pixel[1]) * spacing[1])
    assert (away <= max(CLICK_MM, LOBE_SHARE * depth[pixel]) + 1e-6).all()


@given(MASKS, MASKS, PIXELS, SPACINGS)
def test_a_positive_click_gives_its_pixel_and_takes_nothing(shown, said, pixel, spacing):
    grey = ndimage.gaussian_filter(said.astype(np.float32), 1.0)
    whole = with_part(shown, said, pixel, grey, spacing)
    assert whole[pixel]
    assert not (shown & ~whole).any()
    added = whole & ~shown
    added[pixel] = False
    assert not (added & ~said).any()


def test_a_positive_click_adds_what_lies_within_the_edges_and_no_other_part_that_the_network_would_add():
    object_, elsewhere = BODY | LOBE, ball(6, 42, 4)
    whole = with_part(BODY, object_ | elsewhere, (24, 35), np.where(object_, 0.7, 0.3).astype(np.float32), SQUARE_MM)
    np.testing.assert_array_equal(whole, object_)


def test_a_network_that_says_far_too_much_is_not_followed_across_an_edge():
    grey = np.where(BODY | LOBE, 0.8, 0.3).astype(np.float32)
    whole = with_part(BODY, np.ones_like(BODY), (24, 35), grey, SQUARE_MM)
    assert (whole & ~(BODY | LOBE)).sum() <= 0.05 * BODY.sum()
    assert (whole & LOBE).sum() >= 0.95 * LOBE.sum()


def test_the_middle_of_a_mask_is_its_deepest_place_and_nothing_is_the_middle_of_nothing():
    depth = depth_in(BODY | LOBE, SQUARE_MM)
    assert is_middle(depth, (24, 16))
    assert not is_middle(depth, (24, 34))
    assert not is_middle(np.zeros_like(depth), (24, 34))


@given(MASKS, SPACINGS)
def test_depth_is_the_distance_to_the_nearest_pixel_that_is_not_in_the_mask(mask, spacing):
    around = ndimage.distance_transform_edt(np.pad(mask, SIDE), sampling=spacing)[SIDE:-SIDE, SIDE:-SIDE]
    np.testing.assert_allclose(depth_in(mask, spacing), around)


# -------------------------------------------------------------------------------------------------------- in a session


@pytest.fixture
def tracked(quick_engine, a_blob_volume):
    """A session with a segment that has been propagated from a box."""
    with quick_engine().open(a_blob_volume) as session:
        segment = session.add_segment("blob")
        draw_box(session, segment, (5, 22, 10), (5, 42, 30))
        run(session)
        yield session, segment


def a_place(mask: np.ndarray, *, inside: bool) -> tuple[int, int]:
    """A pixel at the border of a mask."""
    ring = mask & ~ndimage.binary_erosion(mask) if inside else ndimage.binary_dilation(mask) & ~mask
    row, column = np.argwhere(ring)[0]
    return int(row), int(column)


@pytest.mark.parametrize("index", [BALL[0], ELSEWHERE], ids=["boxed", "tracked"])
@pytest.mark.parametrize("positive", [True, False])
def test_a_correction_changes_the_slice_near_the_click_only_and_only_as_the_click_says(tracked, index, positive):
    session, segment = tracked
    before = session.mask(segment)
    row, column = a_place(before[index], inside=not positive)
    after = click(session, segment, (index, row, column), positive=positive)
    assert after[row, column] == positive
    changed = before[index] != after
    assert (after[changed] == positive).all()
    others = [k for k in range(len(before)) if k != index]
    np.testing.assert_array_equal(session.mask(segment)[others], before[others])
    session.undo()
    np.testing.assert_array_equal(session.mask(segment), before)


def test_the_preview_of_a_correction_is_what_the_click_gives(tracked):
    from SAM2AssistLib.prompts import PointPrompt

    session, segment = tracked
    row, column = a_place(session.mask(segment)[ELSEWHERE], inside=True)
    point = PointPrompt((column, row, ELSEWHERE), positive=False)
    preview = session.preview_point(segment, point)
    np.testing.assert_array_equal(preview, session.place_point(segment, point))


def test_a_click_in_the_very_middle_empties_the_slice_if_the_network_finds_nothing_there_either(tracked, monkeypatch):
    session, segment = tracked
    decode = Plane.decode_last
    monkeypatch.setattr(
        Plane, "decode_last", lambda plane, *asked: replace(decode(plane, *asked), object_score=-5.0, memory=None)
    )
    mask = session.mask(segment)[ELSEWHERE]
    spacing = session.volume.slice_spacing(0)
    row, column = np.unravel_index(depth_in(mask, spacing).argmax(), mask.shape)
    assert not click(session, segment, (ELSEWHERE, row, column), positive=False).any()
    session.undo()
    row, column = a_place(mask, inside=True)
    assert click(session, segment, (ELSEWHERE, row, column), positive=False).sum() >= mask.sum() / 2


@pytest.mark.parametrize("kind", ["drawing", "box", "click"])
@pytest.mark.parametrize("adopted", [False, True])
def test_a_prompt_that_is_removed_gives_back_what_its_slice_showed(tracked, adopted, kind):
    session, segment = tracked
    found = session.mask(segment)
    if adopted:
        segment = session.add_segment("adopted")
        session.adopt(segment, dict(enumerate(found)), [0, len(found) - 1])
    # Another segment has taken some of it, which no prompt of its own tells of.
    left = found[ELSEWHERE].copy()
    left[:, : 1 + np.flatnonzero(left.any(axis=0))[0] + 4] = False
    session.give_up(segment, {ELSEWHERE: left})
    if kind == "drawing":
        session.add_mask(segment, ELSEWHERE, found[0] ^ found[ELSEWHERE])
    elif kind == "box":
        draw_box(session, segment, (ELSEWHERE, 26, 14), (ELSEWHERE, 38, 26))
    else:
        click(session, segment, (ELSEWHERE, *a_place(left, inside=True)), positive=False)
    assert (session.mask(segment)[ELSEWHERE] != left).any()
    session.remove_prompt(segment, session.prompts(segment)[-1])
    np.testing.assert_array_equal(session.mask(segment)[ELSEWHERE], left)


def test_with_its_last_prompt_all_of_an_adopted_segment_goes(tracked):
    session, segment = tracked
    adopted = session.add_segment("adopted")
    session.adopt(adopted, dict(enumerate(session.mask(segment))), [ELSEWHERE])
    kept = session.mask(adopted)
    session.remove_prompt(adopted, session.prompts(adopted)[0])
    assert not session.mask(adopted).any()
    session.undo()
    np.testing.assert_array_equal(session.mask(adopted), kept)


def test_of_two_corrections_each_can_be_removed_by_itself(tracked):
    session, segment = tracked
    before = session.mask(segment)[ELSEWHERE]
    near = a_place(before, inside=True)
    first = click(session, segment, (ELSEWHERE, *near), positive=False)
    rows, columns = np.nonzero(first)
    far = np.argmax(np.hypot(rows - near[0], columns - near[1]))
    both = click(session, segment, (ELSEWHERE, rows[far], columns[far]), positive=False)
    one, other = session.prompts(segment)[-2:]
    session.remove_prompt(segment, one)
    np.testing.assert_array_equal(session.mask(segment)[ELSEWHERE], both | (before & ~first))
    session.undo()
    session.remove_prompt(segment, other)
    np.testing.assert_array_equal(session.mask(segment)[ELSEWHERE], first)


def test_corrections_that_are_removed_one_after_the_other_leave_nothing_behind(tracked):
    session, segment = tracked
    before = session.mask(segment)[ELSEWHERE]
    row, column = a_place(before, inside=True)
    for step in range(3):
        click(session, segment, (ELSEWHERE, row, column + step), positive=False)
    corrections = session.prompts(segment)[-3:]
    assert not np.array_equal(session.mask(segment)[ELSEWHERE], before)
    for correction in corrections:  # as they were at first: each removal answers those after it anew
        session.remove_prompt(segment, correction)
    np.testing.assert_array_equal(session.mask(segment)[ELSEWHERE], before)


@pytest.mark.parametrize("positive", [True, False])
def test_a_correction_that_is_left_still_holds_where_one_beside_it_is_removed(tracked, positive):
    session, segment = tracked
    row, column = a_place(session.mask(segment)[ELSEWHERE], inside=not positive)
    click(session, segment, (ELSEWHERE, row, column), positive=positive)
    click(session, segment, (ELSEWHERE, row + 1, column), positive=positive)
    session.remove_prompt(segment, session.prompts(segment)[-2])
    assert session.mask(segment)[ELSEWHERE][row + 1, column] == positive


def test_what_a_user_has_drawn_over_a_correction_stays_when_the_correction_is_removed(tracked):
    session, segment = tracked
    drawn = np.zeros_like(session.mask(segment)[ELSEWHERE])
    drawn[20:40, 12:30] = True
    click(session, segment, (ELSEWHERE, *a_place(session.mask(segment)[ELSEWHERE], inside=True)), positive=False)
    session.add_mask(segment, ELSEWHERE, drawn)
    session.remove_prompt(segment, session.prompts(segment)[-2])
    np.testing.assert_array_equal(session.mask(segment)[ELSEWHERE], drawn)


PART, OTHER = (slice(25, 56),) * 2, (slice(75, 106),) * 2


@pytest.fixture
def two_discs(an_engine):
    """A session on a volume with two bright discs on every slice, and a segment without prompts."""
    rows, columns = np.ogrid[:128, :128]
    inside = np.zeros((128, 128), bool)
    for centre in (40, 90):
        inside |= (rows - centre) ** 2 + (columns - centre) ** 2 < 15**2
    with an_engine.open(a_column(inside)) as session:
        yield session, session.add_segment("discs"), inside


def a_column(inside: np.ndarray) -> CTVolume:
    """A volume that is bright at the same pixels of all slices."""
    hu = np.where(inside, 110, -100) + np.random.default_rng(0).normal(0, 8, (9, *inside.shape))
    return CTVolume.from_array(hu.astype(np.int16), (2.0, 2.0, 3.0), np.diag([2.0, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize("corrected", [True, False])
def test_a_second_box_adds_its_part_to_what_a_slice_has_and_can_be_removed_again(two_discs, corrected):
    session, segment, inside = two_discs
    draw_box(session, segment, (4, 25, 25), (4, 55, 55))
    if corrected:
        click(session, segment, (4, 40, 40))
    first = session.mask(segment)
    draw_box(session, segment, (4, 75, 75), (4, 105, 105))
    assert dice(session.mask(segment)[4], inside) > 0.9
    session.remove_prompt(segment, session.prompts(segment)[-1])
    np.testing.assert_array_equal(session.mask(segment), first)


def test_a_box_says_where_the_object_is_on_a_slice_that_was_only_tracked(two_discs):
    session, segment, inside = two_discs
    draw_box(session, segment, (4, 25, 25), (4, 55, 55))
    run(session)
    draw_box(session, segment, (6, 75, 75), (6, 105, 105))
    mask = session.mask(segment)[6]
    assert dice(mask[OTHER], inside[OTHER]) > 0.9


def test_a_box_in_the_wrong_place_can_be_removed_after_a_correction(two_discs):
    session, segment, inside = two_discs
    draw_box(session, segment, (4, 75, 75), (4, 105, 105))
    click(session, segment, (4, 40, 40))
    session.remove_prompt(segment, session.prompts(segment)[0])
    mask = session.mask(segment)[4]
    assert not mask[OTHER].any()
    assert dice(mask[PART], inside[PART]) > 0.8


@pytest.mark.parametrize("column", [64, 40], ids=["middle", "beside it"])
def test_a_click_on_an_emptied_slice_brings_a_large_organ_back_as_a_whole(an_engine, column):
    rows, columns = np.ogrid[:128, :128]
    inside = (rows - 64) ** 2 + (columns - 64) ** 2 < 35**2
    with an_engine.open(a_column(inside)) as session:
        segment = session.add_segment("organ")
        draw_box(session, segment, (4, 28, 28), (4, 100, 100))
        run(session)
        session.add_mask(segment, 8, np.zeros_like(inside))
        run(session)
        assert dice(click(session, segment, (8, 64, column)), inside) > 0.9


def test_where_there_are_clicks_only_the_network_hears_them_together(quick_engine, a_blob_volume):
    masks = {}
    for locally in (True, False):
        with quick_engine(corrects_locally=locally).open(a_blob_volume) as session:
            segment = session.add_segment("blob")
            click(session, segment, BALL)
            masks[locally] = click(session, segment, (5, 40, 40), positive=False)
    np.testing.assert_array_equal(masks[True], masks[False])


def test_the_options_of_upstream_know_no_local_corrections():
    assert EngineOptions().corrects_locally
    assert not EngineOptions.like_upstream().corrects_locally
