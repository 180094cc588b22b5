"""The vessels of a phantom that have their own course: aorta, vena cava, iliac, renal and mesenteric vessels.

Coordinates as in ``_phantom_anatomy``: mm of a standard body, x left, y posterior, z superior, 0 about L3. What is
painted first keeps its place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.training._phantom_anatomy import Frame
from SAM2AssistLib.training._phantom_canvas import Canvas
from SAM2AssistLib.training._phantom_tissue import Tissues

Points = NDArray[np.floating]


def paint_great_vessels(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the aorta and the inferior vena cava, wandering along z, and their iliac branches."""
    split = rng.uniform(-52.0, -35.0)
    artery, radii = _aorta(canvas, rng, frame, split)
    _paint_trunk(canvas, "aorta", artery, radii, tissue["aorta"])
    if rng.random() < 0.4:
        _paint_plaques(canvas, rng, artery, radii)
    vein, vein_radii = _vena_cava(canvas, rng, frame, split)
    _paint_trunk(canvas, "inferior_vena_cava", vein, vein_radii, tissue["vein"])
    for sign in (-1.0, 1.0):
        _paint_branch(canvas, "iliac_artery", _iliac(artery[0], sign, 3.0, 0.0), radii[0], tissue["aorta"])
        _paint_branch(canvas, "iliac_vein", _iliac(vein[0], sign, -6.0, 6.0), vein_radii[0], tissue["vein"])


def _trunk(canvas: Canvas, rng: np.random.Generator, frame: Frame, start: tuple[float, float, float]) -> Points:
    """Return 14 points upwards from ``start`` (x, distance before the spine's centre, z), wandering sideways."""
    heights = np.linspace(start[2], 320.0, 14)
    x = start[0] + rng.uniform(-3, 3) + 1.5 * np.cumsum(rng.standard_normal(14))
    y = np.interp(heights, canvas.axes_mm[0], frame.spine_y) + start[1] + rng.uniform(-1, 1)
    return np.stack([x, y, heights], axis=1)


def _sizes(rng: np.random.Generator, radius: float) -> Points:
    """Return the radii of a trunk: a little wider upwards, and never quite even."""
    return radius * (1.0 + 0.1 * np.linspace(0, 1, 14) + 0.03 * rng.standard_normal(14))


def _aorta(canvas: Canvas, rng: np.random.Generator, frame: Frame, split: float) -> tuple[Points, Points]:
    """Return points and radii of the aorta: before the lumbar spine, beside the thoracic spine."""
    points = _trunk(canvas, rng, frame, (10.0, -27.0, split))
    climb = np.clip((points[:, 2] - 80.0) / 80.0, 0.0, 1.0)
    points[:, 0] += 8.0 * climb
    points[:, 1] += 12.0 * climb
    return points, _sizes(rng, rng.uniform(7.5, 12.5))


def _vena_cava(canvas: Canvas, rng: np.random.Generator, frame: Frame, split: float) -> tuple[Points, Points]:
    """Return points and radii of the vena cava: it leaves the spine behind the liver and ends in the heart."""
    points = _trunk(canvas, rng, frame, (-20.0, -24.0, split))
    points[:, 1] -= np.clip(points[:, 2] - 60.0, 0.0, 130.0) * 0.2
    points[:, 2] = np.minimum(points[:, 2], 195.0)
    return points, _sizes(rng, rng.uniform(8.0, 13.0))


def _iliac(origin: Points, sign: float, aside: float, behind: float) -> Points:
    """Return six points from the bifurcation, back along the pelvic rim and forwards to the groin."""
    way = np.linspace(0.0, 1.0, 6)
    x = origin[0] + (sign * 78.0 - origin[0]) * way**1.1
    y = origin[1] + 30.0 * np.sin(np.pi * way) + (-48.0 - origin[1]) * way**2 + behind
    x[1:] += sign * aside
    return np.stack([x, y, origin[2] + (-190.0 - origin[2]) * way], axis=1)


def _paint_trunk(canvas: Canvas, name: str, points: Points, radii: Points, value: float) -> None:
    """Paint a trunk close to what is there already."""
    piece = canvas.tube(points, radii)
    if piece is not None:
        block, surface = piece
        canvas.paint(block, canvas.free(block, surface + 0.3 * canvas.wobble[block], 1.0), value, name)


def _paint_plaques(canvas: Canvas, rng: np.random.Generator, points: Points, radii: Points) -> None:
    """Put calcium on the wall of the artery that runs there."""
    piece = canvas.tube(points, radii)
    if piece is not None:
        block, surface = piece
        plaque = np.minimum(1.6 - np.abs(surface - 0.8), (canvas.grain[block] - 1.3) * 4.0)
        canvas.mix(block, plaque, rng.uniform(350, 800))


def _paint_branch(canvas: Canvas, name: str, points: Points, radius: float, value: float) -> None:
    """Paint an iliac vessel, half as wide at its end as the trunk it comes from."""
    piece = canvas.tube(points, radius * np.linspace(0.72, 0.5, len(points)))
    if piece is not None:
        block, surface = piece
        canvas.paint(block, canvas.free(block, surface, 1.5), value, name)


def paint_small_vessels(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint unlabelled vessels: renal veins, and the mesenteric tree fanning out into the fat."""
    for sign, height in ((-1.0, 22.0), (1.0, 36.0)):
        x = (-18.0, 8.0, 30.0, 52.0) if sign > 0 else (-22.0, -34.0, -44.0, -54.0)
        renal = np.stack([x, (24.0, 16.0, 24.0, 38.0), [height] * 4], axis=1)
        _thread(canvas, renal, np.full(4, 4.5), tissue["vein"])
    for side, radius, value in ((8.0, 3.6, tissue["aorta"]), (-6.0, 5.0, tissue["portal"])):
        sway = side + 2.0 * rng.standard_normal(6)
        stem = np.stack([sway, np.linspace(7.0, -23.0, 6), np.linspace(50.0, -70.0, 6)], axis=1)
        _thread(canvas, stem, np.full(6, radius), value)
    way = np.linspace(0.0, 1.0, 4)[:, None]
    for _ in range(34):
        root = np.array([rng.uniform(-8, 10), rng.uniform(-22, 5), rng.uniform(-70, 40)])
        goal = np.array([rng.uniform(-95, 95), rng.uniform(-80, 10), root[2] + rng.uniform(-80, 15)])
        line = root + (goal - root) * way + 5.0 * rng.standard_normal((4, 3)) * way
        _thread(canvas, line, np.linspace(2.4, 0.9, 4), float(rng.choice((tissue["aorta"], tissue["portal"]))))


def _thread(canvas: Canvas, points: Points, radii: Points, value: float) -> None:
    """Paint one thin tube into what is still free, without a name."""
    piece = canvas.tube(points, radii)
    if piece is not None:
        block, surface = piece
        canvas.paint(block, canvas.free(block, surface, 0.3), value, None)
