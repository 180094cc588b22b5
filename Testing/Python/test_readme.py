"""What the README shows works when it is copied."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, write_prompts
from ct_files import affine, ct_values, write_image
from slicer_package import ROOT

from SAM2AssistLib.io.segmentation import read_segmentation

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# A patient of 320 mm, around the positions of the examples.
GRID = affine((5.0, 5.0, 10.0), origin_lps=(-160.0, -160.0, -160.0))


def block(language: str, beginning: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    (found,) = (text for text in blocks if text.startswith(beginning))
    return found


@pytest.fixture
def a_folder_with_a_ct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any) -> Path:
    write_image(tmp_path / "ct.nii.gz", ct_values((10, 64, 64)), GRID)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_library_writes_the_liver(a_folder_with_a_ct: Path) -> None:
    exec(compile(block("python", "from SAM2AssistLib import"), "README.md", "exec"), {})
    (liver,), ijk_to_lps = read_segmentation(a_folder_with_a_ct / "result.seg.nrrd")
    assert liver.name == "liver"
    assert liver.mask.any()
    np.testing.assert_allclose(ijk_to_lps, GRID, atol=1e-4)


def test_the_example_of_the_command_line_reads_the_example_of_a_prompt_file(
    a_folder_with_a_ct: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_prompts(a_folder_with_a_ct / "prompts.json", json.loads(block("json", '{"frame"')))
    command = re.search(r"^sam2assist (segment .*)$", TEXT, re.MULTILINE)
    assert command is not None
    assert run(capfd, *command[1].split()).code == 0
    assert [named.name for named in read_segmentation(a_folder_with_a_ct / "result.seg.nrrd")[0]] == ["liver"]


def test_every_option_that_is_mentioned_is_there(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    listed = run(capfd, "--help").out
    names = re.findall(r"^[│ ]*([a-z]+) {2,}", listed, re.MULTILINE)
    assert {"segment", "auto", "models", "finetune"} <= set(names)
    known = "".join(run(capfd, *name.split(), "--help").out for name in [*names, "models fetch", "support add"])
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - {"--help", "--no-build-isolation", "--no-deps"}
    assert {option for option in mentioned if option not in known} == set()
