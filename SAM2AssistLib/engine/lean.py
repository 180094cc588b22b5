"""A model's tracking prepared for inference: the same network with fewer operations.

What is prepared refers to the model's parts but never to the model itself, which is given with every call: so it lives
exactly as long as the model. It is derived from the model's weights, so it is made anew when these have changed (an
adapter was switched to, or the model moved to another device).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from SAM2AssistLib.engine.lean_attention import LeanMemoryAttention
from SAM2AssistLib.engine.lean_decoder import LeanDecoder
from SAM2AssistLib.engine.lean_image import LeanImageEncoder
from SAM2AssistLib.engine.lean_memory import LeanMemoryEncoder
from SAM2AssistLib.engine.memory import Recall, pointer_tokens
from SAM2AssistLib.engine.products import Precision

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


class LeanModel:
    """The parts of a SAM2 that a propagation runs for every slice and segment.

    Parameters
    ----------
    model : in evaluation mode.
    precision : of its products.
    """

    def __init__(self, model: SAM2Base, precision: Precision) -> None:
        self.attention = LeanMemoryAttention(model, precision)
        self.memory_encoder = LeanMemoryEncoder(model, precision)
        self.decoder = LeanDecoder(model, precision)
        side = model.image_size // model.backbone_stride
        places = model.memory_encoder.position_encoding(torch.zeros(1, model.mem_dim, side, side, device=model.device))
        self._places = places[0].flatten(1).t().contiguous()  # (hw, M)
        self._times = model.maskmem_tpos_enc[:, 0, 0].flip(0).contiguous()  # by temporal position
        self._codes: dict[tuple[int, ...], Tensor] = {}

    def condition(
        self,
        model: SAM2Base,
        tokens: Tensor,
        place: Tensor,
        positions: Tensor,
        recalls: Sequence[Recall],
        slices: int,
    ) -> Tensor:
        """Condition the features of some rows, each on its own memories.

        Parameters
        ----------
        model : the one that was prepared.
        tokens : (U, hw, C) features of slices, each once.
        place : (R,) which of them a row is on.
        positions : (hw, C) their position encoding.
        recalls : R of them, in any mixture of signatures.
        slices : number of slices along the axis.

        Returns
        -------
        (R, hw, C).
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for row, item in enumerate(recalls):
            groups.setdefault(item.signature, []).append(row)
        if len(groups) == 1:
            return self._condition_alike(model, tokens, place, positions, recalls, slices)
        result = tokens.new_empty(len(recalls), *tokens.shape[1:])
        for rows in groups.values():
            alike = [recalls[row] for row in rows]
            used, own = place[rows].unique(return_inverse=True)
            result[rows] = self._condition_alike(model, tokens[used], own, positions, alike, slices).to(result.dtype)
        return result

    def _condition_alike(
        self,
        model: SAM2Base,
        tokens: Tensor,
        place: Tensor,
        positions: Tensor,
        recalls: Sequence[Recall],
        slices: int,
    ) -> Tensor:
        if not recalls[0].memories:
            return tokens[place] + model.no_mem_embed
        rows = len(recalls)
        # Token-major in memory already, as `LeanMemoryEncoder` leaves them.
        stored = [s.memory.permute(1, 2, 0).to(tokens.device) for item in recalls for *_, s in item.memories]  # type: ignore[union-attr]
        memory = torch.stack(stored).view(rows, -1, model.mem_dim).to(tokens)  # (R, n*hw, M)
        codes = [self._code(tuple(t for t, *_ in item.memories)) for item in recalls]
        shared = all(code is codes[0] for code in codes)
        code = codes[0][None] if shared else torch.stack(codes)  # (1 or R, n*hw, M)
        count = 0
        if recalls[0].pointers:
            pointers, pointer_code = pointer_tokens(model, recalls, slices, tokens)
            count = len(pointers)
            memory = torch.cat([memory, pointers.transpose(0, 1)], dim=1)
            code = torch.cat([code.expand(rows, -1, -1), pointer_code.transpose(0, 1)], dim=1)
        return self.attention(tokens, place, positions, memory, code, count)

    def _code(self, times: tuple[int, ...]) -> Tensor:
        """Position encoding of memories at these temporal positions, (n*hw, M)."""
        if times not in self._codes:
            self._codes[times] = (self._times[list(times)][:, None] + self._places).flatten(0, 1)
        return self._codes[times]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What was made of which weights, as they were then."""

    weights: list[Tensor]
    stamp: int
    part: LeanModel | LeanImageEncoder | None


_Part = tuple[str, Precision]

_PREPARED: weakref.WeakKeyDictionary[SAM2Base, dict[_Part, _Prepared]] = weakref.WeakKeyDictionary()


def lean_tracking(model: SAM2Base, precision: Precision) -> LeanModel | None:
    """Return a model's tracking prepared for inference, or None for a model that has to be used as it is."""

    def prepare() -> tuple[LeanModel | None, Iterable[Tensor]]:
        others = set(model.image_encoder.parameters())
        used = [weight for weight in model.parameters() if weight not in others]
        return LeanModel(model, precision) if LeanDecoder.suits(model) else None, used

    return cast("LeanModel | None", _prepared(model, ("tracking", precision), prepare))


def lean_image_encoder(model: SAM2Base, precision: Precision) -> LeanImageEncoder | None:
    """Return a model's image encoder prepared for inference, or None for a model that has to be used as it is."""

    def prepare() -> tuple[LeanImageEncoder | None, Iterable[Tensor]]:
        used = [*model.image_encoder.parameters(), *model.sam_mask_decoder.parameters()]
        return LeanImageEncoder(model, precision) if LeanImageEncoder.suits(model) else None, used

    return cast("LeanImageEncoder | None", _prepared(model, ("image encoder", precision), prepare))


def _prepared(
    model: SAM2Base, name: _Part, prepare: Callable[[], tuple[LeanModel | LeanImageEncoder | None, Iterable[Tensor]]]
) -> LeanModel | LeanImageEncoder | None:
    parts = _PREPARED.setdefault(model, {})
    known = parts.get(name)
    if known is None or known.stamp != _stamp(known.weights):
        part, used = prepare()
        weights = list(used)
        known = parts[name] = _Prepared(weights, _stamp(weights), part)
    return known.part


def _stamp(weights: Sequence[Tensor]) -> int:
    """Tell weights from what they were: a change in place counts up a version, a move gives another address.

    Asked before every batch, so the list of the weights is kept: collecting it takes a hundred times longer.
    """
    return sum(weight._version + weight.data_ptr() for weight in weights)
