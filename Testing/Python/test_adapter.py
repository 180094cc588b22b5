"""LoRA adapters: merged at loading, and refused with a sentence where they do not fit."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from blobs import click

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, attach_adapter
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.checkpoint import load_verified
from SAM2AssistLib.engine.loading import load_engine
from SAM2AssistLib.errors import ModelError

peft = pytest.importorskip("peft", reason="adapters need the package peft")

MINI = find_model("mini")
TARGETS = r".*(image_encoder\.trunk\.blocks\.\d+\.attn\.qkv|memory_attention\.layers\.\d+\.linear1)"


def a_base_model() -> torch.nn.Module:
    model = build_sam2("mini", MINI.image_size)
    model.load_state_dict(load_verified(MINI))
    return model


def card(base="mini", **changes):
    return {"base_model": base, "base_sha256": store.expected_sha256(MINI), **changes}


@pytest.fixture(scope="session")
def an_unmerged_model():
    """The mini model with a LoRA adapter beside its weights, as it is during training."""
    model = peft.get_peft_model(a_base_model(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # peft begins with zeros there, which would change nothing
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def a_good_folder(an_unmerged_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    an_unmerged_model.save_pretrained(str(folder))
    (folder / CARD_FILE).write_text(json.dumps(card()))
    return folder


@pytest.fixture
def a_folder(a_good_folder, tmp_path):
    """A copy of the adapter that a test may spoil."""
    return shutil.copytree(a_good_folder, tmp_path / "adapter")


@pytest.fixture(scope="session")
def an_image():
    return torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(5)) * 4 - 2


def features(model, image) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward_image(image)["backbone_fpn"][-1]


def test_the_merged_network_gives_what_the_unmerged_one_gives(an_unmerged_model, a_good_folder, an_image):
    merged = attach_adapter(a_base_model(), a_good_folder, MINI)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    expected = features(an_unmerged_model.base_model.model, an_image)
    assert torch.allclose(features(merged, an_image), expected, atol=1e-4)
    assert not torch.allclose(features(a_base_model(), an_image), expected, atol=1e-2)


def test_a_merged_memory_attention_gives_what_the_unmerged_one_gives(an_unmerged_model, a_good_folder):
    merged = attach_adapter(a_base_model(), a_good_folder, MINI).memory_attention.layers[0].linear1
    beside = an_unmerged_model.base_model.model.memory_attention.layers[0].linear1
    tokens = torch.randn(3, merged.in_features, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(merged(tokens), beside(tokens), atol=1e-4)


def test_a_merged_network_has_the_parameters_of_its_base(a_good_folder):
    merged, base = attach_adapter(a_base_model(), a_good_folder, MINI).state_dict(), a_base_model().state_dict()
    assert {name: value.shape for name, value in merged.items()} == {n: value.shape for n, value in base.items()}


def test_an_engine_with_an_adapter_segments_where_peft_is_not_installed(a_good_folder, a_blob_volume, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    engine = load_engine("mini", device="cpu", adapter=a_good_folder)
    assert not engine.model.training
    with engine.open(a_blob_volume) as session:
        assert click(session, session.add_segment("ball"), (5, 32, 20)).shape == (64, 64)


def test_an_adapter_that_was_just_begun_changes_nothing(tmp_path, an_image):
    begun = peft.get_peft_model(a_base_model(), peft.LoraConfig(r=2, target_modules=TARGETS))
    begun.save_pretrained(str(tmp_path))
    (tmp_path / CARD_FILE).write_text(json.dumps(card()))
    merged = attach_adapter(a_base_model(), tmp_path, MINI)
    assert torch.allclose(features(merged, an_image), features(a_base_model(), an_image), atol=1e-5)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])
def test_a_missing_file_is_named(a_folder, name):
    (a_folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        attach_adapter(a_base_model(), a_folder, MINI)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is no adapter"):
        load_engine("mini", device="cpu", adapter=tmp_path / "nowhere")


def test_an_adapter_for_another_base_is_refused_and_the_base_named(a_folder):
    (a_folder / CARD_FILE).write_text(json.dumps(card("sam2.1-tiny")))
    with pytest.raises(ModelError, match=r"is for sam2\.1-tiny, not for mini; choose --model sam2\.1-tiny"):
        attach_adapter(a_base_model(), a_folder, MINI)


def test_an_adapter_for_other_weights_of_its_base_is_refused(a_folder):
    (a_folder / CARD_FILE).write_text(json.dumps(card(base_sha256="0" * 64)))
    with pytest.raises(ModelError, match="was made for other weights of mini"):
        attach_adapter(a_base_model(), a_folder, MINI)


def saved(tmp_path, **settings):
    """Write an adapter of any kind with random weights; returns its folder and what peft merges it to."""
    torch.manual_seed(7)
    adapted = peft.get_peft_model(a_base_model(), peft.LoraConfig(r=4, **{"target_modules": TARGETS, **settings}))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(str(tmp_path))
    (tmp_path / CARD_FILE).write_text(json.dumps(card()))
    return tmp_path, adapted.merge_and_unload().state_dict()


def assert_merges_to(folder, expected):
    merged = attach_adapter(a_base_model(), folder, MINI).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    base = a_base_model().state_dict()
    assert any(not torch.equal(merged[name], base[name]) for name in merged)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 12},
        {"use_rslora": True},
        {"target_modules": ["qkv", "memory_attention.layers.1.linear2"]},
        {"modules_to_save": ["memory_encoder", "image_encoder.neck"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
    ],
)
def test_plain_lora_is_merged_bit_by_bit_as_peft_does_without_peft(tmp_path, monkeypatch, settings):
    folder, expected = saved(tmp_path, **settings)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert_merges_to(folder, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"rank_pattern": {"linear1": 2}},
        {"layers_to_transform": 0, "target_modules": ["linear1"]},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"target_modules": ["image_encoder.neck.convs.0.conv"]},
        {"modules_to_save": ["memory_attention"]},
    ],
)
def test_what_is_more_than_plain_lora_is_left_to_peft(tmp_path, monkeypatch, settings):
    folder, expected = saved(tmp_path, **settings)
    assert_merges_to(folder, expected)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="more than plain LoRA and needs the package peft; install it with: pip"):
        attach_adapter(a_base_model(), folder, MINI)


@pytest.mark.parametrize("change", [{"target_modules": "(("}, {"rank_pattern": 3}, {"target_modules": ["nowhere"]}])
def test_settings_that_make_no_adapter_are_refused(a_folder, change):
    path = a_folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match="does not fit .* make it again"):
        attach_adapter(a_base_model(), a_folder, MINI)


@pytest.mark.parametrize("change", ["shape", "missing", "foreign"])
def test_tensors_that_do_not_fit_are_refused(a_folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(a_folder / WEIGHTS_FILE)
    first = sorted(tensors)[0]
    if change == "shape":
        tensors[first] = tensors[first][:, :-1].contiguous()
    elif change == "missing":
        del tensors[first]
    else:
        tensors["base_model.model.somewhere.else.lora_A.weight"] = torch.zeros(4, 4)
    save_file(tensors, a_folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="does not fit mini"):
        attach_adapter(a_base_model(), a_folder, MINI)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (WEIGHTS_FILE, b""),
        (WEIGHTS_FILE, b"no safetensors at all"),
        (CARD_FILE, b"{"),
        (CARD_FILE, b"{}"),
        (CARD_FILE, b'{"base_model": "mini"}'),
        (CARD_FILE, b"[1]"),
        (CARD_FILE, b"\xff\xfe\x00"),
        (CONFIG_FILE, b"{"),
        (CONFIG_FILE, b'{"peft_type": "NO SUCH THING"}'),
    ],
)
def test_a_damaged_file_is_refused(a_folder, name, content):
    (a_folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        attach_adapter(a_base_model(), a_folder, MINI)


def test_weights_that_were_cut_off_are_refused(a_folder):
    content = (a_folder / WEIGHTS_FILE).read_bytes()
    (a_folder / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        attach_adapter(a_base_model(), a_folder, MINI)
