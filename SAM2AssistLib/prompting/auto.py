"""Auto-Segment: one call that finds classes in a volume by an adapter, by support cases, or by both.

    for step in auto_segment(session, adapter=folder):
        ...
    for verdict in step.verdicts:
        print(verdict.name, verdict.present, verdict.confidence)

What is found lands in the session as segments whose prompts are listed, can be corrected, and are taken back by one
undo. A class that is not there gets no segment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.blending import SliceOpinion
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.segment import PlacedPrompt, Segment
from SAM2AssistLib.engine.views import cut
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.prompting.class_maps import ClassMaps
from SAM2AssistLib.prompting.corrections import CorrectionOptions, correct, error_opinion
from SAM2AssistLib.prompting.error_head import load_error_head
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.prompting.pseudo_masks import SupportOptions, SupportPrompter
from SAM2AssistLib.prompting.self_prompt import (
    SelfPrompter,
    has_embedded_adapter,
    load_finder,
    only_segments,
)
from SAM2AssistLib.prompting.support import Support, SupportCase, prepare_support, seen_by
from SAM2AssistLib.prompting.templates import Finding, Template, TemplateOptions, find_class, log_odds
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures, read_features
from SAM2AssistLib.volume import Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine
    from SAM2AssistLib.engine.session import Session

TITLE = "Auto-Segment"
HINT_SCORE = 10.0


@dataclass(frozen=True)
class ClassVerdict:
    """What Auto-Segment says of one class.

    Attributes
    ----------
    name : of the class.
    present : whether it was found.
    confidence : in [0, 1], of the mask if it is present, that it is absent if it is not.
    segment : in the session; None if it is absent.
    """

    name: str
    present: bool
    confidence: float
    segment: Segment | None = None


@dataclass(frozen=True)
class AutoStep:
    """Progress of Auto-Segment.

    Attributes
    ----------
    stage : "support", "features", "search", "prompts", "propagation", "edges", "corrections" or "done".
    done, total : of the stage.
    segment, axis, index : what has just been changed, where that is one slice of one segment.
    verdicts : in the last step, one for each class that was asked for.
    cancelled : in the last step, whether `stop` ended it early; what was finished by then is there.
    """

    stage: str
    done: int
    total: int
    segment: Segment | None = None
    axis: int | None = None
    index: int | None = None
    verdicts: tuple[ClassVerdict, ...] = ()
    cancelled: bool = False


@dataclass(frozen=True)
class AutoOptions:
    """How Auto-Segment works; the defaults are what a user wants.

    Attributes
    ----------
    templates, support, corrections : of these parts.
    map_weight : of the maps in the final masks, from 0 to 1; the rest is that of the propagation.
    least_agreement : a mask that has less than this Dice in common with the map it was prompted from is withdrawn.
    """

    templates: TemplateOptions = field(default_factory=TemplateOptions)
    support: SupportOptions = field(default_factory=SupportOptions)
    corrections: CorrectionOptions = field(default_factory=CorrectionOptions)
    map_weight: float = 0.7
    least_agreement: float = 0.3


def auto_segment(
    session: Session,
    *,
    adapter: Path | str | SelfPrompter | None = None,
    support: Sequence[SupportCase | Support] = (),
    classes: Sequence[str] | None = None,
    corrections: int = 0,
    stop: Callable[[], bool] | None = None,
    options: AutoOptions | None = None,
) -> Generator[AutoStep, None, None]:
    """Find classes in the volume of a session and segment them.

    Parameters
    ----------
    session : into which the segments go.
    adapter : folder of an adapter with a self-prompt head, or the loaded head. The embedded one if there is neither an
        adapter nor a support case. That of the session's engine needs no head: support cases or the embedded one find.
    support : finished cases "like this one". A class that both know is found by the support cases.
    classes : which to look for; all that adapter and support know if None.
    corrections : rounds of corrections that the engine makes itself.
    stop : asked between slices; once it says yes, the generator ends with what is finished.
    options : how to work.

    Yields
    ------
    AutoStep
        The last one, of stage "done", holds a verdict for every class.

    Raises
    ------
    InputError
        If a class is known to neither, or a segment of its name is in the session already.
    ModelError
        If the adapter is none, or is for another model.
    """
    run = _Run(session, options or AutoOptions(), stop or (lambda: False))
    with session.joined(TITLE):
        yield from run.go(adapter, support, classes, corrections)


class _Run:
    """One call of `auto_segment`."""

    def __init__(self, session: Session, options: AutoOptions, stop: Callable[[], bool]) -> None:
        self.session, self.options, self.stop = session, options, stop
        self.turn = Orientation.of(session.volume)
        self.volume = self.turn.turn(session.volume)
        self.view = body_view(self.volume)
        self.stopped = False
        self.found: dict[str, tuple[Segment, Finding, ClassMaps]] = {}
        self.least_ml: dict[str, float] = {}

    def go(
        self,
        adapter: Path | str | SelfPrompter | None,
        support: Sequence[SupportCase | Support],
        classes: Sequence[str] | None,
        corrections: int,
    ) -> Iterator[AutoStep]:
        prompter = self._prompter(adapter, support)
        wanted = self._wanted(prompter, support, classes)
        findings: dict[str, tuple[Finding, ClassMaps]] = {}
        by_support = [n for n in wanted if any(n in _names(case) for case in support)]
        by_head = [n for n in wanted if n not in by_support]
        if by_support:
            yield from self._search_by_support(support, prompter or self._companion(), by_support, findings)
        if by_head and prompter is not None:
            yield from self._search_by_head(prompter, by_head, findings)
        yield from self._prompt(wanted, findings)
        yield from self._propagate()
        if corrections and self.found and not self.stopped:
            yield from self._correct(corrections)
        verdicts = self._verdicts(wanted, findings)
        yield AutoStep("done", 1, 1, verdicts=verdicts, cancelled=self.stopped)

    def _prompter(
        self, adapter: Path | str | SelfPrompter | None, support: Sequence[SupportCase | Support]
    ) -> SelfPrompter | None:
        if isinstance(adapter, SelfPrompter):
            return adapter
        engine, folder = self.session.engine, None if adapter is None else Path(adapter)
        if support and (folder is None or only_segments(engine, folder)):
            return None
        return load_finder(engine, folder)

    def _companion(self) -> SelfPrompter | None:
        """Load the adapter in the package, if it has one for the model: support cases work better with it."""
        engine = self.session.engine
        if not self.options.support.with_adapter or not has_embedded_adapter(engine.spec.name):
            return None
        return load_finder(engine, None)

    def _wanted(
        self,
        prompter: SelfPrompter | None,
        support: Sequence[SupportCase | Support],
        classes: Sequence[str] | None,
    ) -> tuple[str, ...]:
        known = list(dict.fromkeys(name for case in support for name in _names(case)))
        known += [name for name in (prompter.classes if prompter else ()) if name not in known]
        unknown = [name for name in classes or () if name not in known]
        if unknown:
            raise InputError(f"Nothing here knows the class {unknown[0]!r}; choose from {', '.join(known)}.")
        wanted = tuple(dict.fromkeys(known if classes is None else classes))
        taken = {segment.name for segment in self.session.segments}
        twice = next((name for name in wanted if name.strip() in taken), None)
        if twice is not None:
            raise InputError(f"There is a segment {twice!r} already; rename or remove it before Auto-Segment.")
        return wanted

    def _plane(self, engine: Engine, window: Window) -> Plane:
        return Plane(engine.model, self.volume, 0, window, engine.channels, engine.options)

    def _read(self, plane: Plane) -> Iterator[AutoStep | VoxelFeatures]:
        for step in read_features(plane, self.view, plane.encoder.batch):
            if isinstance(step, VoxelFeatures):
                yield step
                return
            yield AutoStep("features", step, plane.slices)
            if self._asked_to_stop():
                return

    def _search_by_head(
        self, prompter: SelfPrompter, wanted: Sequence[str], findings: dict[str, tuple[Finding, ClassMaps]]
    ) -> Iterator[AutoStep]:
        window = prompter.window_for(self.volume, self.session.window)
        for step in self._read(self._plane(prompter.engine, window)):
            if isinstance(step, AutoStep):
                yield step
                continue
            maps = prompter.maps(step)
            for name in wanted:
                findings[name] = self._find(maps, name, prompter.presence[name]), maps
                self.least_ml[name] = prompter.least_ml
        yield AutoStep("search", 1, 1)

    def _search_by_support(
        self,
        support: Sequence[SupportCase | Support],
        prompter: SelfPrompter | None,
        wanted: Sequence[str],
        findings: dict[str, tuple[Finding, ClassMaps]],
    ) -> Iterator[AutoStep]:
        prepared: list[Support] = []
        engine, window = prompter.engine if prompter else self.session.engine, self.session.window
        for number, case in enumerate(support, 1):
            if isinstance(case, Support):
                prepared.append(seen_by(engine, case))
            else:
                prepared.append(prepare_support(engine, case, window))
            yield AutoStep("support", number, len(support))
            if self._asked_to_stop():
                return
        plane = self._plane(engine, window)
        for step in self._read(plane):
            if isinstance(step, AutoStep):
                yield step
                continue
            for found in SupportPrompter(prepared, plane, step, self.options.support, prompter).maps():
                if isinstance(found, ClassMaps):
                    for name in wanted:
                        findings[name] = self._find(found, name, self.options.support.presence), found
                    return
                yield AutoStep("search", found, plane.slices)
                if self._asked_to_stop():
                    return

    def _find(self, maps: ClassMaps, name: str, presence: float) -> Finding:
        return find_class(maps, name, self._cell_ml(maps), replace(self.options.templates, presence=presence))

    def _cell_ml(self, maps: ClassMaps) -> float:
        row_mm, column_mm = self.volume.slice_spacing(0)
        side = maps.probabilities.shape[-1]
        return maps.view.rows * row_mm * maps.view.columns * column_mm / side**2 * maps.distance_mm / 1000

    def _prompt(self, wanted: Sequence[str], findings: dict[str, tuple[Finding, ClassMaps]]) -> Iterator[AutoStep]:
        work = [(name, template) for name in wanted if name in findings for template in findings[name][0].templates]
        for done, (name, template) in enumerate(work, 1):
            if self._asked_to_stop():
                return
            if name not in self.found:
                self.found[name] = (self.session.add_segment(name), *findings[name])
            segment = self.found[name][0]
            prompts = self._placed(template, findings[name][0].reach)
            self.session.place_template(segment, self.turn.axis, prompts)
            yield AutoStep("prompts", done, len(work), segment, self.turn.axis, prompts[0].index)

    def _placed(self, template: Template, reach: tuple[int, int]) -> list[PlacedPrompt]:
        """Turn a template into prompts of the session's own slices."""
        turn, new_id = self.turn, self.session.new_prompt_id
        index = turn.slice_back(template.index)
        first, last = sorted(turn.slice_back(end) for end in reach)
        hint = None
        if template.logits is not None:
            hint = SliceState(
                view=turn.view_back(template.view),
                logits=self._mask_prompt(template.logits).half(),
                iou=template.confidence,
                object_score=HINT_SCORE,
                pointer=torch.zeros(0),
                memory=None,
                prompted=True,
            )
        prompts = []
        if template.box is not None:
            corners = np.array([turn.position_back(*corner) for corner in template.box])
            corners = np.stack([corners.min(axis=0), corners.max(axis=0)])
            prompts.append(PlacedPrompt(new_id(), index, corners, np.array([2, 3])))
        for point, positive in zip(template.points, template.positive, strict=True):
            place = np.array([turn.position_back(*point)])
            prompts.append(PlacedPrompt(new_id(), index, place, np.array([int(positive)])))
        return [replace(prompt, reach=(first, last), hint=hint, is_guess=True) for prompt in prompts]

    def _mask_prompt(self, logits: Tensor) -> Tensor:
        """Bring a map to the session's slices and to the size of the network's masks."""
        side = self.session.engine.model.image_size // 4
        turned = self.turn.map_back(logits)[None, None]
        return F.interpolate(turned, size=(side, side), mode="bilinear", align_corners=False)[0, 0]

    def _propagate(self) -> Iterator[AutoStep]:
        segments = [segment for segment, *_ in self.found.values()]
        if not segments or self.stopped:
            return
        with closing(self.session.propagate(segments, sharpen=False)) as steps:
            for step in steps:
                yield AutoStep("propagation", step.done, step.total, step.segment, step.axis, step.index)
                if self._asked_to_stop():
                    self.session.cancel()
        if not self.stopped:
            # Told beforehand: from here on masks change together, and nobody may leave in between.
            yield AutoStep("edges", 0, 1)
        if not self.stopped and self.options.map_weight > 0:
            self._blend()
        for segment in segments:
            if not self._asked_to_stop():
                self.session.sharpen(segment)
        self.session.settle_conflicts(segments)

    def _blend(self) -> None:
        """Let the maps have their say on the slices between the templates, too."""
        for name, (segment, finding, maps) in self.found.items():
            view, number = self.turn.view_back(maps.view), maps.names.index(name) + 1
            opinions = {
                self.turn.slice_back(k): SliceOpinion(view, self._mask_prompt(log_odds(maps.probabilities[k], number)))
                for k in range(finding.reach[0], finding.reach[1] + 1)
            }
            self.session.blend(segment, opinions, self.options.map_weight)

    def _correct(self, rounds: int) -> Iterator[AutoStep]:
        segments = [segment for segment, *_ in self.found.values()]
        engine = self.session.engine
        head = None if engine.adapter is None else load_error_head(engine.adapter, engine.model)
        opinion = None if head is None else error_opinion(self.session, head)
        changed: dict[Segment, None] = {}
        for done, correction in enumerate(
            correct(self.session, segments, rounds, self.options.corrections, opinion), 1
        ):
            if correction.accepted:
                changed[correction.segment] = None
            yield AutoStep("corrections", done, rounds, correction.segment, correction.axis, correction.index)
            if self._asked_to_stop():
                break
        for segment in changed:
            self.session.sharpen(segment)
        self.session.settle_conflicts(segments)

    def _verdicts(
        self, wanted: Sequence[str], findings: dict[str, tuple[Finding, ClassMaps]]
    ) -> tuple[ClassVerdict, ...]:
        verdicts = []
        for name in wanted:
            presence = findings[name][0].presence if name in findings else 0.0
            if name not in self.found:
                verdicts.append(ClassVerdict(name, False, 1 - presence if name in findings else 0.0))
                continue
            segment, _, maps = self.found[name]
            mask = self.session.mask_view(segment)
            too_small = mask.sum() * np.prod(self.volume.spacing_ijk) / 1000 < self.least_ml.get(name, 0.0)
            if not self.stopped and (too_small or self._agreement(mask, maps, name) < self.options.least_agreement):
                self.session.remove_segment(segment)
                verdicts.append(ClassVerdict(name, False, 1 - presence))
                continue
            verdicts.append(ClassVerdict(name, True, self._confidence(segment), segment))
        return tuple(verdicts)

    def _agreement(self, mask: np.ndarray, maps: ClassMaps, name: str) -> float:
        """Dice of a mask and the region of the maps that it was prompted from, on the grid of the maps."""
        region = maps.region(name)
        turned = self.turn.turned(mask)
        side = region.shape[-1]
        common = total = 0
        for k in range(len(region)):
            if turned[k].any() or region[k].any():
                seen = cut(turned[k].astype(np.float32), maps.view, side, 0.0).numpy() >= 0.5
                common += int((seen & region[k]).sum())
                total += int(seen.sum()) + int(region[k].sum())
        return 2 * common / total if total else 0.0

    def _confidence(self, segment: Segment) -> float:
        sure = self.session.confidence(segment)
        axis = self.session.segment_axis(segment)
        mask = self.session.mask_view(segment)
        shown = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        return float(np.mean([sure[int(k)] for k in shown if int(k) in sure] or [0.0]))

    def _asked_to_stop(self) -> bool:
        self.stopped = self.stopped or self.stop()
        return self.stopped


def _names(case: SupportCase | Support) -> tuple[str, ...]:
    if isinstance(case, Support):
        return case.classes
    return tuple(name for name, mask in case.masks.items() if mask.any())
