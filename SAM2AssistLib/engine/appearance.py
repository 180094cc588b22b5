"""From Hounsfield units to the three channels that the network sees.

One window serves the whole volume, never one per slice. SAM2's three colour channels are put to use as three windows
derived from it: the window itself, a narrow one for soft-tissue contrast, and a wide one that keeps bone and lung
apart. Networks trained on photographs (SAM 2.1) see the same window three times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Channels:
    """How the three channels follow from one window.

    Attributes
    ----------
    shifts : by which share of its width each channel's window is moved up.
    stretches : by which factor each channel's window is wider.
    offsets : from which slice each channel comes, counted from the one that is shown; beyond the volume's ends the
        last slice repeats.
    """

    shifts: tuple[float, float, float]
    stretches: tuple[float, float, float]
    offsets: tuple[int, int, int] = (0, 0, 0)

    @property
    def needs_neighbours(self) -> bool:
        """Whether the channels are different slices (2.5D)."""
        return any(self.offsets)


ONE_WINDOW = Channels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
THREE_WINDOWS = Channels((0.0, 0.05, 0.0), (1.0, 0.45, 5.0))
"""For the abdominal window (40, 400): (40, 400), (60, 180) and (40, 2000) HU."""

THREE_SLICES = Channels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (-1, 0, 1))
"""One window on a slice and its two neighbours, for adapters that were trained so."""


def to_channels(hu: Tensor, level: float, width: float, channels: Channels) -> Tensor:
    """Window and normalise an image.

    Parameters
    ----------
    hu : (..., H, W) intensities in HU, any real type; (..., 3, H, W) where the channels are different slices.
    level, width : the window in HU.
    channels : `ONE_WINDOW`, `THREE_WINDOWS` or `THREE_SLICES`.

    Returns
    -------
    (..., 3, H, W) float32, normalised with ImageNet's mean and standard deviation, as SAM2 is trained.
    """
    shape = (3, 1, 1)
    shift = torch.tensor(channels.shifts, device=hu.device).view(shape)
    stretch = torch.tensor(channels.stretches, device=hu.device).view(shape)
    mean = torch.tensor(IMAGENET_MEAN, device=hu.device).view(shape)
    std = torch.tensor(IMAGENET_STD, device=hu.device).view(shape)
    values = hu.float() if channels.needs_neighbours else hu.float().unsqueeze(-3)
    # One multiplication, one addition and one clamping of the whole image; all else is done on three numbers.
    scale = 1 / (stretch * width * std)
    offset = (0.5 - mean) / std - (level + shift * width) * scale
    return torch.addcmul(offset, values, scale).clamp_(-mean / std, (1 - mean) / std)
