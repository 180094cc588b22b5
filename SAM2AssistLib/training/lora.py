"""LoRA on SAM2's own modules by peft: what is adapted, attaching it, and writing the adapter's folder.

    recipe = LoraRecipe(rank=8)
    adapted = attach_lora(model, recipe)          # only the adapter trains; `adapted.base_model.model` is the SAM2
    ...
    save_adapter(adapted, folder, base_card(spec) | {"classes": [...]}, heads={"self_prompt": head})
    engine = load_engine("mini", adapter=folder)  # merged, so that inference costs nothing more

The folder is that of the design: ``adapter_config.json`` and ``adapter_model.safetensors`` of peft, ``card.json``
(whose base and SHA-256 `SAM2AssistLib.engine.adapter` checks), and further heads as ``NAME.safetensors`` beside them.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685); that q and v are what
is adapted follows SAMed (Zhang and Liu 2023, arXiv 2304.13785).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from SAM2AssistLib import __version__
from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.engine.split_qkv import split_qkv
from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.io.atomic import atomic_paths, make_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from sam2.modeling.sam2_base import SAM2Base

TARGETS = {
    "encoder": r"image_encoder\.trunk\.blocks\.\d+\.attn\.qkv\.(q|v)",
    "memory": r"memory_attention\.layers\.\d+\.(self_attn|cross_attn_image)\.(q_proj|v_proj)",
    "decoder": r"sam_mask_decoder\.transformer\..*(q_proj|v_proj)",
}
"""Where low-rank updates can go: q and v of the attentions of these parts."""

WHOLE = {
    "encoder": ("image_encoder.trunk",),
    "neck": ("image_encoder.neck",),
    "prompt": ("sam_prompt_encoder",),
    "decoder": ("sam_mask_decoder",),
    "memory": ("memory_attention", "memory_encoder", "obj_ptr_proj", "obj_ptr_tpos_proj"),
}
"""Parts that can be trained as a whole, with a copy of them in the adapter."""


@dataclass(frozen=True)
class LoraRecipe:
    """What of a SAM2 is adapted, and how strongly.

    Attributes
    ----------
    rank, alpha : of the updates; they are scaled by alpha / rank.
    dropout : of the input of the updates, in training.
    targets : keys of `TARGETS`.
    whole : keys of `WHOLE`, trained in full beside the updates; a target in a part trained in full is left out.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("encoder", "memory", "decoder")
    whole: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be attached.

        Raises
        ------
        InputError
            If the rank or alpha is not above 0, the dropout no share, nothing is to be trained, or a part is unknown.
        """
        if self.rank < 1 or not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"LoRA needs a rank and an alpha above 0, but got {self.rank} and {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"The LoRA dropout {self.dropout} is no share; give a number from 0 up to 1.")
        for given, known, what in ((self.targets, TARGETS, "LoRA target"), (self.whole, WHOLE, "part to train whole")):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise InputError(f"There is no {what} {unknown[0]!r}; choose from {', '.join(known)}.")
        if not self.targets and not self.whole:
            raise InputError("Nothing would be trained; name a LoRA target or a part to train whole.")

    @property
    def target_pattern(self) -> str:
        """The names of the adapted layers, as the regular expression that peft takes."""
        left = [TARGETS[name] for name in self.targets if name not in self.whole]
        # peft's own name for "no target at all", without which it takes an empty match for a mistake.
        return "|".join(left) or "dummy-target-modules"


def attach_lora(model: SAM2Base, recipe: LoraRecipe) -> PeftModel:
    """Freeze a SAM2 and give it low-rank updates that train; at first they change nothing.

    Parameters
    ----------
    model : changed in place: its qkv projections are taken apart (see `SAM2AssistLib.engine.split_qkv`) and the
        adapted layers are wrapped. It stays usable under its own name, updates included.
    recipe : what is adapted.

    Returns
    -------
    peft's model around it, whose ``base_model.model`` is the given one.
    """
    import peft

    split_qkv(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # typed as a whole number, used as a factor
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_pattern,
        modules_to_save=[name for part in recipe.whole for name in WHOLE[part]] or None,
    )
    return peft.get_peft_model(model, config)


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """List what trains, in the order of their names."""
    return [parameter for _, parameter in sorted(module.named_parameters()) if parameter.requires_grad]


def base_card(spec: ModelSpec) -> dict[str, Any]:
    """Begin a card: the base model, the SHA-256 of its weights, and the version that made the adapter."""
    return {
        "base_model": spec.name,
        "base_sha256": store.expected_sha256(spec),
        "image_size": spec.image_size,
        "version": __version__,
    }


def save_adapter(
    adapted: PeftModel,
    folder: Path,
    card: Mapping[str, Any],
    heads: Mapping[str, nn.Module] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter folder; its files appear together, and an adapter that was there is replaced.

    Parameters
    ----------
    adapted : from `attach_lora`.
    folder : made if it is missing.
    card : at least what `base_card` gives.
    heads : further networks by name, such as "self_prompt" or "error_head", each written to NAME.safetensors.
    dtype : in which the adapter is kept; float16 halves it.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    import peft

    weights = peft.get_peft_model_state_dict(adapted)
    config = adapted.peft_config["default"].to_dict() | {"inference_mode": True}
    trained = [*weights.values(), *(t for head in (heads or {}).values() for t in head.state_dict().values())]
    if not all(bool(tensor.isfinite().all()) for tensor in trained):
        raise ModelError("The training has ended in weights that are not finite; train again with a lower rate.")
    names = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, *(f"{name}.safetensors" for name in heads or {})]
    make_folder(folder)
    with atomic_paths(*(folder / name for name in names)) as (config_part, weights_part, card_part, *head_parts):
        config_part.write_text(json.dumps(_plain(config), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _save(weights, weights_part, dtype)
        card_part.write_text(json.dumps(dict(card), indent=1) + "\n", encoding="utf-8")
        for part, head in zip(head_parts, (heads or {}).values(), strict=True):
            _save(head.state_dict(), part, dtype)


def _save(state: Mapping[str, torch.Tensor], path: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}, path)
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def _plain(content: Any) -> Any:
    """Turn a peft configuration into what JSON holds; its sets get an order, so that a file is always the same."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, set | frozenset):
        return sorted(map(str, content))
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content if content is None or isinstance(content, bool | int | float | str) else str(content)
