"""Is a slice of the trunk at all? Where it is not, none of the trunk's organs is looked for.

A head that has only seen abdomens finds something liver-like in a thigh: muscle has the same density and stands where
a liver might. What a whole slice looks like tells the two apart with ease, so that it is asked first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from SAM2AssistLib.prompting.parts import read_part
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures

TRUNK_NAME = "trunk"
TRUNK_FILE = f"{TRUNK_NAME}.safetensors"
SMOOTH_MM = 15.0
"""Standard deviation over which neighbouring slices are heard: one slice alone is no other region of the body."""


class TrunkSense(nn.Module):
    """A linear reading of what a slice looks like as a whole.

    Parameters
    ----------
    channels : C of the encoder's coarsest level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reading = nn.Linear(2 * channels, 1)

    def forward(self, looks: Tensor) -> Tensor:
        """Log odds that a slice is of the trunk, (N,), by its `whole_looks`."""
        return self.reading(looks)[:, 0]

    @torch.no_grad()
    def slices(self, features: VoxelFeatures) -> NDArray[np.bool_]:
        """Tell which slices of a volume are of the trunk, (N,)."""
        weight = self.reading.weight
        odds = self(whole_looks(features).to(weight)).cpu().numpy()
        return ndimage.gaussian_filter1d(odds, SMOOTH_MM / features.distance_mm, mode="nearest") > 0


def whole_looks(features: VoxelFeatures) -> Tensor:
    """Describe slices as a whole: mean and standard deviation of the coarsest level over the cells; (N, 2 C)."""
    cells = features.levels[0].float().flatten(2)
    return torch.cat([cells.mean(dim=2), cells.std(dim=2)], dim=1)


def load_trunk_sense(folder: Path, channels: int) -> TrunkSense | None:
    """Read the trunk sense of an adapter folder; None if it has none.

    Raises
    ------
    ModelError
        If the file is damaged or does not fit the encoder.
    """
    path = folder / TRUNK_FILE
    if not path.is_file():
        return None
    return read_part(TrunkSense(channels), path)
