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
    return Product((linear.weight * scale).to(dtype), (linear.bias * scale).to(dtype))


def pixelwise(conv: torch.nn.Conv2d, dtype: torch.dtype) -> Product:
    """Prepare a convolution of one pixel, which has a bias, for tensors whose channels come last."""
    assert conv.bias is not None
    return Product(conv.weight.flatten(1).to(dtype), conv.bias.to(dtype))


def products_on(device: torch.device, *, half: bool = True) -> torch.dtype:
    """Choose the type that a model's products are computed in; what is summed up and normalised stays float32.

    Parameters
    ----------
    half : whether the model bears bfloat16 on a CPU, too. It is measured over many slices: what `mini` finds on one
        slice decides on the next, and after 200 of them it had lost an object that it holds in float32.
    """
    if computes_in_bfloat16(device) and (half or device.type != "cpu"):
        return torch.bfloat16
    return torch.float32
