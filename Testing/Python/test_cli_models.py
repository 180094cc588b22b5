"""``sam2assist models`` as a user types it, without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from SAM2AssistLib.cli.models import models_app
from SAM2AssistLib.engine import catalogue, store
from SAM2AssistLib.errors import ModelError

WEIGHTS = b"numbers" * 100


@pytest.fixture(autouse=True)
def a_small_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiny be a small file whose publisher cannot be reached, and mini be a small embedded file."""
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(store, "EMBEDDED_FOLDER", tmp_path)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    (tmp_path / "mini.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "mini.card.json").write_text(json.dumps({"sha256": sha256}))
    tiny = dataclasses.replace(
        catalogue.find_model("sam2.1-tiny"),
        url="http://127.0.0.1:1/tiny.pt",
        file_name="tiny.pt",
        size_bytes=len(WEIGHTS),
        sha256=sha256,
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (catalogue.find_model("mini"), tiny, catalogue.find_model("medsam2")))


@pytest.fixture
def own_copy(tmp_path: Path) -> str:
    path = tmp_path / "own.pt"
    path.write_bytes(WEIGHTS)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models_app, list(arguments))


def run_json(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_the_list_shows_names_sizes_licences_and_what_is_here() -> None:
    text = run("list").stdout
    assert "mini" in text
    assert "yes, embedded" in text
    assert "156 MB" in text
    assert "CC-BY-SA-4.0, research and education only" in text


def test_the_list_as_json_is_one_object_with_every_model(own_copy: str) -> None:
    before = {model["name"]: model["present"] for model in run_json("list")["models"]}
    assert before == {"mini": True, "sam2.1-tiny": False, "medsam2": False}
    run("fetch", "sam2.1-tiny", "--file", own_copy)
    after = {model["name"]: model for model in run_json("list")["models"]}
    assert after["sam2.1-tiny"]["present"]
    assert after["sam2.1-tiny"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert Path(after["sam2.1-tiny"]["path"]).read_bytes() == WEIGHTS


def test_a_copy_the_user_has_is_placed_verified_and_removed(own_copy: str) -> None:
    assert "was copied and is verified" in run("fetch", "sam2.1-tiny", "--file", own_copy).stdout
    assert "sam2.1-tiny: verified" in run("verify", "sam2.1-tiny").stdout
    assert "was there already" in run("fetch", "sam2.1-tiny").stdout
    assert run_json("remove", "sam2.1-tiny") == {"name": "sam2.1-tiny", "freed_bytes": len(WEIGHTS)}
    assert isinstance(run("verify", "sam2.1-tiny").exception, ModelError)


def test_a_copy_of_something_else_is_refused_with_where_to_get_the_right_one(own_copy: str) -> None:
    Path(own_copy).write_bytes(WEIGHTS[::-1])
    result = run("fetch", "sam2.1-tiny", "--file", own_copy)
    assert isinstance(result.exception, ModelError)
    assert "name another copy, or leave --file out to fetch it from http://127.0.0.1:1/tiny.pt" in str(result.exception)
    assert "--force" not in str(result.exception)
    assert not run_json("list")["models"][1]["present"]


def test_fetching_without_a_network_tells_how_to_place_the_file() -> None:
    result = run("fetch", "sam2.1-tiny", "--json")
    assert isinstance(result.exception, ModelError)
    assert "--file PATH" in str(result.exception)
    assert result.stdout == ""


def test_weights_that_are_damaged_on_disk_are_refused_until_fetched_by_force(own_copy: str) -> None:
    run("fetch", "sam2.1-tiny", "--file", own_copy)
    store.weights_path(catalogue.find_model("sam2.1-tiny")).write_bytes(WEIGHTS[::-1])
    result = run("fetch", "sam2.1-tiny")
    assert isinstance(result.exception, ModelError)
    assert "--force" in str(result.exception)
    assert "could not be fetched" in str(run("fetch", "sam2.1-tiny", "--force").exception)


def test_verify_looks_at_everything_that_is_here_and_fails_if_one_differs(own_copy: str) -> None:
    run("fetch", "sam2.1-tiny", "--file", own_copy)
    assert run_json("verify")["verified"]
    store.weights_path(catalogue.find_model("sam2.1-tiny")).write_bytes(b"short")
    result = run("verify", "--json")
    assert isinstance(result.exception, ModelError)
    report = {model["name"]: model for model in json.loads(result.stdout)["models"]}
    assert report["mini"]["verified"]
    assert "it has 5 bytes" in report["sam2.1-tiny"]["reason"]
    assert "sam2.1-tiny: not verified" in run("verify").stdout


def test_a_folder_whose_name_looks_like_markup_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_copy: str
) -> None:
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path / "[red] [" / "b]"))
    assert "[red] [/b]" in run("list").stdout
    assert "[red] [/b]" in run("fetch", "sam2.1-tiny", "--file", own_copy).stdout


@pytest.mark.parametrize("command", ["fetch", "remove"])
def test_the_embedded_model_is_neither_fetched_nor_removed(command: str) -> None:
    assert "come with the package" in str(run(command, "mini").exception)


@pytest.mark.parametrize("command", ["fetch", "verify", "remove"])
def test_an_unknown_name_is_refused_with_a_suggestion(command: str) -> None:
    assert "choose medsam2" in str(run(command, "medsam").exception)


def test_nothing_is_written_by_listing_and_verifying(tmp_path: Path) -> None:
    run("list")
    run("verify")
    assert not (tmp_path / "cache").exists()
