"""Losses per region (row), of MONAI's parts, and the two that tie regions and behaviours to each other.

Per row and not per batch, because rows are weighted: by the number of regions of their image, so that an image counts
as one however many organs it shows, and by CBDP's rescaling. A batch split over processes has the loss of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.heads import Decoded
from SAM2AssistLib.training.slices import LEAST_PIXELS

LOSS_GRID = 128
"""At least; a finer decoder is judged at its own resolution."""
FOCAL_WEIGHT = 20.0
BALANCE_CROSS_ENTROPY = 0.2
_focal = FocalLoss(gamma=2.0, alpha=0.25, reduction="none")
_dice = DiceLoss(sigmoid=True, reduction="none")


@dataclass(frozen=True)
class RowLosses:
    """What N rows cost and how good they are.

    Attributes
    ----------
    loss : (N,) 20 focal + Dice + IoU regression + object score, SAM2's own; of an absent object the first and last.
    dice : (N,) hard Dice, nan where the object is absent.
    score : (N,) what CBDP keeps of it: (1 - soft Dice) + 0.2 cross entropy; nan where the object is absent.
    """

    loss: Tensor
    dice: Tensor
    score: Tensor


def row_losses(decoded: Decoded, masks: Tensor) -> RowLosses:
    """Compare N masks with the truth.

    Parameters
    ----------
    decoded : of N rows.
    masks : (N, S, S) bool; an empty one is an object that is absent from its slice.
    """
    size = max(LOSS_GRID, decoded.logits.shape[-1])
    logits = F.interpolate(decoded.logits.float(), size=(size, size), mode="bilinear", align_corners=False)
    truth = _on_grid(masks, size).float()
    present = truth.flatten(1).any(1)
    focal = FOCAL_WEIGHT * _focal(logits, truth).flatten(1).mean(1)
    soft_dice = _dice(logits, truth).flatten(1).mean(1)
    with torch.no_grad():
        guess, actual = (logits > 0).flatten(1), truth.flatten(1) > 0
        shared, total = (guess & actual).sum(1).float(), (guess.sum(1) + actual.sum(1)).float()
        iou = shared / (total - shared).clamp_min(1)
        dice = torch.where(present, 2 * shared / total.clamp_min(1), torch.nan)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1).mean(1)
        score = torch.where(present, soft_dice + BALANCE_CROSS_ENTROPY * entropy, torch.nan)
    whole = focal + soft_dice + (decoded.iou - iou).abs()
    # Where the object has ended its mask is told to vanish, and the score to say so.
    presence = F.binary_cross_entropy_with_logits(decoded.object_score[:, 0].float(), present.float(), reduction="none")
    return RowLosses(torch.where(present, whole, focal) + presence, dice, score)


def _on_grid(masks: Tensor, size: int) -> Tensor:
    """Return which cells of a grid are more than half of an object, (N, 1, size, size) bool.

    A vessel of one pixel is no more than half of any cell. It is there all the same, so its fullest cells are taken.
    """
    share = F.interpolate(masks[:, None].float(), size=(size, size), mode="area")
    truth = share > 0.5
    too_thin = ~truth.flatten(1).any(1) & (masks.flatten(1).sum(1) >= LEAST_PIXELS)
    fullest = share >= share.amax((1, 2, 3), keepdim=True)
    return truth | (fullest & too_thin[:, None, None, None])


def competition(logits: Tensor, masks: Tensor, groups: Tensor) -> Tensor:
    """Let the regions of one slice compete for its pixels: cross entropy of a softmax over them and the background.

    This is where organ ambiguity is resolved: of two masks that claim a pixel, the wrong one is pushed back.

    Parameters
    ----------
    logits : (N, 1, h, w).
    masks : (N, S, S) bool.
    groups : (N,) int64 from 0 up; rows of one number compete.

    Returns
    -------
    (N,) mean over the pixels of each row's object; 0 where it has none.
    """
    own = logits[:, 0].float().clamp(-30, 30)
    truth = (F.interpolate(masks[:, None].float(), size=own.shape[-2:], mode="area")[:, 0] > 0.5).float()
    count = int(groups.max()) + 1
    # The background has the logit 0, hence log(1 + sum of exponentials).
    total = torch.log1p(own.new_zeros(count, *own.shape[1:]).index_add(0, groups, own.exp()))
    cost = (total[groups] - own) * truth
    return cost.flatten(1).sum(1) / truth.flatten(1).sum(1).clamp_min(1)


def consistency(logits: Tensor, per_region: int) -> Tensor:
    """Hold the masks of one region under different behaviours together: 1 - soft Dice with their mean.

    Parameters
    ----------
    logits : (R * b, 1, h, w), the b behaviours of a region one after the other.
    per_region : b.

    Returns
    -------
    (R * b,); 0 where there is one behaviour.
    """
    if per_region == 1:
        return logits.new_zeros(len(logits), dtype=torch.float32)
    each = logits.float().sigmoid().view(-1, per_region, logits[0].numel())
    mean = each.mean(1, keepdim=True).detach()
    overlap = (2 * (each * mean).sum(2) + 1) / (each.sum(2) + mean.sum(2) + 1)
    return (1 - overlap).flatten()


def error_loss(error_logits: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
    """Teach the error head where |p - truth| is large; (N,).

    Parameters
    ----------
    error_logits, logits : (N, 1, h, w) of the error head and of the mask it judges.
    masks : (N, S, S) bool.
    """
    truth = F.interpolate(masks[:, None].float(), size=logits.shape[-2:], mode="area")
    wrong = (logits.detach().float().sigmoid() - truth).abs()
    entropy = F.binary_cross_entropy_with_logits(error_logits, wrong, reduction="none").flatten(1).mean(1)
    # Errors are few pixels; without a term of overlap "nowhere" would be a good answer.
    seen = error_logits.sigmoid().flatten(1)
    overlap = (2 * (seen * wrong.flatten(1)).sum(1) + 1) / (seen.sum(1) + wrong.flatten(1).sum(1) + 1)
    return entropy + 0.5 * (1 - overlap)
