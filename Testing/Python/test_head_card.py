"""A card that was tampered with is refused in one sentence; the head in the package is read with its own window."""

from __future__ import annotations

import json
import shutil

import pytest

from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.self_prompt import embedded_adapter, load_self_prompter
from SAM2AssistLib.volume import Window


@pytest.fixture
def a_folder(tmp_path):
    """A copy of the adapter in the package that a test may spoil."""
    return shutil.copytree(embedded_adapter("mini"), tmp_path / "adapter")


def with_head(folder, **changes):
    """Change what the card says of the head; returns the folder."""
    path = folder / "card.json"
    card = json.loads(path.read_text())
    card["self_prompt"] |= changes
    path.write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    "wrong",
    [
        {"presence": {"spleen": 0.5}},
        {"presence": None},
        {"presence": []},
        {"presence": {"liver": "high"}, "classes": ["liver"]},
        {"presence": {"liver": 1.5}, "classes": ["liver"]},
        {"presence": {"liver": float("nan")}, "classes": ["liver"]},
        {"channels": "abc"},
        {"channels": None},
        {"channels": []},
        {"channels": [128, 32]},
        {"channels": [128, 32, -1]},
        {"width": None},
        {"width": "wide"},
        {"width": 0},
        {"width": -48},
        {"known": None},
        {"known": ["liver"]},
        {"classes": 8},
        {"least_ml": None},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_card_that_was_tampered_with_is_refused_in_one_sentence(an_engine, a_folder, wrong):
    with pytest.raises(ModelError, match=r"(is incomplete or wrong \(|does not fit).*; make the adapter again\.$"):
        load_self_prompter(an_engine, with_head(a_folder, **wrong))


def test_a_card_that_lacks_an_entry_is_refused_and_the_entry_named(an_engine, a_folder):
    path = a_folder / "card.json"
    card = json.loads(path.read_text())
    del card["self_prompt"]["channels"]
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match="lacks 'channels' of the head"):
        load_self_prompter(an_engine, a_folder)


def test_the_window_of_a_head_is_that_of_its_card_or_the_abdominal_one(an_engine, a_folder):
    assert load_self_prompter(an_engine, a_folder).window == Window(40, 400)
    path = a_folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"window": {"level": -20, "width": 350}}))
    assert load_self_prompter(an_engine, a_folder).window == Window(-20, 350)
