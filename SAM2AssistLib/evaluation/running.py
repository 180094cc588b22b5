"""Measuring all cases of an interactive protocol, one structure after the other, with what is finished kept at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from SAM2AssistLib.evaluation.cases import Case, ReadCase
from SAM2AssistLib.evaluation.interactive import Mask, Task, Trial, User, run_trial
from SAM2AssistLib.evaluation.methods import Method, Opened
from SAM2AssistLib.evaluation.store import CaseResults, Store
from SAM2AssistLib.prompts import PointPrompt


@dataclass(frozen=True)
class Plan:
    """What is measured on each case.

    Attributes
    ----------
    methods : the first is ours, which the others are compared with.
    users : simulated users; each of them segments each structure with each method.
    clicks : corrections after the first prompts.
    structures : only these; all if empty.
    least_voxels : of a structure to be measured.
    replay : the other methods get the clicks that were made for the first; else each user corrects each method's own
        errors.
    """

    methods: tuple[Method, ...]
    users: tuple[User, ...]
    clicks: int
    structures: tuple[str, ...] = ()
    least_voxels: int = 1
    replay: bool = True


@dataclass(frozen=True)
class Progress:
    """How far a measurement is.

    Attributes
    ----------
    case, structure : what has just been measured; an empty structure for a case that was complete already.
    share : of all the work, in [0, 1]; cases count alike.
    new_share : of that, what was measured in this run.
    warnings : what is unusual about the case's image, if it was read.
    """

    case: str
    structure: str
    share: float
    new_share: float
    warnings: tuple[str, ...] = ()


def measure(cases: Sequence[Case], plan: Plan, store: Store[Trial]) -> Iterator[Progress]:
    """Measure what is not in the store yet.

    The generator may be left at any time; what it has yielded is in the store.

    Raises
    ------
    InputError
        If an image or a label map cannot be used.
    """
    new_share = 0.0
    for number, case in enumerate(cases):
        store.hold_to(case.name, case.paths, case.values)
        known = store.load(case.name)
        if known is not None and known.is_complete:
            yield Progress(case.name, "", (number + 1) / len(cases), new_share)
            continue
        held = case.read()
        for structure, done, total in _measure_case(held, plan, store, known):
            new_share += 1 / total / len(cases)
            share = (number + done / total) / len(cases)
            yield Progress(case.name, structure, share, new_share, held.volume.warnings)


def _measure_case(
    held: ReadCase, plan: Plan, store: Store[Trial], known: CaseResults[Trial] | None
) -> Iterator[tuple[str, int, int]]:
    """Yield each structure that has been measured, how many have been by now, and how many there are."""
    structures = tuple(held.structures(plan.structures, plan.least_voxels))
    results = CaseResults(structures, known.measured if known else (), known.records if known else ())
    left = [s for s in structures if s not in results.measured]
    if not left:
        store.save(held.name, results)
        yield "", 1, 1
        return
    with ExitStack() as stack:
        opened = [stack.enter_context(method.open(held.volume)) for method in plan.methods]
        for structure in left:
            task = Task(held.name, structure, held.reference(structure), held.spacing_kji)
            trials = tuple(t for user in plan.users for t in _trials(task, user, plan, opened, store))
            results = CaseResults(structures, (*results.measured, structure), (*results.records, *trials))
            store.save(held.name, results)
            yield structure, len(results.measured), len(structures)


def _trials(task: Task, user: User, plan: Plan, opened: Sequence[Opened], store: Store[Trial]) -> Iterator[Trial]:
    replay: list[PointPrompt] | None = None
    for method, at_work in zip(plan.methods, opened, strict=True):
        trial, mask = run_trial(at_work, method, task, user, plan.clicks, replay)
        if method is plan.methods[0]:
            store.save_mask(task.case, mask_key(trial), mask)
            replay = [PointPrompt((i, j, k), positive) for i, j, k, positive in trial.clicks] if plan.replay else None
        yield trial


def mask_key(trial: Trial) -> tuple[object, ...]:
    """Name the mask of a trial in the store."""
    return trial.structure, trial.behaviour, trial.seed


def kept_mask(store: Store[Trial], trial: Trial) -> Mask | None:
    """Return the final mask of a trial of the first method."""
    return store.load_mask(trial.case, mask_key(trial))
