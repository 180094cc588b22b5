"""A head that predicts where a mask is wrong, so that corrections can be proposed where no truth exists.

It sees what the mask decoder has made of the slice for this very object (its upscaled features) and the mask itself.
Trained beside an adapter (`SAM2AssistLib.training.phpg`), it takes no part in making the mask: its input is detached.

    with decoder_features(model) as seen:
        decoded = decode(model, ...)
    error = head(seen.features, decoded.logits)   # (N, 1, h, w), the probability that the mask is wrong there

Source: "error prediction" of PHPG (Wang et al., ISBI 2025) as far as its abstract tells; that a map of errors can be
learned from a decoder's features is shown by PRISM (Li et al. 2024, arXiv 2404.15028).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from SAM2AssistLib.prompting.parts import read_part

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

ERROR_HEAD_FILE = "error_head.safetensors"
LAST_ACTIVATION = 4
"""Place of the last activation in the mask decoder's ``output_upscaling``, whose output is as fine as the masks."""


class ErrorHead(nn.Module):
    """Three small convolutions from decoder features and mask to the probability of error.

    Parameters
    ----------
    channels : C of the upscaled features, an eighth of the model's width (`channels_of` tells).
    width : of the hidden layers.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 2, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.GELU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, upscaled_features: Tensor, logits: Tensor) -> Tensor:
        """Predict, for every cell of the mask, the probability that it is wrong.

        Parameters
        ----------
        upscaled_features : (N, C, h, w), see `decoder_features`.
        logits : (N, 1, h, w) of the mask, not gated.

        Returns
        -------
        (N, 1, h, w) in [0, 1].
        """
        return self.error_logits(upscaled_features, logits).sigmoid()

    def error_logits(self, upscaled_features: Tensor, logits: Tensor) -> Tensor:
        """As `forward`, before the sigmoid, for losses."""
        probability = logits.detach().float().sigmoid()
        doubt = 4 * probability * (1 - probability)
        seen = torch.cat([upscaled_features.detach().float(), probability, doubt], dim=1)
        return self.layers(seen).float()


class Seen:
    """What the mask decoder showed in its last pass.

    Attributes
    ----------
    features : (N, C, h, w) upscaled features, one row per object.
    """

    features: Tensor


@contextmanager
def decoder_features(model: SAM2Base) -> Iterator[Seen]:
    """Look at the upscaled features of the mask decoder while the block runs; `Seen.features` are of the last pass."""
    seen = Seen()

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        seen.features = output

    handle = model.sam_mask_decoder.output_upscaling[LAST_ACTIVATION].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def channels_of(model: SAM2Base) -> int:
    """Return C of a model's upscaled decoder features."""
    return model.hidden_dim // 8


def load_error_head(folder: Path, model: SAM2Base) -> ErrorHead | None:
    """Read the error head of an adapter folder, in evaluation mode on the model's device; None if it has none.

    Raises
    ------
    ModelError
        If the file is damaged or does not fit the model.
    """
    path = folder / ERROR_HEAD_FILE
    if not path.is_file():
        return None
    return read_part(ErrorHead(channels_of(model)), path).to(model.device)
