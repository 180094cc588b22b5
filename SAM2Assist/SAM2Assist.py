"""The SAM2Assist module of 3D Slicer.

This file speaks Slicer's idiom and computes nothing: volumes, prompts and masks are the business of SAM2AssistLib. Of
the library nothing is imported before it is used, so that Slicer starts as fast without torch as with it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import ctk
import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class SAM2Assist(ScriptedLoadableModule):
    """What the module is called, where it is found, and whom to thank."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("SAM2 Assist")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Markups", "SegmentEditor"]
        self.parent.contributors = ["The SAM2Assist developers"]
        self.parent.helpText = _(
            "Segments structures in CT volumes with SAM2: a few clicks, boxes or strokes say what is meant, and a"
            " memory carries the mask through the slices. What you paint in the Segment Editor is taken as a prompt."
            " For research use; not a medical device."
        )
        self.parent.acknowledgementText = _(
            "SAM2Assist builds on SAM 2 by Meta AI (Ravi et al. 2024), 3D Slicer, SimpleITK and PyTorch."
        )
        slicer.app.connect("startupCompleted()", _registerSampleData)


@parameterNodeWrapper
class SAM2AssistParameterNode:
    """What the panel shows, saved with the scene."""

    volume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    autoPropagate: bool = True
    livePreview: bool = True
    model: str = "mini"
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    adapter: Path
    wheelFolder: Path
    uncheckedClasses: list[str]
    axis: Annotated[str, Choice(["automatic", "axial", "coronal", "sagittal"])] = "automatic"


class SAM2AssistWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None
        self._parameterNode = None
        self._guiTag = None

    def setup(self):
        """Build the panel when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SAM2Assist.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SAM2AssistLogic()
        from SAM2AssistLib.mrml.panel import Panel

        self.panel = Panel(slicer.mrmlScene, self.logic.assistant, self)
        self.deliveryTimer = qt.QTimer(self.parent)
        self.deliveryTimer.setInterval(15)
        self.deliveryTimer.connect("timeout()", self.onDelivery)
        self._connectSignals()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        self.ui.segmentEditorWidget.setMRMLSegmentEditorNode(self.panel.editor_node())
        self.ui.segmentEditorWidget.segmentationNodeSelectorVisible = False
        self.ui.segmentEditorWidget.sourceVolumeNodeSelectorVisible = False
        for pathLineEdit in (self.ui.wheelFolderPath, self.ui.adapterPath):
            pathLineEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.showProgress("", 0, 0)
        self.initializeParameterNode()
        self.updateSetup()

    def _connectSignals(self):
        self.placeButtons = {
            ("point", True): self.ui.positiveButton,
            ("point", False): self.ui.negativeButton,
            ("box", True): self.ui.boxButton,
            ("solid box", True): self.ui.solidBoxButton,
            ("scribble", True): self.ui.scribbleButton,
            ("scribble", False): self.ui.negativeScribbleButton,
            ("lasso", True): self.ui.lassoButton,
        }
        for (kind, positive), button in self.placeButtons.items():
            button.connect("clicked()", self._placeSlot(kind, positive))
        for button, slot in (
            (self.ui.autoButton, self.onAutoSegment),
            (self.ui.propagateButton, self.panel.propagate),
            (self.ui.doubtfulButton, self.panel.next_doubtful),
            (self.ui.undoButton, self.panel.undo),
            (self.ui.redoButton, self.panel.redo),
            (self.ui.cancelButton, self.panel.cancel),
            (self.ui.saveButton, self.onSave),
            (self.ui.exportButton, self.onExport),
            (self.ui.supportButton, self.panel.add_to_support_library),
            (self.ui.installButton, self.onInstall),
        ):
            button.connect("clicked()", slot)
        self.ui.classList.connect("itemChanged(QListWidgetItem*)", self.onClassesChanged)
        self.ui.modelComboBox.connect("currentTextChanged(QString)", self.onModelChosen)

    def _placeSlot(self, kind: str, positive: bool) -> Callable[[], None]:
        return lambda: self.onPlace(kind, positive)

    def cleanup(self):
        """Let go of everything when the application quits or the module is reloaded."""
        self.removeShortcuts()
        self.setParameterNode(None)
        self.removeObservers()
        self.ui.segmentEditorWidget.setMRMLSegmentEditorNode(None)
        if self.panel is not None:
            self.panel.close()
        self.deliveryTimer.stop()
        if self.logic is not None:
            self.logic.close()

    def enter(self):
        """Show what is now, and take the keyboard."""
        self.initializeParameterNode()
        self.installShortcuts()
        self.ui.segmentEditorWidget.setupViewObservations()
        self.ui.segmentEditorWidget.installKeyboardShortcuts()
        self.panel.enter()
        self.updateSetup()

    def exit(self):
        """Give keyboard and mouse back; work that is running goes on."""
        self.removeShortcuts()
        self.panel.exit()
        self.ui.segmentEditorWidget.setActiveEffect(None)
        self.ui.segmentEditorWidget.uninstallKeyboardShortcuts()
        self.ui.segmentEditorWidget.removeViewObservations()

    def onSceneStartClose(self, caller, event):
        """Forget the nodes before they go."""
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Begin anew in an empty scene."""
        self.ui.segmentEditorWidget.setMRMLSegmentEditorNode(self.panel.editor_node())
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        """Show the scene's parameters, choosing the first volume if none is chosen."""
        parameterNode = self.logic.getParameterNode()
        if parameterNode.volume is None:
            parameterNode.volume = self.panel.first_volume()
        self.setParameterNode(parameterNode)

    def setParameterNode(self, parameterNode):
        """Connect the panel with a parameter node, or with none."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
        self.onParametersChanged()

    def updateModels(self):
        """List the models on this computer, and the scene's; Slicer's own connector takes fixed lists only."""
        chosen = self._parameterNode.model if self._parameterNode is not None else ""
        names = self.panel.model_names()
        names += [chosen] if chosen and chosen not in names else []
        wasBlocked = self.ui.modelComboBox.blockSignals(True)
        if [self.ui.modelComboBox.itemText(row) for row in range(self.ui.modelComboBox.count)] != names:
            self.ui.modelComboBox.clear()
            self.ui.modelComboBox.addItems(names)
        self.ui.modelComboBox.setCurrentIndex(names.index(chosen) if chosen else -1)
        self.ui.modelComboBox.blockSignals(wasBlocked)

    def onModelChosen(self, name: str):
        """Use another model from now on."""
        if self._parameterNode is not None and name:
            self._parameterNode.model = name

    def onParametersChanged(self, caller=None, event=None):
        """Follow the choice of nodes, model and device."""
        self.updateModels()
        self.panel.set_parameters(self._parameterNode)
        self.ui.segmentEditorWidget.setSegmentationNode(self.panel.segmentation_node)
        self.ui.segmentEditorWidget.setSourceVolumeNode(self.panel.volume_node)
        self.updateClasses()
        self.updateButtons()

    def onPlace(self, kind: str, positive: bool):
        """Begin or end to place prompts with the mouse."""
        if self.placeButtons[kind, positive].checked:
            self.panel.start_placing(kind, positive)
        else:
            self.panel.stop_placing()
        self.updateButtons()

    def onAutoSegment(self):
        """Segment the checked classes without prompts."""
        self.panel.auto_segment(self.checkedClasses())

    def onSave(self):
        """Ask for a file and save the segmentation."""
        path = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), _("Save segmentation"), "segmentation.seg.nrrd", "NRRD (*.seg.nrrd)"
        )
        if path:
            self.panel.save_nrrd(path)

    def onExport(self):
        """Ask for a file and export a DICOM Segmentation object."""
        path = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), _("Export DICOM-SEG"), "segmentation.dcm", "DICOM (*.dcm)"
        )
        if path:
            database = getattr(slicer, "dicomDatabase", None)  # absent where the DICOM module is switched off
            self.panel.export_dicom_seg(path, database.fileForInstance if database else lambda uid: "")

    def onDelivery(self):
        """Show what the engine has found; runs while it works."""
        if not self.panel.deliver():
            self.deliveryTimer.stop()

    # What the panel tells

    def showBusy(self):
        """Look for results from now on."""
        if not self.deliveryTimer.isActive():
            self.deliveryTimer.start()
        self.updateButtons()

    def showError(self, sentence: str):
        """Say what went wrong, without a box that has to be closed."""
        self.ui.statusLabel.text = sentence
        slicer.util.showStatusMessage(sentence, 5000)

    def showStatus(self, sentence: str):
        """Say what was done."""
        self.ui.statusLabel.text = sentence

    def showProgress(self, title: str, done: int, total: int):
        """Show how far the work is."""
        self.ui.progressBar.setVisible(total > 0)
        self.ui.progressBar.setRange(0, max(total, 1))
        self.ui.progressBar.setValue(done)
        self.ui.progressBar.setFormat(f"{title[:1].upper()}{title[1:]} %v / %m")

    def showConfidence(self, ppm: bytes):
        """Show the confidence strip."""
        pixmap = qt.QPixmap()
        pixmap.loadFromData(qt.QByteArray(ppm), "PPM")
        self.ui.confidenceLabel.setPixmap(pixmap)

    def saveEditorState(self):
        """Let the Segment Editor's undo come back to what is now."""
        self.ui.segmentEditorWidget.saveStateForUndo()

    def showSegmentation(self, segmentationNode):
        """Choose the segmentation node that has been made for the first prompt."""
        self._parameterNode.segmentation = segmentationNode

    def confidenceWidth(self) -> int:
        """Pixels there are for the confidence strip."""
        return max(int(self.ui.confidenceLabel.width), 64)

    def updateButtons(self):
        """Enable what can be done, and say in a tooltip why not, or by which key."""
        placing, working, ready = self.panel.placing(), self.panel.busy(), self.panel.ready()
        for place, button in self.placeButtons.items():
            button.checked = place == placing
            button.enabled = ready
        ui, segmented = self.ui, ready and self.panel.segmentation_node is not None
        for button in (ui.propagateButton, ui.doubtfulButton, ui.supportButton, ui.saveButton, ui.exportButton):
            button.enabled = segmented
        self.ui.autoButton.enabled = ready and bool(self.checkedClasses())
        self.ui.undoButton.enabled = self.panel.can_undo()
        self.ui.redoButton.enabled = self.panel.can_redo()
        self.ui.installButton.enabled = not working
        self.ui.cancelButton.setVisible(working)

    # Classes of Auto-Segment

    def updateClasses(self):
        """List what Auto-Segment can look for."""
        names = self.panel.class_names()
        unchecked = list(self._parameterNode.uncheckedClasses) if self._parameterNode is not None else []
        wasBlocked = self.ui.classList.blockSignals(True)
        if names != [item.text() for item in self._classItems()]:
            self.ui.classList.clear()
            for name in names:
                item = qt.QListWidgetItem(name)
                item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
                self.ui.classList.addItem(item)
        for item in self._classItems():
            item.setCheckState(qt.Qt.Unchecked if item.text() in unchecked else qt.Qt.Checked)
        self.ui.classList.blockSignals(wasBlocked)
        self.updateAutoSegment()

    def _classItems(self) -> list:
        return [self.ui.classList.item(row) for row in range(self.ui.classList.count)]

    def checkedClasses(self) -> list[str]:
        """Return the names with a check mark."""
        return [item.text() for item in self._classItems() if item.checkState() == qt.Qt.Checked]

    def onClassesChanged(self, item=None):
        """Keep which classes are not wanted with the scene, those too that only another adapter has."""
        if self._parameterNode is not None:
            listed, checked = [item.text() for item in self._classItems()], self.checkedClasses()
            absent = [name for name in self._parameterNode.uncheckedClasses if name not in listed]
            self._parameterNode.uncheckedClasses = absent + [name for name in listed if name not in checked]
        self.updateAutoSegment()

    def updateAutoSegment(self):
        """Say beforehand what Auto-Segment will do."""
        self.ui.autoLabel.text = self.panel.auto_description(self.checkedClasses())
        self.ui.autoButton.enabled = self.panel.ready() and bool(self.checkedClasses())

    # First run

    def updateSetup(self):
        """List what is missing, or hide the page."""
        missing = self.logic.missingPackages()
        self.ui.setupCollapsibleButton.setVisible(bool(missing))
        self.ui.setupLabel.text = self.panel.setup_description(missing)
        self.panel.set_installed(not missing)
        self.updateButtons()

    def onInstall(self):
        """Install what is listed; pip runs in the main thread, as Slicer wants it."""
        self.panel.install(self.logic.installing(self.ui.wheelFolderPath.currentPath), slicer.app.processEvents)
        self.updateSetup()

    # Keys

    def installShortcuts(self):
        """Take the keys of the module."""
        self.removeShortcuts()
        mainWindow = slicer.util.mainWindow()
        for key, button in self.shortcutKeys().items():
            shortcut = qt.QShortcut(mainWindow)
            shortcut.setKey(qt.QKeySequence(key))
            shortcut.connect("activated()", button.click)
            self.shortcuts.append(shortcut)

    def shortcutKeys(self) -> dict:
        """Buttons by key, as the .ui file says; neither the Segment Editor nor the slice views use these keys."""
        keys = ((widget.property("shortcutKey"), widget) for widget in vars(self.ui).values())
        return {key: widget for key, widget in keys if key}

    def removeShortcuts(self):
        """Give the keys back."""
        for shortcut in getattr(self, "shortcuts", []):
            shortcut.disconnect("activated()")
            shortcut.setParent(None)
        self.shortcuts = []


class SAM2AssistLogic(ScriptedLoadableModuleLogic):
    """Segmentation without the panel, for scripts and tests."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        _makeLibraryImportable()
        self._assistant = None

    @property
    def assistant(self):
        """The library's side: workspaces for pairs of nodes, and the engine."""
        if self._assistant is None:
            from SAM2AssistLib.mrml.assistant import Assistant

            self._assistant = Assistant(slicer.mrmlScene)
        return self._assistant

    def close(self):
        """End all work."""
        if self._assistant is not None:
            self._assistant.close()
            self._assistant = None

    def getParameterNode(self):
        """Return what the panel shows."""
        return SAM2AssistParameterNode(super().getParameterNode())

    def missingPackages(self) -> list:
        """List the packages that have to be installed before the engine can work."""
        from SAM2AssistLib.mrml.first_run import missing_packages

        return missing_packages(self.resourceFile("requirements.txt"))

    def installing(self, wheelFolder: str = ""):
        """Install what is missing with Slicer's own installers, a package for each step of this iterator."""
        from SAM2AssistLib.mrml.first_run import installing

        return installing(self.resourceFile("requirements.txt"), wheelFolder if wheelFolder != "." else "")

    def resourceFile(self, name: str) -> Path:
        """Return a file of the module's resources."""
        return Path(__file__).resolve().parent / "Resources" / name

    def segmentVolume(self, volumeNode, promptFile, modelName="mini", device="auto", onProgress=None):
        """Segment a CT volume from a prompt file; see SAM2AssistLib.mrml.script.segment_from_file."""
        from SAM2AssistLib.mrml.script import segment_from_file

        return segment_from_file(slicer.mrmlScene, volumeNode, promptFile, modelName, device, onProgress)


class SAM2AssistTest(ScriptedLoadableModuleTest):
    """The module's self-test, for Slicer's "Reload and Test" and its build."""

    def setUp(self):
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests."""
        for test in (
            self.test_aVolumeWithoutAnImageIsRefused,
            self.test_aWarpedVolumeIsRefused,
            self.test_aClickSegmentsABallAndUndoTakesItBack,
        ):
            self.setUp()
            test()

    def test_aVolumeWithoutAnImageIsRefused(self):
        """A node without voxels is told in words and adds nothing to the scene."""
        volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        with self.assertRaisesRegex(Exception, "image"):
            SAM2AssistLogic().segmentVolume(volumeNode, "prompts.json")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    def test_aWarpedVolumeIsRefused(self):
        """A grid that a transform has bent is no grid of voxels any more."""
        import numpy as np

        volumeNode = slicer.util.addVolumeFromArray(np.zeros((4, 8, 8), dtype=np.int16), name="warped")
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
        transformNode.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
        volumeNode.SetAndObserveTransformNodeID(transformNode.GetID())
        with self.assertRaisesRegex(Exception, "non-linear"):
            SAM2AssistLogic().segmentVolume(volumeNode, "prompts.json")

    def test_aClickSegmentsABallAndUndoTakesItBack(self):
        """A small run of the whole way, where the packages for it are installed."""
        logic = SAM2AssistLogic()
        if logic.missingPackages():
            self.delayDisplay(_("Only refusals were tested, because packages are missing."))
            return
        from SAM2AssistLib.mrml.self_test import small_run

        run = small_run(slicer.mrmlScene, logic.assistant)
        logic.close()
        self.assertEqual(run.errors, ())
        self.assertGreater(run.dice, 0.7)
        self.assertEqual((run.left_by_undo, run.lost_by_redo), (0, 0))


def _registerSampleData() -> None:
    """Offer the tutorial's CT in the Sample Data module."""
    import SampleData

    _makeLibraryImportable()
    from SAM2AssistLib.mrml.samples import register

    register(SampleData.SampleDataLogic)


def _makeLibraryImportable() -> None:
    """Let ``SAM2AssistLib`` be found from the repository; a built extension has it beside this file."""
    root = Path(__file__).resolve().parents[1]
    if (root / "SAM2AssistLib").is_dir() and str(root) not in sys.path:
        sys.path.append(str(root))
