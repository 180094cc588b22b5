"""The report of a measurement: JSON and CSV for programs, Markdown with pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from SAM2AssistLib.evaluation import plots
from SAM2AssistLib.evaluation.cases import Case
from SAM2AssistLib.evaluation.interactive import Trial
from SAM2AssistLib.evaluation.running import kept_mask
from SAM2AssistLib.evaluation.seen import note_on
from SAM2AssistLib.evaluation.store import Store, write_json
from SAM2AssistLib.evaluation.summary import by_structure, summarise
from SAM2AssistLib.evaluation.tables import number, row, rule, write_csv
from SAM2AssistLib.io.atomic import atomic_path

JSON_NAME, CSV_NAME, MARKDOWN_NAME = "results.json", "results.csv", "report.md"

TITLES = {
    "cvpr25": "CVPR 2025 interactive protocol: a box, then clicks",
    "clicks": "Clicks needed",
    "human": "Dependence on the user",
}
EXPLANATIONS = {
    "cvpr25": (
        "The first prompt is a box on the slice of the object's middle voxel, pushed outwards by 0 to 5 pixels (of "
        "256), with the first and last slice of the object. Each click goes where the largest connected error is "
        "deepest. Structures are segmented one by one and may overlap; the challenge wants one label map. AUC is the "
        "area under the scores after the clicks (at most 4 for five clicks; the box is not in it). NSD is at 2 mm."
    ),
    "clicks": (
        "The first prompt is a click where the object is deepest (in mm, in three dimensions), each further one where "
        "the deepest point of what is missing or too much is, never twice on a voxel. A structure that never reaches a "
        "Dice counts with all its clicks."
    ),
    "human": (
        "The same structure is prompted on its middle slice by people who differ: tight, shaky and loose boxes, clicks "
        "in the middle, anywhere and near the border, box and click, scribble; what is random in them with several "
        "seeds."
    ),
}


@dataclass(frozen=True)
class About:
    """What a report says of its measurement.

    Attributes
    ----------
    protocol : its name.
    settings : all that decides the results.
    device : on which it ran.
    complete : whether all cases are in it.
    seen : names of the cases that what segments was trained on.
    """

    protocol: str
    settings: dict[str, Any]
    device: str
    complete: bool
    seen: tuple[str, ...] = ()


def write_report(store: Store[Trial], cases: Sequence[Case], about: About, *, pictures: bool = True) -> dict[str, Any]:
    """Write the report of what is in a store.

    Parameters
    ----------
    cases : those that the report is on.
    pictures : whether to draw; the cases of the best, the median and the worst result are read again for it.

    Returns
    -------
    What ``results.json`` holds, without the single trials.
    """
    found = [store.load(case.name) for case in cases]
    trials = [trial for results in found if results is not None for trial in results.records]
    content = {
        **asdict(about),
        "cases": [case.name for case, results in zip(cases, found, strict=True) if results is not None],
        "methods": summarise(about.protocol, trials) if trials else {},
    }
    write_json(store.folder / JSON_NAME, {**content, "trials": [asdict(t) for t in trials]})
    _write_csv(store.folder / CSV_NAME, trials)
    drawn = _draw(store, cases, trials, about.protocol) if trials and pictures else {}
    with atomic_path(store.folder / MARKDOWN_NAME) as part:
        part.write_text(markdown(content, trials, drawn, about.protocol), encoding="utf-8")
    return content


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def markdown(content: dict[str, Any], trials: Sequence[Trial], pictures: dict[str, str], protocol: str) -> str:
    """Compose the report.

    Parameters
    ----------
    content : as in ``results.json``.
    pictures : file names by "curves", "structures", "users" and "outlines".
    """
    lines = [f"# {TITLES[protocol]}", "", EXPLANATIONS[protocol], ""]
    lines += about_lines(content)
    if not trials:
        return "\n".join([*lines, "Nothing has been measured yet.", ""])
    methods = content["methods"]
    lines += _main_table(methods)
    if protocol == "cvpr25":
        lines += _challenge_table(methods)
    if protocol == "clicks":
        lines += _clicks_table(methods)
    if protocol == "human":
        lines += _human_table(methods)
    for key, caption in (
        ("curves", "Mean over structures; the band holds the middle half of them for the first method."),
        ("users", "Dice of each structure by behaviour; the large dot is the mean."),
        ("structures", "Final Dice by structure; small dots are single cases and users, the large one their mean."),
        (
            "outlines",
            "Best, median and worst final Dice: reference green, result magenta, box yellow, clicks numbered.",
        ),
    ):
        if key in pictures:
            lines += [f"![{caption}]({pictures[key]})", "", f"*{caption}*", ""]
    if not can_draw():
        lines += ["Pictures need matplotlib: `pip install sam2assist[evaluate]`.", ""]
    lines += _thin_table(methods)
    lines += _structure_table(methods, trials)
    return "\n".join(lines)


def about_lines(content: dict[str, Any]) -> list[str]:
    """Say what was measured on what, and whether it is complete."""
    settings = content["settings"]
    words = [f"Data: {settings['data']} ({', '.join(content['cases'])})."]
    if settings["model"]:
        adapter = f" with the adapter {settings['adapter']}" if settings["adapter"] else ""
        words.append(f"Model: {settings['model']}{adapter} on {content['device']}.")
    if settings["least_voxels"]:
        words.append(f"Structures of {settings['least_voxels']} voxels and more.")
    if settings["peers"]:
        whose = (
            "the clicks that were made for the first method" if settings["same_clicks"] else "clicks on its own errors"
        )
        words.append(f"First prompts are the same for all methods; each peer gets {whose}.")
    lines = [" ".join(words), ""]
    if content["seen"]:
        lines += [f"**{note_on(content['seen'])}**", ""]
    if not content["complete"]:
        lines += ["**Not complete: the measurement was broken off; the same command goes on with it.**", ""]
    return lines


def _main_table(methods: dict[str, Any]) -> list[str]:
    steps = len(next(iter(methods.values()))["dsc"])
    heads = ["first", *(f"+{n}" for n in range(1, steps))]
    lines = []
    for key, word in (("dsc", "Dice"), ("nsd", "NSD at 2 mm")):
        lines += [f"## {word}", "", row(["", "slice at once" if key == "dsc" else "", *heads]), rule(2 + steps)]
        for name, found in methods.items():
            slice_dsc = found["slice_dsc"]
            at_once = f"{slice_dsc['mean']:.3f}" if key == "dsc" and slice_dsc else ""
            lines.append(row([name, at_once, *(f"{s['mean']:.3f} ± {s['sd']:.3f}" for s in found[key])]))
        lines.append("")
    lines += ["## Area, final and time", ""]
    columns = ["", "trials", "DSC AUC", "NSD AUC", "DSC final", "NSD final", "s first", "s per click", "over 90 s"]
    lines += [row(columns), rule(len(columns))]
    for name, found in methods.items():
        scores = (f"{found[key]:.3f}" for key in ("dsc_auc", "nsd_auc", "dsc_final", "nsd_final"))
        times = (f"{found[key]['mean']:.2f}" for key in ("seconds_first", "seconds_click"))
        lines.append(row([name, str(found["trials"]), *scores, *times, str(found["over_90_s"])]))
    return [*lines, ""]


def _challenge_table(methods: dict[str, Any]) -> list[str]:
    lines = ["As the challenge averages (classes of a case first, NSD 0 where the Dice of a case is at most 0.2):", ""]
    lines += [row(["", "DSC AUC", "NSD AUC", "DSC final", "NSD final"]), rule(5)]
    for name, found in methods.items():
        scores = found["challenge"]
        lines.append(row([name, *(f"{scores[k]:.3f}" for k in ("dsc_auc", "nsd_auc", "dsc_final", "nsd_final"))]))
    return [*lines, ""]


def _clicks_table(methods: dict[str, Any]) -> list[str]:
    targets = list(next(iter(methods.values()))["clicks_needed"])
    lines = [row(["", *(f"clicks to {t} (never)" for t in targets)]), rule(1 + len(targets))]
    for name, found in methods.items():
        needed = (found["clicks_needed"][t] for t in targets)
        lines.append(row([name, *(f"{n['mean']:.2f} ({n['missed']})" for n in needed)]))
    return [*lines, ""]


def _human_table(methods: dict[str, Any]) -> list[str]:
    lines = [
        "## Between users",
        "",
        row(["", "users", "mean", "sd over users", "worst user", "worst of all"]),
        rule(6),
    ]
    for name, found in methods.items():
        human = found["human"]
        numbers = (f"{human[k]:.3f}" for k in ("mean", "sd_over_users", "worst_user", "worst_of_all"))
        lines.append(row([name, str(human["users"]), *numbers]))
    lines += ["", row(["Behaviour", *methods]), rule(1 + len(methods))]
    for behaviour in next(iter(methods.values()))["human"]["behaviours"]:
        spreads = (found["human"]["behaviours"][behaviour] for found in methods.values())
        lines.append(row([behaviour, *(f"{s['mean']:.3f} ± {s['sd']:.3f} (worst {s['worst']:.3f})" for s in spreads)]))
    return [*lines, ""]


def _thin_table(methods: dict[str, Any]) -> list[str]:
    """Show thin and small structures by themselves, where there are both kinds."""
    if not all(found["thin"] and found["others"] for found in methods.values()):
        return []
    steps = len(next(iter(methods.values()))["dsc"])
    heads = ["Dice", "trials", "first", *(f"+{n}" for n in range(1, steps)), "NSD final"]
    lines = ["## Thin and small structures (spinal cord, adrenal glands, ribs) by themselves", "", row(heads)]
    lines.append(rule(len(heads)))
    for name, found in methods.items():
        for word, group in (("thin and small", found["thin"]), ("the others", found["others"])):
            scores = (number(score["mean"]) for score in group["dsc"])
            lines.append(row([f"{name}, {word}", str(group["trials"]), *scores, number(group["nsd_final"])]))
    return [*lines, ""]


def _structure_table(methods: dict[str, Any], trials: Sequence[Trial]) -> list[str]:
    lines = ["## By structure (final)", "", row(["Structure", "n", *(f"{m}: DSC / NSD" for m in methods)])]
    lines.append(rule(2 + len(methods)))
    first = next(iter(methods))
    for structure, own in by_structure([t for t in trials if t.method == first]).items():
        rows = (found["by_structure"].get(structure) for found in methods.values())
        cells = (f"{r['dsc']['mean']:.3f} / {r['nsd']['mean']:.3f}" if r else "" for r in rows)
        lines.append(row([structure, str(len(own)), *cells]))
    return [*lines, ""]


def _write_csv(path: Path, trials: Sequence[Trial]) -> None:
    """Write a row for each trial and step."""
    heads = [
        "case",
        "structure",
        "method",
        "behaviour",
        "seed",
        "voxels",
        "clicks",
        "slice_dsc",
        "dsc",
        "nsd",
        "seconds",
    ]
    rows = []
    for t in trials:
        for step, (d, n, s) in enumerate(zip(t.dsc, t.nsd, t.seconds, strict=True)):
            at_once = t.slice_dsc if step == 0 else None
            rows.append([t.case, t.structure, t.method, t.behaviour, t.seed, t.voxels, step, at_once, d, n, s])
    write_csv(path, heads, rows)


def _draw(store: Store[Trial], cases: Sequence[Case], trials: Sequence[Trial], protocol: str) -> dict[str, str]:
    if not can_draw():
        return {}
    methods = list(dict.fromkeys(t.method for t in trials))
    drawn = {}
    steps = len(trials[0].dsc)
    if steps > 1:
        panels = [
            (word, [_curve(m, [getattr(t, key) for t in trials if t.method == m]) for m in methods])
            for word, key in (("Dice", "dsc"), ("NSD at 2 mm", "nsd"))
        ]
        drawn["curves"] = "curves.png"
        first = "click" if protocol == "clicks" else "box" if protocol == "cvpr25" else "first"
        plots.draw_curves(store.folder / "curves.png", panels, [first, *(f"+{n}" for n in range(1, steps))])
    groups: plots.Rows = {
        structure: {m: [t.dsc[-1] for t in own if t.method == m] for m in methods}
        for structure, own in by_structure(trials).items()
    }
    drawn["structures"] = "structures.png"
    plots.draw_bars(store.folder / "structures.png", "Final Dice", groups)
    if protocol == "human":
        behaviours = dict.fromkeys(t.behaviour for t in trials)
        users: plots.Rows = {
            b: {m: [t.dsc[-1] for t in trials if (t.behaviour, t.method) == (b, m)] for m in methods}
            for b in behaviours
        }
        drawn["users"] = "users.png"
        plots.draw_bars(store.folder / "users.png", "Dice by behaviour", users)
    outlined = _outlined(store, cases, [t for t in trials if t.method == methods[0]])
    if outlined:
        drawn["outlines"] = "outlines.png"
        plots.draw_outlines(store.folder / "outlines.png", outlined)
    return drawn


def _curve(name: str, scores: Sequence[Sequence[float]]) -> plots.Curve:
    low, high = np.percentile(scores, (25, 75), axis=0)
    return plots.Curve(name, np.mean(scores, axis=0).tolist(), low.tolist(), high.tolist())


def _outlined(store: Store[Trial], cases: Sequence[Case], trials: Sequence[Trial]) -> list[plots.Outlined]:
    """Choose the best, the median and the worst trial, and read what is needed to draw them."""
    from SAM2AssistLib.engine.loading import default_window

    ranked = sorted(trials, key=lambda t: t.dsc[-1], reverse=True)
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    if len(ranked) < len(chosen):
        chosen = {"best": ranked[0]} if len(ranked) == 1 else {"best": ranked[0], "worst": ranked[-1]}
    by_name = {case.name: case for case in cases}
    results = []
    for word, trial in chosen.items():
        mask = kept_mask(store, trial)
        if mask is None:
            continue
        case = by_name[trial.case].read()
        title = f"{word}: {trial.structure}\n{trial.case}, Dice {trial.dsc[-1]:.3f}"
        window = default_window(case.volume)
        points = [((k, j, i), positive) for i, j, k, positive in (*trial.first_clicks, *trial.clicks)]
        reference = case.reference(trial.structure)
        results.append(
            plots.Outlined(title, case.volume, window, reference, mask, points, trial.first_slice, trial.first_box)
        )
    return results
