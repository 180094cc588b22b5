"""One training step: prompts, corrections and propagation, and which parts of the network learn from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_scenes import a_tiny_sam2, bright_squares

from SAM2AssistLib.engine.heads import encode_memory
from SAM2AssistLib.training import rollout as rollout_module
from SAM2AssistLib.training.losses import mask_loss
from SAM2AssistLib.training.rollout import clip_rollout, image_rollout


@pytest.fixture
def model(monkeypatch):
    return a_tiny_sam2(monkeypatch).train()


@pytest.fixture
def prompted(monkeypatch):
    """Clips start from prompts, never from a given mask."""
    monkeypatch.setattr(rollout_module, "MASK_PROMPT_SHARE", 0.0)


@pytest.fixture
def sees_objects(model):
    """Takes every object to be present, as a network does after its first steps; what is absent has no pointer."""
    torch.nn.init.constant_(model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 3.0)


@pytest.fixture
def sees_nothing(model):
    torch.nn.init.constant_(model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, -3.0)


@pytest.fixture
def fixed_user(monkeypatch):
    """A user who always boxes the object and always corrects in the upper left corner."""

    def box(masks, _rng):
        ys, xs = masks.any(2).float(), masks.any(1).float()
        low = torch.stack([xs.argmax(1), ys.argmax(1)], 1).float()
        points = torch.stack([low, low + 15], 1)
        return points, torch.tensor([[2, 3]]).repeat(len(masks), 1)

    def corner(_logits, masks, _rng):
        return torch.full((len(masks), 1, 2), 3.0), torch.zeros(len(masks), 1, dtype=torch.long)

    monkeypatch.setattr(rollout_module, "first_prompts", box)
    monkeypatch.setattr(rollout_module, "correction_clicks", corner)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slices_only(clips: int = 2):
    images, masks = bright_squares(clips, slices=1)
    return images[:, 0], masks[:, 0]


def untrained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}


def parts(names) -> set[str]:
    return {name.split(".")[0] for name in names}


# ---- what learns


def test_a_slice_step_reaches_encoder_prompts_and_decoder_and_leaves_the_memory_alone(model):
    image_rollout(model, *slices_only(), 3, random()).loss.backward()
    without = untrained(model)
    learning = {name for name, _ in model.named_parameters()} - without
    assert {"image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed"} <= parts(learning)
    assert not parts(learning) & {"memory_attention", "memory_encoder", "maskmem_tpos_enc"}


def test_a_clip_step_reaches_every_part_of_the_memory(model, prompted, sees_objects):
    clip_rollout(model, *bright_squares(slices=4), 2, random(), carry_share=1.0).loss.backward()
    without = untrained(model)
    in_memory = ("memory_attention.", "memory_encoder.", "obj_ptr_proj.", "maskmem_tpos_enc")
    # Attention does not depend on an offset common to all its keys.
    assert {name for name in without if name.startswith(in_memory) and not name.endswith("k_proj.bias")} == set()


def test_an_object_taken_to_be_absent_trains_what_stands_for_it_in_the_memory(model, prompted, sees_nothing):
    clip_rollout(model, *bright_squares(), 2, random(), carry_share=1.0).loss.backward()
    assert not untrained(model) & {"no_obj_ptr", "no_obj_embed_spatial"}


def test_a_clip_step_reaches_the_weights_that_adapters_train(model, prompted):
    clip_rollout(model, *bright_squares(), 2, random(), carry_share=1.0).loss.backward()
    qkv = {name: p for name, p in model.named_parameters() if name.endswith("attn.qkv.weight")}
    assert len(qkv) == len(model.image_encoder.trunk.blocks)
    for name, weight in qkv.items():
        for rows in weight.grad.chunk(3):  # queries, keys, values
            assert bool(rows.any()), name


def test_a_clip_step_reaches_the_prompt_encoder(model, prompted):
    for seed in range(4):
        clip_rollout(model, *bright_squares(), 2, random(seed), carry_share=1.0).loss.backward()
    without = untrained(model)
    mine = {name for name in without if name.startswith("sam_prompt_encoder.")}
    # Every prompt comes with a drawing, so there always is a mask; no click is negative if nothing is wrong.
    assert mine <= {"sam_prompt_encoder.no_mask_embed.weight", "sam_prompt_encoder.point_embeddings.0.weight"}
    assert "sam_prompt_encoder.mask_downscaling.0.weight" not in without


def test_the_prompted_mask_learns_from_what_becomes_of_it_in_later_slices(model, prompted, sees_objects, monkeypatch):
    weights = iter([0.0, 1.0, 1.0])  # of the prompt, of the propagation and of its correction
    answers = []

    def later_losses_alone(decoded, masks):
        decoded.logits.retain_grad()
        answers.append(decoded)
        loss, scores = mask_loss(decoded, masks)
        return loss * next(weights), scores

    monkeypatch.setattr(rollout_module, "mask_loss", later_losses_alone)
    clip_rollout(model, *bright_squares(slices=2), 1, random(), carry_share=0.0).loss.backward()
    assert answers[0].logits.grad.flatten(1).any(1).all()


# ---- what is reported


def test_slices_report_the_dice_before_and_after_corrections(model):
    rollout = image_rollout(model, *slices_only(), 3, random())
    assert rollout.dice.keys() == {"first", "corrected"}
    assert all(0 <= value <= 1 for value in rollout.dice.values())
    assert bool(torch.isfinite(rollout.loss))


def test_a_single_round_is_not_corrected(model):
    assert image_rollout(model, *slices_only(), 1, random()).dice.keys() == {"first"}


def test_clips_report_every_slice_and_the_corrected_one(model, prompted):
    rollout = clip_rollout(model, *bright_squares(slices=3), 2, random(), carry_share=0.5)
    assert rollout.dice.keys() == {"first", "corrected", "slice 1", "slice 2", "propagated", "worst corrected"}
    assert rollout.dice["propagated"] == pytest.approx((rollout.dice["slice 1"] + rollout.dice["slice 2"]) / 2)


def test_some_clips_start_from_a_given_mask(model, monkeypatch):
    monkeypatch.setattr(rollout_module, "MASK_PROMPT_SHARE", 1.0)
    rollout = clip_rollout(model, *bright_squares(), 2, random(), carry_share=1.0)
    assert "first" not in rollout.dice
    rollout.loss.backward()
    assert not any(name.startswith("memory_encoder.") for name in untrained(model))


@pytest.mark.parametrize("carry_share", [0.0, 1.0])
def test_an_object_that_ends_in_the_clip_gives_a_finite_loss_and_gradient(model, prompted, carry_share):
    images, masks = bright_squares(slices=4)
    masks[:, 2:] = False
    rollout = clip_rollout(model, images, masks, 2, random(), carry_share=carry_share)
    rollout.loss.backward()
    assert "slice 3" not in rollout.dice
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@pytest.fixture
def remembered(monkeypatch):
    """The mask logits and object scores that go into the memory, slice by slice."""
    seen = []

    def watched(model, features, logits, score, *, from_prompt):
        seen.append((logits.detach(), score.detach()))
        return encode_memory(model, features, logits, score, from_prompt=from_prompt)

    monkeypatch.setattr(rollout_module, "encode_memory", watched)
    return seen


def test_a_taught_clip_remembers_the_truth_of_its_tracked_slices(model, prompted, remembered):
    images, masks = bright_squares(slices=3)
    masks[:, 2, 0] = False
    clip_rollout(model, images, masks, 1, random(), carry_share=1.0, teacher_share=1.0)
    for t in (1, 2):
        truth = masks[:, t].flatten(0, 1)
        logits, score = remembered[t]
        assert torch.equal(score[:, 0] > 0, truth.flatten(1).any(1))
        wanted = torch.nn.functional.avg_pool2d(truth[:, None].float(), 4) > 0.5
        assert torch.equal(logits > 0, wanted)


def test_an_untaught_clip_remembers_what_was_predicted(model, prompted, remembered, sees_nothing):
    clip_rollout(model, *bright_squares(slices=3), 1, random(), carry_share=1.0, teacher_share=0.0)
    assert all((score < 0).all() for _, score in remembered)


def test_teaching_object_by_object_mixes_truth_and_prediction(model, prompted, remembered, sees_nothing):
    clip_rollout(model, *bright_squares(slices=5), 1, random(), carry_share=1.0, teacher_share=0.5)
    present = torch.stack([score[:, 0] > 0 for _, score in remembered[1:]])
    assert 0.2 < float(present.float().mean()) < 0.8


# ---- which object belongs to which clip


def test_the_loss_of_a_batch_of_slices_is_the_mean_over_its_slices(model, fixed_user):
    model.eval()
    images, masks = slices_only(3)
    together = image_rollout(model, images, masks, 2, random())
    alone = [image_rollout(model, images[n : n + 1], masks[n : n + 1], 2, random()) for n in range(3)]
    assert together.loss.item() == pytest.approx(np.mean([r.loss.item() for r in alone]), rel=1e-4)


def test_the_loss_of_a_batch_of_clips_is_the_mean_over_its_clips(model, fixed_user, prompted, monkeypatch):
    monkeypatch.setattr(rollout_module, "_shaken", lambda logits, _rng: logits)
    model.eval()
    images, masks = bright_squares(clips=3, slices=2)
    together = clip_rollout(model, images, masks, 2, random(), carry_share=1.0)
    alone = [clip_rollout(model, images[n : n + 1], masks[n : n + 1], 2, random(), carry_share=1.0) for n in range(3)]
    assert together.loss.item() == pytest.approx(np.mean([r.loss.item() for r in alone]), rel=1e-4)


def test_the_order_of_the_objects_does_not_matter(model, fixed_user, prompted):
    model.eval()
    images, masks = bright_squares(slices=3)
    one = clip_rollout(model, images, masks, 2, random(), carry_share=1.0)
    two = clip_rollout(model, images, masks.flip(2), 2, random(), carry_share=1.0)
    assert one.loss.item() == pytest.approx(two.loss.item(), rel=1e-4)


# ---- learning


def train(model, step, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for seed in range(steps):
        loss = step(random(seed)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_few_steps_on_one_batch_of_slices_lower_the_loss(model):
    images, masks = slices_only()
    losses = train(model, lambda rng: image_rollout(model, images, masks, 2, rng), 20)
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_a_few_steps_on_one_batch_of_clips_lower_the_loss(model):
    images, masks = bright_squares()
    losses = train(model, lambda rng: clip_rollout(model, images, masks, 1, rng, carry_share=0.5), 12)
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
