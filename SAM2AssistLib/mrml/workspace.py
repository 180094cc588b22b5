"""One volume and one segmentation, worked on together: the scene's side.

The user's gestures and edits go to the engine's thread as tasks; what it finds comes back as patches, which are written
to the segmentation as they come. A step of undo is what one gesture has led to, its propagation included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from SAM2AssistLib.engine.worker import Task, Worker
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.desk import Confidence, Desk, Note, Patch, Progress, Standing, Verdicts
from SAM2AssistLib.mrml.gestures import Gesture
from SAM2AssistLib.mrml.journal import EMPTY, Entry, Journal, KnownMask, Step, reverse, unpacked
from SAM2AssistLib.mrml.listener import Listener, title_of
from SAM2AssistLib.mrml.masking import Rules
from SAM2AssistLib.mrml.nodes import follow_name, keep_codes
from SAM2AssistLib.mrml.observing import Observation, forget, observe
from SAM2AssistLib.mrml.painting import Painter
from SAM2AssistLib.mrml.prompt_nodes import SEGMENT, PromptNodes
from SAM2AssistLib.mrml.surfaces import Surfaces
from SAM2AssistLib.mrml.volumes import array_view, voxel_state
from SAM2AssistLib.mrml.voxels import Grid
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

End = Callable[["BaseException | None"], None]


class Workspace:
    """Prompts in, segments out, for one pair of nodes.

    Parameters
    ----------
    scene : vtkMRMLScene
    volume_node, segmentation_node : the pair.
    worker : the engine's thread.
    desk : its side of this workspace.
    listener : who is told.
    rules : what the user has chosen, now and later.
    surfaces : told of those that are out of date.

    Attributes
    ----------
    voxels : state of the volume that the engine looks at.
    confidence : of the engine in each segment.
    successor : gives the workspace of this pair as the volume is now; this one, most of the time.
    """

    def __init__(
        self,
        scene: Any,
        volume_node: Any,
        segmentation_node: Any,
        worker: Worker,
        desk: Desk,
        listener: Listener,
        rules: Rules,
        surfaces: Surfaces,
    ) -> None:
        self.scene, self.volume_node, self.segmentation_node = scene, volume_node, segmentation_node
        self.worker, self.desk, self.listener = worker, desk, listener
        self.rules, self.surfaces = rules, surfaces
        self.voxels = voxel_state(volume_node)
        grid = Grid.of(volume_node, segmentation_node)
        self.painter = Painter(segmentation_node, grid, desk.axis, array_view(volume_node), rules)
        self.journal = Journal()
        self.closed = False
        self.confidence: dict[str, Confidence] = {}
        self.successor: Callable[[], Workspace] = lambda: self
        self._synced: dict[str, tuple[Gesture, ...]] = {}
        self._tasks: list[Task] = []
        self._running: Task | None = None
        self._interrupted: set[str] = set()
        self._held: set[tuple[str, int, int]] = set()
        self._touched = False
        self._cancels = 0
        self.prompts = PromptNodes(scene, volume_node, segmentation_node, self.prompts_changed)
        for segment_id in {node.GetAttribute(SEGMENT) for node in self.prompts.nodes()}:
            # Their result was saved with them, and the engine is shown it when the segment is worked on.
            self.take_over(segment_id, self.prompts.gestures(segment_id))
        self._observations = self._observe()

    def close(self) -> None:
        """End all work here; what is finished stays in the segmentation."""
        if self.closed:
            return
        self.closed = True
        for task in self._tasks:
            task.cancel()
        forget(self._observations)
        self.prompts.close()
        if self.segmentation_node.GetScene() is not None and not self.scene.IsClosing():
            self._finish()
        self.worker.submit("close", lambda: _nothing(self.desk.close))
        self.listener.changed()  # so that somebody delivers that this has ended

    # What the user does

    @property
    def busy(self) -> bool:
        """Whether a task of this workspace has yet to end."""
        self._tasks = [task for task in self._tasks if task in self.worker.tasks]
        return bool(self._tasks)

    def prompts_changed(self, segment_id: str) -> None:
        """Go after a segment's prompt nodes as they are now."""
        if self.closed or not self.painter.has(segment_id):
            return
        before = self._synced.get(segment_id, ())
        try:
            gestures = self.prompts.gestures(segment_id)
            if set(gestures) == set(before):
                return
            current = self.successor()
            if current is self:
                self._follow_prompts(segment_id, before, gestures)
            else:  # the volume shows another time point, or another model was chosen
                current.take_over(segment_id, before)
                current.prompts_changed(segment_id)
        except (InputError, MemoryError) as error:
            self._take_prompts_back(segment_id, before, self.prompts.gestures(segment_id))
            self.listener.error(error)

    def take_over(self, segment_id: str, gestures: tuple[Gesture, ...]) -> None:
        """Take prompts of an earlier workspace for what the segment holds already."""
        self._synced[segment_id] = gestures
        self.desk.settle(segment_id, gestures)

    def _follow_prompts(self, segment_id: str, before: tuple[Gesture, ...], gestures: tuple[Gesture, ...]) -> None:
        self.absorb_edits(segment_id)
        self._synced[segment_id] = gestures
        step = self._begin(title_of(before, gestures))
        name, cancels = self.painter.name(segment_id), self._cancels

        def ended(error: BaseException | None) -> None:
            if error is not None:
                self.journal.drop(step)
                self._take_prompts_back(segment_id, before, gestures)
                self._told(error)
            elif self.rules.auto_propagate and self._cancels == cancels and not self.busy:
                self._propagate(step, [segment_id, *self._interrupted])

        self._submit(step.title, step, lambda: self.desk.sync(segment_id, name, gestures), ended)

    def add_prompt(self, segment_id: str, gesture: Gesture) -> None:
        """Place a prompt from a script, just as if it had been drawn."""
        self.prompts.add(segment_id, gesture)
        self.prompts_changed(segment_id)

    def propagate(self, segment_ids: Sequence[str] | None = None) -> None:
        """Go on from all prompts and edits: carry segments (all, if not given) through the volume."""
        self.absorb_edits(*(segment_ids or ()))
        self._propagate(self._begin(_("propagate")), segment_ids)

    def auto_segment(
        self,
        wanted: Mapping[str, str],
        adapter: str | None,
        cases: Sequence[str],
        answer: Callable[[Verdicts | None], None],
    ) -> None:
        """Find classes without prompts.

        Parameters
        ----------
        wanted : ids of empty segments by class name; those in which nothing is found are removed again.
        adapter, cases : see `Desk.auto`.
        answer : called at the end with what was found; with None if it was ended early.
        """
        self.absorb_edits()
        step = self._begin(_("Auto-Segment"))
        found: list[Verdicts] = []

        def work() -> Iterator[Any]:
            for item in self.desk.auto(wanted, adapter, cases):
                if isinstance(item, Verdicts):
                    found.append(item)
                yield item

        def ended(error: BaseException | None) -> None:
            if not step.changed:
                self.journal.drop(step)
            for segment_id in wanted.values():
                known = self.painter.known.get(segment_id)
                if self.painter.has(segment_id) and (known is None or not known.slices):
                    self.segmentation_node.GetSegmentation().RemoveSegment(segment_id)
            self._told(error)
            if error is None:
                answer(found[-1] if found else None)

        self._running = self._submit(_("Auto-Segment"), step, work, ended)

    def cancel(self) -> None:
        """End what is running after its next slice; finished slices stay, and it is not taken up again by itself.

        Prompts, edits and undo that are waiting are short, and engine and scene have to agree on them: they come to
        their end, and no propagation follows.
        """
        self._cancels += 1
        self._interrupt()
        self._interrupted.clear()

    def undo(self) -> str | None:
        """Take the last step back, prompts and masks together; returns its title, or None if there is none."""
        self.absorb_edits()
        if not self.journal.done:
            return None
        step = self.journal.done.pop()
        self.journal.undone.append(step)
        self._turn(step, back=True)
        return step.title

    def redo(self) -> str | None:
        """Bring back what was undone last; returns its title, or None if there is none."""
        self.absorb_edits()
        if not self.journal.undone:
            return None
        step = self.journal.undone.pop()
        self.journal.done.append(step)
        self._turn(step, back=False)
        return step.title

    def absorb_edits(self, *segment_ids: str) -> None:
        """Take what somebody else has changed in the segments, with any tool, as prompts.

        A segmentation that is as it was some steps ago has been taken back in the Segment Editor: the prompts follow.

        Parameters
        ----------
        segment_ids : segments to look at although they have not been worked on here yet.
        """
        self._interrupt()
        for segment_id in segment_ids:
            if segment_id not in self.painter.known and self.painter.has(segment_id):
                mask = self.painter.look_at(segment_id)
                self._submit_edit(None, segment_id, mask, sorted(mask.slices))
        found = self.painter.found_changes()
        if not found or self._follow(found):
            return
        step = self.journal.begin(_("edit"))
        for segment_id, mask in found.items():
            known = self.painter.known[segment_id]
            indices = known.changed_in(mask)
            for index in indices:
                before, after = known.slices.get(index, EMPTY), mask.slices.get(index, EMPTY)
                step.add(Entry(segment_id, mask.axis, index, before, after))
            self._submit_edit(step, segment_id, mask, indices)
        self.painter.accept(found)

    def segment_removed(self, segment_id: str) -> None:
        """Take note that a segment has been deleted."""
        self._interrupt()
        self._interrupted.discard(segment_id)
        self.painter.forget(segment_id)
        self._synced.pop(segment_id, None)
        self.confidence.pop(segment_id, None)
        self.prompts.remove_segment(segment_id)
        self._submit(_("remove"), None, lambda: _nothing(self.desk.remove, segment_id), self._told)

    def segment_modified(self, segment_id: str) -> None:
        """Take note that a segment may have another name, or the voxels of before after an undo."""
        follow_name(self.segmentation_node, segment_id)
        self.prompts.rename_segment(segment_id)
        self.voxels_changed()

    def ask(self, title: str, question: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Let the engine's thread answer a question (a method of `desk`) that changes nothing."""

        def deliver(given: Any) -> None:
            if not self.closed:
                answer(given)

        self._tasks.append(self.worker.submit(title, lambda: (question(),), deliver, self._told))
        self.listener.changed()

    def warm_up(self, index: int) -> None:
        """Load the engine and encode slices around the one in view, until something is asked for."""
        if not self.busy:
            self._running = self._submit(_("prepare"), None, lambda: self.desk.warm_up(index), self._told)

    def volume_changed(self) -> None:
        """Take note that the volume may have other voxels or another grid than those the engine is looking at.

        What is running ends: it would mix old voxels with new ones. The next prompt makes a successor.
        """
        if self.closed or not self.busy or voxel_state(self.volume_node) == self.voxels:
            return
        running = self._running
        self.cancel()
        if running is None or running not in self._tasks or running.title == _("prepare"):
            return
        sentence = _("The voxels of {volume} have changed; finished slices stay, the next prompt takes the new ones.")
        self.listener.note(sentence.format(volume=self.volume_node.GetName()))

    def flush(self) -> None:
        """Let the views show what has arrived; called after every `Worker.pump`."""
        if self.closed:
            return
        self.painter.announce()
        if self._touched and not self.busy:
            self._touched = False
            self.follow_editor()

    def voxels_changed(self) -> None:
        """Take note that somebody has changed voxels; if it was not us, `flush` looks at them."""
        if any(self.painter.has(segment) and self.painter.edited_meanwhile(segment) for segment in self.painter.known):
            self._touched = True
            self.listener.changed()

    def follow_editor(self) -> bool:
        """Go where an undo or a redo of the Segment Editor has gone; other edits wait until the user goes on."""
        found = self.painter.found_changes()
        return bool(found) and self._follow(found)

    # Inside

    def _observe(self) -> list[Observation]:
        import vtk

        segmentation = self.segmentation_node.GetSegmentation()
        for segment_id in segmentation.GetSegmentIDs():
            self._keep_codes(segment_id)
        return [
            observe(segmentation, segmentation.SegmentAdded, self._keep_codes, vtk.VTK_STRING),
            observe(segmentation, segmentation.SegmentRemoved, self.segment_removed, vtk.VTK_STRING),
            observe(segmentation, segmentation.SegmentModified, self.segment_modified, vtk.VTK_STRING),
            observe(segmentation, segmentation.SourceRepresentationModified, self.voxels_changed),
            observe(self.volume_node, self.volume_node.TransformModifiedEvent, self.prompts.follow_volume),
            observe(self.volume_node, self.volume_node.ImageDataModifiedEvent, self.volume_changed),
            observe(self.volume_node, "ModifiedEvent", self.volume_changed),  # all that arrayFromVolumeModified tells
        ]

    def _keep_codes(self, segment_id: str) -> None:
        keep_codes(self.segmentation_node, segment_id)

    def _begin(self, title: str) -> Step:
        self.listener.step(self)
        return self.journal.begin(title)

    def _submit(self, title: str, step: Step | None, work: Callable[[], Iterable[Any]], ended: End) -> Task:
        def run() -> Iterator[Any]:
            if step is not None and step.mark_before is None:
                step.mark_before = step.mark_after = self.desk.mark
            try:
                yield from work()
            finally:
                if step is not None:
                    step.mark_after = self.desk.mark

        def end(error: BaseException | None) -> None:
            if self.closed:
                return
            self.listener.progress(title, 0, 0)
            ended(error)
            if not self.busy:
                self._held.clear()
                self._finish()
            self.listener.changed()

        task = self.worker.submit(title, run, lambda item: self._report(title, step, item), end)
        self._tasks.append(task)
        self.listener.changed()
        return task

    def _finish(self) -> None:
        """Tell everybody that the segments are as they will stay."""
        for segment_id in self.painter.finish():
            self.surfaces.outdate(self.segmentation_node, segment_id)

    def _report(self, title: str, step: Step | None, item: Any) -> None:
        if self.closed:
            return
        if isinstance(item, Patch):
            try:
                self._write(step, item)
            except InputError as error:
                self.cancel()
                self.listener.error(error)
        elif isinstance(item, Progress):
            self.listener.progress(item.title or title, item.done, item.total)
        elif isinstance(item, Note):
            self.listener.note(item.sentence)
        elif isinstance(item, Confidence):
            self.confidence[item.segment_id] = item
            self.listener.confidence()
        elif isinstance(item, Standing):
            self._stand(item)

    def _write(self, step: Step | None, patch: Patch) -> None:
        if not self.painter.has(patch.segment_id):
            return
        if self.painter.edited_meanwhile(patch.segment_id):
            self._hold_edits(patch.segment_id)
        if (patch.segment_id, patch.axis, patch.index) in self._held:
            return
        for entry in self.painter.write(patch):
            if step is not None:
                step.add(entry)

    def _hold_edits(self, segment_id: str) -> None:
        """Keep what the user paints while a propagation runs: it ends, and these slices are not painted over."""
        known, found = self.painter.known[segment_id], self.painter.found_changes().get(segment_id)
        if found is not None:
            self._held |= {(segment_id, known.axis, index) for index in known.changed_in(found)}
            self.absorb_edits()

    def _propagate(self, step: Step, segment_ids: Sequence[str] | None) -> None:
        chosen = None if segment_ids is None else tuple(dict.fromkeys(segment_ids))
        self._interrupted = set(chosen or self.painter.known)

        def ended(error: BaseException | None) -> None:
            if self._running is task:  # it came to its end by itself
                self._running = None
                self._interrupted.clear()
            self._told(error)

        task = self._submit(_("propagate"), step, lambda: self.desk.propagate(chosen), ended)
        self._running = task

    def _interrupt(self) -> None:
        """End a running propagation after its next slice; the next prompt takes it up again."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def _submit_edit(self, step: Step | None, segment_id: str, mask: KnownMask, indices: Sequence[int]) -> None:
        if not indices:
            return
        shape = tuple(n for a, n in enumerate(self.painter.grid.shape_kji) if a != mask.axis)
        slices = {k: unpacked(mask.slices.get(k, EMPTY), shape) for k in indices}  # type: ignore[arg-type]
        name, axis = self.painter.name(segment_id), mask.axis
        self._submit(_("edit"), step, lambda: self.desk.take_edit(segment_id, name, axis, slices), self._told)

    def _turn(self, step: Step, *, back: bool) -> None:
        def ended(error: BaseException | None) -> None:
            self.painter.apply(reverse(step.changed) if back else step.changed)
            self._told(error)

        self._submit(_("undo") if back else _("redo"), None, lambda: self._engine_to(step, back=back), ended)

    def _engine_to(self, step: Step, *, back: bool) -> Iterator[Standing | Confidence]:
        """Bring the engine before or behind a step; runs in its thread."""
        if step.mark_before is not None and step.mark_after is not None:
            yield from self.desk.undo_to(step.mark_before) if back else self.desk.redo_to(step.mark_after)

    def _follow(self, found: dict[str, KnownMask]) -> bool:
        """If the segments are as they were at another step of the journal, go there; returns whether they are."""
        everything = {**self.painter.known, **found}
        count = self.journal.back_to(self.painter.known, everything)
        back = count > 0
        count = count or self.journal.forward_to(self.painter.known, everything)
        if not count:
            return False
        source, target = (self.journal.done, self.journal.undone)[:: 1 if back else -1]
        for _number in range(count):
            target.append(source.pop())
        step = target[-1]
        self.painter.accept(found)
        self._submit(_("follow the Segment Editor"), None, lambda: self._engine_to(step, back=back), self._told)
        return True

    def _stand(self, standing: Standing) -> None:
        """Let the prompt nodes be those of the engine, after undo and redo."""
        self.confidence = {key: known for key, known in self.confidence.items() if key in standing.gestures}
        self.listener.confidence()
        known = {node.GetAttribute(SEGMENT) for node in self.prompts.nodes()}
        for segment_id in known | standing.gestures.keys():
            if self.painter.has(segment_id):
                gestures = standing.gestures.get(segment_id, ())
                self._synced[segment_id] = gestures
                self.prompts.show(segment_id, gestures)

    def _take_prompts_back(self, segment_id: str, before: tuple[Gesture, ...], wanted: tuple[Gesture, ...]) -> None:
        """Show a segment's prompts as they were before a change that failed, but for what was drawn since."""
        if not self.painter.has(segment_id):
            return
        now = self.prompts.gestures(segment_id)
        kept = [g for g in now if g in before or g not in wanted]
        kept += [g for g in before if g not in wanted and g not in now]
        self._synced[segment_id] = tuple(kept)
        self.prompts.show(segment_id, kept)

    def _told(self, error: BaseException | None) -> None:
        if error is not None:
            self.listener.error(error)


def _nothing(work: Callable[..., None], *arguments: Any) -> tuple[()]:
    """Do something that has nothing to report."""
    work(*arguments)
    return ()
