"""Measure a model on CTs with references: Dice from one box on the middle slice, then after simulated clicks.

    python Testing/Benchmarks/accuracy.py DATA [--part test] [--out accuracy.json]

DATA holds ``splits.json`` and, for each case, image.nii.gz, label.nii.gz and labels.json. The box is the reference's
own on the middle slice that holds it; each click goes into the middle of the largest error (the CVPR 2025 challenge's),
and what changed is propagated before the next one. Nothing of the part that is measured may have been trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from SAM2AssistLib import load_engine
from SAM2AssistLib.engine.loading import Engine
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.cases import Case, find_cases
from SAM2AssistLib.evaluation.interactive import Task, User, run_trial
from SAM2AssistLib.evaluation.methods import EngineMethod

USER = User("human", "tight box", 0)
"""A box on the middle slice, then clicks into the largest errors, deepest in mm."""


@dataclass(frozen=True)
class Result:
    """One structure of one case.

    Attributes
    ----------
    slice_dice : 2D Dice on the box's slice, before any propagation.
    dice : volumetric, from the box and after each click.
    seconds : from the box to the propagated result, features included that no earlier structure of the case needed.
    """

    case: str
    structure: str
    slice_dice: float
    dice: tuple[float, ...]
    seconds: float


def measure(engine: Engine, case: Case, structures: list[str] | None, clicks: int) -> list[Result]:
    """Measure all structures of a case, or those that are named."""
    held, method = case.read(), EngineMethod(engine)
    results = []
    with method.open(held.volume) as opened:
        for name in held.structures(structures or ()):
            task = Task(case.name, name, held.reference(name), held.spacing_kji)
            trial, _ = run_trial(opened, method, task, USER, clicks)
            assert trial.slice_dsc is not None  # the engine always has a mask at once
            results.append(Result(case.name.split("/")[-1], name, trial.slice_dsc, trial.dsc, trial.seconds[0]))
    return results


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
    try:
        cases = find_cases(arguments.data, None if arguments.cases else arguments.part, arguments.cases or ())
    except InputError as error:
        sys.exit(str(error))
    engine = load_engine(arguments.model, arguments.device)
    results = [result for case in cases for result in measure(engine, case, arguments.structures, arguments.clicks)]
    show(results)
    if arguments.out:
        arguments.out.write_text(json.dumps(report(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
