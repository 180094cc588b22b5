"""How the time of a propagation grows with slices and with objects: one plot, and the numbers in it.

    python Testing/Benchmarks/scaling.py [--model mini] [--device cpu] [--out Resources/Docs/scaling]

writes OUT.png and OUT.json. Needs matplotlib. With `mini` it takes a few minutes on two free cores.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np

from SAM2AssistLib.benchmark.machine import describe
from SAM2AssistLib.benchmark.scene import make_scene
from SAM2AssistLib.benchmark.subject import engine_to_measure
from SAM2AssistLib.benchmark.timing import Bench, show_objects

SLICES, OBJECTS = (50, 100, 200, 400, 700, 1000), (1, 2, 4, 8, 16, 32)
SLICES_FOR_OBJECTS = 50


def ours_seconds(bench: Bench, slices: int, objects: int) -> float:
    """Propagate the objects of a scene once, after a first step that is not timed."""
    scene = make_scene(slices, bench.size, objects)
    with bench.alike.open(scene.volume) as session:
        show_objects(session, scene)
        steps = session.propagate()
        next(steps)
        begin = time.perf_counter()
        for _ in steps:
            pass
        return time.perf_counter() - begin


def draw(path: Path, by_slices: list[float], by_objects: list[float]) -> None:
    """Draw both curves; dashed is what would be proportional to the first point."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, counts, seconds, title in (
        (axes[0], SLICES, by_slices, "1 object"),
        (axes[1], OBJECTS, by_objects, f"{SLICES_FOR_OBJECTS} slices"),
    ):
        axis.plot(counts, seconds, "o-", label="measured")
        axis.plot(counts, [seconds[0] * n / counts[0] for n in counts], "--", label="proportional")
        axis.set(title=title, ylabel="seconds", ylim=(0, None))
        axis.legend()
    axes[0].set_xlabel("slices")
    axes[1].set_xlabel("objects")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("Resources/Docs/scaling"))
    arguments = parser.parse_args()
    engine = engine_to_measure(arguments.model, arguments.device)
    bench = Bench(engine)
    by_slices = [ours_seconds(bench, count, 1) for count in SLICES]
    by_objects = [ours_seconds(bench, SLICES_FOR_OBJECTS, count) for count in OBJECTS]
    result = {
        "machine": asdict(describe(engine.model.device)),
        "model": arguments.model,
        "slices": {str(n): s for n, s in zip(SLICES, by_slices, strict=True)},
        "objects": {str(n): s for n, s in zip(OBJECTS, by_objects, strict=True)},
        "exponent_slices": float(np.polyfit(np.log(SLICES), np.log(by_slices), 1)[0]),
        "exponent_objects": float(np.polyfit(np.log(OBJECTS), np.log(by_objects), 1)[0]),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    draw(arguments.out.with_suffix(".png"), by_slices, by_objects)


if __name__ == "__main__":
    main()
