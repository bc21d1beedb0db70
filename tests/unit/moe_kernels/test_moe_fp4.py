"""The experts' MLP with activations in NVFP4: the row quantiser bit for bit, the kernels against the twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_kernels import dispatch
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.moe import Experts, experts_mlp
from moe_kernels.moe_fp4 import (
    FP4Experts,
    fp4_experts_mlp,
    fp4_experts_mlp_torch,
    fp4_experts_mlp_triton,
    quantize_rows_triton,
)
from moe_kernels.nvfp4 import quantize
from moe_kernels.testing import assert_close, error
from tests.marks import interpreted, on_gpu

BLACKWELL = torch.cuda.is_available() and dispatch.has_fp4_units(torch.device("cuda"))


def make(count: int, inner: int, hidden: int, tokens: int, top_k: int, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    weights = [quantize(torch.randn(count, *shape, generator=rng) * 0.1, "modelopt") for shape in shapes]
    x = torch.randn(tokens, hidden, generator=rng)
    index = torch.rand(tokens, count, generator=rng).argsort(dim=1)[:, :top_k]
    return weights, x, index, torch.rand(tokens, top_k, generator=rng)


@interpreted
@settings(deadline=None, max_examples=25)
@given(
    columns=st.sampled_from([16, 48, 160]),
    exponents=st.lists(st.integers(-60, 60), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_rows_are_quantised_as_the_format_says_bit_for_bit(columns: int, exponents: list[int], seed: int):
    rng = torch.Generator().manual_seed(seed)
    size = torch.tensor(exponents, dtype=torch.float32).exp2()[:, None]
    # blocks of very different size make subnormal scales, and zeros make empty blocks
    x = torch.randn(len(exponents), columns, generator=rng) * size
    x *= torch.rand(len(exponents), columns // 16, generator=rng).pow(8).repeat_interleave(16, dim=1)
    x[torch.rand(x.shape, generator=rng) < 0.2] = 0
    packed, scales, factors = quantize_rows_triton(x)
    expected = quantize(x[:, None], "modelopt")
    assert torch.equal(factors, expected.global_scale.flatten())
    assert torch.equal(scales.view(torch.uint8), expected.scales[:, 0].view(torch.uint8))
    assert torch.equal(packed, expected.packed[:, 0])


@interpreted
def test_an_empty_row_stays_zero():
    packed, _, factors = quantize_rows_triton(torch.zeros(2, 32))
    assert not packed.any()
    assert torch.equal(factors, torch.ones(2))


@on_gpu
def test_rows_are_quantised_bit_for_bit_on_a_gpu():
    x = torch.randn(64, 2816, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed, scales, factors = (tensor.cpu() for tensor in quantize_rows_triton(x.cuda()))
    expected = quantize(x[:, None], "modelopt")
    assert torch.equal(factors, expected.global_scale.flatten())
    assert torch.equal(scales.view(torch.uint8), expected.scales[:, 0].view(torch.uint8))
    assert torch.equal(packed, expected.packed[:, 0])


@interpreted
def test_rows_may_lie_anywhere():
    weights, x, index, routed = make(2, 64, 128, 9, 1)
    experts = FP4Experts.from_nvfp4(*weights)
    expected = fp4_experts_mlp_torch(x, experts, index, routed)
    assert_close(
        fp4_experts_mlp_triton(x.T.contiguous().T, experts, index, routed), expected, max_error=0.3, rms_error=0.02
    )


def test_cutting_into_blocks_loses_nothing():
    weights, *_ = make(3, 64, 256, 1, 1)
    for back, weight in zip(FP4Experts.from_nvfp4(*weights).nvfp4(), weights, strict=True):
        assert torch.equal(back.packed, weight.packed)
        assert torch.equal(back.scales.view(torch.uint8), weight.scales.view(torch.uint8))
        assert torch.equal(back.global_scale, weight.global_scale)


@interpreted
@settings(deadline=None, max_examples=8)
@given(
    count=st.sampled_from([1, 4]),
    inner=st.sampled_from([64, 128]),
    hidden=st.sampled_from([128, 256]),
    tokens=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_the_kernels_agree_with_the_twin(count: int, inner: int, hidden: int, tokens: int, seed: int):
    weights, x, index, routed = make(count, inner, hidden, tokens, min(2, count), seed)
    experts = FP4Experts.from_nvfp4(*weights)
    found = error(fp4_experts_mlp_triton(x, experts, index, routed), fp4_experts_mlp_torch(x, experts, index, routed))
    # float32 sums in another order; where one tips an inner activation over to the next of FP4's eight values, that value is off by up to
    # a third, so single results may be off while hardly any are
    assert found.max < 0.3
    assert found.rms < 0.02


def test_four_bits_of_activation_cost_what_they_must():
    weights, x, index, routed = make(8, 128, 256, 64, 2)
    found = error(
        fp4_experts_mlp(x, FP4Experts.from_nvfp4(*weights), index, routed),
        experts_mlp(x, Experts.from_nvfp4(*weights), index, routed),
    )
    # E2M1 has 1 bit of mantissa: about 10 % error of a random value, twice in a row, averaged over independent products
    assert 0.02 < found.rms < 0.25


def test_no_tokens_give_no_rows():
    weights, x, index, routed = make(2, 64, 128, 0, 1)
    assert fp4_experts_mlp(x, FP4Experts.from_nvfp4(*weights), index, routed).shape == (0, 128)


def test_shapes_the_units_cannot_take_are_refused():
    weights, *_ = make(2, 32, 128, 1, 1)
    with pytest.raises(KernelUnsupported, match=r"expected I of 64s and H of 128s, got \(32, 128\)"):
        FP4Experts.from_nvfp4(*weights)


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((9, 0), False), ((10, 0), True), ((12, 0), True)])
def test_blackwell_has_the_units(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert dispatch.has_fp4_units(torch.device("cuda", 0)) == has


@on_gpu
@pytest.mark.skipif(not BLACKWELL, reason="needs block-scaled FP4 units")
@pytest.mark.parametrize("tokens", [1, 256, 1024])
def test_the_kernels_on_a_gpu(tokens: int):
    weights, x, index, routed = make(16, 704, 2816, tokens, 8)
    experts, x = FP4Experts.from_nvfp4(*weights), x.bfloat16()
    found = fp4_experts_mlp(x.cuda(), experts.to("cuda"), index.cuda(), routed.cuda())
    assert_close(found, fp4_experts_mlp_torch(x, experts, index, routed), max_error=0.3, rms_error=0.03)
