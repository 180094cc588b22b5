"""What is missing is named with its size, and installed as Slicer wants it: nothing of Slicer's is replaced."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from slicer_package import ROOT

from SAM2AssistLib.engine import catalogue
from SAM2AssistLib.errors import InputError, InstallError, ModelError
from SAM2AssistLib.mrml import first_run

REQUIREMENTS = ROOT / "SAM2Assist" / "Resources" / "requirements.txt"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """What is asked of ``slicer.packaging``: requirements, and the text of the constraints file."""
    asked: list[tuple[Any, str]] = []

    def note(requirements: Any, constraints: Any = None, **_: Any) -> None:
        asked.append((requirements, Path(constraints).read_text(encoding="utf-8") if constraints else ""))

    packaging, package = ModuleType("slicer.packaging"), ModuleType("slicer")
    packaging.pip_install = note  # type: ignore[attr-defined]
    package.packaging = packaging  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slicer", package)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    return asked


def only(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(first_run, "_version", versions.get)


def test_everything_that_is_missing_is_listed_torch_first_and_sam2_last(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    listed = first_run.missing_packages(REQUIREMENTS)
    assert listed[0].requirement.startswith("torch")
    assert listed[0].by == "the PyTorch extension"
    assert listed[-1].requirement.startswith("sam2")
    assert all(item.size_mb > 0 for item in listed)


def test_a_version_that_is_too_old_is_missing_and_a_newer_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, torch="2.4.1+cu121", tqdm="99.0")
    names = {item.requirement.partition(">")[0] for item in first_run.missing_packages(REQUIREMENTS)}
    assert "torch" in names
    assert "tqdm" not in names


def test_what_slicer_brings_is_held_by_a_constraints_file(monkeypatch: pytest.MonkeyPatch, pip: list) -> None:
    only(monkeypatch, torch="2.13.0+cpu", numpy="2.4.6", SimpleITK="2.5.0", pydicom="3.0.1")
    steps = list(first_run.installing(REQUIREMENTS))
    assert [step.requirement for step in steps] == [*first_run.requirement_lines(REQUIREMENTS), "sam2==1.1.0"]
    assert [(step.number, step.total) for step in steps] == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    for _requirement, constraints in pip[:-1]:
        assert {"numpy==2.4.6", "SimpleITK==2.5.0", "pydicom==3.0.1", "torch==2.13.0"} <= set(constraints.split())
    assert not any(item.startswith(("numpy", "torch", "SimpleITK", "pydicom")) for item, _ in pip)
    assert pip[-1][0] == "sam2==1.1.0 --no-deps --no-build-isolation"


def test_torch_that_has_just_been_installed_is_kept_by_what_comes_after_it(
    monkeypatch: pytest.MonkeyPatch, pip: list, tmp_path: Path
) -> None:
    versions: dict[str, str] = {}
    monkeypatch.setattr(first_run, "_version", versions.get)
    for step in first_run.installing(REQUIREMENTS, str(tmp_path)):
        if step.number == 2:
            versions["torch"] = "2.13.0+cpu"
    assert pip[0][0].startswith("torch")
    assert "torch" not in pip[0][1]
    assert "torch==2.13.0" in pip[1][1].split()


def test_whoever_asks_for_no_further_package_has_cancelled_the_rest(monkeypatch: pytest.MonkeyPatch, pip: list) -> None:
    only(monkeypatch, torch="2.13.0")
    steps = first_run.installing(REQUIREMENTS)
    next(steps), next(steps)
    steps.close()
    assert len(pip) == 1


@pytest.mark.parametrize("reason", [RuntimeError("no route"), subprocess.CalledProcessError(1, ["pip"])])
def test_a_package_that_cannot_be_installed_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, pip: list, reason: Exception
) -> None:
    only(monkeypatch, torch="2.13.0")

    def fails(_requirement: str, **_: Any) -> None:
        raise reason

    monkeypatch.setattr(sys.modules["slicer.packaging"], "pip_install", fails)
    said = r"scikit-image>=0.22 could not be installed, number 1 of 8 .*folder of wheels"
    with pytest.raises(InstallError, match=said):
        list(first_run.installing(REQUIREMENTS))


def test_from_a_folder_of_wheels_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, pip: list, tmp_path: Path) -> None:
    only(monkeypatch)
    list(first_run.installing(REQUIREMENTS, str(tmp_path)))
    assert len(pip) == len(first_run.missing_packages(REQUIREMENTS))
    assert all(f"--no-index --find-links {tmp_path}" in requirements for requirements, _ in pip)


def test_a_folder_that_is_not_there_is_refused(pip: list, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        list(first_run.installing(REQUIREMENTS, str(tmp_path / "nowhere")))
    assert not pip


def test_a_slicer_that_cannot_install_packages_is_refused_with_the_one_that_can(
    monkeypatch: pytest.MonkeyPatch, pip: list
) -> None:
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    only(monkeypatch)
    with pytest.raises(InputError, match=r"get Slicer 5\.12 or newer"):
        list(first_run.installing(REQUIREMENTS))
    monkeypatch.setattr(first_run, "_is_there", lambda _: True)
    assert not list(first_run.installing(REQUIREMENTS))


def test_torch_without_the_pytorch_extension_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, pip: list
) -> None:
    only(monkeypatch)
    with pytest.raises(InputError, match="Extensions Manager"):
        list(first_run.installing(REQUIREMENTS))
    assert not pip


def test_who_says_no_to_torch_is_told_so_and_gets_nothing_else(monkeypatch: pytest.MonkeyPatch, pip: list) -> None:
    """PyTorchUtils asks with `askConfirmation`, and returns as if nothing was after a no."""
    asked, extension = [], ModuleType("PyTorchUtils")

    class Logic:
        def installTorch(self, **how: Any) -> None:  # noqa: N802
            asked.append(how)

    extension.PyTorchUtilsLogic = Logic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    only(monkeypatch)
    with pytest.raises(InstallError, match="PyTorch was not installed"):
        list(first_run.installing(REQUIREMENTS))
    assert asked == [{"askConfirmation": True, "torchVersionRequirement": ">=2.5.1"}]
    assert not pip


@pytest.mark.parametrize("intact", [True, False])
def test_weights_in_the_folder_are_taken_if_they_are_what_was_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, intact: bool
) -> None:
    content = b"weights"
    spec = replace(
        next(s for s in catalogue.CATALOGUE if not s.embedded),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setattr(first_run, "CATALOGUE", (spec,))
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / spec.file_name).write_bytes(content if intact else b"weightz")
    if not intact:
        with pytest.raises(ModelError):
            first_run.place_weights(folder)
        assert not first_run.store.is_present(spec)
        return
    assert first_run.place_weights(folder) == [spec.name]
    assert first_run.store.weights_path(spec).read_bytes() == content
    assert first_run.place_weights(folder) == []
