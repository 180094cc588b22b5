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
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.memory import Recall, SliceState
from SAM2AssistLib.engine.network import Row
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.prompting.class_maps import ClassMaps, competing
from SAM2AssistLib.prompting.retrieval import Match, Retrieval
from SAM2AssistLib.prompting.self_prompt import SelfPrompter
from SAM2AssistLib.prompting.support import Support
from SAM2AssistLib.prompting.trunk import TrunkSense
from SAM2AssistLib.prompting.voxel_features import GRID, VoxelFeatures

PRIOR_LIMIT = 6.0
GUIDED_ROWS = 16
"""Classes of a slice that are looked at together the second time."""


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
    guided : whether each slice is looked at once more, guided by its pseudo-masks (PMA), where a trained guidance is.
    prior_weight : from 0, the pseudo-masks alone, to 1, the resembling cells alone.
    """

    memories: int = 4
    neighbours: int = 6
    least_prior: float = 0.1
    presence: float = 0.35
    with_adapter: bool = True
    random_seed: int | None = None
    guided: bool = True
    prior_weight: float = 0.75


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may be on a slice.

    Attributes
    ----------
    chosen : numbers of the classes that are looked for.
    prior : (K, g, g), how much the cells resemble those of each class.
    rows : one for each chosen class, with the memories of its support slices.
    """

    chosen: list[int]
    prior: Tensor
    rows: list[Row]


class SupportPrompter:
    """Makes class maps of a volume from support cases.

    Parameters
    ----------
    supports : at least one; all encoded by the network of ``plane``.
    plane : axial slices of the volume in the common orientation.
    features : of its slices.
    prompter : of an adapter whose head compares cells, whose guidance looks twice, and whose sense of the trunk says
        where not to look; None to compare plain features.
    """

    def __init__(
        self,
        supports: Sequence[Support],
        plane: Plane,
        features: VoxelFeatures,
        options: SupportOptions,
        prompter: SelfPrompter | None = None,
    ) -> None:
        self.supports, self.plane, self.features, self.options = list(supports), plane, features, options
        self.guidance = prompter.guidance if prompter and options.guided else None
        self.retrieval = Retrieval(features, supports, prompter.head if prompter else None, options.random_seed)
        self.classes = tuple(dict.fromkeys(name for support in supports for name in support.classes))
        self._elsewhere = self._outside_the_trunk(prompter.trunk if prompter else None)
        self._remembered: dict[tuple[int, int, str], SliceState] = {}

    def maps(self) -> Iterator[ClassMaps | int]:
        """Yield the number of slices that are done, and last the maps."""
        count, classes = self.features.slices, self.classes
        alone = torch.zeros((count, len(classes), GRID, GRID), dtype=torch.float16)
        trust = np.zeros((len(classes), count), np.float32)
        for k in range(count):
            found = self.candidates(k)
            for n, state in zip(found.chosen, self._pseudo_masks(found.rows), strict=True):
                alone[k, n] = self._blended(state, found.prior[n]).half()
                trust[n, k] = self._trust(state)
            yield k + 1
        yield competing(classes, alone, self.features.view, self.features.distance_mm, trust)

    def candidates(self, k: int) -> Candidates:
        """Tell what may be on a slice, and what is to be remembered of it."""
        view, size = self.features.view, self.plane.network.model.image_size // 4
        prior = self.retrieval.transferred(k, self.classes, self.options.neighbours)
        possible = [n for n in range(len(self.classes)) if not self._elsewhere[n, k]]
        chosen = [n for n in possible if float(prior[n].max()) >= self.options.least_prior]
        rows = []
        for n in chosen:
            matches = self.retrieval.of_class(self.classes[n], k, self.options.memories)
            states = [self._memory(match, self.classes[n]) for match in matches]
            recall = Recall(tuple((0, k, s) for s in states), tuple((1 + i, s.pointer) for i, s in enumerate(states)))
            logits = prior[n].clamp(1e-3, 1 - 1e-3).logit().clamp(-PRIOR_LIMIT, PRIOR_LIMIT)
            carried = F.interpolate(logits[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]
            rows.append(Row(k, view, recall, carried.to(self.plane.network.model.device), reverse=False))
        return Candidates(chosen, prior, rows)

    def _outside_the_trunk(self, trunk: TrunkSense | None) -> NDArray[np.bool_]:
        """Tell on which slices a class cannot be, (K, N): on limbs, if the support shows it mostly in the trunk."""
        elsewhere = np.zeros((len(self.classes), self.features.slices), bool)
        if trunk is None:
            return elsewhere
        limbs, own = ~trunk.slices(self.features), [trunk.slices(s.features) for s in self.supports]
        for n, name in enumerate(self.classes):
            shown = [of_trunk[s.slices_with(name)] for of_trunk, s in zip(own, self.supports, strict=True)]
            in_trunk = np.concatenate(shown)
            elsewhere[n] = limbs & bool(2 * in_trunk.sum() > len(in_trunk))
        return elsewhere

    def _pseudo_masks(self, rows: Sequence[Row]) -> list[SliceState]:
        network = self.plane.network
        states = network.track(rows) if rows else []
        if self.guidance is None:
            return states
        done: list[SliceState] = []
        for first in range(0, len(rows), GUIDED_ROWS):
            part = slice(first, first + GUIDED_ROWS)
            with self.guidance.guiding(network.model.sam_mask_decoder, pseudo_logits(states[part])):
                done += network.look_again(rows[part])
        return done

    def _memory(self, match: Match, name: str) -> SliceState:
        """Remember a class on a support slice, once."""
        key = (match.support, match.slice, name)
        if key not in self._remembered:
            support = self.supports[match.support]
            network, mask = support.plane.network, support.mask(name, match.slice)
            state = network.from_mask(match.slice, support.view, mask)
            self._remembered[key] = network.remember([match.slice], [state])[0]
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


def pseudo_logits(states: Sequence[SliceState]) -> Tensor:
    """Give the pseudo-masks of states as a guidance takes them; (B, 1, S/4, S/4)."""
    return torch.stack([s.logits.float() for s in states])[:, None].clamp(-PRIOR_LIMIT, PRIOR_LIMIT)
