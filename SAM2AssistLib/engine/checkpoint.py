"""Reading weights without trusting them.

A ``.safetensors`` file holds plain numbers. Any other checkpoint is a pickle, which can run code when it is opened; it
is opened only after its SHA-256 is the expected one, and even then with ``weights_only=True``, which admits tensors and
plain containers.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.engine.refiner import PREFIX
from SAM2AssistLib.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_state(path: str | Path, expected_sha256: str | None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint onto the CPU.

    Parameters
    ----------
    path
        A ``.safetensors`` file or a PyTorch checkpoint (``{"model": {...}}`` as SAM 2 publishes it, or the tensors
        alone).
    expected_sha256
        What the file must have. None is accepted for a ``.safetensors`` file only.

    Raises
    ------
    ModelError
        If the file is missing, differs from the expected one, is damaged, or holds anything but tensors.
    """
    path = Path(path)
    is_safetensors = path.suffix == ".safetensors"
    if not path.is_file():
        raise ModelError(f"There are no weights at {path}; fetch them or name another file.")
    if expected_sha256 is None and not is_safetensors:
        raise ModelError(
            f"{path.name} is not opened, because no SHA-256 is known for it; fetch it by its model's name."
        )
    if expected_sha256 is not None:
        digest = store.file_sha256(path)
        if digest != expected_sha256.lower():
            raise ModelError(
                f"{path.name} differs from what was published: its SHA-256 is {digest[:16]}… and should be "
                f"{expected_sha256.lower()[:16]}…; fetch it again."
            )
    return _read_safetensors(path) if is_safetensors else _read_pickle(path)


def load_verified(spec: ModelSpec) -> dict[str, Tensor]:
    """Read SAM2's tensors of a catalogue model from this computer, after verifying them.

    Raises
    ------
    ModelError
        As `load_everything`.
    """
    return {name: tensor for name, tensor in load_everything(spec).items() if not name.startswith(PREFIX)}


def load_everything(spec: ModelSpec) -> dict[str, Tensor]:
    """Read the tensors of a catalogue model, those of its refiner among them, after verifying them.

    Raises
    ------
    ModelError
        As `load_state`, and if the weights have not been fetched.
    """
    path = store.weights_path(spec)
    if not path.is_file():
        raise ModelError(store.missing_message(spec))
    if spec.size_bytes is not None and path.stat().st_size != spec.size_bytes:
        store.verify(spec)  # Raises the sentence that names both sizes.
    expected = store.expected_sha256(spec)
    if expected is None:
        raise ModelError(f"{path.name} is not opened, because no SHA-256 of {spec.name} is known; fetch it again.")
    return load_state(path, expected)


def check_fits(state: Mapping[str, Tensor], model: nn.Module, name: str = "The checkpoint") -> None:
    """Refuse weights that are not those of this network.

    Parameters
    ----------
    state
        Tensors by parameter name. Half precision fits single precision: loading converts.
    model
        The network they are meant for.
    name
        What to call the weights in the message.

    Raises
    ------
    ModelError
        Naming the first missing, foreign, or differently shaped tensor, or one with values that are not finite.
    """
    wanted = model.state_dict()
    difference = _first_difference(state, wanted)
    if difference is not None:
        raise ModelError(f"{name} does not fit the model: {difference}; choose the model it is for.")
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"{name} is damaged: {key} holds values that are not finite; fetch it again.")


def _first_difference(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Return in words where the tensors differ in names, shapes or kind of number; None if nowhere."""
    missing = [key for key in wanted if key not in state]
    if missing:
        return f"{missing[0]} is missing{_and_more(missing)}"
    foreign = [key for key in state if key not in wanted]
    if foreign:
        return f"{foreign[0]} is unknown{_and_more(foreign)}"
    for key, tensor in wanted.items():
        given = state[key]
        if given.shape != tensor.shape:
            return f"{key} has shape {tuple(given.shape)} and should have {tuple(tensor.shape)}"
        if given.is_floating_point() != tensor.is_floating_point():
            return f"{key} is {given.dtype} and should be {tensor.dtype}"
    return None


def _and_more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.name} is no complete safetensors file ({_reason(error)}); fetch it again.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path.name} holds more than tensors and is not opened; use its publisher's file.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path.name} is no complete PyTorch checkpoint ({_reason(error)}); fetch it again."
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name, out of ``{"model": ...}`` if they are wrapped so."""
    import torch

    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{path.name} holds no tensors by name; use its publisher's file.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ModelError(f"{path.name} holds {key!r}, which is no tensor; use its publisher's file.")
    return dict(content)


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")
