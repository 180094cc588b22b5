"""The voxel prompt head: from the encoder's features of all slices to what each voxel probably is.

SAM2-SP draws its prompts from "voxel features" (its abstract); how is not published. This head is our reading of it: a
small pyramid from the coarsest level to the finest, every step of which looks along z as well. All of it is
convolution and normalisation over channels only, so that a long volume may be done in overlapping parts with the very
same result, and nothing depends on the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAM2AssistLib.engine.relief import OUT_OF_MEMORY, tell
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures

REACH_MM = 5.0
"""How far along z one step of the head looks; thin slices are passed over."""
PART = 32
"""Slices that are done at a time."""


class VoxelPromptHead(nn.Module):
    """Tells background and K classes apart.

    Parameters
    ----------
    channels : of the encoder's levels, from coarse to fine.
    classes : K.
    width : channels inside.
    """

    def __init__(self, channels: tuple[int, ...], classes: int, width: int = 48) -> None:
        super().__init__()
        self.channels, self.classes, self.width = tuple(channels), classes, width
        self.entries = nn.ModuleList([_PerVoxel(count, width) for count in channels])
        self.place = _PerVoxel(2, width, bias=False)
        self.blocks = nn.ModuleList([_Block(width) for _ in channels])
        self.exit = _PerVoxel(width, classes + 1)

    @property
    def looks(self) -> int:
        """How many steps along z a voxel depends on, to either side."""
        return len(self.blocks)

    def forward(self, levels: tuple[Tensor, ...], step: int = 1) -> Tensor:
        """Classify voxels.

        Parameters
        ----------
        levels : from coarse to fine, (N, C, h, w) of N neighbouring slices.
        step : slices from one look along z to the next.

        Returns
        -------
        (N, K + 1, h, w) logits at the size of the finest level; channel 0 is the background.
        """
        return self.exit(self.trunk(levels, step))

    def trunk(self, levels: tuple[Tensor, ...], step: int) -> Tensor:
        """As `forward`, up to what the classes are read from: (N, width, h, w)."""
        x = self.entries[0](levels[0]) + self.place(_positions(levels[0]))
        x = self.blocks[0](x, step)
        for level, entry, block in zip(levels[1:], self.entries[1:], self.blocks[1:], strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="bilinear", align_corners=False) + entry(level)
            x = block(x, step)
        return x

    def probabilities(self, features: VoxelFeatures, part: int = PART) -> Tensor:
        """Classify a whole volume, a part after the other.

        Returns
        -------
        (N, K + 1, h, w) float16 in host memory.
        """
        return self._in_parts(features, part, lambda x: self.exit(x).softmax(dim=1))

    def embedding(self, features: VoxelFeatures, side: int, part: int = PART) -> Tensor:
        """Describe the cells of a volume by what the classes are read from, thinned to a grid.

        Returns
        -------
        (N, width, side, side) float16 in host memory.
        """
        return self._in_parts(features, part, lambda x: F.adaptive_avg_pool2d(x, side))

    @torch.no_grad()
    def _in_parts(self, features: VoxelFeatures, part: int, read: Callable[[Tensor], Tensor]) -> Tensor:
        step = step_for(features.distance_mm)
        halo = self.looks * step
        done: list[Tensor] = []
        first = 0
        while first < features.slices:
            last = min(first + part, features.slices)
            low, high = max(0, first - halo), min(features.slices, last + halo)
            try:
                levels = tuple(level[low:high].to(self.exit.weight) for level in features.levels)
                seen = self.trunk(levels, step)[first - low : last - low]
                done.append(read(seen).to("cpu", torch.float16))
            except torch.OutOfMemoryError:
                part = self._smaller(part)
                continue
            first = last
        return torch.cat(done)

    def _smaller(self, part: int) -> int:
        """Return how many slices to take at once, after memory ran out; in the end the head works on the CPU."""
        if part > 1:
            part = max(1, part // 4)
            tell(f"structures are now looked for on {part} slices at a time")
        elif self.exit.weight.device.type != "cpu":
            self.to("cpu")
            tell("structures are now looked for on the CPU, which is slower")
        else:
            raise ModelError(OUT_OF_MEMORY) from None
        return part


def step_for(distance_mm: float) -> int:
    """Return how many slices the head passes from one look along z to the next."""
    return max(1, round(REACH_MM / distance_mm))


class _PerVoxel(nn.Linear):
    """A convolution of size 1: as a matrix product it is twice as fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    """Look along z, look around in the slice, think, add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.along = nn.Parameter(torch.tensor([0.25, 0.5, 0.25]).repeat(width, 1))
        self.around = nn.Conv2d(width, width, 5, padding=2, padding_mode="replicate", groups=width)
        self.norm = nn.LayerNorm(width)
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, step: int) -> Tensor:
        y = self.around(self._along(x, step))
        return x + self.think(self.norm(y.movedim(1, -1))).movedim(-1, 1)

    def _along(self, x: Tensor, step: int) -> Tensor:
        places = torch.arange(len(x), device=x.device)
        below, above = (x[(places + d).clamp(0, len(x) - 1)] for d in (-step, step))
        weight = self.along[None, :, :, None, None]
        return below * weight[:, :, 0] + x * weight[:, :, 1] + above * weight[:, :, 2]


def _positions(like: Tensor) -> Tensor:
    """Row and column of each cell in [-1, 1] of the view, which is the frame that all bodies share; (1, 2, h, w)."""
    height, width = like.shape[-2:]
    rows = (torch.arange(height, device=like.device) + 0.5) * 2 / height - 1
    columns = (torch.arange(width, device=like.device) + 0.5) * 2 / width - 1
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None].to(like.dtype)
