"""An adapter sees images through the window that it was trained with, and another one is told of."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import box_prompts, run, write_ct, write_prompts

from SAM2AssistLib.cli.segment import notes_on_window
from SAM2AssistLib.engine.adapter import trained_window
from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompting.auto import auto_segment
from SAM2AssistLib.prompting.self_prompt import embedded_adapter, load_self_prompter
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume, Window

LUNG = {"level": -600, "width": 1500}


@pytest.fixture
def a_folder(tmp_path):
    """An adapter of mini whose card names no window, for a test to change."""
    return shutil.copytree(embedded_adapter("mini"), tmp_path / "adapter")


def trained_with(folder: Path, window: object) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"window": window}))
    return folder


def test_without_a_window_a_volume_is_seen_through_the_one_of_the_adapter(quick_engine, a_blob_volume, a_folder):
    engine = replace(quick_engine(), adapter=trained_with(a_folder, LUNG))
    with engine.open(a_blob_volume) as session:
        assert session.window == WINDOW_PRESETS["lung"]
    with engine.open(a_blob_volume, window=WINDOW_PRESETS["bone"]) as session:
        assert session.window == WINDOW_PRESETS["bone"]


def test_what_is_not_in_hounsfield_units_is_seen_through_a_window_of_its_own(quick_engine, a_blob_volume, a_folder):
    engine = replace(quick_engine(), adapter=trained_with(a_folder, {"level": 40, "width": 400}))
    shifted = CTVolume.from_array(a_blob_volume.array + 1024, a_blob_volume.spacing_ijk, a_blob_volume.ijk_to_lps)
    with engine.open(shifted) as session:
        assert session.window == default_window(shifted) != Window(40, 400)
        assert notes_on_window(session) == []


def test_an_adapter_that_names_no_window_changes_nothing(quick_engine, a_blob_volume, a_folder):
    engine = replace(quick_engine(), adapter=a_folder)
    assert engine.trained_window is None
    with engine.open(a_blob_volume) as session:
        assert session.window == default_window(a_blob_volume)


@pytest.mark.parametrize("wrong", [[40, 400], {"level": 40}, {"level": "high", "width": 1}, {"level": 40, "width": 0}])
def test_a_card_with_a_window_that_is_none_is_refused(a_folder, wrong):
    with pytest.raises(ModelError, match=r"cannot be read .*; make it again\.$"):
        trained_window(trained_with(a_folder, wrong))


@pytest.mark.parametrize("command", ["segment", "auto"])
@pytest.mark.parametrize(
    ("given", "used", "note"),
    [
        ((), LUNG, None),
        (("--window", "lung"), LUNG, None),
        (
            ("--window", "40/400"),
            {"level": 40, "width": 400},
            "The adapter was trained with the window -600/1500 and sees this image through 40/400; if that is not "
            "meant, leave --window out.",
        ),
    ],
)
def test_a_command_takes_the_adapters_window_and_tells_of_another_one(
    tmp_path, capfd, a_folder, command, given, used, note
):
    pytest.importorskip("peft", reason="adapters need the package peft")
    trained_with(a_folder, LUNG)
    image = write_ct(tmp_path / "ct.nii.gz")
    prompts = ("--prompts", write_prompts(tmp_path / "p.json", box_prompts())) if command == "segment" else ()
    output = ("--output", tmp_path / "out.seg.nrrd")
    outcome = run(capfd, command, image, *output, *prompts, "--adapter", a_folder, *given, "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["window"] == used
    assert [text for text in told["warnings"] if "--window" in text] == ([note] if note else [])
    assert outcome.err.count("trained with the window") == (1 if note else 0)
    assert note is None or f"Note: {note}\n" in outcome.err


def test_an_organ_is_found_whichever_window_the_masks_are_made_with(an_engine, a_phantom):
    with an_engine.open(a_phantom.volume, window=WINDOW_PRESETS["lung"]) as session:
        (verdict,) = list(auto_segment(session, classes=["liver"]))[-1].verdicts
        assert verdict.present
        assert dice(session.mask(verdict.segment), a_phantom.labels == a_phantom.names["liver"]) > 0.9


def test_where_values_are_no_hounsfield_units_the_chosen_window_tells_the_head_their_scale(an_engine, a_phantom):
    prompter = load_self_prompter(an_engine, embedded_adapter("mini"))
    volume, shifted_window = a_phantom.volume, Window(1064, 400)
    shifted = CTVolume.from_array(volume.array + 1024, volume.spacing_ijk, volume.ijk_to_lps)
    assert prompter.window_for(volume, shifted_window) == Window(40, 400)
    assert prompter.window_for(shifted, shifted_window) == shifted_window
