"""Procedural CT phantoms: labelled volumes of chest bases, abdomen and pelvis without a single patient.

They are made to train a small network from scratch and to have something to show where no CT may be shipped. They are
not meant to be anatomically exact, and no accuracy may be claimed from them.

The model
---------
1. A *standard body* is described by implicit surfaces in millimetres (x to the patient's left, y posterior, z
   superior, 0 about L3): a superellipse for the abdominal cavity, wrapped in muscle and subcutaneous fat; ellipsoids,
   smooth unions and differences for solid organs; tubes along polylines for vessels and bowel; periodic fields along
   the spine and along the slope of the ribs; a dome for the diaphragm.
2. Every *patient* scales that body, moves, sizes and bends each organ at random, and sees the whole through a smooth
   random displacement (cubic B-splines, knots 55 mm apart, up to about 18 mm) and through surface noise (knots 16 mm
   apart), so that no boundary stays an ellipse. The z-range is drawn around pelvis, lower abdomen, abdomen or upper
   abdomen.
3. Organs are *painted in order*; each stays clear of those before it by a gap, which is the fat between them. A voxel
   gets one label, and the HU of what it is made of by the fraction that each surface fills.
4. The *scanner* blurs in the plane by its kernel and along z by its slice thickness, and adds noise with the grain of
   that kernel (low-pass for soft ones, band-pass for sharp ones, 3 to 40 HU), sometimes streaks along x, and a table.

HU of the tissues (``_phantom_tissue``)
---------------------------------------
Water is 0 and air -1000 by the definition of the scale. The ranges of the tissues are the usual ones of body CT at
120 kVp: fat -112 to -92, muscle 42 to 70 before marbling, native liver 50 to 66 (less when fatty), spleen 44 to 55,
blood 36 to 46, kidney 28 to 38, bile and urine -2 to 20, lung -890 to -780, cancellous bone 90 to 220, cortical bone
420 to 800. One of three contrast phases is drawn: native, arterial (aorta 230 to 380, renal cortex over medulla,
mottled spleen) or portal venous (liver 92 to 125, veins over liver). The lumen of the bowel holds water-like fluid or
positive oral contrast.

Labels
------
Liver, spleen, kidneys and so on carry TotalSegmentator's style of name (``kidney_right``, ``inferior_vena_cava``). The
vessels and cysts inside an organ belong to it, its tumours do not: those are ``tumor``, as are masses in the fat.
Gaps between organs, fat, skin, the muscle wall and unnamed small vessels are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training import _phantom_anatomy as anatomy
from SAM2AssistLib.training import _phantom_bowel as bowel
from SAM2AssistLib.training import _phantom_organs as organs
from SAM2AssistLib.training import _phantom_vessels as vessels
from SAM2AssistLib.training._phantom_canvas import Canvas, make_canvas
from SAM2AssistLib.training._phantom_texture import blur_like_scanner, correlated_noise, draw_scanner, streaks
from SAM2AssistLib.training._phantom_tissue import draw_tissues
from SAM2AssistLib.volume import CTVolume

MIN_VOXELS = 50
HU_LIMITS = (-1024, 3071)

Axes = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]  # positions in mm along z, y, x


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic CT volume with the label of every voxel.

    Attributes
    ----------
    volume
        The CT volume, int16 HU, axial slices in LPS orientation.
    labels
        uint8 array (k, j, i); 0 is everything without a name.
    names
        Label per structure, for structures of at least 50 voxels.
    """

    volume: CTVolume
    labels: NDArray[np.uint8]
    names: dict[str, int]


def make_phantom(
    seed: int,
    shape_kji: tuple[int, int, int] = (64, 192, 192),
    spacing_ijk: tuple[float, float, float] = (2.0, 2.0, 4.0),
) -> Phantom:
    """Make the phantom of a seed; the same arguments give the same phantom, another seed another one.

    Parameters
    ----------
    seed
        Any integer from 0 up.
    shape_kji
        Slices, rows and columns. A field of view smaller than the body shows its middle, as a zoomed scan does.
    spacing_ijk
        Voxel size in mm along columns, rows and slices.

    Returns
    -------
    Phantom
        With identity directions: i to the patient's left, j posterior, k superior (LPS).

    Raises
    ------
    InputError
        When the seed is negative, or the shape or the spacing is not positive.
    """
    if seed < 0 or min(shape_kji) < 1 or min(spacing_ijk) <= 0:
        raise InputError(
            f"A phantom needs a seed from 0 up, a shape and a spacing above 0, but got seed {seed}, shape "
            f"{tuple(shape_kji)} and spacing {tuple(spacing_ijk)} mm."
        )
    rng = np.random.default_rng(seed)
    extent_xyz = (shape_kji[2] * spacing_ijk[0], shape_kji[1] * spacing_ijk[1], shape_kji[0] * spacing_ijk[2])
    fat_mm, scale_xyz = _draw_habitus(rng, extent_xyz[0])
    corner_xyz = _draw_corner(rng, extent_xyz)
    axes = (
        (corner_xyz[2] + spacing_ijk[2] * (np.arange(shape_kji[0]) + 0.5)).astype(np.float32),
        (corner_xyz[1] + spacing_ijk[1] * (np.arange(shape_kji[1]) + 0.5)).astype(np.float32),
        (corner_xyz[0] + spacing_ijk[0] * (np.arange(shape_kji[2]) + 0.5)).astype(np.float32),
    )
    canvas = make_canvas(rng, axes, scale_xyz, warp_mm=rng.uniform(4.0, 8.0))
    _paint_all(canvas, rng, fat_mm)
    array = _scan(canvas, rng, axes, spacing_ijk)
    labels, names = _tidy(canvas)
    ijk_to_lps = np.diag([*spacing_ijk, 1.0])
    ijk_to_lps[:3, 3] = np.add(corner_xyz, np.multiply(0.5, spacing_ijk))
    return Phantom(CTVolume.from_array(array, spacing_ijk, ijk_to_lps), labels, names)


def _draw_habitus(rng: np.random.Generator, extent_x: float) -> tuple[float, tuple[float, float, float]]:
    """Draw the thickness of the subcutaneous fat in mm and the scale of the body along x, y and z."""
    habitus = rng.uniform(0.0, 1.0)
    fat_mm = 5.0 + 30.0 * habitus**1.5 * rng.uniform(0.6, 1.1)
    wide = float(np.clip(rng.normal(0.98, 0.06) + 0.08 * habitus, 0.84, 1.15))
    deep = float(np.clip(rng.normal(0.96, 0.06) + 0.10 * habitus, 0.82, 1.15))
    # a body a little too wide is made to fit, as the field of view is chosen for the patient; more would be no body
    fit = 0.49 * extent_x / ((anatomy.CAVITY_X + 14.0 + fat_mm) * wide)
    shrink = fit if 0.7 < fit < 0.98 else 1.0
    return fat_mm, (wide * shrink, deep * shrink, float(rng.uniform(0.9, 1.1)))


def _draw_corner(rng: np.random.Generator, extent_xyz: tuple[float, float, float]) -> tuple[float, float, float]:
    """Draw where the field of view begins in mm: around the body in the plane, around a region of it in z."""
    region = float(rng.choice((-110.0, -30.0, 40.0, 100.0), p=(0.2, 0.25, 0.35, 0.2)))
    return (
        float(-0.5 * extent_xyz[0] + rng.uniform(-8.0, 8.0)),
        float(-0.5 * extent_xyz[1] + rng.uniform(0.0, 20.0)),
        float(-0.5 * extent_xyz[2] + region + rng.uniform(-25.0, 25.0)),
    )


def _paint_all(canvas: Canvas, rng: np.random.Generator, fat_mm: float) -> None:
    """Paint all tissues; what comes first keeps its place."""
    tissue = draw_tissues(rng)
    frame = anatomy.paint_body(canvas, rng, tissue, fat_mm)
    anatomy.paint_ribs(canvas, rng, tissue, frame)
    anatomy.paint_spine(canvas, rng, tissue, frame)
    anatomy.paint_pelvis(canvas, rng, tissue, frame)
    vessels.paint_great_vessels(canvas, rng, tissue, frame)
    anatomy.paint_chest(canvas, rng, tissue, frame)
    for paint in (
        organs.paint_psoas,
        organs.paint_kidneys,
        organs.paint_adrenals,
        organs.paint_liver,
        organs.paint_spleen,
        organs.paint_pancreas,
        bowel.paint_esophagus,
        bowel.paint_stomach,
        bowel.paint_duodenum,
        organs.paint_bladder,
        bowel.paint_colon,
        anatomy.paint_pelvic_floor,
        organs.paint_masses,
        bowel.paint_small_bowel,
        vessels.paint_small_vessels,
    ):
        paint(canvas, rng, tissue, frame)


def _scan(
    canvas: Canvas,
    rng: np.random.Generator,
    axes: Axes,
    spacing_ijk: tuple[float, float, float],
) -> NDArray[np.int16]:
    """Add the table, blur, add noise, and round to HU."""
    scanner = draw_scanner(rng, spacing_ijk[2])
    if rng.random() < 0.8:
        _put_on_table(canvas.hu, rng, axes)
    hu = blur_like_scanner(canvas.hu, scanner, spacing_ijk)
    noise = correlated_noise(rng, hu.shape, scanner, spacing_ijk)
    inside = np.clip(1.1 - (canvas.x / 190.0) ** 2 - (canvas.y / 140.0) ** 2, 0.25, 1.0)
    hu += scanner.noise_hu * inside * noise
    if scanner.streak_hu > 0:
        dense = np.clip(hu + 950.0, 0.0, 3000.0).mean(axis=2)
        hu += scanner.streak_hu * streaks(rng, hu.shape, dense)
    return np.rint(np.clip(hu, *HU_LIMITS)).astype(np.int16)


def _put_on_table(hu: NDArray[np.float32], rng: np.random.Generator, axes: Axes) -> None:
    """Draw the table under the patient, in place: a thin, curved shell that touches the back, with a flat foot."""
    rows = np.flatnonzero((hu > -300.0).any(axis=(0, 2)))
    if len(rows) == 0:
        return
    y, x = axes[1][:, None], axes[2][None, :]
    shell = y - (float(axes[1][rows[-1]]) + 3.0 - x**2 * rng.uniform(1.0e-4, 9.0e-4))
    half_width = rng.uniform(190.0, 230.0)
    foot = np.abs(shell - rng.uniform(28.0, 45.0)) + 0.5 * np.clip(np.abs(x) - 110.0, 0.0, None)
    pixel = max(abs(float(axes[1][-1] - axes[1][0])) / max(len(axes[1]) - 1, 1), 0.5)
    part = np.clip((1.2 - np.minimum(np.abs(shell), foot)) / pixel + 0.5, 0.0, 1.0) * (np.abs(x) < half_width)
    foam = (shell > 0) & (shell < 28.0) & (np.abs(x) < half_width)
    # the patient lies in front of the shell: only air gives way
    table = np.where(foam, -970.0, -1000.0) + part * rng.uniform(900.0, 1700.0)
    np.maximum(hu, table.astype(np.float32)[None], out=hu)


def _tidy(canvas: Canvas) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Drop names with too few voxels and number the others in the order of the names' first use."""
    counts = np.bincount(canvas.labels.ravel(), minlength=256)
    table = np.zeros(256, np.uint8)
    names: dict[str, int] = {}
    for name, label in canvas.names.items():
        if counts[label] >= MIN_VOXELS:
            names[name] = table[label] = len(names) + 1
    return table[canvas.labels], names
