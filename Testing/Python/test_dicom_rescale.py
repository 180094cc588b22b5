"""Stored values of DICOM slices become Hounsfield units by the slope and intercept of each (PS3.3, C.11.1)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from ct_files import affine, changed, ct_values, write_dicom_series

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.volume import CTVolume

SHAPE = (5, 16, 20)
EVERY_2_MM = affine((0.8, 0.7, 2.0), origin_lps=(-10, 20, 100))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "scan"


def test_slope_and_intercept_may_differ_from_slice_to_slice(folder):
    values = np.full(SHAPE, 100, dtype=np.int16)
    files = write_dicom_series(folder, values, EVERY_2_MM)
    changed(files[2], RescaleSlope="0.5", RescaleIntercept="-100.25")
    stored = 100 + 1024
    assert np.unique(CTVolume.read(folder).array[2]).tolist() == [round(stored * 0.5 - 100.25)]
    assert np.unique(CTVolume.read(folder).array[1]).tolist() == [100]


def test_a_fractional_slope_is_rounded_to_the_nearest_unit(folder):
    values = ct_values(SHAPE)
    write_dicom_series(folder, values, EVERY_2_MM, slope=0.25)
    np.testing.assert_array_equal(CTVolume.read(folder).array, values)


def test_a_fractional_slope_makes_no_wide_copy_of_the_volume(folder):
    values = np.resize(ct_values(SHAPE), (24, 128, 128))
    write_dicom_series(folder, values, EVERY_2_MM, slope=0.25)
    tracemalloc.start()
    volume = CTVolume.read(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(volume.array, values)
    assert peak < 3 * values.nbytes  # in float64 it would be 4 times, and the result besides


@pytest.mark.parametrize("slope", ["1e12", "-3e9"])
def test_a_slope_that_gives_impossible_values_is_refused(folder, slope):
    files = write_dicom_series(folder, ct_values(SHAPE), EVERY_2_MM)
    changed(files[1], RescaleSlope=slope)
    with pytest.raises(InputError, match="RescaleSlope"):
        CTVolume.read(folder)
