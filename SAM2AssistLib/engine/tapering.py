"""How large a segment is to be expected on each slice, where a user has told its ends.

A network that carries a mask from slice to slice carries it as it is, up to the last slice that a 3D box allows: most
structures have become small by then. How they become smaller was measured on training cases (the sarcomas and the
closed organs alike, see Resources/Docs/evaluation.md): about as a ball does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from SAM2AssistLib.engine.segment import Findings

LAST_SHARE = 0.03
"""Of the area in the middle, what is left at the very end."""
BEYOND = 0.25
"""Slices by which an object ends beyond the last one that it is on."""
LEAST_SLICES = 3
"""Fewer have no slices between their middle and their ends."""
WIDTHS = 1.5
"""Something long tapers over so many of its widths at most, something short over all of the way to its middle."""
MOST_DOUBT = 4.0
"""Log odds that are taken off at most, and..."""
CERTAIN = 0.9
"""...probability from which a pixel stays, whatever is expected: what can be seen to end bluntly is left alone."""
GROWTHS = torch.arange(0.0, 5.01, 0.25)
"""Log odds that may be added where a mask is too small..."""
GROWTH_SPREAD, AREA_SPREAD = 1.0, 0.3
"""...and standard deviations of these, and of the logarithm of the area, between which the best are a compromise."""
FEW = 3
"""Pixels by which an area may be wrong in any case."""


def expected_areas(
    findings: Findings, slices: int, distance_mm: float, pixel_mm2: float, area_of: Callable[[int], int]
) -> dict[int, float]:
    """Tell how large a segment is to be expected between its prompted slices and the ends that a user has told.

    An end at that of the volume tells nothing, for there the segment may be cut off. Neither do several 3D boxes, which
    may be around several parts, nor one of two slices.

    Parameters
    ----------
    findings : prompts of the segment.
    slices : number of slices of the volume along the segment's axis.
    distance_mm, pixel_mm2 : between slices, and of a pixel.
    area_of : gives the pixels of the segment's present mask on a slice.

    Returns
    -------
    Pixels by slice, without the prompted slices; empty where no end was told.
    """
    told = [p for p in findings.prompts if p.reach is not None and not p.is_guess]
    if len(told) != 1 or told[0].reach is None:
        return {}
    (first, last), at = told[0].reach, told[0].index
    if last - first < LEAST_SLICES - 1:
        return {}
    shown = {k: area for k in {p.index for p in findings.prompts} if (area := area_of(k))}
    if at not in shown:
        return {}
    # Between two slices where the number of slices is even.
    middle = (first + last) / 2 if told[0].is_on_middle else at
    most_mm = WIDTHS * math.sqrt(shown[at] * pixel_mm2)
    expected: dict[int, float] = {}
    for end in (first, last):
        if end in (0, slices - 1, at):
            continue
        way = range(min(end, at), max(end, at) + 1)
        away_mm = distance_mm * (abs(np.array(way) - end) + BEYOND)
        shares = _share_of_middle(away_mm / min(most_mm, distance_mm * (abs(middle - end) + BEYOND)))
        share = dict(zip(way, shares.tolist(), strict=True))
        places = sorted(shown.keys() & share.keys())
        full = np.interp(way, places, [math.log(shown[k] / share[k]) for k in places])
        # Prompts on the last slices must not make those before them larger than any that is shown.
        most = max(shown[k] for k in places)
        expected |= {k: min(share[k] * math.exp(f), most) for k, f in zip(way, full, strict=True) if k not in shown}
    return expected


def _share_of_middle(way: np.ndarray) -> np.ndarray:
    """Return the area compared with that in the middle, by the share of the way there from the end."""
    return (1 - (1 - way.clip(0, 1)) ** 2 + LAST_SHARE) / (1 + LAST_SHARE)


def leaned(odds: Tensor, allowed: Tensor, area: float) -> Tensor:
    """Move the log odds of a slice towards an expected area: down to it where they say more, some way up else.

    Parameters
    ----------
    odds, allowed : (rows, columns); pixels that are not allowed do not count.
    area : expected, in pixels.
    """
    said = odds[allowed]
    found = int((said > 0).sum())
    if found > area:
        return odds - min(_least_of(said, area), MOST_DOUBT)
    return odds + growth_towards(said, area)


def growth_towards(said: Tensor, area: float, spread: float = AREA_SPREAD) -> float:
    """Return what log odds have to grow by for a mask to come some way up to an area.

    Parameters
    ----------
    said : (N,) log odds.
    area : expected, in pixels.
    spread : standard deviation of its logarithm.
    """
    # How many pixels each growth would bring in, counted in one pass.
    steps = torch.bucketize(-said, GROWTHS.to(said), right=True)
    areas = torch.bincount(steps, minlength=len(GROWTHS) + 1).cumsum(0)[: len(GROWTHS)].float()
    apart = ((areas + FEW) / (area + FEW)).log_().div_(spread)
    cost = apart**2 + (GROWTHS.to(said) / GROWTH_SPREAD) ** 2
    return float(GROWTHS[int(cost.argmin())])


def narrowed(found: Tensor, allowed: Tensor, area: float) -> Tensor:
    """Take the least probable pixels off a slice that is larger than expected, but none that is certain.

    Parameters
    ----------
    found : (rows, columns) probabilities, a pixel being inside above 0.5.
    allowed : (rows, columns); pixels that are not allowed do not count.
    area : expected, in pixels.
    """
    inside = (found > 0.5) & allowed  # noqa: PLR2004 - as probable as not
    if int(inside.sum()) <= area:
        return found
    least = min(_least_of(found[inside], area), CERTAIN)
    return found.masked_fill(inside & (found < least), 0.0)


def _least_of(values: Tensor, area: float) -> float:
    """Return the least of the largest values, as many as the area has pixels."""
    return float(values.kthvalue(max(1, len(values) - max(1, int(area)) + 1)).values)
