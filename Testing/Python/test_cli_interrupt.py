"""Ctrl-C and SIGTERM: the command ends at once with exit code 130 or 143, and no file is ever half-written."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import GRID, Outcome, balls, box_prompts, quiet_environment, run, write_ct, write_prompts
from ct_files import write_image

from SAM2AssistLib.cli.console import CANCELLING
from SAM2AssistLib.engine import loading
from SAM2AssistLib.engine.session import Session
from SAM2AssistLib.io.segmentation import read_segmentation
from SAM2AssistLib.volume import CTVolume

YESTERDAY = b"the result of yesterday"

# The console script, but propagating on through what the embedded model takes for empty slices, so that there is always
# time for the signal to arrive.
PATIENT_SCRIPT = """
from functools import partial
from SAM2AssistLib.cli.app import main
from SAM2AssistLib.engine import loading
from SAM2AssistLib.engine.options import EngineOptions
loading.load_engine = partial(loading.load_engine, options=EngineOptions(stop_rules=False))
main()
"""

# The console script, but saying that it has reached a function and then staying there.
STUCK_SCRIPT = """
import sys, time
from SAM2AssistLib import volume
from SAM2AssistLib.cli.app import main
from SAM2AssistLib.engine import loading
def stay(*_, **__):
    print("here", file=sys.stderr, flush=True)
    while True:  # a signal that comes just before a sleep does not end that sleep
        time.sleep(0.1)
{place} = stay
main()
"""

# The console script, interrupted while it is still being imported.
EARLY_SCRIPT = """
import sys
from SAM2AssistLib.__main__ import main
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "SAM2AssistLib.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
main()
"""

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a CT, prompts for it, and a result of yesterday."""
    write_ct(tmp_path / "ct.nii.gz")
    write_prompts(tmp_path / "prompts.json", box_prompts())
    (tmp_path / "result.seg.nrrd").write_bytes(YESTERDAY)
    return tmp_path


@pytest.fixture
def a_long_ct(place: Path) -> Path:
    """A CT of so many slices in that folder that propagating takes much longer than a signal."""
    write_image(place / "ct.nii.gz", np.tile(balls(), (50, 1, 1)), GRID)
    return place


def given(place: Path, *more: object, out: str = "result.seg.nrrd") -> list[object]:
    return ["segment", place / "ct.nii.gz", "--prompts", place / "prompts.json", "-o", place / out, *more]


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


# ------------------------------------------------------------------------------------------------------ in this process


@pytest.fixture
def ctrl_c_after_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C arrive while the third slice is told of."""
    propagate = Session.propagate

    def interrupted(self: Session, *arguments: Any) -> Iterator[Any]:
        for step in propagate(self, *arguments):
            yield step
            if step.done == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(Session, "propagate", interrupted)


@pytest.mark.usefixtures("engine", "ctrl_c_after_three_steps")
def test_a_cancelled_propagation_leaves_the_old_result_and_says_how_to_keep_partial_ones(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capfd, *given(place, "--json"))
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1].startswith("Cancelled")
    assert "--keep-partial" in outcome.err
    assert (place / "result.seg.nrrd").read_bytes() == YESTERDAY
    assert files(place) == ["ct.nii.gz", "prompts.json", "result.seg.nrrd"]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("out", ["result.seg.nrrd", "result.nii.gz"])
def test_with_keep_partial_the_finished_slices_are_written_and_no_others(
    place: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest, out: str
) -> None:
    assert run(capfd, *given(place, out=out)).code == 0
    (whole,), _ = read_segmentation(place / out)
    request.getfixturevalue("ctrl_c_after_three_steps")
    outcome = run(capfd, *given(place, "--keep-partial", out=out))
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == f"Cancelled; the slices finished so far are in {place / out}."
    (ball,), ijk_to_lps = read_segmentation(place / out)
    assert ball.name == "ball"
    np.testing.assert_allclose(ijk_to_lps, GRID, atol=1e-4)
    # The prompted slice, 4, what came of it in three steps, and at most what was in the batch of the last one.
    slices = np.flatnonzero(ball.mask.any(axis=(1, 2)))
    assert {3, 4, 5} < set(slices.tolist())
    assert len(slices) <= 5
    np.testing.assert_array_equal(ball.mask[slices], whole.mask[slices])


@pytest.mark.usefixtures("engine")
def test_with_keep_partial_nothing_is_written_before_a_slice_is_finished(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "place_box", interrupted)
    outcome = run(capfd, *given(place, "--keep-partial"))
    assert outcome.code == 130
    assert "before any slice was finished" in outcome.err
    assert (place / "result.seg.nrrd").read_bytes() == YESTERDAY


@pytest.mark.parametrize("where", ["read", "load", "write", "preview"])
def test_ctrl_c_at_any_other_time_is_one_sentence_and_no_half_file(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, engine: Any, where: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    target, name = {
        "read": (CTVolume, "read"),
        "load": (loading, "load_engine"),
        "write": (os, "replace"),
        "preview": (__import__("PIL.Image").Image.Image, "save"),
    }[where]
    monkeypatch.setattr(target, name, interrupted)
    outcome = run(capfd, *given(place, "--preview", place / "result.png"))
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1] == "Cancelled; no file was left half-written."
    assert files(place) == ["ct.nii.gz", "prompts.json", "result.seg.nrrd"]
    is_new = where == "preview"
    assert ((place / "result.seg.nrrd").read_bytes() != YESTERDAY) == is_new


@needs_signals
@pytest.mark.usefixtures("engine", "ctrl_c_after_three_steps")
def test_impatient_signals_after_the_first_do_not_cost_the_slices_that_were_to_be_kept(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(*paths: Any) -> None:
        for number in CANCELLING:
            os.kill(os.getpid(), number)
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    outcome = run(capfd, *given(place, "--keep-partial"))
    assert outcome.code == 130
    assert "finished so far are in" in outcome.err
    assert read_segmentation(place / "result.seg.nrrd")[0][0].mask.any()
    assert files(place) == ["ct.nii.gz", "prompts.json", "result.seg.nrrd"]


def test_cancelling_any_other_command_exits_the_same_way(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("SAM2AssistLib.engine.store.verify", interrupted)
    assert run(capfd, "models", "verify", "mini").code == 130
    monkeypatch.setattr("SAM2AssistLib.training.phantoms.make_phantom", interrupted)
    assert run(capfd, "demo", "--out", tmp_path / "out") == Outcome(
        130, "", "Cancelled; no file was left half-written.\n"
    )


# ------------------------------------------------------------------------------------------------ with a real SIGINT


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command in a process of its own, whose stderr is read line by line."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=quiet_environment(),
            # A test run started in the background of a shell hands on an ignored SIGINT; a user's terminal does not.
            preexec_fn=_heed_interrupts,  # noqa: PLW1509 - the child runs nothing else before exec
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, beginning: str) -> None:
        """Wait until a line begins in this way."""
        line = " "
        while line and not line.startswith(beginning):
            line = self._lines.get(timeout=300)
        assert line, "the command ended without saying so"

    def interrupt(self, number: int = signal.SIGINT, times: int = 1) -> Outcome:
        """Press Ctrl-C, or send another signal; give how the command ended, with the rest of stderr."""
        for _ in range(times):
            self.process.send_signal(number)
        with self.process:
            self.process.wait(timeout=300)
            assert self.process.stdout is not None
            out = self.process.stdout.read()
        rest = "".join(iter(lambda: self._lines.get(timeout=300), ""))
        return Outcome(self.process.returncode, out, rest)


@needs_signals
def test_a_signal_during_propagation_ends_the_command_at_once_without_a_trace(a_long_ct: Path) -> None:
    command = Running(PATIENT_SCRIPT, *given(a_long_ct, "--device", "cpu"))
    command.wait_for("Propagating")
    outcome = command.interrupt()
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.startswith("Cancelled")
    assert "--keep-partial" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert (a_long_ct / "result.seg.nrrd").read_bytes() == YESTERDAY
    assert files(a_long_ct) == ["ct.nii.gz", "prompts.json", "result.seg.nrrd"]


@needs_signals
@pytest.mark.parametrize(("number", "times", "code"), [(signal.SIGTERM, 1, 143), (signal.SIGINT, 3, 130)])
def test_a_signal_with_keep_partial_leaves_a_whole_file_of_what_is_finished(
    a_long_ct: Path, number: int, times: int, code: int
) -> None:
    command = Running(PATIENT_SCRIPT, *given(a_long_ct, "--device", "cpu", "--keep-partial"))
    command.wait_for("Propagating")
    outcome = command.interrupt(number, times)
    assert outcome.code == code
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("Cancelled")
    assert files(a_long_ct) == ["ct.nii.gz", "prompts.json", "result.seg.nrrd"]
    if times == 1 or (a_long_ct / "result.seg.nrrd").read_bytes() != YESTERDAY:
        (ball,), _ = read_segmentation(a_long_ct / "result.seg.nrrd")
        assert ball.mask.shape == (400, 64, 64)
        assert not ball.mask.any(axis=(1, 2)).all()


@needs_signals
def test_a_schedulers_signal_while_reading_ends_the_command_at_once_too(place: Path) -> None:
    command = Running(STUCK_SCRIPT.format(place="volume.CTVolume.read"), *given(place))
    command.wait_for("here")
    outcome = command.interrupt(signal.SIGTERM)
    assert outcome == Outcome(143, "", "Cancelled; no file was left half-written.\n")
    assert (place / "result.seg.nrrd").read_bytes() == YESTERDAY


def test_ctrl_c_while_python_still_imports_is_a_sentence_and_no_traceback():
    command = [sys.executable, "-c", EARLY_SCRIPT]
    done = subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 130
    assert done.stderr == "Cancelled; nothing had begun.\n"
