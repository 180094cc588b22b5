"""One pass through SAM2's prompt encoder and mask decoder, and one through its memory encoder.

Upstream's ``SAM2Base._forward_sam_heads`` does the same and more: it upsamples every mask to the input size, and it
replaces the logits of a mask whose object score is negative, so that neither training from scratch nor a prompted
slice can see them. Here the raw logits stay, and who uses them decides. Training and inference share these functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

ABSENT_LOGIT = -1024.0
"""SAM2's own value for every pixel of a mask whose object it takes to be absent (``NO_OBJ_SCORE``)."""

LEAST_PRESENT_SCORE = 1e-3
"""Object score of an object that is present against the network's opinion."""


@dataclass
class Decoded:
    """What the mask decoder says about a batch of B objects.

    Attributes
    ----------
    logits : (B, 1, S/4, S/4) mask logits, not gated by the object score.
    iou : (B,) predicted IoU in [0, 1].
    object_score : (B, 1) logit of the object being in the slice at all.
    pointer : (B, C) object pointer for the memory.
    """

    logits: Tensor
    iou: Tensor
    object_score: Tensor
    pointer: Tensor

    def gated(self) -> Tensor:
        """Return the logits, `ABSENT_LOGIT` throughout where the object is taken to be absent; (B, 1, S/4, S/4)."""
        return torch.where(self.object_score[:, :, None, None] > 0, self.logits, ABSENT_LOGIT)


def decode(
    model: SAM2Base,
    features: Tensor,
    high_res: list[Tensor],
    points: Tensor | None = None,
    labels: Tensor | None = None,
    dense: Tensor | None = None,
    *,
    first_prompt: bool = False,
    surely_present: bool = False,
) -> Decoded:
    """Decode masks for a batch of objects.

    Parameters
    ----------
    features : (B, C, S/16, S/16), with the memory (or the no-memory embedding) already in them.
    high_res : [(B, C/8, S/4, S/4), (B, C/4, S/8, S/8)] from `forward_image`.
    points, labels : (B, P, 2) as (x, y) in input pixels and (B, P): 1 positive, 0 negative, 2 and 3 box corners, -1
        padding.
    dense : (B, 1, S/4, S/4) mask prompt logits.
    first_prompt : whether the object has no memory yet; decides, as upstream does, about three candidates.
    surely_present : whether a negative object score is overruled, because a user has just pointed at the object.
    """
    batch, device = features.shape[0], features.device
    several = model._use_multimask(first_prompt, None if labels is None else {"point_labels": labels})
    if points is None or labels is None:
        points = torch.zeros(batch, 1, 2, device=device)
        labels = -torch.ones(batch, 1, dtype=torch.int32, device=device)
    sparse, dense_embedding = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=dense)
    masks, ious, tokens, object_score = model.sam_mask_decoder(
        image_embeddings=features,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense_embedding,
        multimask_output=several,
        repeat_image=False,
        high_res_features=high_res,
    )
    if surely_present:
        object_score = object_score.clamp_min(LEAST_PRESENT_SCORE)
    masks, token = masks.float(), tokens[:, 0]
    if several:
        rows, best = torch.arange(batch, device=device), ious.argmax(dim=-1)
        masks, ious = masks[rows, best].unsqueeze(1), ious[rows, best].unsqueeze(1)
        token = tokens[rows, best] if tokens.shape[1] > 1 else token
    return Decoded(masks, ious[:, 0].float(), object_score.float(), pointer_of(model, token, object_score))


def pointer_of(model: SAM2Base, token: Tensor, object_score: Tensor) -> Tensor:
    """Make object pointers (B, C) of mask tokens (B, C), or of an absence where the object score (B, 1) says so."""
    present = (object_score > 0).to(token.dtype)
    return present * model.obj_ptr_proj(token) + (1 - present) * model.no_obj_ptr


def to_input_size(model: SAM2Base, logits: Tensor) -> Tensor:
    """Upsample (B, 1, h, w) mask logits to the input size (B, 1, S, S), as the memory encoder wants them."""
    size = (model.image_size, model.image_size)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def encode_memory(
    model: SAM2Base, features: Tensor, logits: Tensor, object_score: Tensor, *, from_prompt: bool
) -> Tensor:
    """Turn masks into memories.

    Parameters
    ----------
    features : (B, C, S/16, S/16) of the slice itself, without any memory in them.
    logits : (B, 1, h, w) gated mask logits.
    object_score : (B, 1).
    from_prompt : whether a user's prompt made the mask; such masks are binarised at inference.

    Returns
    -------
    (B, M, S/16, S/16) memory features.
    """
    tokens = features.flatten(2).permute(2, 0, 1)  # (HW, B, C)
    memory, _ = model._encode_new_memory(
        current_vision_feats=[tokens],
        feat_sizes=[features.shape[-2:]],
        pred_masks_high_res=to_input_size(model, logits),
        object_score_logits=object_score,
        is_mask_from_pts=from_prompt,
    )
    return memory


def mask_as_output(model: SAM2Base, features: Tensor, high_res: list[Tensor], masks: Tensor) -> Decoded:
    """Take masks given by the user as they are; the decoder is asked for the object pointer only.

    Parameters
    ----------
    features : (B, C, S/16, S/16) of the slice itself, without any memory in them.
    masks : (B, 1, S, S) with 0 and 1.

    Returns
    -------
    Logits of +-10, as SAM2 does with mask prompts (``_use_mask_as_output``).
    """
    logits, _, ious, _, _, pointer, score = model._use_mask_as_output(features, high_res, masks.float())
    return Decoded(logits, ious[:, 0], score, pointer)
