"""PMA of SAM2-SGP as a real gate: a pseudo-mask tells the mask decoder where to look.

The gate is the pseudo-mask's probability, widened by a cell and never below a floor. Its logarithm is added, as a bias
before the softmax, to the attention of the tokens to the image, and the image features are scaled by it; by how much,
and whether up or down, is trained. (The published code multiplies by a softmax over one channel, which is all ones: it
gates nothing, and none of its parameters ever gets a gradient.)

    guidance = MaskGuidance(len(guided_attentions(model.sam_mask_decoder)))
    with guidance.guiding(model.sam_mask_decoder, logits):
        decoded = decode(model, features, high_res, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAM2AssistLib.prompting.parts import read_part

if TYPE_CHECKING:
    from sam2.modeling.sam.mask_decoder import MaskDecoder

GUIDANCE_NAME = "guidance"
GUIDANCE_FILE = f"{GUIDANCE_NAME}.safetensors"
FLOOR = 0.1
"""Of the gate: what a pseudo-mask leaves out can still be seen."""
START = 0.1
"""Of the strengths before training: enough for a gradient to reach all parameters, too little to do harm."""


class MaskGuidance(nn.Module):
    """Two numbers that shape the gate, and how strongly it acts in each place.

    Parameters
    ----------
    attentions : how many attentions from tokens to image the mask decoder has; see `guided_attentions`.
    """

    def __init__(self, attentions: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(0.5))
        self.threshold = nn.Parameter(torch.tensor(0.0))
        self.bias_strengths = nn.Parameter(torch.full((attentions,), START))
        self.light_strength = nn.Parameter(torch.tensor(START))

    def gate(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Make the gate of a pseudo-mask.

        Parameters
        ----------
        logits : (B, 1, h, w).
        size : (H, W) of the image features.

        Returns
        -------
        (B, 1, H, W) in [`FLOOR`, 1].
        """
        probability = ((logits - self.threshold) * self.sharpness).sigmoid()
        widened = F.max_pool2d(F.adaptive_avg_pool2d(probability, size), 3, stride=1, padding=1)
        return FLOOR + (1 - FLOOR) * widened

    @contextmanager
    def guiding(self, decoder: MaskDecoder, logits: Tensor) -> Iterator[None]:
        """Let a mask decoder be guided within the block.

        Parameters
        ----------
        logits : (B, 1, h, w) of the pseudo-masks, one for each row that is decoded.
        """
        attentions, own = guided_attentions(decoder), decoder.forward
        biases: list[Tensor | None] = [None] * len(attentions)

        def forward(image_embeddings: Tensor, **rest: Any) -> Any:
            self.to(image_embeddings.device)  # for want of memory the decoder may have gone to the CPU meanwhile
            gate = self.gate(logits.to(image_embeddings), (image_embeddings.shape[-2], image_embeddings.shape[-1]))
            for number in range(len(attentions)):
                biases[number] = self.bias_strengths[number] * gate.log().flatten(2)[:, None]  # (B, 1, 1, HW)
            return own(image_embeddings=image_embeddings * (1 + self.light_strength * gate), **rest)

        for number, attention in enumerate(attentions):
            attention.forward = _biased(attention, biases, number)
        decoder.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in (decoder, *attentions):
                del module.forward  # the class's own is there again


def load_guidance(folder: Path, decoder: MaskDecoder) -> MaskGuidance | None:
    """Read the guidance of an adapter folder, on the decoder's device; None if it has none.

    Raises
    ------
    ModelError
        If the file is damaged or does not fit the decoder.
    """
    path = folder / GUIDANCE_FILE
    if not path.is_file():
        return None
    guidance = MaskGuidance(len(guided_attentions(decoder)))
    return read_part(guidance, path).to(next(decoder.parameters()).device)


def guided_attentions(decoder: MaskDecoder) -> list[Any]:
    """List the attentions of a mask decoder in which tokens look at the image."""
    transformer = decoder.transformer
    return [*(layer.cross_attn_token_to_image for layer in transformer.layers), transformer.final_attn_token_to_image]


def _biased(attention: Any, biases: list[Tensor | None], number: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """SAM2's own attention (``sam2.modeling.sam.transformer.Attention``) with a bias before the softmax."""

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = biases[number]
        assert bias is not None
        heads = attention.num_heads
        q = attention._separate_heads(attention.q_proj(q), heads)
        k = attention._separate_heads(attention.k_proj(k), heads)
        v = attention._separate_heads(attention.v_proj(v), heads)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias).softmax(dim=-1)
        return attention.out_proj(attention._recombine_heads(weights @ v))

    return forward
