"""The SAM2Assist module of 3D Slicer.

This file speaks Slicer's idiom and computes nothing: volumes, prompts and masks are the business of SAM2AssistLib. Of
the library nothing is imported before it is used, so that Slicer starts as fast without torch as with it.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class SAM2Assist(ScriptedLoadableModule):
    """What the module is called, where it is found, and whom to thank."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("SAM2 Assist")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations"]
        self.parent.contributors = ["The SAM2Assist developers"]
        self.parent.helpText = _(
            "Segments structures in CT volumes with SAM2 from a few clicks or boxes, whose mask is carried through the"
            " slices. This version does so from a prompt file, in the Python console and on the command line; prompting"
            " in the slice views comes with the next version. For research use; not a medical device."
        )
        self.parent.acknowledgementText = _(
            "SAM2Assist builds on SAM 2 by Meta AI (Ravi et al. 2024), 3D Slicer, SimpleITK and PyTorch."
        )


class SAM2AssistWidget(ScriptedLoadableModuleWidget):
    """The module's panel, which until prompting in the views is there says how to segment without it."""

    def setup(self):
        """Fill the panel when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        label = qt.QLabel(
            _(
                "Prompting in the slice views comes with the next version. From the Python console:\n\n"
                "from SAM2Assist import SAM2AssistLogic\n"
                'SAM2AssistLogic().segmentVolume(getNode("CT"), "prompts.json")'
            )
        )
        label.wordWrap = True
        label.textInteractionFlags = qt.Qt.TextSelectableByMouse
        self.layout.addWidget(label)
        self.layout.addStretch(1)


class SAM2AssistLogic(ScriptedLoadableModuleLogic):
    """Segmentation without the panel, for scripts and tests."""

    def segmentVolume(
        self,
        volumeNode,
        promptFile: str | Path,
        modelName: str = "mini",
        device: str = "auto",
        onProgress: Callable[[int, int], None] | None = None,
    ):
        """Segment a CT volume from the prompts of a file.

        Parameters
        ----------
        volumeNode
            vtkMRMLScalarVolumeNode in HU, under no transform.
        promptFile
            As the command line takes it, see the README; its positions are in the volume's own coordinates.
        modelName
            A name from ``sam2assist models list``.
        device
            "auto", "cpu", "cuda" or "cuda:N".
        onProgress
            Called with the slices done and the slices in all.

        Returns
        -------
        vtkMRMLSegmentationNode
            With one segment for each of the file, in the geometry of the volume.

        Raises
        ------
        ValueError
            If the volume has no image, is under a transform or cannot be exported.
        SAM2AssistLib.errors.SAM2AssistError
            If the volume, the prompts or the model cannot be used; the message is one sentence for the user.
        """
        self._requireUsable(volumeNode)
        _makeLibraryImportable()
        from SAM2AssistLib import CTVolume
        from SAM2AssistLib.io.segmentation import write_segmentation

        # Files carry the geometry exactly, and the library reads and writes them anyway for the command line.
        with tempfile.TemporaryDirectory() as folder:
            imagePath = str(Path(folder) / "volume.nrrd")
            segmentationPath = str(Path(folder) / "segmentation.seg.nrrd")
            # Properties are given, because Slicer keeps the format of an earlier export in those that are not.
            if not slicer.util.exportNode(volumeNode, imagePath, {"useCompression": 0}):
                raise ValueError(_("The volume {name} cannot be exported.").format(name=volumeNode.GetName()))
            volume = CTVolume.read(imagePath)
            masks = self._segment(volume, promptFile, modelName, device, onProgress)
            write_segmentation(segmentationPath, masks, volume)
            segmentationNode = slicer.util.loadSegmentation(segmentationPath)
        segmentationNode.SetName(_("{volume} segmentation").format(volume=volumeNode.GetName()))
        # Set source volume - required for DICOM Segmentation export.
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        return segmentationNode

    @staticmethod
    def _requireUsable(volumeNode) -> None:
        if volumeNode is None or volumeNode.GetImageData() is None:
            raise ValueError(_("Choose a volume that has an image."))
        if volumeNode.GetParentTransformNode() is not None:
            raise ValueError(
                _("The volume {name} is under a transform; harden it in the Transforms module first.").format(
                    name=volumeNode.GetName()
                )
            )

    @staticmethod
    def _segment(volume, promptFile, modelName, device, onProgress):
        """Return the masks by name that the prompts of a file lead to."""
        from SAM2AssistLib import load_engine
        from SAM2AssistLib.io.segmentation import NamedMask
        from SAM2AssistLib.prompts import read_prompt_file

        prompts = read_prompt_file(promptFile, volume)
        with load_engine(modelName, device=device).open(volume) as session:
            for request in prompts:
                session.add_prompts(request)
            for step in session.propagate():
                if onProgress is not None:
                    onProgress(step.done, step.total)
            return [NamedMask(segment.name, session.mask(segment)) for segment in session.segments]


class SAM2AssistTest(ScriptedLoadableModuleTest):
    """The module's self-test, for Slicer's "Reload and Test" and its build."""

    def setUp(self):
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests."""
        self.setUp()
        self.test_aVolumeWithoutAnImageIsRefused()
        self.setUp()
        self.test_aVolumeUnderATransformIsRefused()

    def test_aVolumeWithoutAnImageIsRefused(self):
        """A node without voxels is told in words and adds nothing to the scene."""
        volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        with self.assertRaisesRegex(ValueError, "image"):
            SAM2AssistLogic().segmentVolume(volumeNode, "prompts.json")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    def test_aVolumeUnderATransformIsRefused(self):
        """Prompts are in the volume's own coordinates, so a transform on it would move the result away from them."""
        import numpy as np

        volumeNode = slicer.util.addVolumeFromArray(np.zeros((4, 8, 8), dtype=np.int16), name="moved")
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        volumeNode.SetAndObserveTransformNodeID(transformNode.GetID())
        with self.assertRaisesRegex(ValueError, "transform"):
            SAM2AssistLogic().segmentVolume(volumeNode, "prompts.json")


def _makeLibraryImportable() -> None:
    """Let ``SAM2AssistLib`` be found from the repository; a built extension has it beside this file."""
    root = Path(__file__).resolve().parents[1]
    if (root / "SAM2AssistLib").is_dir() and str(root) not in sys.path:
        sys.path.append(str(root))
