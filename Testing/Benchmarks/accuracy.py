"""Measure a model on CTs with references: Dice from one box on the middle slice, then after simulated clicks.

    python Testing/Benchmarks/accuracy.py DATA [--part test] [--out accuracy.json]

DATA holds ``splits.json`` and, for each case, image.nii.gz, label.nii.gz and labels.json. The box is the reference's
own on the middle slice that holds it; each click goes into the middle of the largest error (the CVPR 2025 challenge's),
and what changed is propagated before the next one. Nothing of the part that is measured may have been trained on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.console import Console
from rich.table import Table

from SAM2AssistLib import CTVolume, load_engine
from SAM2AssistLib.engine.loading import Engine
from SAM2AssistLib.evaluation.metrics import dice
from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice, correction_click


@dataclass(frozen=True)
class Result:
    """One structure of one case.

    Attributes
    ----------
    slice_dice : 2D Dice on the box's slice, before any propagation.
    dice : volumetric, from the box and after each click.
    seconds : from the box to the propagated result, features included.
    """

    case: str
    structure: str
    slice_dice: float
    dice: tuple[float, ...]
    seconds: float


def measure(engine: Engine, folder: Path, structures: list[str] | None, clicks: int) -> list[Result]:
    """Measure all structures of a case, or those that are named."""
    volume = CTVolume.read(folder / "image.nii.gz")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "label.nii.gz")))
    names = json.loads((folder / "labels.json").read_text())
    results = []
    for name, value in names.items():
        reference = labels == value
        if (structures and name not in structures) or not reference.any():
            continue
        results.append(_one(engine, volume, folder.name, name, reference, clicks))
    return results


def _one(engine: Engine, volume: CTVolume, case: str, name: str, reference: np.ndarray, clicks: int) -> Result:
    with engine.open(volume) as session:
        began = time.perf_counter()
        segment = session.add_segment(name)
        box = box_on_middle_slice(reference)
        at_once = session.place_box(segment, box)
        slice_dice = dice(at_once, reference[round(box.min_ijk[2])])
        list(session.propagate())
        seconds = time.perf_counter() - began
        scores = [dice(session.mask(segment), reference)]
        for _ in range(clicks):
            click = correction_click(session.mask(segment), reference, volume.spacing_ijk[::-1])
            if click is not None:
                session.place_point(segment, click)
                list(session.propagate())
            scores.append(dice(session.mask(segment), reference))
    return Result(case, name, slice_dice, tuple(scores), seconds)


def report(results: list[Result]) -> dict:
    """Summarise as mean, standard deviation and worst; the single results too."""
    scores = np.array([r.dice for r in results])
    return {
        "protocol": "one 2D box on the middle slice, then simulated clicks (CVPR 2025); volumetric Dice",
        "mean": scores.mean(axis=0).round(4).tolist(),
        "sd": scores.std(axis=0).round(4).tolist(),
        "worst": scores.min(axis=0).round(4).tolist(),
        "results": [asdict(r) for r in results],
    }


def show(results: list[Result]) -> None:
    """Print a table."""
    table = Table()
    for heading in ("Case", "Structure", "Slice", "Box", *(f"+{n + 1}" for n in range(len(results[0].dice) - 1)), "s"):
        table.add_column(heading, justify="left" if heading in ("Case", "Structure") else "right")
    for r in results:
        table.add_row(r.case, r.structure, f"{r.slice_dice:.3f}", *(f"{d:.3f}" for d in r.dice), f"{r.seconds:.1f}")
    means = np.array([[r.slice_dice, *r.dice, r.seconds] for r in results]).mean(axis=0)
    table.add_section()
    table.add_row("mean", "", *(f"{m:.3f}" for m in means[:-1]), f"{means[-1]:.1f}")
    Console().print(table)


def main() -> None:
    """Parse the command line, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", default="test", help="of splits.json")
    parser.add_argument("--cases", nargs="*", help="only these")
    parser.add_argument("--structures", nargs="*", help="only these")
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON with everything")
    arguments = parser.parse_args()
    cases = arguments.cases or json.loads((arguments.data / "splits.json").read_text())[arguments.part]
    engine = load_engine(arguments.model, arguments.device)
    results: list[Result] = []
    for case in cases:
        folder = arguments.data / case
        if (folder / "label.nii.gz").is_file():
            results += measure(engine, folder, arguments.structures, arguments.clicks)
    show(results)
    if arguments.out:
        arguments.out.write_text(json.dumps(report(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
