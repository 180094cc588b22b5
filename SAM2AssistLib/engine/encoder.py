"""The slice encoder: slices to features, once per slice and view, within a byte budget."""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from SAM2AssistLib.engine.appearance import Channels, to_channels
from SAM2AssistLib.engine.device import computes_in_bfloat16, inference_precision
from SAM2AssistLib.engine.heap import give_freed_memory_back
from SAM2AssistLib.engine.lean import lean_image_encoder
from SAM2AssistLib.engine.products import precision_on
from SAM2AssistLib.engine.refiner import EDGE_CHANNELS, EdgeRefiner
from SAM2AssistLib.engine.views import View, cut
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

AIR_HU = -1000.0
EVICTIONS_BETWEEN_TRIMS = 64
_TURNS = itertools.count()


@dataclass(frozen=True)
class SliceFeatures:
    """Encoder output of one slice and view.

    Attributes
    ----------
    fine, middle, plain : (C/8, S/4, S/4), (C/4, S/8, S/8) and (C, S/16, S/16).
    edges : (E, S/4, S/4) for the refiner, or None without one.
    """

    fine: Tensor
    middle: Tensor
    plain: Tensor
    edges: Tensor | None = None

    def on(self, device: torch.device | str, dtype: torch.dtype | None = None) -> SliceFeatures:
        """Return them on a device, in a precision if one is given; itself if they are."""
        dtype = dtype or self.plain.dtype
        if self.plain.device == torch.device(device) and self.plain.dtype == dtype:
            return self
        levels = (None if t is None else t.to(device, dtype) for t in (self.fine, self.middle, self.plain, self.edges))
        return SliceFeatures(*levels)  # type: ignore[arg-type]

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds."""
        return sum(t.nbytes for t in (self.fine, self.middle, self.plain, self.edges) if t is not None)


class SliceEncoder:
    """Encodes slices of one volume along one axis and keeps what fits.

    Parameters
    ----------
    model : a SAM2.
    volume, axis : slices are taken along the array axis (0 = k, 1 = j, 2 = i).
    window : one for the whole volume.
    channels : how the three channels follow from it.
    budget_bytes, most_slices : of the cache; the least recently used slices leave first. The bytes are those of all
        encoders on a device together: where a user goes on to another volume, those of the one before make room.
    batch : slices encoded at once.
    refiner : looks at every slice too, if there is one.
    exact : on a CPU all is computed in float32.
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
        refiner: EdgeRefiner | None = None,
        most_slices: int = sys.maxsize,
        exact: bool = False,
    ) -> None:
        self.model, self.volume, self.axis = model, volume, axis
        self.window, self.channels = window, channels
        self.refiner, self.exact = refiner, exact
        self.budget_bytes, self.most_slices, self.batch = budget_bytes, most_slices, batch
        self.bytes_held = 0
        self.encoded = self.evicted = 0
        self.on_host = False
        self._cache: OrderedDict[tuple[int, View], SliceFeatures] = OrderedDict()
        self._turn = next(_TURNS)
        _ENCODERS.add(self)
        self._positions: Tensor | None = None
        # Beyond the slice there is air in a CT; in other images, their darkest value.
        self._fill = max(AIR_HU, float(volume.array.min()))

    @property
    def positions(self) -> Tensor:
        """Position encoding of the coarsest level, (C, S/16, S/16); the same for every slice."""
        if self._positions is None or self._positions.device != self.model.device:
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
        self._turn = next(_TURNS)
        wanted = list(dict.fromkeys(keys))
        held = {key: self._cache[key] for key in wanted if key in self._cache}
        missing = [key for key in wanted if key not in held]
        for start in range(0, len(missing), self.batch):
            held |= self._encode(missing[start : start + self.batch])
        for key in wanted:
            self._keep(key, held[key].on("cpu") if self.on_host else held[key])
        self._make_room_beside()
        # The network may be elsewhere by now: a volume beside this one can have sent it to the CPU for want of memory,
        # which computes in another precision.
        device = self.model.device
        dtype = _dtype_on(device)
        return [held[key].on(device, dtype) for key in keys]

    def keep_on_host(self) -> None:
        """Keep features in host memory from now on, and bring them to the device when they are needed."""
        self.on_host = True
        self._cache = OrderedDict((key, features.on("cpu")) for key, features in self._cache.items())

    def forget(self) -> None:
        """Drop all features; the device may be another one from now on."""
        self._cache.clear()
        self.bytes_held, self.on_host, self._positions = 0, False, None

    def outward(self, first: int) -> list[int]:
        """List as many slices as fit into the budget, from one outward."""
        count = self.volume.array.shape[self.axis]
        return sorted(range(count), key=lambda index: (abs(index - first), index))[: self.room]

    @property
    def room(self) -> int:
        """How many slices are held at most; a batch is, whatever the budget."""
        return max(self.batch, self.kept)

    @property
    def kept(self) -> int:
        """How many slices fit into the budget."""
        model = self.model
        values = 4 * model.hidden_dim * (model.image_size // model.backbone_stride) ** 2  # plain, middle and twice fine
        if self.refiner is not None:
            values += EDGE_CHANNELS * (model.image_size // 4) ** 2
        return min(self.most_slices, self.budget_bytes // (values * _dtype_on(model.device).itemsize))

    def holds(self, index: int, view: View) -> bool:
        """Tell whether a slice need not be encoded again."""
        return (index, view) in self._cache

    @torch.inference_mode()
    def _encode(self, keys: list[tuple[int, View]]) -> dict[tuple[int, View], SliceFeatures]:
        device = self.model.device
        dtype = _dtype_on(device)
        hu = torch.stack([self._shown(k, view) for k, view in keys])
        images = to_channels(hu.to(device), self.window.level, self.window.width, self.channels)
        with inference_precision(device):
            lean = lean_image_encoder(self.model, precision_on(device, exact=self.exact))
            levels = self.model.forward_image(images)["backbone_fpn"] if lean is None else lean(images)
            if self.refiner is not None:
                levels = [*levels, self.refiner.edges(images)]
        self.encoded += len(keys)
        # Rows are cloned, or one held slice would keep its whole batch in memory.
        return {key: SliceFeatures(*(level[n].to(dtype, copy=True) for level in levels)) for n, key in enumerate(keys)}

    def _shown(self, index: int, view: View) -> Tensor:
        """Show a slice through a view in HU, (S, S), or (3, S, S) where its neighbours are channels."""
        last = self.volume.array.shape[self.axis] - 1
        offsets = self.channels.offsets if self.channels.needs_neighbours else (0,)
        slices = [
            cut(
                self.volume.slice_hu(self.axis, min(max(index + offset, 0), last)),
                view,
                self.model.image_size,
                self._fill,
            )
            for offset in offsets
        ]
        return torch.stack(slices) if self.channels.needs_neighbours else slices[0]

    def _keep(self, key: tuple[int, View], features: SliceFeatures) -> None:
        if key not in self._cache:
            self.bytes_held += features.size_bytes
            self._cache[key] = features
        self._cache.move_to_end(key)
        while len(self._cache) > 1 and (self.bytes_held > self.budget_bytes or len(self._cache) > self.most_slices):
            self._drop_oldest()

    def _make_room_beside(self) -> None:
        """Let the other encoders on the device drop what is beyond the budget, those left longest ago first."""
        beside = [other for other in _ENCODERS if other is not self and other.model.device == self.model.device]
        excess = self.bytes_held + sum(other.bytes_held for other in beside) - self.budget_bytes
        for other in sorted(beside, key=lambda encoder: encoder._turn) if excess > 0 else ():
            while other._cache and excess > 0:
                excess -= other._drop_oldest()

    def _drop_oldest(self) -> int:
        """Drop what was not used for longest; returns its bytes."""
        _, oldest = self._cache.popitem(last=False)
        self.bytes_held -= oldest.size_bytes
        self.evicted += 1
        if self.evicted % EVICTIONS_BETWEEN_TRIMS == 0:
            give_freed_memory_back()
        return oldest.size_bytes


_ENCODERS: weakref.WeakSet[SliceEncoder] = weakref.WeakSet()


def _dtype_on(device: torch.device) -> torch.dtype:
    """Features are kept in half the size where that is how they are computed; elsewhere as they are."""
    return torch.bfloat16 if device.type == "cuda" and computes_in_bfloat16(device) else torch.float32
