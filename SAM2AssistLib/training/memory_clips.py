"""Clips for the memory: prompts on one or two slices, propagation between and beyond, a correction on the worst slice.

SAM2 over-propagates: a mask goes on where the object has ended. Clips run over such ends, and the object score and the
mask are both told so (`SAM2AssistLib.training.region_losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from SAM2AssistLib.engine.heads import Decoded, decode, encode_memory, mask_as_output
from SAM2AssistLib.prompting.dense import draw_prompts
from SAM2AssistLib.prompting.error_head import ErrorHead
from SAM2AssistLib.training.behaviours import Draws
from SAM2AssistLib.training.corrections import correction_clicks
from SAM2AssistLib.training.phpg import Outcome, Prompting, Regions, encode, prompt_and_correct, row_weights
from SAM2AssistLib.training.region_losses import row_losses

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

CORRECTION_STREAM = 99
"""Keeps the random numbers of the correction apart from those of the first prompts, of the same keys."""


@dataclass(frozen=True)
class Clips:
    """The regions of a batch of clips.

    Attributes
    ----------
    images : (B, T, 3, S, S); masks : (T, R, S, S) bool, none empty in the first slice.
    owner : (R,) clip of each region; weights : (B,) of the clips; keys : R of them, as in `Regions`.
    """

    images: Tensor
    masks: Tensor
    owner: Tensor
    weights: Tensor
    keys: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Travel:
    """What is decided once for a step on clips.

    Attributes
    ----------
    rounds : corrections on the first slice.
    second : whether the last slice is given, too: as an edited mask, which is empty where the object has ended.
    carried : whether the mask of a slice is the mask prompt of the next.
    """

    rounds: int
    second: bool
    carried: bool


@dataclass
class _Tracked:
    slice: int
    conditioned: Tensor
    decoded: Decoded
    dice: Tensor


def clip_step(
    model: SAM2Base,
    head: ErrorHead,
    batch: Clips,
    prompting: Prompting,
    travel: Travel,
    *,
    drawn_prompts: bool,
) -> Outcome:
    """Prompt the first slice of every clip, propagate, and correct the slice that came out worst.

    Parameters
    ----------
    model, head : what is trained.
    batch : the clips.
    prompting : as on single slices, with one behaviour per region.
    travel : what this step does.
    drawn_prompts : see `SAM2AssistLib.training.phpg.phpg_step`.

    Returns
    -------
    Outcome
        With a loss that is the mean over clips, their regions and their slices.
    """
    clips, count = batch.images.shape[:2]
    levels = encode(model, batch.images.flatten(0, 1))
    first = torch.arange(clips, device=batch.images.device) * count
    regions = Regions(batch.images[:, 0], batch.masks[0], batch.owner, batch.weights, batch.keys)
    outcome, decoded = prompt_and_correct(
        model,
        head,
        [level[first] for level in levels],
        regions,
        replace(prompting, per_region=1),
        travel.rounds,
        drawn_prompts=drawn_prompts,
    )
    rows = first[batch.owner]
    weights = row_weights(batch.owner, batch.weights)
    positions = _positions(model, levels[-1])
    bank: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    bank["cond_frame_outputs"][0] = _remember(model, levels[-1][rows], decoded, from_prompt=True)
    last = count - 1
    if travel.second:
        given = _edited(model, levels, rows + last, batch.masks[last])
        bank["cond_frame_outputs"][last] = _remember(model, levels[-1][rows + last], given, from_prompt=True)

    terms, tracked = [outcome.loss], []
    for t in range(1, count - travel.second):
        fine, middle, plain = (level[rows + t] for level in levels)
        conditioned = _condition(model, plain, positions, bank, t, count)
        dense = draw_prompts(model.image_size, None, None, decoded.gated().detach()) if travel.carried else None
        decoded = decode(model, conditioned, [fine, middle], dense=dense)
        result = row_losses(decoded, batch.masks[t])
        terms.append((result.loss * weights).sum())
        tracked.append(_Tracked(t, conditioned, decoded, result.dice))
        bank["non_cond_frame_outputs"][t] = _remember(model, plain, decoded, from_prompt=False)
    if tracked:
        outcome.dice["propagated"] = torch.stack([item.dice for item in tracked]).nanmean()
        loss, outcome.dice["worst corrected"] = _correct_worst(
            model, levels, rows, weights, batch, tracked, drawn_prompts
        )
        terms.append(loss)
    outcome.loss = torch.stack(terms).mean()
    outcome.decodes += len(rows) * (len(tracked) + bool(tracked))
    return outcome


def _correct_worst(
    model: SAM2Base,
    levels: Sequence[Tensor],
    rows: Tensor,
    weights: Tensor,
    batch: Clips,
    tracked: Sequence[_Tracked],
    drawn_prompts: bool,
) -> tuple[Tensor, Tensor]:
    """Click once per region on the slice of its clip that came out worst, where it is wrong.

    Where the object has ended, a mask that goes on is as wrong as can be.
    """
    goodness = torch.stack(
        [torch.where(item.dice.isnan(), (item.decoded.object_score[:, 0] <= 0).float(), item.dice) for item in tracked]
    ).detach()  # (slices, R)
    clips = len(batch.weights)
    summed = goodness.new_zeros(len(tracked), clips).index_add(1, batch.owner, goodness)
    counts = goodness.new_zeros(clips).index_add(0, batch.owner, goodness.new_ones(len(rows)))
    worst = (summed / counts).argmin(0)[batch.owner]  # (R,) place in `tracked`
    each = torch.arange(len(rows), device=rows.device)
    slices = torch.tensor([item.slice for item in tracked], device=rows.device)[worst]
    masks = batch.masks[slices, each]
    previous = torch.stack([item.decoded.gated().detach() for item in tracked])[worst, each].clamp_min(-32.0)
    conditioned = torch.stack([item.conditioned for item in tracked])[worst, each]
    draws = Draws([(*key, CORRECTION_STREAM) for key in batch.keys], rows.device)
    points, labels = correction_clicks(previous, masks, batch.owner, draws)
    dense = draw_prompts(model.image_size, points, labels, previous) if drawn_prompts else previous
    fine, middle, _ = (level[rows + slices] for level in levels)
    result = row_losses(decode(model, conditioned, [fine, middle], points, labels, dense), masks)
    return (result.loss * weights).sum(), result.dice.nanmean()


def _edited(model: SAM2Base, levels: Sequence[Tensor], rows: Tensor, masks: Tensor) -> Decoded:
    fine, middle, plain = (level[rows] for level in levels)
    return mask_as_output(model, plain, [fine, middle], masks[:, None])


def _remember(model: SAM2Base, plain: Tensor, decoded: Decoded, *, from_prompt: bool) -> dict[str, Any]:
    memory = encode_memory(model, plain, decoded.gated(), decoded.object_score, from_prompt=from_prompt)
    position = model.memory_encoder.position_encoding(memory)
    return {"maskmem_features": memory, "maskmem_pos_enc": [position], "obj_ptr": decoded.pointer}


def _positions(model: SAM2Base, plain: Tensor) -> Tensor:
    """Return the position encoding of the coarsest level, (h*w, 1, C)."""
    encoding = model.image_encoder.neck.position_encoding(plain[:1]).to(plain.dtype)
    return encoding.flatten(2).permute(2, 0, 1)


def _condition(
    model: SAM2Base, plain: Tensor, positions: Tensor, bank: dict[str, dict[int, dict[str, Any]]], t: int, count: int
) -> Tensor:
    return model._prepare_memory_conditioned_features(
        frame_idx=t,
        is_init_cond_frame=False,
        current_vision_feats=[plain.flatten(2).permute(2, 0, 1)],
        current_vision_pos_embeds=[positions.expand(-1, len(plain), -1)],
        feat_sizes=[plain.shape[-2:]],
        output_dict=bank,
        num_frames=count,
    )
