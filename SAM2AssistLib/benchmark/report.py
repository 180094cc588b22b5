"""All measurements of one machine and model, in the form that ``sam2assist bench --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SAM2AssistLib.benchmark.footprint import Load, can_watch, peak_of, startup_seconds
from SAM2AssistLib.benchmark.machine import Machine, count_gflop, describe
from SAM2AssistLib.benchmark.scene import make_scene
from SAM2AssistLib.benchmark.timing import Bench, ClickResult, EncodeResult, PropagateResult
from SAM2AssistLib.benchmark.upstream import Upstream
from SAM2AssistLib.engine.loading import Engine

ENCODED_SLICES, CLICKS, CLICK_OBJECTS = 32, 40, 8
MEMORY_SLICES, MEMORY_OBJECTS = (300, 1000), 1
UPSTREAM_SLICES = (100, 300)
"""Upstream's growth shows on shorter volumes, and takes a minute and a half less."""


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes
    ----------
    machine : on what.
    encode, propagate, click_ms : beside upstream.
    roofline : by kind of work, achieved GFLOP/s and the share of the measured float32 peak; the operations are those
        of upstream's order, so that saving some shows as speed.
    peak_mib : by length of the volume, memory added by a propagation, "ours" on `MEMORY_SLICES` and "upstream" on
        `UPSTREAM_SLICES`; "results" is what of ours is kept of every slice.
    startup_s : seconds to import and to load `mini`.
    """

    machine: Machine
    encode: list[EncodeResult]
    propagate: list[PropagateResult]
    click_ms: ClickResult
    roofline: dict[str, dict[str, float]]
    peak_mib: dict[str, dict[str, float]]
    startup_s: dict[str, float]


def measure(engine: Engine, slices: int, objects: Sequence[int], *, untrained: bool, processes: bool) -> Report:
    """Measure an engine beside upstream.

    Parameters
    ----------
    slices, objects : of the volumes that are propagated through.
    untrained : whether the engine has random weights, which a process of its own has to know.
    processes : also measure memory and start-up, which take processes of their own.
    """
    bench, size = Bench(engine), engine.model.image_size
    machine = describe(engine.model.device)
    scene = make_scene(ENCODED_SLICES + 2 * engine.options.encode_batch, size, CLICK_OBJECTS)
    encode = bench.encode(scene, ENCODED_SLICES)
    clicks = bench.click(scene, CLICKS)
    propagate = [bench.propagate(make_scene(slices, size, count)) for count in objects]
    loads = [
        Load(engine.spec.name, str(engine.model.device), size, untrained, count, MEMORY_OBJECTS)
        for count in (sorted({*UPSTREAM_SLICES, *MEMORY_SLICES}) if processes and can_watch() else ())
    ]
    return Report(
        machine,
        [encode],
        propagate,
        clicks,
        _roofline(bench, machine, encode, propagate),
        {f"{load.slices} slices": _peaks(load) for load in loads},
        startup_seconds() if processes else {},
    )


def _peaks(load: Load) -> dict[str, float]:
    found: dict[str, float] = {}
    if load.slices in MEMORY_SLICES:
        ours = peak_of("ours", load)
        found |= {"ours": ours.host - ours.results, "results": ours.results, "ours_device": ours.device}
    if load.slices in UPSTREAM_SLICES:
        theirs = peak_of("upstream", load)
        found |= {"upstream": theirs.host, "upstream_device": theirs.device}
    return found


def _roofline(
    bench: Bench, machine: Machine, encode: EncodeResult, propagate: Sequence[PropagateResult]
) -> dict[str, dict[str, float]]:
    scene = make_scene(20, bench.size, 1)
    theirs = Upstream(bench.predictor, scene, bench.engine.channels)
    slice_gflop = count_gflop(lambda: theirs.encode([0]))
    theirs.prompt()
    steps = theirs.propagate(np.zeros((1, *scene.volume.array.shape), bool))
    for _ in range(9):  # until all seven memories are there
        next(steps)
    row_gflop = count_gflop(lambda: next(steps)) - slice_gflop
    speeds = {"encode": encode.ours_per_s * slice_gflop}
    for result in propagate:
        gflop = result.slices * (slice_gflop + result.objects * row_gflop)
        speeds[f"propagate {result.objects} objects"] = gflop / result.ours_s
    return {name: {"gflops": speed, "of_peak": speed / machine.float32_gflops} for name, speed in speeds.items()}
