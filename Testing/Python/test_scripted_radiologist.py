"""A radiologist's session in the window, step by step, with what is seen and what is in the voxels after each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_files import write_dicom_series
from module_window import Window, dicom_database, middle_of, open_module
from scipy import ndimage
from slicer_package import ROOT
from slicer_window import a_host, host_or_skip, one_host  # noqa: F401

from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation
from SAM2AssistLib.prompting.support import SupportCase
from SAM2AssistLib.prompting.support_library import SupportLibrary
from SAM2AssistLib.volume import CTVolume

host_or_skip()
REAL = ROOT.parent / "shared" / "data" / "ct_upper_abdomen_20slices"
SHAPE, SPACING = (20, 96, 96), (3.0, 3.0, 5.0)
EDGE_MM = 10.0


@dataclass
class Patient:
    """Twenty DICOM files, and where the organs are in them.

    Attributes
    ----------
    ct : what the files show.
    files : of the series.
    organs : masks (k, j, i) by name, on the grid of the CT.
    """

    ct: CTVolume
    files: list[Path]
    organs: dict[str, np.ndarray]


def a_patient(folder: Path) -> Patient:
    """The real upper abdomen where it is at hand, else a phantom written as DICOM."""
    if not (REAL / "dicom").is_dir():
        from SAM2AssistLib.training.phantoms import make_phantom

        phantom = make_phantom(7, SHAPE, SPACING)
        files = write_dicom_series(folder, np.array(phantom.volume.array), phantom.volume.ijk_to_lps)
        organs = {name: phantom.labels == label for name, label in phantom.names.items()}
        return Patient(CTVolume.read(folder), files, organs)
    files = [with_uids(path, folder) for path in sorted((REAL / "dicom").iterdir())]
    ct = CTVolume.read(folder)
    named, ijk_to_lps = read_segmentation(REAL / "label.nii.gz")
    return Patient(ct, files, {n.name: n.mask for n in masks_on_grid_of(ct, named, ijk_to_lps)})


def too_narrow(liver: np.ndarray, pixel_mm: float) -> np.ndarray:
    """What Auto-Segment learns to do wrong: a liver (k, j, i) whose edge was drawn 10 mm too far inside."""
    in_slices = ndimage.generate_binary_structure(2, 1)[np.newaxis]
    return ndimage.binary_erosion(liver, in_slices, iterations=round(EDGE_MM / pixel_mm))


def with_uids(source: Path, folder: Path) -> Path:
    """Copy a DICOM file, giving it the UIDs that its publisher has taken away; Slicer imports none without."""
    from pydicom import dcmread
    from pydicom.uid import CTImageStorage, generate_uid

    header = dcmread(source)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[source.name])
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if not header.get(keyword):
            setattr(header, keyword, generate_uid(entropy_srcs=[keyword]))
    folder.mkdir(exist_ok=True)
    header.save_as(folder / source.name, enforce_file_format=True)
    return folder / source.name


@pytest.fixture
def window(
    a_host: Any,  # noqa: F811
    an_engine: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Window]:
    """The module over a CT that was read from 20 DICOM files; his last scan is in the support library."""
    import slicer

    from SAM2AssistLib.engine import loading
    from SAM2AssistLib.mrml.export import UIDS

    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: an_engine)
    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path / "supports"))
    patient = a_patient(tmp_path / "dicom")
    narrow = too_narrow(patient.organs["liver"], patient.ct.spacing_ijk[0])
    SupportLibrary().add(SupportCase("last year", patient.ct, {"liver": narrow}))
    database = dicom_database(patient.files)
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    window = open_module(a_host, patient.ct, "patient")
    window.volume.SetAttribute(UIDS, " ".join(database.uids))
    window.settle()
    window.truth = patient.organs
    yield window
    assert a_host.unhandled == []


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_the_scripted_radiologist(window: Window, tmp_path: Path) -> None:
    auto_segments(window)
    corrects_the_liver(window)
    boxes_the_spleen(window)
    erases_and_goes_on(window)
    takes_back_and_brings_back(window)
    cancels_half_way(window)
    exports(window, tmp_path)
    closes_the_scene(window)


def auto_segments(window: Window) -> None:
    import qt

    organs = [window.ui.classList.item(row) for row in range(window.ui.classList.count)]
    for organ in organs:
        organ.setCheckState(qt.Qt.Checked if organ.text() == "liver" else qt.Qt.Unchecked)
    assert window.widget.checkedClasses() == ["liver"]
    assert "liver like in last year" in window.ui.autoLabel.text
    window.host.user.press(window.ui.autoButton)
    window.settle()
    assert window.ui.statusLabel.text.startswith("Found liver")
    assert window.mask("liver").any()
    assert window.panel.workspace().prompts.nodes(window.segment("liver"))


def corrects_the_liver(window: Window) -> None:
    """Two clicks, where most is missing and where most is too much: the liver comes nearer to its reference."""
    window.choose_segment("liver")
    found, truth = window.mask("liver"), window.truth["liver"]
    window.host.user.press(window.ui.positiveButton)
    window.click(middle_of(truth & ~found))
    window.settle()
    window.host.user.press(window.ui.negativeButton)
    window.click(middle_of(window.mask("liver") & ~truth))
    window.settle()
    assert len(window.panel.workspace().prompts.gestures(window.segment("liver"))) > 2
    assert dice(window.mask("liver"), truth) > dice(found, truth)


def boxes_the_spleen(window: Window) -> None:
    window.liver = window.mask("liver")
    window.add_segment("spleen")
    truth = window.truth["spleen"]
    k = int(truth.sum(axis=(1, 2)).argmax())
    rows, columns = np.flatnonzero(truth[k].any(axis=1)), np.flatnonzero(truth[k].any(axis=0))
    window.host.user.press(window.ui.boxButton)
    window.click((k, rows[0], columns[0]))
    window.click((k, rows[-1], columns[-1]))
    window.settle()
    assert dice(window.mask("spleen"), truth) > 0.3
    np.testing.assert_array_equal(window.mask("liver"), window.liver)


def erases_and_goes_on(window: Window) -> None:
    before = window.mask("spleen")
    k, j, i = middle_of(before)
    editor = window.ui.segmentEditorWidget
    editor.setActiveEffectByName("Erase")
    window.host.user.show_position("Red", window.ras((k, j, i)))
    window.host.user.drag("Red", window.ras((k, j, i - 1)), window.ras((k, j, i + 1)))
    editor.setActiveEffectByName("")
    erased = window.mask("spleen")
    assert erased[k].sum() < before[k].sum()
    window.host.user.press(window.ui.propagateButton)
    window.settle()
    np.testing.assert_array_equal(window.mask("spleen")[k], erased[k])


def takes_back_and_brings_back(window: Window) -> None:
    states = [{name: window.mask(name) for name in ("liver", "spleen")}]
    for _ in range(3):
        window.host.user.press(window.ui.undoButton)
        window.settle()
        states.append({name: window.mask(name) for name in ("liver", "spleen")})
    assert not states[3]["spleen"].any()
    for expected in (states[2], states[1]):
        window.host.user.press(window.ui.redoButton)
        window.settle()
        for name, mask in expected.items():
            np.testing.assert_array_equal(window.mask(name), mask)


def cancels_half_way(window: Window) -> None:
    """Of a new segment, slices are there and others are missing; going on brings those; undo takes all of it back."""
    before = {name: window.mask(name) for name in ("liver", "spleen")}
    window.add_segment("second liver")
    window.host.user.press(window.ui.positiveButton)
    window.click(middle_of(window.truth["liver"]))

    def slices() -> int:
        return int(window.mask("second liver").any(axis=(1, 2)).sum())

    window.host.user.wait_until(lambda: slices() >= 3, 60)
    assert window.panel.busy()
    assert window.ui.progressBar.visible
    window.host.user.press(window.ui.cancelButton)
    window.settle()
    assert window.ui.statusLabel.text.startswith("Cancelled")
    assert not window.ui.cancelButton.visible
    assert not window.ui.progressBar.visible
    cancelled = slices()
    assert cancelled >= 3
    window.host.user.press(window.ui.propagateButton)
    window.settle()
    assert slices() > cancelled
    for _ in range(2):
        window.host.user.press(window.ui.undoButton)
        window.settle()
    assert slices() == 0
    window.segmentation.GetSegmentation().RemoveSegment(window.segment("second liver"))
    window.settle()
    for name, mask in before.items():
        np.testing.assert_array_equal(window.mask(name), mask)


def exports(window: Window, folder: Path) -> None:
    """By the panel's buttons; in both files are the voxels of the segments, and no others."""
    from slicer_host import dialogs

    from SAM2AssistLib.io.dicom_seg_reader import read_dicom_seg

    for button, path in (
        (window.ui.saveButton, folder / "result.seg.nrrd"),
        (window.ui.exportButton, folder / "result.dcm"),
    ):
        dialogs.answers.waiting.append(str(path))
        window.ui.resultsCollapsibleButton.collapsed = False
        window.host.process_events()
        window.host.user.press(button)
        window.settle()
        assert path.name in window.ui.statusLabel.text
        if path.suffix == ".dcm":
            named, ijk_to_lps = (read := read_dicom_seg(path)).masks, read.ijk_to_lps
        else:
            named, ijk_to_lps = read_segmentation(path)
        found = {n.name: n.mask for n in masks_on_grid_of(window.ct, named, ijk_to_lps)}
        assert found.keys() == {"liver", "spleen"}
        for name, mask in found.items():
            np.testing.assert_array_equal(mask, window.mask(name))


def closes_the_scene(window: Window) -> None:
    import slicer

    slicer.mrmlScene.Clear(0)
    window.host.process_events()
    assert window.panel.assistant.workspaces == ()
    assert not window.ui.positiveButton.enabled
