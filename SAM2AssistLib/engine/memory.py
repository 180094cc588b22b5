"""What a segment remembers of its slices, and how a slice's features are conditioned on it.

The order, the number and the position encodings of the memories are SAM2's
(``SAM2Base._prepare_memory_conditioned_features``), but many rows, each with memories of its own, go through the
memory attention together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from SAM2AssistLib.engine.heads import ABSENT_LOGIT
from SAM2AssistLib.engine.views import View

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True, eq=False)
class SliceState:
    """What is known of one segment on one slice.

    Attributes
    ----------
    view : through which the slice was seen.
    logits : (S/4, S/4) float16 mask logits, gated by the object score.
    iou : predicted IoU in [0, 1].
    object_score : logit of the segment being on this slice.
    pointer : (C,) object pointer.
    memory : (M, S/16, S/16) bfloat16 memory features, as SAM2's own predictor stores them; None where no propagation
        has asked for them yet, and once dropped.
    prompted : whether a prompt made it, which makes it a conditioning memory.
    reverse : whether it was reached going down the slice indices.
    backed : whether it holds an opinion from outside of the propagation, see `blending`.
    """

    view: View
    logits: Tensor
    iou: float
    object_score: float
    pointer: Tensor
    memory: Tensor | None
    prompted: bool = False
    reverse: bool = False
    backed: bool = False

    def at_rest(self) -> SliceState:
        """Return the state without its memory, and with its logits in host memory."""
        return replace(self, memory=None, logits=self.logits.cpu())

    @property
    def shows(self) -> bool:
        """Whether there is a mask at all."""
        return self.object_score > 0 and bool((self.logits > 0).any())

    @property
    def confidence(self) -> float:
        """How sure the network is, in [0, 1]: of the mask by its predicted IoU, of an absence by the object score."""
        return self.iou if self.object_score > 0 else 1 / (1 + math.exp(min(30.0, self.object_score)))

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds."""
        return self.logits.nbytes + self.pointer.nbytes + (0 if self.memory is None else self.memory.nbytes)


def blank_ones(states: Sequence[SliceState]) -> set[int]:
    """Return the places of states that tell nothing of their slice but that a propagation found no segment there."""
    absent = [n for n, state in enumerate(states) if not state.prompted and state.object_score <= 0]
    if not absent:
        return set()
    # States of one call may lie on the device and in host memory; the device is asked once for all of them.
    device = states[absent[-1]].pointer.device
    highest = torch.stack([states[n].logits.amax().to(device) for n in absent])
    return {n for n, blank in zip(absent, (highest <= ABSENT_LOGIT).tolist(), strict=True) if blank}


@dataclass(frozen=True)
class Recall:
    """The memories and pointers that one row attends to, in SAM2's order.

    Attributes
    ----------
    memories : (temporal position, slice, state); position 0 for conditioning slices, 1 for the farthest and 6 for the
        nearest other.
    pointers : (distance in slices, signed, positive towards the past; pointer).
    """

    memories: tuple[tuple[int, int, SliceState], ...]
    pointers: tuple[tuple[int, Tensor], ...]

    @property
    def signature(self) -> tuple[int, int]:
        """Rows of equal signature fit into one batch."""
        return len(self.memories), len(self.pointers)


def recall(
    model: SAM2Base,
    index: int,
    *,
    reverse: bool,
    slices: int,
    conditioning: Mapping[int, SliceState],
    tracked: Callable[[int], SliceState | None],
) -> Recall:
    """Choose what a slice attends to.

    Parameters
    ----------
    index : of the slice.
    reverse : whether the propagation goes down the slice indices.
    slices : number of slices along the axis.
    conditioning : the prompted slices.
    tracked : gives the state of any other slice, or None.
    """
    from sam2.modeling.sam2_utils import select_closest_cond_frames  # noqa: PLC0415 - keeps torch's import chain lazy

    sign = -1 if reverse else 1
    chosen, others = select_closest_cond_frames(index, dict(conditioning), model.max_cond_frames_in_attn)
    memories = [(0, place, state) for place, state in chosen.items()]
    for position in range(1, model.num_maskmem):
        place = index - sign * (model.num_maskmem - position)
        state = tracked(place) or others.get(place)
        if state is not None:
            memories.append((position, place, state))
    pointers = [
        ((index - place) * sign, state.pointer) for place, state in chosen.items() if (index - place) * sign >= 0
    ]
    for distance in range(1, min(slices, model.max_obj_ptrs_in_encoder)):
        place = index - sign * distance
        if not 0 <= place < slices:
            break
        state = tracked(place) or others.get(place)
        if state is not None:
            pointers.append((distance, state.pointer))
    return Recall(tuple(memories), tuple(pointers))


def condition(model: SAM2Base, plain: Tensor, positions: Tensor, recalls: Sequence[Recall], slices: int) -> Tensor:
    """Condition the features of some rows, each on its own memories.

    Parameters
    ----------
    plain : (R, C, h, w) features of the rows' slices.
    positions : (C, h, w) position encoding.
    recalls : R of them, in any mixture of signatures.
    slices : number of slices along the axis, which scales the pointers' distances as in SAM2.

    Returns
    -------
    (R, C, h, w).
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for row, item in enumerate(recalls):
        groups.setdefault(item.signature, []).append(row)
    result = torch.empty_like(plain)
    for rows in groups.values():
        result[rows] = _condition_alike(model, plain[rows], positions, [recalls[row] for row in rows], slices)
    return result


def _condition_alike(
    model: SAM2Base, plain: Tensor, positions: Tensor, recalls: Sequence[Recall], slices: int
) -> Tensor:
    rows, channels, height, width = plain.shape
    device, dtype = plain.device, plain.dtype
    if not recalls[0].memories:
        return plain + model.no_mem_embed.reshape(1, -1, 1, 1)
    stored = [torch.stack([state.memory.to(device) for *_, state in item.memories]) for item in recalls]  # type: ignore[union-attr]
    memory = torch.stack(stored).to(device=device, dtype=dtype, non_blocking=True)  # (R, n, M, h, w)
    memory = memory.flatten(3).permute(1, 3, 0, 2).flatten(0, 1)  # (n*hw, R, M)
    times = torch.tensor([[model.num_maskmem - t - 1 for t, *_ in item.memories] for item in recalls], device=device)
    time_code = model.maskmem_tpos_enc[times][:, :, 0, 0]  # (R, n, M)
    place_code = _place_code(model, height, width, plain)  # (hw, M)
    code = (time_code.transpose(0, 1)[:, None] + place_code[None, :, None]).flatten(0, 1)  # (n*hw, R, M)
    pointer_count = 0
    if recalls[0].pointers:
        pointers, pointer_code = pointer_tokens(model, recalls, slices, plain)
        memory, code = torch.cat([memory, pointers]), torch.cat([code, pointer_code])
        pointer_count = len(pointers)
    out = model.memory_attention(
        curr=plain.flatten(2).permute(2, 0, 1),
        curr_pos=positions.flatten(1).permute(1, 0)[:, None].expand(-1, rows, -1).to(dtype),
        memory=memory,
        memory_pos=code,
        num_obj_ptr_tokens=pointer_count,
    )
    return out.permute(1, 2, 0).reshape(rows, channels, height, width)


def _place_code(model: SAM2Base, height: int, width: int, like: Tensor) -> Tensor:
    dummy = like.new_zeros(1, model.mem_dim, height, width)
    code = model.memory_encoder.position_encoding(dummy)[0].to(like.dtype)  # (M, h, w), cached by SAM2
    return code.flatten(1).transpose(0, 1)


def pointer_tokens(model: SAM2Base, recalls: Sequence[Recall], slices: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Split pointers into tokens of the memory's width; both (n * C/M, R, M)."""
    from sam2.modeling.sam2_utils import get_1d_sine_pe  # noqa: PLC0415 - keeps torch's import chain lazy

    rows, count = len(recalls), len(recalls[0].pointers)
    stored = [pointer for item in recalls for _, pointer in item.pointers]
    if any(pointer.device != like.device for pointer in stored):
        stored = [pointer.to(like.device) for pointer in stored]
    pointers = torch.stack(stored).to(like.dtype)  # (R*n, C)
    channels = pointers.shape[1]
    parts = channels // model.mem_dim
    farthest = max(1, min(slices, model.max_obj_ptrs_in_encoder) - 1)
    # Rows that have come equally far, which are nearly all, look equally far back.
    distances = [tuple(distance for distance, _ in item.pointers) for item in recalls]
    once = {ways: n for n, ways in enumerate(dict.fromkeys(distances))}
    far = torch.tensor(list(once), device=like.device)
    code = get_1d_sine_pe(far.flatten() / farthest, dim=channels).to(like)
    code = model.obj_ptr_tpos_proj(code).view(len(once), count, model.mem_dim)
    code = code[[once[ways] for ways in distances]].transpose(0, 1)  # (n, R, M)
    tokens = pointers.view(rows, count, parts, model.mem_dim).permute(1, 2, 0, 3).flatten(0, 1)
    return tokens, code.repeat_interleave(parts, dim=0)
