"""SAM2's memory encoder with fewer operations and the same result.

What is saved over ``SAM2Base._encode_new_memory``, all of it exact but for rounding:

* The mean that a layer norm takes off its channels is taken off the convolution's weights before it.
* Wide layer norms, and the products that follow, work on channels-last tensors.
* What a slice's own features contribute is computed once for all objects on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.heads import to_input_size
from SAM2AssistLib.engine.products import Precision, Product, pixelwise, product

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


LEAST_CHANNELS = 16
"""With fewer going in, a convolution is too narrow for the tiles that bfloat16 is fast in, and its outputs, too few to
be normalised a pixel at a time, are quicker in planes: one channel after the other, each in one piece."""


@dataclass(frozen=True, eq=False)
class _Shrink:
    """A convolution whose outputs have the mean 0 over the channels, and what is left of its layer norm."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    eps: float
    stride: Any
    padding: Any

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] >= LEAST_CHANNELS:
            # Channels last is what CPUs convolve fastest, and what accelerators want in bfloat16.
            y = self._convolved(x.to(self.weight.dtype, memory_format=torch.channels_last)).float().permute(0, 2, 3, 1)
            y = F.layer_norm(y, y.shape[-1:], self.scale.flatten(), self.shift.flatten(), self.eps)
            return torch.ops.aten.gelu_(y).permute(0, 3, 1, 2)
        y = self._convolved(x.to(self.weight.dtype)).float().contiguous()
        first, *others = y.unbind(dim=1)
        squares = first * first
        for channel in others:
            squares.addcmul_(channel, channel)
        deviation = squares.div_(y.shape[1]).add_(self.eps).rsqrt_()[:, None]
        return torch.ops.aten.gelu_(torch.addcmul(self.shift, y.mul_(deviation), self.scale, out=y))

    def _convolved(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


@dataclass(frozen=True, eq=False)
class _Block:
    """A ConvNeXt block of the fuser."""

    depthwise: Any
    norm: Any
    widen: Product
    narrow: Product

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (B, h, w, C), in place."""
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.layer_norm(y, y.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        x += self.narrow(self.widen(y, "gelu"))
        return x


class LeanMemoryEncoder:
    """The memory encoder of a model, prepared for inference.

    Parameters
    ----------
    model : a SAM2.
    precision : of its products.
    """

    def __init__(self, model: SAM2Base, precision: Precision) -> None:
        encoder = model.memory_encoder
        *shrinking, last = encoder.mask_downsampler.encoder
        pairs = zip(shrinking[::3], shrinking[1::3], strict=True)
        self.shrinks = [_shrink(conv, norm, precision) for conv, norm in pairs]
        convs = (last, encoder.pix_feat_proj, encoder.out_proj)
        self.last, self.own, self.out = (pixelwise(conv, precision.fine) for conv in convs)
        self.blocks = [_block(layer, precision.bulk) for layer in encoder.fuser.layers]

    def __call__(
        self,
        model: SAM2Base,
        plain: Tensor,
        rows: Tensor,
        logits: Tensor,
        object_score: Tensor,
        *,
        from_prompt: bool,
    ) -> Tensor:
        """Turn masks into memories.

        Parameters
        ----------
        model : the one that was prepared.
        plain : (U, C, h, w) features of the slices themselves, each once.
        rows : (B,) which of them a mask is on.
        logits : (B, 1, 4h, 4w) gated mask logits.
        object_score : (B, 1).
        from_prompt : whether a user's prompt made the mask; such masks are binarised.

        Returns
        -------
        (B, M, h, w) memory features, channels last in memory.
        """
        full = to_input_size(model, logits)
        mask = (full > 0).to(plain.dtype) if from_prompt else full.sigmoid_()
        x = mask.mul_(model.sigmoid_scale_for_mem_enc).add_(model.sigmoid_bias_for_mem_enc)
        for shrink in self.shrinks:
            x = shrink(x)
        x = self.last(x.permute(0, 2, 3, 1)).float()
        x += self.own(plain.permute(0, 2, 3, 1))[rows]
        for block in self.blocks:
            x = block(x)
        memory = self.out(x).float().permute(0, 3, 1, 2)
        absent = (object_score <= 0).to(memory.dtype)[..., None, None]
        memory += absent * model.no_obj_embed_spatial[..., None, None]
        return memory.contiguous(memory_format=torch.channels_last)


def _shrink(conv: Any, norm: Any, precision: Precision) -> _Shrink:
    dtype = precision.bulk if conv.in_channels >= LEAST_CHANNELS else torch.float32
    weight = conv.weight - conv.weight.mean(dim=0, keepdim=True)
    in_planes = 1 < conv.in_channels < LEAST_CHANNELS
    return _Shrink(
        weight.to(dtype, memory_format=torch.contiguous_format if in_planes else torch.channels_last),
        (conv.bias - conv.bias.mean()).to(dtype),
        norm.weight[:, None, None],
        norm.bias[:, None, None],
        norm.eps,
        conv.stride,
        conv.padding,
    )


def _block(layer: Any, dtype: torch.dtype) -> _Block:
    weight, bias = layer.pwconv2.weight, layer.pwconv2.bias
    if layer.gamma is not None:
        weight, bias = weight * layer.gamma[:, None], bias * layer.gamma
    narrow = Product(weight, bias).to(dtype)
    return _Block(layer.dwconv, layer.norm, product(layer.pwconv1, dtype), narrow)
