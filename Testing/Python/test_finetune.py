"""Fine-tuning from folder to adapter: exact resume, one process or two, and refusals before any work is done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_line import run, sentence_of
from finetune_scenes import SPEC, a_data_folder, a_recipe, finetune_tiny
from safetensors.torch import load_file

from SAM2AssistLib.engine.adapter import CARD_FILE, WEIGHTS_FILE, check_adapter_files
from SAM2AssistLib.engine.appearance import ONE_WINDOW, THREE_SLICES
from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.prompting.error_head import ERROR_HEAD_FILE

pytest.importorskip("peft", reason="fine-tuning needs the package peft")
pytest.importorskip("accelerate", reason="fine-tuning needs the package accelerate")

from SAM2AssistLib.training import adapter_run, slices  # noqa: E402
from SAM2AssistLib.training.datasets.case import read_labelled  # noqa: E402
from SAM2AssistLib.training.datasets.layouts import find_data  # noqa: E402
from SAM2AssistLib.training.datasets.split import split_of  # noqa: E402
from SAM2AssistLib.training.memory_clips import Clips, Travel, clip_step  # noqa: E402
from SAM2AssistLib.training.phpg import Prompting  # noqa: E402
from SAM2AssistLib.training.recipe import FineTuneRecipe  # noqa: E402
from SAM2AssistLib.training.run_state import CHECKPOINT, load_state  # noqa: E402
from SAM2AssistLib.training.slices import Appearance, CaseStore, SampleKey, SliceSamples  # noqa: E402
from SAM2AssistLib.training.synthetic import SHAPES, phantom_ct, synthetic_ct, with_synthetic_names  # noqa: E402
from SAM2AssistLib.training.unit import collate  # noqa: E402
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume  # noqa: E402

SCRIPT = Path(__file__).with_name("finetune_scenes.py")


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory):
    return a_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def an_unbroken_run(a_folder, tmp_path_factory):
    """Settings are those of the script, so that its runs can be compared with this one."""
    out = tmp_path_factory.mktemp("unbroken") / "adapter"
    steps = []
    result = finetune_tiny(a_folder, out, a_recipe(), report=steps.append)
    return result, steps


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_FILE) | load_file(folder / ERROR_HEAD_FILE)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs are compared bit by bit with those of other processes, and threads change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name


def difference(one: Path, other: Path) -> float:
    """Compare two runs by what they have learned: the updates' B begin at zero, so their size is how far they got."""
    first, second = (
        torch.cat([t.flatten().float() for k, t in w.items() if "lora_B" in k]) for w in map(weights_of, (one, other))
    )
    return float((first - second).norm() / first.norm())


def samples_of(folder: Path, varied=True, **changes) -> SliceSamples:
    data = find_data(folder)
    store = CaseStore(data.cases, data.names, **changes)
    return SliceSamples(store, store.index(), Appearance(64, WINDOW_PRESETS["abdomen"], ONE_WINDOW, varied), 8)


# Samples


def test_the_index_lists_every_slice_with_what_it_shows(a_folder):
    index = samples_of(a_folder).index
    assert len(index) == 4 * 5
    assert index.labels[:5] == ((5,), (2, 5), (2, 5), (2, 5), (2,))


def test_a_sample_follows_from_its_key_alone(a_folder):
    samples = samples_of(a_folder)
    key = SampleKey(3, seed=1, epoch=2)
    first, second = samples[key], samples_of(a_folder)[key]
    assert first.images.equal(second.images)
    assert first.masks.equal(second.masks)
    assert not samples[replace(key, epoch=3)].images.equal(first.images)


def test_every_region_of_a_sample_is_seen_in_its_first_slice(a_folder):
    samples = samples_of(a_folder)
    for n in range(len(samples.index)):
        sample = samples[SampleKey(n, 1, n, slices=3)]
        assert sample.images.shape == (3, 3, 64, 64)
        assert sample.masks.shape[:2] == (3, len(sample.labels))
        assert bool(sample.masks[0].flatten(1).any(1).all())
        assert set(sample.labels) <= set(samples.index.labels[n])


def test_image_and_masks_vary_together(a_folder):
    samples = samples_of(a_folder)
    for n in (1, 6, 11):
        sample = samples[SampleKey(n, 1, 0)]
        inside = sample.images[0, 0][sample.masks[0].any(0)].mean()
        outside = sample.images[0, 0][~sample.masks[0].any(0)].mean()
        assert float(inside - outside) > 0.5


def test_with_2_5d_context_the_channels_are_the_slice_between_its_neighbours(a_folder):
    plain = samples_of(a_folder, varied=False)
    appearance = replace(plain.appearance, channels=THREE_SLICES)
    samples = SliceSamples(plain.store, plain.index, appearance, 8)
    for n, neighbours in ((2, (1, 2, 3)), (0, (0, 0, 1)), (4, (3, 4, 4))):
        images = samples[SampleKey(n, 1, 0)].images[0]
        for channel, k in enumerate(neighbours):
            assert images[channel].equal(plain[SampleKey(k, 1, 0)].images[0, channel])


def test_a_volume_within_the_budget_is_read_from_its_files_once(a_folder, monkeypatch):
    read = []
    monkeypatch.setattr(slices, "read_labelled", lambda case, names: (read.append(case), read_labelled(case, names))[1])
    samples = samples_of(a_folder)
    for n in range(len(samples.index)):
        samples[SampleKey(n, 1, 0)]
    assert len(read) == 4
    read.clear()
    samples_of(a_folder, budget_bytes=2 * 5 * 48 * 48 * 3)[SampleKey(19, 1, 0)]
    assert len(read) == 2 + 2 + 1  # two to be kept; two to be looked through, and one of these again


def test_volumes_beyond_the_budget_are_read_again_and_are_the_same(a_folder):
    held, read = samples_of(a_folder), samples_of(a_folder, budget_bytes=1)
    assert held.store.bytes_held == 4 * 5 * 48 * 48 * 3
    assert read.store.bytes_held == 0
    key = SampleKey(7, 1, 1)
    assert held[key].images.equal(read[key].images)


def test_phantoms_and_random_shapes_are_data_beside_the_real_ones(a_folder):
    data = find_data(a_folder)
    names = with_synthetic_names(data.names, 1, 1)
    assert {"liver": 5, "spleen": 2}.items() <= names.items()
    assert len(set(names.values())) == len(names)
    made = [phantom_ct(1, names), synthetic_ct(2, names)]
    store = CaseStore(data.cases, names, made)
    index = store.index()
    shown = {label for place, labels in zip(index.cases, index.labels, strict=True) for label in labels if place == 5}
    assert len(shown & {names[name] for name in SHAPES}) >= 4
    assert index.cases[-1] == 5
    assert synthetic_ct(2, names).volume.array.tobytes() == made[1].volume.array.tobytes()


def test_data_without_a_label_are_refused(a_folder):
    data = find_data(a_folder)
    with pytest.raises(InputError, match="None of the training volumes shows"):
        CaseStore(data.cases, {"pancreas": 9}).index()


# Clips


@pytest.mark.parametrize(("second", "carried"), [(False, False), (True, True)])
def test_a_clip_teaches_prompting_memory_and_object_score(monkeypatch, a_folder, second, carried):
    from training_scenes import a_tiny_sam2

    from SAM2AssistLib.prompting.error_head import ErrorHead

    samples = samples_of(a_folder)
    batch = collate([samples[SampleKey(n, 1, 0, slices=4)] for n in (2, 8)])
    clips = Clips(batch.images, batch.masks, batch.owner, batch.weights, batch.keys)
    model = a_tiny_sam2(monkeypatch).train()
    outcome = clip_step(model, ErrorHead(4), clips, Prompting(), Travel(1, second, carried), drawn_prompts=True)
    outcome.loss.backward()
    for part in (model.image_encoder, model.memory_attention, model.memory_encoder, model.sam_mask_decoder):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
    assert model.sam_mask_decoder.pred_obj_score_head.layers[0].weight.grad.abs().sum() > 0
    assert set(outcome.dice) == {"first", "corrected", "propagated", "worst corrected"}


# The run


def test_a_run_makes_an_adapter_with_head_card_and_measured_validation(an_unbroken_run):
    result, steps = an_unbroken_run
    check_adapter_files(result.folder)
    card = json.loads((result.folder / CARD_FILE).read_text())
    assert card["classes"] == ["spleen", "liver"]
    assert card["training"]["steps"] == len(steps) == steps[-1].steps
    assert card["training"]["slices_encoded"] >= 4 * len(steps)
    assert card["data"]["cases"]["val"]
    assert 0 <= card["metrics"]["adapter"]["corrected"] <= 1
    assert steps[-1].eta_seconds == 0
    assert not (result.folder / "training" / CHECKPOINT).exists()


def test_pruning_makes_fewer_iterations_and_the_card_says_so(an_unbroken_run):
    training = an_unbroken_run[0].card["training"]
    assert training["steps"] < training["steps_without_pruning"]
    assert training["share_of_iterations"] == pytest.approx(
        training["steps"] / training["steps_without_pruning"], abs=1e-3
    )


def test_tensorboard_gets_scalars_and_pictures(an_unbroken_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(an_unbroken_run[0].folder / "training" / "tensorboard"))
    events.Reload()
    assert "loss" in events.Tags()["scalars"]
    assert "Dice/first" in events.Tags()["scalars"]
    assert events.Tags()["images"]


def test_an_adapter_of_an_untrained_base_is_refused_by_the_engine(an_unbroken_run, monkeypatch):
    from training_scenes import a_tiny_sam2

    from SAM2AssistLib.engine.adapter import attach_adapter

    with pytest.raises(ModelError, match="was made for other weights"):
        attach_adapter(a_tiny_sam2(monkeypatch), an_unbroken_run[0].folder, SPEC)


def test_the_same_run_gives_the_same_weights(an_unbroken_run, a_folder, tmp_path):
    finetune_tiny(a_folder, tmp_path / "adapter", a_recipe())
    assert_same(an_unbroken_run[0].folder, tmp_path / "adapter")


def script(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_a_run_that_was_killed_goes_on_to_the_very_weights_of_an_unbroken_one(an_unbroken_run, a_folder, tmp_path):
    out = tmp_path / "adapter"
    moment = int(np.random.default_rng().integers(3, 8))  # any will do; it is told if the test fails
    with subprocess.Popen(
        script(a_folder, out, "--slow", 0.05), stdout=subprocess.PIPE, text=True, env=environment()
    ) as killed:
        for line in killed.stdout:
            if int(line) == moment:
                killed.send_signal(signal.SIGKILL)
                break
        last = max(moment, *map(int, killed.stdout), 0)  # a busy machine may have let it go on a little
    assert killed.returncode == -signal.SIGKILL
    assert (out / "training" / CHECKPOINT).is_file()
    assert not (out / CARD_FILE).exists()
    steps = []
    finetune_tiny(a_folder, out, a_recipe(), report=lambda progress: steps.append(progress.step))
    assert moment - 2 <= steps[0] - 1 <= last, f"killed at step {moment}"
    assert_same(an_unbroken_run[0].folder, out)


def test_two_processes_give_what_one_gives(a_folder, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    arguments = [str(SCRIPT), str(a_folder), str(tmp_path / "two"), "--steps", "4", "--dropout", "0"]
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("a step takes") == 1  # the main process speaks for all
    result = finetune_tiny(a_folder, tmp_path / "one", a_recipe(steps=4), dropout=0.0)
    assert json.loads((tmp_path / "two" / CARD_FILE).read_text())["training"]["processes"] == 2
    assert result.card["training"]["processes"] == 1
    # Sums in another order, which Adam makes larger where gradients are next to nothing.
    assert difference(tmp_path / "one", tmp_path / "two") < 0.02
    other = finetune_tiny(a_folder, tmp_path / "other", a_recipe(steps=4, seed=2), dropout=0.0)
    assert difference(tmp_path / "one", other.folder) > 0.2


def test_accumulated_parts_give_what_a_whole_batch_gives(a_folder, tmp_path):
    for name, parts in (("one", 1), ("two", 2)):
        finetune_tiny(a_folder, tmp_path / name, a_recipe(steps=4, accumulate=parts), dropout=0.0)
    assert difference(tmp_path / "one", tmp_path / "two") < 0.02


def test_a_run_in_bfloat16_ends_with_finite_weights(a_folder, tmp_path):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        result = finetune_tiny(a_folder, tmp_path / "adapter", a_recipe(steps=3, precision="bf16"))
    finally:
        AcceleratorState._reset_state(True)
    assert all(bool(tensor.isfinite().all()) for tensor in weights_of(result.folder).values())
    assert result.card["training"]["recipe"]["precision"] == "bf16"


def test_the_plan_is_told_before_the_first_step_with_memory_and_split(a_folder, tmp_path):
    told = []
    finetune_tiny(
        a_folder,
        tmp_path / "adapter",
        a_recipe(steps=1),
        announce=told.append,
        report=told.append,
    )
    plan = told[0]
    assert (plan.classes, plan.done) == (("spleen", "liver"), 0)
    assert plan.data_bytes == 3 * 5 * 48 * 48 * 3
    assert plan.peak_bytes > 50e6
    assert len(plan.split.train) == 3


# Refusals


def test_a_finished_adapter_is_not_overwritten(an_unbroken_run, a_folder):
    with pytest.raises(InputError, match="holds a finished adapter"):
        finetune_tiny(a_folder, an_unbroken_run[0].folder, a_recipe())


@pytest.fixture(scope="module")
def left_after_two_steps(a_folder, tmp_path_factory):
    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("interrupted") / "adapter"
    with pytest.raises(KeyboardInterrupt):
        finetune_tiny(a_folder, out, a_recipe(), report=stop, checkpoint_every=1)
    return out


@pytest.fixture
def an_interrupted_run(left_after_two_steps, tmp_path, monkeypatch):
    """A run that may be gone on with, in a folder of the test's own; how good the base is takes no part in that."""
    monkeypatch.setattr(adapter_run._Validation, "measure", lambda *_: None)
    return shutil.copytree(left_after_two_steps, tmp_path / "adapter")


def test_an_interrupted_run_with_other_settings_is_refused(a_folder, an_interrupted_run):
    with pytest.raises(InputError, match="unfinished run with other settings"):
        finetune_tiny(a_folder, an_interrupted_run, a_recipe(learning_rate=2e-3))


@pytest.mark.parametrize("part", ["images", "labels"])
def test_an_interrupted_run_is_not_finished_on_images_or_labels_that_were_replaced(
    a_folder, an_interrupted_run, tmp_path, part
):
    folder = shutil.copytree(a_folder, tmp_path / "data")
    (name,) = list(split_of(find_data(folder)).train)[:1]
    path = folder / part / f"{name}.nii.gz"
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(sitk.Flip(image, (False, True, False)) if part == "labels" else image + 1, str(path))
    turned = sitk.ReadImage(str(path))
    turned.CopyInformation(image)
    sitk.WriteImage(turned, str(path))
    with pytest.raises(InputError, match="unfinished run with other settings or data"):
        finetune_tiny(folder, an_interrupted_run, a_recipe())


def test_an_interrupted_run_is_not_finished_on_another_base(a_folder, an_interrupted_run):
    with pytest.raises(InputError, match="unfinished run with other settings"):
        finetune_tiny(a_folder, an_interrupted_run, a_recipe(), untrained_base=False)


def test_a_damaged_checkpoint_is_refused_and_named(a_folder, an_interrupted_run):
    path = an_interrupted_run / "training" / CHECKPOINT
    for content in (b"", b"no checkpoint", path.read_bytes()[:-500]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"checkpoint\.pt is damaged; remove it"):
            load_state(path.parent, "any")
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged; remove it"):
        finetune_tiny(a_folder, an_interrupted_run, a_recipe())


def test_a_checkpoint_that_lacks_weights_or_has_others_is_refused_as_damaged(a_folder, an_interrupted_run):
    path = an_interrupted_run / "training" / CHECKPOINT
    whole = torch.load(path, weights_only=True)
    (name, tensor), *rest = whole["weights"].items()
    for changed in (
        {"weights": dict(rest)},
        {"weights": dict(rest) | {name: tensor.new_zeros(7, 5)}},
        {"optimizer": {}},
        {"pruner": {}},
    ):
        torch.save(whole | changed, path)
        with pytest.raises(ModelError, match=r"checkpoint\.pt is damaged; remove it"):
            finetune_tiny(a_folder, an_interrupted_run, a_recipe())


def test_a_checkpoint_that_holds_code_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"weights": Trap()}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="is damaged"):
        load_state(tmp_path, "any")
    assert not (tmp_path / "sprung").exists()


def test_a_batch_that_cannot_be_shared_is_refused(a_folder, tmp_path):
    with pytest.raises(InputError, match="make it a multiple of 3"):
        finetune_tiny(a_folder, tmp_path, a_recipe(accumulate=3))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"precision": "int4"}, {"clip_share": 2.0}, {"seed": -1}],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        FineTuneRecipe(**wrong)


def test_an_unknown_class_is_refused_with_those_there_are(a_folder, tmp_path):
    with pytest.raises(InputError, match="no structure 'brain'; choose from spleen, liver"):
        finetune_tiny(a_folder, tmp_path, a_recipe(), classes=("brain",))


# The command


def test_the_command_refuses_data_of_another_grid_by_file(a_folder, tmp_path, capfd):
    import shutil

    import SimpleITK as sitk

    broken = shutil.copytree(a_folder, tmp_path / "data")
    sitk.WriteImage(sitk.Image(9, 9, 9, sitk.sitkUInt8), str(broken / "labels" / "c.nii.gz"))
    sentence = sentence_of(run(capfd, "finetune", "--data", broken, "--out", tmp_path / "out"))
    assert "c.nii.gz has 9 x 9 x 9 voxels" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "maxi"), "no model 'maxi'"),
        (("--window", "purple"), "is no window"),
        (("--targets", "everything"), "no LoRA target 'everything'"),
        (("--whole", "everything"), "no part to train whole"),
        (("--pruning", "hard"), "no pruning 'hard'"),
        (("--device", "abacus"), "no kind of device"),
        (("--learning-rate", "nan"), "learning rates above 0"),
        (("--alpha", "inf"), "an alpha above 0"),
        (("--workers", "-1"), "--workers"),
        (("--checkpoint-every", "0"), "--checkpoint-every"),
    ],
)
def test_the_command_refuses_wrong_settings_in_one_sentence(a_folder, tmp_path, capfd, arguments, words):
    assert words in sentence_of(run(capfd, "finetune", "--data", a_folder, "--out", tmp_path / "out", *arguments))


def test_a_place_that_no_adapter_can_be_written_to_is_refused_before_anything_is_measured(
    a_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr("SAM2AssistLib.training.adapter_run.build_base", None)
    (tmp_path / "file").write_text("")
    sentence = sentence_of(run(capfd, "finetune", "--data", a_folder, "--out", tmp_path / "file" / "adapter"))
    assert "cannot be made" in sentence


def test_the_command_trains_mini_and_the_engine_takes_the_adapter(tmp_path, capfd):
    from SAM2AssistLib.engine.loading import load_engine

    a_folder, out = a_data_folder(tmp_path / "data", "abc", 3), tmp_path / "adapter"
    fast = ("--steps", 1, "--batch", 1, "--clip-share", 0, "--context", "slices")
    outcome = run(capfd, "finetune", "--data", a_folder, "--out", out, *fast, "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["adapter"] == str(out)
    assert set(told["metrics"]) == {"base", "adapter"}
    assert "memory:" in outcome.err
    engine = load_engine("mini", device="cpu", adapter=out)
    assert engine.channels == THREE_SLICES
    with engine.open(CTVolume.read(a_folder / "images" / "a.nii.gz")) as session:
        assert session.add_point(session.add_segment("liver"), (-28, -28, 8), positive=True).shape == (48, 48)
