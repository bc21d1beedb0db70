"""The experts' MLP: the twin against float64, both launches through Triton's interpreter against float64 and the twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.moe import Experts, experts_mlp, experts_mlp_torch, experts_mlp_triton, rows_per_tile
from moe_kernels.nvfp4 import Convention, quantize
from moe_kernels.testing import assert_close
from tests.marks import interpreted, on_gpu


class Layer:
    """Random experts, their exact weights, and tokens routed to them."""

    def __init__(self, count: int, inner: int, hidden: int, seed: int = 0, convention: Convention = "modelopt") -> None:
        self.rng = torch.Generator().manual_seed(seed)
        shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
        # Each expert and projection has its own magnitude, hence its own global scale.
        size = torch.rand(3, count, generator=self.rng) * 0.2 + 0.01
        raw = [
            torch.randn(count, *shape, generator=self.rng) * s[:, None, None]
            for s, shape in zip(size, shapes, strict=True)
        ]
        self.gate, self.up, self.down = (quantize(weight, convention) for weight in raw)
        self.count, self.hidden = count, hidden

    def experts(self, **options) -> Experts:
        return Experts.from_nvfp4(self.gate, self.up, self.down, **options)

    def tokens(self, tokens: int, top_k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(tokens, self.hidden, generator=self.rng).to(dtype)
        index = torch.rand(tokens, self.count, generator=self.rng).argsort(dim=1)[:, :top_k]
        return x, index, torch.rand(tokens, top_k, generator=self.rng)

    def exact(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        gate, up, down = (weight.dequantize(torch.float64) for weight in (self.gate, self.up, self.down))
        out = torch.zeros(x.shape, dtype=torch.float64)
        for t, row in enumerate(x.double()):
            for e, w in zip(index[t], weights[t].double(), strict=True):
                out[t] += w * (down[e] @ (gelu(gate[e] @ row, approximate="tanh") * (up[e] @ row)))
        return out


# float32 sums of at most a few hundred products, in another order than float64's
EXACT = {"max_error": 2e-5, "rms_error": 2e-6}
# x is given in bfloat16, so only the result is rounded to its 8 bits
ONCE = {"max_error": 3e-2, "rms_error": 3e-3}
# the kernels round the inner activation and K weighted outputs to 8 bits, and the sum once more
ROUNDED = {"max_error": 5e-2, "rms_error": 5e-3}
# Triton's interpreter cuts bits off where chips round to nearest, so errors are twice as large and of one sign
CUT_OFF = {"max_error": 1.5e-1, "rms_error": 1.5e-2}


@pytest.mark.parametrize("convention", ["modelopt", "compressed-tensors"])
def test_the_twin_is_exact_in_float32(convention: Convention):
    layer = Layer(8, 64, 128, convention=convention)
    x, index, weights = layer.tokens(33, 2)
    assert_close(experts_mlp(x, layer.experts(), index, weights), layer.exact(x, index, weights), **EXACT)


def test_the_twin_rounds_bfloat16_no_more_than_it_must():
    layer = Layer(8, 64, 128)
    x, index, weights = layer.tokens(33, 2, torch.bfloat16)
    out = experts_mlp(x, layer.experts(), index, weights)
    assert out.dtype == torch.bfloat16
    assert_close(out, layer.exact(x, index, weights), **ONCE)


def test_decoded_weights_change_nothing_but_the_speed():
    layer = Layer(4, 32, 64)
    x, index, weights = layer.tokens(9, 2)
    kept = layer.experts(keep=torch.float32)
    assert kept.dense is not None
    assert kept.to("cpu").dense is None
    decoded = experts_mlp(x, layer.experts(), index, weights)
    assert_close(experts_mlp(x, kept, index, weights), decoded, **EXACT)  # products may be summed in another order


@interpreted
@settings(deadline=None, max_examples=12)
@given(
    count=st.sampled_from([1, 3, 8]),
    inner=st.sampled_from([32, 64, 96]),
    hidden=st.sampled_from([32, 128, 160]),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_kernels_are_exact_in_float32(count: int, inner: int, hidden: int, tokens: int, top_k: int, seed: int):
    layer = Layer(count, inner, hidden, seed)
    x, index, weights = layer.tokens(tokens, min(top_k, count))
    assert_close(experts_mlp_triton(x, layer.experts(), index, weights), layer.exact(x, index, weights), **EXACT)


@interpreted
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (1, 8), (5, 2), (64, 2)])
def test_the_kernels_agree_with_the_twin_in_bfloat16(tokens: int, top_k: int):
    layer = Layer(8, 64, 128)
    x, index, weights = layer.tokens(tokens, top_k, torch.bfloat16)
    experts = layer.experts()
    twin = experts_mlp_torch(x, experts, index, weights)
    assert_close(experts_mlp_triton(x, experts, index, weights), twin, **CUT_OFF)


@interpreted
def test_all_tokens_on_one_expert():
    layer = Layer(4, 32, 64)
    x, index, weights = layer.tokens(70, 1)
    index[:] = 2
    expected = layer.exact(x, index, weights)
    assert_close(experts_mlp(x, layer.experts(), index, weights), expected, **EXACT)
    assert_close(experts_mlp_triton(x, layer.experts(), index, weights), expected, **EXACT)


@interpreted
@pytest.mark.parametrize("op", [experts_mlp_torch, experts_mlp_triton])
def test_a_token_gets_the_same_bits_whatever_shares_its_batch(op):
    layer = Layer(8, 64, 128)
    x, index, weights = layer.tokens(40, 2)
    experts = layer.experts(keep=torch.float32)
    together = op(x, experts, index, weights)
    for some in (slice(7, 8), slice(0, 2), slice(11, 14), slice(20, 37)):  # so that experts have one row and more
        assert torch.equal(op(x[some], experts, index[some], weights[some]), together[some])


@interpreted
def test_gates_far_from_zero_saturate_quietly():
    layer = Layer(2, 32, 32)
    x, index, weights = layer.tokens(8, 1)
    assert_close(
        experts_mlp_triton(1e3 * x, layer.experts(), index, weights), layer.exact(1e3 * x, index, weights), **EXACT
    )


@interpreted
def test_a_long_prefill_fills_the_largest_tiles():
    layer = Layer(1, 32, 32)
    x, index, weights = layer.tokens(150, 1)
    assert rows_per_tile(150, 1) == 128
    assert_close(experts_mlp_triton(x, layer.experts(), index, weights), layer.exact(x, index, weights), **EXACT)


@interpreted
def test_rows_may_lie_anywhere():
    layer = Layer(4, 32, 64)
    x, index, weights = layer.tokens(9, 2)
    expected = layer.exact(x, index, weights)
    for op in (experts_mlp, experts_mlp_triton):
        assert_close(op(x.T.contiguous().T, layer.experts(), index.T.contiguous().T, weights), expected, **EXACT)


def test_an_expert_of_another_rank_is_refused():
    layer = Layer(2, 32, 32)
    x, index, weights = layer.tokens(3, 1)
    index[1] = 2
    with pytest.raises(ValueError, match="expected every expert here, got 1 slots for those of other ranks"):
        experts_mlp(x, layer.experts(), index, weights)


def test_no_tokens_give_no_rows():
    layer = Layer(2, 32, 32)
    x, index, weights = layer.tokens(0, 1)
    assert experts_mlp(x, layer.experts(), index, weights).shape == (0, 32)


@pytest.mark.parametrize(
    ("slots", "experts", "rows"), [(2048, 128, 32), (8, 8, 16), (8192, 128, 128), (65536, 128, 128)]
)
def test_nearly_every_expert_is_one_tile(slots: int, experts: int, rows: int):
    assert rows_per_tile(slots, experts) == rows


def test_shapes_that_do_not_belong_together_are_refused():
    layer = Layer(2, 32, 64)
    x, index, weights = layer.tokens(3, 1)
    with pytest.raises(ValueError, match=r"expected x \(T, 64\) with index and weights \(T, K\), got \(3, 32\)"):
        experts_mlp(x[:, :32], layer.experts(), index, weights)
    with pytest.raises(ValueError, match=r"with index and weights \(T, K\), got \(3, 64\), \(3, 0\), \(3, 0\)"):
        experts_mlp(x, layer.experts(), index[:, :0], weights[:, :0])
    with pytest.raises(
        ValueError, match=r"up: expected shape \(2, 32, 64\) beside a gate of \(2, 32, 64\), got \(2, 64, 32\)"
    ):
        Experts.from_nvfp4(layer.gate, layer.down, layer.down)


def test_a_shape_the_kernels_cannot_stream_is_refused():
    with pytest.raises(KernelUnsupported, match="experts_mlp: expected a multiple of 32, got 48"):
        Layer(2, 48, 64).experts()


@on_gpu
@pytest.mark.parametrize("tokens", [1, 17, 256, 1024, 8192])
def test_the_kernels_on_a_gpu(tokens: int):
    layer = Layer(16, 704, 2816)
    x, index, weights = layer.tokens(tokens, 8, torch.bfloat16)
    experts = layer.experts()
    found = experts_mlp(x.cuda(), experts.to("cuda"), index.cuda(), weights.cuda())
    assert_close(found, experts_mlp_torch(x, experts, index, weights), **ROUNDED)


@on_gpu
def test_a_captured_graph_gives_the_same_bits_again_and_again():
    layer = Layer(16, 704, 2816)
    x, index, weights = (tensor.cuda() for tensor in layer.tokens(256, 8, torch.bfloat16))
    experts = layer.experts().to("cuda")
    expected = experts_mlp(x, experts, index, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = experts_mlp(x, experts, index, weights)
    for _ in range(20):
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
