"""The search for the patient finds what it looks for, wherever it is said; and exceptions do not carry the patient."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pydicom
import pytest
from ct_files import BIRTH_DATE, PATIENT_ID, PATIENT_NAME, changed, ct_values, write_dicom_series
from dicom_privacy import said_by, secrets_in
from dicom_scenes import AXIAL, SHAPE_KJI, apart

from SAM2AssistLib.errors import SAM2AssistError
from SAM2AssistLib.io.dicom_seg import write_dicom_seg
from SAM2AssistLib.io.rtstruct import read_rtstruct, write_rtstruct
from SAM2AssistLib.io.segmentation import read_segmentation
from SAM2AssistLib.volume import CTVolume

FAMILY_NAME = PATIENT_NAME.split("^", maxsplit=1)[0]

LEAKS = {
    "stdout": f"print('Reading {FAMILY_NAME}')",
    "stderr": f"print('{PATIENT_ID} read', file=sys.stderr)",
    "output_that_the_test_took": f"print('{BIRTH_DATE}'); capfd.readouterr()",
    "debug_log": f"logging.getLogger('deep.inside').debug('opened %s', '{PATIENT_ID.lower()}')",
    "log_of_a_handled_error": f"log_error('{FAMILY_NAME}')",
    "sentence": f"refuse('born 1950-02-03 {FAMILY_NAME}', ValueError('x'))",
    "cause_of_a_sentence": f"refuse('It is damaged.', ValueError('{FAMILY_NAME} is no number'))",
}
LEFT_BEHIND = {
    "warning": "warnings.warn('odd value in 1.2.826.0.1.3680043.8.498.123', stacklevel=1)",
    "file": f"(tmp_path / 'prompts.json').write_text('{PATIENT_ID}')",
    "file_name": f"(tmp_path / '{FAMILY_NAME}.png').touch()",
    "compressed_file": f"(tmp_path / 'a.nii.gz').write_bytes(gzip.compress(b'{FAMILY_NAME}'))",
}
WORKERS = ("0", "2")
"""Processes that run the tests; with 0 it is the one that was called."""
HARMLESS = {
    "dicom_file": f"(tmp_path / 'a.dcm').write_bytes(bytes(128) + b'DICM' + b'{PATIENT_ID}')",
    "nothing": "print('Reading the series'); logging.getLogger('x').error('no'); refuse('It is damaged.', None)",
}
SETTING = """
import gzip, logging, sys, warnings
from SAM2AssistLib.errors import InputError

def refuse(sentence, cause):
    try:
        raise InputError(sentence) from cause
    except InputError:
        pass

def log_error(name):
    try:
        raise ValueError(name)
    except ValueError:
        logging.exception("That went wrong")
"""


@pytest.fixture(scope="module")
def inner_runs(tmp_path_factory):
    """Runs of pytest whose tests tell of the patient in every way, and leave it behind in every way."""
    folder = tmp_path_factory.mktemp("inner")
    (folder / "conftest.py").write_text(
        "from dicom_privacy import PrivacyGuard\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(PrivacyGuard())\n"
    )
    for name, kinds in (("test_dicom_said", LEAKS | HARMLESS), ("test_dicom_left", LEFT_BEHIND), ("test_fine", LEAKS)):
        tests = [f"def test_{kind}(tmp_path, capfd):\n    {code}\n" for kind, code in kinds.items()]
        (folder / f"{name}.py").write_text("\n".join([SETTING, *tests]))
    said = run_pytest(folder, "test_dicom_said.py", "test_fine.py")
    left = {workers: run_pytest(folder, "-n", workers, "test_dicom_left.py") for workers in WORKERS}
    for path in folder.iterdir():  # they name the patient, and this run is searched too
        if path.is_file():
            path.unlink()
    return said, left


def run_pytest(folder, *arguments):
    """Run tests in a folder, with the modules beside this one."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def has_failed(done, file, kind):
    """Whether the summary of a run names a test as one that went wrong."""
    return re.search(rf"^(ERROR|FAILED) {file}.py::test_{kind}\b", done.stdout, re.MULTILINE) is not None


@pytest.mark.parametrize("kind", LEAKS)
def test_a_test_that_tells_of_the_patient_fails(inner_runs, kind):
    assert has_failed(inner_runs[0], "test_dicom_said", kind)


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_test_that_tells_nothing_passes(inner_runs, kind):
    assert f"PASSED test_dicom_said.py::test_{kind}" in inner_runs[0].stdout
    assert not has_failed(inner_runs[0], "test_dicom_said", kind)


@pytest.mark.parametrize("kind", LEAKS)
def test_tests_of_other_things_are_left_alone(inner_runs, kind):
    assert f"PASSED test_fine.py::test_{kind}" in inner_runs[0].stdout
    assert not has_failed(inner_runs[0], "test_fine", kind)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", LEFT_BEHIND)
def test_a_run_that_leaves_the_patient_in_a_file_or_warning_fails(inner_runs, kind, workers):
    done = inner_runs[1][workers]
    assert f"{len(LEFT_BEHIND)} passed" in done.stdout
    assert done.returncode == 1
    assert re.search(rf"^LEAK test_{kind}\b|^LEAK test_{kind}\d", done.stdout, re.MULTILINE)


# ------------------------------------------------------------------------------------------------ exception chains


@pytest.fixture
def a_case(tmp_path):
    """A series with a segmentation and a structure set of it."""
    write_dicom_series(tmp_path / "ct", ct_values(SHAPE_KJI), AXIAL)
    volume = CTVolume.read(tmp_path / "ct")
    write_dicom_seg(tmp_path / "seg.dcm", apart(), volume)
    write_rtstruct(tmp_path / "contours.dcm", apart(), volume)
    return tmp_path, volume


def with_the_name_as(path, tag, vr):
    """Put the name of the patient where something else should be."""
    dataset = pydicom.dcmread(path)
    dataset[tag] = pydicom.DataElement(tag, vr, PATIENT_NAME)
    dataset.save_as(path)


def first_image(folder):
    """One of the images."""
    return min((folder / "ct").iterdir())


MISPLACED = {
    "rows of an image": lambda folder, _: (
        with_the_name_as(first_image(folder), "Rows", "LO"),
        CTVolume.read(folder / "ct"),
    ),
    "class of the images, for a segmentation": lambda folder, volume: (
        [with_the_name_as(path, "SOPClassUID", "LO") for path in volume.dicom_files],
        write_dicom_seg(folder / "new.dcm", apart(), volume),
    ),
    "frames of a segmentation": lambda folder, volume: (
        with_the_name_as(folder / "seg.dcm", "NumberOfFrames", "LO"),
        read_segmentation(folder / "seg.dcm", volume),
    ),
    "regions of a structure set": lambda folder, volume: (
        with_the_name_as(folder / "contours.dcm", "ROIContourSequence", "LO"),
        read_rtstruct(folder / "contours.dcm", volume),
    ),
}


@pytest.mark.parametrize("what", MISPLACED)
def test_a_name_in_the_wrong_element_is_not_in_the_traceback(a_case, what):
    with pytest.raises(SAM2AssistError) as caught:
        MISPLACED[what](*a_case)
    told = "\n".join(said_by(caught.value))
    assert secrets_in(told) == []
    assert told in "".join(traceback.format_exception(caught.value)).replace("SAM2AssistLib.errors.", "")


def test_a_date_of_birth_in_the_wrong_element_is_not_in_the_traceback(a_case):
    folder, _ = a_case
    changed(first_image(folder), ImageType=[BIRTH_DATE], PixelSpacing=None)
    with pytest.raises(SAM2AssistError) as caught:
        CTVolume.read(folder / "ct")
    assert secrets_in("\n".join(said_by(caught.value))) == []
