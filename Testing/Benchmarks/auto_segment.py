"""Measure Auto-Segment: on unseen phantoms, on real CT by support cases, and against its own ablations.

    python Testing/Benchmarks/auto_segment.py phantoms [--adapter DIR] [--count 20]
    python Testing/Benchmarks/auto_segment.py support --data ../shared/data --support CASE... --query CASE...
    python Testing/Benchmarks/auto_segment.py leave-one-out --data DIR --query CASE... --support-pool CASE...
    python Testing/Benchmarks/auto_segment.py ablation-head | ablation-support | corrections [--count 6]
    python Testing/Benchmarks/auto_segment.py memory --count 600

A CASE is a folder below --data with ``image.nii.gz`` and ``label.nii.gz``. Dice is volumetric, over all slices. One
JSON object goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from SAM2AssistLib.engine.loading import Engine, load_engine
from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompting.auto import AutoOptions, auto_segment
from SAM2AssistLib.prompting.pseudo_masks import SupportOptions
from SAM2AssistLib.prompting.self_prompt import SelfPrompter, embedded_adapter, load_self_prompter
from SAM2AssistLib.prompting.support import Support, SupportCase, prepare_support, read_support
from SAM2AssistLib.prompting.templates import TemplateOptions
from SAM2AssistLib.training.self_prompt_scans import REMOVABLE, LabelledScan, phantom_scan
from SAM2AssistLib.volume import CTVolume

PRESENT_ML, ABSENT_ML = 3.0, 0.05
"""As in the calibration of a head: what lies between is counted neither as present nor as absent."""
FIRST_SEED = 100
"""Training draws its phantoms from 4 000 000 upwards."""
PHANTOM_CLASSES = ("liver", "spleen", "kidney_right", "kidney_left", "stomach", "aorta")

WITHOUT = {"box": False, "hint": False, "positives": 0, "negatives": 0}
HEAD_VARIANTS = {
    "all": AutoOptions(),
    "points only": AutoOptions(templates=TemplateOptions(**{**WITHOUT, "positives": 3, "negatives": 3})),
    "boxes only": AutoOptions(templates=TemplateOptions(**{**WITHOUT, "box": True})),
    "propagation alone (maps not blended in)": AutoOptions(map_weight=0.0),
    "maps alone": AutoOptions(map_weight=1.0),
    "templates 40 mm apart": AutoOptions(templates=TemplateOptions(spacing_mm=40.0)),
    "templates 10 mm apart": AutoOptions(templates=TemplateOptions(spacing_mm=10.0)),
}
SUPPORT_VARIANTS = {
    "ours": AutoOptions(),
    "retrieval random": AutoOptions(support=SupportOptions(random_seed=0)),
    "resembling cells alone": AutoOptions(support=SupportOptions(prior_weight=1.0)),
    "PMG alone": AutoOptions(support=SupportOptions(prior_weight=0.0)),
    "PMG without second pass (maps alone)": AutoOptions(map_weight=1.0),
    "second pass without the maps": AutoOptions(map_weight=0.0),
    "one memory": AutoOptions(support=SupportOptions(memories=1)),
}


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def score(engine: Engine, scan: LabelledScan, wanted: Sequence[str], **settings: object) -> dict[str, object]:
    """Segment one volume; returns Dice by present class, and for absent classes whether they were declared absent."""
    voxel_ml = float(np.prod(scan.volume.spacing_ijk)) / 1000
    result: dict[str, object] = {"name": scan.name, "dice": {}, "declared_absent": {}}
    with engine.open(scan.volume) as session:
        *_, last = auto_segment(session, classes=wanted, **settings)  # type: ignore[arg-type]
        for verdict in last.verdicts:
            truth = scan.masks.get(verdict.name)
            volume_ml = 0.0 if truth is None else voxel_ml * float(truth.sum())
            if volume_ml >= PRESENT_ML:
                mask = session.mask(verdict.segment) if verdict.segment else np.zeros_like(truth)
                result["dice"][verdict.name] = round(dice(mask, truth), 4)  # type: ignore[index]
            elif volume_ml <= ABSENT_ML:
                result["declared_absent"][verdict.name] = not verdict.present  # type: ignore[index]
    say(f"{scan.name}: {result['dice']} {result['declared_absent']}")
    return result


def summary(results: Sequence[dict]) -> dict[str, object]:
    """Mean Dice over all present classes and the share of absent ones that were declared absent."""
    values = [v for r in results for v in r["dice"].values()]
    absent = [v for r in results for v in r["declared_absent"].values()]
    names = sorted({n for r in results for n in r["dice"]})
    return {
        "mean_dice": round(float(np.mean(values)), 4) if values else None,
        "by_class": {n: round(float(np.mean([r["dice"][n] for r in results if n in r["dice"]])), 4) for n in names},
        "declared_absent": round(float(np.mean(absent)), 4) if absent else None,
        "absent": len(absent),
    }


def phantoms(engine: Engine, prompter: SelfPrompter, count: int, options: AutoOptions | None = None) -> list[dict]:
    """Segment unseen phantoms, every second one without one of its organs."""
    found = []
    for number in range(count):
        without = sorted(REMOVABLE)[(number // 2) % len(REMOVABLE)] if number % 2 else None
        scan = phantom_scan(FIRST_SEED + number, without)
        found.append(score(engine, scan, prompter.classes, adapter=prompter, options=options))
    return found


def read_case(folder: Path) -> SupportCase:
    """Read a labelled case."""
    return read_support(folder / "image.nii.gz", folder / "label.nii.gz")


def as_scan(case: SupportCase) -> LabelledScan:
    """Take a case for the truth."""
    return LabelledScan(case.name, case.volume, case.masks)


def ablation_support(engine: Engine, count: int) -> dict[str, object]:
    """Phantoms by another phantom as their only support."""
    table = {}
    for name, options in SUPPORT_VARIANTS.items():
        say(name)
        rows = []
        for number in range(count):
            query, support = phantom_scan(FIRST_SEED + 2 * number), phantom_scan(FIRST_SEED + 2 * number + 1)
            case = SupportCase(support.name, support.volume, support.masks)
            shown = [n for n in PHANTOM_CLASSES if n in support.masks]
            rows.append(score(engine, query, shown, support=[case], options=options))
        table[name] = summary(rows)
    return table


def corrections(engine: Engine, prompter: SelfPrompter, count: int) -> dict[str, object]:
    """Compare 0, 3 and 10 rounds; never worse is the aim, so the share of cases made worse is counted."""
    by_rounds = {}
    for rounds in (0, 3, 10):
        say(f"{rounds} rounds")
        scans = [phantom_scan(FIRST_SEED + n) for n in range(count)]
        by_rounds[rounds] = [
            score(engine, scan, prompter.classes, adapter=prompter, corrections=rounds) for scan in scans
        ]
    table: dict[str, object] = {}
    for rounds, rows in by_rounds.items():
        changes = [
            row["dice"][name] - base["dice"][name]
            for row, base in zip(rows, by_rounds[0], strict=True)
            for name in row["dice"]
        ]
        worse = float(np.mean([c < -0.002 for c in changes]))
        table[str(rounds)] = {**summary(rows), "made_worse": round(worse, 4)}
    return table


def best_single_box(engine: Engine, case: SupportCase, name: str) -> float:
    """Dice from one box on the middle slice, propagated: what the support has to compare with."""
    with engine.open(case.volume) as session:
        segment = session.add_segment(name)
        session.place_box(segment, box_on_middle_slice(case.masks[name]))
        for _ in session.propagate():
            pass
        return dice(session.mask(segment), case.masks[name])


def leave_one_out(engine: Engine, data: Path, queries: Sequence[str], pool: Sequence[str], count: int) -> dict:
    """Segment each query by ``count`` other cases, drawn at five seeds."""
    held = {name: read_case(data / name) for name in dict.fromkeys([*queries, *pool])}
    prepared: dict[str, Support] = {}
    rows = []
    for query in queries:
        case = held[query]
        with engine.open(case.volume) as session:
            window = session.window
        values = []
        for seed in range(5):
            others = [n for n in pool if n != query]
            drawn = [others[i] for i in np.random.default_rng(seed).permutation(len(others))[:count]]
            for name in drawn:
                if name not in prepared:
                    prepared[name] = prepare_support(engine, held[name], window)
            names = tuple(case.masks)
            result = score(engine, as_scan(case), names, support=[prepared[n] for n in drawn])
            values.append(float(np.mean(list(result["dice"].values()))))  # type: ignore[attr-defined]
        box = float(np.mean([best_single_box(engine, case, n) for n in case.masks if case.masks[n].any()]))
        rows.append({"case": query, "dice_by_seed": values, "one_box": round(box, 4)})
    seeds = np.array([r["dice_by_seed"] for r in rows]).mean(axis=0)
    return {
        "mean": round(float(seeds.mean()), 4),
        "sd": round(float(seeds.std(ddof=1)), 4),
        "one_box": round(float(np.mean([r["one_box"] for r in rows])), 4),
        "cases": rows,
    }


def memory(engine: Engine, prompter: SelfPrompter, slices: int) -> dict[str, object]:
    """Segment a long volume and tell the most memory that this process has taken."""
    scan = phantom_scan(FIRST_SEED)
    array = np.tile(scan.volume.array, (-(-slices // scan.volume.shape_kji[0]), 1, 1))[:slices]
    rows, columns = (max(1, 512 // n) for n in array.shape[1:])
    array = array.repeat(rows, axis=1).repeat(columns, axis=2)
    spacing = np.array(scan.volume.spacing_ijk) / (columns, rows, 1)
    volume = CTVolume.from_array(array, tuple(spacing), np.diag([*spacing, 1.0]))
    del array
    started = time.process_time()
    with engine.open(volume) as session:
        *_, last = auto_segment(session, adapter=prompter)
    return {
        "shape_kji": volume.shape_kji,
        "classes_found": sum(v.present for v in last.verdicts),
        "seconds": round(time.process_time() - started, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=["phantoms", "support", "leave-one-out", "ablation-head", "ablation-support", "corrections", "memory"],
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--support", nargs="*", default=[])
    parser.add_argument("--support-pool", nargs="*", default=[])
    parser.add_argument("--supports", type=int, default=4)
    parser.add_argument("--query", nargs="*", default=[])
    parser.add_argument("--classes", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = load_engine(given.model, given.device)
    result: dict
    if given.what == "support":
        cases = [read_case(given.data / name) for name in given.support]
        scans = [as_scan(read_case(given.data / name)) for name in given.query]
        prompter = load_self_prompter(engine, given.adapter) if given.adapter else None
        rows = [score(engine, scan, given.classes, support=cases, adapter=prompter) for scan in scans]
        result = {"summary": summary(rows), "cases": rows}
    elif given.what == "leave-one-out":
        result = leave_one_out(engine, given.data, given.query, given.support_pool, given.supports)
    elif given.what == "ablation-support":
        result = ablation_support(engine, given.count)
    else:
        prompter = load_self_prompter(engine, given.adapter or embedded_adapter(given.model))
        if given.what == "phantoms":
            rows = phantoms(engine, prompter, given.count)
            result = {"summary": summary(rows), "cases": rows}
        elif given.what == "memory":
            result = memory(engine, prompter, given.count)
        elif given.what == "corrections":
            result = corrections(engine, prompter, given.count)
        else:
            result = {}
            for name, options in HEAD_VARIANTS.items():
                say(name)
                result[name] = summary(phantoms(engine, prompter, given.count, replace(options)))
    print(json.dumps({"what": given.what, "model": given.model, **result}, indent=1))


if __name__ == "__main__":
    main()
