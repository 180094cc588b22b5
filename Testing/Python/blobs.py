"""Synthetic volumes with two bright blobs, and the gestures of a user on them, for the tests of the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAM2AssistLib.volume import CTVolume

BLOB_HU, BODY_HU, AIR_HU = 160, 20, -1000


@dataclass(frozen=True)
class TwoBlobs:
    """A volume, and where the centres of its blobs lie; (2, 3) voxel indices (k, j, i)."""

    volume: CTVolume
    centres_kji: np.ndarray


def two_blobs(
    shape_kji: tuple[int, int, int] = (8, 64, 64),
    spacing_ijk: tuple[float, float, float] = (1.5, 1.5, 4.0),
    directions: np.ndarray | None = None,
    apart: int = 2,
) -> TwoBlobs:
    """Make two balls in a box of soft tissue with air around, apart along i (``apart`` 2) or j (1)."""
    shape, spacing_kji = np.array(shape_kji), np.array(spacing_ijk[::-1])
    shares = np.full((2, 3), 0.5)
    shares[:, apart] = 0.3, 0.7
    centres = np.round(shares * (shape - 1))
    index = np.indices(shape_kji).transpose(1, 2, 3, 0)
    hu = np.full(shape_kji, BODY_HU, np.int16)
    radius_mm = 0.16 * (shape * spacing_kji)[apart]
    for centre in centres:
        hu[np.linalg.norm((index - centre) * spacing_kji, axis=-1) <= radius_mm] = BLOB_HU
    hu[:, [0, -1]] = hu[:, :, [0, -1]] = AIR_HU
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if directions is None else directions) * np.array(spacing_ijk)
    matrix[:3, 3] = -31.0, 12.5, 7.0
    return TwoBlobs(CTVolume.from_array(hu, spacing_ijk, matrix), centres)


def ras(session, index_kji) -> np.ndarray:
    """Where a voxel lies, in RAS mm."""
    return session.volume.ras_from_index_ijk(np.asarray(index_kji, float)[::-1])


def click(session, segment, index_kji, *, positive: bool = True) -> np.ndarray:
    """Click a voxel (k, j, i), by its place in the patient."""
    return session.add_point(segment, ras(session, index_kji), positive=positive)


def draw_box(session, segment, low_kji, high_kji) -> np.ndarray:
    """Draw a box between two voxels (k, j, i), by their places in the patient."""
    corners = np.stack([ras(session, low_kji), ras(session, high_kji)])
    return session.add_box(segment, corners.min(axis=0), corners.max(axis=0))


def run(session, segments=None) -> list:
    """Propagate to the end; returns the steps."""
    return list(session.propagate(segments))


def extent(mask: np.ndarray) -> list[int]:
    """Slices k that a mask (k, j, i) is on."""
    return np.flatnonzero(mask.any(axis=(1, 2))).tolist()
