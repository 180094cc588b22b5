"""The command line as tests call it, and small CT with prompts to call it on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from ct_files import affine, ct_values, write_image

from SAM2AssistLib.cli.app import main

SHAPE_KJI = (8, 64, 64)
GRID = affine((1.5, 1.5, 4.0), origin_lps=(-48.0, -48.0, 100.0))
SCRIPT = Path(sysconfig.get_path("scripts"), "sam2assist")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, and all of stdout and stderr, what C++ code writes there included."""

    code: int | str | None
    out: str
    err: str


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Call the entry point of the console script in this process, which is quicker by the import of torch."""
    capfd.readouterr()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv = ["sam2assist", *map(str, arguments)]
    try:
        with mock.patch.object(sys, "argv", argv), warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out, err = capfd.readouterr()
    return Outcome(ended.value.code, out, err)


def run_script(*arguments: object, program: tuple[str, ...] = (str(SCRIPT),), **settings: Any) -> Outcome:
    """Run the installed console script, or another program, as a user does."""
    done = subprocess.run(
        [*program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=quiet_environment(),
        **settings,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def quiet_environment() -> dict[str, str]:
    """Give the environment without what could make a program write colours or warnings."""
    unwanted = ("FORCE_COLOR", "TTY_COMPATIBLE", "PYTHONWARNINGS", "COLUMNS")
    return {**{key: value for key, value in os.environ.items() if key not in unwanted}, "OMP_NUM_THREADS": "1"}


def sentence_of(outcome: Outcome) -> str:
    """Give the one sentence with which a command refused, after making sure that it is all there is."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].endswith(".")
    assert lines[0].isprintable()
    assert "Traceback" not in lines[0]
    assert "Error" not in lines[0]
    return lines[0]


def balls() -> np.ndarray:
    """Make a CT (k, j, i) with two bright balls in soft tissue."""
    values = ct_values(SHAPE_KJI, seed=3)
    k, j, i = np.indices(SHAPE_KJI)
    for center, radius in (((4, 24, 30), 10), ((4, 44, 48), 7)):
        inside = (4.0 * (k - center[0])) ** 2 + (j - center[1]) ** 2 + (i - center[2]) ** 2 < radius**2
        values[inside] += 150
    return values


def write_ct(path: Path) -> Path:
    """Write the balls as an image file."""
    return write_image(path, balls(), GRID)


def box_prompts(name: str = "ball", **others: Any) -> dict[str, Any]:
    """Give the content of a prompt file with a box around the first ball, on its middle slice."""
    box = {"min": [20, 14, 4], "max": [40, 34, 4]}
    return {"frame": "IJK", "segments": [{"name": name, "boxes": [box]}], **others}


def two_segments() -> dict[str, Any]:
    """Give the content of a prompt file for both balls, one with points and one with a box."""
    points = [{"position": [48, 44, 4]}, {"position": [48, 30, 4], "positive": False}]
    content = box_prompts()
    content["segments"].append({"name": "little ball", "points": points})
    return content


def write_prompts(path: Path, content: Any) -> Path:
    """Write a prompt file; text as it is, anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
