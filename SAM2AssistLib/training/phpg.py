"""PHPG: prompts as diverse as people are, for all regions of a slice at once, with corrections guided by its errors.

One step on a batch of slices: encode each slice once; prompt every region in b different ways; decode all these rows in
one call (segment-multi-region); then T rounds of corrections, again all rows at once. The image encoder is trained
through round 0; in later rounds its features are taken as they are, as SAM-Med2D does (Cheng et al. 2023, arXiv
2308.16184). A head that predicts errors is trained along, the regions of a slice compete for its pixels, and the
behaviours of a region are held together.

Source: Wang, Liao, Jiang, Geng: PHPG and CBDP, ISBI 2025 (doi 10.1109/ISBI60581.2025.10981084). Its abstract is what
was read; what it leaves open follows the specification in the project's notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from SAM2AssistLib.engine.heads import Decoded, decode
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.prompting.dense import draw_prompts
from SAM2AssistLib.prompting.error_head import ErrorHead, decoder_features
from SAM2AssistLib.training.behaviours import (
    BEHAVIOURS,
    Draws,
    PointPrompts,
    checked_shares,
    choose_behaviours,
    first_prompts,
)
from SAM2AssistLib.training.corrections import HEURISTICS, correction_clicks
from SAM2AssistLib.training.region_losses import RowLosses, competition, consistency, error_loss, row_losses

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class Prompting:
    """How regions are prompted and corrected in training.

    Attributes
    ----------
    behaviours : share of each behaviour of `BEHAVIOURS` in round 0.
    per_region : b, behaviours tried on each region of a slice.
    fewest, most : T, the rounds of corrections, is drawn from these.
    heuristics : share of each of `HEURISTICS` in these rounds.
    previous_share : how often the mask so far is part of the drawn mask prompt of the next round; a model that is not
        prompted by drawings always gets it, as in SAM2's own training.
    competition, consistency, error : weights of these losses beside that of the masks.
    """

    behaviours: Mapping[str, float] = field(default_factory=lambda: dict(BEHAVIOURS))
    per_region: int = 2
    fewest: int = 1
    most: int = 4
    heuristics: Mapping[str, float] = field(default_factory=lambda: dict(HEURISTICS))
    previous_share: float = 0.8
    competition: float = 0.5
    consistency: float = 0.1
    error: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises
        ------
        InputError
            If a behaviour is unknown, or the numbers of behaviours or rounds make no sense.
        """
        checked_shares(self.behaviours)
        if self.per_region < 1 or not 0 <= self.fewest <= self.most:
            raise InputError("PHPG needs one behaviour per region or more, and 0 or more rounds of corrections.")


@dataclass(frozen=True)
class Regions:
    """The regions of a batch of slices.

    Attributes
    ----------
    images : (B, 3, S, S), normalised.
    masks : (R, S, S) bool, none empty.
    owner : (R,) int64, the slice of each region, rising from 0.
    weights : (B,) of the slices in the loss.
    keys : whole numbers that name each region (R of them), from which its random choices follow.
    """

    images: Tensor
    masks: Tensor
    owner: Tensor
    weights: Tensor
    keys: Sequence[Sequence[int]]


@dataclass
class Outcome:
    """What a training step gave.

    Attributes
    ----------
    loss : a scalar.
    scores : (R,) of round 0, the mean over behaviours, for CBDP; nan where a region is absent.
    dice : mean Dice by name of the part.
    decodes : rows decoded.
    masks : logits (R, 1, h, w) of the first behaviour after the last round, for pictures.
    """

    loss: Tensor
    scores: Tensor
    dice: dict[str, Tensor]
    decodes: int
    masks: Tensor


def encode(model: SAM2Base, images: Tensor) -> list[Tensor]:
    """Encode slices (B, 3, S, S) once each: features at a quarter, an eighth and a sixteenth of their size."""
    return model.forward_image(images)["backbone_fpn"]


def phpg_step(
    model: SAM2Base,
    head: ErrorHead,
    batch: Regions,
    prompting: Prompting,
    rounds: int,
    *,
    drawn_prompts: bool,
) -> Outcome:
    """Prompt and correct all regions of a batch of slices.

    Parameters
    ----------
    model, head : what is trained.
    batch : slices and regions.
    prompting : how they are prompted.
    rounds : T, the rounds of corrections of this step, see `Prompting`.
    drawn_prompts : whether prompts are also drawn into the mask prompt, as the model is used
        (`SAM2AssistLib.engine.catalogue.ModelSpec.dense_prompts`).

    Returns
    -------
    Outcome
        With a loss that is the mean over slices of the mean over their rows and rounds.
    """
    levels = encode(model, batch.images)
    return prompt_and_correct(model, head, levels, batch, prompting, rounds, drawn_prompts=drawn_prompts)[0]


def prompt_and_correct(
    model: SAM2Base,
    head: ErrorHead,
    levels: Sequence[Tensor],
    batch: Regions,
    prompting: Prompting,
    rounds: int,
    *,
    drawn_prompts: bool,
) -> tuple[Outcome, Decoded]:
    """Do `phpg_step` on encoded slices; returns what the last round decoded as well, R * b rows."""
    b, device = prompting.per_region, batch.images.device
    rows = torch.arange(len(batch.masks), device=device).repeat_interleave(b)
    masks, owner = batch.masks[rows], batch.owner[rows]
    behaviours = choose_behaviours(Draws(batch.keys, device), b, prompting.behaviours).flatten()
    draws = Draws([(*batch.keys[n // b], 1 + n % b) for n in range(len(rows))], device)
    # Rows compete, and share clicks, among the regions of one slice under the behaviours in one place.
    groups = owner * b + torch.arange(b, device=device).repeat(len(batch.masks))
    weights = row_weights(owner, batch.weights)

    prompts = first_prompts(masks, behaviours, draws)
    previous: Tensor | None = None
    terms: list[Tensor] = []
    results: list[RowLosses] = []
    for turn in range(rounds + 1):
        features = [level if turn == 0 else level.detach() for level in levels]
        decoded, error_logits = _decode_rows(model, head, features, owner, prompts, previous, drawn_prompts)
        result = row_losses(decoded, masks)
        cost = result.loss + prompting.error * error_loss(error_logits, decoded.logits, masks)
        cost = cost + prompting.competition * competition(decoded.logits, masks, groups)
        cost = cost + prompting.consistency * consistency(decoded.logits, b)
        terms.append((cost * weights).sum())
        results.append(result)
        if turn < rounds:
            gated = decoded.gated().detach()
            prompts = prompts.and_then(*correction_clicks(gated, masks, groups, draws, prompting.heuristics))
            kept = (draws.uniform(1)[:, 0] < prompting.previous_share) | (not drawn_prompts)
            previous = torch.where(kept[:, None, None, None], decoded.logits.detach(), 0.0)
    dice = {"first": results[0].dice.nanmean()}
    if rounds:
        dice["corrected"] = results[-1].dice.nanmean()
    scores = results[0].score.view(-1, b).mean(1)
    loss = torch.stack(terms).mean()
    return Outcome(loss, scores, dice, len(rows) * (rounds + 1), decoded.logits.detach()[::b]), decoded


def row_weights(owner: Tensor, image_weights: Tensor) -> Tensor:
    """Weigh rows so that each slice counts by its own weight, however many rows it has; they add up to the mean weight.

    Parameters
    ----------
    owner : (N,) slice of each row.
    image_weights : (B,).
    """
    counts = torch.zeros_like(image_weights).index_add(0, owner, image_weights.new_ones(len(owner)))
    return image_weights[owner] / counts[owner] / len(image_weights)


def _decode_rows(
    model: SAM2Base,
    head: nn.Module,
    levels: Sequence[Tensor],
    owner: Tensor,
    prompts: PointPrompts,
    previous: Tensor | None,
    drawn_prompts: bool,
) -> tuple[Decoded, Tensor]:
    """Decode every row from the features of its slice, which are not computed again; and judge the masks."""
    fine, middle, plain = levels
    conditioned = plain + model.no_mem_embed.reshape(1, -1, 1, 1)
    dense = draw_prompts(model.image_size, prompts.points, prompts.labels, previous) if drawn_prompts else previous
    with decoder_features(model) as seen:
        decoded = decode(
            model,
            conditioned[owner],
            [fine[owner], middle[owner]],
            prompts.points,
            prompts.labels,
            dense,
            first_prompt=previous is None,
        )
    return decoded, head.error_logits(seen.features, decoded.logits)  # type: ignore[operator]
