"""Decoding and remembering: with the same weights, what SAM2's own methods give."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.heads import ABSENT_LOGIT, decode, encode_memory, mask_as_output, to_input_size

OBJECTS = 3


class Scene:
    """A network with random weights, and the features of a slice for each of three objects."""

    def __init__(self, architecture: str, size: int) -> None:
        torch.manual_seed(4)
        self.model = build_sam2(architecture, size)
        self.size = size
        # Fresh embeddings are nearly zero, and what is zero cannot differ.
        with torch.no_grad():
            for embedding in (self.model.no_obj_ptr, self.model.no_obj_embed_spatial):
                embedding.normal_()
            levels = self.model.forward_image(torch.randn(OBJECTS, 3, size, size))["backbone_fpn"]
        *self.high_res, self.features = levels

    def with_scores_around(self, score: float) -> Scene:
        """Have the decoder take the objects to be present (> 0), absent (< 0)."""
        with torch.no_grad():
            self.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(score)
        return self

    def prompts(self, kind: str):
        """Points, labels and dense prompt of a kind."""
        generator = torch.Generator().manual_seed(1)
        xy = torch.rand(OBJECTS, 3, 2, generator=generator) * (self.size - 1)
        dense = torch.randn(OBJECTS, 1, self.size // 4, self.size // 4, generator=generator)
        one = torch.ones(OBJECTS, 1, dtype=torch.int32)
        box = torch.tensor([[2, 3]], dtype=torch.int32).repeat(OBJECTS, 1)
        return {
            "nothing": (None, None, None),
            "a click": (xy[:, :1], one, None),
            "a box": (xy[:, :2], box, None),
            "a box and two clicks": (xy[:, [0, 1, 2, 2]], torch.cat([box, one, 0 * one], 1), None),
            "padding": (torch.zeros(OBJECTS, 1, 2), -one, None),
            "a mask": (None, None, dense),
            "a click and a mask": (xy[:, :1], one, dense),
        }[kind]

    def upstream(self, kind: str, *, first_prompt: bool):
        points, labels, dense = self.prompts(kind)
        given = None if points is None else {"point_coords": points, "point_labels": labels}
        return self.model._forward_sam_heads(
            backbone_features=self.features,
            point_inputs=given,
            mask_inputs=dense,
            high_res_features=self.high_res,
            multimask_output=self.model._use_multimask(first_prompt, given),
        )

    def ours(self, kind: str, *, first_prompt: bool):
        return decode(self.model, self.features, self.high_res, *self.prompts(kind), first_prompt=first_prompt)


@pytest.fixture(scope="module", params=[("mini", 128), ("hiera_t", 128)], ids=lambda p: p[0])
def scene(request):
    with torch.inference_mode():
        yield Scene(*request.param)


KINDS = ["nothing", "a click", "a box", "a box and two clicks", "padding", "a mask", "a click and a mask"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_prompt", [True, False])
@pytest.mark.parametrize("score", [5.0, -5.0])
def test_decoding_gives_what_upstream_gives(scene, kind, first_prompt, score):
    scene.with_scores_around(score)
    _, _, ious, masks, _, pointer, object_score = scene.upstream(kind, first_prompt=first_prompt)
    ours = scene.ours(kind, first_prompt=first_prompt)
    assert (object_score > 0).all() == (score > 0)
    assert_close(ours.gated(), masks)
    assert_close(ours.iou, ious.max(dim=-1).values)
    assert_close(ours.pointer, pointer)
    assert_close(ours.object_score, object_score)


def test_a_published_network_offers_three_candidates_for_one_click_and_the_best_is_taken():
    with torch.inference_mode():
        scene = Scene("hiera_t", 128).with_scores_around(5.0)
        candidates, _, ious, *_ = scene.upstream("a click", first_prompt=True)
        ours = scene.ours("a click", first_prompt=True)
    assert candidates.shape[1] == 3
    best = candidates[torch.arange(OBJECTS), ious.argmax(-1)][:, None]
    assert_close(ours.logits, best)


def test_the_logits_of_an_absent_object_stay_visible_until_they_are_gated(scene):
    present = scene.with_scores_around(5.0).ours("a click", first_prompt=True)
    absent = scene.with_scores_around(-5.0).ours("a click", first_prompt=True)
    assert_close(absent.logits, present.logits)
    assert_close(present.gated(), present.logits)
    assert (absent.gated() == ABSENT_LOGIT).all()


def test_the_gate_works_object_by_object(scene):
    mixed = scene.ours("a click", first_prompt=True)
    mixed.object_score = torch.tensor([[1.0], [-1.0], [1.0]])
    assert (mixed.gated() == ABSENT_LOGIT).flatten(1).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("from_prompt", [True, False])
@pytest.mark.parametrize("score", [5.0, -5.0])
def test_a_memory_is_the_one_that_upstream_makes(scene, from_prompt, score):
    scene.with_scores_around(score)
    *_, high_res_masks, _, object_score = scene.upstream("a click", first_prompt=True)
    tokens = scene.features.flatten(2).permute(2, 0, 1)
    wanted, positions = scene.model._encode_new_memory(
        [tokens], [scene.features.shape[-2:]], high_res_masks, object_score, from_prompt
    )
    ours = scene.ours("a click", first_prompt=True)
    memory = encode_memory(scene.model, scene.features, ours.gated(), ours.object_score, from_prompt=from_prompt)
    assert_close(memory, wanted)
    # The trainer makes the position embedding from the memory's shape.
    assert_close(scene.model.memory_encoder.position_encoding(memory), positions[-1])


def test_a_prompted_mask_is_remembered_binary_and_a_tracked_one_is_not(scene):
    scene.with_scores_around(5.0)
    logits = torch.full((OBJECTS, 1, scene.size // 4, scene.size // 4), 0.3)
    score = torch.full((OBJECTS, 1), 5.0)
    prompted, tracked = (
        encode_memory(scene.model, scene.features, logits, score, from_prompt=answer) for answer in (True, False)
    )
    certain = encode_memory(scene.model, scene.features, logits * 1000, score, from_prompt=False)
    assert not torch.allclose(prompted, tracked)
    assert_close(prompted, certain)


def test_a_given_mask_becomes_the_output_as_upstream_does_it(scene):
    masks = torch.zeros(OBJECTS, 1, scene.size, scene.size)
    masks[:2, :, 32:64, 16:96] = 1  # the third object is not in the slice
    low, _, ious, _, _, pointer, score = scene.model._use_mask_as_output(scene.features, scene.high_res, masks)
    ours = mask_as_output(scene.model, scene.features, scene.high_res, masks)
    assert_close(ours.gated()[:2], low[:2])
    assert_close(ours.pointer, pointer)
    assert_close(ours.iou, ious[:, 0])
    assert_close(ours.object_score, score)
    # Only the corners suffer from the quarter resolution.
    assert ((to_input_size(scene.model, ours.logits)[:2] > 0) != (masks[:2] > 0.5)).float().mean() < 1e-3
    assert (ours.object_score > 0).flatten().tolist() == [True, True, False]
    assert (ours.gated()[2] == ABSENT_LOGIT).all()


def test_masks_of_yes_and_no_serve_as_well_as_numbers(scene):
    masks = torch.zeros(OBJECTS, 1, scene.size, scene.size, dtype=torch.bool)
    masks[:, :, 32:64, 16:96] = True
    one = mask_as_output(scene.model, scene.features, scene.high_res, masks)
    two = mask_as_output(scene.model, scene.features, scene.high_res, masks.float())
    assert_close(one.logits, two.logits)
    assert_close(one.pointer, two.pointer)
