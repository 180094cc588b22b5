"""SAM2's memory attention with fewer operations and the same result.

What is saved over ``sam2.modeling.memory_attention``, all of it exact but for rounding:

* Values are attended to in the memory's own width (M, a quarter of C) and projected afterwards, which is cheaper by the
  number of keys over that of queries; the value and output projections become one matrix.
* Queries, keys and values of the self-attention come from one product; the softmax scale is part of the weights.
* What rows on one slice have in common, the first look around it, is computed once for all of them.
* Tokens stay batch-first, memories token-major: nothing is transposed or copied to be made contiguous.
* On a CPU each thread takes a row of its own: its keys and scores stay in a cache, and nobody waits for the others.
  Scores become shares by an exponential alone, divided by their sum after the values are weighed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.products import Precision, Product, product

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

SCORE_BLOCK = 1 << 21
"""Scores that a CPU computes at once, 8 MiB in float32: more would leave its caches, and fewer make slow products."""

LEAST_TOTAL, MOST_TOTAL = 1e-20, 1e30
"""Between these a sum of exponentials has lost nothing: float32 goes from 1e-38 to 3e38."""


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
    precision : of its products.
    """

    def __init__(self, model: SAM2Base, precision: Precision) -> None:
        attention = model.memory_attention
        self.norm = attention.norm
        self.on_cpu = model.device.type == "cpu"
        side = model.image_size // model.backbone_stride
        rotation = attention.layers[0].self_attn.compute_cis(end_x=side, end_y=side)
        self.rotation = rotation.to(model.device)  # (hw, C/2) complex
        *first, last = attention.layers
        looks = [(layer, precision.bulk) for layer in first] + [(last, precision.fine)]
        self.layers = [_prepared(layer, precision.bulk, look, on_cpu=self.on_cpu) for layer, look in looks]

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
        # Features are kept channel after channel, in which order all that follows would be several times slower.
        x = torch.add(tokens.contiguous(), positions, alpha=0.1)
        keys = memory + code
        if not self.on_cpu:  # where all layers are of one type
            keys, memory = (t.to(self.layers[0].key.weight.dtype) for t in (keys, memory))
        for number, layer in enumerate(self.layers):
            x += self._look_around(layer, layer.norm1(x))
            if number == 0:
                x = x[rows]
            x += self._look_back(layer, layer.norm2(x), keys, memory, pointers)
            x += layer.narrow(layer.widen(layer.norm3(x), "relu"))
        return self.norm(x)

    def _look_around(self, layer: _Layer, x: Tensor) -> Tensor:
        query, key, value = layer.self_qkv(x).chunk(3, dim=-1)
        query, key = self._rotated(query), self._rotated(key)
        seen = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
        return layer.self_out(seen[:, 0])

    def _look_back(self, layer: _Layer, x: Tensor, keys: Tensor, memory: Tensor, pointers: int) -> Tensor:
        query = self._rotated(layer.query(x))
        if not self.on_cpu:  # the fused kernels want values as wide as keys
            key, value = self._rotated(layer.key(keys), pointers), layer.value(memory)
            seen = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
            return layer.out(seen[:, 0])
        scores = query.shape[1] * keys.shape[1]
        together = max(1, min(torch.get_num_threads(), SCORE_BLOCK // scores))
        rows = zip(query.split(together), keys.split(together), memory.split(together), strict=True)
        parts = [_attended(q, self._rotated(layer.key(k), pointers).to(q.dtype), m.to(q.dtype)) for q, k, m in rows]
        return layer.value_out(torch.cat(parts))

    def _rotated(self, x: Tensor, unrotated: int = 0) -> Tensor:
        """Rotate tokens by their places, but for the last ones; (R, N, C) of which N is a multiple of hw."""
        rows, count, channels = x.shape
        whole = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))  # (R, N, C/2)
        placed = whole[:, : count - unrotated].unflatten(1, (-1, len(self.rotation)))
        placed *= self.rotation
        return torch.view_as_real(whole).flatten(2).to(x.dtype)


def _attended(query: Tensor, key: Tensor, memory: Tensor) -> Tensor:
    """Attend from queries (R, Q, C) with keys (R, N, C) to memories (R, N, M) on a CPU; returns (R, Q, M)."""
    block = max(1, SCORE_BLOCK // key[..., 0].numel())
    by_channel = key.transpose(1, 2)
    return torch.cat([_weighed(part, by_channel, memory) for part in query.split(block, dim=1)], dim=1)


def _weighed(query: Tensor, key: Tensor, memory: Tensor) -> Tensor:
    """Do so with keys (R, C, N).

    A softmax takes exponentials of scores' distances to the largest one, and looking for that is two thirds of its
    time. Where scores are moderate, as they are, it changes nothing; where they are not, it is done.
    """
    if query.dtype == torch.float32:  # through bfloat16, exponentials are no quicker than a softmax
        shares = torch.bmm(query, key).exp_()
        total = shares.sum(dim=-1, keepdim=True)
        least, most = (bound.item() for bound in total.aminmax())
        if LEAST_TOTAL < least <= most < MOST_TOTAL:
            return torch.bmm(shares, memory).div_(total)
    return torch.bmm(torch.bmm(query, key).softmax(dim=-1), memory)


def _prepared(layer: Any, dtype: torch.dtype, back_dtype: torch.dtype, *, on_cpu: bool) -> _Layer:
    around, back = layer.self_attn, layer.cross_attn_image
    scale = 1 / math.sqrt(around.internal_dim)
    exact = torch.float32
    # Keys are rotated in float32. A CPU makes them so, an accelerator has no units for it.
    key_dtype = exact if on_cpu else back_dtype
    parts = [product(around.q_proj, exact, scale), product(around.k_proj, exact), product(around.v_proj, exact)]
    out = back.out_proj.weight
    return _Layer(
        norm1=layer.norm1,
        norm2=layer.norm2,
        norm3=layer.norm3,
        self_qkv=Product(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])).to(dtype),
        self_out=product(around.out_proj, dtype),
        query=product(back.q_proj, back_dtype, scale),
        key=product(back.k_proj, key_dtype),
        value_out=Product(out @ back.v_proj.weight, out @ back.v_proj.bias + back.out_proj.bias).to(back_dtype),
        value=product(back.v_proj, back_dtype),
        out=product(back.out_proj, back_dtype),
        widen=product(layer.linear1, dtype),
        narrow=product(layer.linear2, dtype),
    )
