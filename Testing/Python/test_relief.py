"""When memory runs out, the engine steps down, says so, and finishes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import click, run

from SAM2AssistLib.engine import sharpening
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.encoder import SliceEncoder
from SAM2AssistLib.engine.lean_decoder import LeanDecoder
from SAM2AssistLib.engine.lean_memory import LeanMemoryEncoder
from SAM2AssistLib.engine.loading import engine_for
from SAM2AssistLib.engine.network import Network
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.error_head import ErrorHead, channels_of

STAGES = {
    "encode": (SliceEncoder, "_encode"),
    "track": (LeanDecoder, "__call__"),
    "click": (Network, "_refined"),
    "memory": (LeanMemoryEncoder, "__call__"),
    "settle": (sharpening, "passages"),
}


@pytest.fixture
def running_out(monkeypatch):
    """Let a stage run out of memory so many times."""

    def inject(stage: str, times: int):
        owner, name = STAGES[stage]
        real, left = getattr(owner, name), [times]

        def run_out(*args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, run_out)

    return inject


def propagated(session) -> np.ndarray:
    segment = session.add_segment("blob")
    click(session, segment, (5, 32, 20))
    run(session)
    return session.mask(segment)


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_runs_out_once_costs_a_note_and_no_slice(quick_engine, a_blob_volume, running_out, caplog, stage):
    with quick_engine(sharpens=True).open(a_blob_volume) as session:
        wanted = propagated(session)
    running_out(stage, 1)
    with caplog.at_level(logging.WARNING), quick_engine(sharpens=True).open(a_blob_volume) as session:
        found = propagated(session)
        notes = session._plane(0).network.relief.notes
    assert len(notes) == 1
    assert "at a time" in notes[0]
    assert "Memory ran out" in caplog.text
    assert np.mean(found == wanted) > 0.999


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_keeps_running_out_leads_to_bfloat16_at_last_and_finishes(
    quick_engine, a_blob_volume, running_out, stage
):
    with quick_engine(sharpens=True).open(a_blob_volume) as session:
        network = session._plane(0).network
        network.row_batch = network.encoder.batch = 1
        running_out(stage, 1)
        assert propagated(session).shape == a_blob_volume.array.shape
        assert network.relief.half
        assert "bfloat16" in network.relief.notes[-1]


def test_where_no_step_is_left_the_user_is_told_and_the_prompt_is_not_kept(quick_engine, a_blob_volume, running_out):
    running_out("encode", 99)
    with quick_engine().open(a_blob_volume) as session:
        segment = session.add_segment("blob")
        with pytest.raises(ModelError, match="not enough memory"):
            click(session, segment, (5, 32, 20))
        assert session.prompts(segment) == ()


def test_features_kept_on_the_host_are_the_same_features(quick_engine, a_blob_volume):
    with quick_engine().open(a_blob_volume) as session:
        plane = session._plane(0)
        key = (5, plane.whole)
        (before,) = plane.encoder.features([key])
        held = plane.encoder.bytes_held
        plane.encoder.keep_on_host()
        (after,) = plane.encoder.features([key])
        assert torch.equal(before.plain, after.plain)
        assert plane.encoder.bytes_held == held
        plane.encoder.forget()
        assert not plane.encoder.holds(*key)


def test_features_of_a_device_with_another_precision_are_used_in_that_of_this_one(quick_engine, a_blob_volume):
    with quick_engine().open(a_blob_volume) as session:
        segment = session.add_segment("blob")
        click(session, segment, (5, 32, 20))
        encoder = session._plane(0).encoder
        halved = {key: features.on("cpu", torch.bfloat16) for key, features in encoder._cache.items()}
        encoder._cache = OrderedDict(halved)
        click(session, segment, (5, 34, 20))
        assert list(session.propagate())


class Elsewhere(torch.Tensor):
    """A tensor of another device than there is here: it mixes with no other, and `to` brings it here."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        given = [item for each in args for item in (each if isinstance(each, list | tuple) else [each])]
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            return args[0].as_subclass(torch.Tensor)
        if any(isinstance(item, torch.Tensor) and not isinstance(item, cls) for item in given):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_what_was_carried_before_the_network_went_to_the_cpu_is_carried_on(quick_engine, a_blob_volume, monkeypatch):
    carried = Network.carried
    monkeypatch.setattr(Network, "carried", lambda *given: carried(*given).as_subclass(Elsewhere))
    with quick_engine().open(a_blob_volume) as session:
        segment = session.add_segment("blob")
        click(session, segment, (5, 32, 20))
        assert run(session)
        head = ErrorHead(channels_of(session.engine.model))
        assert session.predicted_error(segment, 5, head) is not None


@pytest.mark.parametrize(("size", "rows"), [(128, 32), (256, 32), (512, 8), (1024, 2)])
def test_on_a_cpu_the_more_tokens_a_slice_has_the_fewer_rows_go_at_once(a_blob_volume, size, rows):
    engine = engine_for(build_sam2("mini", size), replace(find_model("mini"), image_size=size))
    with engine.open(a_blob_volume) as session:
        assert session._plane(0).network.row_batch == rows
