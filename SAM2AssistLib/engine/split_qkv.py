"""Hiera's fused qkv projection taken apart, so that q and v can be adapted separately, and put together again.

Every attention block of SAM2's image encoder has one ``Linear(dim, 3 * dim_out)`` for queries, keys and values, and
``dim`` differs from ``dim_out`` where a stage begins. A low-rank update of q must therefore lead to ``dim_out``
channels, not to ``dim`` (the code published with SAM2-SGP adapts only half of q and v there). As three projections the
blocks give the same numbers, and peft's own LoRA layers fit each of them without knowing any of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

SPLIT_KEY = ".attn.qkv.q."
"""Part of the name of every tensor that belongs to a split projection's q; tells an adapter for split blocks."""


class SplitQKV(nn.Module):
    """Three projections in the place of a fused one.

    Parameters
    ----------
    fused : ``Linear(dim, 3 * dim_out)``, whose rows are q, k and v in this order; its weights are copied.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = (_part(fused, third) for third in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        """Project (..., dim) to (..., 3 * dim_out): q, k and v side by side."""
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], dim=-1)

    def fused(self) -> nn.Linear:
        """Return the one projection that gives the same; the parts must be plain linear layers."""
        linear = nn.Linear(self.q.in_features, 3 * self.q.out_features, bias=self.q.bias is not None)
        parts = (self.q, self.k, self.v)
        with torch.no_grad():
            linear.to(self.q.weight).weight.copy_(torch.cat([part.weight for part in parts]))
            if self.q.bias is not None:
                linear.bias.copy_(torch.cat([part.bias for part in parts]))
        return linear


def _part(fused: nn.Linear, third: int) -> nn.Linear:
    size = fused.out_features // 3
    rows = slice(third * size, (third + 1) * size)
    linear = nn.Linear(fused.in_features, size, bias=fused.bias is not None).to(fused.weight)
    with torch.no_grad():
        linear.weight.copy_(fused.weight[rows])
        if fused.bias is not None:
            linear.bias.copy_(fused.bias[rows])
    return linear


def split_qkv(model: SAM2Base) -> None:
    """Take the qkv projections of all encoder blocks apart, in place; those that are apart already stay so."""
    for block in model.image_encoder.trunk.blocks:
        if isinstance(block.attn.qkv, nn.Linear):
            block.attn.qkv = SplitQKV(block.attn.qkv)


def fuse_qkv(model: SAM2Base) -> None:
    """Put the qkv projections of all encoder blocks together again, in place, so that the names are SAM2's own."""
    for block in model.image_encoder.trunk.blocks:
        if isinstance(block.attn.qkv, SplitQKV):
            block.attn.qkv = block.attn.qkv.fused()
