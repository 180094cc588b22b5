"""Masks settle on the edges of the image once they have been propagated, and at once on a slice that is clicked.

See `random_walk` for the method, and `likeness` for what the encoder's features have to say. The network's own states
are left as they are: what it remembers, and what it is asked next, does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.likeness import likeness
from SAM2AssistLib.engine.random_walk import (
    BREATH,
    FIXED,
    GREY_WEIGHT,
    INSIDE,
    OUTSIDE,
    PRIOR_LIMIT,
    PRIOR_WEIGHT,
    grey_bins,
    grey_odds,
    passages,
    walk,
)
from SAM2AssistLib.engine.segment import Findings, PlacedPrompt
from SAM2AssistLib.engine.tapering import expected_areas, leaned, narrowed
from SAM2AssistLib.engine.views import uncut

if TYPE_CHECKING:
    from SAM2AssistLib.engine.history import Recorder
    from SAM2AssistLib.engine.memory import SliceState
    from SAM2AssistLib.engine.plane import Plane

Mask = NDArray[np.bool_]

ROOM_MM = 15.0
"""How far beyond the masks and prompts of a segment a mask may grow in-plane."""
CLICK_MM = 3.0
"""Radius of the ball around a click that is certain, as far as it looks like the clicked voxel."""
ALIKE = 0.25
"""How much its grey value may differ, of a window of 1."""
BOX_SLACK = 0.1
"""Share of a box's side, besides one pixel, by which an object may exceed it: people draw boxes too tight as well."""
SPECK_MM2, SPECK_SHARE = 15.0, 20
"""A hole or an island on a slice is noise if it is smaller than this, and by this factor smaller than the largest."""
YIELD_FROM, YIELD_FORCE = 3, 0.05
"""As soon as so many slices are prompted, they are not fixed any more but held by this force. A click says one place;
what the network makes of the rest of its slice may be worse than what other slices and the edges say."""
LEAST_LEFT = 0.5
"""Share of a segment that has to be left; else it stays as the network has it."""
COARSE_VOXELS, FINE_VOXELS = 400_000, 1_500_000
"""Unknowns of one system. What has more is thinned in-plane first, and then solved once more in slabs of slices."""
COARSE_STEPS, FINE_STEPS = 120, 12
COARSE_TOLERANCE, FINE_TOLERANCE = 1e-3, 3e-2


@dataclass(frozen=True)
class _Region:
    """Slices and pixels that are looked at; everything is in the plane's axes."""

    first: int
    last: int
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


Settled = tuple[int, Mask]


def to_settle(findings: Findings, shown: Callable[[int], bool], *, anew: bool) -> tuple[set[int], set[int]]:
    """Choose the slices that settle after a propagation, and the prompted ones that give way meanwhile.

    With few prompts that is what has just been visited. Later everything settles anew, for each prompt tells more of
    what the segment looks like; but where Auto-Segment has had a part, other segments have had their say as well.

    Parameters
    ----------
    findings : states and prompts of the segment.
    shown : tells whether the segment is on a slice. Where a user has said that it is not, it stays away.
    anew : whether more may settle than has just been visited.
    """
    prompted = set(findings.conditioning)
    visited = set(findings.unsettled) - prompted
    if not visited or not anew or not gives_way(findings):
        return visited, set()
    there = {k for k, state in findings.states.items() if shown(k) and not state.backed and not findings.is_drawn(k)}
    return visited | there - prompted, there & prompted


def gives_way(findings: Findings) -> bool:
    """Whether enough slices are prompted for none of them to be the last word."""
    return len(findings.conditioning) >= YIELD_FROM


def sharpen(
    plane: Plane, recorder: Recorder, indices: Collection[int], giving_way: Collection[int] = ()
) -> Iterator[int | None]:
    """Settle slices of a segment in place; see `sharpened`.

    Yields
    ------
    The index of each slice that has changed; now and then None, while it is being computed. It may be left there.
    """
    record = recorder.record
    for settled in sharpened(plane, record.findings, partial(record.slice_of, plane.axis), indices, giving_way):
        if settled is None:
            yield None
        else:
            recorder.write(plane.axis, *settled)
            yield settled[0]


def sharpened_slice(plane: Plane, findings: Findings, index: int, mask: Mask) -> Mask:
    """Settle one slice by itself; returns the mask (rows, columns) bool."""
    settled = sharpened(plane, findings, lambda _index: mask, [index])
    return next((new for _, new in filter(None, settled)), mask)


def sharpened(
    plane: Plane,
    findings: Findings,
    mask_of: Callable[[int], Mask],
    indices: Collection[int],
    giving_way: Collection[int] = (),
) -> Iterator[Settled | None]:
    """Settle slices of a segment on the edges of the image.

    Parameters
    ----------
    plane : the slices.
    findings : states and prompts of the segment.
    mask_of : gives the segment's present mask (rows, columns) of a slice.
    indices : of the slices that may change; those among them that a user has drawn, or that no prompt or propagation
        has reached, stay as they are.
    giving_way : further ones, prompted, that are held more firmly; see `to_settle`.

    Yields
    ------
    Index and new mask (rows, columns) of each slice that changes; now and then None, while it is being computed.
    """
    free = {k for k in (*indices, *giving_way) if k in findings.states and not findings.is_drawn(k)}
    if not free:
        return
    # A single slice is settled by itself: what its neighbours show may be what the click is to correct.
    beside = 1 if len(indices) + len(giving_way) > 1 else 0
    first, last = max(0, min(free) - beside), min(plane.slices - 1, max(free) + beside)
    prompts = _in_force(findings)
    region = _region(plane, prompts, mask_of, first, last)
    if region is None:
        return
    while True:
        try:
            # What had settled before memory ran out does so again, to the same.
            return (yield from _Walker(plane, findings, prompts, mask_of, free, giving_way, region).run())
        except torch.OutOfMemoryError:
            plane.network.need_less()


def _in_force(findings: Findings) -> list[PlacedPrompt]:
    """List the boxes and clicks that still count: what was said of a slice before it was drawn is in the drawing."""
    drawn = {p.index: n for n, p in enumerate(findings.prompts) if p.is_drawing}
    return [p for n, p in enumerate(findings.prompts) if not p.is_drawing and n > drawn.get(p.index, -1)]


def _region(
    plane: Plane, prompts: Collection[PlacedPrompt], mask_of: Callable[[int], Mask], first: int, last: int
) -> _Region | None:
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for k in range(first, last + 1):
        mask = mask_of(k)
        rows = np.flatnonzero(mask.any(axis=1))
        if len(rows):
            columns = np.flatnonzero(mask.any(axis=0))
            low = np.minimum(low, (rows[0], columns[0]))
            high = np.maximum(high, (rows[-1], columns[-1]))
    said = [p for p in prompts if first <= p.index <= last]
    placed = [p.points for p in said if p.is_box or p.says_present]
    if placed:
        low = np.minimum(low, np.concatenate(placed).min(axis=0))
        high = np.maximum(high, np.concatenate(placed).max(axis=0))
    if not np.isfinite(low).all():
        return None
    room = ROOM_MM / np.array(plane.spacing_mm)
    low = np.maximum(np.floor(low - room), 0).astype(int)
    high = np.minimum(np.ceil(high + room) + 1, plane.shape).astype(int)
    return _Region(first, last, slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))


@dataclass(eq=False)
class _Parts:
    """What one system is made of; all (k, j, i)."""

    image: Tensor
    odds: Tensor
    seeds: Tensor


class _Walker:
    def __init__(
        self,
        plane: Plane,
        findings: Findings,
        prompts: Collection[PlacedPrompt],
        mask_of: Callable[[int], Mask],
        free: Collection[int],
        giving_way: Collection[int],
        region: _Region,
    ) -> None:
        self.plane, self.findings, self.mask_of, self.region = plane, findings, mask_of, region
        self.free, self.giving_way = free, giving_way
        self.slices = range(region.first, region.last + 1)
        self.device = plane.network.device
        rows, columns = region.size
        self.step = max(1, int(np.ceil(np.sqrt(len(self.slices) * rows * columns / COARSE_VOXELS))))
        self.prompts = prompts
        clicks = (p for p in prompts if not p.is_box)
        self.clicked = [(p, float(plane.grey(p.index)[p.pixel(plane.shape)])) for p in clicks]
        self.expected = self._expected_areas() if len(free) > 1 else {}
        self.alike: dict[int, Tensor] | None = None

    def _expected_areas(self) -> dict[int, float]:
        plane, findings = self.plane, self.findings

        def area_of(index: int) -> int:
            # Others may have taken away what is not to be missed on the next slices.
            found = plane.mask_of(findings, index, findings.states.get(index))
            return max(int(found.sum()), int(self.mask_of(index).sum()))

        pixel_mm2 = float(np.prod(plane.spacing_mm))
        return expected_areas(findings, plane.slices, plane.distance_mm, pixel_mm2, area_of)

    def run(self) -> Iterator[Settled | None]:
        """Solve thinned, then, if that was thinner than the image, in slabs of full resolution."""
        states = {k: self.findings.states[k] for k in sorted(self.free)}
        if self._asks_for_likeness(states.values()):
            self.alike = yield from likeness(self.plane, states, self._sown)
            self.device = self.plane.network.device  # which for want of memory may be another now
        coarse = yield from self._parts(self.slices, self.step)
        spacing = self._spacing(self.step)
        greys = GREY_WEIGHT * grey_odds(coarse.image, coarse.odds.sigmoid(), coarse.seeds, spacing)
        target, force = self._wish(self.slices, coarse, greys)
        ways = self._ways(self.slices, coarse.image, spacing)
        found = yield from walk(ways, target, force, target, steps=COARSE_STEPS, tolerance=COARSE_TOLERANCE)
        if self._lost(coarse, found):
            return
        if self.step == 1:
            yield from self._changed(self.slices, found, coarse.seeds)
            return
        rows, columns = self.region.size
        depth = max(1, FINE_VOXELS // (rows * columns))
        for begin in range(self.region.first, self.region.last + 1, depth):
            slab = range(max(self.region.first, begin - 1), min(self.region.last, begin + depth) + 1)
            yield from self._settled(slab, range(begin, min(self.region.last + 1, begin + depth)), found, greys)

    def _asks_for_likeness(self, states: Collection[SliceState]) -> bool:
        """Whether what the encoder sees is to have a say.

        Where no ends were told, masks that were carried too far would be learned from; and what Auto-Segment has had a
        part in goes by such features already.
        """
        return len(states) > 1 and self.findings.limits is not None and not any(state.backed for state in states)

    def _lost(self, parts: _Parts, found: Tensor) -> bool:
        """Whether most of the segment is gone and nobody has asked for that: too faint for edges to hold it.

        Who clicks something away may mean most of the segment, but not on slices on which he has said what he means.
        """
        slices: slice | list[int] = slice(None)
        if not all(click.says_present for click, _ in self.clicked):
            slices = [place for place, k in enumerate(self.slices) if k in self.giving_way]
        allowed = parts.seeds[slices] != OUTSIDE
        left = int(((found[slices] > 0.5) & allowed).sum())
        return left < LEAST_LEFT * int(((parts.odds[slices] > 0) & allowed).sum())

    def _settled(self, slab: range, inner: range, coarse: Tensor, greys: Tensor) -> Iterator[Settled | None]:
        """Solve a slab; its outermost slices, unless they are inner ones, keep what the thinned system says."""
        parts = yield from self._parts(slab, 1)
        start = self._enlarged(coarse[slab.start - self.region.first : slab.stop - self.region.first])
        target, force = self._wish(slab, parts, greys)
        for place, k in enumerate(slab):
            if k not in inner:
                target[place], force[place] = start[place], FIXED
        ways = self._ways(slab, parts.image, self._spacing(1))
        found = yield from walk(ways, target, force, start, steps=FINE_STEPS, tolerance=FINE_TOLERANCE)
        begin, end = inner.start - slab.start, inner.stop - slab.start
        yield from self._changed(inner, found[begin:end], parts.seeds[begin:end])

    def _ways(self, indices: range, image: Tensor, spacing: tuple[float, float, float]) -> list[Tensor]:
        """Return the passages; there are none to a slice that is empty for good, for a segment may end beside it."""
        ways = passages(image, spacing)
        for place, k in enumerate(indices):
            if k not in self.free and not self.mask_of(k).any():
                ways[0][max(0, place - 1) : place + 1] = 0
        return ways

    def _wish(self, indices: range, parts: _Parts, greys: Tensor) -> tuple[Tensor, Tensor]:
        """Return where each voxel is drawn to, and how strongly."""
        target = (parts.odds + greys[grey_bins(parts.image)]).sigmoid_()
        target[parts.seeds == INSIDE], target[parts.seeds == OUTSIDE] = 1.0, 0.0
        force = torch.full_like(target, PRIOR_WEIGHT)
        force[[k in self.giving_way for k in indices]] = YIELD_FORCE
        force[parts.seeds > 0] = FIXED
        return target, force

    def _changed(self, indices: range, found: Tensor, seeds: Tensor) -> Iterator[Settled]:
        for k, probable, sown in zip(indices, found, seeds, strict=True):
            if k not in self.free:
                continue
            if k in self.expected:
                probable = narrowed(probable, sown != OUTSIDE, self.expected[k])  # noqa: PLW2901
            settled = ((probable > 0.5) & (sown != OUTSIDE) | (sown == INSIDE)).cpu().numpy()  # noqa: PLR2004
            _tidy(settled, sown.cpu().numpy(), SPECK_MM2 / float(np.prod(self.plane.spacing_mm)))
            mask = self.mask_of(k)
            if (mask[self.region.rows, self.region.columns] != settled).any():
                new = mask.copy()
                new[self.region.rows, self.region.columns] = settled
                yield k, new

    def _parts(self, indices: range, step: int) -> Generator[None, None, _Parts]:
        """Collect slices, thinned by a step in-plane; yields now and then."""
        images, odds, seeds = [], [], []
        for place, k in enumerate(indices, 1):
            if place % BREATH == 0:
                yield
            grey, said, sown = self._slice(k)
            images.append(_thinned(grey, step))
            odds.append(_thinned(said, step))
            seeds.append(_thinned_seeds(sown, step))
        return _Parts(torch.stack(images), torch.stack(odds), torch.stack(seeds))

    def _slice(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return grey values, the log odds that were told, and seeds of a slice's region."""
        region = self.region
        grey = torch.from_numpy(self.plane.grey(index)[region.rows, region.columns]).to(self.device)
        if index not in self.free:
            mask = torch.from_numpy(self.mask_of(index)[region.rows, region.columns].copy()).to(self.device)
            return grey, (mask.float() * 2 - 1) * PRIOR_LIMIT, torch.where(mask, INSIDE, OUTSIDE).to(torch.int8)
        state = self.findings.states[index]
        values, inside = uncut(self._said(index), state.view, self.plane.shape)
        whole = np.full(self.plane.shape, -PRIOR_LIMIT, np.float32)
        whole[inside] = values
        odds = torch.from_numpy(whole[region.rows, region.columns]).to(self.device)
        seeds = torch.from_numpy(self._sown(index)[region.rows, region.columns]).to(self.device)
        if index in self.expected:
            odds = leaned(odds, seeds != OUTSIDE, self.expected[index])
        return grey, odds.clamp(-PRIOR_LIMIT, PRIOR_LIMIT), seeds

    def _said(self, index: int) -> Tensor:
        """Return the network's log odds of a slice, on its own grid, with what the encoder's features say of them."""
        logits = self.findings.states[index].logits
        if self.alike is None:
            return logits
        alike = F.interpolate(self.alike[index][None, None], size=logits.shape[-2:], mode="bilinear")[0, 0]
        return logits.float().clamp(-PRIOR_LIMIT, PRIOR_LIMIT) + alike.to(logits.device)

    def _sown(self, index: int) -> NDArray[np.int8]:
        """Return what the prompts make certain on a slice; the newest has the last word."""
        seeds = np.zeros(self.plane.shape, np.int8)
        here = [p for p in self.prompts if p.index == index]
        boxes = [p for p in here if p.is_box]
        if boxes:
            beyond = np.ones(self.plane.shape, bool)
            for box in boxes:
                beyond[_loosened(box, self.plane.shape)] = False
            # Who clicks beyond a box has found it too small.
            if not any(p.says_present and beyond[p.pixel(self.plane.shape)] for p in here):
                seeds[beyond] = OUTSIDE
        limits = self.findings.limits
        if limits is not None and not limits[0] <= index <= limits[1]:
            seeds[...] = OUTSIDE
        away_mm = [abs(index - click.index) * self.plane.distance_mm for click, _ in self.clicked]
        near = [(*said, away) for said, away in zip(self.clicked, away_mm, strict=True) if away <= CLICK_MM]
        if not near:
            return seeds
        grey = self.plane.grey(index)
        shown = self.plane.tracker.mask_of(self.findings.states[index])
        for click, clicked, away in near:
            word = INSIDE if click.says_present else OUTSIDE
            radius = float(np.sqrt(CLICK_MM**2 - away**2))
            ball, part = disc(click.points[0], radius, self.plane.shape, self.plane.spacing_mm)
            certain = ball & (abs(grey[part] - clicked) <= ALIKE)
            if not click.says_present:
                # The network has heard of the click: what it still shows may be what was clicked beside.
                certain &= ~shown[part]
            seeds[part][certain] = word
            if not away:
                seeds[click.pixel(self.plane.shape)] = word
        return seeds

    def _spacing(self, step: int) -> tuple[float, float, float]:
        row, column = self.plane.spacing_mm
        return self.plane.distance_mm, row * step, column * step

    def _enlarged(self, coarse: Tensor) -> Tensor:
        rows, columns = self.region.size
        size = (coarse.shape[1] * self.step, coarse.shape[2] * self.step)
        return F.interpolate(coarse[:, None], size=size, mode="bilinear", align_corners=False)[:, 0, :rows, :columns]


def _tidy(mask: Mask, seeds: NDArray[np.int8], least: float) -> None:
    """Fill the holes and take away the islands that noise has left, in place; what a prompt touches stays.

    Parameters
    ----------
    mask, seeds : (rows, columns).
    least : pixels of a hole or an island that is none of noise's.
    """
    for shown, word in ((False, OUTSIDE), (True, INSIDE)):
        parts, count = ndimage.label(mask == shown)
        if count < 2:  # noqa: PLR2004 - one part is the whole
            continue
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        specks = (sizes < least) & (sizes * SPECK_SHARE < sizes[1:].max())
        specks[0] = False
        specks[parts[seeds == word]] = False
        mask[specks[parts]] = not shown


def _thinned(values: Tensor, step: int) -> Tensor:
    if step == 1:
        return values
    # Cells at the rim hold fewer pixels, of which they are the mean.
    return F.avg_pool2d(values[None, None], step, ceil_mode=True, count_include_pad=False)[0, 0]


def _thinned_seeds(seeds: Tensor, step: int) -> Tensor:
    if step == 1:
        return seeds
    inside = F.max_pool2d((seeds == INSIDE).float()[None, None], step, ceil_mode=True)[0, 0] > 0
    outside = _thinned((seeds == OUTSIDE).float(), step) > 0.5
    return torch.where(inside, INSIDE, torch.where(outside, OUTSIDE, 0)).to(torch.int8)


def _loosened(box: PlacedPrompt, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return the pixels of a box and of some around it."""
    low, high = box.points.min(axis=0), box.points.max(axis=0)
    slack = BOX_SLACK * (high - low) + 1
    low, high = np.maximum(np.floor(low - slack), 0).astype(int), np.ceil(high + slack).astype(int) + 1
    return slice(int(low[0]), min(int(high[0]), shape[0])), slice(int(low[1]), min(int(high[1]), shape[1]))


def disc(
    centre: Sequence[float], radius_mm: float, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[Mask, tuple[slice, slice]]:
    """Return a disc on a slice, and the pixels (rows, columns) that its array covers."""
    part = []
    for c, n, s in zip(centre, shape, spacing_mm, strict=True):
        part.append(
            slice(max(0, int(np.ceil(c - radius_mm / s))), max(0, min(n, int(np.floor(c + radius_mm / s)) + 1)))
        )
    rows, columns = np.ogrid[part[0], part[1]]
    row_mm, column_mm = (rows - centre[0]) * spacing_mm[0], (columns - centre[1]) * spacing_mm[1]
    return row_mm**2 + column_mm**2 <= radius_mm**2, (part[0], part[1])
