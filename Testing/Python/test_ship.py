"""The embedded weights and their card: made together, replaced together, and complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.checkpoint import load_verified
from SAM2AssistLib.errors import OutputError
from SAM2AssistLib.training import ship as module
from SAM2AssistLib.training.ship import ship

MINI = find_model("mini")
TRAINING = {"command": "train", "data": ["phantoms"], "stages": [{"name": "refine", "seed": 3, "steps": 10}]}


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    """The folder of a finished run, with the weights of the package."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_file({name: tensor.float() for name, tensor in load_verified(MINI).items()}, folder / "long.safetensors")
    (folder / "training.json").write_text(json.dumps(TRAINING))
    return folder


@pytest.fixture
def a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the package's weights, which is empty as yet."""
    folder = tmp_path / "weights"
    monkeypatch.setattr(store, "EMBEDDED_FOLDER", folder)
    return folder


def test_shipped_weights_are_those_of_the_run_in_half_precision_and_verified_by_their_card(
    a_run: Path, a_package: Path
) -> None:
    metrics = a_run / "accuracy.json"
    metrics.write_text('{"mean": [0.9]}')
    path = ship(a_run, metrics)
    assert sorted(file.name for file in a_package.iterdir()) == ["mini.card.json", "mini.safetensors"]
    assert store.verify(MINI) == path
    shipped, trained = load_file(path), load_file(a_run / "long.safetensors")
    assert all((shipped[name] == tensor.half()).all() for name, tensor in trained.items())
    card = json.loads((a_package / "mini.card.json").read_text())
    assert card["training"] == TRAINING
    assert card["metrics"] == {"mean": [0.9]}


@pytest.mark.parametrize("broken", ["training.json", "accuracy.json"])
def test_a_run_whose_record_cannot_be_read_changes_neither_weights_nor_card(
    a_run: Path, a_package: Path, broken: str
) -> None:
    metrics = a_run / "accuracy.json"
    metrics.write_text("{}")
    ship(a_run, metrics)
    before = {file.name: file.read_bytes() for file in a_package.iterdir()}
    weights = load_file(a_run / "long.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, a_run / "long.safetensors")
    (a_run / broken).write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        ship(a_run, metrics)
    assert {file.name: file.read_bytes() for file in a_package.iterdir()} == before


@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_fills_up_leaves_the_old_weights_with_their_card(
    a_run: Path, a_package: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    ship(a_run, None)
    monkeypatch.setattr(module, "LIMITS", ("another card",))

    flush, flushed = os.fsync, list[int]()

    def full(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == at:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError):
        ship(a_run, None)
    assert "another card" not in (a_package / "mini.card.json").read_text()
    store.verify(MINI)


def test_the_card_of_the_package_says_what_was_trained_how_and_how_good_it_is() -> None:
    card = json.loads(store.card_path(MINI).read_text())
    assert card["name"] == "mini"
    assert card["sha256"] == store.file_sha256(store.weights_path(MINI))
    assert card["training"]["command"]
    assert card["training"]["data"]
    assert all(stage["steps"] > 0 and isinstance(stage["seed"], int) for stage in card["training"]["stages"])
    assert card["metrics"]
    assert card["limits"]
