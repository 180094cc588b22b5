"""Time and size of a DICOM-SEG of a whole CT with 13 segments, beside what dcmqi makes of the same masks.

    python Testing/Benchmarks/dicom_export.py [--slices 300] [--size 512] [--rounds 3] [--json]

The organs are those that BTCV annotates, from a phantom: once as they are, each voxel in one of them, and once grown
into their neighbours, so that they overlap. Ours is timed twice: the writing alone, and `sam2assist export` from the
start of the program to its end, with reading the series and the .seg.nrrd. dcmqi's is its `itkimage2segimage`, which
reads the masks from NRRD files. Ours and dcmqi's alternate, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from ct_files import write_dicom_series
from dicom_scenes import dcmqi_writing

from SAM2AssistLib.io.dicom_seg import write_dicom_seg
from SAM2AssistLib.io.dicom_seg_reader import read_dicom_seg
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import masks_on_grid_of, write_segmentation
from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.volume import CTVolume

ORGANS = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
)  # fmt: skip
SPACING_MM = (0.8, 0.8, 1.5)
GROWN_BY_PIXELS = 4
PROGRAMS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class Result:
    """Medians of one scene.

    Attributes
    ----------
    scene : "apart" or "overlapping".
    segments, frames : in the object that we write.
    write_seconds, command_seconds, dcmqi_seconds : of `write_dicom_seg`, `sam2assist export` and `itkimage2segimage`.
    write_cpu_seconds, command_cpu_seconds, dcmqi_cpu_seconds : what they computed, which a busy machine changes less.
    bytes, dcmqi_bytes, size_ratio : of the files, and ours to dcmqi's.
    same_voxels : whether ours, when read again, has just the voxels that were written, and dcmqi's has them too.
    """

    scene: str
    segments: int
    frames: int
    write_seconds: float
    write_cpu_seconds: float
    command_seconds: float
    command_cpu_seconds: float
    dcmqi_seconds: float
    dcmqi_cpu_seconds: float
    bytes: int
    dcmqi_bytes: int
    size_ratio: float
    same_voxels: bool


def main() -> None:
    """Measure both scenes and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    shape = (arguments.slices, arguments.size, arguments.size)
    with tempfile.TemporaryDirectory() as place:
        volume, organs = a_case(Path(place), shape)
        scenes = {"apart": organs, "overlapping": [grown(named) for named in organs]}
        results = [measured(Path(place), name, masks, volume, arguments.rounds) for name, masks in scenes.items()]
    content = {"shape_kji": shape, "cores": len(os.sched_getaffinity(0)), "results": [asdict(r) for r in results]}
    print(json.dumps(content, indent=2) if arguments.json else table(results))


def a_case(place: Path, shape: Sequence[int]) -> tuple[CTVolume, list[NamedMask]]:
    """A series on disk, read again, and its organs.

    The phantom is made with half the resolution along each axis and doubled, which takes a tenth of the time.
    """
    slices, rows, columns = shape
    half = (-(-slices // 2), -(-rows // 2), -(-columns // 2))
    x, y, z = (2 * step for step in SPACING_MM)
    phantom = make_phantom(2, half, (x, y, z))
    matrix = np.diag([*SPACING_MM, 1.0])
    write_dicom_series(place / "ct", doubled(phantom.volume.array, shape), matrix)
    shown = [name for name in ORGANS if name in phantom.names]  # all, unless it is cut to a few slices
    organs = [NamedMask(name, doubled(phantom.labels == phantom.names[name], shape)) for name in shown]
    return CTVolume.read(place / "ct"), organs


def doubled(array: NDArray[np.generic], shape: Sequence[int]) -> NDArray[np.generic]:
    """Every voxel twice along each axis, cut to a shape."""
    for axis in range(3):
        array = array.repeat(2, axis)
    return np.ascontiguousarray(array[tuple(slice(size) for size in shape)])


def grown(named: NamedMask) -> NamedMask:
    """A segment that reaches into its neighbours within the slices."""
    disc = np.hypot(*np.ogrid[-GROWN_BY_PIXELS : GROWN_BY_PIXELS + 1, -GROWN_BY_PIXELS : GROWN_BY_PIXELS + 1])
    inside = disc <= GROWN_BY_PIXELS
    slices = [binary_dilation(plane, inside) if plane.any() else plane for plane in named.mask]
    return NamedMask(named.name, np.array(slices))


def measured(place: Path, scene: str, masks: Sequence[NamedMask], volume: CTVolume, rounds: int) -> Result:
    """Write the masks with all programs in turn, several times."""
    ours, by_command, theirs, source = (place / f"{scene}.{kind}" for kind in ("dcm", "2.dcm", "q.dcm", "seg.nrrd"))
    write_segmentation(source, masks, volume)
    export = (PROGRAMS / "sam2assist", "export", source, "--dicom", place / "ct", "-o", by_command)
    dcmqi = dcmqi_writing(str(PROGRAMS / "itkimage2segimage"), place, masks, volume, theirs)
    works: dict[str, Callable[[], object]] = {
        "write": lambda: write_dicom_seg(ours, masks, volume),
        "command": lambda: run(export),
        "dcmqi": lambda: run(dcmqi),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            print(f"{scene}, round {number + 1}: {name}", file=sys.stderr)
            begin, cpu_begin = time.perf_counter(), cpu_seconds()
            work()
            seconds[name].append((time.perf_counter() - begin, cpu_seconds() - cpu_begin))
    wall, cpu = ({name: statistics.median(pair[n] for pair in seconds[name]) for name in works} for n in (0, 1))
    found = read_dicom_seg(ours)
    return Result(
        scene=scene,
        segments=len(found.masks),
        frames=sum(int(named.mask.any(axis=(1, 2)).sum()) for named in masks),
        write_seconds=wall["write"],
        write_cpu_seconds=cpu["write"],
        command_seconds=wall["command"],
        command_cpu_seconds=cpu["command"],
        dcmqi_seconds=wall["dcmqi"],
        dcmqi_cpu_seconds=cpu["dcmqi"],
        bytes=ours.stat().st_size,
        dcmqi_bytes=theirs.stat().st_size,
        size_ratio=ours.stat().st_size / theirs.stat().st_size,
        same_voxels=all(holds(path, masks, volume) for path in (ours, by_command, theirs)),
    )


def cpu_seconds() -> float:
    """What this process and the programs that it has run have computed so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(command: Sequence[object]) -> None:
    """Run a program to its end; what it says is shown if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")


def holds(path: Path, masks: Sequence[NamedMask], volume: CTVolume) -> bool:
    """Whether a DICOM-SEG has just these masks."""
    seg = read_dicom_seg(path)
    found = {named.name: named.mask for named in masks_on_grid_of(volume, seg.masks, seg.ijk_to_lps)}
    return all(np.array_equal(found[named.name], named.mask) for named in masks)


def table(results: Sequence[Result]) -> str:
    """Rows as the documentation has them; of each program the seconds by the clock, then those of computing."""
    lines = ["| masks | frames | writing | `sam2assist export` | dcmqi | our size | dcmqi's | ratio | equal |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        pairs = (
            (r.write_seconds, r.write_cpu_seconds),
            (r.command_seconds, r.command_cpu_seconds),
            (r.dcmqi_seconds, r.dcmqi_cpu_seconds),
        )
        cells = [r.scene, str(r.frames), *(f"{wall:.1f} ({cpu:.1f}) s" for wall, cpu in pairs)]
        cells += [f"{r.bytes / 1e6:.1f} MB", f"{r.dcmqi_bytes / 1e6:.1f} MB", f"{r.size_ratio:.3f}"]
        lines.append(f"| {' | '.join([*cells, 'yes' if r.same_voxels else 'NO'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
