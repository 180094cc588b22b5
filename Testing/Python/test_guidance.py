"""PMA: the pseudo-mask as a real gate of the mask decoder."""

from __future__ import annotations

import pytest
import torch

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.heads import decode
from SAM2AssistLib.prompting.guidance import FLOOR, MaskGuidance, guided_attentions


@pytest.fixture(scope="module", params=[64, 128])
def a_model(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_sam2("mini", request.param).requires_grad_(False)


def inputs(model, rows: int = 2):
    torch.manual_seed(1)
    side = model.image_size // 16
    width = model.hidden_dim
    features = torch.randn(rows, width, side, side)
    fine = [torch.randn(rows, width // 8, 4 * side, 4 * side), torch.randn(rows, width // 4, 2 * side, 2 * side)]
    logits = torch.full((rows, 1, 4 * side, 4 * side), -6.0)
    logits[:, :, side : 2 * side, side : 3 * side] = 6.0
    return features, fine, logits


def guided(model, guidance, features, fine, logits):
    with guidance.guiding(model.sam_mask_decoder, logits):
        return decode(model, features, fine).logits


def a_guidance(model) -> MaskGuidance:
    return MaskGuidance(len(guided_attentions(model.sam_mask_decoder)))


def test_the_gradient_reaches_every_parameter(a_model):
    guidance = a_guidance(a_model)
    guided(a_model, guidance, *inputs(a_model)).square().mean().backward()
    for name, parameter in guidance.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad.abs() > 0).all()), name


def test_the_gate_changes_the_output_and_another_mask_changes_it_otherwise(a_model):
    guidance = a_guidance(a_model)
    features, fine, logits = inputs(a_model)
    with torch.no_grad():
        plain = decode(a_model, features, fine).logits
        one = guided(a_model, guidance, features, fine, logits)
        other = guided(a_model, guidance, features, fine, -logits)
    assert float((one - plain).abs().max()) > 1e-3
    assert float((one - other).abs().max()) > 1e-3


def test_without_strength_the_decoder_is_as_it_was(a_model):
    guidance = a_guidance(a_model)
    features, fine, logits = inputs(a_model)
    with torch.no_grad():
        guidance.bias_strengths.zero_()
        guidance.light_strength.zero_()
        plain = decode(a_model, features, fine).logits
        torch.testing.assert_close(guided(a_model, guidance, features, fine, logits), plain, atol=1e-4, rtol=1e-4)


def test_after_the_block_the_decoder_is_as_it_was(a_model):
    features, fine, logits = inputs(a_model)
    with torch.no_grad():
        before = decode(a_model, features, fine).logits
        guided(a_model, a_guidance(a_model), features, fine, logits)
        torch.testing.assert_close(decode(a_model, features, fine).logits, before)


def test_each_row_is_guided_by_its_own_mask(a_model):
    guidance = a_guidance(a_model)
    features, fine, logits = inputs(a_model)
    logits[1] = -logits[1]
    with torch.no_grad():
        both = guided(a_model, guidance, features, fine, logits)
        alone = guided(a_model, guidance, features[1:], [f[1:] for f in fine], logits[1:])
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(3, 5), (16, 16), (64, 64)])
def test_the_gate_takes_any_size_and_keeps_its_floor(a_model, size):
    gate = a_guidance(a_model).gate(inputs(a_model)[2], size)
    assert gate.shape[-2:] == size
    assert float(gate.detach().min()) >= FLOOR
    assert float(gate.detach().max()) <= 1.0


def test_a_guidance_takes_part_when_pseudo_masks_are_made(quick_engine):
    from auto_scenes import balls

    from SAM2AssistLib.engine.loading import default_window
    from SAM2AssistLib.prompting.pseudo_masks import SupportOptions, SupportPrompter
    from SAM2AssistLib.prompting.support import SupportCase, prepare_support

    engine = quick_engine()
    volume, masks = balls()
    support = prepare_support(engine, SupportCase("balls", volume, masks), default_window(volume))
    found = []
    for guidance in (None, a_guidance(engine.model).requires_grad_(False)):
        options = SupportOptions(guidance=guidance, prior_weight=0.0)
        *_, maps = SupportPrompter([support], support.plane, support.features, options).maps()
        found.append(maps.probabilities.float())
    assert float((found[0] - found[1]).abs().max()) > 1e-3
