"""LoRA on SAM2's own modules: what trains, what is written, and that merging and switching change nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_scenes import TINY_SIZE, a_tiny_sam2

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, AdapterSwitch, attach_adapter
from SAM2AssistLib.engine.catalogue import ModelSpec, find_model
from SAM2AssistLib.engine.split_qkv import SplitQKV, fuse_qkv, split_qkv
from SAM2AssistLib.errors import InputError, ModelError

peft = pytest.importorskip("peft", reason="adapters need the package peft")

from SAM2AssistLib.training.lora import LoraRecipe, attach_lora, base_card, save_adapter, trained_parameters  # noqa: E402

SPEC = ModelSpec(
    "tiny", "Tiny", "tiny", TINY_SIZE, 900_000, "tiny.safetensors", source="here", licence="none", sha256="a" * 64
)


@pytest.fixture
def a_model(monkeypatch):
    return a_tiny_sam2(monkeypatch)


@pytest.fixture
def an_image():
    return torch.rand(1, 3, TINY_SIZE, TINY_SIZE, generator=torch.Generator().manual_seed(5)) * 4 - 2


def features(model, image):
    with torch.inference_mode():
        return model.forward_image(image)["backbone_fpn"][-1].clone()


def stir(module: nn.Module, seed: int) -> None:
    """Give everything that trains values as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(module):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def an_adapter(monkeypatch, folder, seed=1, recipe=None, **card):
    adapted = attach_lora(a_tiny_sam2(monkeypatch), recipe or LoraRecipe(rank=2))
    stir(adapted, seed)
    save_adapter(adapted, folder, base_card(SPEC) | card)
    return adapted.eval()


def test_a_split_projection_gives_what_the_fused_one_gave_and_fuses_back_bit_by_bit():
    torch.manual_seed(0)
    fused = nn.Linear(6, 30)
    apart = SplitQKV(fused)
    tokens = torch.randn(4, 6)
    assert torch.allclose(apart(tokens), fused(tokens), atol=1e-6)
    assert apart.fused().weight.equal(fused.weight)
    assert apart.fused().bias.equal(fused.bias)


def test_splitting_twice_and_fusing_leaves_the_names_and_weights_of_sam2(a_model):
    before = {key: value.clone() for key, value in a_model.state_dict().items()}
    split_qkv(a_model)
    split_qkv(a_model)
    fuse_qkv(a_model)
    after = a_model.state_dict()
    assert list(after) == list(before)
    assert all(after[key].equal(before[key]) for key in before)


def test_the_updates_of_q_and_v_lead_to_dim_out_where_a_stage_begins(a_model):
    adapted = attach_lora(a_model, LoraRecipe(rank=3, targets=("encoder",)))
    widths = []
    for block in adapted.base_model.model.image_encoder.trunk.blocks:
        q, v = block.attn.qkv.q, block.attn.qkv.v
        assert q.lora_A["default"].weight.shape == (3, block.dim)
        assert q.lora_B["default"].weight.shape == (block.dim_out, 3)
        assert v.lora_B["default"].weight.shape == (block.dim_out, 3)
        assert not hasattr(block.attn.qkv.k, "lora_A")
        widths.append(block.dim != block.dim_out)
    assert any(widths)  # the tiny network has stage transitions


@pytest.mark.parametrize(
    ("recipe", "fragments"),
    [
        (LoraRecipe(rank=2), {"lora_"}),
        (LoraRecipe(rank=2, targets=("encoder",)), {"trunk.blocks"}),
        (LoraRecipe(rank=2, targets=("memory",)), {"memory_attention"}),
        (LoraRecipe(rank=2, targets=("encoder",), whole=("neck",)), {"lora_", "image_encoder.neck"}),
        (LoraRecipe(rank=2, targets=("encoder", "decoder"), whole=("decoder",)), {"lora_", "sam_mask_decoder"}),
        (LoraRecipe(rank=2, targets=("encoder",), whole=("memory",)), {"lora_", "memory_", "obj_ptr"}),
    ],
)
def test_only_what_should_train_gets_gradients_and_moves(a_model, an_image, recipe, fragments):
    adapted = attach_lora(a_model, recipe)
    trains = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trains
    assert all(any(fragment in name for fragment in fragments) for name in trains)
    assert all(any(fragment in name for name in trains) for fragment in fragments)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    stir(adapted, 1)  # peft's B begins at zero, behind which A has no gradient
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    out = a_model.forward_image(an_image)
    loss = out["backbone_fpn"][-1].square().mean() + sum(p.square().sum() for p in trained_parameters(adapted)) * 1e-3
    loss.backward()
    optimizer.step()
    for name, parameter in adapted.named_parameters():
        assert (name in trains) == (parameter.grad is not None), name
        assert (name in trains) != parameter.equal(before[name]), name


def test_an_adapter_that_was_just_attached_changes_nothing(monkeypatch, an_image):
    plain, adapted = a_tiny_sam2(monkeypatch), attach_lora(a_tiny_sam2(monkeypatch), LoraRecipe())
    assert torch.allclose(features(adapted.base_model.model, an_image), features(plain, an_image), atol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        LoraRecipe(rank=2),
        LoraRecipe(rank=3, targets=("encoder",), whole=("neck", "decoder", "memory")),
        LoraRecipe(targets=(), whole=("encoder", "neck", "prompt", "decoder", "memory")),
    ],
)
def test_merged_equals_unmerged_after_a_round_trip_through_the_folder(monkeypatch, tmp_path, an_image, recipe):
    adapted = an_adapter(monkeypatch, tmp_path, recipe=recipe)
    base = a_tiny_sam2(monkeypatch)
    wanted = features(adapted.base_model.model, an_image)
    merged = attach_adapter(a_tiny_sam2(monkeypatch), tmp_path, SPEC)
    assert torch.allclose(features(merged, an_image), wanted, atol=1e-4)
    assert not torch.allclose(features(base, an_image), wanted, atol=1e-2)
    assert list(merged.state_dict()) == list(base.state_dict())


def test_the_card_names_base_sha_version_and_what_it_was_given(monkeypatch, tmp_path):
    an_adapter(monkeypatch, tmp_path, classes=["liver"])
    card = json.loads((tmp_path / CARD_FILE).read_text())
    assert (card["base_model"], card["base_sha256"], card["classes"]) == ("tiny", "a" * 64, ["liver"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])


def test_a_head_is_written_beside_and_float16_halves_the_file(monkeypatch, tmp_path):
    adapted = attach_lora(a_tiny_sam2(monkeypatch), LoraRecipe(rank=16))
    head = nn.Conv2d(3, 1, 1)
    save_adapter(adapted, tmp_path / "full", base_card(SPEC), {"self_prompt": head})
    save_adapter(adapted, tmp_path / "half", base_card(SPEC), dtype=torch.float16)
    assert load_file(tmp_path / "full" / "self_prompt.safetensors")["weight"].equal(head.weight)
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]


def test_weights_that_are_not_finite_are_not_written(monkeypatch, tmp_path):
    adapted = attach_lora(a_tiny_sam2(monkeypatch), LoraRecipe(rank=2))
    with torch.no_grad():
        next(p for p in adapted.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        save_adapter(adapted, tmp_path / "adapter", base_card(SPEC))
    assert not (tmp_path / "adapter").exists()


def test_the_same_adapter_makes_the_same_files(monkeypatch, tmp_path):
    for name in ("one", "two"):
        an_adapter(monkeypatch, tmp_path / name)
    for file in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_adapter_of_mini_is_under_five_percent_of_its_base(tmp_path):
    from SAM2AssistLib.engine.architecture import build_sam2

    spec = find_model("mini")
    adapted = attach_lora(build_sam2("mini", spec.image_size), LoraRecipe())
    save_adapter(adapted, tmp_path, base_card(spec), dtype=torch.float16)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 0.05 * store.weights_path(spec).stat().st_size


def test_switching_between_adapters_gives_each_as_merged_and_the_base_bit_by_bit(monkeypatch, tmp_path, an_image):
    for seed, name in enumerate(("one", "two"), 1):
        an_adapter(monkeypatch, tmp_path / name, seed=seed)
    model = a_tiny_sam2(monkeypatch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    switch = AdapterSwitch(model, SPEC)
    for name in ("one", "two"):
        switch.add(name, tmp_path / name)
    assert switch.names == ("one", "two")
    for name in ("one", "two", "one"):
        switch.use(name)
        alone = attach_adapter(a_tiny_sam2(monkeypatch), tmp_path / name, SPEC)
        assert features(model, an_image).equal(features(alone, an_image))
        assert switch.active == name
    switch.use(None)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_an_adapter_that_does_not_fit_leaves_the_switch_as_it_was(monkeypatch, tmp_path, an_image):
    an_adapter(monkeypatch, tmp_path / "good")
    an_adapter(monkeypatch, tmp_path / "foreign", base_model="mini")
    switch = AdapterSwitch(a_tiny_sam2(monkeypatch), SPEC)
    switch.add("good", tmp_path / "good")
    switch.use("good")
    wanted = features(switch.model, an_image)
    with pytest.raises(ModelError, match="is for mini, not for tiny"):
        switch.add("foreign", tmp_path / "foreign")
    with pytest.raises(ModelError, match="no adapter 'foreign'"):
        switch.use("foreign")
    assert switch.active == "good"
    assert features(switch.model, an_image).equal(wanted)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rank": 0}, "above 0"),
        ({"alpha": 0.0}, "above 0"),
        ({"dropout": 1.0}, "is no share"),
        ({"targets": ("liver",)}, "no LoRA target 'liver'"),
        ({"whole": ("liver",)}, "no part to train whole 'liver'"),
        ({"targets": ()}, "Nothing would be trained"),
    ],
)
def test_a_recipe_that_cannot_be_attached_is_refused(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        LoraRecipe(**wrong)
