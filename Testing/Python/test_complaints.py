"""The walk through other tools' complaints names tests that are there."""

from __future__ import annotations

import re

from slicer_package import ROOT

PAGE = ROOT / "Resources" / "Docs" / "complaints.md"


def test_all_twenty_complaints_are_answered() -> None:
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [str(number) for number in range(1, 21)]


def test_every_test_that_the_page_names_exists() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "Testing" / "Python").glob("test_*.py")}
    everything = "\n".join(sources.values())
    for name in re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")):
        assert name in sources or f"def {name}(" in everything, name
