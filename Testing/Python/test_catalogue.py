"""The catalogue of models and the store of their weights, against a small web server on this computer."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.client
import http.server
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from SAM2AssistLib.engine import catalogue, store
from SAM2AssistLib.engine.catalogue import CATALOGUE, ModelSpec, find_model
from SAM2AssistLib.errors import ModelError, OutputError

WEIGHTS = bytes(range(256)) * 64


@dataclasses.dataclass
class Publisher:
    """A web server that serves one file and remembers which ranges were asked for."""

    url: str
    content: bytes = WEIGHTS
    honours_ranges: bool = True
    drops_after: int | None = None
    ranges: list[str | None] = dataclasses.field(default_factory=list)


@pytest.fixture
def a_publisher() -> Iterator[Publisher]:
    publisher = Publisher(url="")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name is the server's
            asked = self.headers.get("Range")
            publisher.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and publisher.honours_ranges else 0
            if not self.path.endswith("tiny.pt"):
                self.send_error(404)
            elif start >= len(publisher.content):
                self.send_error(416)
            else:
                body = publisher.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: publisher.drops_after])

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # some tests leave in mid-download
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    publisher.url = f"http://127.0.0.1:{server.server_port}/tiny.pt"
    yield publisher
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def a_published_model(a_publisher: Publisher) -> ModelSpec:
    return dataclasses.replace(
        find_model("sam2.1-tiny"),
        url=a_publisher.url,
        file_name="tiny.pt",
        size_bytes=len(WEIGHTS),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )


@pytest.fixture
def an_unpublished_model(a_published_model: ModelSpec) -> ModelSpec:
    return dataclasses.replace(a_published_model, size_bytes=None, sha256=None)


def test_every_model_has_its_own_name_a_licence_and_a_source() -> None:
    assert len({spec.name for spec in CATALOGUE}) == len(CATALOGUE)
    assert all(spec.licence and spec.source and spec.note and spec.title for spec in CATALOGUE)


def test_every_model_to_be_fetched_has_an_https_address_that_ends_in_its_file_name_and_a_sha256() -> None:
    for spec in CATALOGUE:
        if not spec.embedded:
            assert spec.url is not None
            assert spec.url.startswith("https://")
            assert spec.url.endswith("/" + spec.file_name)
            assert spec.sha256 is not None
            assert len(bytes.fromhex(spec.sha256)) == 32
            assert spec.sha256 == spec.sha256.lower()


def test_published_sizes_agree_with_the_parameter_counts() -> None:
    for spec in CATALOGUE:
        if spec.size_bytes is not None:
            assert spec.parameters * 4 < spec.size_bytes < spec.parameters * 4 * 1.01


@pytest.mark.parametrize("name", ["mini", "sam2.1-tiny", "medsam2"])
def test_the_parameter_counts_are_those_of_the_networks(name: str) -> None:
    architecture = pytest.importorskip("SAM2AssistLib.engine.architecture")
    spec = find_model(name)
    model = architecture.build_sam2(spec.architecture, spec.image_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters


def test_every_architecture_named_in_the_catalogue_exists() -> None:
    architecture = pytest.importorskip("SAM2AssistLib.engine.architecture")
    assert {spec.architecture for spec in CATALOGUE} <= set(architecture.ARCHITECTURES)


def test_a_model_is_found_by_its_name_in_any_case() -> None:
    assert find_model("MedSAM2") is find_model("medsam2")


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ModelError, match=r"no model 'sam2\.1-tinny'; choose sam2\.1-tiny"):
        find_model("sam2.1-tinny")
    with pytest.raises(ModelError, match="choose mini or sam2"):
        find_model("zzz")


def test_the_catalogue_and_the_store_are_imported_without_torch() -> None:
    code = "import sys, SAM2AssistLib.cli.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_cache_follows_the_override_then_xdg_then_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.cache_folder() == tmp_path / "cache" / "models"
    monkeypatch.delenv("SAM2ASSIST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_folder() == tmp_path / "xdg" / "sam2assist" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / ".cache" / "sam2assist" / "models"


def test_the_embedded_weights_are_those_of_their_card() -> None:
    spec = find_model("mini")
    if not store.is_present(spec):
        pytest.skip("the embedded weights are not in this checkout")
    assert store.verify(spec) == store.weights_path(spec)
    assert store.weights_path(spec).stat().st_size <= 20_000_000


def test_fetching_puts_the_verified_file_in_the_cache_and_leaves_nothing_else(
    a_published_model: ModelSpec, an_empty_cache: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    path = store.fetch(a_published_model, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert [file.name for file in an_empty_cache.iterdir()] == ["tiny.pt"]
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert store.verify(a_published_model) == path


def test_an_interrupted_download_is_continued_where_it_stopped(
    a_published_model: ModelSpec, a_publisher: Publisher, an_empty_cache: Path
) -> None:
    a_publisher.drops_after = 1000
    with pytest.raises(ModelError, match=r"after 1000 of 16384 bytes.*--file PATH"):
        store.fetch(a_published_model)
    assert not store.is_present(a_published_model)
    a_publisher.drops_after = None
    assert store.fetch(a_published_model).read_bytes() == WEIGHTS
    assert a_publisher.ranges == [None, "bytes=1000-"]


def test_a_server_that_cannot_continue_is_asked_for_the_whole_file(
    a_published_model: ModelSpec, a_publisher: Publisher, an_empty_cache: Path
) -> None:
    a_publisher.honours_ranges = False
    an_empty_cache.mkdir(parents=True)
    (an_empty_cache / "tiny.pt.part").write_bytes(WEIGHTS[:500])
    assert store.fetch(a_published_model).read_bytes() == WEIGHTS


def test_a_part_that_is_longer_than_the_file_is_begun_anew(a_published_model: ModelSpec, an_empty_cache: Path) -> None:
    an_empty_cache.mkdir(parents=True)
    (an_empty_cache / "tiny.pt.part").write_bytes(WEIGHTS + b"more")
    assert store.fetch(a_published_model).read_bytes() == WEIGHTS


def test_a_part_that_is_already_complete_is_used_without_the_network(
    a_published_model: ModelSpec, an_empty_cache: Path
) -> None:
    an_empty_cache.mkdir(parents=True)
    (an_empty_cache / "tiny.pt.part").write_bytes(WEIGHTS)
    offline = dataclasses.replace(a_published_model, url="http://127.0.0.1:1/tiny.pt")
    assert store.fetch(offline).read_bytes() == WEIGHTS


@pytest.mark.parametrize("content", [b"x" * len(WEIGHTS), WEIGHTS + b"x", WEIGHTS[:-1]])
def test_a_download_that_is_not_the_published_file_is_refused_and_not_kept(
    a_published_model: ModelSpec, a_publisher: Publisher, an_empty_cache: Path, content: bytes
) -> None:
    a_publisher.content = content
    with pytest.raises(ModelError, match=r"not the published file of sam2\.1-tiny: (its SHA-256 is|it has 16,38)"):
        store.fetch(a_published_model)
    assert list(an_empty_cache.iterdir()) == []


def test_a_refused_download_leaves_the_earlier_weights_alone(
    a_published_model: ModelSpec, a_publisher: Publisher
) -> None:
    path = store.fetch(a_published_model)
    a_publisher.content = b"x" * len(WEIGHTS)
    with pytest.raises(ModelError, match="SHA-256"):
        store.fetch(a_published_model)
    assert path.read_bytes() == WEIGHTS


def test_without_a_network_one_sentence_tells_how_to_place_the_file_by_hand(a_published_model: ModelSpec) -> None:
    offline = dataclasses.replace(a_published_model, url="http://127.0.0.1:1/tiny.pt")
    with pytest.raises(
        ModelError, match=r"could not be fetched from http://127.*models fetch sam2\.1-tiny --file PATH"
    ):
        store.fetch(offline)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "EOF occurred in violation of protocol"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("timed out"), "timed out"),
    ],
    ids=["protocol", "route", "reset", "silence"],
)
@pytest.mark.parametrize("moment", ["begin", "read"])
def test_a_connection_that_fails_at_any_moment_is_not_taken_for_a_fault_of_the_disk(
    a_published_model: ModelSpec, monkeypatch: pytest.MonkeyPatch, fault: OSError, reason: str, moment: str
) -> None:
    monkeypatch.setattr(http.client.HTTPResponse, moment, _refused(fault))
    with pytest.raises(ModelError, match=rf"could not be fetched from http.*\({reason}\); try again online"):
        store.fetch(a_published_model)


def test_a_disk_that_fails_while_weights_arrive_is_not_taken_for_a_fault_of_the_connection(
    a_published_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", _refused(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutputError, match=r"tiny\.pt\.part cannot be written \(No space left on device\)"):
        store.fetch(a_published_model)


def _refused(fault: OSError) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise fault

    return fail


def test_an_address_without_the_file_is_told_with_the_answer_of_the_server(a_published_model: ModelSpec) -> None:
    gone = dataclasses.replace(a_published_model, url=f"{a_published_model.url}.gone")
    with pytest.raises(ModelError, match="the server answered 404"):
        store.fetch(gone)


def test_a_cache_that_cannot_be_made_is_told_before_anything_is_fetched(
    a_published_model: ModelSpec, a_publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(OutputError, match="cannot be made .*SAM2ASSIST_CACHE"):
        store.fetch(a_published_model)
    assert a_publisher.ranges == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    a_published_model: ModelSpec, a_publisher: Publisher
) -> None:
    huge = dataclasses.replace(a_published_model, size_bytes=10**18)
    with pytest.raises(OutputError, match=r"bytes free and sam2\.1-tiny needs"):
        store.fetch(huge)
    assert a_publisher.ranges == []


def test_a_model_without_a_published_sha256_is_pinned_on_the_first_fetch_and_verified_from_then_on(
    an_unpublished_model: ModelSpec, a_publisher: Publisher, an_empty_cache: Path
) -> None:
    assert store.expected_sha256(an_unpublished_model) is None
    path = store.fetch(an_unpublished_model)
    assert store.expected_sha256(an_unpublished_model) == hashlib.sha256(WEIGHTS).hexdigest()
    path.write_bytes(b"tampered")
    with pytest.raises(ModelError, match="its SHA-256 is"):
        store.verify(an_unpublished_model)
    a_publisher.content = b"another file"
    with pytest.raises(ModelError, match="its SHA-256 is"):
        store.fetch(an_unpublished_model)


def test_the_pin_outlives_the_removal_of_the_weights(an_unpublished_model: ModelSpec) -> None:
    store.fetch(an_unpublished_model)
    store.remove(an_unpublished_model)
    assert store.expected_sha256(an_unpublished_model) == hashlib.sha256(WEIGHTS).hexdigest()


def test_weights_that_were_never_pinned_cannot_be_verified(
    an_unpublished_model: ModelSpec, an_empty_cache: Path
) -> None:
    an_empty_cache.mkdir(parents=True)
    store.weights_path(an_unpublished_model).write_bytes(WEIGHTS)
    with pytest.raises(ModelError, match="cannot be verified, because no SHA-256"):
        store.verify(an_unpublished_model)


@pytest.mark.parametrize("pins", ["not json", "[1]"])
def test_damaged_pins_are_told_and_not_overwritten(
    an_unpublished_model: ModelSpec, an_empty_cache: Path, pins: str
) -> None:
    an_empty_cache.mkdir(parents=True)
    (an_empty_cache / "pins.json").write_text(pins)
    with pytest.raises(ModelError, match=r"pins\.json .*restore it"):
        store.fetch(an_unpublished_model)
    assert (an_empty_cache / "pins.json").read_text() == pins


def test_a_file_the_user_has_is_copied_after_it_is_verified(a_published_model: ModelSpec, tmp_path: Path) -> None:
    own = tmp_path / "downloaded by hand.bin"
    own.write_bytes(WEIGHTS)
    assert store.place(a_published_model, own).read_bytes() == WEIGHTS
    assert own.exists()


@pytest.mark.parametrize("as_a_link", [False, True])
def test_the_finished_part_of_a_download_can_be_given_and_is_not_lost(
    a_published_model: ModelSpec, an_empty_cache: Path, tmp_path: Path, as_a_link: bool
) -> None:
    an_empty_cache.mkdir(parents=True)
    given = part = an_empty_cache / "tiny.pt.part"
    part.write_bytes(WEIGHTS)
    if as_a_link:
        given = tmp_path / "link.pt"
        given.symlink_to(part)
    assert store.place(a_published_model, given).read_bytes() == WEIGHTS
    assert [file.name for file in an_empty_cache.iterdir()] == ["tiny.pt"]


def test_a_finished_part_that_cannot_be_renamed_stays(
    a_published_model: ModelSpec, an_empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_empty_cache.mkdir(parents=True)
    part = an_empty_cache / "tiny.pt.part"
    part.write_bytes(WEIGHTS)
    monkeypatch.setattr(Path, "replace", _refused(OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(OutputError, match="cannot be written .Read-only file system"):
        store.place(a_published_model, part)
    assert part.read_bytes() == WEIGHTS


def test_a_wrong_file_of_the_user_is_refused_and_not_copied(a_published_model: ModelSpec, tmp_path: Path) -> None:
    own = tmp_path / "wrong.pt"
    own.write_bytes(b"x" * len(WEIGHTS))
    with pytest.raises(ModelError, match=r"wrong\.pt is not the published file"):
        store.place(a_published_model, own)
    with pytest.raises(ModelError, match="There is no file"):
        store.place(a_published_model, tmp_path / "absent.pt")
    assert not store.is_present(a_published_model)


def test_a_file_already_at_its_place_in_the_cache_can_be_given(
    a_published_model: ModelSpec, an_empty_cache: Path
) -> None:
    an_empty_cache.mkdir(parents=True)
    target = store.weights_path(a_published_model)
    target.write_bytes(WEIGHTS)
    assert store.place(a_published_model, target).read_bytes() == WEIGHTS


def test_missing_weights_are_told_with_the_command_that_gets_them(a_published_model: ModelSpec) -> None:
    with pytest.raises(ModelError, match=r"not on this computer; get them with 'sam2assist models fetch sam2\.1-tiny'"):
        store.verify(a_published_model)


def test_truncated_weights_are_told_by_their_size(a_published_model: ModelSpec) -> None:
    store.fetch(a_published_model).write_bytes(WEIGHTS[:-1])
    with pytest.raises(ModelError, match="it has 16,383 bytes and should have 16,384"):
        store.verify(a_published_model)


def test_removing_tells_the_bytes_freed_including_a_part(a_published_model: ModelSpec, an_empty_cache: Path) -> None:
    store.fetch(a_published_model)
    (an_empty_cache / "tiny.pt.part").write_bytes(b"12345")
    assert store.remove(a_published_model) == len(WEIGHTS) + 5
    assert list(an_empty_cache.iterdir()) == []
    with pytest.raises(ModelError, match="nothing to remove"):
        store.remove(a_published_model)


def test_embedded_weights_are_neither_fetched_nor_placed_nor_removed(tmp_path: Path) -> None:
    mini = find_model("mini")
    for act in (lambda: store.fetch(mini), lambda: store.place(mini, tmp_path), lambda: store.remove(mini)):
        with pytest.raises(ModelError, match="come with the package"):
            act()


def test_embedded_weights_are_compared_with_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "EMBEDDED_FOLDER", tmp_path)
    mini = find_model("mini")
    (tmp_path / "mini.safetensors").write_bytes(WEIGHTS)
    with pytest.raises(ModelError, match=r"mini\.card\.json cannot be read"):
        store.verify(mini)
    (tmp_path / "mini.card.json").write_text(json.dumps({"sha256": hashlib.sha256(WEIGHTS).hexdigest()}))
    assert store.verify(mini) == tmp_path / "mini.safetensors"
    (tmp_path / "mini.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(ModelError, match="not the published file of mini: its SHA-256"):
        store.verify(mini)


def test_the_catalogue_says_what_licence_medsam2_has() -> None:
    assert "research" in find_model("medsam2").licence
    assert catalogue.model_names()[0] == "mini"
