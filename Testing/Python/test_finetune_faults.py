"""What goes wrong around fine-tuning without spoiling it: a log that cannot be written, Ctrl-C, numbers of any size."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace

import pytest
import torch
from command_line import run
from finetune_scenes import a_data_folder, a_recipe, finetune_tiny

from SAM2AssistLib.engine.adapter import WEIGHTS_FILE, check_adapter_files
from SAM2AssistLib.errors import InputError

pytest.importorskip("peft", reason="fine-tuning needs the package peft")
pytest.importorskip("accelerate", reason="fine-tuning needs the package accelerate")

from SAM2AssistLib.training.cbdp import Pruner  # noqa: E402
from SAM2AssistLib.training.finetune import RUN_FOLDER, FineTuner  # noqa: E402
from SAM2AssistLib.training.recipe import MOST_SEED, FineTuneRecipe  # noqa: E402
from SAM2AssistLib.training.run_log import RunLog  # noqa: E402
from SAM2AssistLib.training.run_state import CHECKPOINT  # noqa: E402
from SAM2AssistLib.training.unit import TrainingUnit  # noqa: E402

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory):
    return a_data_folder(tmp_path_factory.mktemp("data"))


def a_short_recipe(**changes):
    return a_recipe(steps=2, clip_share=0.0, **changes)


@pytest.mark.parametrize("moment", ["__init__", "add_scalar", "add_image", "close"])
def test_a_run_whose_log_cannot_be_written_ends_with_its_adapter_and_says_so_once(
    a_folder, tmp_path, monkeypatch, caplog, moment
):
    pytest.importorskip("tensorboard")

    def fail(*_, **__):
        raise NO_SPACE

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{moment}", fail)
    result = finetune_tiny(a_folder, tmp_path / "adapter", a_short_recipe())
    check_adapter_files(result.folder)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "SAM2AssistLib"]
    assert "TensorBoard's log cannot be written (No space left on device)" in told


@pytest.mark.parametrize("steps", [1, 200])
def test_a_full_disk_is_heard_of_from_the_thread_that_writes_without_a_traceback(tmp_path, caplog, capfd, steps):
    pytest.importorskip("tensorboard")
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    outcome = SimpleNamespace(
        loss=torch.tensor(0.5), dice={"first": torch.tensor(0.5)}, masks=torch.zeros(1, 1, 64, 64)
    )
    batch = SimpleNamespace(
        images=torch.rand(1, 1, 3, 256, 256),
        owner=torch.zeros(1, dtype=torch.long),
        masks=torch.zeros(1, 1, 256, 256) > 0,
    )
    hook = threading.excepthook
    log = RunLog(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        for step in range(10, 10 * steps + 1, 10):
            log.take(step, outcome, batch, 1.0)
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.records) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert log.loss == pytest.approx(0.5)
    assert threading.excepthook is hook


def test_a_log_that_cannot_even_be_begun_is_said_once_and_without_a_traceback(tmp_path, caplog, capfd):
    pytest.importorskip("tensorboard")
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    hook = threading.excepthook
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        RunLog(tmp_path, 0).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.records) == 1
    assert "training goes on without it" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


@pytest.fixture(scope="module")
def an_unbroken_run(a_folder, tmp_path_factory):
    return finetune_tiny(a_folder, tmp_path_factory.mktemp("unbroken") / "adapter", a_recipe(steps=6)).folder


@pytest.mark.parametrize(
    ("owner", "within", "kept"), [(TrainingUnit, "forward", 2), (FineTuner, "_update", 0), (Pruner, "record", 0)]
)
def test_ctrl_c_keeps_the_steps_that_are_done_and_none_by_halves(
    a_folder, an_unbroken_run, tmp_path, monkeypatch, owner, within, kept
):
    out, done, real = tmp_path / "adapter", [], getattr(owner, within)

    def then_ctrl_c(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    def finetune():
        finetune_tiny(a_folder, out, a_recipe(steps=6), report=lambda progress: done.append(progress.step))

    monkeypatch.setattr(owner, within, then_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        finetune()
    assert (out / RUN_FOLDER / CHECKPOINT).is_file() == (kept > 0)
    done.append("interrupted")
    finetune()
    assert done[3] == kept + 1
    assert (out / WEIGHTS_FILE).read_bytes() == (an_unbroken_run / WEIGHTS_FILE).read_bytes()


def test_ctrl_c_between_two_epochs_keeps_the_first(a_folder, tmp_path, monkeypatch):
    out, done, real = tmp_path / "adapter", [], Pruner.plan

    def then_ctrl_c(pruner, epoch):
        if epoch > 0:
            raise KeyboardInterrupt
        return real(pruner, epoch)

    monkeypatch.setattr(Pruner, "plan", then_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        finetune_tiny(a_folder, out, a_recipe(), report=lambda progress: done.append(progress.step))
    position = torch.load(out / RUN_FOLDER / CHECKPOINT, weights_only=True)["position"]
    assert (position["epoch"], position["step_in_epoch"], position["step"]) == (1, 0, done[-1])


def test_slices_of_a_step_that_ctrl_c_has_broken_off_are_counted_once(a_folder, tmp_path, monkeypatch):
    out, passes, done, real = tmp_path / "adapter", [], [], TrainingUnit.forward

    def then_ctrl_c(*arguments):
        passes.append(len(done))
        if passes.count(2) == 2:  # in the second half of the third step
            raise KeyboardInterrupt
        return real(*arguments)

    def finetune(folder):
        recipe = a_recipe(steps=6, accumulate=2)
        return finetune_tiny(a_folder, folder, recipe, report=lambda progress: done.append(progress.step)).card

    monkeypatch.setattr(TrainingUnit, "forward", then_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        finetune(out)
    monkeypatch.setattr(TrainingUnit, "forward", real)
    assert finetune(out)["training"]["slices_encoded"] == finetune(tmp_path / "unbroken")["training"]["slices_encoded"]


def test_a_seed_may_be_a_date_to_the_second(a_folder, tmp_path):
    check_adapter_files(finetune_tiny(a_folder, tmp_path / "adapter", a_short_recipe(seed=20261122151500)).folder)


def test_a_refused_run_leaves_no_folder_behind_but_those_that_were_there(a_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="cannot be shared"):
        finetune_tiny(a_folder, tmp_path / "mine/new/adapter", a_short_recipe(batch=3, accumulate=2))
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("seed", [-1, MOST_SEED])
def test_a_seed_that_no_generator_takes_is_refused_at_once(seed):
    with pytest.raises(InputError, match=f"a seed from 0 to {MOST_SEED - 1}, but got {seed}"):
        FineTuneRecipe(seed=seed)


@pytest.mark.parametrize(
    ("kept", "words"),
    [(True, "Cancelled; the same command goes on from the last checkpoint."), (False, "the same command begins anew.")],
)
def test_a_run_that_is_cancelled_tells_whether_it_can_go_on(a_folder, tmp_path, monkeypatch, capfd, kept, words):
    def cancelled(*_, **__):
        if kept:
            (tmp_path / "adapter" / RUN_FOLDER).mkdir(parents=True)
            (tmp_path / "adapter" / RUN_FOLDER / CHECKPOINT).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("SAM2AssistLib.training.adapter_run.finetune_adapter", cancelled)
    outcome = run(capfd, "finetune", "--data", a_folder, "--out", tmp_path / "adapter")
    assert outcome.code == 130
    assert words in outcome.err
