"""One volume and one segmentation, worked on together: the scene's side.

The user's gestures and edits go to the engine's thread as tasks; what it finds comes back as patches, which are written
to the segmentation as they come. A step of undo is what one gesture has led to, its propagation included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from SAM2AssistLib.engine.worker import Rank, Task, Worker
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.desk import Confidence, Desk, Note, Patch, Progress, Standing
from SAM2AssistLib.mrml.finding import Answer, Finding
from SAM2AssistLib.mrml.gestures import Gesture, changed_alike
from SAM2AssistLib.mrml.journal import EMPTY, Entry, Journal, KnownMask, Step, unpacked
from SAM2AssistLib.mrml.listener import Listener, title_of
from SAM2AssistLib.mrml.masking import Rules
from SAM2AssistLib.mrml.nodes import follow_name, keep_codes
from SAM2AssistLib.mrml.observing import Observation, forget, observe
from SAM2AssistLib.mrml.painting import Painter
from SAM2AssistLib.mrml.prompt_nodes import SEGMENT, PromptNodes
from SAM2AssistLib.mrml.propagating import End, Propagating
from SAM2AssistLib.mrml.surfaces import Surfaces
from SAM2AssistLib.mrml.turning import Turning
from SAM2AssistLib.mrml.volumes import array_view, voxel_state
from SAM2AssistLib.mrml.voxels import Grid, check_labelmaps
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

Prompts = Mapping[str, tuple[Gesture, ...]]


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
        self._turning = Turning(self.journal, self.painter, desk, self._submit_turn)
        self.closed = self._touched = False
        self.confidence: dict[str, Confidence] = {}
        self.successor: Callable[[], Workspace] = lambda: self
        self._synced: dict[str, tuple[Gesture, ...]] = {}
        self._tasks: list[Task] = []
        self._propagating = Propagating(self.journal, desk, rules, self._submit, self._begin, self._told, listener)
        self._held: set[tuple[str, int, int]] = set()
        self._leaving: list[str] = []
        self._cancels = 0
        self.prompts = PromptNodes(scene, volume_node, segmentation_node, self.prompts_changed)
        self._finding = Finding(self.journal, self.painter, self.prompts, desk, self._submit)
        for segment_id in {node.GetAttribute(SEGMENT) for node in self.prompts.nodes()}:
            # Their result was saved with them, and the engine is shown it when the segment is worked on.
            self.take_over(segment_id, self.prompts.gestures(segment_id))
        self._observations = self._observe()

    def close(self) -> None:
        """End all work here; what is finished stays in the segmentation."""
        if self.closed:
            return
        self.closed = True
        if self.busy:
            self.listener.progress("", 0, 0)
        for task in self._tasks:
            task.cancel()
        forget(self._observations)
        self.prompts.close()
        if self.segmentation_node.GetScene() is not None and not self.scene.IsClosing():
            self._finding.close()
            self._finish()
        self.worker.submit("close", lambda: _nothing(self.desk.close))
        self.listener.changed()  # so that somebody delivers that this has ended

    def inherit(self, earlier: Workspace) -> None:
        """Go on from a closed workspace of the same nodes and grid: undo its steps, answer what it left unanswered."""
        self.painter.inherit(earlier.painter)
        for segment_id, before in self.journal.inherit(earlier.journal).items():
            self.take_over(segment_id, before)
            self.prompts_changed(segment_id)
        self.listener.changed()

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
                if not current.journal.owes(segment_id):  # else it has asked for all of them already
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
        self.journal.ask(step, segment_id, before, gestures)
        self._propagating.expect(segment_id)
        name, cancels = self.painter.name(segment_id), self._cancels

        def ended(error: BaseException | None) -> None:
            self.journal.unanswered.discard(step)
            if error is not None:
                self.journal.refuse(step, segment_id)
                self._take_prompts_back(segment_id, before, gestures)
                self._told(error)
            if self.rules.auto_propagate and self._cancels == cancels and not self.busy:
                if error is None:
                    self._propagating.go_on(step, segment_id)
                else:
                    self._propagating.resume()

        self._submit(step.title, step, lambda: self.desk.sync(segment_id, name, gestures, before), ended)

    def add_prompt(self, segment_id: str, gesture: Gesture) -> None:
        """Place a prompt from a script, just as if it had been drawn."""
        self.prompts.add(segment_id, gesture)
        self.prompts_changed(segment_id)

    def propagate(self, segment_ids: Sequence[str] | None = None) -> None:
        """Go on from prompts and edits: carry segments (all, if not given) and those that were interrupted on."""
        self.absorb_edits(*(segment_ids or ()))
        chosen = self.painter.known if segment_ids is None else segment_ids
        self._propagating.go_on(self._begin(_("propagate")), *chosen)

    def auto_segment(
        self, wanted: Mapping[str, str], adapter: str | None, cases: Sequence[str], answer: Answer
    ) -> None:
        """Find classes without prompts.

        Parameters
        ----------
        wanted : ids of empty segments by class name; those in which nothing is found or prompted are removed again.
        adapter, cases : see `Desk.auto`.
        answer : called at the end with what was found; with None if it was ended early.
        """
        self.absorb_edits()
        step, told = self._begin(_("Auto-Segment")), self._going_on(self._told)
        self._propagating.running = self._finding.start(step, wanted, adapter, cases, answer, told)

    def cancel(self) -> None:
        """End what is running after its next slice; finished slices stay, and it is not taken up again by itself.

        Prompts, edits and undo that are waiting are short, and engine and scene have to agree on them: they come to
        their end, and no propagation follows.
        """
        self._cancels += 1
        self._propagating.end()

    def undo(self) -> str | None:
        """Take the last step back, prompts and masks together; returns its title, or None if there is none."""
        if self._displaced and (current := self.successor()) is not self:
            return current.undo()
        self.absorb_edits()
        return self._turning.undo()

    def redo(self) -> str | None:
        """Bring back what was undone last; returns its title, or None if there is none."""
        if self._displaced and (current := self.successor()) is not self:
            return current.redo()
        self.absorb_edits()
        return self._turning.redo()

    def absorb_edits(self, *segment_ids: str) -> None:
        """Take what somebody else has changed in the segments, with any tool, as prompts.

        A segmentation that is as it was some steps ago has been taken back in the Segment Editor: the prompts follow.

        Parameters
        ----------
        segment_ids : segments that are about to be worked on, which the engine has to know.
        """
        check_labelmaps(self.segmentation_node)
        self._propagating.interrupt()
        for segment_id in filter(self.painter.has, segment_ids):
            self._submit_meeting(segment_id)
            for lost in self.painter.lost_voxels(segment_id).items():
                self._submit(_("take over"), None, partial(_nothing, self.desk.give_up, segment_id, *lost), self._told)
        found = self.painter.found_changes()
        if self._turning.follow(found) or not found:
            return
        step = self.journal.begin(_("edit"))
        for segment_id, mask in found.items():
            self._submit_meeting(segment_id)
            known = self.painter.known[segment_id]
            indices = known.changed_in(mask)
            for index in indices:
                before, after = known.slices.get(index, EMPTY), mask.slices.get(index, EMPTY)
                step.add(Entry(segment_id, mask.axis, index, before, after))
            self._submit_edit(step, segment_id, mask, indices)
        self.painter.accept(found)

    def segment_removed(self, segment_id: str) -> None:
        """Take note that a segment has been deleted.

        Slicer may give its id to a new one at once: what the engine says of it until it has forgotten it is unheard.
        """
        self._leaving.append(segment_id)
        self._propagating.leave_out(segment_id)
        self._finding.leave_out(segment_id)
        self.painter.forget(segment_id)
        self._synced.pop(segment_id, None)
        self.confidence.pop(segment_id, None)
        self.prompts.remove_segment(segment_id)
        emptied = self.journal.forget(segment_id)

        def ended(error: BaseException | None) -> None:
            self._leaving.remove(segment_id)
            for step in filter(lambda step: step.empty, emptied):  # those running then may have got something since
                self.journal.drop(step)
            self._told(error)

        self._submit(_("remove"), None, lambda: _nothing(self.desk.remove, segment_id), self._going_on(ended))

    def segment_modified(self, segment_id: str) -> None:
        """Take note that a segment may have another name, or the voxels of before after an undo."""
        follow_name(self.segmentation_node, segment_id)
        self.prompts.rename_segment(segment_id)
        self.voxels_changed()

    def ask(self, title: str, question: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Let the engine's thread answer a question (a method of `desk`) that changes nothing, and nobody waits for."""

        def deliver(given: Any) -> None:
            if not self.closed:
                answer(given)

        self._make_way(Rank.QUICK)
        self.worker.submit(title, lambda: (question(),), deliver, self._told)
        self.listener.changed()

    def warm_up(self, index: int) -> None:
        """Load the engine and encode slices around the one in view, until something is asked for."""
        if not self.busy:
            work = lambda: self.desk.warm_up(index)  # noqa: E731
            self._propagating.running = self._submit(_("prepare"), None, work, self._told, Rank.IDLE)

    def volume_changed(self) -> None:
        """Take note that the volume may have other voxels or another grid than those the engine is looking at.

        What is running ends: it would mix old voxels with new ones. The next prompt makes a successor.
        """
        if self.closed or not self.busy or (voxel_state(self.volume_node) == self.voxels and not self._displaced):
            return
        running = self._propagating.running
        self.cancel()
        if running is not None and running in self._tasks and running.rank is not Rank.IDLE:
            sentence = _("{volume} has changed; finished slices stay, the next prompt takes it as it is now.")
            self.listener.note(sentence.format(volume=self.volume_node.GetName()))

    def flush(self) -> None:
        """Let the views show what has arrived, and go where the Segment Editor's undo or redo has gone meanwhile.

        Called after every `Worker.pump`. Other edits wait until the user goes on.
        """
        if self.closed:
            return
        self.painter.announce()
        if self._touched and not self.busy:
            self._touched = False
            self._turning.follow(self.painter.found_changes())
        if self._propagating.gave_way and not self.worker.busy and voxel_state(self.volume_node) == self.voxels:
            self._propagating.resume()

    def voxels_changed(self) -> None:
        """Take note that somebody has changed voxels; if it was not us, `flush` looks at them."""
        if any(self.painter.has(segment) and self.painter.edited_meanwhile(segment) for segment in self.painter.known):
            self._touched = True
            self.listener.changed()

    # Inside

    @property
    def _displaced(self) -> bool:
        """Whether volume and segmentation do not lie to one another as they did: what was found fits no more."""
        return not self.painter.grid.holds_for(self.volume_node, self.segmentation_node)

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
            observe(self.volume_node, self.volume_node.TransformModifiedEvent, self.volume_changed),
            observe(self.segmentation_node, self.segmentation_node.TransformModifiedEvent, self.volume_changed),
            observe(self.volume_node, self.volume_node.ImageDataModifiedEvent, self.volume_changed),
            observe(self.volume_node, "ModifiedEvent", self.volume_changed),  # all that arrayFromVolumeModified tells
        ]

    def _keep_codes(self, segment_id: str) -> None:
        keep_codes(self.segmentation_node, segment_id)

    def _begin(self, title: str) -> Step:
        self.listener.step(self)
        return self.journal.begin(title)

    def _submit(
        self, title: str, step: Step | None, work: Callable[[], Iterable[Any]], ended: End, rank: Rank = Rank.QUICK
    ) -> Task:
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

        self._make_way(rank)
        task = self.worker.submit(title, run, partial(self._report, title, step, dict(self._synced)), end, rank)
        self._tasks.append(task)
        self.listener.changed()
        return task

    def _going_on(self, then: End) -> End:
        """Take up again, after what `then` ends, what was interrupted for it, unless the user cancels meanwhile."""
        cancels = self._cancels

        def ended(error: BaseException | None) -> None:
            then(error)
            if self.rules.auto_propagate and self._cancels == cancels and not self.busy:
                self._propagating.resume()

        return ended

    def _make_way(self, rank: Rank) -> None:
        """Let nobody wait for what can wait, and say what has to be waited for."""
        before = self.worker.make_way(rank)
        if before is not None and rank > Rank.LATER:
            self.listener.note(_("Waiting for: {work}.").format(work=before))

    def _finish(self) -> None:
        """Tell everybody that the segments are as they will stay."""
        for segment_id in self.painter.finish():
            self.surfaces.outdate(self.segmentation_node, segment_id)

    def _report(self, title: str, step: Step | None, synced: Prompts, item: Any) -> None:
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
        elif isinstance(item, Confidence) and item.segment_id not in self._leaving:
            self.confidence[item.segment_id] = item
            self.listener.confidence()
        elif isinstance(item, Standing):
            self._stand(step, synced, item)

    def _write(self, step: Step | None, patch: Patch) -> None:
        if not self.painter.has(patch.segment_id) or patch.segment_id in self._leaving or self._displaced:
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

    def _submit_edit(self, step: Step | None, segment_id: str, mask: KnownMask, indices: Sequence[int]) -> None:
        shape = tuple(n for a, n in enumerate(self.painter.grid.shape_kji) if a != mask.axis)
        slices = {k: unpacked(mask.slices.get(k, EMPTY), shape) for k in indices}  # type: ignore[arg-type]
        name, axis = self.painter.name(segment_id), mask.axis
        self._submit(_("edit"), step, lambda: self.desk.take_edit(segment_id, name, axis, slices), self._told)

    def _submit_meeting(self, segment_id: str) -> None:
        """Let the engine know a segment as it was before what follows, unless it does."""
        known = self.painter.known.get(segment_id) or self.painter.look_at(segment_id)
        name, held = self.painter.name(segment_id), known.copy()
        self._submit(_("take over"), None, lambda: self.desk.meet(segment_id, name, held), self._told)

    def _submit_turn(
        self, title: str, prompts: Prompts, work: Callable[[], Iterable[Any]], done: Callable[[], None]
    ) -> None:
        for segment_id, gestures in prompts.items():  # at once: what is clicked from now on comes beside them
            self._show(segment_id, gestures)

        def ended(error: BaseException | None) -> None:
            done()
            self._told(error)
            self._propagating.tell_left(self.painter)

        self._submit(title, None, work, ended)

    def _stand(self, step: Step | None, synced: Prompts, standing: Standing) -> None:
        """Let the prompt nodes be those of the engine, after undo, redo and Auto-Segment, but for what came since."""
        self.confidence = {key: known for key, known in self.confidence.items() if key in standing.held}
        self.listener.confidence()
        known = {node.GetAttribute(SEGMENT) for node in self.prompts.nodes()}
        for segment_id in (known | standing.gestures.keys()).difference(self._leaving):
            gestures, before = standing.gestures.get(segment_id, ()), synced.get(segment_id, ())
            if step is not None and self.painter.has(segment_id):
                step.note_prompts(segment_id, before, gestures)
            self._show(segment_id, changed_alike(before, self._synced.get(segment_id, ()), gestures))

    def _show(self, segment_id: str, gestures: tuple[Gesture, ...]) -> None:
        if self.painter.has(segment_id):
            self._synced[segment_id] = gestures
            self.prompts.show(segment_id, gestures)

    def _take_prompts_back(self, segment_id: str, before: tuple[Gesture, ...], wanted: tuple[Gesture, ...]) -> None:
        """Show a segment's prompts as they were before a change that failed, but for what was drawn since."""
        self._show(segment_id, changed_alike(wanted, before, self.prompts.gestures(segment_id)))

    def _told(self, error: BaseException | None) -> None:
        if error is not None:
            self.listener.error(error)


def _nothing(work: Callable[..., None], *arguments: Any) -> tuple[()]:
    """Do something that has nothing to report."""
    work(*arguments)
    return ()
