"""What the procedural CT phantoms promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training._phantom_texture import smooth_field
from SAM2AssistLib.training.phantoms import MIN_VOXELS, Phantom, make_phantom

SHAPE_KJI = (44, 96, 96)
SPACING_IJK = (4.0, 4.0, 6.0)
SOLID = ("liver", "spleen", "kidney_right", "kidney_left", "aorta", "urinary_bladder", "spinal_cord")


@pytest.fixture(scope="module")
def some_phantoms() -> list[Phantom]:
    return [make_phantom(seed, SHAPE_KJI, SPACING_IJK) for seed in range(12)]


def each(phantoms: list[Phantom], name: str, at_least: int = 150) -> list[tuple[Phantom, np.ndarray]]:
    """Return the phantoms that hold enough of a structure, each with its mask."""
    masks = [(p, p.labels == p.names[name]) for p in phantoms if name in p.names]
    found = [(p, mask) for p, mask in masks if mask.sum() >= at_least]
    assert found, f"no phantom shows {name}"
    return found


def centre_lps(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    index_ijk = np.argwhere(mask).mean(axis=0)[::-1]
    return phantom.volume.ijk_to_lps[:3, :3] @ index_ijk + phantom.volume.ijk_to_lps[:3, 3]


def test_the_same_seed_gives_the_same_phantom() -> None:
    one, two = make_phantom(7, SHAPE_KJI, SPACING_IJK), make_phantom(7, SHAPE_KJI, SPACING_IJK)
    assert np.array_equal(one.volume.array, two.volume.array)
    assert np.array_equal(one.labels, two.labels)
    assert one.names == two.names
    assert np.array_equal(one.volume.ijk_to_lps, two.volume.ijk_to_lps)


def test_two_seeds_differ_in_anatomy_and_not_only_in_noise(some_phantoms: list[Phantom]) -> None:
    for number, one in enumerate(some_phantoms):
        for two in some_phantoms[number + 1 :]:
            assert np.mean((one.labels > 0) != (two.labels > 0)) > 0.02
            assert not np.array_equal(one.volume.array, two.volume.array)


def test_making_a_phantom_leaves_the_global_random_state_alone() -> None:
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    make_phantom(1, (8, 32, 32), (8.0, 8.0, 8.0))
    assert np.array_equal(np.random.random(4), expected)


def test_the_geometry_is_axial_lps_with_the_spacing_asked_for(some_phantoms: list[Phantom]) -> None:
    for phantom in some_phantoms:
        volume = phantom.volume
        assert volume.shape_kji == phantom.labels.shape == SHAPE_KJI
        assert volume.spacing_ijk == pytest.approx(SPACING_IJK)
        assert np.allclose(volume.ijk_to_lps[:3, :3], np.diag(SPACING_IJK))
        assert volume.array_axis_of("axial") == 0


def test_values_are_int16_in_the_range_of_a_scanner(some_phantoms: list[Phantom]) -> None:
    for phantom in some_phantoms:
        assert phantom.volume.array.dtype == np.int16
        assert phantom.labels.dtype == np.uint8
        assert phantom.volume.array.min() >= -1024
        assert phantom.volume.array.max() <= 3071


def test_around_the_body_is_air(some_phantoms: list[Phantom]) -> None:
    for phantom in some_phantoms:
        front = phantom.volume.array[:, 0, :]
        assert abs(np.median(front) + 1000) < 25


def test_names_list_exactly_the_labels_that_are_there(some_phantoms: list[Phantom]) -> None:
    for phantom in some_phantoms:
        counts = np.bincount(phantom.labels.ravel(), minlength=256)
        assert sorted(phantom.names.values()) == list(range(1, len(phantom.names) + 1))
        assert all(counts[label] >= MIN_VOXELS for label in phantom.names.values())
        assert counts[len(phantom.names) + 1 :].sum() == 0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("liver", 5, 140),
        ("spleen", 25, 160),
        ("kidney_right", 10, 230),
        ("kidney_left", 10, 230),
        ("aorta", 5, 400),
        ("autochthon_left", 0, 90),
        ("vertebrae", 80, 600),
        ("hip_left", 80, 700),
        ("spinal_cord", 0, 110),
        ("lung_left", -920, -600),
        ("urinary_bladder", -20, 60),
    ],
)
def test_every_tissue_has_the_hu_of_a_ct(some_phantoms: list[Phantom], name: str, low: float, high: float) -> None:
    for phantom, mask in each(some_phantoms, name):
        core = ndimage.binary_erosion(mask)
        values = phantom.volume.array[core if core.sum() > 30 else mask]
        assert low <= np.median(values) <= high


def test_liver_and_right_kidney_are_on_the_patients_right_and_spleen_on_the_left(some_phantoms: list[Phantom]) -> None:
    for name in ("liver", "kidney_right", "inferior_vena_cava", "lung_right"):
        for phantom, mask in each(some_phantoms, name):
            assert centre_lps(phantom, mask)[0] < 0, name
    for name in ("spleen", "kidney_left", "lung_left"):
        for phantom, mask in each(some_phantoms, name):
            assert centre_lps(phantom, mask)[0] > 0, name


def test_the_spine_lies_behind_the_great_vessels_and_holds_the_cord(some_phantoms: list[Phantom]) -> None:
    for phantom, aorta in each(some_phantoms, "aorta"):
        slices = np.flatnonzero(aorta.any(axis=(1, 2)))
        vertebrae = phantom.labels == phantom.names["vertebrae"]
        cord = phantom.labels == phantom.names["spinal_cord"]
        for mask in (aorta, vertebrae, cord):
            mask[: slices[0]] = False
        assert centre_lps(phantom, aorta)[1] < centre_lps(phantom, vertebrae)[1]
        assert abs(centre_lps(phantom, cord)[0] - centre_lps(phantom, vertebrae)[0]) < 8.0


def test_organs_are_stacked_as_in_a_body(some_phantoms: list[Phantom]) -> None:
    for upper, lower in (("lung_left", "kidney_left"), ("liver", "hip_right"), ("kidney_left", "urinary_bladder")):
        both = [p for p in some_phantoms if upper in p.names and lower in p.names]
        for phantom in both:
            heights = [centre_lps(phantom, phantom.labels == phantom.names[n])[2] for n in (upper, lower)]
            assert heights[0] > heights[1]


@pytest.mark.parametrize("name", SOLID)
def test_a_solid_organ_is_one_piece(some_phantoms: list[Phantom], name: str) -> None:
    for _, mask in each(some_phantoms, name):
        pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() >= 0.9 * sizes.sum()


def test_fat_lies_between_kidney_and_spleen_or_psoas(some_phantoms: list[Phantom]) -> None:
    phantom, kidney = max(each(some_phantoms, "kidney_left"), key=lambda pair: pair[1].sum())
    shell = ndimage.binary_dilation(kidney) & ~kidney
    assert np.mean(phantom.labels[shell] == 0) > 0.5


def test_the_liver_is_textured_but_smoother_than_its_contrast_to_fat(some_phantoms: list[Phantom]) -> None:
    for phantom, mask in each(some_phantoms, "liver", at_least=2000):
        core = ndimage.binary_erosion(mask, iterations=2)
        if core.sum() > 200:
            assert 2.0 < phantom.volume.array[core].std() < 60.0


def test_tumours_occur_but_not_in_everyone(some_phantoms: list[Phantom]) -> None:
    having = ["tumor" in phantom.names for phantom in some_phantoms]
    assert any(having)
    assert not all(having)


def test_contrast_phases_vary_between_patients(some_phantoms: list[Phantom]) -> None:
    aortas = [np.median(phantom.volume.array[mask]) for phantom, mask in each(some_phantoms, "aorta")]
    assert max(aortas) - min(aortas) > 100


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**63),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40)),
    spacing=st.tuples(st.floats(0.5, 12.0), st.floats(0.5, 12.0), st.floats(0.6, 20.0)),
)
def test_any_grid_can_be_asked_for(seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    phantom = make_phantom(seed, shape, spacing)
    assert phantom.volume.shape_kji == phantom.labels.shape == shape
    assert phantom.volume.spacing_ijk == pytest.approx(spacing)
    assert phantom.volume.array.min() >= -1024
    assert set(np.unique(phantom.labels)) - {0} == set(phantom.names.values())


@pytest.mark.parametrize(
    ("seed", "shape", "spacing"),
    [
        (-1, (8, 8, 8), (1.0, 1.0, 1.0)),
        (0, (0, 8, 8), (1.0, 1.0, 1.0)),
        (0, (8, 8, 8), (1.0, 0.0, 1.0)),
        (0, (8, 8, 8), (1.0, 1.0, -2.0)),
    ],
)
def test_a_grid_that_cannot_exist_is_refused_in_one_sentence(
    seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    with pytest.raises(InputError, match="A phantom needs a seed from 0 up"):
        make_phantom(seed, shape, spacing)


@given(seed=st.integers(0, 999), limit=st.floats(0.1, 3.0))
def test_a_smooth_field_never_leaves_its_limit(seed: int, limit: float) -> None:
    axes = [np.arange(n, dtype=np.float32) * 7.0 for n in (4, 9, 11)]
    field = smooth_field(np.random.default_rng(seed), axes, 20.0, limit)
    assert field.shape == (4, 9, 11)
    assert np.abs(field).max() <= limit * 1.0001
