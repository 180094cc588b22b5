"""A picture of a segmentation, to be judged at a glance: slices of the CT with outlines, as radiologists know them.

Axial and coronal slices have the patient's right at the left of the picture, anterior and head are up; sagittal slices
have anterior at the left. This holds for a volume stored in any orientation. An oblique volume is shown along its own
axes, as it was scanned.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter1d, label
from skimage.color import rgb2lab
from skimage.measure import find_contours

from SAM2AssistLib.io.atomic import atomic_path
from SAM2AssistLib.io.named_mask import NamedMask, bounding_box, check_masks
from SAM2AssistLib.io.terminology import terminology_of
from SAM2AssistLib.volume import WINDOW_PRESETS, Window

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

MAX_AXIAL_SLICES = 8

# Layout in pixels of the finished picture.
_WIDTH = 1800
_MARGIN = 36
_GAP = 10
_COLUMNS = 4
_INNER_WIDTH = _WIDTH - 2 * _MARGIN
_REFORMAT_HEIGHT = 560
_FLAT_REFORMAT_HEIGHT = 200
_MAX_AXIAL_HEIGHT = 520
_LEGEND_WIDTH = 340
_LEGEND_ROW = 27

# Outlines are drawn this many times larger and scaled down, because Pillow draws lines without anti-aliasing.
_SUPERSAMPLING = 2
_OUTLINE_WIDTH = 2.2

_BACKGROUND = (13, 15, 19)
_TEXT = (228, 231, 236)
_DIM_TEXT = (142, 150, 162)
_HALO = (0, 0, 0)

# Below this is the air around the patient; the picture is cropped to what is above.
_AIR_HU = -400
_CROP_MARGIN_MM = 6.0

# Of two outlines nearer than this in CIE Lab nobody can say which is which.
_DISTINCT_LAB = 40.0

# Lightness in CIE Lab that a thin line needs on dark grey; pure blue has 32.
_MIN_LIGHTNESS = 55.0


# Color, name and volume of a segment.
_LegendRow: TypeAlias = tuple[tuple[int, int, int], str, str]


@dataclass(frozen=True)
class _Patient:
    """A volume with its axes as those of the patient, without a copy.

    Attributes
    ----------
    hu : ndarray, shape (z, y, x)
        z grows to the feet, y to the back, x to the patient's left: rows and columns of the pictures, in order.
    masks : tuple of ndarray of bool, shape (z, y, x)
    spacing : tuple of 3 floats
        mm along z, y and x.
    positions : tuple of 3 ndarrays
        RAS coordinate in mm (S, A and R) of each slice along z, y and x, at the center of the volume.
    """

    hu: NDArray[np.int16]
    masks: tuple[NDArray[np.bool_], ...]
    spacing: tuple[float, float, float]
    positions: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class _View:
    """One slice to draw: which, what part of it, and what is written on its edges."""

    axis: int
    index: int
    crop: tuple[slice, slice]
    letters: tuple[str, str, str, str]  # left, right, top, bottom


def write_preview(
    path_png: str | Path, volume: CTVolume, masks: Sequence[NamedMask], *, window: Window | None = None
) -> None:
    """Draw up to eight axial slices, a coronal and a sagittal one with outlines and a legend, and write it as PNG.

    The axial slices are spread evenly through the extent of the masks; the two others go through the middle of the
    largest mask. All are cropped to the patient, and further if the masks take up only a small part.

    Parameters
    ----------
    path_png : str or Path
    volume : CTVolume
    masks : sequence of NamedMask
        On the grid of the volume; empty ones are named in the legend as such.
    window : Window, optional
        Hounsfield units to show; the abdominal window by default.

    Raises
    ------
    InputError
        If a mask is not on the grid of the volume.
    OutputError
        If the file cannot be written.
    """
    picture = draw_preview(volume, masks, window=window)
    with atomic_path(path_png) as part:
        # Looking for the best of all encodings would take longer than all the drawing and save a few percent.
        picture.save(part, format="PNG", compress_level=4)


def draw_preview(volume: CTVolume, masks: Sequence[NamedMask], *, window: Window | None = None) -> Image.Image:
    """Draw what `write_preview` writes, as an RGB picture."""
    check_masks(masks, volume.shape_kji)
    window = window or WINDOW_PRESETS["abdomen"]
    patient = _as_patient(volume, masks)
    colors = outline_colors([named.name for named in masks])
    extent = _union_box(patient)
    field = _field_of_view(patient, extent)
    _, y, x = _center(patient)
    axial = [_View(0, z, (field[1], field[2]), ("R", "L", "A", "P")) for z in _axial_slices(patient, extent)]
    coronal = _View(1, y, (field[0], field[2]), ("R", "L", "H", "F"))
    sagittal = _View(2, x, (field[0], field[1]), ("A", "P", "H", "F"))

    size = _axial_size(patient, axial)
    panels = [_draw_view(patient, view, size, window, colors) for view in axial]
    legend = _legend_rows(volume, masks, colors)
    beside = len(legend) * _LEGEND_ROW <= _REFORMAT_HEIGHT
    room = _INNER_WIDTH - (_LEGEND_WIDTH + 3 * _GAP if beside else 0)
    reformats = _reformat_panels(patient, (coronal, sagittal), room, window, colors)
    return _compose(panels, reformats, _title(volume, window), legend, beside=beside)


# ------------------------------------------------------------------------------------------------- what is shown


def _as_patient(volume: CTVolume, masks: Sequence[NamedMask]) -> _Patient:
    """Turn and flip the arrays so that z grows to the feet, y to the back and x to the patient's left."""
    order = tuple(volume.array_axis_of(view) for view in ("axial", "coronal", "sagittal"))
    center = (np.array(volume.shape_kji[::-1]) - 1) / 2
    flips, positions, spacing = [], [], []
    # The RAS component that each axis of a picture follows; all three grow against R, A and S.
    for component, axis in zip((2, 1, 0), order, strict=True):
        ijk_axis = 2 - axis
        index = np.tile(center, (volume.shape_kji[axis], 1))
        index[:, ijk_axis] = np.arange(volume.shape_kji[axis])
        grows = volume.ijk_to_ras[component, ijk_axis] > 0
        flips.append(slice(None, None, -1) if grows else slice(None))
        positions.append(volume.ras_from_index_ijk(index)[:, component][flips[-1]])
        spacing.append(volume.spacing_ijk[ijk_axis])
    z, y, x = positions
    return _Patient(
        hu=volume.array.transpose(order)[tuple(flips)],
        masks=tuple(named.mask.transpose(order)[tuple(flips)] for named in masks),
        spacing=(spacing[0], spacing[1], spacing[2]),
        positions=(z, y, x),
    )


def _union_box(patient: _Patient) -> tuple[slice, slice, slice] | None:
    """The box around all masks; None if all are empty."""
    boxes = [box for box in map(bounding_box, patient.masks) if box is not None]
    if not boxes:
        return None
    z, y, x = (slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3))
    return z, y, x


def _field_of_view(patient: _Patient, masks: tuple[slice, slice, slice] | None) -> tuple[slice, slice, slice]:
    """The part of the volume that is shown: the patient, or if the masks are small a half of that around them."""
    body = _body_box(patient.hu)
    shown = []
    for axis, count in enumerate(patient.hu.shape):
        low, high = body[axis].start, body[axis].stop
        if masks is not None:
            low, high = min(low, masks[axis].start), max(high, masks[axis].stop)
            extent = masks[axis].stop - masks[axis].start
            size = min(high - low, max(2 * extent, (high - low + 1) // 2))
            low = min(max(masks[axis].start - (size - extent) // 2, low), high - size)
            high = low + size
        margin = round(_CROP_MARGIN_MM / patient.spacing[axis])
        shown.append(slice(max(0, low - margin), min(count, high + margin)))
    z, y, x = shown
    return z, y, x


def _body_box(hu: NDArray[np.int16]) -> tuple[slice, slice, slice]:
    """The box around the largest connected thing that is not air, which is the patient without the table."""
    step = tuple(max(1, count // 128) for count in hu.shape)
    things, count = label(hu[:: step[0], :: step[1], :: step[2]] > _AIR_HU)
    sizes = np.bincount(things.ravel(), minlength=2)[1:]
    box = bounding_box(things == 1 + int(np.argmax(sizes))) if count else None
    if box is None:
        box = (slice(0, hu.shape[0]), slice(0, hu.shape[1]), slice(0, hu.shape[2]))
        step = (1, 1, 1)
    z, y, x = (
        slice(part.start * every, min(part.stop * every, size))
        for part, every, size in zip(box, step, hu.shape, strict=True)
    )
    return z, y, x


def _axial_slices(patient: _Patient, box: tuple[slice, slice, slice] | None) -> list[int]:
    """Slices spread evenly from head to feet through the masks (through the volume if all are empty)."""
    start, stop = (box[0].start, box[0].stop) if box else (0, patient.hu.shape[0])
    count = min(MAX_AXIAL_SLICES, stop - start)
    # The middles of equal parts: the first and the last slice of a mask say little.
    return [start + int((n + 0.5) * (stop - start) / count) for n in range(count)]


def _center(patient: _Patient) -> tuple[int, int, int]:
    """The voxel (z, y, x) that the coronal and the sagittal slice go through: where the largest mask is widest."""
    sizes = [int(np.count_nonzero(mask)) for mask in patient.masks]
    if not sizes or max(sizes) == 0:
        z, y, x = (count // 2 for count in patient.hu.shape)
        return z, y, x
    largest = patient.masks[int(np.argmax(sizes))]
    z, y, x = (int(np.argmax(largest.sum(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3))
    return z, y, x


# ------------------------------------------------------------------------------------------------------ one slice


def _size_mm(patient: _Patient, view: _View) -> tuple[float, float]:
    """Width and height of a view in mm."""
    rows, columns = (axis for axis in range(3) if axis != view.axis)
    height = (view.crop[0].stop - view.crop[0].start) * patient.spacing[rows]
    width = (view.crop[1].stop - view.crop[1].start) * patient.spacing[columns]
    return width, height


def _draw_view(
    patient: _Patient,
    view: _View,
    size: tuple[int, int],
    window: Window,
    colors: Sequence[tuple[int, int, int]],
) -> Image.Image:
    """A slice with outlines and letters, `size` (width, height) pixels large."""
    hu = _slice_of(patient.hu, view)
    grey = Image.fromarray(np.ascontiguousarray(hu, dtype=np.float32))
    large = (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING)
    shown = window.apply(np.asarray(grey.resize(large, Image.Resampling.BICUBIC)))
    picture = Image.fromarray(np.round(shown * 255).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    scale = (large[1] / hu.shape[0], large[0] / hu.shape[1])  # pixels per voxel
    smoothing = 1.2 * max(scale) / min(scale)  # where slices are thick, an outline has long steps
    for mask, color in zip(patient.masks, colors, strict=True):
        inside = _slice_of(mask, view)
        for line in _outlines(inside, scale, smoothing):
            draw.line(line, fill=color, width=round(_OUTLINE_WIDTH * _SUPERSAMPLING), joint="curve")
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    _write_on(picture, patient, view)
    return picture


def _slice_of(array: NDArray[np.generic], view: _View) -> NDArray[Any]:
    """What a view shows of an array, without a copy: `numpy.take` would copy the whole of a flipped one first."""
    selection: list[slice | int] = list(view.crop)
    selection.insert(view.axis, view.index)
    return array[tuple(selection)]


def _outlines(
    inside: NDArray[np.bool_], scale: tuple[float, float], smoothing: float
) -> list[list[tuple[float, float]]]:
    """Smooth closed lines around a mask, as (x, y) in pixels.

    A contour goes around voxels in steps of half a voxel. The mean over some of its corners (`smoothing`, as standard
    deviation) is the line meant by it; a short contour gets less, so that a mask of one voxel does not vanish.
    """
    lines = []
    for contour in find_contours(np.pad(inside, 1).astype(np.uint8), 0.5):
        corners = contour[:-1]
        sigma = min(smoothing, len(corners) / 16)
        # One for the padding, less a half because pixels count from the edge of a voxel and contours from its center.
        smooth = gaussian_filter1d(corners, sigma, axis=0, mode="wrap") - 0.5
        closed = np.vstack([smooth, smooth[:2]]) * scale
        lines.append([(float(x), float(y)) for y, x in closed])
    return lines


def _write_on(picture: Image.Image, patient: _Patient, view: _View) -> None:
    """The letters of the directions, and where the slice is."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    left, right, top, bottom = view.letters
    small = height < 130
    font, inset = _font(15 if small else 18), 8
    place = (
        ((inset, height / 2), left, "lm"),
        ((width - inset, height / 2), right, "rm"),
        ((width / 2, inset), top, "mt"),
        ((width / 2, height - inset), bottom, "mb"),
    )
    for xy, letter, anchor in place:
        draw.text(xy, letter, font=font, fill=_TEXT, anchor=anchor, stroke_width=2, stroke_fill=_HALO)
    mm = float(patient.positions[view.axis][view.index])
    name = (("S", "I"), ("A", "P"), ("R", "L"))[view.axis][mm < 0]
    draw.text(
        (inset, inset),
        f"{name} {abs(mm):.1f} mm",
        font=_font(16),
        fill=_TEXT,
        anchor="lt",
        stroke_width=2,
        stroke_fill=_HALO,
    )


# ----------------------------------------------------------------------------------------------------- the page


def _axial_size(patient: _Patient, views: Sequence[_View]) -> tuple[int, int]:
    """Width and height in pixels of each axial slice: as wide as its column, unless it would be too high."""
    width_mm, height_mm = _size_mm(patient, views[0])
    columns = min(_COLUMNS, len(views))
    width = (_INNER_WIDTH - (columns - 1) * _GAP) / columns
    scale = min(width / width_mm, _MAX_AXIAL_HEIGHT / height_mm)
    return max(1, int(width_mm * scale)), max(1, int(height_mm * scale))


def _reformat_panels(
    patient: _Patient,
    views: Sequence[_View],
    room: int,
    window: Window,
    colors: Sequence[tuple[int, int, int]],
) -> list[list[Image.Image]]:
    """The coronal and the sagittal slice at one scale, as rows of panels: one row, or two if the volume is flat."""
    sizes = [_size_mm(patient, view) for view in views]
    side_by_side = (room - _GAP) / sum(width for width, _ in sizes)
    height_mm = max(height for _, height in sizes)
    stacked = side_by_side * height_mm < _FLAT_REFORMAT_HEIGHT
    scale = room / max(width for width, _ in sizes) if stacked else side_by_side
    scale = min(scale, _REFORMAT_HEIGHT / height_mm)
    panels = [
        _draw_view(patient, view, (max(1, int(width * scale)), max(1, int(height * scale))), window, colors)
        for view, (width, height) in zip(views, sizes, strict=True)
    ]
    return [[panel] for panel in panels] if stacked else [panels]


def _title(volume: CTVolume, window: Window) -> tuple[str, str]:
    i, j, k = volume.shape_kji[::-1]
    spacing = " x ".join(f"{mm:.2f}".rstrip("0").rstrip(".") for mm in volume.spacing_ijk)
    name = volume.source.name if volume.source is not None else "CT volume"
    return name, f"{i} x {j} x {k} voxels of {spacing} mm,   level {window.level:g} HU, width {window.width:g} HU"


def _legend_rows(
    volume: CTVolume, masks: Sequence[NamedMask], colors: Sequence[tuple[int, int, int]]
) -> list[_LegendRow]:
    """Color, name and volume of each segment."""
    voxel_ml = float(np.prod(volume.spacing_ijk)) / 1000
    rows = []
    for named, color in zip(masks, colors, strict=True):
        ml = int(np.count_nonzero(named.mask)) * voxel_ml
        rows.append((color, named.name, f"{ml:,.0f} ml" if ml >= 100 else f"{ml:.1f} ml" if ml else "empty"))
    return rows


def _compose(
    axial: Sequence[Image.Image],
    reformats: Sequence[Sequence[Image.Image]],
    title: tuple[str, str],
    legend: Sequence[_LegendRow],
    *,
    beside: bool,
) -> Image.Image:
    """Put title, axial slices, the other slices and the legend (beside those or below them) on one page."""
    columns = max(1, (_INNER_WIDTH + _GAP) // (axial[0].width + _GAP))
    rows = [*(axial[start : start + columns] for start in range(0, len(axial), columns)), *reformats]
    top = _MARGIN + 54
    tops = np.cumsum([top, *(row[0].height + _GAP for row in rows)]).tolist()
    legend_columns = 1 if beside else _INNER_WIDTH // _LEGEND_WIDTH
    per_column = -(-len(legend) // legend_columns)
    legend_top = tops[-1 - len(reformats)] if beside else tops[-1] + 2 * _GAP
    bottom = max(tops[-1] - _GAP, legend_top + per_column * _LEGEND_ROW)

    page = Image.new("RGB", (_WIDTH, bottom + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.text((_WIDTH - _MARGIN, _MARGIN), title[1], font=_font(17), fill=_DIM_TEXT, anchor="rt")
    room = _INNER_WIDTH - draw.textlength(title[1], font=_font(17)) - _MARGIN
    name = _fitting(draw, title[0], room, _font(26))
    draw.text((_MARGIN, _MARGIN - 6), name, font=_font(26), fill=_TEXT, anchor="lt")
    for row_top, row in zip(tops, rows, strict=False):
        left = _MARGIN
        for panel in row:
            page.paste(panel, (left, row_top))
            left += panel.width + _GAP
    column_width = _LEGEND_WIDTH if beside else _INNER_WIDTH // legend_columns
    used = max(sum(panel.width + _GAP for panel in row) for row in reformats)
    left = _MARGIN + (used + 2 * _GAP if beside else 0)
    for number, entry in enumerate(legend):
        column, line = divmod(number, per_column)
        _draw_legend_row(draw, (left + column * column_width, legend_top + line * _LEGEND_ROW), column_width, entry)
    return page


def _draw_legend_row(draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, row: _LegendRow) -> None:
    color, name, amount = row
    x, y = corner[0], corner[1] + _LEGEND_ROW // 2
    font = _font(18)
    draw.rounded_rectangle((x, y - 3, x + 26, y + 3), radius=3, fill=color)
    right = x + width - 2 * _GAP
    draw.text((right, y), amount, font=font, fill=_DIM_TEXT, anchor="rm")
    room = right - draw.textlength(amount, font=font) - _GAP - (x + 38)
    draw.text((x + 38, y), _fitting(draw, name.replace("_", " "), room, font), font=font, fill=_TEXT, anchor="lm")


def _fitting(draw: ImageDraw.ImageDraw, text: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """A text, cut with an ellipsis if it is longer than there is room for."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(f"{text}...", font=font) > room:
        text = text[:-1]
    return f"{text}..."


def outline_colors(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """A color for each segment that is clear on grey and differs from the others as far as there are colors.

    It is the color of the segment in Slicer, brightened. Those of many organs are alike, and those of the left and the
    right one of a pair are the same, so the later of two such organs gets another one.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    list of (int, int, int)
        RGB, each from 0 to 255, in the order of the names.
    """
    spare = [colorsys.hsv_to_rgb(hue / 18, saturation, 1.0) for saturation in (0.9, 0.55) for hue in range(18)]
    spare = [color for color in spare if rgb2lab(np.array(color))[0] >= _MIN_LIGHTNESS]
    spare_lab = rgb2lab(np.array(spare))
    used: list[NDArray[np.float64]] = []
    chosen: dict[str, tuple[float, float, float]] = {}
    # Those who can keep their color come first, so that no other gets one that is like it.
    for name in dict.fromkeys(names):
        color = _brightened(terminology_of(name).color_rgb)
        lab = rgb2lab(np.array(color))
        if not used or np.linalg.norm(np.array(used) - lab, axis=1).min() >= _DISTINCT_LAB:
            chosen[name] = color
            used.append(lab)
    for name in dict.fromkeys(names):
        if name not in chosen:
            farthest = int(np.argmax(np.linalg.norm(spare_lab[:, np.newaxis] - np.array(used), axis=2).min(axis=1)))
            chosen[name] = spare[farthest]
            used.append(spare_lab[farthest])
    return [_as_bytes(chosen[name]) for name in names]


def _as_bytes(color_rgb: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(part * 255) for part in color_rgb)
    return red, green, blue


def _brightened(color_rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """Bright enough to be seen on grey, and saturated enough to be seen on white bone."""
    hue, saturation, value = colorsys.rgb_to_hsv(*color_rgb)
    return colorsys.hsv_to_rgb(hue, min(1.0, max(0.5, saturation * 1.35)), max(value, 0.92))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, so that the picture is the same everywhere."""
    return ImageFont.load_default(size)  # type: ignore[return-value]
