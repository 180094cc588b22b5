"""All workspaces of a scene, and the one engine they share.

This is what the Slicer module talks to; it runs without any window, too:

    assistant = Assistant(slicer.mrmlScene)
    workspace = assistant.open(volume_node, segmentation_node)
    workspace.add_prompt(segment_id, Gesture.of(Kind.POINT, point_ras))
    assistant.wait()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.engine.worker import Worker, pump_until_done
from SAM2AssistLib.mrml.desk import Desk
from SAM2AssistLib.mrml.listener import Listener
from SAM2AssistLib.mrml.masking import AUTOMATIC, Rules
from SAM2AssistLib.mrml.observing import Observation, forget, observe
from SAM2AssistLib.mrml.surfaces import Surfaces
from SAM2AssistLib.mrml.volumes import automatic_axis, look_at_volume, voxel_state
from SAM2AssistLib.mrml.voxels import Grid
from SAM2AssistLib.mrml.workspace import Workspace

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine


@dataclass(frozen=True)
class EngineChoice:
    """Which engine.

    Attributes
    ----------
    model : a name of the catalogue.
    device : "auto", "cpu", "cuda", "cuda:N" or "mps".
    adapter : folder of an adapter, or None.
    """

    model: str = "mini"
    device: str = "auto"
    adapter: str | None = None


def load(choice: EngineChoice) -> Engine:
    """Load the engine of a choice; raises as `load_engine`."""
    from SAM2AssistLib.engine.loading import load_engine

    return load_engine(choice.model, device=choice.device, adapter=choice.adapter)


@dataclass
class _Opened:
    workspace: Workspace
    choice: EngineChoice
    along: str


class Assistant:
    """The workspaces of a scene.

    Parameters
    ----------
    scene : vtkMRMLScene, whose closing and whose removed nodes are noticed.
    loader : makes the engine of a choice, in the worker's thread.
    """

    def __init__(self, scene: Any, loader: Callable[[EngineChoice], Engine] = load) -> None:
        self.scene = scene
        self.worker, self.surfaces = Worker(), Surfaces()
        self.choice = EngineChoice()
        self.rules = Rules()
        self.listener = Listener()
        self._loader = loader
        self._engine: tuple[EngineChoice, Engine] | None = None
        self._opened: dict[tuple[str, str], _Opened] = {}
        self._orphans: list[str] = []
        self._observations = self._observe_scene()

    def close(self) -> None:
        """End all work and the thread; for the module's end and the application's."""
        self.close_workspaces()
        forget(self._observations)
        self.worker.close()
        self.surfaces.close()

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """The open ones."""
        return tuple(opened.workspace for opened in self._opened.values())

    def open(self, volume_node: Any, segmentation_node: Any) -> Workspace:
        """Return the workspace of a pair of nodes; the same one as long as voxels, grid, engine and direction stay.

        Its successor can undo what it has done as long as the grid stays.

        Raises
        ------
        InputError
            If the volume cannot be used, see `look_at_volume`.
        """
        key = (volume_node.GetID(), segmentation_node.GetID())
        opened, along, earlier = self._opened.get(key), self.rules.along, None
        if opened is not None:
            workspace = opened.workspace
            same = (workspace.voxels, opened.choice, opened.along) == (voxel_state(volume_node), self.choice, along)
            if workspace.painter.grid.is_that_of(Grid.of(volume_node, segmentation_node)):
                if same:
                    return workspace
                earlier = workspace
            self._close(key)
        volume, read = look_at_volume(volume_node)
        choice = self.choice
        axis = automatic_axis(volume) if along == AUTOMATIC else volume.array_axis_of(along)
        desk = Desk(volume, axis, lambda: self.engine(choice), read)
        shared = (self.worker, desk, self.listener, self.rules, self.surfaces)
        workspace = Workspace(self.scene, volume_node, segmentation_node, *shared)
        workspace.successor = lambda: self.open(volume_node, segmentation_node)
        self._opened[key] = _Opened(workspace, choice, along)
        if earlier is not None:
            workspace.inherit(earlier)
        return workspace

    def choice_of(self, workspace: Workspace) -> EngineChoice:
        """Return what an open workspace was made with; the panel's choice may be another by now."""
        return next(opened.choice for opened in self._opened.values() if opened.workspace is workspace)

    def engine(self, choice: EngineChoice) -> Engine:
        """Return the engine of a choice, loading it if it is another one than before; for the worker's thread."""
        if self._engine is None or self._engine[0] != choice:
            self._engine = None  # the old one's memory is free before the new one needs it
            self._engine = (choice, self._loader(choice))
        return self._engine[1]

    def choose(self, **changes: Any) -> None:
        """Choose another model, device or adapter; the next `open` makes workspaces for it."""
        self.choice = replace(self.choice, **changes)

    @property
    def busy(self) -> bool:
        """Whether there is something to wait for."""
        return self.worker.busy or self.surfaces.waiting

    def pump(self, seconds: float = 0.02) -> bool:
        """Deliver what the engine has found; called from a timer. Returns whether there is more to wait for."""
        self.worker.pump(seconds)
        self._flush()
        if not self.worker.busy:
            self.surfaces.renew_one()
        return self.busy

    def wait(self, seconds: float = 300.0) -> bool:
        """Deliver until all is done, for scripts and tests; returns whether that came to pass."""
        return pump_until_done(self.pump, seconds)

    def close_workspaces(self) -> None:
        """Close all workspaces, as when the scene is closed."""
        self._orphans.clear()
        for key in list(self._opened):
            self._close(key)

    # Inside

    def _flush(self) -> None:
        """Let workspaces show what has come, and remove prompts whose volume or segmentation has been deleted.

        Not while the scene tells of the deletion: the views would keep a picture of them.
        """
        orphans, self._orphans = self._orphans, []
        for node in filter(None, map(self.scene.GetNodeByID, orphans)):
            self.scene.RemoveNode(node)
        for workspace in self.workspaces:
            workspace.flush()

    def _close(self, key: tuple[str, str]) -> None:
        opened = self._opened.pop(key, None)
        if opened is not None:
            opened.workspace.close()

    def _observe_scene(self) -> list[Observation]:
        import vtk

        return [
            observe(self.scene, self.scene.NodeRemovedEvent, self._node_removed, vtk.VTK_OBJECT),
            observe(self.scene, self.scene.StartCloseEvent, self.close_workspaces),
        ]

    def _node_removed(self, node: Any) -> None:
        for key in [key for key in self._opened if node.GetID() in key]:
            self._orphans += [prompt.GetID() for prompt in self._opened[key].workspace.prompts.observed_nodes]
            self._close(key)
        for workspace in self.workspaces:
            workspace.prompts.node_removed(node)
