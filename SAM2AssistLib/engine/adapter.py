"""Attaching a LoRA adapter: peft's own files, merged into the network for inference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from SAM2AssistLib.engine import store
from SAM2AssistLib.errors import ModelError

if TYPE_CHECKING:
    import torch
    from sam2.modeling.sam2_base import SAM2Base
    from torch import Tensor

    from SAM2AssistLib.engine.catalogue import ModelSpec

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "card.json"


def attach_adapter(model: SAM2Base, folder: Path, spec: ModelSpec) -> SAM2Base:
    """Add an adapter's low-rank updates to the weights of its base model.

    Parameters
    ----------
    model : the base model, with its weights loaded.
    folder : with ``adapter_config.json``, ``adapter_model.safetensors`` and ``card.json``, which names the base
        (``base_model``) and the SHA-256 of its weights (``base_sha256``).
    spec : catalogue entry of the base model.

    Returns
    -------
    The same network with the updates merged, so that inference costs nothing more.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the adapter is for another base or for other weights of it, its tensors do not
        fit, or the package peft is not installed.
    """
    check_adapter_files(folder)
    _check_card(folder, spec)
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModelError("Adapters need the package peft; install it with: pip install peft.") from error
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS_FILE)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    try:
        adapted = peft.PeftModel(model, config)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"The adapter in {folder} does not fit {spec.name} ({error}); make it again for it."
        ) from error
    wanted = peft.get_peft_model_state_dict(adapted)
    wrong = sorted(k for k in wanted.keys() | weights.keys() if _shape(wanted, k) != _shape(weights, k))
    if wrong:
        raise ModelError(f"The adapter in {folder} does not fit {spec.name}: {wrong[0]} differs; make it again for it.")
    broken = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ModelError(f"The adapter in {folder} is damaged: {broken} is not finite everywhere; make it again.")
    peft.set_peft_model_state_dict(adapted, weights)
    return adapted.merge_and_unload()


def check_adapter_files(folder: Path) -> None:
    """Refuse a folder that is no adapter; what is in its files is looked at when they are loaded.

    Raises
    ------
    ModelError
        If a file is missing; the message says which.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is no adapter, because {name} is missing; name a folder that finetune wrote.")


def _check_card(folder: Path, spec: ModelSpec) -> None:
    """Refuse an adapter whose card names another base, or other weights of it than those of this installation."""
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        base, digest = str(card["base_model"]), str(card["base_sha256"]).lower()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _unreadable(folder, error) from error
    if base != spec.name:
        raise ModelError(f"The adapter in {folder} is for {base}, not for {spec.name}; choose --model {base}.")
    if digest != store.expected_sha256(spec):
        raise ModelError(
            f"The adapter in {folder} was made for other weights of {base} (SHA-256 {digest[:16]}…) than those that are"
            " here; make it again for these, or install the version it was made with."
        )


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"The adapter in {folder} cannot be read ({error}); make it again.")


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
