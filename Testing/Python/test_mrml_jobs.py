"""What the panel saves, exports and keeps: in the worker's thread, with progress, cancelled without a trace."""

from __future__ import annotations

import errno
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_files import affine, write_dicom_series

pytest.importorskip("vtk", reason="slicer-core is not installed")
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from blobs import two_blobs  # noqa: E402
from mrml_desk import Desk, make_desk  # noqa: E402
from mrml_scene import a_scene, paint, point  # noqa: E402
from mrml_view import RecordingView  # noqa: E402

from SAM2AssistLib.io.dicom_seg_reader import read_dicom_seg  # noqa: E402
from SAM2AssistLib.io.seg_nrrd import read_seg_nrrd  # noqa: E402
from SAM2AssistLib.mrml import export  # noqa: E402
from SAM2AssistLib.mrml.panel import Panel  # noqa: E402
from SAM2AssistLib.prompting.support_library import SupportLibrary  # noqa: E402
from SAM2AssistLib.volume import CTVolume  # noqa: E402

LEFT = (5, 32, 20)
OLDER = b"an older file"


@dataclass
class Office:
    """A desk with a finished segment on a volume from DICOM, and the panel over it.

    Attributes
    ----------
    files : of the series, by SOP instance UID.
    """

    desk: Desk
    panel: Panel
    files: dict[str, Path]

    @property
    def view(self) -> RecordingView:
        """What the panel tells."""
        return self.panel.view  # type: ignore[return-value]

    def settle(self) -> None:
        """Deliver as the window's timer does, until all is done."""
        until = time.perf_counter() + 60
        while self.panel.deliver():
            assert time.perf_counter() < until
            time.sleep(0.002)

    def write(self, kind: str, path: Path) -> None:
        """Press one of the buttons that write a file."""
        if kind == "nrrd":
            self.panel.save_nrrd(str(path))
        else:
            self.panel.export_dicom_seg(str(path), lambda uid: str(self.files[uid]))


@pytest.fixture
def office(tmp_path: Path, quick_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    from pydicom import dcmread

    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path / "supports"))
    balls = two_blobs((10, 64, 64)).volume
    paths = write_dicom_series(tmp_path / "ct", balls.array, affine((0.9, 0.9, 2.0), origin_lps=(5.0, -7.0, 11.0)))
    files = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in paths}
    with a_scene() as scene:
        desk = make_desk(scene, quick_engine(), CTVolume.read(tmp_path / "ct"))
        desk.volume.SetAttribute(export.UIDS, " ".join(files))
        panel = Panel(scene, desk.assistant, RecordingView())
        panel.volume_node, panel.segmentation_node = desk.volume, desk.segmentation
        desk.do(desk.segment, point(desk.ct, LEFT))
        panel.view.progress.clear()
        yield Office(desk, panel, files)
        panel.close()
        desk.assistant.close()


KINDS = pytest.mark.parametrize(("kind", "name"), [("nrrd", "result.seg.nrrd"), ("dicom", "result.dcm")])


def voxels_in(path: Path, office: Office) -> np.ndarray:
    """The one segment of a file, (k, j, i) on the grid of the CT."""
    from SAM2AssistLib.io.segmentation import masks_on_grid_of

    if path.suffix == ".dcm":
        found = read_dicom_seg(path)
        named, matrix = found.masks, found.ijk_to_lps
    else:
        named, matrix = read_seg_nrrd(path)
    (only,) = masks_on_grid_of(office.desk.ct, named, matrix)
    assert only.name == "ball"
    return only.mask


@contextmanager
def a_disk_with(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk, for whatever writes it: Python, VTK or pydicom."""
    resource = pytest.importorskip("resource", reason="files cannot be limited here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@KINDS
def test_a_file_holds_the_voxels_of_the_moment_at_which_the_button_was_pressed(
    office: Office, tmp_path: Path, kind: str, name: str
) -> None:
    path, pressed = tmp_path / name, office.desk.mask()
    office.write(kind, path)
    paint(office.desk.volume, office.desk.segmentation, office.desk.segment, 0, 5, np.ones((64, 64), bool))
    office.settle()
    assert office.view.errors == []
    assert name in office.view.sentences[-1]
    np.testing.assert_array_equal(voxels_in(path, office), pressed)


@KINDS
def test_a_file_is_written_in_the_workers_thread_while_the_progress_is_shown(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    threads, real = [], export.atomic_path
    monkeypatch.setattr(export, "atomic_path", lambda path: (threads.append(threading.current_thread()), real(path))[1])
    from SAM2AssistLib.io import dicom_seg

    monkeypatch.setattr(dicom_seg, "atomic_path", export.atomic_path)
    office.write(kind, tmp_path / name)
    assert office.panel.busy()
    assert not (tmp_path / name).exists()
    office.settle()
    assert threads
    assert threading.main_thread() not in threads
    shown = office.view.progress
    assert any(total > 0 for _, _, total in shown)
    assert shown[-1][2] == 0


@KINDS
def test_a_cancelled_export_leaves_the_older_file_and_nothing_else(
    office: Office, tmp_path: Path, kind: str, name: str
) -> None:
    folder, go_on = tmp_path / "out", threading.Event()
    folder.mkdir()
    (folder / name).write_bytes(OLDER)
    # The export waits its turn, so that it cannot be done before it is cancelled.
    office.desk.assistant.worker.submit("something long", lambda: (go_on.wait(300),), lambda _: None, lambda _: None)
    office.write(kind, folder / name)
    office.panel.cancel()
    go_on.set()
    office.settle()
    assert (folder / name).read_bytes() == OLDER
    assert list(folder.iterdir()) == [folder / name]
    assert office.view.sentences[-1].startswith("Cancelled")
    assert office.view.errors == []


@KINDS
def test_an_export_that_is_cancelled_in_the_midst_of_it_leaves_the_older_file(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    from SAM2AssistLib.io import dicom_seg

    folder, began, go_on = tmp_path / "out", threading.Event(), threading.Event()
    folder.mkdir()
    (folder / name).write_bytes(OLDER)

    def waiting(real: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*given: Any, **named: Any) -> Any:
            began.set()
            go_on.wait(300)
            return real(*given, **named)

        return wait

    monkeypatch.setattr(export.gzip, "GzipFile", waiting(export.gzip.GzipFile))
    monkeypatch.setattr(dicom_seg, "make_dicom_seg", waiting(dicom_seg.make_dicom_seg))
    office.write(kind, folder / name)
    assert began.wait(300)
    office.panel.cancel()
    go_on.set()
    office.settle()
    assert (folder / name).read_bytes() == OLDER
    assert list(folder.iterdir()) == [folder / name]


@KINDS
def test_a_full_disk_is_told_in_a_sentence_and_leaves_the_older_file(
    office: Office, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str
) -> None:
    folder, before = tmp_path / "out", office.desk.mask()
    folder.mkdir()
    (folder / name).write_bytes(OLDER)
    with a_disk_with(400), caplog.at_level(logging.ERROR):
        office.write(kind, folder / name)
        office.settle()
    (sentence,) = office.view.errors
    assert name in sentence
    assert "free some space" in sentence
    assert (folder / name).read_bytes() == OLDER
    assert list(folder.iterdir()) == [folder / name]
    assert not caplog.records
    np.testing.assert_array_equal(office.desk.mask(), before)
    office.write(kind, folder / name)
    office.settle()
    np.testing.assert_array_equal(voxels_in(folder / name, office), before)


def test_voxels_that_vtk_has_cut_off_without_telling_become_no_file(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does when the disk is full at the very end of what it writes."""
    real = export._compress_nrrd

    def cut_off(raw: Path, path: Path) -> Iterator[tuple[int, int]]:
        with raw.open("rb+") as file:
            file.truncate(raw.stat().st_size - 1)
        return real(raw, path)

    monkeypatch.setattr(export, "_compress_nrrd", cut_off)
    (tmp_path / "out").mkdir()
    office.write("nrrd", tmp_path / "out" / "a.seg.nrrd")
    office.settle()
    (sentence,) = office.view.errors
    assert "No space left" in sentence
    assert list((tmp_path / "out").iterdir()) == []


@KINDS
def test_a_place_that_cannot_be_is_refused_before_anything_is_waited_for(
    office: Office, tmp_path: Path, kind: str, name: str
) -> None:
    office.write(kind, tmp_path / "missing" / name)
    (sentence,) = office.view.errors
    assert "does not exist" in sentence
    assert not office.panel.busy()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, and is there on Linux only")
@KINDS
def test_a_folder_that_takes_no_files_is_told_in_a_sentence(office: Office, kind: str, name: str) -> None:
    office.write(kind, Path("/proc") / name)
    office.settle()
    (sentence,) = office.view.errors
    assert name in sentence
    assert "choose another place" in sentence


def test_a_case_is_added_to_the_support_library_with_its_progress(office: Office) -> None:
    office.panel.add_to_support_library()
    office.settle()
    assert [entry.classes for entry in SupportLibrary().entries()] == [("ball",)]
    assert any(title == "add to the support library" and total for title, _, total in office.view.progress)
    np.testing.assert_array_equal(SupportLibrary().case("CT").masks["ball"], office.desk.mask())


@pytest.mark.parametrize("step", [0, 1])
def test_a_cancelled_addition_to_the_support_library_leaves_nothing_there(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from SAM2AssistLib.prompting import support_library

    began, go_on = threading.Event(), threading.Event()

    def waiting(real: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*given: Any) -> Any:
            began.set()
            go_on.wait(300)
            return real(*given)

        return wait

    if step == 0:
        monkeypatch.setattr(support_library.sitk, "WriteImage", waiting(support_library.sitk.WriteImage))
    else:
        monkeypatch.setattr(support_library, "write_segmentation", waiting(support_library.write_segmentation))
    office.panel.add_to_support_library()
    assert began.wait(300)
    office.panel.cancel()
    go_on.set()
    office.settle()
    assert SupportLibrary().entries() == ()
    assert list((tmp_path / "supports").iterdir()) == []
    assert office.view.sentences[-1].startswith("Cancelled")


def test_a_cancelled_look_for_classes_keeps_those_that_were_known(office: Office) -> None:
    told: list[int] = []
    office.panel.view.updateClasses = lambda: told.append(1)  # type: ignore[method-assign]
    office.panel.refresh_classes()
    office.settle()
    known = office.panel.class_names()
    assert len(told) == 1
    SupportLibrary().add(a_case(office, "other"))
    office.panel.refresh_classes()
    office.panel.cancel()
    office.settle()
    assert len(told) == 1
    assert office.panel.class_names() == known
    office.panel.refresh_classes()
    office.settle()
    assert "ball" in office.panel.class_names()


def a_case(office: Office, name: str, class_name: str = "ball") -> Any:
    from SAM2AssistLib.prompting.support import SupportCase

    return SupportCase(name, office.desk.ct, {class_name: office.desk.mask()})


@pytest.mark.parametrize(
    ("error", "told", "logged"),
    [
        (OSError(errno.EIO, "Input/output error", "slice.dcm"), "slice.dcm", False),
        (PermissionError(errno.EACCES, "Permission denied", "slice.dcm"), "Permission denied", False),
        (MemoryError(), "not enough memory", False),
        (ZeroDivisionError("nobody foresaw this"), "unexpected", True),
    ],
)
def test_whatever_goes_wrong_in_the_window_is_a_sentence_and_only_the_unforeseen_is_logged(
    office: Office,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    told: str,
    logged: bool,
) -> None:
    def fails(_uid: str) -> str:
        raise error

    with caplog.at_level(logging.ERROR):
        office.panel.export_dicom_seg(str(tmp_path / "a.dcm"), fails)
    (sentence,) = office.view.errors
    assert told in sentence
    assert bool(caplog.records) == logged
    assert all(record.exc_info[1] is error for record in caplog.records if record.exc_info)


def test_an_error_while_results_are_taken_in_is_a_sentence_and_the_rest_is_delivered(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SAM2AssistLib.mrml.painting import Painter

    real, calls = Painter.write, []

    def write(self: Painter, patch: Any) -> Any:
        calls.append(patch.index)
        if len(calls) == 2:
            raise MemoryError
        return real(self, patch)

    monkeypatch.setattr(Painter, "write", write)
    other = office.desk.add_segment("other")
    office.desk.workspace.add_prompt(other, point(office.desk.ct, (5, 32, 44)))
    office.settle()
    (sentence,) = office.view.errors
    assert "not enough memory" in sentence
    assert office.desk.mask(other).any(axis=(1, 2)).sum() == office.desk.ct.shape_kji[0] - 1


def test_looking_at_support_cases_tells_its_progress_and_can_be_left(office: Office, tmp_path: Path) -> None:
    SupportLibrary().add(a_case(office, "last year", "balls"))
    steps = office.desk.workspace.desk.auto({"balls": "other"}, None, ["last year"])
    seen = [next(steps) for _ in range(2)]
    steps.close()
    assert [step.title for step in seen] == ["look at last year"] * 2
    assert 0 < seen[0].done < seen[1].done < seen[1].total == office.desk.ct.shape_kji[0]
    assert not list((tmp_path / "supports").glob("*/features-*"))
    assert list(office.desk.workspace.desk.auto({"balls": "other"}, None, ["last year"]))
    assert list((tmp_path / "supports").glob("*/features-*"))


def test_loading_the_model_is_shown_and_a_cancel_meanwhile_leaves_the_click_on_its_slice(
    office: Office, quick_engine: Any
) -> None:
    go_on, engine = threading.Event(), quick_engine()

    def slow(_choice: Any) -> Any:
        go_on.wait(300)
        return engine

    desk = office.desk
    desk.assistant._loader, desk.assistant._engine = slow, None
    desk.assistant.choose(device="cpu")
    workspace = desk.assistant.open(desk.volume, desk.segmentation)
    other = desk.add_segment("other")
    workspace.add_prompt(other, point(desk.ct, (5, 32, 44)))
    until = time.perf_counter() + 20
    while ("load the model", 0, 1) not in office.view.progress:
        assert time.perf_counter() < until
        office.panel.deliver()
        time.sleep(0.002)
    office.panel.cancel()
    go_on.set()
    office.settle()
    assert ("load the model", 1, 1) in office.view.progress
    assert np.flatnonzero(desk.mask(other).any(axis=(1, 2))).tolist() == [5]
    assert len(workspace.prompts.gestures(other)) == 1
    workspace.propagate([other])
    office.settle()
    assert desk.mask(other).any(axis=(1, 2)).all()
    assert office.view.errors == []


def test_cancel_never_parts_what_is_shown_from_what_the_engine_knows(office: Office) -> None:
    """Undo, edits and prompts that wait for the engine are short, and are done although all that is long ends."""
    desk, workspace = office.desk, office.desk.workspace
    workspace.undo()
    office.panel.cancel()
    office.settle()
    assert not desk.mask().any()
    again = desk.do(desk.segment, point(desk.ct, LEFT))
    with desk.assistant.engine(desk.assistant.choice).open(desk.ct) as session:
        segment = session.add_segment("ball")
        session.add_point(segment, desk.ct.ras_from_index_ijk(np.array(LEFT, float)[::-1]))
        list(session.propagate())
        np.testing.assert_array_equal(again, session.mask(segment))


@pytest.mark.parametrize("missing_bytes", [1, 100, 1000])
def test_a_full_disk_under_the_support_library_is_told_and_leaves_no_case(
    office: Office, tmp_path: Path, missing_bytes: int
) -> None:
    office.panel.add_to_support_library()
    office.settle()
    size_bytes = (tmp_path / "supports" / "CT" / "image.nrrd").stat().st_size
    SupportLibrary().remove("CT")
    with a_disk_with(size_bytes - missing_bytes):
        office.panel.add_to_support_library()
        office.settle()
    (sentence,) = office.view.errors
    assert "cannot be written" in sentence
    assert SupportLibrary().entries() == ()
    assert list((tmp_path / "supports").iterdir()) == []
