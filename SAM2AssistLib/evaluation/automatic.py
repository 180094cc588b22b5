"""Protocols for whole organs: each case is segmented at once, then every organ is scored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from SAM2AssistLib.evaluation.cases import Case, ReadCase
from SAM2AssistLib.evaluation.organs import Protocol, Published, honest_score, published_means
from SAM2AssistLib.evaluation.running import Progress
from SAM2AssistLib.evaluation.sources import Source
from SAM2AssistLib.evaluation.store import CaseResults, Store


@dataclass(frozen=True)
class OrganScore:
    """One organ of one case.

    Attributes
    ----------
    case, organ, draw : what was segmented, in which repetition.
    present, found : whether the reference and the result have it.
    dsc, nsd, hd95_mm : honest scores (`organs.Honest`); None where it is neither present nor found.
    published_dsc, published_second : as the protocol's original scores; None without a published protocol.
    seconds : for the whole case.
    """

    case: str
    organ: str
    draw: int
    present: bool
    found: bool
    dsc: float | None
    nsd: float | None
    hd95_mm: float | None
    published_dsc: float | None
    published_second: float | None
    seconds: float


@dataclass(frozen=True)
class OrganPlan:
    """What is measured on each case.

    Attributes
    ----------
    source : of the masks.
    organs : that are scored.
    protocol : whose scores are computed besides the honest ones, if any.
    draws : repetitions, where the source has something random.
    """

    source: Source
    organs: tuple[str, ...]
    protocol: Protocol | None = None
    draws: int = 1


def measure_organs(cases: Sequence[Case], plan: OrganPlan, store: Store[OrganScore]) -> Iterator[Progress]:
    """Measure what is not in the store yet; what has been yielded is in the store.

    Raises
    ------
    InputError
        If an image, a label map or a result cannot be used.
    """
    units = tuple(f"draw {n}" for n in range(plan.draws))
    new_share, total = 0.0, len(cases) * plan.draws
    for number, case in enumerate(cases):
        read = [case, *plan.source.supports(case.name, plan.draws)]
        files = [*(path for one in read for path in one.paths), *plan.source.files(case.name)]
        store.hold_to(case.name, files, *(one.values for one in read))
        known = store.load(case.name) or CaseResults(units, (), ())
        if known.is_complete:
            yield Progress(case.name, "", (number + 1) / len(cases), new_share)
            continue
        held = case.read()
        for draw, unit in enumerate(units):
            if unit in known.measured:
                continue
            scores = _measure(held, plan, draw, store)
            known = CaseResults(units, (*known.measured, unit), (*known.records, *scores))
            store.save(case.name, known)
            new_share += 1 / total
            share = (number * plan.draws + draw + 1) / total
            yield Progress(case.name, unit if plan.draws > 1 else "", share, new_share, held.volume.warnings)


def _measure(case: ReadCase, plan: OrganPlan, draw: int, store: Store[OrganScore]) -> list[OrganScore]:
    begun = time.perf_counter()
    masks = plan.source.segment(case, plan.organs, draw)
    seconds = round(time.perf_counter() - begun, 2)
    scores = []
    for organ in plan.organs:
        reference = case.reference(organ)
        mask = masks.get(organ, np.zeros_like(reference))
        honest = honest_score(mask, reference, case.spacing_kji)
        published = None if plan.protocol is None else plan.protocol.score(mask, reference, case.spacing_kji, organ)
        scores.append(
            OrganScore(
                case=case.name,
                organ=organ,
                draw=draw,
                present=bool(reference.any()),
                found=bool(mask.any()),
                dsc=_rounded(honest.dsc),
                nsd=_rounded(honest.nsd),
                hd95_mm=_rounded(honest.hd95_mm),
                published_dsc=None if published is None else _rounded(published.dsc),
                published_second=None if published is None else _rounded(published.second),
                seconds=seconds,
            )
        )
        store.save_mask(case.name, (organ, draw), mask)
    return scores


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def summarise_organs(scores: Sequence[OrganScore], protocol: Protocol | None) -> dict[str, Any]:
    """Summarise organ by organ, then over organs, then over draws."""
    draws = sorted({score.draw for score in scores})
    organs = list(dict.fromkeys(score.organ for score in scores))
    by_draw = [_of_draw([s for s in scores if s.draw == draw], organs, protocol) for draw in draws]
    return {
        "draws": len(draws),
        "organs": {organ: _over_draws([found["organs"][organ] for found in by_draw]) for organ in organs},
        "mean": _over_draws([found["mean"] for found in by_draw]),
        "seconds_per_case": round(float(np.mean([score.seconds for score in scores])), 2),
    }


def _of_draw(scores: Sequence[OrganScore], organs: Sequence[str], protocol: Protocol | None) -> dict[str, Any]:
    found = {organ: _of_organ([s for s in scores if s.organ == organ]) for organ in organs}
    mean: dict[str, float | None] = {
        key: _mean([found[organ][key] for organ in organs]) for key in ("dsc", "nsd", "hd95_mm")
    }
    for key in ("missed", "invented"):
        mean[key] = float(sum(found[organ][key] or 0 for organ in organs))
    if protocol is not None:
        published = [
            (s.case, s.organ, Published(s.published_dsc, s.published_second))
            for s in scores
            if s.published_dsc is not None
        ]
        by_organ, overall = published_means(protocol, published)
        for organ, score in by_organ.items():
            found[organ] |= {"published_dsc": score.dsc, "published_second": score.second}
        mean |= {"published_dsc": overall.dsc, "published_second": overall.second}
    return {"organs": found, "mean": mean}


def _of_organ(scores: Sequence[OrganScore]) -> dict[str, float | None]:
    return {
        "dsc": _mean([s.dsc for s in scores]),
        "nsd": _mean([s.nsd for s in scores]),
        "hd95_mm": _mean([s.hd95_mm for s in scores]),
        "present": float(sum(s.present for s in scores)),
        "missed": float(sum(s.present and not s.found for s in scores)),
        "invented": float(sum(s.found and not s.present for s in scores)),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 5) if known else None


def _over_draws(rows: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """Mean of each number over draws, and with several of them its standard deviation (of the sample)."""
    result: dict[str, Any] = {}
    for key in rows[0]:
        known = [value for row in rows if (value := row[key]) is not None]
        result[key] = round(float(np.mean(known)), 5) if known else None
        if len(rows) > 1:
            result[f"{key}_sd"] = round(float(np.std(known, ddof=1)), 5) if len(known) > 1 else None
    return result
