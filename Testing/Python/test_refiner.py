"""The edge refiner beside SAM2."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from SAM2AssistLib import CTVolume, load_engine
from SAM2AssistLib.engine.loading import engine_for
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.refiner import PREFIX, EdgeRefiner, refiner_from


def untrained(seed: int = 0) -> EdgeRefiner:
    torch.manual_seed(seed)
    refiner = EdgeRefiner()
    torch.nn.init.normal_(refiner.change.weight, std=0.5)
    return refiner.eval()


def test_an_untrained_refiner_changes_nothing():
    logits = torch.randn(2, 1, 64, 64)
    refiner = EdgeRefiner()
    edges = refiner.edges(torch.randn(2, 3, 256, 256))
    torch.testing.assert_close(refiner(logits, None, edges), logits)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_it_takes_any_input_size(size):
    refiner = untrained()
    edges = refiner.edges(torch.randn(1, 3, size, size))
    logits = torch.randn(1, 1, size // 4, size // 4)
    refined = refiner(logits, torch.zeros_like(logits), edges)
    assert refined.shape == logits.shape
    assert not torch.equal(refined, logits)


def test_the_gradient_reaches_every_parameter():
    refiner = untrained()
    logits = torch.randn(2, 1, 32, 32, requires_grad=True)
    refiner(logits, torch.randn(2, 1, 32, 32), refiner.edges(torch.randn(2, 3, 128, 128))).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in refiner.parameters())
    assert logits.grad is not None


def test_weights_are_found_under_their_prefix_and_only_there():
    refiner = untrained()
    state = {PREFIX + name: tensor.half() for name, tensor in refiner.state_dict().items()}
    again = refiner_from({**state, "maskmem_tpos_enc": torch.zeros(1)})
    assert again is not None
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, refiner.state_dict()[name].half().float())
    assert refiner_from({"maskmem_tpos_enc": torch.zeros(1)}) is None


def _mask_with(refiner: EdgeRefiner | None, options: EngineOptions) -> np.ndarray:
    array = np.full((5, 64, 64), -100, np.int16)
    array[:, 20:44, 20:44] = 110
    base = load_engine("mini", device="cpu")
    engine = engine_for(base.model, base.spec, options, refiner)
    with engine.open(CTVolume.from_array(array, (2.0, 2.0, 3.0), np.diag([2.0, 2.0, 3.0, 1.0]))) as session:
        segment = session.add_segment("block")
        session.add_point(segment, (-64.0, -64.0, 6.0), positive=True)
        list(session.propagate())
        return session.mask(segment)


def test_the_engine_refines_prompted_and_tracked_slices():
    plain, refined = (_mask_with(r, EngineOptions(focus=False, sharpens=False)) for r in (None, untrained()))
    assert (plain != refined)[2].any()
    assert (plain != refined)[[0, 1, 3, 4]].any()


def test_upstream_s_order_of_operations_knows_no_refiner():
    options = EngineOptions.like_upstream()
    np.testing.assert_array_equal(_mask_with(None, options), _mask_with(untrained(), options))
