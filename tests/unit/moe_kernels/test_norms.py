"""Norms, residual sums and rotary embedding: twins against transformers' own modules, kernels against twins."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
    DiffusionGemmaDecoderTextLayer,
    DiffusionGemmaRMSNorm,
    DiffusionGemmaTextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from moe_kernels import norms
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.norms import (
    AttentionNorms,
    ExpertsNorms,
    norms_after_attention,
    norms_after_attention_torch,
    norms_after_attention_triton,
    norms_after_experts,
    norms_after_experts_torch,
    norms_after_experts_triton,
    qk_norm_rope,
    qk_norm_rope_torch,
    qk_norm_rope_triton,
    rms_norm,
    rms_norm_torch,
    rms_norm_triton,
)
from moe_kernels.testing import assert_close
from tests.marks import interpreted, on_gpu

EPS = 1e-6

# Both round at the same places, so what differs is the order of a sum of squares. In float32 that moves a result by a
# few units of 2^-24, one more for each norm upon a norm; in the narrow types it now and then crosses a rounding: one
# unit (2^-8 or 2^-11) of a value up to 5 times the rms, and up to three roundings follow one another in a fused op.
TOLERANCES = {
    torch.float32: {"max_error": 4e-6, "rms_error": 5e-7},
    torch.bfloat16: {"max_error": 0.1, "rms_error": 2e-3},
    torch.float16: {"max_error": 0.0125, "rms_error": 3e-4},
}
# Triton's interpreter cuts float32 to bfloat16 where a GPU rounds: up to a unit off, towards zero, up to five times.
CUT = {"max_error": 0.15, "rms_error": 0.015}
DTYPES = list(TOLERANCES)
# Against float64 every rounding counts: half a unit each, up to five of them.
ROUNDED = {
    torch.float32: {"max_error": 4e-6, "rms_error": 5e-7},
    torch.bfloat16: {"max_error": 0.1, "rms_error": 8e-3},
    torch.float16: {"max_error": 0.0125, "rms_error": 1e-3},
}


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def weight(seed: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (1 + random(seed, size) / 8).to(dtype)


def small_config() -> Any:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "head_dim": 32,
        "global_head_dim": 64,
    }
    counts = {"num_experts": 8, "top_k_experts": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return DiffusionGemmaTextConfig(
        **{**sizes, **counts, "attn_implementation": "eager", "experts_implementation": "eager"}
    )


def attention_norms(size: int, dtype: torch.dtype) -> AttentionNorms:
    return AttentionNorms(*(weight(seed, size, dtype) for seed in range(10, 14)))


def experts_norms(size: int, dtype: torch.dtype) -> ExpertsNorms:
    return ExpertsNorms(*(weight(seed, size, dtype) for seed in range(20, 24)))


def angles(tokens: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a quarter of the dimensions, 1 and 0 of the others: a "proportional" embedding."""
    steps = torch.where(torch.arange(size // 2) < size // 8, 10.0 ** -torch.linspace(0, 3, size // 2), 0.0)
    turn = torch.arange(tokens)[:, None] * torch.cat((steps, steps))
    return turn.cos().to(dtype), turn.sin().to(dtype)


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: dict[str, float]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous()
        assert_close(one, other, **tolerance)


def as_in_transformers(found: Tensor, expected: Tensor) -> None:
    """Every bit of the narrow types; in float32 the mean of squares is taken in another order."""
    if found.dtype == torch.float32:
        assert_close(found, expected, **TOLERANCES[torch.float32])
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [True, False])
def test_the_norm_rounds_as_in_transformers(dtype: torch.dtype, scaled: bool) -> None:
    module = DiffusionGemmaRMSNorm(96, eps=EPS, with_scale=scaled)
    if scaled:
        module.weight.data.copy_(weight(0, 96))
    module = module.to(dtype)
    x = random(1, 7, 96, dtype=dtype)
    with torch.no_grad():
        as_in_transformers(rms_norm(x, module.weight if scaled else None, EPS), module(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_heads_are_normed_and_turned_as_in_transformers(dtype: torch.dtype, kind: str) -> None:
    config = small_config()
    size = config.per_layer_config[kind].head_dim
    assert size == {"sliding_attention": 32, "full_attention": 64}[kind]
    x = random(2, 2, 5, 3 * size, dtype=dtype)
    positions = torch.tensor([[0, 1, 2, 3, 4], [100, 101, 102, 103, 60_000]])
    cos, sin = DiffusionGemmaTextRotaryEmbedding(config)(x, positions, kind)
    q, k = x.unflatten(-1, (3, size)), random(3, 2, 5, 1, size, dtype=dtype)
    q_weight, k_weight = weight(4, size, dtype), weight(5, size, dtype)
    found = qk_norm_rope(q, k, q_weight, k_weight, cos, sin, EPS, v=k)
    norm = DiffusionGemmaRMSNorm(size, eps=EPS).to(dtype)
    with torch.no_grad():
        for head, head_weight, turned in ((q, q_weight, found.q), (k, k_weight, found.k)):
            norm.weight.copy_(head_weight)
            as_in_transformers(turned, apply_rotary_pos_emb(norm(head), cos, sin, unsqueeze_dim=2))
        assert found.v is not None
        as_in_transformers(found.v, DiffusionGemmaRMSNorm(size, eps=EPS, with_scale=False)(k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_layer_made_of_the_fused_norms_is_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = small_config()
    layer = DiffusionGemmaDecoderTextLayer(config, 0).eval()
    for parameter in layer.parameters():
        scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, scale)
    layer.layer_scalar.fill_(0.7)
    layer = layer.to(dtype)
    x = random(6, 2, 5, 64, dtype=dtype)
    turn = DiffusionGemmaTextRotaryEmbedding(config)(x, torch.arange(5)[None].expand(2, 5), "sliding_attention")
    with torch.no_grad():
        expected = layer(x.clone(), position_embeddings=turn)
        attention, _ = layer.self_attn(rms_norm(x, layer.input_layernorm.weight, EPS), turn, None)
        weights = AttentionNorms(
            layer.post_attention_layernorm.weight, layer.pre_feedforward_layernorm.weight,
            layer.pre_feedforward_layernorm_2.weight, layer.router.scale,
        )  # fmt: skip
        opened = norms_after_attention(x, attention, weights, EPS)
        scores = layer.router.proj(opened.router)
        probabilities, top_k_weights, top_k_index = layer.router(opened.hidden.flatten(0, 1))
        as_in_transformers(scores.flatten(0, 1).softmax(-1, dtype=dtype), probabilities.to(dtype))
        experts = layer.experts(opened.experts.flatten(0, 1), top_k_index, top_k_weights).view_as(x)
        closing = ExpertsNorms(
            layer.post_feedforward_layernorm_1.weight, layer.post_feedforward_layernorm_2.weight,
            layer.post_feedforward_layernorm.weight, layer.input_layernorm.weight,
        )  # fmt: skip
        found = norms_after_experts(opened.hidden, layer.mlp(opened.mlp), experts, closing, layer.layer_scalar, EPS)
        as_in_transformers(found.hidden, expected)
        as_in_transformers(found.normed, layer.input_layernorm(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_twins_are_their_formulas_in_float64(dtype: torch.dtype) -> None:
    size = 96
    one, two, three = (random(seed, 40, size, dtype=dtype) for seed in range(3))
    scalar = torch.tensor([0.7], dtype=dtype)

    def norm(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * scale

    a = [w.double() for w in attention_norms(size, dtype)]
    hidden = one.double() + norm(two.double(), a[0])
    exact = (hidden, norm(hidden, a[1]), norm(hidden, a[2]), norm(hidden, a[3]) / size**0.5)
    close(norms_after_attention_torch(one, two, attention_norms(size, dtype), EPS), exact, ROUNDED[dtype])

    e = [w.double() for w in experts_norms(size, dtype)]
    both = norm(two.double(), e[0]) + norm(three.double(), e[1])
    hidden = (one.double() + norm(both, e[2])) * scalar.double()
    found = norms_after_experts_torch(one, two, three, experts_norms(size, dtype), scalar, EPS)
    close(found, (hidden, norm(hidden, e[3])), ROUNDED[dtype])

    close((rms_norm_torch(one, None, EPS, two),), (two.double() + norm(one.double()),), ROUNDED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_row_may_have_a_layer_scalar_of_its_own(dtype: torch.dtype) -> None:
    one, two, three = (random(seed, 2, 3, 24, dtype=dtype) for seed in range(3))
    weights, scalars = experts_norms(24, dtype), weight(4, 6, dtype).view(2, 3)
    found = norms_after_experts(one, two, three, weights, scalars, EPS)
    for row in ((0, 0), (1, 2)):
        alone = norms_after_experts(one[row], two[row], three[row], weights, scalars[row], EPS)
        assert torch.equal(found.hidden[row], alone.hidden)
        assert torch.equal(found.normed[row], alone.normed)


def test_heads_are_turned_as_complex_numbers_are() -> None:
    x, ones, (cos, sin) = random(7, 40, 2, 96), torch.ones(96), angles(40, 96)
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()
    turn = torch.complex(cos.double(), sin.double())[:, None, :48]
    exact = torch.complex(*normed.chunk(2, dim=-1)) * turn
    found = qk_norm_rope_torch(x, x, ones, ones, cos, sin, EPS)
    close((found.q,), (torch.cat((exact.real, exact.imag), dim=-1),), ROUNDED[torch.float32])


def tolerance_of(dtype: torch.dtype, device: str) -> dict[str, float]:
    return CUT if dtype == torch.bfloat16 and device == "cpu" else TOLERANCES[dtype]


def every_op_agrees(tokens: tuple[int, ...], size: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """The kernels against the twins, all ops."""

    def on(x: Tensor) -> Tensor:
        return x.to(device)

    tolerance = tolerance_of(dtype, device)
    one, two, three = (on(random(seed, *tokens, size, dtype=dtype)) for seed in range(3))
    first = on(weight(3, size))  # weights may be of another dtype
    for given_weight, residual in ((first, None), (None, two), (first.to(dtype), two)):
        found = rms_norm_triton(one, given_weight, EPS, residual)
        close((found,), (rms_norm_torch(one, given_weight, EPS, residual),), tolerance)
    opening = AttentionNorms(*map(on, attention_norms(size, dtype)))
    found = norms_after_attention_triton(one, two, opening, EPS)
    close(found, norms_after_attention_torch(one, two, opening, EPS), tolerance)
    closing = ExpertsNorms(*map(on, experts_norms(size, dtype)))
    for scalar in (torch.tensor([0.7], dtype=dtype), weight(4, math.prod(tokens), dtype).view(tokens)):
        found = norms_after_experts_triton(one, two, three, closing, on(scalar), EPS)
        close(found, norms_after_experts_torch(one, two, three, closing, on(scalar), EPS), tolerance)


def heads_agree(tokens: int, q_heads: int, k_heads: int, size: int, dtype: torch.dtype, device: str = "cpu") -> None:
    product = random(8, tokens, (q_heads + 2 * k_heads) * size, dtype=dtype).to(device)
    q, k, v = product.split([q_heads * size, k_heads * size, k_heads * size], dim=-1)
    q, k, v = (x.unflatten(-1, (-1, size)) for x in (q, k, v))
    q_weight, k_weight = weight(4, size, dtype).to(device), weight(5, size).to(device)
    cos, sin = (x.to(device) for x in angles(tokens, size))
    for values in (v, k, None):
        found = qk_norm_rope_triton(q, k, q_weight, k_weight, cos, sin, EPS, v=values)
        expected = qk_norm_rope_torch(q, k, q_weight, k_weight, cos, sin, EPS, v=values)
        assert (found.v is None) == (expected.v is None) == (values is None)
        for one, other in zip(found, expected, strict=True):
            if one is not None and other is not None:
                close((one,), (other,), tolerance_of(dtype, device))


SHAPES = [
    pytest.param((2, 3), 2816, id="the model's rows"),
    pytest.param((4,), 704, id="a row that is no power of two"),
    pytest.param((3,), 1, id="rows of one number"),
    pytest.param((), 24, id="a single row"),
    pytest.param((0,), 24, id="no row"),
]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), SHAPES)
def test_the_row_kernels_equal_their_twins(tokens: tuple[int, ...], size: int, dtype: torch.dtype) -> None:
    every_op_agrees(tokens, size, dtype)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "q_heads", "k_heads", "size"),
    [
        pytest.param(2, 4, 2, 256, id="sliding layers"),
        pytest.param(1, 4, 1, 512, id="full layers"),
        pytest.param(3, 1, 1, 48, id="halves that are no power of two"),
        pytest.param(1, 2, 1, 2, id="halves of one number"),
        pytest.param(0, 2, 1, 16, id="no token"),
    ],
)
def test_the_heads_kernel_equals_its_twin(
    tokens: int, q_heads: int, k_heads: int, size: int, dtype: torch.dtype
) -> None:
    heads_agree(tokens, q_heads, k_heads, size, dtype)


@interpreted
@settings(max_examples=15, deadline=None)
@given(tokens=st.integers(0, 4), half=st.integers(1, 40), q_heads=st.integers(1, 3), k_heads=st.integers(1, 3))
def test_whatever_the_shape_kernels_and_twins_agree(tokens: int, half: int, q_heads: int, k_heads: int) -> None:
    every_op_agrees((tokens,), 2 * half, torch.float32)
    heads_agree(tokens, q_heads, k_heads, 2 * half, torch.float32)


@interpreted
def test_the_kernels_read_rows_and_heads_that_are_not_contiguous() -> None:
    x, ones = random(1, 24, 6).T, torch.ones(24)
    close((rms_norm_triton(x, ones, EPS, x),), (rms_norm_torch(x, ones, EPS, x),), TOLERANCES[torch.float32])
    heads = random(2, 3, 24, 5).transpose(1, 2)  # (T, N, D), with D the widest stride
    cos, sin = angles(3, 24)
    found = qk_norm_rope_triton(heads, heads, ones, ones, cos, sin, EPS)
    expected = qk_norm_rope_torch(heads, heads, ones, ones, cos, sin, EPS)
    assert_close(found.q, expected.q, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("norm", [rms_norm_torch, pytest.param(rms_norm_triton, marks=interpreted)])
def test_a_row_of_zeros_stays_zero_and_a_nan_stays_in_its_row(norm) -> None:
    x = torch.zeros(2, 8)
    x[1, 3] = float("nan")
    found = norm(x, torch.ones(8), EPS)
    assert found[0].tolist() == [0.0] * 8
    assert found[1].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@on_gpu
def test_on_a_gpu_kernels_and_twins_agree(dtype: torch.dtype) -> None:
    every_op_agrees((256,), 2816, dtype, "cuda")
    heads_agree(256, 16, 8, 256, dtype, "cuda")
    heads_agree(256, 16, 2, 512, dtype, "cuda")


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    x, w = torch.zeros(2, 4), torch.ones(4)
    opening, closing = AttentionNorms(w, w, w, w), ExpertsNorms(w, w, w, w)
    with pytest.raises(ValueError, match=r"of a float dtype, got \(2, 4\) of torch.int64"):
        rms_norm(x.long())
    with pytest.raises(ValueError, match=r"expected weight \(4,\), got \(3,\)"):
        rms_norm(x, w[:3])
    with pytest.raises(ValueError, match=r"expected residual \(2, 4\) of torch.float32, got \(1, 4\)"):
        rms_norm(x, w, residual=x[:1])
    with pytest.raises(ValueError, match=r"expected x \(2, 4\) of torch.float32, got \(2, 4\) of torch.bfloat16"):
        norms_after_attention(x, x.bfloat16(), opening)
    with pytest.raises(ValueError, match=r"expected pre_mlp \(4,\), got \(2,\)"):
        norms_after_attention(x, x, opening._replace(pre_mlp=w[:2]))
    with pytest.raises(ValueError, match=r"expected experts \(2, 4\)"):
        norms_after_experts(x, x, x[:1], closing, torch.ones(1))
    with pytest.raises(ValueError, match=r"expected one number or \(2,\) as layer_scalar, got \(4,\)"):
        norms_after_experts(x, x, x, closing, w)


def test_wrong_heads_are_refused() -> None:
    q, k, w, table = torch.zeros(2, 3, 4), torch.zeros(2, 1, 4), torch.ones(4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="D even"):
        qk_norm_rope(q[..., :3], k, w, w, table, table)
    with pytest.raises(ValueError, match=r"expected k \(2, 'M', 4\) of torch.float32, got \(1, 1, 4\)"):
        qk_norm_rope(q, k[:1], w, w, table, table)
    with pytest.raises(ValueError, match=r"expected v \(2, 1, 4\), got \(2, 3, 4\)"):
        qk_norm_rope(q, k, w, w, table, table, v=q)
    with pytest.raises(ValueError, match=r"expected k_weight \(4,\), got \(2,\)"):
        qk_norm_rope(q, k, w, w[:2], table, table)
    with pytest.raises(ValueError, match=r"expected sin \(2, 4\), got \(1, 4\)"):
        qk_norm_rope(q, k, w, w, table, table[:1])


def test_the_kernels_refuse_rows_that_no_block_holds() -> None:
    wide = torch.zeros(1, 16_386)
    with pytest.raises(KernelUnsupported, match="rows of at most 16384, got 16386"):
        rms_norm_triton(wide)
    with pytest.raises(KernelUnsupported, match="heads of at most 16384, got 16386"):
        qk_norm_rope_triton(wide[None], wide[None], wide[0], wide[0], wide, wide)


def test_every_kernel_names_its_default_configuration() -> None:
    for case in norms.kernels_to_compile():
        assert set(case.signature) == set(case.kernel.arg_names)
        assert {name for name, kind in case.signature.items() if kind == "constexpr"} == set(case.constexprs)
