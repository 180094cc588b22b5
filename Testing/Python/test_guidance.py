"""PMA: the pseudo-mask as a real gate of the mask decoder."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from auto_scenes import a_learned_head, a_prompter, balls
from safetensors.torch import save_file

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.heads import decode
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.guidance import (
    FLOOR,
    GUIDANCE_FILE,
    GUIDANCE_NAME,
    MaskGuidance,
    guided_attentions,
    load_guidance,
)
from SAM2AssistLib.prompting.parts import add_part
from SAM2AssistLib.training.guidance_training import decoded, guidance_loss, looks_at, pairs_of, train
from SAM2AssistLib.training.self_prompt_scans import LabelledScan


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


class ElsewhereGuidance(MaskGuidance):
    """A guidance on another device than there is here, until it is brought to the CPU."""

    is_here = False

    def to(self, device):
        self.is_here = device.type == "cpu"
        return self

    def gate(self, logits, size):
        if not self.is_here:
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().gate(logits, size)


def test_a_guidance_follows_a_decoder_that_has_gone_to_the_cpu(a_model):
    guidance = ElsewhereGuidance(len(guided_attentions(a_model.sam_mask_decoder)))
    given = inputs(a_model)
    assert guided(a_model, guidance, *given).equal(guided(a_model, a_guidance(a_model), *given))


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


def test_a_guidance_that_was_written_is_loaded_as_it_was(a_model, tmp_path):
    guidance = a_guidance(a_model)
    with torch.no_grad():
        guidance.bias_strengths.copy_(torch.tensor([0.5, -0.25, 2.0]))
    (tmp_path / "card.json").write_text('{"base_model": "mini"}')
    add_part(tmp_path, GUIDANCE_NAME, guidance, {"dice": 0.5})
    loaded = load_guidance(tmp_path, a_model.sam_mask_decoder)
    assert loaded is not None
    for name, tensor in guidance.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)
    assert json.loads((tmp_path / "card.json").read_text()) == {"base_model": "mini", "guidance": {"dice": 0.5}}


def test_a_folder_without_guidance_has_none(a_model, tmp_path):
    assert load_guidance(tmp_path, a_model.sam_mask_decoder) is None


def test_a_damaged_guidance_is_refused(a_model, tmp_path):
    (tmp_path / GUIDANCE_FILE).write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match="damaged"):
        load_guidance(tmp_path, a_model.sam_mask_decoder)


def test_a_guidance_for_another_decoder_is_refused(a_model, tmp_path):
    save_file(MaskGuidance(7).state_dict(), tmp_path / GUIDANCE_FILE)
    with pytest.raises(ModelError, match="does not fit"):
        load_guidance(tmp_path, a_model.sam_mask_decoder)


def test_a_guidance_that_is_not_finite_is_refused(a_model, tmp_path):
    guidance = a_guidance(a_model)
    with torch.no_grad():
        guidance.threshold.fill_(float("nan"))
    save_file(guidance.state_dict(), tmp_path / GUIDANCE_FILE)
    with pytest.raises(ModelError, match="finite"):
        load_guidance(tmp_path, a_model.sam_mask_decoder)


@pytest.fixture(scope="module")
def looks(quick_engine):
    """What two balls look like by their own support."""
    engine = quick_engine()
    volume, masks = balls()
    scan = LabelledScan("balls", volume, masks)
    return engine, list(looks_at(a_prompter(engine, a_learned_head(engine, steps=5)), scan, scan))


def test_training_learns_from_what_the_decoder_is_given_and_lowers_its_loss(looks):
    engine, seen = looks
    assert seen
    decoder = engine.model.sam_mask_decoder
    before, after = a_guidance(engine.model), train(decoder, seen, steps=40)
    with torch.no_grad():
        losses = [
            sum(float(guidance_loss(decoded(decoder, guidance, look)[0], look.truth.float())) for look in seen)
            for guidance in (before, after)
        ]
    assert losses[1] < losses[0]


def test_a_look_without_strength_is_the_second_look_itself(looks):
    engine, seen = looks
    decoder, without = engine.model.sam_mask_decoder, a_guidance(engine.model)
    with torch.no_grad():
        without.bias_strengths.zero_()
        without.light_strength.zero_()
        given = {n: [t.float() for t in v] if isinstance(v, list) else v for n, v in seen[0].given.items()}
        given = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        masks, *_ = decoder(**given)
        torch.testing.assert_close(decoded(decoder, without, seen[0])[0], masks[:, :1], atol=1e-4, rtol=1e-4)


def test_phantoms_and_patients_take_turns_and_nobody_supports_himself():
    volume, masks = balls()
    patients = [LabelledScan(name, volume, masks) for name in ("one", "two")]
    pairs = list(itertools.islice(pairs_of(patients), 5))
    names = [(query.name, support.name) for query, support in pairs]
    assert names[1::2] == [("one", "two"), ("two", "one")]
    assert all(query != support for query, support in names)
    assert all("phantom" in query for query, _ in names[::2])


def test_a_guidance_takes_part_when_pseudo_masks_are_made(quick_engine):
    from SAM2AssistLib.engine.loading import default_window
    from SAM2AssistLib.prompting.pseudo_masks import SupportOptions, SupportPrompter
    from SAM2AssistLib.prompting.support import SupportCase, prepare_support

    engine = quick_engine()
    volume, masks = balls()
    support = prepare_support(engine, SupportCase("balls", volume, masks), default_window(volume))
    found = []
    for guidance in (None, a_guidance(engine.model).requires_grad_(False)):
        prompter = replace(a_prompter(engine, a_learned_head(engine, steps=5)), guidance=guidance)
        options = SupportOptions(prior_weight=0.0)
        *_, maps = SupportPrompter([support], support.plane, support.features, options, prompter).maps()
        found.append(maps.probabilities.float())
    assert float((found[0] - found[1]).abs().max()) > 1e-3
