"""What the module's panel does, without its widgets.

The panel's widgets call `Panel`; what is to be shown is told to a `View`, which the module's widget class is. So every
gesture can be tested without a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from SAM2AssistLib.engine.catalogue import find_model, model_names
from SAM2AssistLib.engine.store import is_present
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import check_place
from SAM2AssistLib.mrml import export, nodes
from SAM2AssistLib.mrml.assistant import Assistant, EngineChoice
from SAM2AssistLib.mrml.auto import AutoMode
from SAM2AssistLib.mrml.first_run import Installing, MissingPackage, describe
from SAM2AssistLib.mrml.gestures import SOLID_BOX, Kind
from SAM2AssistLib.mrml.jobs import Jobs
from SAM2AssistLib.mrml.listener import Listener
from SAM2AssistLib.mrml.masking import Rules
from SAM2AssistLib.mrml.observing import Observation, forget, observe
from SAM2AssistLib.mrml.preview import Preview
from SAM2AssistLib.mrml.strip import strip_ppm
from SAM2AssistLib.mrml.telling import sentence_of
from SAM2AssistLib.mrml.volumes import look_at_volume
from SAM2AssistLib.mrml.words import translator
from SAM2AssistLib.mrml.workspace import Workspace

_ = translator(__file__)

EDITOR_TAG = "SAM2Assist"
STRIP_HEIGHT = 12
EDITOR_STATE_BYTES = 64 << 20
"""Labelmaps up to this size are copied for the Segment Editor's undo at every step, in some 20 ms; the own undo keeps
differences and has no limit."""


class View(Protocol):
    """What shows; its names are in Slicer's style, because the module's widget class is one."""

    def showBusy(self) -> None: ...  # noqa: D102, N802
    def showError(self, sentence: str) -> None: ...  # noqa: D102, N802
    def showStatus(self, sentence: str) -> None: ...  # noqa: D102, N802
    def showProgress(self, title: str, done: int, total: int) -> None: ...  # noqa: D102, N802
    def showConfidence(self, ppm: bytes) -> None: ...  # noqa: D102, N802
    def saveEditorState(self) -> None: ...  # noqa: D102, N802
    def showSegmentation(self, segmentationNode: Any) -> None: ...  # noqa: D102, N802, N803
    def confidenceWidth(self) -> int: ...  # noqa: D102, N802
    def updateButtons(self) -> None: ...  # noqa: D102, N802
    def updateClasses(self) -> None: ...  # noqa: D102, N802


class Panel:
    """The panel's deeds.

    Parameters
    ----------
    scene : vtkMRMLScene
    assistant : the workspaces.
    view : what shows.

    Attributes
    ----------
    volume_node, segmentation_node : chosen in the panel; None if not.
    installed : whether all packages are there.
    """

    def __init__(self, scene: Any, assistant: Assistant, view: View) -> None:
        self.scene, self.assistant, self.view = scene, assistant, view
        self.volume_node: Any = None
        self.segmentation_node: Any = None
        self.installed, self._installing = True, False
        self._live_preview = True
        self._placing: tuple[str, bool] | None = None
        self._placing_into: str | None = None
        self._entered = False
        self.jobs = Jobs(assistant.worker, view, self._failed)
        self._auto = AutoMode(self)
        self._preview = Preview(scene)
        self._observations: list[Observation] = []
        listener = assistant.listener
        listener.error, listener.progress = self._failed, view.showProgress
        listener.confidence, listener.changed = self.show_confidence, view.showBusy
        listener.step, listener.note = self._before_step, view.showStatus
        assistant.rules.editor_node = self.editor_node
        self._scene_observation = observe(scene, scene.EndCloseEvent, self._scene_closed)

    def close(self) -> None:
        """Let go of the scene; the view is told nothing any more."""
        self.exit()
        self._preview.close()
        self.jobs.close()
        forget([self._scene_observation])
        self.assistant.rules.editor_node = Rules().editor_node
        vars(self.assistant.listener).update(vars(Listener()))

    # Coming and going

    def enter(self) -> None:
        """Follow the mouse from now on."""
        if self._entered:
            return
        self._entered = True
        interaction = self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        for node, name, slot in (
            (interaction, "InteractionModeChangedEvent", self._mode_changed),
            (crosshair, "CursorPositionModifiedEvent", self._cursor_moved),
            (self.editor_node(), "ModifiedEvent", self._editor_changed),
        ):
            if node is not None:
                self._observations.append(observe(node, getattr(node, name, name), slot))
        self.refresh_classes()
        self.prepare()

    def exit(self) -> None:
        """Give the mouse back; work goes on."""
        self.stop_placing()
        self._entered = False
        forget(self._observations)

    def set_parameters(self, parameters: Any) -> None:
        """Take over what is chosen in the panel; None for an empty scene."""
        before, choice = (self.volume_node, self.segmentation_node), self.assistant.choice
        if parameters is None:
            self.volume_node = self.segmentation_node = None
        else:
            self.volume_node, self.segmentation_node = parameters.volume, parameters.segmentation
            self._live_preview, rules = parameters.livePreview, self.assistant.rules
            rules.auto_propagate, rules.along = parameters.autoPropagate, parameters.axis
            adapter = str(parameters.adapter or "")
            self.assistant.choice = EngineChoice(
                parameters.model, parameters.device, adapter if adapter not in ("", ".") else None
            )
        if choice != self.assistant.choice and self._entered:
            self.refresh_classes()
        if before != (self.volume_node, self.segmentation_node):
            self.stop_placing()
            self.prepare()

    def set_installed(self, installed: bool) -> None:
        """Take note whether all packages are there; once they are, look for classes and load the engine."""
        newly = installed and not self.installed
        self.installed = installed
        if newly and self._entered:
            self.refresh_classes()
            self.prepare()

    def install(self, steps: Iterable[Installing], take_turn: Callable[[], None]) -> None:
        """Install packages one after another, in the main thread, as Slicer wants it; `cancel` ends it between two.

        Parameters
        ----------
        steps : see `first_run.installing`.
        take_turn : lets the window show what has come, and take in the press of a button.
        """
        if self._installing:
            return
        self._installing = True
        with self._guarded():
            for step in steps:
                title = _("Installing {package}").format(package=step.requirement)
                self.view.showProgress(title, step.number, step.total)
                said = _("Installing {package}, number {number} of {total}.")
                self.view.showStatus(said.format(package=step.requirement, number=step.number, total=step.total))
                self.view.updateButtons()
                take_turn()
                if not self._installing:
                    said = _("Cancelled before {package}; press the button again to go on from there.")
                    self.view.showStatus(said.format(package=step.requirement))
                    break
            else:
                self.view.showStatus(_("All packages are installed."))
        self._installing = False
        self.view.showProgress("", 0, 0)

    def setup_description(self, missing: Sequence[MissingPackage]) -> str:
        """List what has to be installed, and the room it takes."""
        return describe(missing)

    def prepare(self) -> None:
        """Load the engine and look at the slice in view, so that the first click is answered at once."""
        if not (self._entered and self.installed and self.volume_node and self.segmentation_node):
            return
        with self._guarded():
            workspace = self.workspace()
            if workspace is not None:
                workspace.warm_up(nodes.slice_in_view(self.volume_node, workspace.desk.axis))

    # What is chosen

    def editor_node(self) -> Any:
        """Return the module's own vtkMRMLSegmentEditorNode, in which predictions overlap unless the user says other."""
        node = self.scene.GetSingletonNode(EDITOR_TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = self.scene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag(EDITOR_TAG)
            node.SetOverwriteMode(node.OverwriteNone)
            node = self.scene.AddNode(node)
        return node

    def first_volume(self) -> Any:
        """Return the first volume that can be chosen (no label map, no hidden node); None if there is none."""
        return nodes.first_volume(self.scene)

    def model_names(self) -> list[str]:
        """List the models whose weights are on this computer; others are fetched on the command line."""
        return [name for name in model_names() if is_present(find_model(name))]

    def workspace(self, *, make: bool = False) -> Workspace | None:
        """Return the workspace of the chosen nodes.

        Parameters
        ----------
        make : whether to make a segmentation if none is chosen.

        Raises
        ------
        InputError
            If no volume is chosen, or it cannot be used.
        """
        if self.volume_node is None:
            raise InputError(_("Choose a CT volume first."))
        if self.segmentation_node is None:
            if not make:
                return None
            self.view.showSegmentation(nodes.make_segmentation(self.scene, self.volume_node))
        else:
            nodes.link_to_volume(self.segmentation_node, self.volume_node)
        workspace = self.assistant.open(self.volume_node, self.segmentation_node)
        for sentence in workspace.desk.volume.warnings:
            self.view.showStatus(sentence)
        return workspace

    def segment_id(self, *, make: bool = False) -> str | None:
        """Return the id of the segment chosen in the list; the first one, or a new one, if none is."""
        if self.segmentation_node is None:
            return None
        segmentation, editor = self.segmentation_node.GetSegmentation(), self.editor_node()
        chosen = editor.GetSelectedSegmentID()
        if chosen and segmentation.GetSegment(chosen) is not None:
            return str(chosen)
        if segmentation.GetNumberOfSegments():
            chosen = segmentation.GetNthSegmentID(0)
        elif make:
            chosen = nodes.add_segment(self.segmentation_node)
        else:
            return None
        editor.SetSelectedSegmentID(chosen)
        return str(chosen)

    # States of buttons

    def ready(self) -> bool:
        """Whether prompts can be placed."""
        return self.installed and self.volume_node is not None

    def busy(self) -> bool:
        """Whether the engine works, or packages are installed."""
        return self._installing or self.assistant.worker.busy

    def placing(self) -> tuple[str, bool] | None:
        """Return kind and sign of the prompt that is being placed."""
        return self._placing

    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return any(w.journal.done for w in self._current())

    def can_redo(self) -> bool:
        """Whether there is a step to bring back."""
        return any(w.journal.undone for w in self._current())

    # Deeds

    def start_placing(self, kind: str, positive: bool) -> None:
        """Let clicks in the views place prompts of a kind in the chosen segment.

        Parameters
        ----------
        kind : a value of `Kind`, or `SOLID_BOX`.
        positive : whether they are inside the segment.
        """
        drawn = Kind.BOX if kind == SOLID_BOX else Kind(kind)
        self.stop_placing()
        with self._guarded():
            workspace = self.workspace(make=True)
            segment_id = self.segment_id(make=True)
            assert workspace is not None
            assert segment_id is not None
            node = workspace.prompts.node_for(segment_id, drawn, positive=positive)
            if drawn is not Kind.POINT:
                workspace.prompts.begin_drawing(node, solid=kind == SOLID_BOX)
            nodes.start_placing(self.scene, node, drawn)
            self._placing, self._placing_into = (kind, positive), segment_id

    def stop_placing(self) -> None:
        """Let the mouse scroll and window again."""
        self._placing = None
        self._preview.hide()
        nodes.stop_placing(self.scene)
        for workspace in self.assistant.workspaces:
            workspace.prompts.end_drawing()

    def auto_segment(self, classes: Sequence[str]) -> None:
        """Segment classes without prompts."""
        with self._guarded():
            self._auto.start(classes)

    def propagate(self) -> None:
        """Go on from prompts and edits of the chosen segment, and from whatever else is unfinished."""
        with self._guarded():
            workspace, segment_id = self.workspace(), self.segment_id()
            if workspace is not None and segment_id is not None:
                workspace.propagate([segment_id])

    def undo(self) -> None:
        """Take the last step back."""
        self._turn(Workspace.undo, _("Undone: {step}."))

    def redo(self) -> None:
        """Bring the last undone step back."""
        self._turn(Workspace.redo, _("Redone: {step}."))

    def cancel(self) -> None:
        """End what is running."""
        for workspace in self.assistant.workspaces:
            workspace.cancel()
        self.jobs.cancel()
        self._installing = False
        self.view.showStatus(_("Cancelled; finished slices were kept."))

    def next_doubtful(self) -> None:
        """Show the slice the engine is least sure of, and the next one when asked again."""
        with self._guarded():
            workspace = self.workspace()
            if workspace is not None:
                workspace.ask("doubtful slice", workspace.desk.next_doubtful_slice, partial(self._jump, workspace))

    def save_nrrd(self, path: str) -> None:
        """Save the segmentation as it is now."""
        with self._guarded():
            path = export.nrrd_path(path)
            segments = export.Snapshot.of(self.volume_node, self._segmentation())
            self.jobs.start(_("save as NRRD"), lambda: export.save_nrrd(segments, path), self.view.showStatus)

    def export_dicom_seg(self, path: str, file_of: Callable[[str], str]) -> None:
        """Export the segmentation as it is now as a DICOM Segmentation object."""
        with self._guarded():
            check_place(path)
            segments = export.Snapshot.of(self.volume_node, self._segmentation())
            volume, _read = look_at_volume(self.volume_node)
            files = export.dicom_files_of(self.volume_node, file_of)
            worked = [w for w in self._current() if w.journal.done or w.prompts.nodes()]
            choice = self.assistant.choice_of(worked[0]) if worked else None
            prompts = [request for workspace in worked for request in export.prompts_of(workspace)]
            self.jobs.start(
                _("export DICOM-SEG"),
                lambda: export.export_dicom_seg(segments, volume, files, path, choice, prompts),
                self.view.showStatus,
            )

    def add_to_support_library(self) -> None:
        """Keep this case as an example for Auto-Segment."""
        with self._guarded():
            work = self._auto.add_support(self._segmentation())
            self.jobs.start(_("add to the support library"), work, self._support_added)

    def class_names(self) -> list[str]:
        """List what Auto-Segment can look for."""
        return self._auto.sources.classes

    def refresh_classes(self) -> None:
        """Look for what Auto-Segment can learn from."""
        if self.installed:
            self._auto.refresh(self.view.updateClasses)

    def auto_description(self, classes: Sequence[str]) -> str:
        """Say beforehand what Auto-Segment will do."""
        if not self.installed:
            return _("What can be looked for is listed once the packages of the first run are installed.")
        return self._auto.description(classes)

    def show_confidence(self) -> None:
        """Show the confidence of the chosen segment; a gray strip if nothing is known of it."""
        segment_id = self.segment_id()
        known = next((w.confidence[segment_id] for w in self._current() if segment_id in w.confidence), None)
        values, prompted = (np.array([np.nan]), ()) if known is None else (known.values, known.prompted)
        self.view.showConfidence(strip_ppm(values, self.view.confidenceWidth(), STRIP_HEIGHT, prompted))

    def deliver(self) -> bool:
        """Take in what the engine has found; returns whether there is more to wait for."""
        with self._guarded():
            self.assistant.pump()
        busy = self.assistant.busy
        if not busy:
            self.view.updateButtons()
        return busy

    # Inside

    def _segmentation(self) -> Any:
        if self.volume_node is None or self.segmentation_node is None:
            raise InputError(_("Choose a CT volume and a segmentation first."))
        return self.segmentation_node

    def _current(self) -> list[Workspace]:
        pair = (self.volume_node, self.segmentation_node)
        return [w for w in self.assistant.workspaces if (w.volume_node, w.segmentation_node) == pair]

    def _turn(self, deed: Callable[[Workspace], str | None], done: str) -> None:
        with self._guarded():
            for workspace in self._current():
                title = deed(workspace)
                self.view.showStatus(done.format(step=title) if title else _("There is no further step."))

    def _before_step(self, workspace: Workspace) -> None:
        """Let the Segment Editor's undo take back what the engine does, too; a large copy is not worth it."""
        if workspace in self._current() and workspace.painter.size_bytes <= EDITOR_STATE_BYTES:
            self.view.saveEditorState()

    def _jump(self, workspace: Workspace, place: tuple[str, int, int] | None) -> None:
        if workspace not in self._current():  # another case has been chosen while the engine was busy
            return
        if place is None:
            met = bool(workspace.confidence)
            unknown = _(
                "The engine has yet to work on these segments and cannot tell what is doubtful; place a prompt first."
            )
            self.view.showStatus(_("No further slice is doubtful.") if met else unknown)
        else:
            segment_id, axis, index = place
            nodes.jump_views(self.volume_node, axis, index)
            segment = self.segmentation_node.GetSegmentation().GetSegment(segment_id)
            if segment is not None:
                self.editor_node().SetSelectedSegmentID(segment_id)
                doubt = _("The engine is not sure of {segment} on slice {index}.")
                self.view.showStatus(doubt.format(segment=segment.GetName(), index=index))

    def _support_added(self, sentence: str) -> None:
        self.view.showStatus(sentence)
        self.refresh_classes()

    def _scene_closed(self) -> None:
        """Let predictions overlap again unless the user says other: with the scene, the node's choice was reset."""
        node = self.editor_node()
        node.SetOverwriteMode(node.OverwriteNone)

    def _editor_changed(self) -> None:
        self.show_confidence()
        self._follow_segment()

    def _follow_segment(self) -> None:
        """Let clicks go into the segment that is chosen now, not into the one before, nor into one that is deleted."""
        if self._placing is None:
            return
        chosen = self.segment_id()
        if chosen == self._placing_into:
            return
        if chosen is None:
            self.stop_placing()
        else:
            self.start_placing(*self._placing)

    def _mode_changed(self) -> None:
        if not nodes.is_placing(self.scene):
            self.stop_placing()
        self.view.updateButtons()

    def _cursor_moved(self) -> None:
        """Show what a click would give, while a point is placed in a view and the engine has time; else nothing."""
        self._follow_segment()
        if self._placing is None or self._placing[0] != Kind.POINT.value:
            return
        position = [0.0, 0.0, 0.0]
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        workspaces, segment_id = self._current(), self.segment_id()
        if any(w.busy for w in workspaces) or not (self._live_preview and crosshair.GetCursorPositionRAS(position)):
            self._preview.hide()
        elif workspaces and segment_id and not self.busy():
            self._preview.ask(workspaces[0], segment_id, position, positive=self._placing[1])

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Tell the user what went wrong; beyond here an error would be nothing but lines in the console."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the user has pressed a button and waits
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.view.showError(sentence_of(error))
