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
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SAM2AssistLib.engine.loading import Engine, load_engine
from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompting.auto import AutoOptions, AutoStep, auto_segment
from SAM2AssistLib.prompting.corrections import CorrectionOptions
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
MOST_CLASSES = 4
"""Of these, what a phantom shows that takes part in the ablation."""

ROUNDS = (0, 3, 10)
"""Of corrections."""
WORSE = 0.002
"""Change of Dice from which on a mask counts as made worse, or better."""

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
BOX_ALONE = TemplateOptions(**{**WITHOUT, "box": True})


def by_support(templates: TemplateOptions | None = None, map_weight: float = 0.7, **how: object) -> AutoOptions:
    """Make options that differ from what a user gets in how support cases are used."""
    support = SupportOptions(**how)  # type: ignore[arg-type]
    return AutoOptions(templates=templates or TemplateOptions(), support=support, map_weight=map_weight)


SUPPORT_VARIANTS = {
    "ours": by_support(guided=False),
    "retrieval random": by_support(random_seed=0, guided=False),
    "PMG only, one pass": by_support(prior_weight=0.0, map_weight=1.0, guided=False),
    "PMG + boxes": by_support(BOX_ALONE, prior_weight=0.0, map_weight=0.0, guided=False),
    "PMG + boxes, points, mask prompts": by_support(prior_weight=0.0, map_weight=0.0, guided=False),
    "PMG + PMA + boxes, points, mask prompts": by_support(prior_weight=0.0, map_weight=0.0),
    "ours + PMA": by_support(),
    "ours in one pass (maps alone)": by_support(map_weight=1.0, guided=False),
    "ours, second pass without the maps": by_support(map_weight=0.0, guided=False),
    "resembling cells count 0.5": by_support(prior_weight=0.5, guided=False),
    "resembling cells alone": by_support(prior_weight=1.0, guided=False),
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


def phantom_pairs(count: int) -> list[tuple[LabelledScan, SupportCase, list[str]]]:
    """Pair unseen phantoms that both show most of the organs: a query, its only support, and what both show."""
    pairs: list[tuple[LabelledScan, SupportCase, list[str]]] = []
    waiting: LabelledScan | None = None
    for seed in itertools.count(FIRST_SEED):
        scan = phantom_scan(seed)
        shown = [n for n in PHANTOM_CLASSES if volume_ml(scan, n) >= PRESENT_ML]
        if len(shown) >= MOST_CLASSES and waiting is None:
            waiting = scan
        elif len(shown) >= MOST_CLASSES and waiting is not None:
            both = [n for n in shown if volume_ml(waiting, n) >= PRESENT_ML]
            pairs.append((waiting, SupportCase(scan.name, scan.volume, {n: scan.masks[n] for n in shown}), both))
            waiting = None
        if len(pairs) == count:
            break
    return pairs


def shown_phantoms(count: int) -> list[LabelledScan]:
    """Take the first unseen phantoms that show most of the organs."""
    scans = (phantom_scan(seed) for seed in itertools.count(FIRST_SEED))
    showing = (s for s in scans if sum(volume_ml(s, n) >= PRESENT_ML for n in PHANTOM_CLASSES) >= MOST_CLASSES)
    return list(itertools.islice(showing, count))


def volume_ml(scan: LabelledScan, name: str) -> float:
    """Tell how large a structure is; 0 if it is not there."""
    return float(scan.masks[name].sum() * np.prod(scan.volume.spacing_ijk)) / 1000 if name in scan.masks else 0.0


def ablation_support(
    engine: Engine,
    queries: Sequence[tuple[LabelledScan, Sequence[SupportCase], Sequence[str]]],
    only: Sequence[str] | None,
    prompter: SelfPrompter,
) -> dict[str, object]:
    """Segment each query by its support cases, in every variant; PMA where the adapter has a guidance."""
    table = {}
    for name, options in SUPPORT_VARIANTS.items():
        if (not only or name in only) and ("PMA" not in name or prompter.guidance is not None):
            say(name)
            how: dict[str, Any] = {"adapter": prompter, "options": options}
            rows = [score(engine, query, wanted, support=support, **how) for query, support, wanted in queries]
            table[name] = summary(rows)
            say(f"{name}: {table[name]}")
    return table


def corrections(engine: Engine, scans: Iterable[tuple[LabelledScan, dict[str, Any]]]) -> dict[str, object]:
    """Compare 0, 3 and 10 rounds; never worse is the aim, so the share of masks made worse is counted.

    Parameters
    ----------
    scans : each with what `auto_segment` is to go by.
    """
    options = AutoOptions(corrections=CorrectionOptions(seconds=600.0))
    by_rounds: dict[int, list[float]] = {rounds: [] for rounds in ROUNDS}
    prompts: dict[int, int] = dict.fromkeys(ROUNDS, 0)
    for scan, how in scans:
        for rounds in ROUNDS:
            with engine.open(scan.volume) as session:
                *_, last = auto_segment(session, corrections=rounds, options=options, **how)
                found = {v.name: v.segment for v in last.verdicts if v.segment}
                for name in (n for n in scan.masks if volume_ml(scan, n) >= PRESENT_ML and n in names_of(last)):
                    mask = session.mask(found[name]) if name in found else np.zeros_like(scan.masks[name])
                    by_rounds[rounds].append(dice(mask, scan.masks[name]))
                prompts[rounds] += sum(len(session.prompts(segment)) for segment in found.values())
        changes = {n: np.round(np.subtract(values, by_rounds[0]), 4) for n, values in by_rounds.items()}
        say(f"{scan.name}: { ({n: c[c != 0].tolist() for n, c in changes.items()}) }")
    table: dict[str, object] = {}
    for rounds, values in by_rounds.items():
        change = np.subtract(values, by_rounds[0])
        table[str(rounds)] = {
            "mean_dice": round(float(np.mean(values)), 5),
            "masks": len(values),
            "clicks_kept": prompts[rounds] - prompts[0],
            "made_worse": round(float(np.mean(change < -WORSE)), 4),
            "made_better": round(float(np.mean(change > WORSE)), 4),
        }
    return table


def names_of(step: AutoStep) -> set[str]:
    """Name the classes that were asked for."""
    return {verdict.name for verdict in step.verdicts}


def best_single_box(engine: Engine, case: SupportCase, name: str) -> float:
    """Dice from one box on the middle slice, propagated: what the support has to compare with."""
    with engine.open(case.volume) as session:
        segment = session.add_segment(name)
        session.place_box(segment, box_on_middle_slice(case.masks[name]))
        for _ in session.propagate():
            pass
        return dice(session.mask(segment), case.masks[name])


def leave_one_out(
    engine: Engine, data: Path, queries: Sequence[str], pool: Sequence[str], count: int, seeds: int
) -> dict[str, object]:
    """Segment each query by ``count`` other cases, drawn at several seeds."""
    held = {name: read_case(data / name) for name in dict.fromkeys([*queries, *pool])}
    prepared: dict[str, Support] = {}
    rows = []
    for query in queries:
        case = held[query]
        with engine.open(case.volume) as session:
            window = session.window
        values = []
        for seed in range(seeds):
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
    means = np.array([r["dice_by_seed"] for r in rows]).mean(axis=0)
    return {
        "mean": round(float(means.mean()), 4),
        "sd": round(float(means.std(ddof=1)), 4) if seeds > 1 else None,
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


def options_of_command() -> argparse.Namespace:
    """Parse the command line."""
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
    parser.add_argument("--seeds", type=int, default=5, help="draws of support cases in leave-one-out")
    parser.add_argument("--query", nargs="*", default=[])
    parser.add_argument("--classes", nargs="*")
    parser.add_argument("--only", nargs="*", help="variants of an ablation")
    return parser.parse_args()


def measure_support(engine: Engine, given: argparse.Namespace) -> dict[str, object]:
    """Segment queries by support cases."""
    cases = [read_case(given.data / name) for name in given.support]
    scans = [as_scan(read_case(given.data / name)) for name in given.query]
    prompter = load_self_prompter(engine, given.adapter) if given.adapter else None
    rows = [score(engine, scan, given.classes, support=cases, adapter=prompter) for scan in scans]
    return {"summary": summary(rows), "cases": rows}


def measure_support_variants(engine: Engine, given: argparse.Namespace) -> dict[str, object]:
    """Compare the ways to use support cases, on the queries that are named or else on phantoms."""
    queries: list[tuple[LabelledScan, Sequence[SupportCase], Sequence[str]]]
    if given.query:
        support = [read_case(given.data / name) for name in given.support]
        scans = [as_scan(read_case(given.data / name)) for name in given.query]
        queries = [(q, [c for c in support if c.name != q.name], given.classes or list(q.masks)) for q in scans]
    else:
        queries = [(query, [case], wanted) for query, case, wanted in phantom_pairs(given.count)]
    prompter = load_self_prompter(engine, given.adapter or embedded_adapter(given.model))
    return ablation_support(engine, queries, given.only, prompter)


def measure_corrections(engine: Engine, given: argparse.Namespace) -> dict[str, object]:
    """Compare rounds of corrections, on the queries that are named, by their support, or else on phantoms."""
    if given.query:
        how = {"support": [read_case(given.data / name) for name in given.support], "classes": given.classes}
        return corrections(engine, [(as_scan(read_case(given.data / name)), how) for name in given.query])
    prompter = load_self_prompter(engine, given.adapter or embedded_adapter(given.model))
    return corrections(engine, [(scan, {"adapter": prompter}) for scan in shown_phantoms(given.count)])


def measure_head(engine: Engine, given: argparse.Namespace) -> dict[str, object]:
    """Measure a self-prompt head: on phantoms, against its own parts, or on a long volume."""
    prompter = load_self_prompter(engine, given.adapter or embedded_adapter(given.model))
    if given.what == "memory":
        return memory(engine, prompter, given.count)
    if given.what == "phantoms":
        rows = phantoms(engine, prompter, given.count)
        return {"summary": summary(rows), "cases": rows}
    table: dict[str, object] = {}
    for name, options in HEAD_VARIANTS.items():
        if not given.only or name in given.only:
            say(name)
            table[name] = summary(phantoms(engine, prompter, given.count, options))
            say(f"{name}: {table[name]}")
    return table


def main() -> None:
    """Measure what the command line asks for, and print it."""
    given = options_of_command()
    torch.set_num_threads(1)
    engine = load_engine(given.model, given.device)
    if given.what == "leave-one-out":
        result = leave_one_out(engine, given.data, given.query, given.support_pool, given.supports, given.seeds)
    else:
        measures = {
            "support": measure_support,
            "ablation-support": measure_support_variants,
            "corrections": measure_corrections,
        }
        result = measures.get(given.what, measure_head)(engine, given)
    print(json.dumps({"what": given.what, "model": given.model, **result}, indent=1))


if __name__ == "__main__":
    main()
