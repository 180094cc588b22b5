"""SAM2's training loss: 20 focal + 1 Dice + 1 IoU regression + 1 object score, of MONAI's parts."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.heads import Decoded

LOSS_GRID = 128
_focal = FocalLoss(gamma=2.0, alpha=0.25, reduction="none")
_dice = DiceLoss(sigmoid=True, reduction="none")


def mask_loss(decoded: Decoded, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Compare a batch of masks with the truth.

    Parameters
    ----------
    decoded : of N objects.
    masks : (N, S, S) bool; an empty one is an object that is absent from its slice.

    Returns
    -------
    The loss (a scalar), and each object's Dice (N,), nan where it is absent.
    """
    grid = (LOSS_GRID, LOSS_GRID)
    logits = F.interpolate(decoded.logits, size=grid, mode="bilinear", align_corners=False)
    truth = (F.interpolate(masks[:, None].float(), size=grid, mode="area") > 0.5).float()
    present = truth.flatten(1).any(1)
    weight = present.float() / present.sum().clamp_min(1)
    focal = _focal(logits, truth).flatten(1).mean(1)
    dice = _dice(logits, truth).flatten(1).mean(1)
    with torch.no_grad():
        guess = (logits > 0).flatten(1)
        actual = truth.flatten(1) > 0
        shared = (guess & actual).sum(1).float()
        total = guess.sum(1) + actual.sum(1)
        iou = shared / (total - shared).clamp_min(1)
        score = torch.where(present, 2 * shared / total.clamp_min(1), torch.nan)
    loss = ((20 * focal + dice + (decoded.iou - iou).abs()) * weight).sum()
    # SAM2 lets absent objects teach the score alone. Here their masks are told to vanish, too: an organ tapers off, and
    # where the score errs on its last slices the mask should be small.
    loss = loss + 20 * (focal * ~present).sum() / len(masks)
    # Over few rows the share of the absent ones swings, hence a plain mean.
    loss = loss + F.binary_cross_entropy_with_logits(decoded.object_score[:, 0], present.float())
    return loss, score
