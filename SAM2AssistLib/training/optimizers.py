"""Muon for the hidden matrices and AdamW for all else, behind the face of one optimiser.

Muon (Jordan 2024; scaled to AdamW's step as by Liu et al. 2025, "Muon is scalable for LLM training", section 2.2) makes
every singular direction of a step equally long. From equal weights, on equal batches, it went ahead of AdamW at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from SAM2AssistLib.engine.refiner import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

REFINER_PACE = 3.0
"""The refiner's learning rate as a multiple of the rest's: plain convolutions bear more than a transformer."""
MUON_PACE = 2.0
LEAST_SIDE = 17
"""A matrix with fewer rows or columns than this is a head or an embedding, which Muon is not for."""


def decayed_groups(model: nn.Module, weight_decay: float, without: set[str] | None = None) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weights are decayed, biases and norms are not, the refiner has its own pace."""
    named = [(name, p) for name, p in model.named_parameters() if name not in (without or set())]
    groups = []
    for refiner in (False, True):
        own = [p for name, p in named if name.startswith(PREFIX) == refiner]
        kinds: tuple[tuple[float, Callable[[nn.Parameter], bool]], ...] = (
            (weight_decay, lambda p: p.ndim > 1),
            (0.0, lambda p: p.ndim <= 1),
        )
        for decay, of_kind in kinds:
            pace = REFINER_PACE if refiner else 1.0
            groups.append({"params": [p for p in own if of_kind(p)], "weight_decay": decay, "pace": pace})
    return groups


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that Muon trains, by name."""
    return {
        name: p
        for name, p in model.named_parameters()
        if p.ndim == 2 and min(p.shape) >= LEAST_SIDE and "embed" not in name and not name.startswith(PREFIX)
    }


class MuonWithAdamW:
    """Two optimisers that are stepped, saved and restored together.

    Each parameter group has a ``pace``: its learning rate as a multiple of the recipe's.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        matrices = hidden_matrices(model)
        rest = decayed_groups(model, weight_decay, without=set(matrices))
        self.adamw = torch.optim.AdamW(rest, lr=learning_rate)
        self.muon = torch.optim.Muon(
            [{"params": list(matrices.values()), "pace": MUON_PACE}],
            lr=learning_rate,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return self.adamw.param_groups + self.muon.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none)
        self.muon.zero_grad(set_to_none)

    def step(self) -> None:
        """Update all parameters."""
        self.adamw.step()
        self.muon.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.adamw.load_state_dict(state["adamw"])
        self.muon.load_state_dict(state["muon"])


def make_optimizer(
    kind: str, model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer | MuonWithAdamW:
    """Return the optimiser of a recipe.

    Parameters
    ----------
    kind : "adamw" or "muon".
    """
    if kind == "muon":
        return MuonWithAdamW(model, learning_rate, weight_decay)
    return torch.optim.AdamW(decayed_groups(model, weight_decay), lr=learning_rate)
