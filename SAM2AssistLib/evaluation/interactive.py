"""Interactive protocols: a first prompt, the propagated mask, then correction clicks, each measured.

``cvpr25`` is the CVPR 2025 challenge's: its box, then five clicks. ``clicks`` begins with a click and asks how many are
needed for a Dice of 0.85 and 0.90. ``human`` asks how much the result depends on who prompts, and how.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.behaviours import BEHAVIOURS, first_prompts, is_random
from SAM2AssistLib.evaluation.methods import Method, Opened
from SAM2AssistLib.evaluation.metrics import surface_dice
from SAM2AssistLib.evaluation.simulated_user import (
    Prompt,
    RangedBox,
    challenge_box,
    challenge_click,
    correction_click,
    deepest_click,
)
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompts import PointPrompt

NSD_TOLERANCE_MM = 2.0
"""The challenge's."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """One structure, segmented once by one method from one user's prompts.

    Attributes
    ----------
    case, structure, method : what was segmented, by what.
    behaviour, seed : of the simulated user.
    voxels : of the reference.
    slice_dsc : 2D Dice on the slice of the first prompt, before any propagation; None if the method has no such mask.
    dsc, nsd : volumetric, after the first prompts and after each click; NSD at 2 mm.
    seconds : from each prompt to its propagated result; the first holds the encoding of slices that were not yet.
    first_clicks, clicks : (i, j, k, positive), in voxels, of the first prompts and of the corrections.
    first_slice : k of the first prompt.
    first_box : (i min, j min, i max, j max) drawn there; empty without a box.
    """

    case: str
    structure: str
    method: str
    behaviour: str
    seed: int
    voxels: int
    slice_dsc: float | None
    dsc: tuple[float, ...]
    nsd: tuple[float, ...]
    seconds: tuple[float, ...]
    first_clicks: tuple[tuple[float, float, float, bool], ...]
    clicks: tuple[tuple[float, float, float, bool], ...]
    first_slice: int
    first_box: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Task:
    """A structure to segment.

    Attributes
    ----------
    case : its name.
    structure : its name.
    reference : bool (k, j, i), not empty.
    spacing_kji : mm along the array axes.
    """

    case: str
    structure: str
    reference: Mask
    spacing_kji: tuple[float, float, float]


@dataclass(frozen=True)
class User:
    """A simulated user.

    Attributes
    ----------
    protocol : "cvpr25", "clicks" or "human".
    behaviour : how the first prompts are given.
    seed : of what is random in them.
    """

    protocol: str
    behaviour: str
    seed: int

    def first(self, task: Task) -> list[Prompt]:
        """Give the first prompts; the same for every method."""
        # By name, so that a structure gets the same prompts whatever else is measured along with it.
        words = f"{task.case}/{task.structure}/{self.behaviour}/{self.seed}"
        rng = np.random.default_rng(zlib.crc32(words.encode()))
        if self.protocol == "cvpr25":
            return [challenge_box(task.reference, rng)]
        if self.protocol == "clicks":
            click = deepest_click(np.zeros_like(task.reference), task.reference, task.spacing_kji)
            assert click is not None
            return [click]
        return first_prompts(self.behaviour, task.reference, task.spacing_kji, rng)

    def correct(self, mask: Mask, task: Task, given: Sequence[Prompt]) -> PointPrompt | None:
        """Click where a mask is wrong; None if it is right."""
        if self.protocol == "cvpr25":
            return challenge_click(mask, task.reference)
        if self.protocol == "clicks":
            clicked = [p for p in given if isinstance(p, PointPrompt)]
            return deepest_click(mask, task.reference, task.spacing_kji, clicked)
        return correction_click(mask, task.reference, task.spacing_kji)


DEFAULT_CLICKS = {"cvpr25": 5, "clicks": 9, "human": 0}
"""Corrections after the first prompt; in ``clicks`` that is a click, too, so that ten are given."""


def users(protocol: str, seeds: int = 1, behaviours: Sequence[str] = ()) -> list[User]:
    """List the users of a protocol.

    Parameters
    ----------
    protocol : "cvpr25", "clicks" or "human".
    seeds : how often each random behaviour is repeated.
    behaviours : of ``human``; all if empty.

    Raises
    ------
    InputError
        If there is no such behaviour.
    """
    if protocol == "clicks":
        return [User(protocol, "click", 0)]
    if protocol == "cvpr25":
        return [User(protocol, "box", seed) for seed in range(seeds)]
    for behaviour in behaviours:
        if behaviour not in BEHAVIOURS:
            raise InputError(f"There is no behaviour '{behaviour}'; choose from {', '.join(BEHAVIOURS)}.")
    chosen = behaviours or BEHAVIOURS
    return [User(protocol, b, seed) for b in chosen for seed in range(seeds if is_random(b) else 1)]


def run_trial(
    opened: Opened, method: Method, task: Task, user: User, clicks: int, replay: Sequence[PointPrompt] | None = None
) -> tuple[Trial, Mask]:
    """Segment a structure as a user would.

    Parameters
    ----------
    opened : the method at work on the case's volume.
    method : for its name.
    clicks : corrections after the first prompts.
    replay : these corrections, made for another method, instead of the user's own.

    Returns
    -------
    The trial and the final mask (k, j, i).
    """
    given = first = user.first(task)
    with opened.attempt(task.structure) as attempt:
        begun = time.perf_counter()
        at_once = [(prompt, attempt.prompt(prompt)) for prompt in given]
        k = slice_of(given[0])
        shown = at_once[-1][1]
        mask, scores, seconds, made = attempt.mask(), [], [], []
        seconds.append(time.perf_counter() - begun)
        scores.append(_score(mask, task))
        for number in range(clicks):
            click = _next_click(user, mask, task, given, replay, number)
            if click is not None:
                begun = time.perf_counter()
                attempt.prompt(click)
                mask = attempt.mask()
                seconds.append(time.perf_counter() - begun)
                given = [*given, click]
                made.append((*click.index_ijk, click.positive))
                scores.append(_score(mask, task))
            else:  # nothing is wrong any more: the mask stays, and so does its score
                seconds.append(0.0)
                scores.append(scores[-1])
    trial = Trial(
        case=task.case,
        structure=task.structure,
        method=method.name,
        behaviour=user.behaviour,
        seed=user.seed,
        voxels=int(task.reference.sum()),
        slice_dsc=None if shown is None else round(dice(shown, task.reference[k]), 5),
        dsc=tuple(round(d, 5) for d, _ in scores),
        nsd=tuple(round(n, 5) for _, n in scores),
        seconds=tuple(round(s, 3) for s in seconds),
        first_clicks=tuple((*p.index_ijk, p.positive) for p in first if isinstance(p, PointPrompt)),
        clicks=tuple(made),
        first_slice=k,
        first_box=_corners_of(given[0]),
    )
    return trial, mask


def slice_of(prompt: Prompt) -> int:
    """Return the slice k of a prompt."""
    where = prompt.box.min_ijk if isinstance(prompt, RangedBox) else prompt.index_ijk
    return round(where[2])


def _corners_of(prompt: Prompt) -> tuple[float, ...]:
    return (*prompt.box.min_ijk[:2], *prompt.box.max_ijk[:2]) if isinstance(prompt, RangedBox) else ()


def _next_click(
    user: User,
    mask: Mask,
    task: Task,
    given: Sequence[Prompt],
    replay: Sequence[PointPrompt] | None,
    number: int,
) -> PointPrompt | None:
    if replay is None:
        return user.correct(mask, task, given)
    return replay[number] if number < len(replay) else None


def _score(mask: Mask, task: Task) -> tuple[float, float]:
    return dice(mask, task.reference), surface_dice(mask, task.reference, task.spacing_kji, NSD_TOLERANCE_MM)
