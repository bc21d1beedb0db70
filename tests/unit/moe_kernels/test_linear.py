"""The dense NVFP4 linear layer, twin and kernel, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_kernels.linear import NVFP4Linear, nvfp4_linear, nvfp4_linear_torch, nvfp4_linear_triton
from moe_kernels.nvfp4 import quantize
from moe_kernels.testing import assert_close
from tests.marks import interpreted, on_gpu


def make(n: int, k: int, tokens: int, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    weight = quantize(torch.randn(n, k, generator=rng) * 0.1, "compressed-tensors")
    x = torch.randn(tokens, k, generator=rng)
    return x, NVFP4Linear.from_nvfp4(weight), x.double() @ weight.dequantize(torch.float64).T


@interpreted
@settings(deadline=None, max_examples=10)
@given(
    n=st.sampled_from([32, 64, 160]),
    k=st.sampled_from([32, 128, 192]),
    tokens=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_twin_and_kernel_are_exact_in_float32(n: int, k: int, tokens: int, seed: int):
    x, weight, expected = make(n, k, tokens, seed)
    assert weight.shape == (n, k)
    # float32 sums of at most 192 products, in another order than float64's; cancellation makes single sums worse than most
    for op in (nvfp4_linear, nvfp4_linear_triton):
        assert_close(op(x, weight), expected, max_error=1e-5, rms_error=1e-6)


@interpreted
def test_the_kernel_agrees_with_the_twin_in_bfloat16():
    x, weight, _ = make(64, 128, 20)
    x = x.bfloat16()
    # one rounding to 8 bits, which Triton's interpreter does by cutting off
    assert_close(nvfp4_linear_triton(x, weight), nvfp4_linear_torch(x, weight), max_error=3e-2, rms_error=6e-3)


@interpreted
def test_leading_dimensions_are_kept_even_if_empty():
    x, weight, expected = make(32, 64, 6)
    assert_close(nvfp4_linear(x.view(2, 3, 64), weight), expected.view(2, 3, 32), max_error=1e-5, rms_error=1e-6)
    for op in (nvfp4_linear, nvfp4_linear_triton):
        assert op(x[:0], weight).shape == (0, 32)


@interpreted
@pytest.mark.parametrize("form", ["columns of a wider tensor", "transposed"])
def test_rows_may_lie_anywhere(form: str):
    x, weight, expected = make(32, 64, 6)
    wide = torch.cat([x, x], dim=1)[:, :64] if form != "transposed" else x.T.contiguous().T
    assert not wide.is_contiguous()
    for op in (nvfp4_linear, nvfp4_linear_triton):
        assert_close(op(wide, weight), expected, max_error=1e-5, rms_error=1e-6)


def test_a_width_that_does_not_fit_is_refused():
    x, weight, _ = make(32, 64, 2)
    with pytest.raises(ValueError, match=r"expected x \(\.\.\., 64\), got \(2, 32\)"):
        nvfp4_linear(x[:, :32], weight)
    with pytest.raises(ValueError, match=r"expected a weight \(N, K\), got \(2, 32, 64\)"):
        NVFP4Linear.from_nvfp4(quantize(torch.ones(2, 32, 64), "modelopt"))


@on_gpu
@pytest.mark.parametrize("tokens", [1, 256, 1000])
def test_the_kernel_on_a_gpu(tokens: int):
    x, weight, expected = make(2112, 2816, tokens)
    out = nvfp4_linear(x.bfloat16().cuda(), weight.to("cuda"))
    # x and the result are rounded to 8 bits
    assert_close(out, x.bfloat16().double() @ weight.decode(torch.float64).T, max_error=3e-2, rms_error=4e-3)
    assert_close(out, expected, max_error=3e-2, rms_error=6e-3)
