"""Choosing the device: what is there is taken, what is not is refused with a sentence."""

from __future__ import annotations

import pytest
import torch

from SAM2AssistLib.engine.device import choose_device
from SAM2AssistLib.engine.loading import load_engine
from SAM2AssistLib.errors import ModelError


@pytest.fixture
def a_computer(monkeypatch):
    """Pretend that a computer has so many CUDA devices, and MPS or not."""

    def make(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(0, False, "cpu"), (2, False, "cuda"), (0, True, "cpu")])
def test_auto_takes_cuda_where_it_is_and_else_the_cpu(a_computer, cuda, mps, expected):
    a_computer(cuda=cuda, mps=mps)
    assert choose_device("auto").type == expected
    assert choose_device().type == expected


def test_the_cpu_is_always_there(a_computer):
    a_computer(cuda=1)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_cuda_device_is_chosen_by_its_number(a_computer):
    a_computer(cuda=2)
    assert choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(a_computer, name):
    a_computer()
    with pytest.raises(ModelError, match="choose --device cpu or auto"):
        choose_device(name)


def test_a_number_beyond_the_last_device_is_refused(a_computer):
    a_computer(cuda=1)
    with pytest.raises(ModelError, match="cuda:1"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", "CUDA", "cuda:x", "cuda:-1", "meta", "xla", "cpu cuda"])
def test_a_word_that_is_no_device_is_refused(name):
    with pytest.raises(ModelError, match="choose auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


def test_an_engine_on_a_device_that_is_not_there_is_refused(a_computer):
    a_computer()
    with pytest.raises(ModelError, match="cuda:3"):
        load_engine("mini", device="cuda:3")


def test_an_engine_is_loaded_ready_to_work(an_engine):
    assert not an_engine.model.training
    assert not any(parameter.requires_grad for parameter in an_engine.model.parameters())
    assert an_engine.options.drawn_prompts is an_engine.spec.dense_prompts
    assert an_engine.options.carried_logits is an_engine.spec.carries_logits
