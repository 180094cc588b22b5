"""What the model does in one training step: prompts and corrections on single slices, and propagation through clips."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.heads import Decoded, decode, encode_memory, mask_as_output
from SAM2AssistLib.prompting.dense import draw_prompts
from SAM2AssistLib.training.losses import mask_loss
from SAM2AssistLib.training.user import correction_clicks, first_prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

MASK_PROMPT_SHARE = 0.15
"""How often a clip starts from a mask given as it is, which is what an edited segment is."""
SHAKEN_SHARE, FADED_SHARE = 0.5, 0.15
"""How often a carried mask is moved and resized, and how often it is made faint; see `_shaken`."""


@dataclass
class Rollout:
    """The loss of a step and the mean Dice of its parts, by name."""

    loss: Tensor
    dice: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, scores: Tensor) -> None:
        """Remember the mean Dice of the objects that were present."""
        if not bool(scores.isnan().all()):
            self.dice[name] = float(scores.nanmean())


@dataclass
class _Features:
    """The encoder's output for a batch of slices, one row per object.

    Attributes
    ----------
    plain : (N, C, h, w) features without memory.
    high_res : the two finer levels.
    edges : (N, E, S/4, S/4) for the refiner.
    tokens, positions : (h*w, N, C) as the memory attention takes them.
    """

    plain: Tensor
    high_res: list[Tensor]
    edges: Tensor
    tokens: Tensor
    positions: Tensor


def _encode(model: SAM2Base, images: Tensor) -> tuple[list[Tensor], Tensor]:
    out = model.forward_image(images)
    return [model.refiner.edges(images), *out["backbone_fpn"]], out["vision_pos_enc"][-1]


def _rows(levels: list[Tensor], positions: Tensor, rows: Tensor) -> _Features:
    edges, fine, middle, plain = (level[rows] for level in levels)
    tokens, places = (level.flatten(2).permute(2, 0, 1) for level in (plain, positions[rows]))
    return _Features(plain, [fine, middle], edges, tokens, places)


def _decode(
    model: SAM2Base,
    features: _Features,
    conditioned: Tensor,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    dense: Tensor | None = None,
    *,
    first_prompt: bool = False,
) -> Decoded:
    """Decode and refine, as the engine does."""
    decoded = decode(model, conditioned, features.high_res, points, labels, dense, first_prompt=first_prompt)
    return replace(decoded, logits=model.refiner(decoded.logits, dense, features.edges))


def _without_memory(model: SAM2Base, features: _Features) -> Tensor:
    return features.plain + model.no_mem_embed.reshape(1, -1, 1, 1)


def _interact(
    model: SAM2Base, features: _Features, conditioned: Tensor, masks: Tensor, rounds: int, rng: np.random.Generator
) -> tuple[Rollout, Decoded]:
    """Prompt once, then correct ``rounds - 1`` times, each time with the logits so far as the mask prompt."""
    points, labels = first_prompts(masks, rng)
    previous: Tensor | None = None
    rollout = Rollout(torch.zeros(()))
    for turn in range(rounds):
        dense = draw_prompts(model.image_size, points, labels, previous)
        decoded = _decode(model, features, conditioned, points, labels, dense, first_prompt=True)
        loss, scores = mask_loss(decoded, masks)
        rollout.loss = rollout.loss + loss / rounds
        rollout.note("first" if turn == 0 else "corrected", scores)
        previous = decoded.logits.detach()
        if turn + 1 < rounds:
            more_points, more_labels = correction_clicks(previous, masks, rng)
            points, labels = torch.cat([points, more_points], 1), torch.cat([labels, more_labels], 1)
    return rollout, decoded


def image_rollout(model: SAM2Base, images: Tensor, masks: Tensor, rounds: int, rng: np.random.Generator) -> Rollout:
    """Prompt and correct every object of a batch of single slices.

    Parameters
    ----------
    images : (B, 3, S, S); masks : (B, M, S, S) bool, none empty.
    """
    levels, positions = _encode(model, images)
    rows = torch.arange(len(images)).repeat_interleave(masks.shape[1])
    features = _rows(levels, positions, rows)
    return _interact(model, features, _without_memory(model, features), masks.flatten(0, 1), rounds, rng)[0]


def clip_rollout(
    model: SAM2Base,
    images: Tensor,
    masks: Tensor,
    rounds: int,
    rng: np.random.Generator,
    *,
    carry_share: float,
    teacher_share: float = 0.0,
) -> Rollout:
    """Prompt slice 0 of every clip, propagate to its other slices, and correct the worst of these.

    Parameters
    ----------
    images : (B, T, 3, S, S); masks : (B, T, M, S, S) bool, present in slice 0.
    carry_share : how often the logits of one slice are the mask prompt of the next, beside the memory.
    teacher_share : how often the truth of a tracked slice, not its prediction, is remembered and carried on. Early
        predictions are too poor to learn from, and late ones are what the model will meet.
    """
    batch, count, objects = masks.shape[:3]
    levels, positions = _encode(model, images.flatten(0, 1))
    base = torch.arange(batch).repeat_interleave(objects) * count
    truth = masks.permute(1, 0, 2, 3, 4).flatten(1, 2)  # (T, B*M, S, S)
    features = _rows(levels, positions, base)
    if rng.random() < MASK_PROMPT_SHARE:
        rollout = Rollout(torch.zeros(()))
        decoded = mask_as_output(model, features.plain, features.high_res, truth[0][:, None])
    else:
        rollout, decoded = _interact(model, features, _without_memory(model, features), truth[0], rounds, rng)
    bank: dict[str, dict[int, dict[str, Any]]] = {
        "cond_frame_outputs": {0: _remember(model, features, decoded, from_prompt=True)},
        "non_cond_frame_outputs": {},
    }
    carry = rng.random() < carry_share
    tracked: list[tuple[_Features, Tensor, Decoded, Tensor]] = []
    for t in range(1, count):
        features = _rows(levels, positions, base + t)
        conditioned = _with_memory(model, features, bank, t, count)
        dense = draw_prompts(model.image_size, None, None, _shaken(decoded.gated().detach(), rng)) if carry else None
        decoded = _decode(model, features, conditioned, dense=dense)
        loss, scores = mask_loss(decoded, truth[t])
        rollout.loss = rollout.loss + loss
        rollout.note(f"slice {t}", scores)
        tracked.append((features, conditioned, decoded, scores))
        decoded = _taught(model, decoded, truth[t], rng, teacher_share)
        bank["non_cond_frame_outputs"][t] = _remember(model, features, decoded, from_prompt=False)
    rollout.note("propagated", torch.stack([scores for *_, scores in tracked]))
    rollout.loss = rollout.loss / count + _correct_worst(model, tracked, truth, rng, rollout) / count
    return rollout


def _shaken(logits: Tensor, rng: np.random.Generator) -> Tensor:
    """Misplace and resize some of the carried masks, and make some of them faint.

    Neighbouring slices are so alike that copying the carried mask is nearly right, and a model that copies drifts off
    where edges are weak. A carried mask that cannot be trusted in detail makes it find the edge anew.
    """
    rows = len(logits)
    wrong = rng.random(rows) < SHAKEN_SHARE
    scale = np.where(wrong, np.exp(rng.normal(0, 0.15, rows)), 1.0)
    angle = np.where(wrong, rng.normal(0, 0.12, rows), 0.0)
    shift = np.where(wrong[:, None], rng.normal(0, 0.06, (rows, 2)), 0.0)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    centre = _centres(logits)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    # The turn is around the mask's own middle, or a mask near the border would be thrown out of the view.
    offset = centre - np.einsum("nij,nj->ni", turn, centre) + shift
    theta = torch.from_numpy(np.concatenate([turn, offset[..., None]], 2).astype(np.float32))
    grid = F.affine_grid(theta, list(logits.shape), align_corners=False)
    logits = logits.float().clamp(-10, 10)
    moved = F.grid_sample(logits + 10, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 10
    faint = torch.from_numpy(np.where(rng.random(rows) < FADED_SHARE, rng.random(rows) * 0.5, 1.0).astype(np.float32))
    return moved * faint[:, None, None, None]


def _centres(logits: Tensor) -> np.ndarray:
    """Middle of each mask as (x, y) in [-1, 1]; that of the view where there is no mask."""
    weight = (logits[:, 0] > 0).double()
    axis = (torch.arange(logits.shape[-1], dtype=torch.float64) + 0.5) / logits.shape[-1] * 2 - 1
    total = weight.sum((1, 2)).clamp_min(1)
    x, y = (weight.sum(1) * axis).sum(1) / total, (weight.sum(2) * axis).sum(1) / total
    return torch.stack([x, y], 1).numpy()


def _taught(model: SAM2Base, decoded: Decoded, masks: Tensor, rng: np.random.Generator, share: float) -> Decoded:
    """Replace a share of the rows by the truth, as logits of +-10."""
    taught = torch.from_numpy(rng.random(len(masks)) < share)[:, None]
    size = decoded.logits.shape[-2:]
    truth = F.interpolate(masks[:, None].float(), size=size, mode="area") * 20 - 10
    present = masks.flatten(1).any(1, keepdim=True)
    return replace(
        decoded,
        logits=torch.where(taught[..., None, None], truth, decoded.logits),
        object_score=torch.where(taught, torch.where(present, 10.0, -10.0), decoded.object_score),
        pointer=torch.where(taught & ~present, model.no_obj_ptr, decoded.pointer),
    )


def _remember(model: SAM2Base, features: _Features, decoded: Decoded, *, from_prompt: bool) -> dict[str, Any]:
    memory = encode_memory(model, features.plain, decoded.gated(), decoded.object_score, from_prompt=from_prompt)
    return {
        "maskmem_features": memory,
        "maskmem_pos_enc": [model.memory_encoder.position_encoding(memory)],
        "obj_ptr": decoded.pointer,
    }


def _with_memory(model: SAM2Base, features: _Features, bank: dict[str, Any], t: int, count: int) -> Tensor:
    return model._prepare_memory_conditioned_features(
        frame_idx=t,
        is_init_cond_frame=False,
        current_vision_feats=[features.tokens],
        current_vision_pos_embeds=[features.positions],
        feat_sizes=[features.plain.shape[-2:]],
        output_dict=bank,
        num_frames=count,
    )


def _correct_worst(
    model: SAM2Base,
    tracked: list[tuple[_Features, Tensor, Decoded, Tensor]],
    truth: Tensor,
    rng: np.random.Generator,
    rollout: Rollout,
) -> Tensor:
    # An object that goes on where it has ended is as wrong as a mask can be; the first click on it must take it away.
    means = [
        float(torch.where(scores.isnan(), (seen.object_score[:, 0] <= 0).float(), scores).mean())
        for *_, seen, scores in tracked
    ]
    worst = int(np.argmin(means))
    features, conditioned, decoded, _ = tracked[worst]
    masks = truth[worst + 1]
    previous = decoded.gated().detach()
    points, labels = correction_clicks(previous, masks, rng)
    dense = draw_prompts(model.image_size, points, labels, previous)
    loss, scores = mask_loss(_decode(model, features, conditioned, points, labels, dense), masks)
    rollout.note("worst corrected", scores)
    return loss
