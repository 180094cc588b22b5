"""Ours and upstream by turns, so that whatever else the machine is doing weighs on both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from SAM2AssistLib.benchmark.scene import Scene
from SAM2AssistLib.benchmark.upstream import Upstream, upstream_of
from SAM2AssistLib.engine.loading import Engine, engine_for
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.session import Session

WARM_UP_CLICKS = 3


@dataclass(frozen=True)
class EncodeResult:
    """Slices encoded per second."""

    model: str
    size: int
    ours_per_s: float
    upstream_per_s: float
    ratio: float


@dataclass(frozen=True)
class PropagateResult:
    """Propagation of some objects through a volume, up and down, features included.

    Attributes
    ----------
    ours_s, upstream_s : seconds, with equal prompts, weights and options (no focus, no stop rules).
    ratio : upstream_s / ours_s.
    mean_iou : of the masks of both, over the slices of every object on which either has found it; the prompted slice is
        left out, for ours shows the prompt there as it was given, and upstream at a quarter of its resolution.
    found : share of objects times slices, the prompted one left out, on which either has found anything.
    """

    model: str
    size: int
    slices: int
    objects: int
    ours_s: float
    upstream_s: float
    ratio: float
    mean_iou: float
    found: float


@dataclass(frozen=True)
class ClickResult:
    """Milliseconds from a click on an encoded slice to its mask."""

    p50: float
    p95: float
    upstream_p50: float


class Bench:
    """An engine and the predictor of upstream that has its weights.

    Parameters
    ----------
    engine : to be measured; its options are replaced by those of upstream where masks are compared.
    """

    def __init__(self, engine: Engine) -> None:
        speed = engine.options
        alike = EngineOptions.like_upstream(both_directions=True)
        self.alike = engine_for(
            engine.model,
            engine.spec,
            replace(
                alike,
                half=speed.half,
                exact=False,  # as users have it
                encode_batch=speed.encode_batch,
                row_batch=speed.row_batch,
                cache_bytes=speed.cache_bytes,
            ),
        )
        self.engine = engine
        self.predictor = upstream_of(engine)
        self.name, self.size = engine.spec.name, engine.model.image_size

    def encode(self, scene: Scene, count: int) -> EncodeResult:
        """Encode slices, in blocks by turns."""
        theirs = Upstream(self.predictor, scene, self.engine.channels)
        with self.alike.open(scene.volume) as session:
            plane = session._plane(0)
            view, block = plane.whole, plane.encoder.batch
            # The first block of each is not timed: it finds out about kernels and layouts.
            blocks = [range(n, n + block) for n in range(0, min(count, plane.slices - block) + 1, block)]
            ours = _timed(lambda part: plane.network.features_of([(k, view) for k in part]), blocks)
            upstream = _timed(theirs.encode, blocks)
            seconds = alternate(ours, upstream, self._settle)
        spent = [sum(part[1:]) for part in seconds]
        slices = sum(len(part) for part in blocks[1:])
        return EncodeResult(self.name, self.size, slices / spent[0], slices / spent[1], spent[1] / spent[0])

    def propagate(self, scene: Scene) -> PropagateResult:
        """Propagate all objects of a scene."""
        theirs = Upstream(self.predictor, scene, self.engine.channels)
        theirs.prompt()
        slices, objects = len(scene.volume.array), len(scene.masks)
        upstream_masks = np.zeros((objects, *scene.volume.array.shape), bool)
        with self.alike.open(scene.volume) as session:
            show_objects(session, scene)
            ours_s, upstream_s = (
                sum(part) for part in alternate(_progress(session), theirs.propagate(upstream_masks), self._settle)
            )
            pairs = zip(session.segments, upstream_masks, strict=True)
            tracked = np.arange(slices) != scene.index
            ious = np.concatenate([_ious(session.mask_view(s)[tracked], masks[tracked]) for s, masks in pairs])
        ratio, iou = upstream_s / ours_s, float(ious.mean()) if len(ious) else 1.0
        found = len(ious) / (objects * (slices - 1))
        return PropagateResult(self.name, self.size, slices, objects, ours_s, upstream_s, ratio, iou, found)

    def click(self, scene: Scene, count: int) -> ClickResult:
        """Click on an encoded slice, each time into a new segment, with all that the user has: focus and stop rules."""
        rng = np.random.default_rng(0)
        theirs = Upstream(self.predictor, scene, self.engine.channels)
        theirs.encode([scene.index])
        ours_ms, theirs_ms = [], []
        with self.engine.open(scene.volume) as session:
            for number in range(WARM_UP_CLICKS + count):
                xy = rng.choice(np.argwhere(scene.masks[number % len(scene.masks)]))[::-1]
                segment = session.add_segment(f"{number}")
                point = scene.volume.ras_from_index_ijk([*xy, scene.index])
                session.add_point(segment, point)  # through the view that the first click chooses
                ours_ms.append(1e3 * self._seconds(lambda: session.add_point(segment, point)))  # noqa: B023
                theirs_ms.append(1e3 * self._seconds(lambda: theirs.click(number, xy)))  # noqa: B023
                session.remove_segment(segment)
                theirs.predictor.reset_state(theirs.up)
        ours_ms, theirs_ms = ours_ms[WARM_UP_CLICKS:], theirs_ms[WARM_UP_CLICKS:]
        return ClickResult(median(ours_ms), float(np.percentile(ours_ms, 95)), median(theirs_ms))

    def _seconds(self, action: Callable[[], object]) -> float:
        self._settle()
        begin = time.perf_counter()
        action()
        self._settle()
        return time.perf_counter() - begin

    def _settle(self) -> None:
        if self.engine.model.device.type == "cuda":
            torch.cuda.synchronize(self.engine.model.device)


def show_objects(session: Session, scene: Scene) -> None:
    """Add a segment for each object of a scene, its mask the prompt."""
    for number, mask in enumerate(scene.masks):
        session.add_mask(session.add_segment(f"object {number}"), scene.index, mask)


def alternate(
    ours: Iterator[float], theirs: Iterator[float], settle: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Let two workers go on by turns, always the one that is behind; the seconds of their turns.

    Parameters
    ----------
    ours, theirs : each yields, after every turn, the share of its work that is done.
    settle : waits for the device.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    done = [0.0, 0.0]
    workers = [ours, theirs]
    while min(done) <= 1.0:
        turn = 0 if done[0] <= done[1] else 1
        settle()
        begin = time.perf_counter()
        share = next(workers[turn], None)
        settle()
        seconds[turn].append(time.perf_counter() - begin)
        done[turn] = 2.0 if share is None else share
    return seconds


def _progress(session: Session) -> Iterator[float]:
    for step in session.propagate():
        yield step.done / step.total


def _timed(action: Callable[[range], object], blocks: Sequence[range]) -> Iterator[float]:
    for number, block in enumerate(blocks, 1):
        action(block)
        yield number / len(blocks)


def _ious(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the IoU of each slice that has a mask in either; both (slices, rows, columns) bool."""
    both = (ours & theirs).sum(axis=(1, 2))
    either = (ours | theirs).sum(axis=(1, 2))
    return both[either > 0] / either[either > 0]
