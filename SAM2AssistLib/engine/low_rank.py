"""Plain LoRA added to the weights it was trained beside: peft's files and peft's arithmetic, without importing peft.

peft brings transformers and its like, which takes seconds to import and would have to be installed into Slicer only to
multiply two matrices. What ``sam2assist finetune`` writes, and all other LoRA without further settings, needs neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "base_model.model."
A_KEY, B_KEY = ".lora_A.weight", ".lora_B.weight"
HEEDED = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "modules_to_save", "init_lora_weights"}
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "task_type",
}  # fmt: skip
"""Settings that say nothing of what is added to the weights."""
NEUTRAL: tuple[object, ...] = ("none", {}, [])
"""Beside None and False, which 0 is not: it can be the number of a layer."""


@dataclass(frozen=True)
class LowRankUpdates:
    """What an adapter changes in a network: W becomes W + scale · B A, and some modules are replaced as a whole.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; the scale with ``use_rslora`` is that of Kalajdzievski 2023
    (arXiv 2312.03732).

    Attributes
    ----------
    model : the network.
    rank, scale : of the updates.
    layers, whole : modules of the network by name.
    """

    model: nn.Module
    rank: int
    scale: float
    layers: Mapping[str, nn.Linear]
    whole: Mapping[str, nn.Module]

    def shapes(self) -> dict[str, torch.Size]:
        """Return the names and shapes that the adapter's file must have."""
        wanted = {}
        for name, layer in self.layers.items():
            wanted[f"{PREFIX}{name}{A_KEY}"] = torch.Size((self.rank, layer.in_features))
            wanted[f"{PREFIX}{name}{B_KEY}"] = torch.Size((layer.out_features, self.rank))
        for name, module in self.whole.items():
            wanted |= {f"{PREFIX}{name}.{key}": tensor.shape for key, tensor in module.state_dict().items()}
        return wanted

    def merge(self, weights: Mapping[str, Tensor]) -> Any:
        """Return the network, changed in place by weights of the names and shapes of `shapes`."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                down, up = (weights[f"{PREFIX}{name}{key}"].to(layer.weight) for key in (A_KEY, B_KEY))
                layer.weight += up @ down * self.scale
            for name, module in self.whole.items():
                for key, tensor in module.state_dict().items():
                    tensor.copy_(weights[f"{PREFIX}{name}.{key}"])
        return self.model


def plain_updates(config: Mapping[str, Any], model: nn.Module) -> LowRankUpdates | None:
    """Find what an adapter changes in a network.

    Parameters
    ----------
    config : content of peft's ``adapter_config.json``.
    model : the network, with the modules that the adapter's names speak of.

    Returns
    -------
    None if the settings are of a kind that only peft knows, such as DoRA or ranks that differ.

    Raises
    ------
    re.error
        If the names of the layers are no regular expression.
    """
    others = {name: value for name, value in config.items() if name not in HEEDED | WITHOUT_EFFECT}
    rank, alpha = config.get("r"), config.get("lora_alpha")
    targets, parts = config.get("target_modules"), config.get("modules_to_save") or []
    if (
        config.get("peft_type") != "LORA"
        or not all(value is None or value is False or value in NEUTRAL for value in others.values())
        or config.get("init_lora_weights", True) not in (True, False, "gaussian")  # others change the base, too
        or not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and math.isfinite(alpha))
        or not (_are_names(targets) or (isinstance(targets, str) and targets != "all-linear"))
        or not _are_names(parts)
    ):
        return None
    modules = dict(model.named_modules())
    layers = {name: module for name, module in modules.items() if _is_target(name, targets)}
    # As peft: by the end of the name, whatever is before it.
    whole = {name: module for name, module in modules.items() if name and name.endswith(tuple(parts))}
    linear = {name: module for name, module in layers.items() if type(module) is nn.Linear}
    changed = sorted([*layers, *whole])
    nested = any(below.startswith(f"{above}.") for above, below in pairwise(changed))
    if nested or len(set(changed)) < len(changed) or len(linear) < len(layers):
        return None
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRankUpdates(model, rank, scale, linear, whole)


def _are_names(given: object) -> bool:
    return isinstance(given, list) and all(isinstance(name, str) for name in given)


def _is_target(name: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return name in targets or name.endswith(tuple(f".{target}" for target in targets))
