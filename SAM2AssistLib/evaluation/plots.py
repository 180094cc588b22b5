"""Pictures of a report: scores against clicks, scores of structures and users, and outlines on slices.

Drawn with matplotlib on its own figures, so that nothing is shared with what else runs in the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.io.atomic import atomic_path
from SAM2AssistLib.io.named_mask import bounding_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from SAM2AssistLib.volume import CTVolume, Window

# Okabe and Ito's colours, which people with every kind of colour vision can tell apart; ours is the first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_COLOUR, RESULT_COLOUR, BOX_COLOUR = "#2BE38B", "#FF4FD8", "#FFD24A"
INK, GRID = "#222222", "#DDDDDD"
DPI = 130
MARGIN_MM = 25.0
MOST_BARS = 60
"""Of structures in one picture; the worst are shown if there are more."""

Mask = NDArray[np.bool_]
Rows = dict[str, dict[str, Sequence[float]]]
"""Scores in [0, 1] by row (structure or user), then by method."""


@dataclass(frozen=True)
class Curve:
    """Scores of one method against the number of clicks.

    Attributes
    ----------
    name : of the method.
    means, lows, highs : at each step; the band is drawn between lows and highs.
    """

    name: str
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


@dataclass(frozen=True, eq=False)
class Outlined:
    """A result to be looked at.

    Attributes
    ----------
    title : above it.
    volume, window : the CT, and how it is shown.
    reference, mask : bool (k, j, i).
    points : (index_kji, positive) of clicks.
    first_slice : k of the first prompt.
    box : (i min, j min, i max, j max) drawn there, or empty.
    first_title : what that slice is.
    """

    title: str
    volume: CTVolume
    window: Window
    reference: Mask
    mask: Mask
    points: Sequence[tuple[tuple[float, float, float], bool]]
    first_slice: int
    box: Sequence[float] = ()
    first_title: str = "first prompt"


def draw_curves(path: Path, panels: Sequence[tuple[str, Sequence[Curve]]], steps: Sequence[str]) -> None:
    """Draw scores against clicks, a panel for each score, with a band for the first method only: more would hide it."""
    figure, axes = _figure(5.2 * len(panels), 3.9, columns=len(panels))
    for axis, (title, curves) in zip(axes, panels, strict=True):
        places = np.arange(len(steps))
        axis.fill_between(places, curves[0].lows, curves[0].highs, color=COLOURS[0], alpha=0.15, linewidth=0)
        for curve, colour in zip(curves, COLOURS, strict=False):
            axis.plot(places, curve.means, color=colour, marker="o", markersize=4, linewidth=2, label=curve.name)
        axis.set_xticks(places, steps)
        axis.set_ylim(0, 1)
        axis.set_title(title, loc="left", fontsize=10, color=INK)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
    _legend(figure, axes[0])
    _save(figure, path)


def draw_bars(path: Path, title: str, groups: Rows) -> None:
    """Draw the scores of rows (structures or users): a dot for each score, a larger one for the mean of a method.

    Parameters
    ----------
    groups : by row, then by method, single scores in [0, 1].
    """
    rows = sorted(groups, key=lambda row: -float(np.mean(next(iter(groups[row].values())))))
    left_out, rows = len(rows) - min(len(rows), MOST_BARS), rows[-MOST_BARS:]
    methods = list(dict.fromkeys(m for row in rows for m in groups[row]))
    figure, (axis,) = _figure(7.5, 1.3 + 0.24 * len(rows), columns=1)
    for number, (method, colour) in enumerate(zip(methods, COLOURS, strict=False)):
        shift = (number - (len(methods) - 1) / 2) * 0.6 / len(methods)
        for place, row in enumerate(rows):
            scores = groups[row].get(method, ())
            if len(scores) > 1:
                axis.plot(scores, np.full(len(scores), place + shift), ".", color=colour, alpha=0.45, markersize=4)
        means = [float(np.mean(groups[row][method])) if groups[row].get(method) else np.nan for row in rows]
        axis.plot(means, np.arange(len(rows)) + shift, "o", color=colour, markersize=5, label=method)
    axis.set_yticks(np.arange(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.grid(color=GRID, linewidth=0.8)
    note = f" (the {left_out} best are left out)" if left_out else ""
    axis.set_title(title + note, loc="left", fontsize=10, color=INK)
    if len(methods) > 1:
        _legend(figure, axis)
    _save(figure, path)


def draw_outlines(path: Path, results: Sequence[Outlined]) -> None:
    """Draw each result on three slices: that of the first prompt, the one with most errors, and a coronal one."""
    figure, axes = _figure(10.5, 3.7 * len(results), columns=3, rows=len(results))
    for row, result in zip(np.reshape(axes, (len(results), 3)), results, strict=True):
        _draw_result(row, result)
    _save(figure, path)


def _draw_result(row: Sequence[Axes], result: Outlined) -> None:
    around = result.reference | result.mask
    box = bounding_box(around)
    assert box is not None  # a reference is never empty
    spacing = result.volume.spacing_ijk[::-1]
    wrong = (result.reference ^ result.mask).sum(axis=(1, 2))
    worst = int(wrong.argmax()) if wrong.any() else result.first_slice
    middle_j = int(np.median(np.nonzero(result.reference)[1]))
    shown = ((0, result.first_slice, result.first_title), (0, worst, "most errors"), (1, middle_j, "across the slices"))
    for axis, (across, index, what) in zip(row, shown, strict=True):
        others = [a for a in range(3) if a != across]
        crop = [_widened(box[a], MARGIN_MM / spacing[a], around.shape[a]) for a in others]
        section: list[slice | int] = [slice(None)] * 3
        section[across] = index
        section[others[0]], section[others[1]] = crop
        place = tuple(section)
        grey = result.window.apply(result.volume.array[place])
        axis.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for mask, colour in ((result.reference, REFERENCE_COLOUR), (result.mask, RESULT_COLOUR)):
            if mask[place].any():
                axis.contour(np.pad(mask[place], 1)[1:-1, 1:-1].astype(float), [0.5], colors=[colour], linewidths=1.3)
        _draw_points(axis, result, across, index, others, crop)
        if len(result.box) and across == 0 and index == result.first_slice:
            left, top, right, bottom = (b - crop[n % 2 == 0].start for n, b in enumerate(result.box))
            axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=BOX_COLOUR, linewidth=1)
        axis.set_aspect(spacing[others[0]] / spacing[others[1]])
        _turn(axis, result.volume, others)
        axis.set_xticks([])
        axis.set_yticks([])
        letter = "kji"[across]
        axis.set_title(f"{what}, {letter} = {index}", fontsize=8, color=INK)
    row[0].set_ylabel(result.title, fontsize=8, color=INK)


def _draw_points(
    axis: Axes, result: Outlined, across: int, index: int, others: Sequence[int], crop: Sequence[slice]
) -> None:
    for number, (index_kji, positive) in enumerate(result.points, 1):
        if round(index_kji[across]) != index:
            continue
        row, column = (index_kji[a] - part.start for a, part in zip(others, crop, strict=True))
        mark, colour = ("P", REFERENCE_COLOUR) if positive else ("X", "#FF5A4F")
        axis.plot(column, row, mark, color=colour, markeredgecolor="black", markersize=8)
        axis.annotate(str(number), (column, row), xytext=(5, 4), textcoords="offset points", color="white", fontsize=8)


def _turn(axis: Axes, volume: CTVolume, others: Sequence[int]) -> None:
    """Turn the picture as radiologists know it: the patient's right at the left, front and head up."""
    for array_axis, is_rows in ((others[0], True), (others[1], False)):
        direction = volume.ijk_to_lps[:3, 2 - array_axis]
        component = int(np.argmax(np.abs(direction)))
        # Rows run down and columns to the right; LPS grows to the left, to the back and to the head.
        towards_end = direction[component] > 0 if component < 2 else direction[component] < 0
        if not towards_end and is_rows:
            axis.invert_yaxis()
        if not towards_end and not is_rows:
            axis.invert_xaxis()


def _widened(part: slice, by: float, size: int) -> slice:
    return slice(max(0, part.start - round(by)), min(size, part.stop + round(by)))


def _legend(figure: Figure, axis: Axes) -> None:
    """Name the methods below the panels, where no score can lie beneath."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, loc="outside lower center", ncols=len(names))


def _figure(width: float, height: float, *, columns: int, rows: int = 1) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as part:
        figure.savefig(part, dpi=DPI, format="png", facecolor="white")
