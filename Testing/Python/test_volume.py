"""CTVolume: geometry, slices, conversion to Hounsfield units, windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ct_files import affine, ct_values, rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume, Window, automatic_window

ROOT = Path(__file__).parents[2]

angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.1, 10)] * 3)
origins = st.tuples(*[st.floats(-1000, 1000)] * 3)
flips = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
axis_orders = st.permutations(range(3))


@st.composite
def grids(draw):
    """Matrices of oblique, flipped, permuted, anisotropic, left- and right-handed grids."""
    direction = (rotation(draw(angles)) * np.array(draw(flips)))[:, draw(axis_orders)]
    return affine(draw(spacings), direction, draw(origins))


def volume_on(matrix, shape_kji=(3, 4, 5)):
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    return CTVolume.from_array(ct_values(shape_kji), spacing, matrix)


@given(grids(), st.lists(st.tuples(*[st.floats(-50, 600)] * 3), min_size=1, max_size=5))
@settings(max_examples=60)
def test_voxel_indices_come_back_from_ras_and_lps_on_any_grid(matrix, indices):
    volume = volume_on(matrix)
    index_ijk = np.array(indices)
    np.testing.assert_allclose(volume.index_ijk_from_lps(volume.lps_from_index_ijk(index_ijk)), index_ijk, atol=1e-6)
    np.testing.assert_allclose(volume.index_ijk_from_ras(volume.ras_from_index_ijk(index_ijk)), index_ijk, atol=1e-6)


@given(grids())
@settings(max_examples=30)
def test_ras_is_lps_with_x_and_y_negated(matrix):
    volume = volume_on(matrix)
    lps = volume.lps_from_index_ijk((1, 2, 3))
    np.testing.assert_allclose(volume.ras_from_index_ijk((1, 2, 3)), lps * (-1, -1, 1), atol=1e-9)
    np.testing.assert_allclose(volume.ijk_to_ras @ (1, 2, 3, 1), [*(lps * (-1, -1, 1)), 1], atol=1e-9)


@given(grids())
@settings(max_examples=60)
def test_the_three_views_have_three_different_axes_on_any_grid(matrix):
    volume = volume_on(matrix)
    assert {volume.array_axis_of(view) for view in ("axial", "coronal", "sagittal")} == {0, 1, 2}


@given(flips, axis_orders, st.floats(-30, 30))
@settings(max_examples=60)
def test_a_view_gets_the_axis_nearest_to_it_when_axes_are_permuted_flipped_and_tilted(flip, order, tilt):
    direction = rotation((tilt, 0, 0)) @ (np.eye(3) * np.array(flip))[:, order]
    volume = volume_on(affine((1, 2, 3), direction))
    for view, component in (("sagittal", 0), ("coronal", 1), ("axial", 2)):
        assert volume.array_axis_of(view) == 2 - list(order).index(component)


def test_an_unknown_view_is_refused():
    with pytest.raises(InputError, match="frontal"):
        volume_on(affine()).array_axis_of("frontal")


@given(st.tuples(*[st.integers(1, 6)] * 3), st.data())
@settings(max_examples=40)
def test_slices_along_each_axis_agree_with_the_array(shape_kji, data):
    volume = volume_on(affine((1, 2, 3)), shape_kji)
    axis = data.draw(st.sampled_from([0, 1, 2]))
    index = data.draw(st.integers(0, shape_kji[axis] - 1))
    shown = volume.slice_hu(axis, index)
    np.testing.assert_array_equal(shown, np.take(volume.array, index, axis))
    assert np.shares_memory(shown, volume.array)
    assert not shown.flags.writeable


@pytest.mark.parametrize(("axis", "spacing"), [(0, (2, 1)), (1, (3, 1)), (2, (3, 2))])
def test_spacing_of_a_slice_is_that_of_its_rows_and_columns(axis, spacing):
    assert volume_on(affine((1, 2, 3))).slice_spacing(axis) == spacing


@pytest.mark.parametrize(("axis", "index"), [(0, 3), (0, -1), (1, 4), (2, 5)])
def test_a_slice_outside_the_volume_is_refused(axis, index):
    with pytest.raises(InputError, match="no slice"):
        volume_on(affine()).slice_hu(axis, index)


@pytest.mark.parametrize("axis", [-1, 3])
def test_an_axis_that_does_not_exist_is_refused(axis):
    with pytest.raises(InputError, match="axis"):
        volume_on(affine()).slice_hu(axis, 0)
    with pytest.raises(InputError, match="axis"):
        volume_on(affine()).slice_spacing(axis)


@pytest.mark.parametrize(
    ("index_ijk", "inside"),
    [
        ((0, 0, 0), True),
        ((-0.5, -0.5, -0.5), True),
        ((4.49, 3.49, 2.49), True),
        ((4.5, 0, 0), False),
        ((0, 3.5, 0), False),
        ((0, 0, 2.5), False),
        ((0, 0, -0.51), False),
        ((np.nan, 0, 0), False),
    ],
)
def test_a_voxel_reaches_half_a_voxel_around_its_centre(index_ijk, inside):
    assert volume_on(affine()).contains_index_ijk(index_ijk) is inside


@pytest.mark.parametrize("point", [(1, 2), (1, 2, 3, 4), 5, [[1, 2]]])
def test_positions_without_three_numbers_are_refused(point):
    volume = volume_on(affine())
    with pytest.raises(InputError, match="three numbers"):
        volume.index_ijk_from_ras(point)
    with pytest.raises(InputError, match="three numbers"):
        volume.contains_index_ijk(point)


def test_nothing_in_a_volume_can_be_changed():
    volume = volume_on(affine())
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        volume.ijk_to_lps[0, 0] = 2
    with pytest.raises(AttributeError):
        volume.source = Path("other")


def test_later_changes_of_the_given_array_and_matrix_do_not_reach_the_volume():
    given_array, matrix = ct_values((2, 3, 4)), affine()
    expected = given_array.copy()
    volume = CTVolume.from_array(given_array, (1, 1, 1), matrix)
    given_array[:] = 0
    matrix[:] = 0
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_array_equal(volume.ijk_to_lps, affine())


def test_a_read_only_array_is_taken_without_a_copy():
    array = ct_values((2, 3, 4))
    array.flags.writeable = False
    assert np.shares_memory(CTVolume.from_array(array, (1, 1, 1), affine()).array, array)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint16, np.int64, np.float32, np.float64, bool])
def test_values_of_any_real_type_become_int16(dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    volume = CTVolume.from_array(values, (1, 1, 1), affine())
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, values.astype(np.int16))
    assert volume.warnings == ()


def test_fractions_of_a_hounsfield_unit_are_rounded_not_cut_off():
    values = np.array([-1000.6, -0.6, 0.4, 0.6, 99.7]).reshape(1, 1, 5)
    volume = CTVolume.from_array(values, (1, 1, 1), affine())
    assert volume.array.ravel().tolist() == [-1001, -1, 0, 1, 100]


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_values_beyond_int16_are_clipped_with_a_warning(dtype):
    volume = CTVolume.from_array(np.array([-40000, 0, 70000]).reshape(1, 1, 3).astype(dtype), (1, 1, 1), affine())
    assert volume.array.ravel().tolist() == [-32768, 0, 32767]
    assert len(volume.warnings) == 1
    assert volume.warnings[0].startswith("2 voxels")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused_and_counted(bad):
    values = np.zeros((2, 3, 4), dtype=np.float32)
    values[0, 1] = bad
    with pytest.raises(InputError, match="4 NaN or infinite"):
        CTVolume.from_array(values, (1, 1, 1), affine())


def test_complex_values_are_refused():
    with pytest.raises(InputError, match="real numbers"):
        CTVolume.from_array(np.zeros((2, 2, 2), dtype=np.complex64), (1, 1, 1), affine())


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 5), (0, 4, 4), (4, 0, 4)])
def test_arrays_that_are_no_volume_are_refused(shape):
    with pytest.raises(InputError, match=r"axes|no voxels"):
        CTVolume.from_array(np.zeros(shape, dtype=np.int16), (1, 1, 1), affine())


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, np.nan), (1, 1)])
def test_spacings_that_are_not_above_zero_are_refused(spacing):
    with pytest.raises(InputError, match="above 0 mm"):
        CTVolume.from_array(np.zeros((2, 2, 2), dtype=np.int16), spacing, affine())


def test_a_spacing_that_contradicts_the_matrix_is_refused():
    with pytest.raises(InputError, match="contradicts"):
        CTVolume.from_array(np.zeros((2, 2, 2), dtype=np.int16), (1, 1, 2), affine((1, 1, 3)))


def sheared():
    matrix = affine()
    matrix[0, 2] = 0.3
    return matrix


def singular():
    matrix = affine()
    matrix[:3, 1] = matrix[:3, 0]
    return matrix


def perspective():
    matrix = affine()
    matrix[3, 0] = 1
    return matrix


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (sheared(), "sheared"),
        (singular(), "singular"),
        (perspective(), "affine"),
        (np.eye(3), "4 x 4"),
        (np.full((4, 4), np.nan), "finite"),
        (np.diag([0.0, 1, 1, 1]), "spacing 0"),
    ],
)
def test_matrices_that_describe_no_rectangular_grid_are_refused(matrix, reason):
    with pytest.raises(InputError, match=reason):
        CTVolume.from_array(np.zeros((2, 2, 2), dtype=np.int16), (1, 1, 1), matrix)


def test_the_number_of_dicom_files_has_to_be_that_of_the_slices():
    with pytest.raises(InputError, match="DICOM files"):
        CTVolume.from_array(np.zeros((2, 2, 2)), (1, 1, 1), affine(), dicom_files=[Path("one.dcm")])


@given(st.floats(-1000, 1000), st.floats(1, 3000))
@settings(max_examples=30)
def test_a_window_maps_its_limits_to_black_and_white_and_clips_the_rest(level, width):
    window = Window(level, width)
    grey = window.apply([window.low - 50, window.low, level, window.high, window.high + 50])
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, [0, 0, 0.5, 1, 1], atol=1e-3)


def test_applying_a_window_leaves_the_slice_as_it_was():
    hu = np.array([[-100.0, 50.0]], dtype=np.float32)
    WINDOW_PRESETS["abdomen"].apply(hu)
    assert hu.tolist() == [[-100, 50]]


@pytest.mark.parametrize(("level", "width"), [(40, 0), (40, -1), (np.nan, 400), (40, np.inf)])
def test_a_window_without_a_width_is_refused(level, width):
    with pytest.raises(InputError, match="window"):
        Window(level, width)


def test_the_usual_windows_have_their_usual_values():
    usual = {"abdomen": (40, 400), "lung": (-600, 1500), "bone": (400, 1800), "mediastinum": (50, 350)}
    assert {name: (WINDOW_PRESETS[name].level, WINDOW_PRESETS[name].width) for name in usual} == usual


def test_the_automatic_window_of_a_ct_is_near_that_of_soft_tissue_whatever_air_and_bone_surround_it():
    generator = np.random.default_rng(0)
    tissue, air, bone = generator.normal(50, 40, 4000), np.full(5000, -1000), np.full(1500, 1200)
    window = automatic_window(np.concatenate([tissue, air, bone]))
    assert -80 < window.low < 0
    assert 100 < window.high < 200


def test_the_automatic_window_of_an_image_without_soft_tissue_covers_its_values():
    window = automatic_window(np.linspace(-1000, -700, 1000))
    assert window.low == pytest.approx(-997, abs=2)
    assert window.high == pytest.approx(-703, abs=2)


def test_the_automatic_window_of_a_constant_image_can_be_applied():
    assert automatic_window(np.zeros((2, 2, 2), dtype=np.int16)).apply([0]).shape == (1,)


def test_the_automatic_window_of_nothing_is_refused():
    with pytest.raises(InputError, match="without voxels"):
        automatic_window(np.zeros((0, 2, 2)))


def test_the_volume_module_needs_numpy_only():
    code = (
        "import sys; import SAM2AssistLib.volume; "
        "print([name for name in ('SimpleITK', 'pydicom', 'torch', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
