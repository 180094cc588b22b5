"""The frame that all patients share."""

from __future__ import annotations

import numpy as np
import pytest

from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.volume import CTVolume


def volume_of(hu: np.ndarray, spacing: float = 2.0) -> CTVolume:
    return CTVolume.from_array(hu, (spacing, spacing, 5.0), np.diag([spacing, spacing, 5.0, 1.0]))


def a_trunk(centre=(100, 120), radii=(55, 80), shape=(6, 200, 240)) -> np.ndarray:
    rows, columns = np.indices(shape[1:])
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1
    return np.where(inside, np.int16(40), np.int16(-1000))[None].repeat(shape[0], axis=0)


def test_the_view_is_a_square_around_the_body():
    view = body_view(volume_of(a_trunk()))
    assert view.rows == view.columns
    assert view.row + view.rows / 2 == pytest.approx(100, abs=3)
    assert view.column + view.columns / 2 == pytest.approx(120, abs=3)
    assert 160 <= view.columns <= 180


def test_arms_beside_the_trunk_a_table_and_a_wider_field_change_little():
    plain = body_view(volume_of(a_trunk()))
    hu = a_trunk()
    for column in (25, 215):
        hu = np.maximum(hu, a_trunk((110, column), (22, 14)))
    hu[:, 168:171, 20:220] = 200
    hu = np.pad(hu, ((0, 0), (30, 20), (40, 50)), constant_values=-1000)
    seen = body_view(volume_of(hu))
    assert seen.columns == pytest.approx(plain.columns, rel=0.05)
    assert seen.row - 30 == pytest.approx(plain.row, abs=5)
    assert seen.column - 40 == pytest.approx(plain.column, abs=5)


def test_both_legs_are_the_body():
    hu = np.maximum(a_trunk((100, 70), (35, 35)), a_trunk((100, 170), (35, 35)))
    view = body_view(volume_of(hu))
    assert view.column <= 40
    assert view.column + view.columns >= 200


def test_what_is_no_ct_is_seen_as_a_whole():
    volume = volume_of(np.full((3, 40, 60), 7, np.int16))
    view = body_view(volume)
    assert (view.rows, view.columns) == (60, 60)
