"""What each voxel of a volume probably is: the common ground of a trained head and of a support set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from SAM2AssistLib.engine.views import View

TYPICAL = 0.3
"""Of a class's largest section: what is smaller on its slice is a poor template."""
LEAST_CELLS = 2.0


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Probabilities on the grid of a view, for axial slices from feet to head.

    Attributes
    ----------
    names : of the K classes.
    probabilities : (N, K + 1, g, g) float16 that sum to one; channel 0 is the background.
    view : through which the slices were seen.
    distance_mm : from slice to slice.
    trust : (K, N) in [0, 1], how far whoever made the maps trusts each slice; None for all alike.
    """

    names: tuple[str, ...]
    probabilities: Tensor
    view: View
    distance_mm: float
    trust: NDArray[np.float32] | None = None

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.probabilities)

    def only(self, names: tuple[str, ...]) -> ClassMaps:
        """Keep these classes; what is left out joins the background."""
        chosen = [self.names.index(name) for name in names]
        kept = self.probabilities[:, [n + 1 for n in chosen]]
        background = (1 - kept.sum(dim=1, keepdim=True)).clamp_min(0)
        trust = None if self.trust is None else self.trust[chosen]
        return replace(self, names=names, probabilities=torch.cat([background, kept], dim=1), trust=trust)

    def of(self, name: str) -> NDArray[np.float32]:
        """Return the probability of a class, (N, g, g)."""
        return self.probabilities[:, self.names.index(name) + 1].float().numpy()

    def region(self, name: str) -> NDArray[np.bool_]:
        """Return the largest connected part of where a class is the most probable, (N, g, g)."""
        won = (self.probabilities.argmax(dim=1) == self.names.index(name) + 1).numpy()
        components, count = ndimage.label(won)
        if count < 2:
            return won
        sizes = np.bincount(components.ravel())[1:]
        # An organ may be seen in parts, such as a stomach; specks are mistakes.
        return np.isin(components, 1 + np.flatnonzero(sizes >= 0.2 * sizes.max()))

    def confidence(self, name: str, region: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Tell for every slice how good a template of a class it would be; (N,) in [0, 1].

        That is the mean probability in the region, less where the section is small, times the trust in the slice.
        """
        probability = self.of(name)
        area = region.sum(axis=(1, 2)).astype(np.float32)
        if area.max() < LEAST_CELLS:
            return np.zeros(self.slices, np.float32)
        mean = (probability * region).sum(axis=(1, 2)) / np.maximum(area, 1)
        confidence = mean * np.minimum(1, area / (TYPICAL * area.max()))
        if self.trust is not None:
            confidence = confidence * self.trust[self.names.index(name)]
        return np.where(area >= LEAST_CELLS, confidence, 0).astype(np.float32)


def competing(names: tuple[str, ...], alone: Tensor, view: View, distance_mm: float, trust: NDArray) -> ClassMaps:
    """Let classes that were found one by one compete for the voxels.

    Parameters
    ----------
    alone : (N, K, g, g) probability of each class as if it were the only one.
    trust : (K, N).

    Returns
    -------
    Maps in which the background is what no class claims; where several do, each gets a share.
    """
    alone = alone.float()
    nobody = (1 - alone).clamp_min(1e-3).prod(dim=1, keepdim=True)
    odds = alone / (1 - alone).clamp_min(1e-3)
    shares = torch.cat([nobody, odds * nobody], dim=1)
    return ClassMaps(names, (shares / shares.sum(dim=1, keepdim=True)).half(), view, distance_mm, trust)
