"""Clicks for a CT of which nothing is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompting.proposals import propose_prompts
from SAM2AssistLib.volume import CTVolume


def a_body(shape_kji=(20, 60, 80), spacing_ijk=(3.0, 3.0, 5.0), organs=(((10, 30, 20), 25.0), ((10, 30, 58), 20.0))):
    """Return balls of soft tissue (centre in voxels, radius in mm) in fat, and labels of them."""
    index, spacing_kji = np.indices(shape_kji).transpose(1, 2, 3, 0), np.array(spacing_ijk[::-1])
    hu, labels = np.full(shape_kji, -100, np.int16), np.zeros(shape_kji, np.uint8)
    for number, (centre, radius) in enumerate(organs, 1):
        inside = np.linalg.norm((index - centre) * spacing_kji, axis=-1) <= radius
        hu[inside], labels[inside] = 100, number
    return CTVolume.from_array(hu, spacing_ijk, np.diag([*spacing_ijk, 1.0])), labels


def hit(prompts, labels) -> list[int]:
    return [int(labels[tuple(int(n) for n in reversed(request.points[0].index_ijk))]) for request in prompts]


def test_each_large_homogeneous_region_gets_one_click_the_largest_first():
    volume, labels = a_body()
    prompts = propose_prompts(volume)
    assert hit(prompts, labels) == [1, 2]
    assert [request.name for request in prompts] == ["region 1", "region 2"]
    assert all(request.points[0].positive and len(request.points) == 1 and not request.boxes for request in prompts)


def test_no_more_regions_than_asked_for_are_proposed():
    volume, labels = a_body()
    assert hit(propose_prompts(volume, most=1), labels) == [1]


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 5.0), (6.0, 6.0, 6.0), (2.0, 4.0, 1.0)])
def test_clicks_are_inside_whatever_the_spacing(spacing):
    shape = tuple(int(n) for n in np.round(np.array([100, 180, 200]) / np.array(spacing[::-1])))
    middle = tuple((n - 1) // 2 for n in shape)
    volume, labels = a_body(shape, spacing, ((middle, 30.0),))
    assert hit(propose_prompts(volume), labels) == [1]


def test_a_large_volume_is_thinned_out_before_it_is_widened():
    volume, labels = a_body((30, 240, 320), (0.5, 0.5, 2.0), (((15, 120, 80), 26.0), ((15, 120, 240), 22.0)))
    tracemalloc.start()
    prompts = propose_prompts(volume)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert hit(prompts, labels) == [1, 2]
    assert peak < volume.array.nbytes  # float32 of all voxels would be twice as much


def test_bone_and_small_spots_are_not_proposed():
    volume, _ = a_body(organs=(((10, 30, 20), 6.0),))
    with pytest.raises(InputError, match="--prompts"):
        propose_prompts(volume)
    bone, labels = a_body()
    with pytest.raises(InputError, match="--prompts"):
        propose_prompts(CTVolume.from_array(np.where(labels > 0, 900, -100), bone.spacing_ijk, bone.ijk_to_lps))


def test_in_empty_air_there_is_nothing_to_propose():
    air = CTVolume.from_array(np.full((8, 32, 32), -1000, np.int16), (3.0, 3.0, 5.0), np.diag([3.0, 3.0, 5.0, 1.0]))
    with pytest.raises(InputError, match="No large homogeneous region"):
        propose_prompts(air)


def test_proposals_for_a_phantom_lie_in_its_soft_tissue(a_phantom):
    prompts = propose_prompts(a_phantom.volume)
    assert 1 <= len(prompts) <= 4
    for request in prompts:
        assert a_phantom.volume.contains_index_ijk(request.points[0].index_ijk)
        place = tuple(int(n) for n in reversed(request.points[0].index_ijk))
        assert -50 < a_phantom.volume.array[place] < 300
