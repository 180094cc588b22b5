"""Body wall, skeleton, lungs and vessels of a phantom.

Coordinates are those of a standard body in mm: x to the patient's left, y posterior, z superior; z = 0 is about the
level of L3. The standard abdominal cavity has half-axes of 135 and 92 mm. All functions paint on a Canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAM2AssistLib.training._phantom_canvas import Block, Canvas
from SAM2AssistLib.training._phantom_texture import FloatArray
from SAM2AssistLib.training._phantom_tissue import Tissues

CAVITY_X, CAVITY_Y = 135.0, 92.0
VERTEBRA_MM = 33.0


@dataclass(frozen=True, eq=False)
class Frame:
    """Fields the organs lean on: ``cavity`` is the depth inside the wall in mm, ``dome`` the height over it in mm.

    ``flesh`` is the depth inside the middle of the fat under the skin. ``dome`` is positive above the diaphragm (lung
    side), negative below; ``spine_y`` gives the centre of the vertebral bodies per slice.
    """

    cavity: FloatArray
    flesh: FloatArray
    dome: FloatArray
    spine_y: FloatArray


def everything(canvas: Canvas) -> Block:
    """Return the block of the whole grid."""
    return tuple(slice(0, axis.size) for axis in canvas.axes_mm)  # type: ignore[return-value]


def paint_body(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, fat_mm: float) -> Frame:
    """Paint skin, fat and the muscle wall, and fill the cavity with fat."""
    u = canvas.x / CAVITY_X
    v = canvas.y / CAVITY_Y
    np.square(u, out=u)
    np.square(v, out=v)
    q2 = u + v - rng.uniform(0.2, 0.45) * u * v
    np.maximum(q2, 0.0, out=q2)
    cavity = (1.0 - np.sqrt(q2)) * np.float32(110.0)
    front = np.clip(-canvas.y / CAVITY_Y, 0.0, 1.0)
    side = np.clip(u, 0.0, 1.0)
    muscle = rng.uniform(8.0, 14.0) + 4.0 * (1.0 - front) + 0.7 * canvas.wobble
    # behind, the erector spinae make the wall thick near the midline
    behind = np.clip(canvas.y / CAVITY_Y, 0.0, 1.0)
    muscle += 30.0 * behind * np.clip(1.0 - side * 2.2, 0.0, 1.0)
    fat = fat_mm * (0.75 + rng.uniform(0.0, 0.5) * front + rng.uniform(0.0, 0.6) * behind * (1.0 - side))
    fat += 0.025 * fat_mm * canvas.wobble
    whole = everything(canvas)
    skin = cavity + muscle + fat
    canvas.mix(whole, skin, 15.0)
    canvas.mix(whole, skin - 2.0, tissue["fat"] + 6.0 * canvas.grain)
    wall = np.minimum(cavity + muscle, -cavity)
    canvas.mix(whole, wall, tissue["muscle"] + 5.0 * canvas.grain + 4.0 * canvas.wobble)
    stripe = np.abs(cavity + 0.45 * muscle) - 0.5
    canvas.mix(whole, np.where(side > 0.35, -stripe, np.float32(-9.0)), -20.0)
    canvas.occupied[whole] = np.clip(-cavity, -60.0, 60.0)
    top = rng.uniform(145.0, 165.0)
    hump = 12.0 * np.clip(-canvas.x / 60.0, -1.0, 1.0)
    # flat in the middle, steep at the rim: the recess between wall and diaphragm is a thin crescent
    dome = (canvas.z - (top + hump - 16.0 * q2 - 0.22 * canvas.y - rng.uniform(45.0, 65.0) * q2**4)) * np.float32(0.75)
    spine_y = 50.0 + 7.0 * np.sin(canvas.axes_mm[0] / 70.0) + 0.55 * np.clip(-85.0 - canvas.axes_mm[0], 0.0, 75.0)
    return Frame(cavity, cavity + muscle + 0.4 * fat, dome, spine_y.astype(np.float32))


def muscle_value(canvas: Canvas, tissue: Tissues, block: Block) -> FloatArray:
    """Return the HU of skeletal muscle: textured, and marbled with fat as much as this patient's muscles are."""
    marbling = np.clip(0.7 * canvas.grain[block] + 0.7 * canvas.wobble[block], 0.0, 2.5)
    return tissue["muscle"] + 5.0 * canvas.grain[block] - tissue["marbling"] * marbling


def paint_spine(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint vertebrae with discs and posterior elements, the spinal canal, the sacrum and the erector spinae."""
    block = canvas.block((-62.0, 25.0, -1e4), (62.0, 150.0, 1e4))
    if block is None:
        return
    x, z = canvas.x[block], canvas.z[block]
    y = canvas.y[block] - frame.spine_y[block[0], None, None]
    side = np.abs(x)
    broad = np.clip((-85.0 - z) / 60.0, 0.0, 1.0)
    width = 22.0 + 26.0 * broad * np.clip(1.6 - 1.1 * broad, 0.0, 1.0)
    phase = np.mod(z + rng.uniform(0.0, VERTEBRA_MM), VERTEBRA_MM) - 0.5 * VERTEBRA_MM
    level = np.abs(phase)
    fused = z < -85.0
    gone = z + 165.0
    waist = 1.0 - 0.08 * np.cos(phase * (np.pi / VERTEBRA_MM))
    body = (1.0 - np.sqrt((x / (width * waist)) ** 2 + (y / (16.5 * waist)) ** 2)) * 18.0
    body = np.minimum(body, gone)
    disc = np.minimum(body, np.where(fused, np.float32(-9.0), level - 11.5))
    canal = 8.5 - np.hypot(x * 0.8, y - 25.0)
    # the arch around the canal, the spinous and the transverse processes
    arch = 14.5 - np.hypot(x * 0.85, y - 25.0)
    spinous = np.minimum(np.minimum(4.0 - side, y - 32.0), np.minimum(62.0 - 30.0 * broad - y, 11.0 - level))
    transverse = np.minimum(44.0 - side, 5.5 - np.hypot(y - 22.0 - 0.15 * side, phase * 0.8))
    pedicle = np.minimum(side - 4.0, 12.0 - np.hypot(y - 17.0, phase))
    pedicle = np.minimum(pedicle, 15.0 - side)
    arch = np.minimum(arch, np.where(y < 25.0, np.float32(9.0), 13.0 - level))
    arch = np.where(y < 22.0, np.minimum(arch, pedicle), arch)
    bone = np.maximum(np.maximum(np.minimum(body, 11.5 - level + 60.0 * fused), arch), np.maximum(spinous, transverse))
    bone = np.minimum(np.minimum(bone, -canal), gone)
    erector = np.minimum(np.minimum(_erector(x, y, side), frame.flesh[block] - 3.0), 0.4 * (z + 135.0))
    value = muscle_value(canvas, tissue, block)
    canvas.mix(block, erector, value)
    for name, mask in (("autochthon_right", x < 0), ("autochthon_left", x >= 0)):
        canvas.claim(block, np.where(mask, erector, np.float32(-9.0)), name)
    canvas.mix(block, np.maximum(body, arch + 1.0), tissue["fat"] + 60.0)
    canvas.paint(block, disc, tissue["disc"] + 6.0 * canvas.grain[block], None)
    inner = tissue["trabecular"] + 35.0 * canvas.grain[block]
    shell = np.clip((2.6 - bone) / 1.6, 0.0, 1.0)
    bright = inner + (tissue["cortical"] - inner) * shell
    canvas.mix(block, bone, bright)
    for name, mask in (("vertebrae", ~fused), ("sacrum", fused)):
        canvas.claim(block, np.where(mask, bone, np.float32(-9.0)), name)
    canal = np.minimum(canal, z + 140.0)
    canvas.paint(block, canal, tissue["canal"] - 12.0, None)
    canvas.paint(block, canal - 2.5, tissue["canal"], "spinal_cord")


def _erector(x: FloatArray, y: FloatArray, side: FloatArray) -> FloatArray:
    """Return the erector spinae: two bellies behind the transverse processes."""
    belly = (1.0 - np.sqrt(((side - 31.0) / 28.0) ** 2 + ((y - 46.0) / 20.0) ** 2)) * 22.0
    return np.minimum(belly, side - 3.5).astype(np.float32)


def paint_ribs(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the ribs: oblique curved tubes in the wall, cartilage in front."""
    lowest = rng.uniform(75.0, 100.0)
    block = canvas.block((-200.0, -150.0, lowest - 150.0), (200.0, 150.0, 1e4))
    if block is None:
        return
    x, y, z = canvas.x[block], canvas.y[block], canvas.z[block]
    rise = z - 0.7 * y + 63.0 + 3.0 * canvas.wobble[block]
    gap = rng.uniform(23.0, 27.0)
    along = np.mod(rise, gap) - 0.5 * gap
    across = frame.cavity[block] + 7.0
    tube = (1.0 - np.sqrt((along / 6.5) ** 2 + (across / 4.6) ** 2)) * 5.2
    tube = np.minimum(tube, rise - lowest)
    # the lowest two ribs float: they end at the side; the front of the others is cartilage
    tube = np.minimum(tube, np.where(rise < lowest + 1.6 * gap, y + 5.0, np.abs(x) - 12.0))
    tube = np.minimum(tube, np.abs(x) - 26.0)
    front = np.clip((-52.0 - y) / 8.0, 0.0, 1.0)
    hard = np.where(tube > 2.2, tissue["trabecular"] + 40.0, tissue["cortical"])
    canvas.paint(block, tube, hard + (tissue["cartilage"] - hard) * front, "ribs")
    sternum = np.minimum(np.minimum(18.0 - np.abs(x), 4.5 - np.abs(across)), np.minimum(-30.0 - y, z - 135.0))
    canvas.paint(block, sternum, tissue["trabecular"] + 60.0, "sternum")


def paint_pelvis(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint iliac wings, acetabula and pubis as hips, the femoral heads, and the gluteal muscles."""
    for sign, side in ((-1.0, "right"), (1.0, "left")):
        block = canvas.block(
            (-185.0, -110.0, -300.0) if sign < 0 else (0.0, -110.0, -300.0),
            (0.0, 150.0, -40.0) if sign < 0 else (185.0, 150.0, -40.0),
        )
        if block is None:
            continue
        x, y, z = canvas.x[block] * sign, canvas.y[block], canvas.z[block]
        crest = -48.0 - 0.004 * (y - 5.0) ** 2 + 2.0 * canvas.wobble[block]
        depth = np.clip((-50.0 - z) / 100.0, 0.0, 1.2)
        # a plate from the sacroiliac joint forwards and outwards, leaning in as it goes down
        along = np.clip((80.0 - y) / 105.0, 0.0, 1.15)
        plate_x = 44.0 + (72.0 - 26.0 * depth) * along**0.8 + np.clip(y - 80.0, 0.0, 30.0) * -1.3
        thick = 4.6 + 0.8 * canvas.wobble[block] + 5.0 * np.clip(depth - 0.7, 0.0, 1.0) + 3.0 * (along < 0.25)
        plate = np.minimum(thick - 0.75 * np.abs(x - plate_x), crest - z)
        plate = np.minimum(plate, np.minimum(80.0 - y, y + 42.0 - 30.0 * depth))
        plate = np.minimum(plate, z + 178.0)
        head = 23.0 - np.sqrt((x - 88.0) ** 2 + (y - 0.0) ** 2 + (z + 185.0) ** 2)
        ring = np.minimum(10.0 - np.abs(np.sqrt((x - 88.0) ** 2 + (y + 1.0) ** 2 + (z + 183.0) ** 2) - 33.0), 88.0 - x)
        ring = np.maximum(
            ring,
            np.minimum(
                6.0 - 0.7 * np.abs(z + 205.0 - 0.25 * (40.0 - y)),
                np.minimum(9.0 - np.abs(y + 30.0 - 0.45 * (x - 10.0)), np.minimum(75.0 - x, x - 3.0)),
            ),
        )
        ischium = canvas.capsule(block, (sign * 74.0, 18.0, -205.0), (sign * 56.0, 34.0, -245.0), 15.0, 13.0)
        hip = np.maximum(np.maximum(plate, ring), ischium)
        neck = canvas.capsule(block, (sign * 92.0, 0.0, -187.0), (sign * 130.0, 10.0, -220.0), 15.0, 20.0)
        femur = np.maximum(head, neck)
        # thick behind, thinning to nothing towards the front of the wing
        outer = x - plate_x
        belly = np.clip(8.0 + 0.75 * (y + 45.0), 0.0, 200.0) * (0.45 + 0.55 * depth) - outer
        gluteal = np.minimum(np.minimum(outer, x - 5.0), np.minimum(crest - z - 5.0, 0.7 * belly))
        gluteal = np.minimum(gluteal, frame.flesh[block] - 4.0 * (1.0 - depth))
        iliacus = np.minimum(plate_x - x, np.minimum(14.0 - plate_x + x, np.minimum(crest - z - 8.0, 60.0 - y)))
        iliacus = np.minimum(iliacus, y + 35.0)
        value = muscle_value(canvas, tissue, block)
        canvas.paint(block, gluteal, value, f"gluteus_{side}")
        canvas.paint(block, canvas.free(block, iliacus, -3.0), value, None)
        for bone, name in ((hip, f"hip_{side}"), (np.minimum(femur, -ring - 1.5), f"femur_{side}")):
            inner = tissue["trabecular"] + 35.0 * canvas.grain[block]
            shell = np.clip((3.0 - bone) / 1.5, 0.0, 1.0)
            canvas.paint(block, bone, inner + (tissue["cortical"] - inner) * shell, name)


def paint_pelvic_floor(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint the muscles below the pelvis into what is free: adductors beside, the floor in the middle."""
    depth = rng.uniform(-8.0, 8.0)
    for centre, radii in (
        ((-62.0, -12.0, -228.0), (40.0, 42.0, 52.0)),
        ((62.0, -12.0, -228.0), (40.0, 42.0, 52.0)),
        ((0.0, 30.0, -238.0), (30.0, 34.0, 42.0 + depth)),
        ((-118.0, -25.0, -238.0), (38.0, 34.0, 55.0)),
        ((118.0, -25.0, -238.0), (38.0, 34.0, 55.0)),
    ):
        low, high = np.subtract(centre, radii), np.add(centre, radii)
        block = canvas.block(low, high)
        if block is None:
            continue
        muscle = canvas.ellipsoid(block, centre, radii) + 3.0 * canvas.wobble[block]
        muscle = np.minimum(muscle, frame.flesh[block] - 6.0)
        # muscles touch each other and the wall: only what has a name is spared
        muscle = np.where(canvas.labels[block] > 0, np.float32(-9.0), muscle)
        canvas.paint(block, muscle, muscle_value(canvas, tissue, block), None)


def paint_chest(canvas: Canvas, rng: np.random.Generator, tissue: Tissues, frame: Frame) -> None:
    """Paint heart and lungs with their vessels above the diaphragm."""
    block = canvas.block((-150.0, -110.0, 50.0), (150.0, 110.0, 1e4))
    if block is None:
        return
    heart_at = (rng.uniform(15.0, 35.0), rng.uniform(-45.0, -32.0), rng.uniform(190.0, 210.0))
    heart = canvas.ellipsoid(block, heart_at, (rng.uniform(50, 62), 42.0, 48.0), 0.15) + 1.5 * canvas.wobble[block]
    heart = np.minimum(np.minimum(heart, frame.dome[block] + 2.0), frame.cavity[block] - 6.0)
    x, y = canvas.x[block], canvas.y[block]
    middle = np.minimum(18.0 + 0.12 * np.abs(y) - np.abs(x - 3.0), 62.0 - y)
    vessel_line = 34.0 - np.hypot(x, y - 38.0)
    mediastinum = np.maximum(np.maximum(middle, heart + 4.0), vessel_line)
    lung = np.minimum(np.minimum(frame.dome[block] - 2.0, frame.cavity[block] - 2.0), -mediastinum - 1.0)
    lung = np.minimum(lung, -canvas.occupied[block] - 2.0)
    air = tissue["lung"] + 25.0 * canvas.grain[block] + 0.35 * (y + 40.0)
    air = air + _lung_vessels(canvas, rng, block)
    canvas.mix(block, lung, air)
    for name, mask in (("lung_right", x < 0), ("lung_left", x >= 0)):
        canvas.claim(block, np.where(mask, lung, np.float32(-60.0)), name)
    blood = tissue["heart"] + 6.0 * canvas.wobble[block]
    canvas.paint(block, heart, tissue["muscle"] + (30.0 if tissue.phase != "native" else 0.0), "heart")
    septum = np.abs(0.8 * (x - heart_at[0]) + 0.6 * (y - heart_at[1]) + 4.0 * canvas.wobble[block]) - 4.0
    canvas.mix(block, np.minimum(heart - 8.0, septum), blood)


def _lung_vessels(canvas: Canvas, rng: np.random.Generator, block: Block) -> FloatArray:
    """Return the added HU of the vessels of the lungs: thin cones running from the hila to the bases."""
    added = np.zeros([s.stop - s.start for s in block], np.float32)
    for _ in range(44):
        sign = rng.choice((-1.0, 1.0))
        start = np.array([sign * rng.uniform(28, 60), rng.uniform(-20, 40), rng.uniform(150, 230)])
        end = start + np.array([sign * rng.uniform(5, 45), rng.uniform(-45, 45), rng.uniform(-70, 10)])
        part = canvas.block(np.minimum(start, end) - 3.0, np.maximum(start, end) + 3.0)
        if part is None:
            continue
        local = tuple(
            slice(max(p.start, s.start) - s.start, min(p.stop, s.stop) - s.start)
            for p, s in zip(part, block, strict=True)
        )
        if any(s.stop <= s.start for s in local):
            continue
        world = tuple(slice(a.start + s.start, a.stop + s.start) for a, s in zip(local, block, strict=True))
        tube = canvas.capsule(world, start, end, rng.uniform(1.5, 3.5), 0.8)  # type: ignore[arg-type]
        np.maximum(added[local], 850.0 * np.clip(tube / canvas.voxel_mm + 0.5, 0.0, 1.0), out=added[local])
    return added
