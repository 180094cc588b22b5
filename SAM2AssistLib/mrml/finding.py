"""Auto-Segment in a workspace: empty segments in, and those in which nothing is found are removed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from SAM2AssistLib.engine.worker import Leave, Rank, Task
from SAM2AssistLib.mrml.desk import Desk, Verdicts
from SAM2AssistLib.mrml.journal import Journal, Step
from SAM2AssistLib.mrml.painting import Painter
from SAM2AssistLib.mrml.prompt_nodes import PromptNodes
from SAM2AssistLib.mrml.propagating import End, Submit
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

Answer = Callable[["Verdicts | None"], None]
"""Called at the end of a search with what was found; with None if it was ended early."""


class Finding:
    """Looks for classes without prompts.

    Parameters
    ----------
    journal : of the steps that what is found belongs to.
    painter, prompts : of the segments.
    desk : the engine's side.
    submit : brings work to the engine's thread.
    """

    def __init__(self, journal: Journal, painter: Painter, prompts: PromptNodes, desk: Desk, submit: Submit) -> None:
        self.journal, self.painter, self.prompts, self.desk = journal, painter, prompts, desk
        self._submit = submit
        self._wanted: list[set[str]] = []

    def start(
        self,
        step: Step,
        wanted: Mapping[str, str],
        adapter: str | None,
        cases: Sequence[str],
        answer: Answer,
        told: End,
    ) -> Task:
        """Begin to look; see `Workspace.auto_segment`, whose step it is.

        Parameters
        ----------
        told : called at the end, before `answer`, with the error that ended it or None.
        """
        ids = set(wanted.values())
        self._wanted.append(ids)
        found: list[Verdicts] = []

        def work() -> Iterator[Any]:
            items = self.desk.auto(wanted, adapter, cases)
            try:
                for item in items:
                    if isinstance(item, Verdicts):
                        found.append(item)
                    yield item
            except Leave:
                with suppress(StopIteration):
                    yield items.throw(Leave())  # type: ignore[attr-defined]  # its last word: what has been found
                    yield from items

        def ended(error: BaseException | None) -> None:
            if not step.changed:
                self.journal.drop(step)
            self._wanted.remove(ids)
            self._remove_unfilled(ids.difference(*self._wanted))
            told(error)
            if error is None:
                answer(found[-1] if found else None)

        return self._submit(_("Auto-Segment"), step, work, ended, Rank.LONG)

    def leave_out(self, segment_id: str) -> None:
        """Take note that a segment has been deleted: a new one that gets its id is none that is looked for."""
        for ids in self._wanted:
            ids.discard(segment_id)

    def close(self) -> None:
        """Remove the segments that nothing has been found in yet."""
        wanted, self._wanted = self._wanted, []
        self._remove_unfilled(set().union(*wanted))

    def _remove_unfilled(self, segment_ids: Iterable[str]) -> None:
        """Remove the segments in which nothing has been found, and nobody has painted or begun to place prompts."""
        for segment_id in filter(self.painter.has, segment_ids):
            slices = self.painter.voxels(segment_id).slices(self.desk.axis)
            if not (self.prompts.nodes(segment_id) or any(mask.any() for _index, mask in slices)):
                self.painter.node.GetSegmentation().RemoveSegment(segment_id)
