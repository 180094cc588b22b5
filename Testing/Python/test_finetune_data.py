"""Fine-tuning on data as they come: scattered labels, classes that some lack, phantoms beside them, few or many."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from finetune_scenes import SPEC, a_data_folder, a_recipe, finetune_tiny
from training_scenes import a_tiny_sam2

pytest.importorskip("peft", reason="fine-tuning needs the package peft")
pytest.importorskip("accelerate", reason="fine-tuning needs the package accelerate")

from SAM2AssistLib.cli import finetune  # noqa: E402
from SAM2AssistLib.engine.adapter import CARD_FILE  # noqa: E402
from SAM2AssistLib.engine.appearance import ONE_WINDOW  # noqa: E402
from SAM2AssistLib.training import adapter_run  # noqa: E402
from SAM2AssistLib.training.adapter_run import _training_samples  # noqa: E402
from SAM2AssistLib.training.behaviours import BEHAVIOURS, Draws, first_prompts  # noqa: E402
from SAM2AssistLib.training.cbdp import Pruning  # noqa: E402
from SAM2AssistLib.training.datasets.case import LabelledCT  # noqa: E402
from SAM2AssistLib.training.datasets.layouts import find_data  # noqa: E402
from SAM2AssistLib.training.datasets.split import Split, split_of  # noqa: E402
from SAM2AssistLib.training.phpg import Outcome, Prompting  # noqa: E402
from SAM2AssistLib.training.recipe import FineTuneRecipe, epochs_for, schedule_for  # noqa: E402
from SAM2AssistLib.training.slices import Appearance, CaseStore, SampleKey, SliceSamples  # noqa: E402
from SAM2AssistLib.training.unit import choose_step  # noqa: E402
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume  # noqa: E402


def islands(count: int, side: int, apart: int) -> np.ndarray:
    """Scatter small squares over the middle one of three slices."""
    labels = np.zeros((3, 512, 512), np.uint8)
    for n in range(count):
        row, column = 120 + apart * n // (count - 1), 110 + apart * (n * 7 % count) // (count - 1)
        labels[1, row : row + side, column : column + side] = 1
    return labels


def a_hair() -> np.ndarray:
    """Label one row of pixels, which a network's input that is smaller than the row is long may well miss."""
    labels = np.zeros((3, 512, 512), np.uint8)
    labels[1, 201, 20:500] = 1
    return labels


def samples_of(labels: np.ndarray, *, varied: bool, size: int = 64) -> SliceSamples:
    hu = np.where(labels > 0, 150, 40).astype(np.int16)
    volume = CTVolume.from_array(hu, (0.75, 0.75, 3.0), np.diag([0.75, 0.75, 3.0, 1.0]))
    store = CaseStore([], {"vessel": 1}, [LabelledCT("a", volume, labels)])
    return SliceSamples(store, store.index(), Appearance(size, WINDOW_PRESETS["abdomen"], ONE_WINDOW, varied), 8)


@pytest.mark.parametrize(
    "labels", [islands(12, 2, 300), islands(6, 2, 250), islands(2, 4, 350), islands(20, 1, 300), a_hair()]
)
def test_a_slice_with_small_scattered_pieces_of_a_label_is_trained_on(labels):
    for varied in (True, False):
        samples = samples_of(labels, varied=varied)
        for epoch in range(3):
            sample = samples[SampleKey(0, 1, epoch)]
            assert sample.labels == (1,)
            assert bool(sample.masks[0, 0].any())


def test_the_smallest_region_that_a_sample_can_have_is_prompted_in_every_way():
    masks = torch.zeros(len(BEHAVIOURS), 64, 64, dtype=torch.bool)
    masks[:, 31, 40] = True
    draws = Draws([(1, n) for n in range(len(BEHAVIOURS))])
    prompts = first_prompts(masks, torch.arange(len(BEHAVIOURS)), draws)
    assert bool(prompts.points.isfinite().all())
    assert bool((prompts.labels >= 0).any(1).all())


def without_spleen(folder, name: str) -> None:
    path = str(folder / "labels" / f"{name}.nii.gz")
    image = sitk.ReadImage(path)
    labels = sitk.GetArrayFromImage(image)
    labels[labels == 2] = 0
    emptied = sitk.GetImageFromArray(labels)
    emptied.CopyInformation(image)
    sitk.WriteImage(emptied, path)


def test_where_no_validation_case_shows_a_chosen_class_training_goes_without_and_plan_and_card_say_so(tmp_path):
    data = a_data_folder(tmp_path / "data", "abc")
    without_spleen(data, "c")
    (data / "splits.json").write_text('{"train": ["a", "b"], "val": ["c"]}')
    told = []
    recipe = a_recipe(steps=1, clip_share=0.0)
    result = finetune_tiny(data, tmp_path / "out", recipe, classes=("spleen",), announce=told.append)
    card = json.loads((tmp_path / "out" / CARD_FILE).read_text())
    assert result.metrics is None
    assert card["metrics"] is None
    assert told[0].split.val == ()
    assert card["data"]["cases"]["val"] == []
    assert card["data"]["split"] == "splits.json, whose validation cases show none of the structures"


def test_images_that_do_not_look_like_hu_are_told_before_the_first_step_and_not_each_by_itself(tmp_path, capfd):
    data = find_data(a_data_folder(tmp_path, "abcde", slices=2))
    for path in (case.image for case in data.cases):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(sitk.RescaleIntensity(image, 0, 255), sitk.sitkUInt8), str(path))
    store, _ = _training_samples(data, Split(tuple("abcde"), (), (), ""), data.names, SPEC, a_recipe())
    plan = adapter_run.Plan(data, split_of(data), ("liver",), 10, 1, 1, 1, 0, 0, 0, tuple(store.notes))
    finetune._announce(plan, a_recipe())
    told = capfd.readouterr().err.replace("\n", " ")
    assert told.count("does not look like CT in Hounsfield units") == 3
    assert "Note: There are 2 more such notes on other images." in told


def test_a_validation_slice_of_a_speck_without_a_dice_leaves_the_mean_of_the_others(monkeypatch, tmp_path):
    data = find_data(a_data_folder(tmp_path, "abc"))
    found = iter([math.nan, *[0.5] * 9])
    monkeypatch.setattr(
        adapter_run, "phpg_step", lambda *_, **__: Outcome(*[None] * 2, {"first": torch.tensor(next(found))}, 0, None)
    )
    validation = adapter_run._Validation(data, split_of(data), {"liver": 5}, SPEC, a_recipe())
    assert validation.measure(a_tiny_sam2(monkeypatch), SPEC) == {"first": 0.5}


def test_classes_that_were_not_chosen_are_not_trained_from_real_data_because_phantoms_have_them(tmp_path):
    data = find_data(a_data_folder(tmp_path, "ab"))
    store, samples = _training_samples(data, split_of(data), {"liver": 5}, SPEC, a_recipe(phantoms=1))
    for place in (0, 1):
        assert set(np.unique(store[place].labels)) == {0, 5}
    index = samples.index
    of_phantom = {
        label for place, labels in zip(index.cases, index.labels, strict=True) for label in labels * (place == 2)
    }
    assert len(of_phantom) > 3


def test_a_long_data_set_is_seen_in_part_and_a_short_one_many_times():
    recipe = FineTuneRecipe(steps=10, batch=2, pruning=Pruning("none"))
    assert schedule_for(recipe, [1000] * epochs_for(recipe, 1000)).steps == 10
    assert schedule_for(recipe, [4] * epochs_for(recipe, 4)).steps_of == (2,) * 5


def test_a_step_decides_by_its_number_alone():
    choices = [choose_step(1, 2, n, Prompting(), 0.5, 4, carries=True) for n in range(200)]
    assert choices == [choose_step(1, 2, n, Prompting(), 0.5, 4, carries=True) for n in range(200)]
    assert 60 < sum(choice.slices == 4 for choice in choices) < 140
    assert any(choice.travel.second for choice in choices)
    assert not any(choose_step(1, 2, n, Prompting(), 0.5, 4, carries=False).travel.carried for n in range(50))
