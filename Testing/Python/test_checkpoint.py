"""Reading weights: what is right is read, what is wrong is refused by name, and nothing in a file is ever run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402 - torch first, or the test is skipped

from SAM2AssistLib.engine import store  # noqa: E402
from SAM2AssistLib.engine.catalogue import find_model  # noqa: E402
from SAM2AssistLib.engine.checkpoint import check_fits, load_state, load_verified  # noqa: E402
from SAM2AssistLib.errors import ModelError  # noqa: E402


class Malicious:
    """Pickles to a command that leaves a trace when it is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.trace}'",)


@pytest.fixture
def a_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_equal_states(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pytorch_checkpoint_gives_back_its_tensors(tmp_path: Path, a_network: torch.nn.Module, wrapped: bool) -> None:
    state = a_network.state_dict()
    path = tmp_path / "weights.pt"
    torch.save({"model": state} if wrapped else state, path)
    assert_equal_states(load_state(path, sha256(path)), state)
    assert_equal_states(load_state(path, sha256(path).upper()), state)


@pytest.mark.parametrize("verified", [True, False])
def test_a_safetensors_file_gives_back_its_tensors(tmp_path: Path, a_network: torch.nn.Module, verified: bool) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(a_network.state_dict(), path)
    assert_equal_states(load_state(path, sha256(path) if verified else None), a_network.state_dict())


def test_half_precision_weights_fit_and_load_into_single_precision(tmp_path: Path, a_network: torch.nn.Module) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: value.half() for key, value in a_network.state_dict().items()}, path)
    state = load_state(path, None)
    check_fits(state, a_network)
    a_network.load_state_dict(state)
    assert a_network[0].weight.dtype == torch.float32


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There are no weights at"):
        load_state(tmp_path / "absent.pt", "0" * 64)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_tampered_file_is_refused_by_its_sha256(tmp_path: Path, a_network: torch.nn.Module, name: str) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(a_network.state_dict(), path)
    expected = sha256(path)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} differs .* should be {expected[:16]}"):
        load_state(path, expected)


def test_a_pickle_is_not_opened_without_a_known_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    trace = tmp_path / "trace"
    path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(ModelError, match="not opened, because no SHA-256 is known"):
        load_state(path, None)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_never_runs_even_when_its_sha256_is_expected(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    if zipped:
        torch.save({"model": {"weight": Malicious(trace)}}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Malicious(trace)}))
    with pytest.raises(ModelError, match=r"weights\.pt holds more than tensors and is not opened"):
        load_state(path, sha256(path))
    assert not trace.exists()


def test_the_malicious_file_of_these_tests_would_have_left_a_trace(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, a_network: torch.nn.Module, name: str, keep: float) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(a_network.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ModelError, match=rf"{name} (is no complete|holds more than tensors)"):
        load_state(path, sha256(path))


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_foreign_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("This is a letter, not a network.\n" * 20)
    with pytest.raises(ModelError, match=name):
        load_state(path, sha256(path))


def test_a_zip_archive_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ModelError, match=r"weights\.pt is no complete PyTorch checkpoint"):
        load_state(path, sha256(path))


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"model": {"weight": 1.0}}, {1: torch.zeros(2)}])
def test_a_checkpoint_without_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"weights\.pt holds (no tensors by name|.*which is no tensor)"):
        load_state(path, sha256(path))


def test_the_weights_of_the_same_network_fit(a_network: torch.nn.Module) -> None:
    check_fits(a_network.state_dict(), a_network)


def test_weights_that_do_not_fit_are_refused_by_what_differs_first(a_network: torch.nn.Module) -> None:
    state = dict(a_network.state_dict())
    with pytest.raises(ModelError, match=r"mini does not fit the model: 1\.bias is missing;"):
        check_fits({key: value for key, value in state.items() if key != "1.bias"}, a_network, "mini")
    with pytest.raises(ModelError, match=r"0\.weight is missing \(and 3 more\)"):
        check_fits({"else": torch.zeros(1)}, a_network)
    with pytest.raises(ModelError, match="head is unknown"):
        check_fits(state | {"head": torch.zeros(1)}, a_network)
    with pytest.raises(ModelError, match=r"0\.bias has shape \(5,\) and should have \(4,\)"):
        check_fits(state | {"0.bias": torch.zeros(5)}, a_network)
    with pytest.raises(ModelError, match=r"0\.bias is torch\.int64 and should be torch\.float32"):
        check_fits(state | {"0.bias": torch.zeros(4, dtype=torch.int64)}, a_network)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(a_network: torch.nn.Module, value: float) -> None:
    state = a_network.state_dict() | {"0.bias": torch.full((4,), value)}
    with pytest.raises(ModelError, match=r"damaged: 0\.bias holds values that are not finite"):
        check_fits(state, a_network)


def test_a_catalogue_model_is_loaded_from_the_cache_after_verification(
    tmp_path: Path, a_network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path))
    own = tmp_path / "own.pt"
    torch.save({"model": a_network.state_dict()}, own)
    spec = dataclasses.replace(find_model("sam2.1-tiny"), sha256=sha256(own), size_bytes=own.stat().st_size)
    with pytest.raises(ModelError, match="models fetch"):
        load_verified(spec)
    path = store.place(spec, own)
    assert_equal_states(load_verified(spec), a_network.state_dict())
    path.write_bytes(own.read_bytes()[:-1])
    with pytest.raises(ModelError, match="bytes and should have"):
        load_verified(spec)


def test_a_cached_model_without_a_known_sha256_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path))
    spec = dataclasses.replace(find_model("sam2.1-tiny"), sha256=None, size_bytes=None)
    path = store.weights_path(spec)
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "trace")))
    with pytest.raises(ModelError, match=r"no SHA-256 of sam2\.1-tiny is known"):
        load_verified(spec)
    assert not (tmp_path / "trace").exists()


def test_embedded_weights_are_loaded_only_if_they_are_those_of_their_card(
    tmp_path: Path, a_network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "EMBEDDED_FOLDER", tmp_path)
    spec = find_model("mini")
    save_file(a_network.state_dict(), tmp_path / spec.file_name)
    store.card_path(spec).write_text(json.dumps({"sha256": sha256(tmp_path / spec.file_name)}))
    assert_equal_states(load_verified(spec), a_network.state_dict())
    store.card_path(spec).write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ModelError, match=r"mini\.safetensors differs"):
        load_verified(spec)
