"""The walk through other tools' complaints names tests that are there."""

from __future__ import annotations

import re

from slicer_package import ROOT

TESTS = ROOT / "Testing" / "Python"
PAGE = ROOT / "Resources" / "Docs" / "complaints.md"


def all_tests() -> str:
    """The source of all tests."""
    return "\n".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))


def test_all_twenty_complaints_are_answered() -> None:
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [str(number) for number in range(1, 21)]


def test_each_of_the_twenty_names_a_test_of_its_own() -> None:
    functions = set(re.findall(r"^def (test_\w+)\(", all_tests(), re.MULTILINE))
    for row in re.findall(r"^\| \d+ \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        assert set(re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])) & functions, row


def test_each_test_is_in_the_file_it_is_said_to_be_in() -> None:
    for row in re.findall(r"^\| \d+ \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        inside = ""
        for name in re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2]):
            path = TESTS / f"{name}.py"
            if path.is_file():
                inside = path.read_text(encoding="utf-8")
            else:
                assert f"def {name}(" in inside, row


def test_every_test_that_the_page_names_exists() -> None:
    files, everything = {path.stem for path in TESTS.glob("test_*.py")}, all_tests()
    for name in re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")):
        assert name in files or f"def {name}(" in everything, name
