"""Training on a CPU in bfloat16, where the CPU multiplies matrices in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name


def has_fast_bfloat16() -> bool:
    """Tell whether the CPU has tiles for bfloat16 matrices (AMX): there they are several times faster than float32."""
    return bool(torch.cpu._is_amx_tile_supported())


def training_precision() -> AbstractContextManager[object]:
    """Compute the forward pass in bfloat16 where that is fast; weights, losses and the optimiser stay in float32."""
    return torch.autocast("cpu", torch.bfloat16) if has_fast_bfloat16() else nullcontext()


def use_plain_attention() -> None:
    """Let SAM2 attend by plain matrix products in this process, if it will train in bfloat16.

    The backward pass of PyTorch's fused attention does not use the CPU's tiles: it took 40 % of a step's time.
    """
    if has_fast_bfloat16():
        F.scaled_dot_product_attention = _plain_attention  # type: ignore[assignment]


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
    return F.dropout(weights, dropout_p) @ v
