"""SAM2's memory attention with fewer operations and the same result.

What is saved over ``sam2.modeling.memory_attention``, all of it exact but for rounding:

* Values are attended to in the memory's own width (M, a quarter of C) and projected afterwards, which is cheaper by the
  number of keys over that of queries; the value and output projections become one matrix.
* Queries, keys and values of the self-attention come from one product; the softmax scale is part of the weights.
* What rows on one slice have in common, the first look around it, is computed once for all of them.
* Tokens stay batch-first, memories token-major: nothing is transposed or copied to be made contiguous.
* On a CPU a row's scores are computed in blocks that stay in its second-level cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.products import Product, product

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

SCORE_BLOCK = 1 << 18
"""Scores (float32) that a CPU core computes at once: 1 MiB, half of the second-level cache of a server core."""


@dataclass(frozen=True, eq=False)
class _Layer:
    norm1: Any
    norm2: Any
    norm3: Any
    self_qkv: Product
    self_out: Product
    query: Product
    key: Product
    value_out: Product
    value: Product
    out: Product
    widen: Product
    narrow: Product


class LeanMemoryAttention:
    """The memory attention of a model, prepared for inference.

    Parameters
    ----------
    model : a SAM2 with one attention head in its memory attention, as all published ones have.
    dtype : of its products.
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype) -> None:
        attention = model.memory_attention
        self.norm = attention.norm
        self.dtype = dtype
        self.by_blocks = model.device.type == "cpu" and dtype == torch.float32
        side = model.image_size // model.backbone_stride
        rotation = attention.layers[0].self_attn.compute_cis(end_x=side, end_y=side)
        self.rotation = rotation.to(model.device)  # (hw, C/2) complex
        self.layers = [_prepared(layer, dtype) for layer in attention.layers]

    def __call__(
        self, tokens: Tensor, rows: Tensor, positions: Tensor, memory: Tensor, code: Tensor, pointers: int
    ) -> Tensor:
        """Condition tokens on memories.

        Parameters
        ----------
        tokens : (U, hw, C) features of slices, each once.
        rows : (R,) which of them a row is on.
        positions : (hw, C) their position encoding.
        memory, code : (R, N, M) memory tokens, slice after slice and the object pointers last, and (R or 1, N, M) their
            position encoding.
        pointers : number of object pointer tokens.

        Returns
        -------
        (R, hw, C).
        """
        x = tokens + 0.1 * positions
        keys, memory = (memory + code).to(self.dtype), memory.to(self.dtype)
        for number, layer in enumerate(self.layers):
            x = x + self._look_around(layer, layer.norm1(x))
            if number == 0:
                x = x[rows]
            x = x + self._look_back(layer, layer.norm2(x), keys, memory, pointers)
            x = x + layer.narrow(layer.widen(layer.norm3(x), "relu"))
        return self.norm(x)

    def _look_around(self, layer: _Layer, x: Tensor) -> Tensor:
        query, key, value = layer.self_qkv(x).chunk(3, dim=-1)
        query, key = self._rotated(query), self._rotated(key)
        seen = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
        return layer.self_out(seen[:, 0])

    def _look_back(self, layer: _Layer, x: Tensor, keys: Tensor, memory: Tensor, pointers: int) -> Tensor:
        query, key = self._rotated(layer.query(x)), self._rotated(layer.key(keys), pointers)
        if self.by_blocks:
            return layer.value_out(_attended(query, key, memory))
        # The fused kernels want values as wide as keys.
        value = layer.value(memory)
        seen = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
        return layer.out(seen[:, 0])

    def _rotated(self, x: Tensor, unrotated: int = 0) -> Tensor:
        """Rotate tokens by their places, but for the last ones; (R, N, C) of which N is a multiple of hw."""
        rows, count, channels = x.shape
        whole = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))  # (R, N, C/2)
        placed = whole[:, : count - unrotated].unflatten(1, (-1, len(self.rotation)))
        placed *= self.rotation
        return torch.view_as_real(whole).flatten(2).to(x.dtype)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend in blocks; query (R, Q, C), already scaled, key (R, N, C), value (R, N, M); returns (R, Q, M)."""
    query, key, value = query.float(), key.float(), value.float()
    rows, queries, _ = query.shape
    count, width = value.shape[1:]
    seen = query.new_empty(rows, queries, width)
    block = max(1, min(queries, SCORE_BLOCK // count))
    scores, shares = query.new_empty(block, count), query.new_empty(block, count)
    for row in range(rows):
        keys = key[row].t()
        for start in range(0, queries, block):
            part = query[row, start : start + block]
            score, share = scores[: len(part)], shares[: len(part)]
            torch.mm(part, keys, out=score)
            torch.softmax(score, dim=-1, out=share)
            torch.mm(share, value[row], out=seen[row, start : start + block])
    return seen


def _prepared(layer: Any, dtype: torch.dtype) -> _Layer:
    around, back = layer.self_attn, layer.cross_attn_image
    scale = 1 / math.sqrt(around.internal_dim)
    parts = [product(around.q_proj, dtype, scale), product(around.k_proj, dtype), product(around.v_proj, dtype)]
    out = back.out_proj.weight
    return _Layer(
        norm1=layer.norm1,
        norm2=layer.norm2,
        norm3=layer.norm3,
        self_qkv=Product(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])),
        self_out=product(around.out_proj, dtype),
        query=product(back.q_proj, dtype, scale),
        key=product(back.k_proj, dtype),
        value_out=Product(
            (out @ back.v_proj.weight).to(dtype), (out @ back.v_proj.bias + back.out_proj.bias).to(dtype)
        ),
        value=product(back.v_proj, dtype),
        out=product(back.out_proj, dtype),
        widen=product(layer.linear1, dtype),
        narrow=product(layer.linear2, dtype),
    )
