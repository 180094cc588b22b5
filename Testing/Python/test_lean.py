"""The parts prepared for inference give what SAM2's own modules give."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.heads import decode, encode_memory
from SAM2AssistLib.engine.lean import lean_image_encoder, lean_tracking
from SAM2AssistLib.engine.lean_attention import LeanMemoryAttention
from SAM2AssistLib.engine.lean_image import Grid, LeanImageEncoder
from SAM2AssistLib.engine.products import EXACT, Precision

SIZE, GRID = 128, 8
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
POINTER_TOKENS = 8
MIXED = Precision(torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class Scene:
    model: object
    plain: torch.Tensor
    fine: torch.Tensor
    middle: torch.Tensor
    logits: torch.Tensor
    score: torch.Tensor


@pytest.fixture(params=["mini", "hiera_t"])
def scene(request):
    torch.manual_seed(3)
    model = build_sam2(request.param, SIZE)
    width = model.hidden_dim
    # Untrained layer norms and layer scales are the identity or nearly nothing, which would hide a fault.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return Scene(
        model.requires_grad_(False),
        torch.randn(3, width, GRID, GRID),
        torch.randn(3, width // 8, 4 * GRID, 4 * GRID),
        torch.randn(3, width // 4, 2 * GRID, 2 * GRID),
        5 * torch.randn(3, 1, 4 * GRID, 4 * GRID),
        torch.tensor([[2.0], [-1.0], [0.5]]),
    )


def both_attentions(model, precision, *, on_cpu=True):
    """Condition three rows on two slices, of which the first and the last share one: SAM2's tokens and ours."""
    rows, on = 3, torch.tensor([1, 0, 1])
    count = 2 * GRID**2 + POINTER_TOKENS
    slices, places = torch.randn(2, GRID**2, model.hidden_dim), torch.randn(GRID**2, model.hidden_dim)
    memory, code = torch.randn(rows, count, model.mem_dim), torch.randn(rows, count, model.mem_dim)
    theirs = model.memory_attention(
        curr=slices[on].transpose(0, 1),
        curr_pos=places[:, None].expand(-1, rows, -1),
        memory=memory.transpose(0, 1),
        memory_pos=code.transpose(0, 1),
        num_obj_ptr_tokens=POINTER_TOKENS,
    ).transpose(0, 1)
    attention = LeanMemoryAttention(model, precision)
    attention.on_cpu = on_cpu
    return theirs, attention(slices, on, places, memory, code, POINTER_TOKENS)


@torch.inference_mode()
@pytest.mark.parametrize("block", [1 << 21, 700])
def test_memory_attention_is_sam2s(scene, monkeypatch, block):
    monkeypatch.setattr("SAM2AssistLib.engine.lean_attention.SCORE_BLOCK", block)
    theirs, ours = both_attentions(scene.model, EXACT)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.inference_mode()
def test_memory_attention_is_sam2s_on_the_way_that_accelerators_take(scene):
    theirs, ours = both_attentions(scene.model, EXACT, on_cpu=False)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_memory_attention_is_sam2s_however_many_threads_take_a_row_each(scene, monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    theirs, ours = both_attentions(scene.model, EXACT)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("scale", [30.0, 3000.0])
def test_memory_attention_is_sam2s_where_exponentials_of_scores_are_beyond_all_numbers(scene, scale):
    for layer in scene.model.memory_attention.layers:
        layer.cross_attn_image.q_proj.weight *= scale
    theirs, ours = both_attentions(scene.model, EXACT)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@torch.inference_mode()
def test_with_the_bulk_in_bfloat16_tokens_differ_by_its_rounding_only(scene):
    theirs, ours = both_attentions(scene.model, MIXED)
    assert ours.dtype == torch.float32
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.02


def test_the_last_look_at_memories_and_the_mask_stay_in_float32_whatever_the_bulk_is_in(scene):
    tracking = lean_tracking(scene.model, MIXED)
    *first, last = tracking.attention.layers
    assert {layer.query.weight.dtype for layer in first} == {torch.bfloat16}
    assert last.query.weight.dtype == last.key.weight.dtype == torch.float32
    assert last.widen.weight.dtype == torch.bfloat16
    assert tracking.decoder.up2.weight.dtype == tracking.memory_encoder.out.weight.dtype == torch.float32


@torch.inference_mode()
@pytest.mark.parametrize("with_mask", [False, True])
def test_the_decoder_without_prompts_is_sam2s(scene, with_mask):
    dense = scene.logits if with_mask else None
    theirs = decode(scene.model, scene.plain, [scene.fine, scene.middle], dense=dense)
    decoder = lean_tracking(scene.model, EXACT).decoder
    tokens, blocks = scene.plain.flatten(2).transpose(1, 2), decoder.blocks_of(scene.fine, scene.middle)
    ours = decoder(scene.model, tokens, blocks, [1, 1, 1], dense)
    for name in ("logits", "iou", "object_score", "pointer"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **TOLERANCE)


@torch.inference_mode()
def test_the_decoder_is_sam2s_where_objects_share_a_slice(scene):
    place = torch.tensor([0, 0, 1])
    theirs = decode(scene.model, scene.plain, [scene.fine[place], scene.middle[place]])
    decoder = lean_tracking(scene.model, EXACT).decoder
    tokens, blocks = scene.plain.flatten(2).transpose(1, 2), decoder.blocks_of(scene.fine[:2], scene.middle[:2])
    ours = decoder(scene.model, tokens, blocks, [2, 1], None)
    torch.testing.assert_close(ours.logits, theirs.logits, **TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("from_prompt", [False, True])
def test_the_memory_encoder_is_sam2s_where_objects_share_a_slice_and_where_they_are_absent(scene, from_prompt):
    rows = torch.tensor([1, 1, 0])
    theirs = encode_memory(scene.model, scene.plain[rows], scene.logits, scene.score, from_prompt=from_prompt)
    encoder = lean_tracking(scene.model, EXACT).memory_encoder
    ours = encoder(scene.model, scene.plain, rows, scene.logits, scene.score, from_prompt=from_prompt)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize(("architecture", "size"), [("mini", 256), ("hiera_t", 256), ("hiera_t", 512)])
def test_the_image_encoder_is_sam2s_also_where_windows_reach_beyond_the_grid(architecture, size):
    torch.manual_seed(4)
    model = build_sam2(architecture, size)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        theirs, ours = model.forward_image(images)["backbone_fpn"], lean_image_encoder(model, EXACT)(images)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, **TOLERANCE)


def test_an_image_encoder_with_another_neck_is_used_as_it_is():
    model = build_sam2("mini", SIZE)
    model.image_encoder.neck.fuse_type = "avg"
    assert not LeanImageEncoder.suits(model)
    assert lean_image_encoder(model, EXACT) is None


def test_tokens_come_back_from_windows_as_they_were():
    whole = Grid(2, 1, 1, 16)
    tokens = torch.randn(2, 256, 5)
    windows, grid = whole.taken_apart(tokens, 4)
    assert windows.shape == (32, 16, 5)
    assert torch.equal(grid.whole(windows), tokens.view(2, 16, 16, 5))


def test_new_weights_are_prepared_anew_and_the_same_weights_are_not():
    model = build_sam2("mini", SIZE).requires_grad_(False)
    first = lean_tracking(model, EXACT)
    assert lean_tracking(model, EXACT) is first
    with torch.no_grad():
        model.memory_attention.layers[0].linear1.bias += 1.0
    assert lean_tracking(model, EXACT) is not first


def test_what_was_prepared_goes_with_its_model():
    import gc
    import weakref

    model = build_sam2("mini", SIZE)
    alive = weakref.ref(model)
    with torch.inference_mode():
        lean_tracking(model, EXACT)
    del model
    gc.collect()
    assert alive() is None
