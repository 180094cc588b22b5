"""Auto-Segment in the scene: what it will do, doing it, and keeping cases it can learn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.mrml import export
from SAM2AssistLib.mrml.assistant import EngineChoice
from SAM2AssistLib.mrml.desk import Verdicts
from SAM2AssistLib.mrml.nodes import add_segment
from SAM2AssistLib.mrml.volumes import volume_from_node

if TYPE_CHECKING:
    from SAM2AssistLib.mrml.panel import Panel


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


def find_sources(choice: EngineChoice) -> Sources:
    """Look for an adapter and for support cases; for the worker's thread, because this imports torch."""
    from SAM2AssistLib.prompting.self_prompt import CARD_FILE, HEAD_FILE, HEAD_NAME, embedded_adapter
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    try:
        folder = Path(choice.adapter) if choice.adapter else embedded_adapter(choice.model)
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        classes = tuple(map(str, card[HEAD_NAME]["classes"])) if (folder / HEAD_FILE).is_file() else ()
    except (ModelError, OSError, ValueError, KeyError, TypeError):
        # Without a usable adapter there is still the support library; a chosen one is refused when it is loaded.
        classes = ()
    cases = {entry.name: entry.classes for entry in SupportLibrary().entries()}
    return Sources(str(folder) if classes else None, classes, cases)


class AutoMode:
    """The panel's automatic part.

    Parameters
    ----------
    panel : whose nodes and workspaces are used.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.sources = Sources(None, (), {})

    def refresh(self, told: Callable[[], None]) -> None:
        """Look anew for what there is to learn from; `told` is called when the answer is there."""
        choice = self.panel.assistant.choice

        def answer(sources: Sources) -> None:
            self.sources = sources
            told()

        worker = self.panel.assistant.worker
        worker.submit("classes", lambda: (find_sources(choice),), answer, self.panel.failed_if)

    def description(self, classes: Sequence[str]) -> str:
        """Say beforehand what will be done."""
        if not self.sources.classes:
            return "Choose an adapter under Advanced, or segment a case and add it to the support library."
        if not classes:
            return "Check at least one class."
        by_case, by_adapter = self._shared_out(classes)
        parts = []
        if by_adapter:
            parts.append(f"{', '.join(by_adapter)} by the adapter {Path(self.sources.adapter or '').name}")
        if by_case:
            cases = ", ".join(self._cases_for(by_case))
            parts.append(f"{', '.join(by_case)} like in {cases}")
        return f"Looks for {'; '.join(parts)}. What is found can be corrected; one undo takes all of it back."

    def start(self, classes: Sequence[str]) -> None:
        """Look for classes; what is found becomes segments that can be corrected like any other.

        Raises
        ------
        InputError
            If nothing is checked, or a segment of that name holds something already.
        """
        if not classes:
            raise InputError("Check at least one class for Auto-Segment.")
        workspace = self.panel.workspace(make=True)
        assert workspace is not None
        node = self.panel.segmentation_node
        self._refuse_taken(node, classes)
        by_case, by_adapter = self._shared_out(classes)
        wanted = {name: self._empty_segment(node, name) for name in classes}
        adapter = self.sources.adapter if by_adapter else None
        workspace.auto_segment(wanted, adapter, self._cases_for(by_case), self._tell)

    def add_support(self, segmentation_node: Any) -> Callable[[], Iterator[str]]:
        """Read the case and return what adds it to the support library, for the worker's thread.

        Raises
        ------
        InputError
            If nothing is segmented.
        """
        volume_node = self.panel.volume_node
        masks = {named.name: named.mask for named in export.named_masks(volume_node, segmentation_node)}
        volume, name = volume_from_node(volume_node), str(volume_node.GetName())

        def add() -> Iterator[str]:
            from SAM2AssistLib.prompting.support import SupportCase
            from SAM2AssistLib.prompting.support_library import SupportLibrary

            entry = SupportLibrary().add(SupportCase(name, volume, masks))
            yield f"{entry.name} is in the support library now, with {', '.join(entry.classes)}."

        return add

    # Inside

    def _shared_out(self, classes: Sequence[str]) -> tuple[list[str], list[str]]:
        """Split classes into those found by support cases and those found by the adapter."""
        shown = {name for names in self.sources.cases.values() for name in names}
        return [name for name in classes if name in shown], [name for name in classes if name not in shown]

    def _cases_for(self, classes: Sequence[str]) -> list[str]:
        return [case for case, names in self.sources.cases.items() if set(names) & set(classes)]

    @staticmethod
    def _refuse_taken(node: Any, classes: Sequence[str]) -> None:
        for name in classes:
            segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
            image = node.GetBinaryLabelmapInternalRepresentation(segment_id) if segment_id else None
            if image is not None and image.GetNumberOfPoints():
                raise InputError(f"There is a segment {name!r} already; rename or remove it, or uncheck the class.")

    @staticmethod
    def _empty_segment(node: Any, name: str) -> str:
        return node.GetSegmentation().GetSegmentIdBySegmentName(name) or add_segment(node, name)

    def _tell(self, verdicts: Verdicts | None) -> None:
        if verdicts is None:
            return
        found = [name for name, present in verdicts.present.items() if present]
        absent = [name for name, present in verdicts.present.items() if not present]
        sentence = f"Found {', '.join(found)}." if found else "Nothing was found."
        self.panel.view.showStatus(f"{sentence} Not there: {', '.join(absent)}." if found and absent else sentence)
