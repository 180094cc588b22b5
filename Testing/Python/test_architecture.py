"""The SAM2 family as built here is the one that the sam2 package's own configurations describe."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from SAM2AssistLib.engine.architecture import ARCHITECTURES, build_sam2
from SAM2AssistLib.engine.catalogue import CATALOGUE
from SAM2AssistLib.errors import ModelError

PUBLISHED = {
    "hiera_t": "configs/sam2.1/sam2.1_hiera_t.yaml",
    "hiera_s": "configs/sam2.1/sam2.1_hiera_s.yaml",
    "hiera_b+": "configs/sam2.1/sam2.1_hiera_b+.yaml",
    "hiera_l": "configs/sam2.1/sam2.1_hiera_l.yaml",
}
FOR_VIDEO = [
    # What sam2.build_sam.build_sam2_video_predictor adds to every configuration.
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
    "++model.binarize_mask_from_pts_for_mem_enc=true",
]


@pytest.fixture(params=PUBLISHED)
def both(request, monkeypatch):
    """Our and upstream's network of one size, without memory for their weights."""
    import sam2  # noqa: F401 - importing it tells hydra where its configurations are
    from hydra import compose
    from hydra.utils import instantiate

    # Two things in sam2's constructors do not work without real tensors.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch.device("meta"):
        ours = build_sam2(request.param, 1024)
        theirs = instantiate(
            compose(PUBLISHED[request.param], FOR_VIDEO).model, _recursive_=True, _convert_="all"
        ).eval()
    return ours, theirs


def settings_of(model) -> dict[str, object]:
    """Every plain setting of every part of a network, by its path, and the class of the part."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        found[path] = type(module)
        for name, value in vars(module).items():
            if isinstance(value, bool | int | float | str | tuple | list | type(None)):
                found[f"{path}.{name}"] = tuple(value) if isinstance(value, list) else value
    return found


def test_a_published_size_has_exactly_upstreams_parameters_and_settings(both):
    ours, theirs = both
    shapes, wanted = ({k: tuple(v.shape) for k, v in model.state_dict().items()} for model in both)
    assert shapes == wanted
    assert list(shapes) == list(wanted)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    mine, reference = settings_of(ours), settings_of(theirs)
    assert {k: (v, reference.get(k)) for k, v in mine.items() if v != reference.get(k, ...)} == {}
    assert mine.keys() == reference.keys()


def test_the_settings_that_are_compared_tell_the_sizes_apart(monkeypatch):
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch.device("meta"):
        tiny, small = build_sam2("hiera_t", 512), build_sam2("hiera_s", 512)
    assert settings_of(tiny) != settings_of(small)


def test_mini_is_small_enough_to_be_shipped():
    count = sum(p.numel() for p in build_sam2("mini", 256).parameters())
    assert 4e6 < count < 4.5e6


def test_a_network_is_built_in_evaluation_mode():
    assert not any(module.training for module in build_sam2("mini", 256).modules())


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_input_size_can_be_chosen(size):
    model = build_sam2("mini", size)
    with torch.inference_mode():
        out = model.forward_image(torch.zeros(1, 3, size, size))
    assert [level.shape[-1] for level in out["backbone_fpn"]] == [size // 4, size // 8, size // 16]


def test_the_sizes_do_not_change_the_parameters():
    one, two = (build_sam2("mini", size).state_dict() for size in (128, 256))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}


def test_upstreams_settings_can_be_overridden():
    assert build_sam2("mini", 64, max_cond_frames_in_attn=3).max_cond_frames_in_attn == 3


def test_another_class_of_upstream_can_be_built_with_the_same_parameters():
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    model = build_sam2("mini", 64, model_class=SAM2VideoPredictor)
    assert isinstance(model, SAM2VideoPredictor)
    assert model.state_dict().keys() == build_sam2("mini", 64).state_dict().keys()


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="'hiera_x'.*mini.*hiera_l"):
        build_sam2("hiera_x", 256)


@pytest.mark.parametrize("size", [0, -64, 32, 63, 100, 1000])
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ModelError, match=str(size)):
        build_sam2("mini", size)


def test_every_architecture_of_the_catalogue_is_known():
    assert {spec.architecture for spec in CATALOGUE} <= ARCHITECTURES.keys()
