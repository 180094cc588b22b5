"""The slice encoder: slices to features, once per slice and view, within a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from SAM2AssistLib.engine.appearance import Channels, to_channels
from SAM2AssistLib.engine.device import inference_precision
from SAM2AssistLib.engine.views import View, cut
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

AIR_HU = -1000.0


@dataclass(frozen=True)
class SliceFeatures:
    """Encoder output of one slice and view.

    Attributes
    ----------
    fine, middle, plain : (C/8, S/4, S/4), (C/4, S/8, S/8) and (C, S/16, S/16).
    """

    fine: Tensor
    middle: Tensor
    plain: Tensor

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds."""
        return sum(t.nbytes for t in (self.fine, self.middle, self.plain))


class SliceEncoder:
    """Encodes slices of one volume along one axis and keeps what fits.

    Parameters
    ----------
    model : a SAM2.
    volume, axis : slices are taken along the array axis (0 = k, 1 = j, 2 = i).
    window : one for the whole volume.
    channels : how the three channels follow from it.
    budget_bytes : of the cache; the least recently used slices leave first.
    batch : slices encoded at once.
    """

    def __init__(
        self,
        model: SAM2Base,
        volume: CTVolume,
        axis: int,
        window: Window,
        channels: Channels,
        *,
        budget_bytes: int,
        batch: int,
    ) -> None:
        self.model, self.volume, self.axis = model, volume, axis
        self.window, self.channels = window, channels
        self.budget_bytes, self.batch = budget_bytes, batch
        self.bytes_held = 0
        self.encoded = 0
        self._cache: OrderedDict[tuple[int, View], SliceFeatures] = OrderedDict()
        self._positions: Tensor | None = None
        # Beyond the slice there is air in a CT; in other images, their darkest value.
        self._fill = max(AIR_HU, float(volume.array.min()))

    @property
    def positions(self) -> Tensor:
        """Position encoding of the coarsest level, (C, S/16, S/16); the same for every slice."""
        if self._positions is None:
            grid = self.model.image_size // self.model.backbone_stride
            parameter = next(self.model.parameters())
            dummy = parameter.new_zeros(1, self.model.hidden_dim, grid, grid)
            self._positions = self.model.image_encoder.neck.position_encoding(dummy)[0].to(parameter.dtype)
        return self._positions

    def features(self, keys: Sequence[tuple[int, View]]) -> list[SliceFeatures]:
        """Return the features of slices through views, encoding together those that are not held.

        Parameters
        ----------
        keys : (slice index, view) pairs.
        """
        wanted = list(dict.fromkeys(keys))
        held = {key: self._cache[key] for key in wanted if key in self._cache}
        missing = [key for key in wanted if key not in held]
        for start in range(0, len(missing), self.batch):
            held |= self._encode(missing[start : start + self.batch])
        for key in wanted:
            self._keep(key, held[key])
        return [held[key] for key in keys]

    def holds(self, index: int, view: View) -> bool:
        """Tell whether a slice need not be encoded again."""
        return (index, view) in self._cache

    @torch.inference_mode()
    def _encode(self, keys: list[tuple[int, View]]) -> dict[tuple[int, View], SliceFeatures]:
        size, device = self.model.image_size, self.model.device
        hu = torch.stack([cut(self.volume.slice_hu(self.axis, k), view, size, self._fill) for k, view in keys])
        images = to_channels(hu.to(device), self.window.level, self.window.width, self.channels)
        with inference_precision(device):
            fine, middle, plain = self.model.forward_image(images)["backbone_fpn"]
        self.encoded += len(keys)
        # Rows are cloned, or one held slice would keep its whole batch in memory.
        return {key: SliceFeatures(fine[n].clone(), middle[n].clone(), plain[n].clone()) for n, key in enumerate(keys)}

    def _keep(self, key: tuple[int, View], features: SliceFeatures) -> None:
        if key not in self._cache:
            self.bytes_held += features.size_bytes
            self._cache[key] = features
        self._cache.move_to_end(key)
        while self.bytes_held > self.budget_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self.bytes_held -= oldest.size_bytes
