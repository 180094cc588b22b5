"""Where the weights lie on this computer, and how they get there.

Nothing is fetched unless `fetch` or `place` is called. Weights go to ``~/.cache/sam2assist/models``, below
``XDG_CACHE_HOME`` if that is set; ``SAM2ASSIST_CACHE`` names another folder in place of ``~/.cache/sam2assist``. A
model without a published SHA-256 is pinned: the value of the file that was fetched first is written to ``pins.json``
beside the weights and asked for ever after.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.errors import ModelError, OutputError

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes done and the bytes in all (None if not known)."""

EMBEDDED_FOLDER = Path(__file__).resolve().parent / "weights"

_CHUNK = 1 << 20
# Seconds without a single byte before the connection counts as lost; no limit on the whole, so a slow line is fine.
_SILENCE_S = 30.0
_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206


def cache_folder() -> Path:
    """Return the folder for fetched weights; it need not exist."""
    override = os.environ.get("SAM2ASSIST_CACHE", "").strip()
    if override:
        return Path(override).expanduser() / "models"
    caches = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(caches).expanduser() if caches else Path.home() / ".cache") / "sam2assist" / "models"


def weights_path(spec: ModelSpec) -> Path:
    """Return where the weights of a model are, or would be after fetching them."""
    return (EMBEDDED_FOLDER if spec.embedded else cache_folder()) / spec.file_name


def card_path(spec: ModelSpec) -> Path:
    """Return the card beside the weights of an embedded model, e.g. ``mini.card.json``."""
    return weights_path(spec).with_suffix(".card.json")


def is_present(spec: ModelSpec) -> bool:
    """Return whether there is a file for the model; `verify` tells whether it is the right one."""
    return weights_path(spec).is_file()


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file in lower-case hexadecimal, reading it piece by piece.

    Raises
    ------
    ModelError
        If the file cannot be read.
    """
    digest = hashlib.sha256()
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise ModelError(f"The weights {path} cannot be read ({_reason(error)}); name a file that exists.") from error
    return digest.hexdigest()


def expected_sha256(spec: ModelSpec) -> str | None:
    """Return the SHA-256 the weights must have: published, in an embedded model's card, or pinned; None if not known.

    Raises
    ------
    ModelError
        If the card or the pins cannot be read.
    """
    if spec.sha256 is not None:
        return spec.sha256
    if spec.embedded:
        value = _read_json(card_path(spec)).get("sha256")
    else:
        pin = _read_json(_pins_path()).get(spec.name, {}) if _pins_path().exists() else {}
        value = pin.get("sha256") if isinstance(pin, dict) else None
    return value.lower() if isinstance(value, str) else None


def verify(spec: ModelSpec, progress: Progress | None = None) -> Path:
    """Compare the weights on this computer with what they must be, and return their path.

    Raises
    ------
    ModelError
        If they are missing, or differ in size or SHA-256 (the message tells which), or cannot be compared.
    """
    path = weights_path(spec)
    if not path.is_file():
        raise ModelError(missing_message(spec))
    _check(spec, path, expected_sha256(spec), progress)
    return path


def missing_message(spec: ModelSpec) -> str:
    """Return the sentence for a model whose weights are not there."""
    if spec.embedded:
        return f"The weights of {spec.name} are missing from the package ({weights_path(spec)}); install it again."
    return f"The weights of {spec.name} are not on this computer; get them with 'sam2assist models fetch {spec.name}'."


def place(spec: ModelSpec, file: Path, progress: Progress | None = None) -> Path:
    """Copy a weights file the user already has into the cache folder, after verifying it, and return its new path.

    Raises
    ------
    ModelError
        If the model is embedded, or the file is missing or not the published one.
    OutputError
        If the cache folder cannot be written.
    """
    _refuse_embedded(spec)
    if not file.is_file():
        raise ModelError(f"There is no file {file}; name the downloaded weights of {spec.name}.")
    other = f"name another copy, or leave --file out to fetch it from {spec.url}"
    digest = _check(spec, file, expected_sha256(spec) or file_sha256(file), progress, instead=other)
    target = _writable_target(spec, file.stat().st_size)
    partial = _partial(target)
    is_the_part = partial.exists() and partial.samefile(file)  # left by a download, and whole: it only lacks its name
    try:
        if not is_the_part:
            shutil.copyfile(file, partial)
        partial.replace(target)
    except OSError as error:
        if not is_the_part:
            partial.unlink(missing_ok=True)
        raise _unwritable(target, error) from error
    _pin_if_unpublished(spec, digest)
    return target


def fetch(spec: ModelSpec, progress: Progress | None = None) -> Path:
    """Download the weights, verify them and put them in the cache folder; return their path.

    What arrived before an interruption stays beside the target (ending ``.part``) and is continued by the next call.

    Raises
    ------
    ModelError
        If the model is embedded, the address cannot be reached, or what arrived is not the published file.
    OutputError
        If the cache folder cannot be written or the disk has no room.
    """
    _refuse_embedded(spec)
    expected = expected_sha256(spec)
    target = _writable_target(spec, spec.size_bytes or 0)
    partial = _partial(target)
    try:
        _download(spec, partial, progress)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ModelError(
            f"The weights of {spec.name} could not be fetched from {spec.url} ({_reason(error)}); try again online, or "
            f"place a copy you have with 'sam2assist models fetch {spec.name} --file PATH'."
        ) from error
    except OSError as error:
        raise _unwritable(partial, error) from error
    try:
        digest = _check(spec, partial, expected or file_sha256(partial))
    except ModelError:
        # Continuing a download that is already wrong could never end well.
        partial.unlink(missing_ok=True)
        raise
    partial.replace(target)
    _pin_if_unpublished(spec, digest)
    return target


def remove(spec: ModelSpec) -> int:
    """Delete the fetched weights of a model, finished or not, and return the bytes freed. The pinned SHA-256 is kept.

    Raises
    ------
    ModelError
        If the model is embedded, or nothing of it is there.
    OutputError
        If a file cannot be deleted.
    """
    _refuse_embedded(spec)
    target = weights_path(spec)
    present = [path for path in (target, _partial(target)) if path.is_file()]
    if not present:
        raise ModelError(f"Nothing of {spec.name} is on this computer ({target}), so there is nothing to remove.")
    freed = 0
    for path in present:
        size = path.stat().st_size
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path} cannot be deleted ({_reason(error)}); check who owns the folder.") from error
        freed += size
    return freed


def _download(spec: ModelSpec, partial: Path, progress: Progress | None) -> None:
    """Append the missing bytes to ``partial``; start from the beginning where the server does not continue."""
    if spec.url is None:
        raise ModelError(
            f"No address is known for {spec.name}; place a copy with 'sam2assist models fetch {spec.name} --file PATH'."
        )
    have = partial.stat().st_size if partial.exists() else 0
    if have and have == spec.size_bytes:
        return
    request = urllib.request.Request(spec.url, headers={"User-Agent": "sam2assist"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with _network():
            response = urllib.request.urlopen(request, timeout=_SILENCE_S)
    except urllib.error.HTTPError as error:
        if error.code != _NOT_SATISFIABLE or not have:
            raise
        # The part is longer than the file, so it belongs to another one.
        partial.unlink()
        _download(spec, partial, progress)
        return
    with response, partial.open("ab" if response.status == _PARTIAL_CONTENT else "wb") as file:
        _copy(spec, response, file, progress)


def _copy(spec: ModelSpec, response: http.client.HTTPResponse, file: BinaryIO, progress: Progress | None) -> None:
    done = file.tell()
    announced = response.headers.get("Content-Length")
    total = done + int(announced) if announced and announced.isdigit() else spec.size_bytes
    while chunk := _received(response):
        file.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, total)
        if spec.size_bytes is not None and done > spec.size_bytes:
            return  # Too long already; the size check says so, and the disk is not filled.
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _received(response: http.client.HTTPResponse) -> bytes:
    with _network():
        return response.read(_CHUNK)


@contextmanager
def _network() -> Iterator[None]:
    """Tell errors of the connection from those of the disk, which the system gives the same class."""
    try:
        yield
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _check(
    spec: ModelSpec, path: Path, expected: str | None, progress: Progress | None = None, *, instead: str = ""
) -> str:
    """Return the SHA-256 of the file, or raise `ModelError` naming what differs and what to do ``instead``."""
    size = path.stat().st_size
    fetch_again = f"use 'sam2assist models fetch {spec.name} --force'"
    again = instead or ("install SAM2Assist again" if spec.embedded else fetch_again)
    if spec.size_bytes is not None and size != spec.size_bytes:
        raise ModelError(
            f"{path.name} is not the published file of {spec.name}: it has {size:,} bytes and should have "
            f"{spec.size_bytes:,}; {again}."
        )
    if expected is None:
        raise ModelError(f"{path.name} cannot be verified, because no SHA-256 of {spec.name} is known; {again}.")
    digest = file_sha256(path, progress)
    if digest != expected:
        raise ModelError(
            f"{path.name} is not the published file of {spec.name}: its SHA-256 is {digest[:16]}… and should be "
            f"{expected[:16]}…; {again}."
        )
    return digest


def _refuse_embedded(spec: ModelSpec) -> None:
    if spec.embedded:
        raise ModelError(f"The weights of {spec.name} come with the package, so there is nothing to fetch or remove.")


def _writable_target(spec: ModelSpec, size: int) -> Path:
    """Return the target in a folder that exists and has room for ``size`` bytes."""
    target = weights_path(spec)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise OutputError(
            f"The folder {target.parent} cannot be made ({_reason(error)}); choose another with SAM2ASSIST_CACHE."
        ) from error
    partial = _partial(target)
    needed = size - (partial.stat().st_size if partial.exists() else 0)
    if needed > free:
        raise OutputError(
            f"{target.parent} has {free:,} bytes free and {spec.name} needs {needed:,}; choose another folder with "
            "SAM2ASSIST_CACHE."
        )
    return target


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written ({_reason(error)}); choose another folder with SAM2ASSIST_CACHE.")


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _pins_path() -> Path:
    return cache_folder() / "pins.json"


def _pin_if_unpublished(spec: ModelSpec, digest: str) -> None:
    if spec.sha256 is not None:
        return
    path = _pins_path()
    pins = _read_json(path) if path.exists() else {}
    pins.setdefault(spec.name, {"sha256": digest, "url": spec.url, "file": spec.file_name})
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(pins, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({_reason(error)}), so weights cannot be verified; restore it."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object, so the weights cannot be verified; restore it.")
    return content


def _reason(error: BaseException) -> str:
    """Return the reason of an error without the decoration of its class, for use inside a sentence."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return text.strip().rstrip(".") or type(inner).__name__
