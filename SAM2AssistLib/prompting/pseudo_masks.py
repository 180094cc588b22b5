"""PMG of SAM2-SGP: pseudo-masks of a volume from the memory of support cases.

Each class's masks on the retrieved support slices are remembered by SAM2's own memory encoder, as ±10, and each slice
of the volume attends to them with SAM2's own memory attention. Where the model carries logits from slice to slice, the
classes that resembling cells have in the support take their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.memory import Recall, SliceState
from SAM2AssistLib.engine.network import Row
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.prompting.class_maps import ClassMaps, competing
from SAM2AssistLib.prompting.guidance import MaskGuidance
from SAM2AssistLib.prompting.retrieval import Match, Retrieval
from SAM2AssistLib.prompting.support import Support
from SAM2AssistLib.prompting.voxel_features import GRID, VoxelFeatures
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead

PRIOR_LIMIT = 6.0


@dataclass(frozen=True)
class SupportOptions:
    """How support cases are used.

    Attributes
    ----------
    memories : support slices that a slice attends to, for each class.
    neighbours : support slices whose cells are compared with those of a slice.
    least_prior : a class is not looked for on a slice where no cell resembles one of it more than this.
    presence : least confidence of a class's best slices, as `TemplateOptions.presence`; pseudo-masks are less sure of
        themselves than a trained head.
    with_adapter : whether the adapter that comes with the package helps to compare cells, where no other is given.
    random_seed : for the ablation that draws the support slices instead of retrieving them.
    guidance : for a second look, or None for one look only.
    guided_rows : classes that are looked at together the second time.
    prior_weight : from 0, the pseudo-masks alone, to 1, the resembling cells alone.
    """

    memories: int = 4
    neighbours: int = 6
    least_prior: float = 0.1
    presence: float = 0.35
    with_adapter: bool = True
    random_seed: int | None = None
    guidance: MaskGuidance | None = None
    guided_rows: int = 16
    prior_weight: float = 0.5


class SupportPrompter:
    """Makes class maps of a volume from support cases.

    Parameters
    ----------
    supports : at least one; all encoded by the network of ``plane``.
    plane : axial slices of the volume in the common orientation.
    features : of its slices.
    head : of an adapter, to compare cells by; None to compare plain features.
    """

    def __init__(
        self,
        supports: Sequence[Support],
        plane: Plane,
        features: VoxelFeatures,
        options: SupportOptions,
        head: VoxelPromptHead | None = None,
    ) -> None:
        self.supports, self.plane, self.features, self.options = list(supports), plane, features, options
        self.retrieval = Retrieval(features, supports, head, options.random_seed)
        self.classes = tuple(dict.fromkeys(name for support in supports for name in support.classes))
        self._remembered: dict[tuple[int, int, str], SliceState] = {}

    def maps(self) -> Iterator[ClassMaps | int]:
        """Yield the number of slices that are done, and last the maps."""
        count, classes = self.features.slices, self.classes
        alone = torch.zeros((count, len(classes), GRID, GRID), dtype=torch.float16)
        trust = np.zeros((len(classes), count), np.float32)
        for k in range(count):
            prior = self.retrieval.transferred(k, classes, self.options.neighbours)
            chosen = [n for n in range(len(classes)) if float(prior[n].max()) >= self.options.least_prior]
            for n, state in zip(chosen, self._pseudo_masks(k, chosen, prior), strict=True):
                alone[k, n] = self._blended(state, prior[n]).half()
                trust[n, k] = self._trust(state)
            yield k + 1
        yield competing(classes, alone, self.features.view, self.features.distance_mm, trust)

    def _pseudo_masks(self, k: int, chosen: Sequence[int], prior: Tensor) -> list[SliceState]:
        view, size = self.features.view, self.plane.network.model.image_size // 4
        rows = []
        for n in chosen:
            matches = self.retrieval.of_class(self.classes[n], k, self.options.memories)
            states = [self._memory(match, self.classes[n]) for match in matches]
            recall = Recall(tuple((0, k, s) for s in states), tuple((1 + i, s.pointer) for i, s in enumerate(states)))
            logits = prior[n].clamp(1e-3, 1 - 1e-3).logit().clamp(-PRIOR_LIMIT, PRIOR_LIMIT)
            carried = F.interpolate(logits[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]
            rows.append(Row(k, view, recall, carried.to(self.plane.network.model.device), reverse=False))
        return self._guided(rows, self.plane.network.track(rows)) if rows else []

    def _guided(self, rows: Sequence[Row], states: list[SliceState]) -> list[SliceState]:
        """Look once more, guided by the pseudo-masks (PMA), where there is a trained guidance."""
        guidance, network = self.options.guidance, self.plane.network
        if guidance is None:
            return states
        done: list[SliceState] = []
        for first in range(0, len(rows), self.options.guided_rows):
            part = slice(first, first + self.options.guided_rows)
            logits = torch.stack([s.logits.float() for s in states[part]])[:, None].clamp(-PRIOR_LIMIT, PRIOR_LIMIT)
            with guidance.guiding(network.model.sam_mask_decoder, logits):
                done += network.look_again(rows[part])
        return done

    def _memory(self, match: Match, name: str) -> SliceState:
        """Remember a class on a support slice, once."""
        key = (match.support, match.slice, name)
        if key not in self._remembered:
            support = self.supports[match.support]
            mask = support.mask(name, match.slice)
            self._remembered[key] = support.plane.network.from_mask(match.slice, support.view, mask)
        return self._remembered[key]

    def _trust(self, state: SliceState) -> float:
        """How far a slice is trusted; what the pseudo-mask says counts as much as in the maps."""
        sure = state.confidence if state.object_score > 0 else 0.0
        return float(sure ** (1 - self.options.prior_weight))

    def _blended(self, state: SliceState, prior: Tensor) -> Tensor:
        """Weigh a pseudo-mask and the resembling cells; (g, g) probability."""
        size, weight = (GRID, GRID), self.options.prior_weight
        mask = F.adaptive_avg_pool2d(state.logits.float().cpu()[None, None].sigmoid(), size)[0, 0]
        cells = F.interpolate(prior[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        return mask ** (1 - weight) * cells.clamp_min(1e-4) ** weight
