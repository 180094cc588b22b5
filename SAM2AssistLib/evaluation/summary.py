"""Many trials in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.evaluation.interactive import Trial

CHALLENGE_LEAST_DSC = 0.2
"""Below this mean Dice of a case the challenge sets its NSD to 0."""
CHALLENGE_SECONDS = 90.0
"""For one class, all steps together; more counts as a failure in the challenge's final ranking."""
NOC_TARGETS = (0.85, 0.90)
THIN = ("spinal_cord", "adrenal_gland", "rib_")
"""Beginnings of the names of structures that are thin or small, which a mean over all would hide."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (of the population), worst and best of some numbers."""

    mean: float
    sd: float
    worst: float
    best: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one number."""
        array = np.asarray(values, dtype=float)
        return cls(*(round(float(f), 4) for f in (array.mean(), array.std(), array.min(), array.max())))


def area_under_steps(scores: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the challenge's area under the scores after its clicks.

    The scores of the box step (the first) are left out, clicks are one apart and joined by straight lines: five clicks
    give at most 4.
    """
    after = np.asarray(scores[1:], dtype=float)
    return float((after[1:] + after[:-1]).sum() / 2)  # NumPy before 2.0 has no `trapezoid`


def of_method(trials: Sequence[Trial]) -> dict[str, Any]:
    """Summarise the trials of one method over structures, each counting alike."""
    steps = len(trials[0].dsc)
    shown = [t.slice_dsc for t in trials if t.slice_dsc is not None]
    # Where nothing was wrong any more no click was made, and none was waited for.
    clicked = [s for t in trials for s in t.seconds[1 : 1 + len(t.clicks)]]
    return {
        "trials": len(trials),
        "slice_dsc": Spread.of(shown).__dict__ if shown else None,
        "dsc": [Spread.of([t.dsc[n] for t in trials]).__dict__ for n in range(steps)],
        "nsd": [Spread.of([t.nsd[n] for t in trials]).__dict__ for n in range(steps)],
        "dsc_final": round(float(np.mean([t.dsc[-1] for t in trials])), 4),
        "nsd_final": round(float(np.mean([t.nsd[-1] for t in trials])), 4),
        "dsc_auc": round(float(np.mean([area_under_steps(t.dsc) for t in trials])), 4),
        "nsd_auc": round(float(np.mean([area_under_steps(t.nsd) for t in trials])), 4),
        "seconds_first": Spread.of([t.seconds[0] for t in trials]).__dict__,
        "seconds_click": Spread.of(clicked or [0.0]).__dict__,
        "over_90_s": sum(sum(t.seconds) > CHALLENGE_SECONDS for t in trials),
    }


def as_challenge(trials: Sequence[Trial]) -> dict[str, float]:
    """Score the trials of one method as the challenge does: means over the classes of a case, then over cases."""
    cases: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        cases.setdefault((trial.case, trial.seed), []).append(trial)
    dsc, nsd = [], []
    for found in cases.values():
        case_dsc = np.mean([t.dsc for t in found], axis=0)
        case_nsd = np.mean([t.nsd for t in found], axis=0)
        dsc.append(case_dsc)
        nsd.append(np.where(case_dsc > CHALLENGE_LEAST_DSC, case_nsd, 0.0))
    return {
        "dsc_auc": round(float(np.mean([area_under_steps(s) for s in dsc])), 4),
        "nsd_auc": round(float(np.mean([area_under_steps(s) for s in nsd])), 4),
        "dsc_final": round(float(np.mean([s[-1] for s in dsc])), 4),
        "nsd_final": round(float(np.mean([s[-1] for s in nsd])), 4),
    }


def clicks_needed(trials: Sequence[Trial], target: float) -> dict[str, float]:
    """Count clicks until the Dice reaches a target (NoC), the first prompt included.

    A structure that never reaches it counts with all its clicks, as is the custom, and among `missed`.
    """
    counts, missed = [], 0
    for trial in trials:
        reached = [n for n, score in enumerate(trial.dsc, 1) if score >= target]
        counts.append(reached[0] if reached else len(trial.dsc))
        missed += not reached
    return {"mean": round(float(np.mean(counts)), 3), "missed": missed, "most": len(trials[0].dsc)}


def human_factor(trials: Sequence[Trial]) -> dict[str, Any]:
    """Say how much the result depends on the user: per structure, the spread over behaviours and seeds.

    Returns
    -------
    Means over the structures of the mean, the standard deviation and the worst Dice over users; and the spread over
    structures of each behaviour.
    """
    by_structure: dict[tuple[str, str], list[float]] = {}
    by_behaviour: dict[str, list[float]] = {}
    for trial in trials:
        by_structure.setdefault((trial.case, trial.structure), []).append(trial.dsc[-1])
        by_behaviour.setdefault(trial.behaviour, []).append(trial.dsc[-1])
    spreads = [Spread.of(scores) for scores in by_structure.values()]
    return {
        "users": max(len(scores) for scores in by_structure.values()),
        "mean": round(float(np.mean([s.mean for s in spreads])), 4),
        "sd_over_users": round(float(np.mean([s.sd for s in spreads])), 4),
        "worst_user": round(float(np.mean([s.worst for s in spreads])), 4),
        "worst_of_all": round(min(s.worst for s in spreads), 4),
        "behaviours": {name: Spread.of(scores).__dict__ for name, scores in by_behaviour.items()},
    }


def _of_group(trials: Sequence[Trial], *, thin: bool) -> dict[str, Any] | None:
    """Summarise the thin and small structures, or the others; None if there is none."""
    chosen = [t for t in trials if t.structure.startswith(THIN) == thin]
    return of_method(chosen) if chosen else None


def by_structure(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Sort trials of one method by the name of the structure."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.structure, []).append(trial)
    return found


def summarise(protocol: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """Summarise the trials of an interactive protocol, method by method, in the order in which they were measured."""
    methods: dict[str, Any] = {}
    for name in dict.fromkeys(t.method for t in trials):
        own = [t for t in trials if t.method == name]
        found = of_method(own)
        if protocol == "cvpr25":
            found["challenge"] = as_challenge(own)
        if protocol == "clicks":
            found["clicks_needed"] = {f"{target:.2f}": clicks_needed(own, target) for target in NOC_TARGETS}
        if protocol == "human":
            found["human"] = human_factor(own)
        found["thin"], found["others"] = (_of_group(own, thin=thin) for thin in (True, False))
        found["by_structure"] = {
            structure: {
                "dsc": Spread.of([t.dsc[-1] for t in ts]).__dict__,
                "nsd": Spread.of([t.nsd[-1] for t in ts]).__dict__,
            }
            for structure, ts in by_structure(own).items()
        }
        methods[name] = found
    return methods
