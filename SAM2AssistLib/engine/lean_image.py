"""SAM2's image encoder with fewer operations and the same result.

What is saved over ``sam2.modeling.backbones``, all of it exact but for rounding:

* Blocks whose windows hold the same tokens follow each other without their tokens being put back in between. A window
  of 8 that is pooled by 2 becomes one of 4 with the same tokens in it, so in `mini` four blocks run through.
* Windows that reach beyond the grid are filled up with what a layer makes of nothing, its bias; no other layer sees the
  padding.
* The position embedding, which is the same for every slice, is interpolated once; position encodings that nobody asks
  for are not made.
* The convolutions of the neck are products on tokens; those of the two fine levels, and the mask decoder's own after
  them, become one.
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


@dataclass(frozen=True)
class Grid:
    """How tokens lie in memory: (images * windows down * windows across, side * side, C).

    Attributes
    ----------
    images : number of them.
    down, across : windows.
    side : of a window in tokens.
    """

    images: int
    down: int
    across: int
    side: int

    def taken_apart(self, x: Tensor, side: int) -> tuple[Tensor, Grid]:
        """Bring tokens into windows of another side."""
        if side == self.side:
            return x, self
        full = self.whole(x)  # (B, H, W, C)
        height, width = full.shape[1:3]
        new = Grid(self.images, height // side, width // side, side)
        windows = full.view(self.images, new.down, side, new.across, side, -1).transpose(2, 3)
        return windows.reshape(-1, side * side, full.shape[-1]), new

    def whole(self, x: Tensor) -> Tensor:
        """Bring tokens back into images, (B, H, W, C)."""
        side = self.side
        y = x.view(self.images, self.down, self.across, side, side, -1).transpose(2, 3)
        return y.reshape(self.images, self.down * side, self.across * side, -1)

    def pooled(self) -> Grid:
        """Return the grid after a pooling by 2."""
        return Grid(self.images, self.down, self.across, self.side // 2)


@dataclass(frozen=True, eq=False)
class _Block:
    norm1: Any
    norm2: Any
    qkv: Product
    out: Product
    widen: Product
    narrow: Product
    shortcut: Product | None
    heads: int
    window: int
    pools: bool


class LeanImageEncoder:
    """The image encoder of a model, prepared for inference.

    Parameters
    ----------
    model : a SAM2 that has the neck known here; see `suits`.
    precision : of its products.
    """

    def __init__(self, model: SAM2Base, precision: Precision) -> None:
        trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
        self.patches = trunk.patch_embed
        side = model.image_size // 4
        self.places = trunk._get_pos_embed((side, side)).clone()  # (1, H, W, C)
        self.blocks = [_block(block, precision) for block in trunk.blocks]
        self.stage_ends = tuple(trunk.stage_ends)
        # From fine to coarse; the neck lists its convolutions from coarse to fine.
        lateral = [_flat(conv.conv) for conv in reversed(neck.convs)]
        decoder = model.sam_mask_decoder
        fine, middle = (_after(a, _flat(b)) for a, b in zip(lateral, (decoder.conv_s0, decoder.conv_s1), strict=False))
        self.levels = [p.to(precision.fine) for p in (fine, middle, *lateral[2:])]

    @staticmethod
    def suits(model: SAM2Base) -> bool:
        """Tell whether the neck is the one that is known here."""
        neck = model.image_encoder.neck
        known = list(neck.fpn_top_down_levels) == [2, 3] and neck.fpn_interp_model == "nearest"
        return known and neck.fuse_type == "sum" and len(neck.convs) == 4

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images.

        Parameters
        ----------
        images : (B, 3, S, S), normalised.

        Returns
        -------
        (B, C/8, S/4, S/4), (B, C/4, S/8, S/8) and (B, C, S/16, S/16).
        """
        x = self.patches(images) + self.places
        grid = Grid(len(x), 1, 1, x.shape[1])
        x = x.flatten(1, 2)
        ends: list[tuple[Tensor, Grid]] = []
        for number, block in enumerate(self.blocks):
            x, grid = self._through(block, x, grid)
            if number in self.stage_ends:
                ends.append((x, grid))
        fine, middle, plain, coarse = (
            grid.whole(level(x)).permute(0, 3, 1, 2) for level, (x, grid) in zip(self.levels, ends, strict=True)
        )
        return fine, middle, plain + F.interpolate(coarse.float(), scale_factor=2.0, mode="nearest")

    def _through(self, block: _Block, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        whole = grid.down * grid.side
        padded = block.window > 0 and whole % block.window > 0
        x, grid = grid.taken_apart(x, whole if padded else block.window or whole)
        seen = block.norm1(x)
        shortcut = x
        if block.shortcut is not None:
            shortcut = block.shortcut(seen)
        if block.pools:
            shortcut = _pooled(shortcut, grid.side)
        attend = self._attended_in_padded_windows if padded else self._attended
        x = shortcut + block.out(attend(block, block.qkv(seen), grid.side))
        grid = grid.pooled() if block.pools else grid
        return x + block.narrow(block.widen(block.norm2(x), "gelu")), grid

    def _attended_in_padded_windows(self, block: _Block, qkv: Tensor, side: int) -> Tensor:
        images, wide = len(qkv), -(-side // block.window) * block.window
        full = block.qkv.bias.expand(images, wide, wide, -1).contiguous()
        full[:, :side, :side] = qkv.unflatten(1, (side, side))
        windows, grid = Grid(images, 1, 1, wide).taken_apart(full.flatten(1, 2), block.window)
        seen = self._attended(block, windows, block.window)
        if block.pools:
            grid, side = grid.pooled(), side // 2
        return grid.whole(seen)[:, :side, :side].flatten(1, 2)

    def _attended(self, block: _Block, qkv: Tensor, side: int) -> Tensor:
        query, key, value = qkv.chunk(3, dim=-1)  # (windows, tokens, C) each
        if block.pools:
            query = _pooled(query, side)
        q, k, v = (t.unflatten(-1, (block.heads, -1)).transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)


def _pooled(x: Tensor, side: int) -> Tensor:
    """Take the largest of every 2 x 2 tokens of a window, (windows, side*side, C)."""
    y = x.unflatten(1, (side // 2, 2, side // 2, 2))
    # A reduction over short dimensions is fifty times slower than comparing four views.
    upper, lower = torch.maximum(y[:, :, 0, :, 0], y[:, :, 0, :, 1]), torch.maximum(y[:, :, 1, :, 0], y[:, :, 1, :, 1])
    return torch.maximum(upper, lower).flatten(1, 2)


def _block(block: Any, precision: Precision) -> _Block:
    attention = block.attn
    scale = 1 / math.sqrt(attention.dim_out // attention.num_heads)
    weight, bias = attention.qkv.weight.clone(), attention.qkv.bias.clone()
    weight[: attention.dim_out] *= scale
    bias[: attention.dim_out] *= scale
    widen, narrow = block.mlp.layers
    return _Block(
        norm1=block.norm1,
        norm2=block.norm2,
        qkv=Product(weight, bias).to(precision.bulk),
        out=product(attention.proj, precision.bulk),
        widen=product(widen, precision.bulk),
        narrow=product(narrow, precision.bulk),
        shortcut=product(block.proj, precision.fine) if block.dim != block.dim_out else None,
        heads=attention.num_heads,
        window=block.window_size,
        pools=bool(block.q_stride),
    )


def _flat(conv: Any) -> Product:
    """Write a convolution of one pixel as a product."""
    return Product(conv.weight.flatten(1), conv.bias)


def _after(first: Product, second: Product) -> Product:
    """Make one product of two that follow each other."""
    return Product(second.weight @ first.weight, second.weight @ first.bias + second.bias)
