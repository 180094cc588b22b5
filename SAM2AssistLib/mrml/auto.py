"""Auto-Segment in the scene: what it will do, doing it, and keeping cases it can learn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.mrml import export
from SAM2AssistLib.mrml.assistant import EngineChoice
from SAM2AssistLib.mrml.desk import Verdicts
from SAM2AssistLib.mrml.jobs import Stage
from SAM2AssistLib.mrml.nodes import add_segment
from SAM2AssistLib.mrml.volumes import look_at_volume
from SAM2AssistLib.mrml.voxels import Grid, SegmentVoxels, check_labelmaps
from SAM2AssistLib.mrml.words import free_name, translator

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.panel import Panel

_ = translator(__file__)

LONGEST_STEM = 180
"""Bytes of the name that a case has of its volume; the library takes 200, and there may come a number."""


@dataclass(frozen=True)
class Sources:
    """What Auto-Segment can learn from on this computer.

    Attributes
    ----------
    adapter : folder of the adapter with a self-prompt head; None if there is none.
    adapter_classes : that it knows.
    cases : classes by case of the support library.
    """

    adapter: str | None
    adapter_classes: tuple[str, ...]
    cases: dict[str, tuple[str, ...]]

    @property
    def classes(self) -> list[str]:
        """All classes, each once."""
        known = (*self.adapter_classes, *(name for names in self.cases.values() for name in names))
        return list(dict.fromkeys(known))


def _found_sources(choice: EngineChoice) -> Iterator[Sources]:
    yield find_sources(choice)


def find_sources(choice: EngineChoice) -> Sources:
    """Look for an adapter and for support cases; for the worker's thread, because this imports torch."""
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    folder = _folder_of_head(choice)
    classes = _classes_of(folder)
    cases = {entry.name: entry.classes for entry in SupportLibrary().entries()}
    return Sources(str(folder) if classes else None, classes, cases)


def _folder_of_head(choice: EngineChoice) -> Path:
    """Return the chosen adapter, or the embedded one: beside one of `sam2assist finetune`, too, which has no head."""
    from SAM2AssistLib.engine.adapter import check_adapter_files
    from SAM2AssistLib.prompting.self_prompt import EMBEDDED_FOLDER, has_head

    embedded = EMBEDDED_FOLDER / choice.model
    if not choice.adapter:
        return embedded
    chosen = Path(choice.adapter)
    with suppress(ModelError):  # which is told when it is loaded
        check_adapter_files(chosen)
        return chosen if has_head(chosen) else embedded
    return chosen


def _classes_of(folder: Path) -> tuple[str, ...]:
    """Return what the self-prompt head of an adapter finds; nothing if it has none, or is refused when it is loaded."""
    from SAM2AssistLib.engine.adapter import read_card
    from SAM2AssistLib.prompting.self_prompt import HEAD_NAME, has_head

    try:
        return tuple(map(str, read_card(folder)[HEAD_NAME]["classes"])) if has_head(folder) else ()
    except (ModelError, KeyError, TypeError):
        return ()


def _free_name(volume_name: str, taken: Container[str]) -> str:
    """Name a case after its volume, with a number if that name is taken; Slicer's "4: Abdomen" can name no folder."""
    name = re.sub(r"[/\\:\0]+", "-", volume_name).strip().lstrip(".")
    short = name.encode(errors="ignore")[:LONGEST_STEM].decode(errors="ignore").strip()
    return free_name(short or "case", taken)


class AutoMode:
    """The panel's automatic part.

    Parameters
    ----------
    panel : whose nodes and workspaces are used.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.sources = Sources(None, (), {})
        self._looked_for: EngineChoice | None = None

    @property
    def looked(self) -> bool:
        """Whether it is known what there is to learn from, with the engine that is chosen now."""
        return self._looked_for == self.panel.assistant.choice

    def refresh(self, told: Callable[[], None]) -> None:
        """Look anew for what there is to learn from; `told` is called when the answer is there."""
        choice = self.panel.assistant.choice

        def answer(sources: Sources) -> None:
            self.sources, self._looked_for = sources, choice
            told()

        self.panel.jobs.start(_("look for classes"), lambda: _found_sources(choice), answer)

    def description(self, classes: Sequence[str]) -> str:
        """Say beforehand what will be done."""
        if not self.looked:
            return self._not_known()
        if not self.sources.classes:
            return _("Choose an adapter under Advanced, or segment a case and add it to the support library.")
        if not classes:
            return _("Check at least one class.")
        by_case, by_adapter = self._shared_out(classes)
        parts = []
        if by_adapter:
            adapter = Path(self.sources.adapter or "").name
            parts.append(_("{classes} by the adapter {adapter}").format(classes=", ".join(by_adapter), adapter=adapter))
        if by_case:
            cases = ", ".join(self._cases_for(by_case))
            parts.append(_("{classes} like in {cases}").format(classes=", ".join(by_case), cases=cases))
        said = _("Looks for {what}. What is found can be corrected; one undo takes all of it back.")
        return said.format(what="; ".join(parts))

    def start(self, classes: Sequence[str]) -> None:
        """Look for classes; what is found becomes segments that can be corrected like any other.

        Raises
        ------
        InputError
            If nothing is checked, a segment of that name holds something already, or the segmentation has no labelmaps;
            or if another engine was chosen just now, and what it can look for is not known yet.
        """
        if not self.looked:
            raise InputError(self._not_known())
        if not classes:
            raise InputError(_("Check at least one class for Auto-Segment."))
        workspace = self.panel.workspace(make=True)
        assert workspace is not None
        node = self.panel.segmentation_node
        check_labelmaps(node)
        self._refuse_taken(node, classes, workspace.painter.grid)
        by_case, by_adapter = self._shared_out(classes)
        wanted = {name: self._empty_segment(node, name) for name in classes}
        adapter = self.sources.adapter if by_adapter else None
        workspace.auto_segment(wanted, adapter, self._cases_for(by_case), self._tell)

    def add_support(self, segmentation_node: Any) -> Callable[[], Iterator[Stage | str]]:
        """Take a snapshot of the case, and return what adds it to the support library, for the worker's thread.

        Raises
        ------
        InputError
            If the volume cannot be used; from the worker's thread, if nothing is segmented.
        """
        volume_node = self.panel.volume_node
        segments, name = export.Snapshot.of(volume_node, segmentation_node), str(volume_node.GetName())
        _outline, read = look_at_volume(volume_node)

        def add() -> Iterator[Stage | str]:
            from SAM2AssistLib.prompting.support import SupportCase, masks_by_name
            from SAM2AssistLib.prompting.support_library import Entry, SupportLibrary

            title, masks = _("add to the support library"), []
            for named in segments.masks():
                masks.append(named)
                yield Stage(title, 0, 1)
            library = SupportLibrary()
            free = _free_name(name, library.names())
            for step in library.adding(SupportCase(free, read(), masks_by_name(masks))):
                if isinstance(step, Entry):
                    said = _("{case} is in the support library now, with {classes}.")
                    yield said.format(case=step.name, classes=", ".join(step.classes))
                else:
                    yield Stage(title, *step)

        return add

    # Inside

    @staticmethod
    def _not_known() -> str:
        return _("It is not known yet what can be looked for; wait a moment.")

    def _shared_out(self, classes: Sequence[str]) -> tuple[list[str], list[str]]:
        """Split classes into those found by support cases and those found by the adapter."""
        shown = {name for names in self.sources.cases.values() for name in names}
        return [name for name in classes if name in shown], [name for name in classes if name not in shown]

    def _cases_for(self, classes: Sequence[str]) -> list[str]:
        return [case for case, names in self.sources.cases.items() if set(names) & set(classes)]

    @staticmethod
    def _refuse_taken(node: Any, classes: Sequence[str], grid: Grid) -> None:
        for name in classes:
            segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
            if segment_id and SegmentVoxels(node, segment_id, grid).read().any():
                said = _("There is a segment {name!r} already; rename or remove it, or uncheck the class.")
                raise InputError(said.format(name=name))

    @staticmethod
    def _empty_segment(node: Any, name: str) -> str:
        return node.GetSegmentation().GetSegmentIdBySegmentName(name) or add_segment(node, name)

    def _tell(self, verdicts: Verdicts | None) -> None:
        if verdicts is None:
            return
        found = [name for name, present in verdicts.present.items() if present]
        absent = [name for name, present in verdicts.present.items() if not present]
        sentences = [_("Found {classes}.").format(classes=", ".join(found)) if found else _("Nothing was found.")]
        if found and absent:
            sentences.append(_("Not there: {classes}.").format(classes=", ".join(absent)))
        self.panel.view.showStatus(" ".join(sentences))
