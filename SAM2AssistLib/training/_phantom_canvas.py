"""The canvas on which the organs of a phantom are painted as implicit surfaces.

An organ is a field ``f``: about the distance to its surface in mm, positive inside. Painting mixes its HU in by the
fraction of the voxel it fills and keeps a running "occupied" field, so that an organ painted later yields to the
earlier ones with a gap (fat) in between, whatever its own surface says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.training._phantom_texture import FloatArray, smooth_field

Block = tuple[slice, slice, slice]
Vector = Sequence[float] | NDArray[np.floating]
FAR_MM = 60.0  # occupied fields are cut here: no gap asked for is larger


@dataclass(eq=False)
class Canvas:
    """Grids of one phantom: warped body coordinates in mm (x left, y posterior, z superior), HU, labels, occupancy."""

    axes_mm: tuple[FloatArray, FloatArray, FloatArray]  # z, y, x before the warp
    x: FloatArray
    y: FloatArray
    z: FloatArray
    wobble: FloatArray  # (k, j, i) surface noise, standard deviation about 1
    grain: FloatArray  # (k, j, i) finer noise for heterogeneous tissue
    reach_mm: float  # no voxel is warped further than this
    voxel_mm: float
    hu: FloatArray
    labels: NDArray[np.uint8]
    occupied: FloatArray
    names: dict[str, int] = field(default_factory=dict)

    def label_of(self, name: str) -> int:
        """Return the label of a name; a new name gets the next number."""
        return self.names.setdefault(name, len(self.names) + 1)

    def block(self, low_xyz: Vector, high_xyz: Vector, margin: float = 4.0) -> Block | None:
        """Return the part of the grid that a box in body coordinates can reach; None when it lies outside."""
        slices = []
        extra = self.reach_mm + margin
        for axis, low, high in zip(self.axes_mm, low_xyz[::-1], high_xyz[::-1], strict=True):
            start = int(np.searchsorted(axis, low - extra))
            stop = int(np.searchsorted(axis, high + extra))
            if stop <= start:
                return None
            slices.append(slice(start, stop))
        return slices[0], slices[1], slices[2]

    def free(self, block: Block, surface: FloatArray, gap_mm: float) -> FloatArray:
        """Return the surface pushed back so that ``gap_mm`` stays free to everything painted so far."""
        return np.minimum(surface, -self.occupied[block] - gap_mm)

    def mix(self, block: Block, surface: FloatArray, value: FloatArray | float) -> None:
        """Mix a value in HU into the block by the fraction of each voxel inside the surface."""
        part = np.clip(surface / self.voxel_mm + 0.5, 0.0, 1.0)
        hu = self.hu[block]
        hu += part * (value - hu)

    def claim(self, block: Block, surface: FloatArray, name: str | None) -> None:
        """Label the inside of the surface and mark it as occupied."""
        if name is not None:
            self.labels[block][surface > 0] = self.label_of(name)
        np.maximum(self.occupied[block], surface, out=self.occupied[block])

    def paint(self, block: Block, surface: FloatArray, value: FloatArray | float, name: str | None) -> None:
        """Mix and claim at once."""
        self.mix(block, surface, value)
        self.claim(block, surface, name)

    # --- surfaces -----------------------------------------------------------------------------------------------

    def ellipsoid(self, block: Block, centre: Vector, radii: Vector, tilt: float = 0.0) -> FloatArray:
        """Return the field of an ellipsoid; ``tilt`` leans its long axis: mm of x per mm of z."""
        x, y, z = self.x[block], self.y[block], self.z[block]
        dz = z - centre[2]
        u = (x - centre[0] - tilt * dz) / radii[0]
        v = (y - centre[1]) / radii[1]
        w = dz / radii[2]
        q = np.sqrt(u * u + v * v + w * w)
        # (1 - q) times the local radius: exact on the axes of a sphere, good enough near the surface otherwise
        return (1.0 - q) * np.float32((radii[0] * radii[1] * radii[2]) ** (1.0 / 3.0))

    def capsule(self, block: Block, start: Vector, end: Vector, radius_start: float, radius_end: float) -> FloatArray:
        """Return the field of a round-ended cone from start to end (x, y, z in mm)."""
        a = np.asarray(start, np.float32)
        d = np.asarray(end, np.float32) - a
        px, py, pz = self.x[block] - a[0], self.y[block] - a[1], self.z[block] - a[2]
        along = np.clip((px * d[0] + py * d[1] + pz * d[2]) / max(float(d @ d), 1e-6), 0.0, 1.0)
        px, py, pz = px - along * d[0], py - along * d[1], pz - along * d[2]
        return radius_start + along * (radius_end - radius_start) - np.sqrt(px * px + py * py + pz * pz)

    def tube(self, points: NDArray[np.floating], radii: NDArray[np.floating]) -> tuple[Block, FloatArray] | None:
        """Return the block and the field of a tube through ``points`` (n, 3) xyz with a radius at each point."""
        widest = float(radii.max())
        block = self.block(points.min(axis=0) - widest, points.max(axis=0) + widest)
        if block is None:
            return None
        surface = np.full([s.stop - s.start for s in block], -FAR_MM, np.float32)
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            part = self.block(np.minimum(a, b) - widest, np.maximum(a, b) + widest)
            if part is None:
                continue
            local = tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, block, strict=True))
            np.maximum(surface[local], self.capsule(part, a, b, ra, rb), out=surface[local])
        return block, surface


def smooth_max(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    """Return the union of two fields with a rounded seam ``width`` mm wide (polynomial smooth maximum)."""
    h = np.clip(width - np.abs(a - b), 0.0, None)
    return np.maximum(a, b) + h * h * np.float32(0.25 / width)


def make_canvas(
    rng: np.random.Generator,
    axes_mm: tuple[FloatArray, FloatArray, FloatArray],
    scale_xyz: Sequence[float],
    warp_mm: float,
) -> Canvas:
    """Make an empty canvas (air) with its random warp.

    Parameters
    ----------
    axes_mm
        Positions of the grid along z, y and x in mm of the patient, body midline at 0.
    scale_xyz
        Size of this patient against the standard body; the canvas' coordinates are divided by it.
    warp_mm
        Standard deviation of the warp in mm.
    """
    z, y, x = axes_mm
    axes = (
        (z / scale_xyz[2]).astype(np.float32),
        (y / scale_xyz[1]).astype(np.float32),
        (x / scale_xyz[0]).astype(np.float32),
    )
    shape = [axis.size for axis in axes]
    limit = 2.2
    grids = []
    for number, axis in enumerate(axes):
        view = [1, 1, 1]
        view[number] = -1
        grids.append(axis.reshape(view) + np.float32(warp_mm) * smooth_field(rng, axes, 55.0, limit))
    voxel = float(min(np.abs(np.diff(axis)).min() if axis.size > 1 else 2.0 for axis in axes))
    return Canvas(
        axes_mm=axes,
        x=grids[2],
        y=grids[1],
        z=grids[0],
        wobble=smooth_field(rng, axes, 16.0, 3.0),
        grain=smooth_field(rng, axes, 6.0),
        reach_mm=limit * warp_mm,
        voxel_mm=max(voxel, 0.3),
        hu=np.full(shape, -1000.0, np.float32),
        labels=np.zeros(shape, np.uint8),
        occupied=np.full(shape, -FAR_MM, np.float32),
    )
