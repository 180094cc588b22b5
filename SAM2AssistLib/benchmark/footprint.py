"""Memory and start-up, each in a process of its own: only there is a peak a peak and a start a start.

    python -m SAM2AssistLib.benchmark.footprint ours|upstream '{"model": "mini", ...}'

prints the bytes that one propagation has added at its peak; the parent process calls it so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from SAM2AssistLib.engine.heap import give_freed_memory_back
from SAM2AssistLib.errors import ModelError

STATM = Path("/proc/self/statm")
SETTLE_S = 0.002
"""Between two looks at the memory in use."""


@dataclass(frozen=True)
class Load:
    """What a process of its own shall do.

    Attributes
    ----------
    model, device, size, untrained : of the engine; see `SAM2AssistLib.benchmark.subject`.
    slices, objects : of the scene.
    """

    model: str
    device: str
    size: int | None
    untrained: bool
    slices: int
    objects: int


@dataclass(frozen=True)
class Peak:
    """Memory that a propagation has needed at its peak, in MiB, beyond model, volume and masks.

    Attributes
    ----------
    host, device : on the computer and on the accelerator.
    results : of which what a segment keeps of every slice (logits and pointers), so that it can be corrected.
    """

    host: float
    device: float
    results: float


def peak_of(who: str, load: Load) -> Peak:
    """Measure a propagation of "ours" or "upstream" in a process of its own.

    Raises
    ------
    ModelError
        If that process fails.
    """
    done = _python("-m", "SAM2AssistLib.benchmark.footprint", who, json.dumps(asdict(load)))
    return Peak(**json.loads(done.splitlines()[-1]))


def startup_seconds(rounds: int = 3) -> dict[str, float]:
    """Measure, the quickest of some fresh processes each, what a user waits for before the first prompt.

    Returns
    -------
    Seconds of ``import`` (of SAM2AssistLib), of ``import_engine`` (torch and sam2 with it), and of ``load_mini`` after
    that.
    """
    script = (
        "import time; t = time.perf_counter(); import SAM2AssistLib; a = time.perf_counter();"
        "from SAM2AssistLib.engine import loading; b = time.perf_counter();"
        "loading.load_engine('mini', 'cpu'); c = time.perf_counter(); print(a - t, b - a, c - b)"
    )
    lines = [_python("-c", script).split() for _ in range(rounds)]
    columns = zip(*[[float(word) for word in line] for line in lines], strict=True)
    return dict(zip(("import", "import_engine", "load_mini"), (min(column) for column in columns), strict=True))


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"A process that was to be measured failed ({reason}); run 'sam2assist bench' again.")
    return done.stdout


def _measured(who: str, load: Load) -> Peak:
    import numpy as np
    import torch

    from SAM2AssistLib.benchmark.scene import make_scene
    from SAM2AssistLib.benchmark.subject import engine_to_measure
    from SAM2AssistLib.benchmark.timing import Bench, show_objects
    from SAM2AssistLib.benchmark.upstream import Upstream

    engine = engine_to_measure(load.model, load.device, load.size, untrained=load.untrained)
    bench = Bench(engine)
    scene = make_scene(load.slices, engine.model.image_size, load.objects)
    cuda = engine.model.device.type == "cuda"
    kept = 0
    watch = HostWatch()
    if who == "upstream":
        theirs = Upstream(bench.predictor, scene, engine.channels)
        masks = np.ones((load.objects, *scene.volume.array.shape), bool)
        theirs.prompt()
        watch.start()
        for _ in theirs.propagate(masks):
            watch.look()
    else:
        with bench.alike.open(scene.volume) as session:
            show_objects(session, scene)
            for segment in session.segments:
                session._record(segment).mask |= False  # touched, so that its pages are there before
            watch.start()
            for _ in session.propagate():
                watch.look()
            findings = [session._record(segment).findings for segment in session.segments]
            kept = sum(state.size_bytes for f in findings for state in f.states.values())
    device = torch.cuda.max_memory_allocated() - watch.device_before if cuda else 0
    return Peak(watch.added / 2**20, device / 2**20, kept / 2**20)


class HostWatch:
    """The most memory that the process has had since the start, from what the system says between steps."""

    def __init__(self) -> None:
        self._before = self._most = 0
        self.device_before = 0
        self._due = 0.0

    def start(self) -> None:
        """Take what is in use now as given."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.device_before = torch.cuda.memory_allocated()
        # What was freed before, but not given back to the system, would hide what is taken from now on.
        give_freed_memory_back()
        self._before = self._most = _resident_bytes()

    def look(self) -> None:
        """Look, unless that was just done."""
        if time.monotonic() >= self._due:
            self._most = max(self._most, _resident_bytes())
            self._due = time.monotonic() + SETTLE_S

    @property
    def added(self) -> int:
        """Bytes added since the start, at most."""
        return self._most - self._before


def can_watch() -> bool:
    """Tell whether the memory in use can be told here: on Linux."""
    return STATM.exists()


def _resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(asdict(_measured(sys.argv[1], Load(**json.loads(sys.argv[2]))))))
