"""No organ of the trunk is looked for in an arm or a leg."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from auto_scenes import BALLS, a_learned_head, a_prompter, balls
from safetensors.torch import save_file

from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.auto import auto_segment
from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.prompting.parts import add_part
from SAM2AssistLib.prompting.pseudo_masks import SupportOptions, SupportPrompter
from SAM2AssistLib.prompting.self_prompt import embedded_adapter, load_self_prompter
from SAM2AssistLib.prompting.support import SupportCase, prepare_support
from SAM2AssistLib.prompting.trunk import TRUNK_FILE, TRUNK_NAME, TrunkSense, load_trunk_sense, whole_looks
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures, read_features
from SAM2AssistLib.training.phantoms import make_phantom
from SAM2AssistLib.training.self_prompt_scans import LabelledScan, phantom_scan, training_scan
from SAM2AssistLib.training.trunk_training import Seen, cropped, fit, judged_apart, thighs
from SAM2AssistLib.volume import CTVolume

UNSEEN = (100_001, 100_002, 100_003)
"""Seeds that the training does not use."""


@pytest.fixture(scope="module")
def the_prompter(an_engine):
    return load_self_prompter(an_engine, embedded_adapter("mini"))


def features_of(engine, volume: CTVolume) -> VoxelFeatures:
    plane = Plane(engine.model, volume, 0, default_window(volume), engine.channels, engine.options)
    *_, features = read_features(plane, body_view(volume))
    assert isinstance(features, VoxelFeatures)
    return features


def a_sense_that_says(odds: float, channels: int) -> TrunkSense:
    sense = TrunkSense(channels).requires_grad_(False)
    sense.reading.weight.zero_()
    sense.reading.bias.fill_(odds)
    return sense


@pytest.mark.parametrize("seed", UNSEEN)
def test_the_adapter_of_the_package_takes_no_slice_of_thighs_for_the_trunk(an_engine, the_prompter, seed):
    assert not the_prompter.trunk.slices(features_of(an_engine, thighs(seed))).any()


@pytest.mark.parametrize("seed", UNSEEN)
def test_the_adapter_of_the_package_takes_a_phantom_for_the_trunk_also_a_cropped_one(an_engine, the_prompter, seed):
    volume = phantom_scan(seed).volume
    assert the_prompter.trunk.slices(features_of(an_engine, volume)).all()
    part = cropped(volume, np.random.default_rng(seed))
    assert the_prompter.trunk.slices(features_of(an_engine, part)).mean() > 0.8


@pytest.mark.parametrize("seed", UNSEEN)
def test_in_thighs_nothing_is_found_by_the_adapter_of_the_package(an_engine, seed):
    with an_engine.open(thighs(seed)) as session:
        *_, last = auto_segment(session)
        assert last.verdicts
        assert [v.name for v in last.verdicts if v.present] == []
        assert session.segments == ()


def test_in_thighs_nothing_is_found_by_an_abdomen_as_support(an_engine):
    phantom = make_phantom(7, (20, 128, 128), (3.0, 3.0, 5.0))
    masks = {name: phantom.labels == value for name, value in phantom.names.items()}
    organs = {name: mask for name, mask in masks.items() if name in ("liver", "spleen", "stomach", "aorta")}
    with an_engine.open(thighs(UNSEEN[0])) as session:
        *_, last = auto_segment(session, support=[SupportCase("abdomen", phantom.volume, organs)])
        assert {v.name for v in last.verdicts} == set(organs)
        assert [v.name for v in last.verdicts if v.present] == []
        assert session.segments == ()


def test_where_there_is_no_trunk_a_head_finds_nothing(quick_engine):
    engine = quick_engine()
    prompter = a_prompter(engine, a_learned_head(engine))
    features = features_of(engine, balls()[0])
    width = prompter.head.channels[0]
    everywhere = replace(prompter, trunk=a_sense_that_says(1.0, width)).maps(features)
    torch.testing.assert_close(everywhere.probabilities, prompter.maps(features).probabilities)
    nowhere = replace(prompter, trunk=a_sense_that_says(-1.0, width)).maps(features)
    assert float(nowhere.probabilities[:, 0].min()) == 1.0
    assert float(nowhere.probabilities[:, 1:].max()) == 0.0


def test_what_a_support_case_shows_in_a_limb_is_looked_for_in_limbs(quick_engine):
    engine = quick_engine()
    volume, masks = balls()
    support = prepare_support(engine, SupportCase("balls", volume, masks), default_window(volume))
    prompter = a_prompter(engine, a_learned_head(engine, steps=5))
    limb = replace(prompter, trunk=a_sense_that_says(-1.0, prompter.head.channels[0]))
    found = [
        list(SupportPrompter([support], support.plane, support.features, SupportOptions(), p).maps())[-1]
        for p in (prompter, limb)
    ]
    torch.testing.assert_close(found[0].probabilities, found[1].probabilities)


class _OnlySupport(TrunkSense):
    """Takes the volume that it is asked about first for a limb, and all others for a trunk."""

    asked = 0

    def slices(self, features):
        self.asked += 1
        return np.full(features.slices, self.asked > 1)


def test_what_a_support_case_shows_in_the_trunk_is_not_looked_for_in_limbs(quick_engine):
    engine = quick_engine()
    volume, masks = balls()
    support = prepare_support(engine, SupportCase("balls", volume, masks), default_window(volume))
    prompter = a_prompter(engine, a_learned_head(engine, steps=5))
    limb = replace(prompter, trunk=_OnlySupport(prompter.head.channels[0]))
    source = SupportPrompter([support], support.plane, support.features, SupportOptions(), limb)
    assert all(source.candidates(k).chosen == [] for k in range(support.features.slices))
    assert set(BALLS) == set(source.classes)


def test_a_class_of_which_a_support_case_shows_only_a_speck_is_no_obstacle(quick_engine):
    engine = quick_engine()
    volume, masks = balls()
    speck = np.zeros_like(masks[BALLS[0]])
    speck[5, 30, 30] = True
    support = prepare_support(engine, SupportCase("balls", volume, {**masks, "speck": speck}), default_window(volume))
    prompter = a_prompter(engine, a_learned_head(engine, steps=5))
    limb = replace(prompter, trunk=a_sense_that_says(-1.0, prompter.head.channels[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = SupportPrompter([support], support.plane, support.features, SupportOptions(), limb)
    assert "speck" in source.classes


def test_training_tells_two_kinds_of_volumes_apart_and_judges_each_patient_without_him(quick_engine):
    engine = quick_engine()
    rng = np.random.default_rng(0)

    def seen(number: int, hu: int) -> Seen:
        volume, _ = balls()
        other = replace(volume, array=np.maximum(volume.array, np.int16(hu)))
        features = training_scan(engine, LabelledScan("", other, {}), (), rng).features
        return Seen(f"patient {number}", hu > 0, True, features)

    volumes = [seen(n, hu) for n, hu in enumerate((-1000, 100, -1000, 100, -1000, 100))]
    shares = judged_apart(volumes)
    assert [shares[v.name] > 0.5 for v in volumes] == [v.is_trunk for v in volumes]
    assert [bool(fit(volumes).slices(v.features).all()) for v in volumes] == [v.is_trunk for v in volumes]


@pytest.mark.parametrize("grid", [(3, 3), (16, 16), (64, 64)])
def test_a_slice_is_described_whatever_its_size(grid):
    features = VoxelFeatures((torch.randn(5, 7, *grid).half(),), None, 5.0)  # type: ignore[arg-type]
    looks = whole_looks(features)
    assert looks.shape == (5, 14)
    sense = TrunkSense(7)
    sense(looks).sum().backward()
    assert bool((sense.reading.weight.grad.abs() > 0).all())
    assert sense.slices(features).shape == (5,)


def test_a_sense_that_was_written_is_loaded_as_it_was(tmp_path):
    sense = TrunkSense(7)
    (tmp_path / "card.json").write_text('{"base_model": "mini"}')
    add_part(tmp_path, TRUNK_NAME, sense, {"data": []})
    loaded = load_trunk_sense(tmp_path, 7)
    assert loaded is not None
    torch.testing.assert_close(loaded.state_dict(), sense.state_dict())
    assert json.loads((tmp_path / "card.json").read_text()) == {"base_model": "mini", "trunk": {"data": []}}


def test_a_folder_without_one_has_none(tmp_path):
    assert load_trunk_sense(tmp_path, 7) is None


def test_a_damaged_one_is_refused(tmp_path):
    (tmp_path / TRUNK_FILE).write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match="damaged"):
        load_trunk_sense(tmp_path, 7)


def test_one_for_another_encoder_or_with_broken_numbers_is_refused(tmp_path):
    save_file(TrunkSense(9).state_dict(), tmp_path / TRUNK_FILE)
    with pytest.raises(ModelError, match="does not fit"):
        load_trunk_sense(tmp_path, 7)
    save_file({n: t * float("nan") for n, t in TrunkSense(7).state_dict().items()}, tmp_path / TRUNK_FILE)
    with pytest.raises(ModelError, match="finite"):
        load_trunk_sense(tmp_path, 7)
