"""One orientation for all volumes."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from SAM2AssistLib.engine.views import View
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.volume import CTVolume

SHAPE = (4, 5, 6)
SPACING = np.array([1.0, 2.0, 3.0])


def turned_volume(order, signs) -> CTVolume:
    """A volume whose voxel axes run along other axes of the patient."""
    directions = np.zeros((3, 3))
    for voxel_axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        directions[world, voxel_axis] = sign
    matrix = np.eye(4)
    matrix[:3, :3] = directions * SPACING
    matrix[:3, 3] = 10.0, -20.0, 30.0
    return CTVolume.from_array(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), tuple(SPACING), matrix)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, -1, -1)])
def test_every_voxel_keeps_its_value_and_its_place_in_the_patient(order, signs):
    volume = turned_volume(order, signs)
    turn = Orientation.of(volume)
    turned = turn.turn(volume)
    assert np.all(np.diag(turned.ijk_to_lps[:3, :3]) > 0)
    for k, row, column in product(range(turned.shape_kji[0]), (0, 1), (0, 2)):
        index = turn.slice_back(k)
        back = turn.position_back(row, column)
        own = np.insert(np.array(back, float), turn.axis, index)
        assert volume.array[tuple(own.astype(int))] == turned.array[k, row, column]
        place = turned.lps_from_index_ijk([column, row, k])
        np.testing.assert_allclose(volume.lps_from_index_ijk(own[::-1]), place)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_a_map_and_its_view_come_back_together(order):
    volume = turned_volume(order, (-1, 1, -1))
    turn = Orientation.of(volume)
    turned = turn.turn(volume)
    rows, columns = turned.shape_kji[1:]
    seen = torch.from_numpy(turned.array[1].astype(np.float32))
    back = turn.map_back(seen)
    view = turn.view_back(View(0, 0, rows, columns))
    own = volume.slice_hu(turn.axis, turn.slice_back(1))
    assert (view.row, view.column, view.rows, view.columns) == (0, 0, *own.shape)
    np.testing.assert_array_equal(back.numpy(), own)


def test_turning_copies_no_voxel():
    volume = turned_volume((0, 1, 2), (-1, -1, 1))
    assert np.shares_memory(Orientation.of(volume).turn(volume).array, volume.array)
