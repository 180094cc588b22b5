"""Attaching a LoRA adapter: peft's own files, merged into the network for inference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from SAM2AssistLib.errors import ModelError

if TYPE_CHECKING:
    import torch
    from sam2.modeling.sam2_base import SAM2Base
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "card.json"


def attach_adapter(model: SAM2Base, folder: Path, base: str) -> SAM2Base:
    """Add an adapter's low-rank updates to the weights of its base model.

    Parameters
    ----------
    model : the base model, with its weights loaded.
    folder : with ``adapter_config.json``, ``adapter_model.safetensors`` and ``card.json``.
    base : name of the base model.

    Returns
    -------
    The same network with the updates merged, so that inference costs nothing more.

    Raises
    ------
    ModelError
        If a file is missing, the adapter is for another base, or its tensors do not fit.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModelError("Adapters need the package peft; install it with: pip install 'sam2assist[train]'.") from error
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is no adapter, because {name} is missing; name a folder that finetune wrote.")
    try:
        made_for = json.loads((folder / CARD_FILE).read_text())["base_model"]
        config = peft.PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS_FILE)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ModelError(f"The adapter in {folder} cannot be read ({error}); make it again.") from error
    if made_for != base:
        raise ModelError(f"The adapter in {folder} is for {made_for}, not for {base}; choose --model {made_for}.")
    try:
        adapted = peft.PeftModel(model, config)
    except (ValueError, TypeError) as error:
        raise ModelError(f"The adapter in {folder} does not fit {base} ({error}); make it again for it.") from error
    wanted = peft.get_peft_model_state_dict(adapted)
    wrong = sorted(k for k in wanted.keys() | weights.keys() if _shape(wanted, k) != _shape(weights, k))
    if wrong:
        raise ModelError(f"The adapter in {folder} does not fit {base}: {wrong[0]} differs; make it again for it.")
    broken = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ModelError(f"The adapter in {folder} is damaged: {broken} is not finite everywhere; make it again.")
    peft.set_peft_model_state_dict(adapted, weights)
    return adapted.merge_and_unload()


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
