"""The hollow organs of a phantom: esophagus, stomach, duodenum, colon and small bowel.

Coordinates as in ``_phantom_anatomy``: mm of a standard body, x left, y posterior, z superior, 0 about L3. What is
painted first keeps its place.
"""

from __future__ import annotations

import numpy as np

from SAM2AssistLib.training._phantom_anatomy import Frame
from SAM2AssistLib.training._phantom_canvas import Block, Canvas
from SAM2AssistLib.training._phantom_organs import below_diaphragm
from SAM2AssistLib.training._phantom_texture import FloatArray
from SAM2AssistLib.training._phantom_tissue import Tissues


def paint_esophagus(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the esophagus from behind the heart to the stomach."""
    path = np.array([[6, 24, 330], [4, 26, 230], [12, 24, 180], [24, 16, 150], [44, 12, 132]], dtype=float)
    piece = canvas.tube(path + 2.0 * rng.standard_normal(path.shape), np.full(5, rng.uniform(6.0, 9.0)))
    if piece is not None:
        block, surface = piece
        surface = canvas.free(block, surface + 0.8 * canvas.grain[block], 1.0)
        canvas.paint(block, surface, tissue["wall"], "esophagus")
        if rng.random() < 0.4:
            canvas.mix(block, surface - 4.0, tissue["gas"])


def paint_stomach(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the stomach: fundus under the left dome, body forwards and down, antrum to the right."""
    path = np.array(
        [[62, 22, 132], [68, -5, 112], [62, -36, 84], [44, -52, 58], [14, -56, 44], [-14, -46, 48]], dtype=float
    )
    path += rng.standard_normal(path.shape) * 4.0
    fill = rng.uniform(0.6, 1.35)
    piece = canvas.tube(path, fill * np.array([30.0, 30.0, 27.0, 23.0, 18.0, 11.0]))
    if piece is None:
        return
    block, surface = piece
    surface = canvas.free(block, surface + 2.0 * canvas.wobble[block], 2.5)
    surface = below_diaphragm(frame, block, surface)
    _paint_hollow(canvas, tissue, (block, surface), "stomach", (rng.uniform(3.0, 5.0), -48.0 + rng.uniform(-5, 30)))


def paint_duodenum(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the duodenum around the head of the pancreas and across to the left."""
    loop = np.array([[-34, -34, 52], [-50, -12, 44], [-54, 6, 14], [-40, 8, -12], [0, 10, -16], [26, 0, 0]], float)
    piece = canvas.tube(loop + rng.standard_normal(loop.shape) * 3.0, np.full(6, rng.uniform(9.0, 13.0)))
    if piece is not None:
        block, surface = piece
        surface = canvas.free(block, surface + 1.5 * canvas.grain[block], 1.2)
        _paint_hollow(canvas, tissue, (block, surface), "duodenum", (3.0, -20.0 + rng.uniform(-20, 10)))


def _paint_hollow(
    canvas: Canvas, tissue: Tissues, piece: tuple[Block, FloatArray], name: str, wall_level: tuple[float, float]
) -> None:
    """Paint a hollow organ: its wall (in mm), fluid with folds, and gas in front of the level (y in mm)."""
    block, surface = piece
    wall, level = wall_level
    canvas.paint(block, surface, tissue["wall"] + 4.0 * canvas.grain[block], name)
    lumen = surface - wall + 1.2 * canvas.grain[block]
    canvas.mix(block, lumen, tissue["lumen"] + 5.0 * canvas.wobble[block])
    canvas.mix(block, np.minimum(lumen, level - canvas.y[block]), tissue["gas"])


def paint_colon(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the colon from caecum to rectum with haustra, filled with stool and gas."""
    path = np.array(
        [
            [-92, 8, -95], [-102, 18, -50], [-104, 26, -5], [-98, 8, 26], [-72, -46, 18], [-30, -70, -4],
            [20, -72, -6], [66, -60, 22], [100, 2, 62], [112, 30, 30], [110, 32, -20], [104, 22, -75],
            [78, 8, -115], [34, 12, -125], [6, 40, -128], [2, 66, -155], [0, 64, -200], [0, 62, -240],
        ],
        dtype=float,
    )  # fmt: skip
    path[:14] += rng.standard_normal((14, 3)) * (6.0, 6.0, 10.0)
    radii = np.interp(np.arange(18), [0, 3, 9, 13, 17], np.array([24, 21, 15, 13, 16]) * rng.uniform(0.75, 1.2))
    piece = canvas.tube(path, radii * rng.uniform(0.8, 1.2, 18))
    if piece is None:
        return
    block, surface = piece
    surface = canvas.free(block, surface + 1.4 * canvas.grain[block] + 1.6 * canvas.wobble[block], 2.0)
    canvas.paint(block, surface, tissue["wall"], "colon")
    lumen = surface - rng.uniform(2.0, 3.2)
    stool = tissue["stool"] + 30.0 * canvas.grain[block] + 14.0 * canvas.wobble[block]
    bubbles = canvas.grain[block] + 0.8 * canvas.wobble[block] > 1.5
    canvas.mix(block, lumen, np.where(bubbles, np.float32(-500.0), stool))
    gas = np.minimum(lumen, (canvas.wobble[block] - rng.uniform(-0.2, 1.6)) * 14.0 - 0.15 * canvas.y[block])
    canvas.mix(block, gas, tissue["gas"])


def paint_small_bowel(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint loops of small bowel wherever the middle of the abdomen is still free."""
    enhanced = tissue["wall"] + (15.0 if tissue.phase != "native" else 0.0)
    width = rng.uniform(9.0, 13.0)
    for number in range(44):
        # strata in x and z spread the loops; where they start in depth is free
        point = np.array([-85.0 + 170.0 * ((number * 0.618) % 1.0), rng.uniform(-70, 15), -168.0 + 4.4 * number])
        heading = rng.standard_normal(3)
        points = [point]
        for _ in range(4):
            heading = 0.5 * heading + rng.standard_normal(3) * (1.0, 0.8, 0.6)
            heading /= np.linalg.norm(heading)
            point = np.clip(point + 22.0 * heading, (-100, -78, -175), (100, 30, 35))
            points.append(point)
        piece = canvas.tube(np.array(points), np.full(5, width * rng.uniform(0.75, 1.2)))
        if piece is None:
            continue
        block, surface = piece
        surface = canvas.free(block, surface + 1.5 * canvas.grain[block], 1.2)
        surface = np.minimum(surface, frame.cavity[block] - 3.0)
        canvas.paint(block, surface, enhanced, "small_bowel")
        if rng.random() < 0.75:
            lumen = surface - rng.uniform(2.0, 4.0)
            canvas.mix(block, lumen, tissue["lumen"] + 6.0 * canvas.wobble[block])
            if rng.random() < 0.3:
                canvas.mix(block, np.minimum(lumen, -40.0 + rng.uniform(-15, 5) - canvas.y[block]), tissue["gas"])
