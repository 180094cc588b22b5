"""Reading and writing of nodes and scenes by the real storage nodes, behind the calls that ``slicer.util`` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

# File type of Slicer, endings, node class and storage class.
_FILES: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("SegmentationFile", (".seg.nrrd", ".seg.nhdr"), "vtkMRMLSegmentationNode", "vtkMRMLSegmentationStorageNode"),
    ("MarkupsFile", (".mrk.json",), "", "vtkMRMLMarkupsJsonStorageNode"),
    ("TransformFile", (".h5", ".tfm"), "vtkMRMLLinearTransformNode", "vtkMRMLTransformStorageNode"),
    ("ModelFile", (".vtk", ".vtp", ".stl", ".ply"), "vtkMRMLModelNode", "vtkMRMLModelStorageNode"),
    ("VolumeFile", (".nrrd", ".nhdr", ".nii.gz", ".nii", ".mha", ".mhd", ".dcm"), "vtkMRMLScalarVolumeNode", ""),
)


class CoreIOManager:
    """Loads and saves; what it cannot do it says by returning False, as Slicer's does."""

    def __init__(self, scene: Any, application_logic: Any, volumes_logic: Any) -> None:
        self._scene = scene
        self._application_logic = application_logic
        self._volumes_logic = volumes_logic

    def fileType(self, filename: str) -> str:
        """Return Slicer's name for the kind of a file."""
        if str(filename).lower().endswith((".mrb", ".mrml")):
            return "SceneFile"
        return next((kind for kind, ends, _, _ in _FILES if str(filename).lower().endswith(ends)), "NoFile")

    def fileWriterFileType(self, node: Any) -> str:
        """Return Slicer's name for the kind of file that a node is written to."""
        return next((kind for kind, _, class_name, _ in _FILES if class_name and node.IsA(class_name)), "NoFile")

    def fileWriterExtensions(self, node: Any) -> tuple[str, ...]:
        """Return the formats that a node can be written in, as Slicer writes them: "NRRD (.nrrd)"."""
        formats = []
        for kind, ends, class_name, _ in _FILES:
            if (class_name and node.IsA(class_name)) or (kind == "MarkupsFile" and node.IsA("vtkMRMLMarkupsNode")):
                formats += [f"{kind} ({end})" for end in ends]
        return tuple(formats)

    def extractKnownExtension(self, filename: str, node: Any) -> str:
        """Return the ending of a file name."""
        ends = [text.rpartition("(")[2].rstrip(")") for text in self.fileWriterExtensions(node)]
        known = [end for end in ends if str(filename).lower().endswith(end)]
        return max(known, key=len) if known else Path(filename).suffix

    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any, messages: Any = None) -> bool:
        """Load a file into the scene."""
        path = str(properties["fileName"])
        if not Path(path).exists():
            return False
        if kind == "SceneFile":
            return self._load_scene(path, bool(properties.get("clear", True)))
        node = self._loaded_volume(path, properties) if kind == "VolumeFile" else self._stored(kind, path, properties)
        if node is None:
            return False
        loaded.AddItem(node)
        return True

    def _load_scene(self, path: str, clear: bool) -> bool:
        if path.lower().endswith(".mrb"):
            if clear:
                self._scene.Clear(False)
            messages = slicer.vtkMRMLMessageCollection()
            return bool(self._scene.ReadFromMRB(path, clear, messages))
        self._scene.SetURL(path)
        return bool(self._scene.Connect() if clear else self._scene.Import())

    def _loaded_volume(self, path: str, properties: dict[str, Any]) -> Any:
        name = properties.get("name") or Path(path).name.partition(".")[0]
        options = int(bool(properties.get("labelmap", False)))
        node = self._volumes_logic.AddArchetypeVolume(path, name, options)
        if node is not None and properties.get("show", True):
            selection = self._application_logic.GetSelectionNode()
            selection.SetActiveVolumeID(node.GetID())
            self._application_logic.PropagateVolumeSelection()
        return node

    def _stored(self, kind: str, path: str, properties: dict[str, Any]) -> Any:
        _, _, class_name, storage_class = next(entry for entry in _FILES if entry[0] == kind)
        if kind == "MarkupsFile":
            storage = self._scene.AddNewNodeByClass(storage_class)
            return storage.AddNewMarkupsNodeFromFile(path, properties.get("name", ""), None)
        name = properties.get("name") or Path(path).name.partition(".")[0]
        node = self._scene.AddNewNodeByClass(class_name, self._scene.GenerateUniqueName(name))
        storage = self._scene.AddNewNodeByClass(storage_class)
        storage.SetFileName(path)
        if not storage.ReadData(node):
            self._scene.RemoveNode(node)
            self._scene.RemoveNode(storage)
            return None
        node.SetAndObserveStorageNodeID(storage.GetID())
        node.CreateDefaultDisplayNodes()
        return node

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any = None) -> bool:
        """Save a node, or the scene."""
        path = str(properties["fileName"])
        if kind == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(self._scene.WriteToMRB(path, None, slicer.vtkMRMLMessageCollection()))
            self._scene.SetURL(path)
            return bool(self._scene.Commit())
        node = self._scene.GetNodeByID(properties["nodeID"])
        return self._written(node, path, properties)

    def exportNodes(
        self, ids: list[str], paths: list[str], properties: dict[str, Any], harden: bool, messages: Any = None
    ) -> bool:
        """Write nodes to files without remembering where."""
        return all(
            self._written(self._scene.GetNodeByID(node_id), str(path), properties)
            for node_id, path in zip(ids, paths, strict=True)
        )

    def _written(self, node: Any, path: str, properties: dict[str, Any]) -> bool:
        storage = node.CreateDefaultStorageNode()
        storage.UnRegister(None)
        self._scene.AddNode(storage)
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(int(properties["useCompression"]))
        written = bool(storage.WriteData(node))
        self._scene.RemoveNode(storage)
        return written
