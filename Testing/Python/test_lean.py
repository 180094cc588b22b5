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

SIZE, GRID = 128, 8
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
POINTER_TOKENS = 8


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


@torch.inference_mode()
def test_memory_attention_is_sam2s(scene):
    model, rows = scene.model, 3
    count = 2 * GRID**2 + POINTER_TOKENS
    slices, places = torch.randn(2, GRID**2, model.hidden_dim), torch.randn(GRID**2, model.hidden_dim)
    on = torch.tensor([1, 0, 1])  # the first and the last row share a slice
    memory, code = torch.randn(rows, count, model.mem_dim), torch.randn(rows, count, model.mem_dim)
    theirs = model.memory_attention(
        curr=slices[on].transpose(0, 1),
        curr_pos=places[:, None].expand(-1, rows, -1),
        memory=memory.transpose(0, 1),
        memory_pos=code.transpose(0, 1),
        num_obj_ptr_tokens=POINTER_TOKENS,
    ).transpose(0, 1)
    ours = LeanMemoryAttention(model, torch.float32)(slices, on, places, memory, code, POINTER_TOKENS)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("with_mask", [False, True])
def test_the_decoder_without_prompts_is_sam2s(scene, with_mask):
    dense = scene.logits if with_mask else None
    theirs = decode(scene.model, scene.plain, [scene.fine, scene.middle], dense=dense)
    decoder = lean_tracking(scene.model, torch.float32).decoder
    tokens, blocks = scene.plain.flatten(2).transpose(1, 2), decoder.blocks_of(scene.fine, scene.middle)
    ours = decoder(scene.model, tokens, blocks, torch.arange(3), dense)
    for name in ("logits", "iou", "object_score", "pointer"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("from_prompt", [False, True])
def test_the_memory_encoder_is_sam2s_where_objects_share_a_slice_and_where_they_are_absent(scene, from_prompt):
    rows = torch.tensor([1, 1, 0])
    theirs = encode_memory(scene.model, scene.plain[rows], scene.logits, scene.score, from_prompt=from_prompt)
    encoder = lean_tracking(scene.model, torch.float32).memory_encoder
    ours = encoder(scene.model, scene.plain, rows, scene.logits, scene.score, from_prompt=from_prompt)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_the_image_encoder_is_sam2s():
    torch.manual_seed(4)
    model = build_sam2("mini", 256)
    images = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        theirs, ours = model.forward_image(images)["backbone_fpn"], lean_image_encoder(model)(images)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, **TOLERANCE)


def test_a_model_whose_windows_are_padded_is_used_as_it_is():
    model = build_sam2("hiera_t", 512)
    assert not LeanImageEncoder.suits(model)
    assert lean_image_encoder(model) is None


def test_tokens_come_back_from_windows_as_they_were():
    whole = Grid(2, 1, 1, 16)
    tokens = torch.randn(2, 256, 5)
    windows, grid = whole.taken_apart(tokens, 4)
    assert windows.shape == (32, 16, 5)
    assert torch.equal(grid.whole(windows), tokens.view(2, 16, 16, 5))


def test_new_weights_are_prepared_anew_and_the_same_weights_are_not():
    model = build_sam2("mini", SIZE).requires_grad_(False)
    first = lean_tracking(model, torch.float32)
    assert lean_tracking(model, torch.float32) is first
    with torch.no_grad():
        model.memory_attention.layers[0].linear1.bias += 1.0
    assert lean_tracking(model, torch.float32) is not first


def test_what_was_prepared_goes_with_its_model():
    import gc
    import weakref

    model = build_sam2("mini", SIZE)
    alive = weakref.ref(model)
    with torch.inference_mode():
        lean_tracking(model, torch.float32)
    del model
    gc.collect()
    assert alive() is None
