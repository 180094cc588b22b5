"""Smooth random fields, the scanner's point spread and its noise, for the procedural phantoms.

Everything works on arrays in (k, j, i) order and in float32; lengths are millimetres unless a name says voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.floating]  # float32 wherever it is as large as the volume


def _spline_weights(positions_mm: FloatArray, knot_mm: float) -> FloatArray:
    """Return the (n, m) matrix that takes m cubic B-spline coefficients, ``knot_mm`` apart, to n positions."""
    start = float(positions_mm.min())
    count = int(np.ceil((float(positions_mm.max()) - start) / knot_mm)) + 4
    offset = (positions_mm - start)[:, None] / knot_mm + 1.0 - np.arange(count)[None, :]
    distance = np.abs(offset)
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
    return np.where(distance < 1.0, near, far).astype(np.float32)


def smooth_field(
    rng: np.random.Generator, axes_mm: Sequence[FloatArray], knot_mm: float, limit: float | None = None
) -> FloatArray:
    """Return a random field of cubic B-splines, of mean 0 and standard deviation about 1.

    Parameters
    ----------
    rng
        Where the randomness comes from.
    axes_mm
        The positions of the grid in mm along z, y and x.
    knot_mm
        The distance of the spline's knots in mm: half the shortest wavelength the field can have.
    limit
        When given, the coefficients are clipped to +-limit, and so is the field (splines stay in their hull).
    """
    weights = [_spline_weights(axis, knot_mm) for axis in axes_mm]
    coefficients = rng.standard_normal([w.shape[1] for w in weights]).astype(np.float32) * 3.0
    if limit is not None:
        coefficients = np.clip(coefficients, -limit, limit)
    along_x = coefficients @ weights[2].T
    along_y = np.einsum("zyx,jy->zjx", along_x, weights[1], optimize=True)
    flat = along_y.reshape(along_y.shape[0], -1)
    return (weights[0] @ flat).reshape([w.shape[0] for w in weights])


@dataclass(frozen=True)
class Scanner:
    """How one phantom was scanned.

    Attributes
    ----------
    psf_sigma_mm
        In-plane blur of the reconstruction kernel (soft kernels blur more).
    slice_sigma_mm
        Blur along z from the slice thickness.
    noise_hu
        Standard deviation of the noise in the middle of the body, in HU.
    noise_sigma_mm
        Grain of the noise in the plane.
    sharpness
        0 for a soft kernel (low-pass noise) to 1 for a sharp one (band-pass noise).
    streak_hu
        Standard deviation of the horizontal, streak-like noise in dense slices, in HU; 0 for none.
    """

    psf_sigma_mm: float
    slice_sigma_mm: float
    noise_hu: float
    noise_sigma_mm: float
    sharpness: float
    streak_hu: float


def draw_scanner(rng: np.random.Generator, slice_mm: float) -> Scanner:
    """Draw a scanner setting: low-dose to smooth, soft to sharp."""
    sharpness = float(rng.beta(1.2, 2.0))
    return Scanner(
        psf_sigma_mm=float(1.3 - 0.7 * sharpness + rng.uniform(-0.1, 0.1)),
        slice_sigma_mm=float(slice_mm * rng.uniform(0.25, 0.45)),
        noise_hu=float(np.exp(rng.uniform(np.log(4.0), np.log(28.0))) * (0.8 + 0.6 * sharpness)),
        noise_sigma_mm=float(rng.uniform(0.8, 2.0) * (1.2 - 0.6 * sharpness)),
        sharpness=sharpness,
        streak_hu=float(rng.uniform(3.0, 12.0)) if rng.random() < 0.25 else 0.0,
    )


def blur_like_scanner(hu: FloatArray, scanner: Scanner, spacing_ijk: tuple[float, float, float]) -> FloatArray:
    """Blur by the in-plane point spread and the slice thickness: this makes the partial volume."""
    sigma = (
        scanner.slice_sigma_mm / spacing_ijk[2],
        scanner.psf_sigma_mm / spacing_ijk[1],
        scanner.psf_sigma_mm / spacing_ijk[0],
    )
    return ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3.0)


def correlated_noise(
    rng: np.random.Generator, shape_kji: Sequence[int], scanner: Scanner, spacing_ijk: tuple[float, float, float]
) -> FloatArray:
    """Return noise of standard deviation 1 with the grain of the scanner's kernel."""
    white = rng.standard_normal(tuple(shape_kji), dtype=np.float32)
    sigma = (0.3, scanner.noise_sigma_mm / spacing_ijk[1], scanner.noise_sigma_mm / spacing_ijk[0])
    noise = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3.0)
    if scanner.sharpness > 0.3:
        wide = (0.0, 2.0 * sigma[1], 2.0 * sigma[2])
        noise -= scanner.sharpness * ndimage.gaussian_filter(noise, wide, mode="wrap", truncate=2.5)
    return noise / max(float(noise.std()), 1e-6)


def streaks(rng: np.random.Generator, shape_kji: Sequence[int], dense_kj: FloatArray) -> FloatArray:
    """Return streaks along x, strong in the rows where much bone or width lies (photon starvation).

    ``dense_kj`` is the attenuation of every row, shape (k, j); it is scaled to its largest value.
    """
    rows = rng.standard_normal(tuple(shape_kji), dtype=np.float32)
    rows = ndimage.uniform_filter1d(rows, max(3, shape_kji[2] // 6), axis=2, mode="wrap")
    rows /= max(float(rows.std()), 1e-6)
    weight = np.clip(dense_kj / max(float(dense_kj.max()), 1e-6), 0.0, 1.0) ** 3
    return rows * weight[:, :, None].astype(np.float32)
