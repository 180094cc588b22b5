"""`make demo` hands its arguments on as they are, and works where the scripts of the environment do not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import slicer_package

pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("make") is None or shutil.which("bash") is None, reason="needs make and bash"
)


@pytest.fixture
def an_environment(tmp_path: Path) -> Path:
    """An environment that is set up, whose Python prints its arguments one by one, and which has no scripts."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "[%s]\\n" "$@"\n')
    python.chmod(0o755)
    for stamp in ("torch", "sam2", "package", "dev"):
        (folder / f".stamp-{stamp}").touch()
    return folder


def made(environment: Path, *arguments: str) -> list[str]:
    command = ["make", "--no-print-directory", f"VENV={environment}", *arguments]
    clean = {key: value for key, value in os.environ.items() if key not in ("CT", "OUT", "MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=slicer_package.ROOT, env=clean, capture_output=True, text=True, check=True)
    return [line[1:-1] for line in done.stdout.splitlines() if line.startswith("[")]


def test_the_demo_is_of_the_phantom_if_no_ct_is_named(an_environment: Path) -> None:
    assert made(an_environment, "demo") == ["-m", "SAM2AssistLib", "demo", "--out", "demo-output"]


@pytest.mark.parametrize("name", ["ct.nii", "O'Brien.nii", 'a "b" c.nii', "; echo no", "`x`"])
def test_a_ct_of_any_name_is_one_argument(an_environment: Path, name: str) -> None:
    arguments = made(an_environment, "demo", f"CT={name}", f"OUT={name} out")
    assert arguments == ["-m", "SAM2AssistLib", "demo", "--out", f"{name} out", "--ct", name]


def test_linter_and_type_checker_are_run_as_modules(an_environment: Path) -> None:
    assert made(an_environment, "lint", "types") == ["-m", "ruff", "check", ".", "-m", "mypy"]
