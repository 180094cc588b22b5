"""First run, sample data and self-test of the module, in the host's window."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from module_window import Window, window
from slicer_package import ROOT
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "one_host", "window"]

PACKAGES = ("scikit-image>=0.22", "safetensors>=0.4.3", "typer>=0.12")


@pytest.fixture
def lacking(window: Window, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The panel on a computer without three packages; the names of what is missing."""
    from SAM2AssistLib.mrml import first_run

    absent, real = {re.split("[>=]", package)[0] for package in PACKAGES}, first_run._version
    monkeypatch.setattr(first_run, "_version", lambda name: None if name in absent else real(name))
    window.widget.updateSetup()
    return absent


def pip_that(monkeypatch: pytest.MonkeyPatch, does: Callable[[str], None]) -> list[str]:
    """Stand in for Slicer's pip; returns what it is asked for."""
    asked: list[str] = []

    def pip_install(requirement: str, **_: Any) -> None:
        asked.append(requirement)
        does(requirement)

    monkeypatch.setattr(sys.modules["slicer.packaging"], "pip_install", pip_install)
    return asked


def test_while_packages_are_installed_the_panel_shows_which_one_and_how_many(
    window: Window, lacking: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, int, int, bool, bool]] = []

    def look(requirement: str) -> None:
        bar = window.ui.progressBar
        buttons = (window.ui.cancelButton.visible, window.ui.installButton.enabled)
        shown.append((bar.text, bar.value, bar.maximum, *buttons))
        lacking.discard(re.split("[>=]", requirement)[0])

    asked = pip_that(monkeypatch, look)
    window.host.user.press(window.ui.installButton)
    window.settle()
    assert tuple(asked) == PACKAGES
    assert shown == [(f"Installing {name} {n} / 3", n, 3, True, False) for n, name in enumerate(PACKAGES, start=1)]
    assert window.ui.statusLabel.text == "All packages are installed."
    assert not window.ui.setupCollapsibleButton.visible
    assert not window.ui.cancelButton.visible
    assert not window.ui.progressBar.visible
    assert window.ui.positiveButton.enabled


def test_cancel_ends_an_installation_between_two_packages_and_the_button_goes_on_from_there(
    window: Window, lacking: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel_in_the_first(requirement: str) -> None:
        lacking.discard(re.split("[>=]", requirement)[0])
        if requirement == PACKAGES[0]:
            window.host.user.press(window.ui.cancelButton)

    asked = pip_that(monkeypatch, cancel_in_the_first)
    window.host.user.press(window.ui.installButton)
    window.settle()
    assert asked == [PACKAGES[0]]
    assert f"Cancelled before {PACKAGES[1]}" in window.ui.statusLabel.text
    assert PACKAGES[0] not in window.ui.setupLabel.text
    assert PACKAGES[1] in window.ui.setupLabel.text
    assert not window.ui.positiveButton.enabled
    window.host.user.press(window.ui.installButton)
    window.settle()
    assert tuple(asked) == PACKAGES
    assert window.ui.positiveButton.enabled


def test_a_package_that_fails_is_named_with_what_to_do_and_nothing_after_it_is_tried(
    window: Window, lacking: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_in_the_second(requirement: str) -> None:
        if requirement == PACKAGES[1]:
            raise RuntimeError("no route to host")
        lacking.discard(re.split("[>=]", requirement)[0])

    asked = pip_that(monkeypatch, fail_in_the_second)
    window.host.user.press(window.ui.installButton)
    window.settle()
    assert tuple(asked) == PACKAGES[:2]
    said = window.ui.statusLabel.text
    assert said.startswith(f"{PACKAGES[1]} could not be installed, number 2 of 3 (no route to host)")
    assert "folder of wheels" in said
    assert window.ui.installButton.enabled
    assert not window.panel.busy()


def test_the_sample_is_registered_with_an_address_and_the_checksum_of_its_file(a_host: Any) -> None:
    from slicer_host import sample_data

    from SAM2AssistLib.mrml.samples import SHA256, register

    sample_data.sources.clear()
    register(sample_data.SampleDataLogic)
    (source,) = sample_data.sources
    assert re.fullmatch("[0-9a-f]{64}", SHA256)
    assert source["checksums"] == f"SHA256:{SHA256}"
    # Slicer's testing data lie under addresses that end in the checksum, so one of them cannot be wrong alone.
    assert source["uris"] == f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{SHA256}"
    assert re.fullmatch(r"[\w-]+\.nrrd", source["fileNames"])
    assert source["nodeNames"] == "CTLiver"
    tutorial = (ROOT / "Resources" / "Docs" / "tutorial.md").read_text(encoding="utf-8")
    assert f"Sample Data > {source['category']} > {source['sampleName']}" in tutorial


def test_the_module_registers_the_sample_once_slicer_has_started(a_host: Any) -> None:
    from slicer_host import sample_data

    sample_data.sources.clear()
    a_host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    a_host.application.startupCompleted.emit()
    a_host.process_events()
    assert "SAM2AssistLiver" in [source["sampleName"] for source in sample_data.sources]


def test_the_self_test_passes_as_slicer_runs_it(a_host: Any) -> None:
    import slicer

    a_host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    a_host.open_module("SAM2Assist")
    module = sys.modules["SAM2Assist"]
    module.SAM2AssistTest().runTest()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 1
    assert a_host.unhandled == []


def test_the_self_test_says_so_where_packages_are_missing(a_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from SAM2AssistLib.mrml import first_run, self_test

    a_host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    test = sys.modules["SAM2Assist"].SAM2AssistTest()
    real, shown = first_run._version, list[str]()
    monkeypatch.setattr(first_run, "_version", lambda name: None if name == "torch" else real(name))
    monkeypatch.setattr(test, "delayDisplay", shown.append)
    monkeypatch.setattr(self_test, "small_run", None)
    test.runTest()
    assert len(shown) == 1
    assert "packages are missing" in shown[0]
