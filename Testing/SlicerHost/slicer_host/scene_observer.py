"""Observes a scene for a widget: which nodes there are, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import vtk


class SceneObserver:
    """Calls one function when nodes come or go and another when one is renamed."""

    def __init__(self, nodes_changed: Callable[[], None], renamed: Callable[[], None]) -> None:
        self._nodes_changed = nodes_changed
        self._renamed = renamed
        self._scene: Any = None
        self._scene_tags: list[int] = []
        self._node_tags: list[tuple[Any, int]] = []

    def follow(self, scene: Any) -> None:
        """Observe a scene instead of the one before; None observes nothing."""
        self.stop()
        self._scene = scene
        if scene is None:
            return
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self._scene_tags.append(scene.AddObserver(event, self._one_changed))
        for event in (scene.EndBatchProcessEvent, scene.EndCloseEvent, scene.EndImportEvent):
            self._scene_tags.append(scene.AddObserver(event, self._many_changed))

    def follow_names(self, nodes: Iterable[Any]) -> None:
        """Observe the names of these nodes instead of those before."""
        for node, tag in self._node_tags:
            node.RemoveObserver(tag)
        event = vtk.vtkCommand.ModifiedEvent
        self._node_tags = [(node, node.AddObserver(event, self._maybe_renamed(node))) for node in nodes]

    def stop(self, *_: Any) -> None:
        """Observe nothing."""
        self.follow_names(())
        for tag in self._scene_tags:
            self._scene.RemoveObserver(tag)
        self._scene_tags = []

    def _one_changed(self, *_: Any) -> None:
        # As Slicer's models do, which wait for the end of a batch, of closing and of loading.
        if not self._scene.IsBatchProcessing():
            self._nodes_changed()

    def _many_changed(self, *_: Any) -> None:
        self._nodes_changed()

    def _maybe_renamed(self, node: Any) -> Callable[..., None]:
        known = [node.GetName()]

        def check(*_: Any) -> None:
            if node.GetName() != known[0]:
                known[0] = node.GetName()
                self._renamed()

        return check
