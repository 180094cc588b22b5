"""The loss: nothing to learn from a perfect mask, and nothing about the mask of an object that is not there."""

from __future__ import annotations

import pytest
import torch
from training_scenes import logits_of

from SAM2AssistLib.engine.heads import Decoded
from SAM2AssistLib.training.losses import mask_loss

SIZE = 256


def some_masks() -> torch.Tensor:
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    masks[0, 32:128, 64:192] = True
    masks[1, 16:64, 16:80] = True
    masks[2, 128:240, 96:160] = True
    return masks


def an_answer(logits: torch.Tensor, iou: float = 1.0, score: float = 20.0) -> Decoded:
    count = len(logits)
    answer = Decoded(logits.clone(), torch.full((count,), iou), torch.full((count, 1), score), torch.zeros(count, 8))
    for tensor in (answer.logits, answer.iou, answer.object_score):
        tensor.requires_grad_()
    return answer


def test_a_perfect_answer_costs_next_to_nothing():
    masks = some_masks()
    loss, dice = mask_loss(an_answer(logits_of(masks)), masks)
    assert loss.item() < 0.01
    assert dice.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_an_absent_object_known_to_be_absent_costs_next_to_nothing():
    masks = torch.zeros_like(some_masks())
    loss, dice = mask_loss(an_answer(logits_of(masks), iou=0.3, score=-20.0), masks)
    assert loss.item() < 0.01
    assert dice.isnan().all()


def test_an_absent_object_trains_the_object_score_and_lets_its_mask_vanish_but_not_the_predicted_iou():
    masks = some_masks()
    masks[1] = False
    answer = an_answer(torch.zeros(3, 1, SIZE // 4, SIZE // 4), iou=0.5, score=0.1)
    loss, dice = mask_loss(answer, masks)
    loss.backward()
    assert dice.isnan().tolist() == [False, True, False]
    assert (answer.logits.grad[1] >= 0).all()  # a step against the gradient makes the absent one's logits fall
    assert answer.logits.grad[1].any()
    assert (answer.logits.grad[0] < 0).any()
    assert answer.iou.grad[1] == 0
    assert answer.iou.grad[0] != 0
    assert (answer.object_score.grad[:, 0] * torch.tensor([-1.0, 1.0, -1.0]) > 0).all()


def test_a_slice_without_any_object_has_a_finite_gradient():
    answer = an_answer(torch.full((2, 1, SIZE // 4, SIZE // 4), -1024.0), iou=0.0, score=3.0)
    loss, _ = mask_loss(answer, torch.zeros(2, SIZE, SIZE, dtype=torch.bool))
    loss.backward()
    assert all(torch.isfinite(t.grad).all() for t in (answer.logits, answer.iou, answer.object_score))


def test_absent_objects_do_not_thin_out_the_loss_of_those_present():
    masks, logits = some_masks(), torch.zeros(3, 1, SIZE // 4, SIZE // 4)
    with_absent = torch.cat([masks, torch.zeros_like(masks)])
    alone, _ = mask_loss(an_answer(logits, score=20.0), masks)
    absent = torch.full_like(logits, -20.0)
    answer = an_answer(torch.cat([logits, absent]), score=20.0)
    answer.object_score = torch.tensor([[20.0]] * 3 + [[-20.0]] * 3)
    together, _ = mask_loss(answer, with_absent)
    assert together.item() == pytest.approx(alone.item(), rel=1e-4)


def test_the_loss_grows_with_the_error():
    masks = some_masks()
    losses = []
    for shift in (0, 16, 64):
        logits = logits_of(masks.roll(shift, dims=-1))
        losses.append(mask_loss(an_answer(logits), masks)[0].item())
    assert losses == sorted(losses)
    assert losses[1] > losses[0] + 0.1


def test_the_predicted_iou_is_compared_with_the_true_one():
    masks = some_masks()[:1]
    logits = torch.full((1, 1, SIZE // 4, SIZE // 4), 20.0)
    iou = float(masks.float().mean())
    honest, _ = mask_loss(an_answer(logits, iou=iou), masks)
    boastful, _ = mask_loss(an_answer(logits, iou=iou + 0.4), masks)
    assert (boastful - honest).item() == pytest.approx(0.4, abs=1e-3)


def test_the_reported_dice_is_that_of_the_mask():
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[:, 64:128, 64:192] = True
    half = torch.zeros_like(masks)
    half[:, 64:128, 64:128] = True
    _, dice = mask_loss(an_answer(logits_of(half)), masks)
    assert dice.item() == pytest.approx(2 / 3, abs=0.01)


def test_one_gradient_step_on_the_logits_lowers_the_loss():
    masks = some_masks()
    answer = an_answer(torch.zeros(3, 1, SIZE // 4, SIZE // 4), iou=0.5, score=0.0)
    before, _ = mask_loss(answer, masks)
    before.backward()
    with torch.no_grad():
        answer.logits -= 100 * answer.logits.grad
    assert mask_loss(answer, masks)[0].item() < before.item()
