"""How fast the module answers, measured in the host: `python Testing/SlicerHost/latency.py [--clicks 15] [--ct FILE]`.

Two times decide how the module feels: from the Qt event of a click to the changed segment on that slice, with features
ready; and the longest time in which the event loop did nothing else while a mask is propagated. Both are taken by the
user's own way: Qt events in a slice view, and a timer that beats every 5 ms.

On a machine that has other work, times are too long by what the others take. So the event loop is measured in idle too,
and beside the clock's times stands the work: of the process until the segment changes, of the event loop's thread
between two beats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Answers:
    """What was measured; milliseconds, but for the numbers of clicks answered, of beats and of slices."""

    clicks: int
    click_to_segment_median: float
    click_to_segment_longest: float
    click_to_segment_median_of_work: float
    propagation_longest_block: float
    propagation_longest_own_work: float
    propagation_95th_percentile_block: float
    propagation_beats: int
    idle_longest_block: float
    slices: int


def measure(host: Any, volume: Any, mask_kji: Any, clicks: int) -> Answers:
    """Click into a structure again and again, then propagate; return the times.

    Parameters
    ----------
    host
        With the window shown.
    volume
        The volume node.
    mask_kji
        A structure (k, j, i) of the volume, into which the clicks go.
    clicks
        How many.
    """
    import numpy as np
    import slicer
    from slicer_host import Latency

    host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    widget = host.open_module("SAM2Assist")
    user = host.user
    user.press(widget.ui.autoPropagateCheckBox)
    host.user.wait(0.2)
    with user.heartbeat() as idle:
        user.wait(1.0)
    user.press(widget.ui.positiveButton)

    def settle() -> None:
        user.wait_until(lambda: not widget.panel.busy(), 120.0)

    settle()
    slices = np.flatnonzero(mask_kji.any(axis=(1, 2)))
    rng = np.random.default_rng(0)
    times, works = list[float](), list[float]()
    middle = int(slices[len(slices) // 2])
    voxels = np.argwhere(mask_kji[middle])
    for number in range(clicks + 2):
        j, i = voxels[rng.integers(len(voxels))]
        ras = ras_of(volume, (int(i), int(j), middle))
        user.show_position("Red", ras)
        user.move("Red", ras)
        user.wait(0.05)
        settle()
        watch = Latency(widget.panel.segmentation_node, slicer.vtkSegmentation.SourceRepresentationModified)
        watch.start()
        user.click("Red", ras)
        user.wait_until(lambda watch=watch: watch.first_ms is not None, 30.0)
        watch.stop()
        settle()
        if number >= 2:  # the first ones make what later ones have
            times.append(watch.first_ms or 0.0)
            works.append(watch.first_cpu_ms or 0.0)
    with user.heartbeat() as beat:
        user.press(widget.ui.propagateButton)
        settle()
    pauses = sorted(beat.pauses_ms)
    return Answers(
        len(times),
        statistics.median(times),
        max(times),
        statistics.median(works),
        beat.longest_ms,
        beat.longest_cpu_ms,
        pauses[int(0.95 * (len(pauses) - 1))],
        beat.beats,
        idle.longest_ms,
        len(slices),
    )


def ras_of(volume: Any, index_ijk: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return the RAS position in mm of a voxel (i, j, k)."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    x, y, z, _ = matrix.MultiplyPoint((*index_ijk, 1))
    return x, y, z


def phantom_in_scene(ct: Path | None) -> tuple[Any, Any]:
    """Return a volume node and a structure (k, j, i): a phantom's liver, or the soft tissue amid a CT."""
    import numpy as np
    import slicer

    if ct is not None:
        volume = slicer.util.loadVolume(str(ct))
        array = slicer.util.arrayFromVolume(volume)
        mask = np.zeros(array.shape, bool)
        middle = tuple(slice(size * 2 // 5, size * 3 // 5) for size in array.shape[1:])
        mask[:, middle[0], middle[1]] = array[:, middle[0], middle[1]] > 0
        return volume, mask
    sys.path.insert(0, str(ROOT))
    from SAM2AssistLib.training.phantoms import make_phantom

    phantom = make_phantom(7, (40, 256, 256), (1.5, 1.5, 3.0))
    node = slicer.util.addVolumeFromArray(np.array(phantom.volume.array), phantom.volume.ijk_to_ras, "phantom")
    return node, phantom.labels == phantom.names["liver"]


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clicks", type=int, default=15)
    parser.add_argument("--ct", type=Path, help="a CT instead of the phantom")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from slicer_host import open_host

    with open_host() as host:
        host.show()
        volume, mask = phantom_in_scene(arguments.ct)
        answers = asdict(measure(host, volume, mask, arguments.clicks))
    text = json.dumps(answers, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
