"""SAM2's mask decoder for slices without prompts, with fewer operations and the same result.

What is saved over ``sam2.modeling.sam.mask_decoder``, all of it exact but for rounding:

* Without prompts the query tokens and the prompt embeddings are constants.
* Keys, values and queries from the image come from one product; their position encodings are projected once.
* A transposed convolution whose kernel is its stride is a product; its outputs are left in blocks, to which the high
  resolution features of a slice are brought once for all objects on it, and only the one mask is brought back.
* Of the three candidate masks, only the one that is kept is computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.heads import Decoded, pointer_of
from SAM2AssistLib.engine.products import Precision, Product, product

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True, eq=False)
class _Layer:
    """A two-way layer; `image` gives keys, values and, for the way back, queries of the image's tokens."""

    first: bool
    around: Any
    norm1: Any
    query: Product
    out: Product
    norm2: Any
    widen: Product
    narrow: Product
    norm3: Any
    image: Product
    image_places: Tensor
    back_key: Product
    back_value: Product
    back_out: Product
    norm4: Any


class LeanDecoder:
    """The mask decoder of a model, prepared for slices without prompts.

    Parameters
    ----------
    model : a SAM2 that reports object scores, as all SAM 2.1 do.
    precision : of its products.
    """

    def __init__(self, model: SAM2Base, precision: Precision) -> None:
        dtype = precision.fine
        self.decoder, self.prompts = model.sam_mask_decoder, model.sam_prompt_encoder
        decoder, device = self.decoder, model.device
        nowhere = (torch.zeros(1, 1, 2, device=device), -torch.ones(1, 1, dtype=torch.int32, device=device))
        sparse, _ = model.sam_prompt_encoder(points=nowhere, boxes=None, masks=None)
        own = (decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight)
        self.tokens = torch.cat([*own, sparse[0]])[None]  # (1, T, C)
        places = model.sam_prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)  # (1, hw, C)
        self.heads = decoder.transformer.num_heads
        self.layers = [_layer(layer, places, precision) for layer in decoder.transformer.layers]
        last = decoder.transformer.final_attn_token_to_image
        self.last_query, self.last_out = product(last.q_proj, dtype, _scale(last)), product(last.out_proj, dtype)
        self.last_image, self.last_places = _image_side(last, places, dtype)
        self.norm = decoder.transformer.norm_final_attn
        up1, self.up_norm, _, up2, _ = decoder.output_upscaling
        self.up1, self.up2 = _upscale(up1, dtype), _upscale(up2, dtype)
        self.several = bool(model._use_multimask(False, None))

    @staticmethod
    def suits(model: SAM2Base) -> bool:
        """Tell whether no candidate is chosen by its stability, which takes all of the masks."""
        return bool(model._use_multimask(False, None)) or not model.sam_mask_decoder.dynamic_multimask_via_stability

    def blocks_of(self, fine: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Bring high resolution features into blocks.

        Parameters
        ----------
        fine, middle : (U, C/8, 4h, 4w) and (U, C/4, 2h, 2w).

        Returns
        -------
        (U, hw, 4, 4, C/8) and (U, hw, 4, C/4): of each coarse cell the quarters, and of these the quarters.
        """
        count, narrow, height, width = fine.shape
        f = fine.reshape(count, narrow, height // 4, 2, 2, width // 4, 2, 2)  # (U, c, h, a, b, w, d, e)
        f = f.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(count, -1, 4, 4, narrow)
        wide = middle.shape[1]
        m = middle.reshape(count, wide, height // 4, 2, width // 4, 2).permute(0, 2, 4, 3, 5, 1)
        return f, m.reshape(count, -1, 4, wide)

    def __call__(
        self,
        model: SAM2Base,
        tokens: Tensor,
        blocks: tuple[Tensor, Tensor],
        counts: Sequence[int],
        dense: Tensor | None,
    ) -> Decoded:
        """Decode one mask for each row.

        Parameters
        ----------
        model : the one that was prepared.
        tokens : (R, hw, C) conditioned features, slice after slice.
        blocks : of `blocks_of`, for each slice once.
        counts : how many rows are on each slice.
        dense : (R, 1, 4h, 4w) mask prompt logits, or None.
        """
        decoder, prompts = self.decoder, self.prompts
        if dense is None:
            image = tokens + prompts.no_mask_embed.weight
        else:
            image = tokens + prompts._embed_masks(dense).flatten(2).transpose(1, 2)
        queries, image = self._both_ways(image)
        score = decoder.pred_obj_score_head(queries[:, 0])
        ious = decoder.iou_prediction_head(queries[:, 1])
        first = 3 if self.several else 2
        candidates = queries[:, first : 2 + decoder.num_mask_tokens]
        token, iou, logits = self._chosen(image, blocks, counts, candidates, ious[:, first - 2 :])
        kept = token if model.use_multimask_token_for_obj_ptr or not self.several else queries[:, 2]
        return Decoded(logits.float(), iou.float(), score.float(), pointer_of(model, kept, score))

    def _both_ways(self, image: Tensor) -> tuple[Tensor, Tensor]:
        start = queries = self.tokens  # one row, until they have seen the image
        for layer in self.layers:
            if layer.first:
                queries = layer.around(q=queries, k=queries, v=queries)
            else:
                q = queries + start
                queries = queries + layer.around(q=q, k=q, v=queries)
            queries = layer.norm1(queries)
            key, value, back_query = layer.image(image).add_(layer.image_places).chunk(3, dim=-1)
            seen = self._attend(layer.query(queries + start).expand(len(image), -1, -1), key, value)
            queries = layer.norm2(queries + layer.out(seen))
            queries = layer.norm3(queries + layer.narrow(layer.widen(queries, "relu")))
            seen = _attend_to_few(back_query, layer.back_key(queries + start), layer.back_value(queries), self.heads)
            image += layer.back_out(seen)
            image = layer.norm4(image)
        key, value = self.last_image(image).add_(self.last_places).chunk(2, dim=-1)
        seen = self._attend(self.last_query(queries + start), key, value)
        return self.norm(queries + self.last_out(seen)), image

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)

    def _chosen(
        self, image: Tensor, blocks: tuple[Tensor, Tensor], counts: Sequence[int], candidates: Tensor, ious: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the candidate with the best predicted IoU, and draw its mask."""
        batch = torch.arange(len(image), device=image.device)
        number = 1 if self.several else 0
        networks = self.decoder.output_hypernetworks_mlps
        if self.several:
            best = ious.argmax(dim=-1)
            every = torch.stack([networks[number + n](candidates[:, n]) for n in range(ious.shape[1])], dim=1)
            token, iou, weights = candidates[batch, best], ious[batch, best], every[batch, best]
        else:
            token, iou, weights = candidates[:, 0], ious[:, 0], networks[0](candidates[:, 0])
        logits = torch.matmul(self._upscaled(image, blocks, counts), weights[:, :, None])[..., 0]  # (R, hw*16)
        return token, iou, self._unblocked(logits)

    def _upscaled(self, image: Tensor, blocks: tuple[Tensor, Tensor], counts: Sequence[int]) -> Tensor:
        """Upscale to (R, hw*16, C/8), in blocks."""
        fine, middle = blocks
        x = _added(self.up1(image).unflatten(-1, (4, -1)), middle, counts)
        norm = self.up_norm
        x = F.gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = _added(self.up2(x).unflatten(-1, (4, -1)), fine, counts)
        return F.gelu(x).flatten(1, 3)

    def _unblocked(self, logits: Tensor) -> Tensor:
        side = math.isqrt(logits.shape[1] // 16)
        x = logits.view(-1, side, side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(-1, 1, 4 * side, 4 * side)


def _added(x: Tensor, own: Tensor, counts: Sequence[int]) -> Tensor:
    """Add to rows (R, ...), in place if their type bears it, what their slices have of their own, (U, ...)."""
    x = x.to(torch.promote_types(x.dtype, own.dtype))
    for rows, each in zip(x.split(list(counts)), own, strict=True):
        rows.add_(each)
    return x


def _attend_to_few(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attend from many tokens to a few; query (R, Q, C), already scaled, key and value (R, K, C); returns (R, Q, C).

    Fused kernels work through one head after the other, of 8 numbers and 8 keys here, and take twice as long as one
    product with all heads, each in its own block.
    """
    rows, few, width = key.shape
    own = torch.eye(heads, dtype=key.dtype, device=key.device)
    by_head = key.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # (R, heads, d, K)
    keys = (by_head[..., None] * own[:, None, None]).reshape(rows, width, few * heads)
    scores = torch.bmm(query, keys).view(rows, -1, few, heads)
    most = functools.reduce(torch.maximum, scores.unbind(2))
    shares = scores.sub_(most[:, :, None]).exp_()
    total = functools.reduce(torch.add, shares.unbind(2))
    values = (value.unflatten(-1, (heads, -1))[:, :, None] * own[..., None]).reshape(rows, few * heads, width)
    seen = torch.bmm(shares.flatten(2), values).unflatten(-1, (heads, -1))
    return seen.div_(total[..., None]).flatten(2)


def _layer(layer: Any, places: Tensor, precision: Precision) -> _Layer:
    dtype = precision.fine
    there, back = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    image, image_places = _image_side(there, places, dtype, back)
    widen, narrow = layer.mlp.layers
    return _Layer(
        first=layer.skip_first_layer_pe,
        around=layer.self_attn,
        norm1=layer.norm1,
        query=product(there.q_proj, dtype, _scale(there)),
        out=product(there.out_proj, dtype),
        norm2=layer.norm2,
        widen=product(widen, precision.bulk),
        narrow=product(narrow, precision.bulk),
        norm3=layer.norm3,
        image=image,
        image_places=image_places,
        back_key=product(back.k_proj, dtype),
        back_value=product(back.v_proj, dtype),
        back_out=product(back.out_proj, dtype),
        norm4=layer.norm4,
    )


def _image_side(there: Any, places: Tensor, dtype: torch.dtype, back: Any = None) -> tuple[Product, Tensor]:
    """Give keys and values (and queries for the way back) as one product, and what the places add to it."""
    linears = [product(there.k_proj, torch.float32), product(there.v_proj, torch.float32)]
    if back is not None:
        linears.append(product(back.q_proj, torch.float32, _scale(back)))
    added = [places @ item.weight.t() for item in linears]
    added[1] = torch.zeros_like(added[1])  # values have no position encoding
    weight, bias = torch.cat([item.weight for item in linears]), torch.cat([item.bias for item in linears])
    return Product(weight, bias).to(dtype), torch.cat(added, dim=-1).to(dtype)


def _scale(attention: Any) -> float:
    return math.sqrt(attention.num_heads / attention.internal_dim)


def _upscale(conv: Any, dtype: torch.dtype) -> Product:
    """Write a transposed convolution with kernel and stride 2 as a product; outputs by quarter, then channel."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4*out, in)
    return Product(weight, conv.bias.repeat(4)).to(dtype)
