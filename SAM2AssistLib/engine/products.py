"""The products that a propagation consists of: in which precision, and by which kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.device import computes_in_bfloat16

Activation = Literal["none", "relu", "gelu"]
_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True, eq=False)
class Product:
    """A linear layer, in the precision it is computed in.

    Attributes
    ----------
    weight, bias : (out, in) and (out,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """Apply it; the result has the weights' type, and a sum with a float32 tensor is float32 again."""
        x = x.to(self.weight.dtype)
        if self._packed is None:
            return _ACTIVATIONS[activation](F.linear(x, self.weight, self.bias))
        # In one pass with the bias and the activation, where F.linear first copies the bias into its result.
        kind = "none" if activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, activation, [], kind)

    def to(self, dtype: torch.dtype) -> Product:
        """Return the same layer, computed in another precision."""
        return Product(self.weight.to(dtype), self.bias.to(dtype))

    @cached_property
    def _packed(self) -> Tensor | None:
        """The weights as oneDNN wants them, on a CPU where PyTorch has it."""
        kernels = torch.ops.mkldnn
        there = self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if not there or not hasattr(kernels, "_linear_pointwise") or not hasattr(kernels, "_reorder_linear_weight"):
            return None
        return kernels._reorder_linear_weight(self.weight.contiguous(), None)


def product(linear: torch.nn.Linear, dtype: torch.dtype, scale: float = 1.0) -> Product:
    """Prepare a linear layer, its outputs scaled."""
    return Product(linear.weight * scale, linear.bias * scale).to(dtype)


def pixelwise(conv: torch.nn.Conv2d, dtype: torch.dtype) -> Product:
    """Prepare a convolution of one pixel, which has a bias, for tensors whose channels come last."""
    assert conv.bias is not None
    return Product(conv.weight.flatten(1), conv.bias).to(dtype)


@dataclass(frozen=True)
class Precision:
    """The types that a model's products are computed in; what is summed up and normalised stays float32.

    Attributes
    ----------
    bulk : of the products whose rounding hardly shows in a mask, which are most of the work: the image encoder, the
        feed-forward layers, self-attention, all looks at memories but the last, wide convolutions.
    fine : of all others.
    """

    bulk: torch.dtype
    fine: torch.dtype


EXACT = Precision(torch.float32, torch.float32)


def precision_on(device: torch.device, *, half: bool = False, exact: bool = False) -> Precision:
    """Choose the types for a device.

    Parameters
    ----------
    half : whether the model bears bfloat16 throughout on a CPU, too. It is measured over many slices: what `mini` finds
        on one slice decides on the next, and with the last look at memories rounded its masks stray.
    exact : on a CPU all is float32.
    """
    if not computes_in_bfloat16(device) or (exact and device.type == "cpu"):
        return EXACT
    return Precision(torch.bfloat16, torch.bfloat16 if half or device.type != "cpu" else torch.float32)
