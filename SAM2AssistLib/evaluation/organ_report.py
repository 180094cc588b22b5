"""The report of an organ protocol: published scores and honest ones side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from SAM2AssistLib.evaluation import plots
from SAM2AssistLib.evaluation.automatic import OrganPlan, OrganScore, summarise_organs
from SAM2AssistLib.evaluation.cases import Case, names_lacking
from SAM2AssistLib.evaluation.report import CSV_NAME, JSON_NAME, MARKDOWN_NAME, About, about_lines, can_draw
from SAM2AssistLib.evaluation.store import Store, write_json
from SAM2AssistLib.evaluation.tables import number, row, rule, write_csv
from SAM2AssistLib.io.atomic import atomic_path

HONEST = (
    "The honest columns: HD95 in mm with the real spacing, NSD at 2 mm; an organ that was missed, or found where there "
    "is none, has Dice and NSD 0 and the diagonal of the volume as its distance; an organ that is neither there nor "
    "found does not count. Volumetric, all slices."
)


def write_organ_report(
    store: Store[OrganScore], cases: Sequence[Case], about: About, plan: OrganPlan, *, pictures: bool = True
) -> dict[str, Any]:
    """Write the report of what is in a store; returns what ``results.json`` holds, without the single scores."""
    found = [store.load(case.name) for case in cases]
    scores = [score for results in found if results is not None for score in results.records]
    content = {
        **asdict(about),
        "cases": [case.name for case, results in zip(cases, found, strict=True) if results is not None],
        "source": plan.source.name,
        "told": plan.source.told,
        "not_named": names_lacking(cases, plan.organs),
        "summary": summarise_organs(scores, plan.protocol) if scores else {},
    }
    write_json(store.folder / JSON_NAME, {**content, "scores": [asdict(score) for score in scores]})
    rows = [list(asdict(score).values()) for score in scores]
    write_csv(store.folder / CSV_NAME, list(OrganScore.__dataclass_fields__), rows)
    drawn = _draw(store, cases, scores) if scores and pictures and can_draw() else {}
    with atomic_path(store.folder / MARKDOWN_NAME) as part:
        part.write_text(_markdown(content, plan, drawn), encoding="utf-8")
    return content


def notes_on(content: dict[str, Any]) -> list[str]:
    """Say what a reader of the scores has to know besides; ``content`` as in ``results.json``."""
    names = content["not_named"]
    if not names:
        return []
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return [f"The data do not name {listed}; the published scores count them as organs that are in no case."]


def _markdown(content: dict[str, Any], plan: OrganPlan, drawn: dict[str, str]) -> str:
    protocol, summary = plan.protocol, content["summary"]
    title = protocol.title if protocol else f"Organs, {content['protocol']}"
    lines = [f"# {title}", "", *about_lines(content), f"Masks: {plan.source.name}. {plan.source.told}".rstrip(), ""]
    if protocol:
        lines += [f"The published columns: {protocol.quirks}", ""]
    lines += [HONEST, "", *(line for note in notes_on(content) for line in (note, ""))]
    if not summary:
        return "\n".join([*lines, "Nothing has been measured yet.", ""])
    lines += _table(summary, protocol.second if protocol else "", has_published=protocol is not None)
    if summary["draws"] > 1:
        lines += [f"Means ± standard deviation over {summary['draws']} draws.", ""]
    lines += [f"{summary['seconds_per_case']:.1f} s for a case.", ""]
    for key, caption in (
        ("organs", "Dice by organ; small dots are single cases, the large one their mean."),
        ("outlines", "Best, median and worst Dice: reference green, result magenta."),
    ):
        if key in drawn:
            lines += [f"![{caption}]({drawn[key]})", "", f"*{caption}*", ""]
    if not can_draw():
        lines += ["Pictures need matplotlib: `pip install sam2assist[evaluate]`.", ""]
    return "\n".join(lines)


def _table(summary: dict[str, Any], second: str, *, has_published: bool) -> list[str]:
    heads = ["Organ"]
    heads += ["published Dice", *([f"published {second}"] if second else [])] if has_published else []
    heads += ["Dice", "NSD 2 mm", "HD95 (mm)", "missed", "invented"]
    lines = [row(heads), rule(len(heads))]
    for name, found in [*summary["organs"].items(), ("**mean**", summary["mean"])]:
        cells = [name]
        if has_published:
            cells += [_cell(found, "published_dsc"), *([_cell(found, "published_second")] if second else [])]
        cells += [_cell(found, "dsc"), _cell(found, "nsd"), _cell(found, "hd95_mm", 1)]
        cells += [number(found[key], 0 if summary["draws"] == 1 else 1) for key in ("missed", "invented")]
        lines.append(row(cells))
    return [*lines, ""]


def _cell(found: dict[str, Any], key: str, digits: int = 3) -> str:
    spread = found.get(f"{key}_sd")
    return number(found[key], digits) + ("" if spread is None else f" ± {spread:.{digits}f}")


def _draw(store: Store[OrganScore], cases: Sequence[Case], scores: Sequence[OrganScore]) -> dict[str, str]:
    known = [score for score in scores if score.dsc is not None]
    if not known:
        return {}
    groups: plots.Rows = {}
    for score in known:
        groups.setdefault(score.organ, {"Dice": []})["Dice"].append(score.dsc)  # type: ignore[attr-defined]
    plots.draw_bars(store.folder / "organs.png", "Dice", groups)
    drawn = {"organs": "organs.png"}
    present = sorted((s for s in known if s.present), key=lambda s: -(s.dsc or 0.0))
    if present:
        chosen = dict(
            zip(("best", "median", "worst"), (present[0], present[len(present) // 2], present[-1]), strict=True)
        )
        plots.draw_outlines(store.folder / "outlines.png", [_outlined(store, cases, w, s) for w, s in chosen.items()])
        drawn["outlines"] = "outlines.png"
    return drawn


def _outlined(store: Store[OrganScore], cases: Sequence[Case], word: str, score: OrganScore) -> plots.Outlined:
    from SAM2AssistLib.engine.loading import default_window

    case = next(case for case in cases if case.name == score.case).read()
    reference = case.reference(score.organ)
    mask = store.load_mask(score.case, (score.organ, score.draw))
    return plots.Outlined(
        title=f"{word}: {score.organ}\n{score.case}, Dice {score.dsc:.3f}",
        volume=case.volume,
        window=default_window(case.volume),
        reference=reference,
        mask=np.zeros_like(reference) if mask is None else mask,
        points=(),
        first_slice=int(reference.sum(axis=(1, 2)).argmax()),
        first_title="largest section",
    )
