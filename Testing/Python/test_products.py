"""The products that a propagation consists of give what linear layers give, by whichever kernels there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from SAM2AssistLib.engine.lean_decoder import _attend_to_few
from SAM2AssistLib.engine.products import EXACT, Precision, Product, precision_on, product

PLAIN = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
SIZES = st.integers(1, 40)


@settings(max_examples=30)
@given(rows=SIZES, tokens=SIZES, inputs=SIZES, outputs=SIZES, activation=st.sampled_from(sorted(PLAIN)))
def test_a_product_is_a_linear_layer_and_its_activation(rows, tokens, inputs, outputs, activation):
    torch.manual_seed(rows * tokens)
    linear, x = torch.nn.Linear(inputs, outputs), torch.randn(rows, tokens, inputs)
    with torch.inference_mode():
        ours = product(linear, torch.float32, 2.0)(x, activation)
        torch.testing.assert_close(ours, PLAIN[activation](2.0 * linear(x)), rtol=1e-4, atol=1e-5)


def test_without_onednns_kernels_the_result_is_the_same(monkeypatch):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(5, 16), torch.randn(8, 16), torch.randn(8)
    with torch.inference_mode():
        fused = Product(weight, bias)(x, "gelu")
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        plain = Product(weight, bias)
        assert plain._packed is None
        torch.testing.assert_close(plain(x, "gelu"), fused)


def test_a_product_takes_tokens_that_do_not_lie_one_after_the_other():
    torch.manual_seed(2)
    linear, images = torch.nn.Linear(12, 7), torch.randn(2, 12, 5, 6)
    with torch.inference_mode():
        ours = product(linear, torch.float32)(images.permute(0, 2, 3, 1))
        torch.testing.assert_close(ours, linear(images.permute(0, 2, 3, 1).contiguous()))


def test_a_sum_with_float32_stays_float32_whatever_the_product_is_in():
    linear, x = torch.nn.Linear(16, 16), torch.randn(3, 16)
    with torch.inference_mode():
        assert (x + product(linear, torch.bfloat16)(x)).dtype == torch.float32


@pytest.mark.parametrize(("half", "fine"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_cpu_computes_in_bfloat16_only_what_a_model_bears(monkeypatch, half, fine):
    monkeypatch.setattr("SAM2AssistLib.engine.products.computes_in_bfloat16", lambda device: True)
    assert precision_on(torch.device("cpu"), half=half) == Precision(torch.bfloat16, fine)
    assert precision_on(torch.device("cpu"), half=half, exact=True) == EXACT


def test_a_cpu_that_would_have_to_emulate_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr("SAM2AssistLib.engine.products.computes_in_bfloat16", lambda device: False)
    assert precision_on(torch.device("cpu"), half=True) == EXACT


@settings(max_examples=20)
@given(few=st.integers(1, 9), many=st.integers(1, 30), scale=st.sampled_from([1.0, 30.0, 300.0]))
def test_attending_to_a_few_tokens_is_attention_even_where_scores_are_far_apart(few, many, scale):
    torch.manual_seed(few * many)
    heads, width = 4, 16
    query, key, value = scale * torch.randn(2, many, width), torch.randn(2, few, width), torch.randn(2, few, width)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    theirs = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
    torch.testing.assert_close(_attend_to_few(query, key, value, heads), theirs, rtol=1e-3, atol=1e-4)
