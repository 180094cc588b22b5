"""What the commands tell of a result."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SCRIPT, quiet_environment, run, sentence_of
from ct_files import empty_volume
from rich.console import Console

from SAM2AssistLib.cli import console
from SAM2AssistLib.cli.results import notes_on, slicer_advice
from SAM2AssistLib.io.named_mask import NamedMask

SHAPE = (10, 20, 20)
VOLUME = empty_volume(np.eye(3), SHAPE, spacing_ijk=(5.0, 4.0, 5.0))  # a voxel of 0.1 ml


def block(name: str, *bounds: tuple[int, int]) -> NamedMask:
    mask = np.zeros(SHAPE, bool)
    if bounds:
        mask[tuple(slice(low, high) for low, high in bounds)] = True
    return NamedMask(name, mask)


LIVER = block("liver", (0, 10), (0, 10), (0, 10))


def test_segments_that_share_more_than_a_little_are_told_of_in_ml() -> None:
    stomach = block("stomach", (0, 10), (8, 18), (4, 10))
    (note,) = notes_on([LIVER, stomach], VOLUME)
    assert note.startswith("12 ml belong to both 'liver' and 'stomach';")


@pytest.mark.parametrize(
    "other",
    [
        block("apart", (0, 10), (10, 20), (0, 10)),
        block("few voxels", (0, 2), (9, 19), (9, 10)),
        block("small part", (0, 10), (9, 20), (8, 20)),
    ],
    ids=lambda named: named.name,
)
def test_segments_that_only_touch_are_not_told_of(other: NamedMask) -> None:
    if other.name == "small part":
        other.mask[:, 9:10, 8:9] = False
        other.mask[:5, 9:10, 9:10] = False
    assert notes_on([LIVER, other], VOLUME) == []


def test_empty_segments_are_told_of_and_overlap_with_nothing() -> None:
    notes = notes_on([LIVER, block("spleen"), block("kidney")], VOLUME)
    assert [note.split()[0] for note in notes] == ["'spleen'", "'kidney'"]


def test_the_advice_for_slicer_names_both_and_says_how_to_see_the_result(tmp_path: Path) -> None:
    text = slicer_advice(Path("ct.nii.gz"), Path("a.seg.nrrd"))
    assert text == "In 3D Slicer: Add Data, ct.nii.gz and a.seg.nrrd; then Show 3D in the module Segmentations."
    assert "a.nii.gz (as Segmentation" in slicer_advice(Path("ct.nii.gz"), Path("a.nii.gz"))
    assert f"Add DICOM Data for {tmp_path}" in slicer_advice(tmp_path, Path("a.seg.nrrd"))


def test_a_file_name_that_looks_like_markup_is_shown_as_it_is_while_working(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, force_interactive=True, width=80)
    monkeypatch.setattr(console, "stderr", lambda: terminal)
    with console.working("Writing to [/b] [red]"):
        pass
    assert "Writing to [/b] [red]" in screen.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_result_that_cannot_be_told_of_is_there_and_one_sentence_says_so() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [str(SCRIPT), "models", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=300,
            env=quiet_environment(),
        )
    assert done.returncode == 2
    assert (
        done.stderr == "What was to be said could not be written (No space left on device); the files are finished.\n"
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("cut short"), "cut short"),
    ],
)
def test_a_disk_that_fails_before_the_end_is_never_told_as_a_finished_result(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: OSError, reason: str
) -> None:
    def fail(**_: object) -> None:
        raise fault

    monkeypatch.setattr("SAM2AssistLib.cli.app.app", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which is closed in the end
    sentence = sentence_of(run(capfd, "finetune"))
    assert f"has failed ({reason}), so this is not finished" in sentence
