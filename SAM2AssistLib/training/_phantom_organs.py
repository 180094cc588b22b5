"""The solid organs, the urinary bladder and the tumours of a phantom.

Coordinates as in ``_phantom_anatomy``: mm of a standard body, x left, y posterior, z superior, 0 about L3. What is
painted first keeps its place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.training._phantom_anatomy import Frame, muscle_value
from SAM2AssistLib.training._phantom_canvas import Block, Canvas, smooth_max
from SAM2AssistLib.training._phantom_texture import FloatArray
from SAM2AssistLib.training._phantom_tissue import Tissues


def _jitter(rng: np.random.Generator, point: tuple[float, float, float], sigma: float) -> NDArray[np.floating]:
    """Return the point moved at random by ``sigma`` mm, never by more than twice that."""
    return np.asarray(point) + np.clip(rng.standard_normal(3), -2.0, 2.0) * sigma


def below_diaphragm(frame: Frame, block: Block, surface: FloatArray) -> FloatArray:
    """Cut a surface 3 mm below the diaphragm."""
    return np.minimum(surface, -frame.dome[block] - 3.0)


def paint_psoas(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the iliopsoas beside the spine, growing downwards and forwards to the groin."""
    size = rng.uniform(0.8, 1.2)
    for sign, side in ((-1.0, "right"), (1.0, "left")):
        z = np.array([62.0, 30.0, -10.0, -60.0, -110.0, -150.0, -200.0])
        x = sign * np.array([27.0, 32.0, 41.0, 50.0, 62.0, 76.0, 84.0])
        y = np.array([58.0, 58.0, 52.0, 38.0, 12.0, -18.0, -34.0])
        piece = canvas.tube(np.stack([x, y, z], axis=1), size * np.array([5.0, 12.0, 18.0, 22.0, 20.0, 16.0, 13.0]))
        if piece is None:
            continue
        block, surface = piece
        surface = surface + 2.2 * canvas.wobble[block]
        # the muscle touches the back wall: only bone and vessels push it away
        surface = np.minimum(surface, -canvas.occupied[block] + 4.0)
        surface = np.where(canvas.labels[block] > 0, np.float32(-9.0), surface)
        canvas.paint(block, surface, muscle_value(canvas, tissue, block), f"iliopsoas_{side}")


def paint_kidneys(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint both kidneys: cortex, pyramids, the sinus of fat and the pelvis; sometimes a cyst or a stone."""
    for sign, side, height in ((-1.0, "right", 22.0), (1.0, "left", 36.0)):
        centre = _jitter(rng, (sign * 66.0, 46.0, height), 5.0)
        radii = (rng.uniform(24, 31), rng.uniform(24, 31), rng.uniform(46, 60))
        block = canvas.block(centre - (45, 36, 66), centre + (45, 36, 66))
        if block is None:
            continue
        kidney = canvas.ellipsoid(block, centre, radii, sign * -0.22) + 1.6 * canvas.wobble[block]
        hilum = canvas.ellipsoid(block, centre - (sign * 22.0, 8.0, 0.0), (17.0, 9.0, 20.0))
        kidney = canvas.free(block, np.minimum(kidney, -hilum), rng.uniform(3.0, 8.0))
        kidney = below_diaphragm(frame, block, kidney)
        cortex = tissue["kidney_cortex"] + 4.0 * canvas.grain[block]
        canvas.paint(block, kidney, cortex, f"kidney_{side}")
        canvas.claim(block, kidney + rng.uniform(0.5, 5.0), None)
        pyramids = np.minimum(kidney - 5.5, 3.0 * canvas.grain[block] + 2.5)
        canvas.mix(block, pyramids, tissue["kidney_medulla"])
        pelvis = canvas.ellipsoid(block, centre - (sign * 20.0, 6.0, 3.0), (9.0, 4.0, 9.0))
        canvas.mix(block, pelvis, tissue["urine"] + 5.0)
        if rng.random() < 0.3:
            _paint_cyst(canvas, rng, block, kidney, tissue["urine"])


def _paint_cyst(canvas: Canvas, rng: np.random.Generator, block: Block, organ: FloatArray, value: float) -> None:
    """Paint a round cyst of fluid inside the organ; it stays part of the organ's label."""
    inside = np.argwhere(organ > 2.0)
    if len(inside) == 0:
        return
    k, j, i = inside[rng.integers(len(inside))]
    centre = (canvas.x[block][k, j, i], canvas.y[block][k, j, i], canvas.z[block][k, j, i])
    radius = rng.uniform(4.0, 14.0)
    canvas.mix(block, np.minimum(canvas.ellipsoid(block, centre, (radius,) * 3), organ - 0.5), value)


def paint_adrenals(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the adrenal glands: an inverted Y of thin limbs above each kidney."""
    for sign, side, apex in ((-1.0, "right", (-31.0, 33.0, 86.0)), (1.0, "left", (36.0, 26.0, 92.0))):
        top = _jitter(rng, apex, 2.5)
        limbs = [top + np.array([sign * dx, 13.0, -24.0]) for dx in (-3.0, 12.0)]
        for limb in limbs:
            piece = canvas.tube(np.stack([top, limb]), np.array([3.6, 2.8]))
            if piece is not None:
                block, surface = piece
                gland = np.minimum(surface, -canvas.occupied[block] - 0.8)
                canvas.mix(block, gland, tissue["pancreas"])
                canvas.labels[block][gland > 0] = canvas.label_of(f"adrenal_gland_{side}")
        for limb in limbs:
            piece = canvas.tube(np.stack([top, limb]), np.array([4.6, 3.8]))
            if piece is not None:
                canvas.claim(*piece, None)


def paint_liver(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint gallbladder and liver: two lobes under the right dome, with portal and hepatic veins inside."""
    block = canvas.block((-150.0, -105.0, -45.0), (95.0, 95.0, 200.0))
    if block is None:
        return
    _paint_gallbladder(canvas, rng, tissue, frame)
    centre = _jitter(rng, (-68.0, -4.0, 88.0), 6.0)
    right = canvas.ellipsoid(block, centre, (rng.uniform(70, 86), rng.uniform(84, 102), rng.uniform(76, 108)), 0.2)
    left_centre = _jitter(rng, (rng.uniform(-5, 22), -48.0, 108.0), 5.0)
    left = canvas.ellipsoid(block, left_centre, (rng.uniform(50, 75), rng.uniform(26, 40), rng.uniform(34, 52)))
    liver = smooth_max(right, left, 25.0) + 3.0 * canvas.wobble[block]
    # the visceral surface is hollow towards the midline and the back
    hollow = canvas.ellipsoid(block, (12.0, 28.0, 30.0), (62.0, 55.0, 75.0))
    # behind it is the bed of the right kidney, so that the liver never closes around the kidney
    fossa = canvas.ellipsoid(block, (-58.0, 74.0, 12.0), (50.0, 50.0, 66.0))
    liver = np.minimum(liver, np.minimum(-hollow, -fossa))
    # no gap of its own: the vena cava and the gallbladder lie in its surface, the kidney keeps its fat itself
    liver = below_diaphragm(frame, block, canvas.free(block, liver, -0.5 * canvas.voxel_mm))
    liver = np.minimum(liver, frame.cavity[block] - 2.0)
    value = tissue["liver"] + 5.0 * canvas.wobble[block] + 3.5 * canvas.grain[block]
    canvas.mix(block, liver, value)
    canvas.claim(block, liver - 0.25 * canvas.voxel_mm, "liver")
    _paint_liver_vessels(canvas, rng, tissue, block, liver)
    if rng.random() < 0.45:
        _paint_lesions(canvas, rng, tissue, block, liver)


def _paint_gallbladder(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the gallbladder: a pear below the liver's right lobe (absent after cholecystectomy)."""
    if rng.random() < 0.12:
        return
    top = _jitter(rng, (-36.0, -22.0, 60.0), 5.0)
    bottom = top + np.array([rng.uniform(-22, -6), rng.uniform(-34, -16), rng.uniform(-40, -22)])
    piece = canvas.tube(np.stack([top, bottom]), np.array([rng.uniform(5, 8), rng.uniform(10, 17)]))
    if piece is None:
        return
    block, surface = piece
    surface = canvas.free(block, surface + 0.8 * canvas.wobble[block], 4.0)
    canvas.mix(block, surface + 0.5, tissue["wall"])
    canvas.claim(block, surface + 0.5, "gallbladder")
    canvas.mix(block, surface - 0.8, tissue["bile"])


def _paint_liver_vessels(
    canvas: Canvas, rng: np.random.Generator, tissue: Tissues, block: Block, liver: FloatArray
) -> None:
    """Mix branching portal and hepatic veins into the liver; they stay part of its label."""
    portal_root = np.array([-28.0, -2.0, 72.0])
    hepatic_root = np.array([-24.0, 8.0, 138.0])
    trees = ((portal_root, tissue["portal"], 9, 6.5), (hepatic_root, tissue["hepatic_vein"], 6, 5.5))
    for root, hu, count, width in trees:
        for _ in range(count):
            goal = np.array([rng.uniform(-125, 20), rng.uniform(-70, 55), rng.uniform(45, 125)])
            way = np.linspace(0.0, 1.0, 4)[:, None]
            points = root + (goal - root) * way + rng.standard_normal((4, 3)) * 5.0 * way
            tips = [points] + [np.stack([points[n], points[n] + rng.standard_normal(3) * 26.0]) for n in (1, 2, 2)]
            for number, line in enumerate(tips):
                sizes = np.linspace(width, 1.6, len(line)) if number == 0 else np.array([2.6, 1.0])
                piece = canvas.tube(line, sizes)
                if piece is not None:
                    _mix_inside(canvas, piece, block, liver, hu)


def _mix_inside(canvas: Canvas, piece: tuple[Block, FloatArray], block: Block, organ: FloatArray, value: float) -> None:
    """Mix a tube in where it runs at least 1 mm inside the organ whose surface is given on ``block``."""
    part, surface = piece
    start = [max(p.start, b.start) for p, b in zip(part, block, strict=True)]
    stop = [min(p.stop, b.stop) for p, b in zip(part, block, strict=True)]
    if any(b <= a for a, b in zip(start, stop, strict=True)):
        return
    world = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    own = tuple(slice(a - p.start, b - p.start) for a, b, p in zip(start, stop, part, strict=True))
    host = tuple(slice(a - q.start, b - q.start) for a, b, q in zip(start, stop, block, strict=True))
    canvas.mix(world, np.minimum(surface[own], organ[host] - 1.0), value)  # type: ignore[arg-type]


def _paint_lesions(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, block: Block, liver: FloatArray) -> None:
    """Paint one to three lesions inside the liver as 'tumor'."""
    inside = np.argwhere(liver > 6.0)
    for _ in range(int(rng.integers(1, 4))):
        if len(inside) == 0:
            return
        k, j, i = inside[rng.integers(len(inside))]
        centre = (canvas.x[block][k, j, i], canvas.y[block][k, j, i], canvas.z[block][k, j, i])
        radius = rng.uniform(5.0, 22.0)
        lesion = canvas.ellipsoid(block, centre, radius * rng.uniform(0.75, 1.3, 3)) + 1.8 * canvas.wobble[block]
        lesion = np.minimum(lesion, liver - 1.0)
        canvas.mix(block, lesion, tissue["liver_lesion"] + 5.0 * canvas.grain[block])
        canvas.mix(block, lesion - 0.45 * radius, tissue["liver_lesion"] - rng.uniform(-5, 20))
        canvas.labels[block][lesion > 0] = canvas.label_of("tumor")


def paint_spleen(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the spleen: a bean under the left dome, against the back wall; mottled in the arterial phase."""
    centre = _jitter(rng, (104.0, 28.0, 92.0), 4.0)
    size = rng.uniform(0.8, 1.35)
    radii = size * np.array([24.0, 42.0, 46.0])
    block = canvas.block(centre - radii - 12.0, centre + radii + 12.0)
    if block is None:
        return
    spleen = canvas.ellipsoid(block, centre, radii, 0.1) + 2.0 * canvas.wobble[block]
    dent = canvas.ellipsoid(block, centre + (-size * 30.0, -8.0, -6.0), size * np.array([18.0, 26.0, 34.0]))
    spleen = canvas.free(block, np.minimum(spleen, -dent), 2.0)
    spleen = below_diaphragm(frame, block, spleen)
    mottle = 28.0 if tissue.phase == "arterial" else 3.0
    canvas.paint(block, spleen, tissue["spleen"] + mottle * canvas.grain[block] * 0.5, "spleen")


def paint_pancreas(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the pancreas and, behind it, the splenic and portal vein."""
    path = np.array([[-30, -2, 22], [-26, -8, 42], [-4, -20, 52], [24, -12, 62], [52, 6, 76], [76, 18, 84]], float)
    path += rng.standard_normal(path.shape) * 3.0
    size = rng.uniform(0.85, 1.35)
    vein = canvas.tube(path[1:] + (2.0, 13.0, 2.0), np.array([6.5, 6.0, 4.5, 4.0, 3.5]))
    if vein is not None:
        block, surface = vein
        canvas.paint(block, canvas.free(block, surface, 1.0), tissue["portal"], "portal_and_splenic_vein")
    piece = canvas.tube(path, size * np.array([12.0, 14.0, 9.0, 10.0, 10.0, 7.0]))
    if piece is not None:
        block, surface = piece
        surface = canvas.free(block, surface + 2.4 * canvas.grain[block] - 0.4, 0.8)
        lobules = tissue["pancreas"] + 9.0 * canvas.grain[block] - 12.0 * (canvas.grain[block] < -1.0)
        canvas.paint(block, surface, lobules, "pancreas")


def paint_bladder(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the urinary bladder behind the pubis, empty to full, and the prostate or uterus behind it."""
    size = rng.uniform(0.5, 1.3)
    centre = _jitter(rng, (0.0, -22.0, -185.0 + 14.0 * size), 4.0)
    radii = np.array([46.0, 34.0, 32.0]) * size
    block = canvas.block(centre - radii - 6.0, centre + radii + 6.0)
    if block is not None:
        surface = canvas.free(block, canvas.ellipsoid(block, centre, radii) + 1.5 * canvas.wobble[block], 3.0)
        canvas.paint(block, surface, tissue["wall"], "urinary_bladder")
        canvas.mix(block, surface - 2.5, tissue["urine"])
    centre = _jitter(rng, (0.0, 24.0, -175.0), 4.0)
    block = canvas.block(centre - 36.0, centre + 36.0)
    if block is not None:
        organ = canvas.ellipsoid(block, centre, rng.uniform(16, 28, 3)) + 2.0 * canvas.wobble[block]
        canvas.paint(block, canvas.free(block, organ, 2.0), tissue["muscle"] + 12.0, "uterus_or_prostate")


def paint_masses(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint up to two soft-tissue masses as 'tumor': anywhere in the cavity, pushing nothing, filling what is free."""
    for _ in range(int(rng.choice(3, p=(0.6, 0.3, 0.1)))):
        z = rng.uniform(float(canvas.axes_mm[0][0]), float(canvas.axes_mm[0][-1]))
        centre = np.array([rng.uniform(-90, 90), rng.uniform(-55, 45), z])
        radii = rng.uniform(10.0, 34.0) * rng.uniform(0.7, 1.3, 3)
        block = canvas.block(centre - radii - 8.0, centre + radii + 8.0)
        if block is None:
            continue
        mass = canvas.ellipsoid(block, centre, radii) + 3.0 * canvas.wobble[block]
        mass = canvas.free(block, mass, 1.0)
        canvas.paint(block, mass, tissue["tumor"] + 7.0 * canvas.wobble[block] + 5.0 * canvas.grain[block], "tumor")
        canvas.mix(block, mass - rng.uniform(5.0, 15.0), tissue["tumor"] - rng.uniform(0.0, 30.0))
