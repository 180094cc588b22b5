"""From class maps to prompts: is the class there, which slices show it best, and what to say on them.

SAM2-SP's "most confident prompt templates": on each template slice a box, positive points deep inside, negative points
in the competing organs next to it, and the map itself as a low-resolution mask prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.depth import depth_in
from SAM2AssistLib.engine.views import View
from SAM2AssistLib.prompting.class_maps import ClassMaps

FINER = 4
"""Maps are refined this many times before a box is drawn around a region."""
LOGIT_LIMIT = 6.0
"""Of the mask prompt made of a map: sure, but not beyond what a click can correct."""


@dataclass(frozen=True)
class TemplateOptions:
    """What templates look like.

    Attributes
    ----------
    presence : least confidence of a class's best slices; below, the class is taken to be absent.
    best_slices : over how many slices that is the mean.
    spacing_mm : between templates along z.
    least_ml : smallest volume that counts as present.
    positives, negatives : points on a template slice.
    box, hint : whether the box and the map as a mask prompt are given.
    slack_mm : how far beyond the map's first and last slice the propagation may go.
    """

    presence: float = 0.5
    best_slices: int = 3
    spacing_mm: float = 20.0
    least_ml: float = 0.5
    positives: int = 1
    negatives: int = 1
    box: bool = True
    hint: bool = True
    slack_mm: float = 8.0


@dataclass(frozen=True, eq=False)
class Template:
    """Prompts for one class on one axial slice, in pixels (row, column) of the slice.

    Attributes
    ----------
    index : of the slice.
    confidence : in [0, 1].
    box : (2, 2) corners, or None.
    points : (P, 2).
    positive : (P,) bool.
    logits : (g, g) mask prompt in ``view``, or None.
    view : of the logits.
    """

    index: int
    confidence: float
    box: NDArray[np.float64] | None
    points: NDArray[np.float64]
    positive: NDArray[np.bool_]
    logits: Tensor | None
    view: View


@dataclass(frozen=True, eq=False)
class Finding:
    """What maps say of one class.

    Attributes
    ----------
    name : of the class.
    presence : in [0, 1].
    reach : first and last slice on which it may be.
    templates : empty if it is taken to be absent.
    """

    name: str
    presence: float
    reach: tuple[int, int]
    templates: tuple[Template, ...]


def find_class(maps: ClassMaps, name: str, cell_ml: float, options: TemplateOptions) -> Finding:
    """Decide whether a class is there, and make its templates.

    Parameters
    ----------
    cell_ml : volume of a cell of the maps.
    """
    region = maps.region(name)
    confidence = maps.confidence(name, region)
    best = np.sort(confidence)[::-1][: options.best_slices]
    presence = float(best.mean()) if region.sum() * cell_ml >= options.least_ml else 0.0
    shown = np.flatnonzero(region.any(axis=(1, 2)))
    if not shown.size or presence < options.presence:
        return Finding(name, presence, (0, 0), ())
    slack = round(options.slack_mm / maps.distance_mm)
    reach = (max(0, int(shown[0]) - slack), min(maps.slices - 1, int(shown[-1]) + slack))
    chosen = choose_slices(confidence, max(1, round(options.spacing_mm / maps.distance_mm)), options.presence)
    templates = [_template(maps, name, k, region[k], float(confidence[k]), options) for k in chosen]
    return Finding(name, presence, reach, tuple(t for t in templates if t is not None))


def choose_slices(confidence: NDArray[np.float32], spacing: int, least: float) -> list[int]:
    """Choose the most confident slices that keep a distance; of equals, the lower slice."""
    left = confidence.copy()
    chosen: list[int] = []
    while left.max() >= least:
        k = int(left.argmax())
        chosen.append(k)
        left[max(0, k - spacing + 1) : k + spacing] = -1
    return sorted(chosen)


def _template(
    maps: ClassMaps, name: str, k: int, region: NDArray[np.bool_], confidence: float, options: TemplateOptions
) -> Template | None:
    number = maps.names.index(name) + 1
    fine = F.interpolate(maps.probabilities[k][None].float(), scale_factor=FINER, mode="bilinear")[0]
    near = np.kron(region, np.ones((FINER, FINER), bool))
    inside = (fine.argmax(dim=0) == number).numpy() & ndimage.binary_dilation(near, iterations=FINER)
    if not inside.any():
        return None
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = np.array([[rows[0], columns[0]], [rows[-1], columns[-1]]], float)
    positives = _deepest(inside, options.positives)
    others = fine[1:].clone()
    others[number - 1] = 0
    negatives = _rivals(others.amax(dim=0).numpy(), inside, box, options.negatives)
    points = np.array([*positives, *negatives], float).reshape(-1, 2)
    side = fine.shape[-1]
    return Template(
        index=k,
        confidence=confidence,
        box=_to_pixels(box, maps.view, side) if options.box else None,
        points=_to_pixels(points, maps.view, side),
        positive=np.array([True] * len(positives) + [False] * len(negatives), bool),
        logits=log_odds(maps.probabilities[k], number) if options.hint else None,
        view=maps.view,
    )


def log_odds(probabilities: Tensor, number: int) -> Tensor:
    """Tell how much more probable a channel of (K + 1, g, g) is than its strongest rival; (g, g)."""
    odds = probabilities.float().clamp_min(1e-4).log()
    rivals = torch.cat([odds[:number], odds[number + 1 :]]).amax(dim=0)
    return (odds[number] - rivals).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def _deepest(inside: NDArray[np.bool_], count: int) -> list[tuple[int, int]]:
    """The deepest points of a region, far from one another."""
    depth = depth_in(inside)
    points: list[tuple[int, int]] = []
    rows, columns = np.indices(depth.shape)
    while len(points) < count and depth.max() > 0:
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        reach = 2 * depth[row, column] + FINER
        points.append((int(row), int(column)))
        depth = np.where((rows - row) ** 2 + (columns - column) ** 2 < reach**2, 0, depth)
    return points


def _rivals(
    others: NDArray[np.float32], inside: NDArray[np.bool_], box: NDArray[np.float64], count: int
) -> list[tuple[int, int]]:
    """The surest points of other classes in and next to the box."""
    low = np.maximum(box[0] - 2 * FINER, 0).astype(int)
    high = (box[1] + 2 * FINER + 1).astype(int)
    window = np.zeros_like(inside)
    window[low[0] : high[0], low[1] : high[1]] = True
    apart = ndimage.distance_transform_edt(~inside) >= FINER
    left = np.where(window & apart & (others > 0.6), others, 0)
    points: list[tuple[int, int]] = []
    rows, columns = np.indices(left.shape)
    while len(points) < count and left.max() > 0:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        points.append((int(row), int(column)))
        left = np.where((rows - row) ** 2 + (columns - column) ** 2 < (6 * FINER) ** 2, 0, left)
    return points


def _to_pixels(points: NDArray[np.float64], view: View, side: int) -> NDArray[np.float64]:
    """Bring positions (row, column) on a grid over a view to pixels of the slice."""
    scale = np.array([view.rows, view.columns]) / side
    return (points + 0.5) * scale - 0.5 + np.array([view.row, view.column])
