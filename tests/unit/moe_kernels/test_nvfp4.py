"""NVFP4 against the two libraries that define it, bit for bit: there are no tolerances in this file."""

import warnings
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import dequantize as compressed_tensors_dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_kernels import nvfp4
from moe_kernels.nvfp4 import NVFP4, Convention, decode_e2m1, encode_e2m1, pack, quantize, stack, unpack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of transformers' version and uses torch.jit.script
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

CONVENTIONS: tuple[Convention, ...] = ("modelopt", "compressed-tensors")
SCHEME: QuantizationScheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
FINITE_SCALES = [byte for byte in range(256) if byte & 0x7F != 0x7F]
GLOBAL_SCALES = [
    1.0,
    3.3e-4,  # of the size real checkpoints have
    2.9e3,  # its reciprocal
    1.7e-41,  # a subnormal; so are most products with it
    2.0**-126,
    1.3e38,  # overflows, or underflows as a divisor
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(bits(actual), bits(expected))


def library_quantize(weight: Tensor, convention: Convention, global_scale: Tensor | None = None) -> NVFP4:
    """The library's own packed bytes, scales and global scale of one matrix."""
    if convention == "modelopt":
        quantized: Any = NVFP4QTensor.quantize(weight.clone(), 16, weights_scaling_factor_2=global_scale)
        made, scales, used = quantized
        return NVFP4(made._quantized_data, scales, used, convention)
    assert SCHEME.weights is not None
    used = generate_gparam(weight.min(), weight.max()) if global_scale is None else global_scale.reshape(1)
    blocks = weight.unflatten(-1, (-1, 16))
    scales, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), SCHEME.weights, global_scale=used)
    state = {"weight": weight.clone(), "weight_scale": scales, "weight_global_scale": used}
    made = NVFP4PackedCompressor.compress(state, SCHEME)
    return NVFP4(made["weight_packed"], made["weight_scale"], used.reshape(()), convention)


def library_dequantize(weight: NVFP4, dtype: torch.dtype) -> Tensor:
    if weight.convention == "modelopt":
        made = NVFP4QTensor(torch.Size(weight.shape), dtype, weight.packed)
        return made.dequantize(dtype, scale=weight.scales, double_scale=weight.global_scale, block_sizes={-1: 16})
    global_scale = weight.global_scale.reshape(1)
    if dtype == torch.bfloat16:  # the only one it decompresses to
        state = {
            "weight_packed": weight.packed,
            "weight_scale": weight.scales,
            "weight_global_scale": global_scale,
        }
        return NVFP4PackedCompressor.decompress(state, SCHEME)["weight"]
    codes = decode_e2m1(unpack(weight.packed))
    return compressed_tensors_dequantize(
        codes, weight.scales.float(), args=SCHEME.weights, dtype=dtype, global_scale=global_scale
    )


def assert_same_weight(actual: NVFP4, expected: NVFP4) -> None:
    assert actual.convention == expected.convention
    assert_same_bits(actual.packed, expected.packed)
    assert_same_bits(actual.scales, expected.scales)
    assert_same_bits(actual.global_scale, expected.global_scale)


def every_scale_and_code(scales: list[int], global_scale: float, convention: Convention) -> NVFP4:
    """One block a scale byte, holding all sixteen codes."""
    packed = pack(torch.arange(16, dtype=torch.uint8)).expand(len(scales), 8).contiguous()
    scale = torch.tensor(scales, dtype=torch.uint8)[:, None].view(torch.float8_e4m3fn)
    return NVFP4(packed, scale, torch.tensor(global_scale), convention)


# Codes and bytes


def test_codes_are_sign_and_index_into_the_eight_magnitudes() -> None:
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert_same_bits(
        decode_e2m1(torch.arange(16, dtype=torch.uint8)), torch.tensor([*magnitudes, *(-m for m in magnitudes)])
    )


def test_the_lower_index_lies_in_the_low_nibble() -> None:
    assert pack(torch.tensor([[0x1, 0x2, 0xF, 0x0]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]


def test_unpack_and_pack_are_inverse_for_every_byte() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack(unpack(every)), every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding_takes_the_nearest_value_and_the_even_code_at_every_midpoint(dtype: torch.dtype) -> None:
    # (midpoint, even code beside it): 0.75 lies between codes 1 (0.5) and 2 (1.0).
    ties = {0.25: 0, 0.75: 2, 1.25: 2, 1.75: 4, 2.5: 4, 3.5: 6, 5.0: 6}
    for below, (midpoint, even) in enumerate(ties.items()):
        middle = torch.tensor(midpoint, dtype=dtype)
        around = torch.stack(
            [torch.nextafter(middle, torch.zeros_like(middle)), middle, torch.nextafter(middle, 9 * middle)]
        )
        assert encode_e2m1(around).tolist() == [below, even, below + 1]
        assert encode_e2m1(-around).tolist() == [8 + below, 8 + even, 8 + below + 1]


def test_encoding_what_decodes_gives_the_code_back_but_for_minus_zero() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    assert encode_e2m1(decode_e2m1(codes)).tolist() == [0 if code == 8 else code for code in range(16)]


def test_encoding_saturates_at_six_and_keeps_the_sign_of_what_rounds_to_zero() -> None:
    values = torch.tensor([6.1, 1e30, float("inf"), -7.0, float("-inf"), -0.1, -1e-45, -0.0])
    assert encode_e2m1(values).tolist() == [7, 7, 7, 15, 15, 8, 8, 0]


def test_encoding_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        encode_e2m1(torch.tensor([1.0, float("nan")]))


# Dequantising


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("global_scale", GLOBAL_SCALES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_finite_scale_and_code_decodes_as_in_the_library(
    convention: Convention, global_scale: float, dtype: torch.dtype
) -> None:
    weight = every_scale_and_code(FINITE_SCALES, global_scale, convention)
    assert_same_bits(weight.dequantize(dtype), library_dequantize(weight, dtype))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_subnormal_scales_decode_exactly_even_where_the_processor_flushes_subnormals(convention: Convention) -> None:
    weight = every_scale_and_code(list(range(8)), 1.0, convention)  # 0x00 to 0x07: 0 to 7 times 2^-9
    expected = torch.arange(8)[:, None] * 2.0**-9 * decode_e2m1(torch.arange(16, dtype=torch.uint8))
    torch.set_flush_denormal(True)
    try:
        actual = weight.dequantize(torch.float32)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_nan_scale_decodes_to_nan_in_its_own_block_only(convention: Convention) -> None:
    weight = every_scale_and_code([0x7F, 0x38, 0xFF], 1.0, convention)
    assert weight.dequantize(torch.float32).isnan().all(dim=-1).tolist() == [True, False, True]
    assert torch.equal(weight.dequantize(torch.float32).isnan(), library_dequantize(weight, torch.float32).isnan())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_matrix_of_a_stack_decodes_with_its_own_global_scale(convention: Convention) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 4, 32) * torch.tensor([1.0, 1e-3, 50.0])[:, None, None, None]
    made = quantize(weight, convention)
    assert made.global_scale.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            one = quantize(weight[i, j], convention)
            assert_same_bits(made.packed[i, j], one.packed)
            assert_same_bits(made.dequantize()[i, j], one.dequantize())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_result_does_not_depend_on_the_chunk(convention: Convention, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 7, 48)
    whole = quantize(weight, convention)
    values = whole.dequantize()
    monkeypatch.setattr(nvfp4, "CHUNK", 100)  # two of the 14 rows at a time
    assert_same_weight(quantize(weight, convention), whole)
    assert_same_bits(whole.dequantize(), values)


def test_the_factor_is_the_global_scale_or_its_reciprocal() -> None:
    modelopt, compressed = (every_scale_and_code([0x38], 0.25, convention) for convention in CONVENTIONS)
    assert modelopt.factor().item() == 0.25
    assert compressed.factor().item() == 4.0


# Quantising


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Matrices whose blocks differ in size by up to 2^30, so that scales reach subnormals and zero; some blocks are zeros."""
    rows, blocks = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(rows, blocks, 16, generator=generator)
    # Few distinct values a block make exact ties common.
    weight = torch.where(torch.rand(rows, blocks, 1, generator=generator) < 0.5, (weight * 4).round() / 4, weight)
    weight *= torch.exp2(-torch.randint(0, 30, (rows, blocks, 1), generator=generator).float())
    weight[torch.rand(rows, blocks, generator=generator) < 0.2] = 0
    weight *= 2.0 ** draw(st.integers(-60, 120))
    return weight.flatten(-2).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=200, deadline=None)
@given(weight=weights(), given_scale=st.none() | st.floats(0.01, 100))
def test_any_weight_is_quantised_and_decoded_as_by_the_library(
    convention: Convention, weight: Tensor, given_scale: float | None
) -> None:
    if not weight.any():
        weight[0, 0] = 1.0  # a matrix of zeros is a case of its own, below
    global_scale = None
    if given_scale is not None:  # relative to the natural one: below it scales saturate, above it they underflow
        global_scale = quantize(weight, convention).global_scale * given_scale
    made = quantize(weight, convention, global_scale)
    assert_same_weight(made, library_quantize(weight, convention, global_scale))
    for dtype in (torch.float32, torch.bfloat16):
        assert_same_bits(made.dequantize(dtype), library_dequantize(made, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_shape_of_an_expert_is_quantised_as_by_the_library(convention: Convention, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(96, 704) * 0.02).to(dtype)
    assert_same_weight(quantize(weight, convention), library_quantize(weight, convention))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_tie_between_two_values_rounds_as_in_the_library(convention: Convention, dtype: torch.dtype) -> None:
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    weight = torch.tensor([6.0, *ties, *(-tie for tie in ties), -0.0], dtype=dtype)[None]
    # With a scale of 1 in both conventions the values are met exactly.
    made = quantize(weight, convention, torch.tensor(1.0))
    assert_same_weight(made, library_quantize(weight, convention, torch.tensor(1.0)))
    assert unpack(made.packed).tolist() == [[7, 0, 2, 2, 4, 4, 6, 6, 8, 10, 10, 12, 12, 14, 14, 0]]


@pytest.mark.parametrize(
    ("convention", "scale"), [("modelopt", 1.0), ("compressed-tensors", 0.125)], ids=["modelopt", "compressed-tensors"]
)
def test_a_block_of_zeros_gets_the_librarys_scale_and_stays_zero(convention: Convention, scale: float) -> None:
    weight = torch.cat([torch.zeros(1, 16), torch.ones(1, 16)], dim=-1)
    made = quantize(weight, convention)
    assert_same_weight(made, library_quantize(weight, convention))
    assert made.scales[0, 0].item() == scale
    assert not made.dequantize()[0, :16].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_matrix_of_zeros_has_global_scale_one(convention: Convention, dtype: torch.dtype) -> None:
    made = quantize(torch.zeros(2, 2, 16, dtype=dtype), convention)
    assert made.global_scale.tolist() == [1.0, 1.0]
    assert not made.packed.any()
    assert not made.dequantize().any()
    if convention == "compressed-tensors":  # ModelOpt's own answer is NaN scales
        assert_same_weight(stack([library_quantize(torch.zeros(2, 16, dtype=dtype), convention)] * 2), made)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_matrix_too_small_for_a_scale_becomes_zeros_not_nan(convention: Convention) -> None:
    values = quantize(torch.full((1, 16), 1e-43), convention).dequantize(torch.float32)
    assert values.isfinite().all()
    assert (values.abs() <= 2e-43).all()


@pytest.mark.parametrize(
    ("convention", "too_small"),
    [("modelopt", 1e-3), ("compressed-tensors", 1e3)],
    ids=["modelopt", "compressed-tensors"],
)
def test_beyond_a_given_global_scale_values_saturate(convention: Convention, too_small: float) -> None:
    made = quantize(torch.full((1, 16), -1e4), convention, torch.tensor(too_small))
    assert made.scales.item() == 448.0
    assert unpack(made.packed).unique().tolist() == [15]
    assert made.dequantize(torch.float32)[0, 0].item() == pytest.approx(-6 * 448 * 1e-3)


@pytest.mark.parametrize(
    ("convention", "scale"),
    [("modelopt", 2.0**-9), ("compressed-tensors", 0.125)],
    ids=["modelopt", "compressed-tensors"],
)
def test_a_block_far_below_the_largest_becomes_zeros_with_the_librarys_scale(
    convention: Convention, scale: float
) -> None:
    weight = torch.cat([torch.full((1, 16), 1e-9), torch.ones(1, 16)], dim=-1)
    made = quantize(weight, convention)
    assert_same_weight(made, library_quantize(weight, convention))
    assert made.scales[0, 0].item() == scale
    assert not made.dequantize()[0, :16].any()


# What is refused


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_non_finite_weights_are_refused(convention: Convention, bad: float) -> None:
    weight = torch.ones(2, 3, 32)
    weight[1, 2, 17] = bad
    with pytest.raises(ValueError, match="finite weights"):
        quantize(weight, convention)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_given_global_scale_must_be_finite_and_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="finite positive"):
        quantize(torch.ones(1, 16), "modelopt", torch.tensor(bad))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(1, 16, dtype=torch.float16), "float32 or bfloat16, got torch.float16"),
        (torch.ones(1, 24), r"multiple of 16, got \(1, 24\)"),
        (torch.ones(16), r"\(\.\.\., N, K\)"),
        (torch.ones(0, 16), r"got \(0, 16\)"),
    ],
    ids=["float16", "K not a multiple of 16", "one dimension", "empty"],
)
def test_a_weight_that_has_no_blocks_is_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(weight, "modelopt")


def fields() -> dict[str, Tensor]:
    return {
        "packed": torch.zeros(3, 4, 16, dtype=torch.uint8),
        "scales": torch.ones(3, 4, 2).to(torch.float8_e4m3fn),
        "global_scale": torch.ones(3),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packed": torch.zeros(3, 4, 16, dtype=torch.int8)}, "torch.uint8"),
        ({"packed": torch.zeros(3, 4, 12, dtype=torch.uint8)}, r"got \(3, 4, 12\)"),
        ({"scales": torch.ones(3, 4, 2)}, "float8_e4m3fn"),
        ({"scales": torch.ones(3, 4, 1).to(torch.float8_e4m3fn)}, r"expected scales \(3, 4, 2\)"),
        ({"global_scale": torch.ones(3).bfloat16()}, "bfloat16"),
        ({"global_scale": torch.ones(2)}, r"broadcastable to \(3,\), got shape \(2,\)"),
    ],
    ids=["packed dtype", "half a block", "scales dtype", "scales of 32", "global dtype", "global shape"],
)
def test_fields_that_do_not_fit_together_are_refused(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NVFP4(**{**fields(), **changed}, convention="modelopt")


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'gguf'"):
        NVFP4(**fields(), convention="gguf")  # pyright: ignore[reportArgumentType]


def test_weights_of_two_shapes_do_not_stack() -> None:
    one, other = (quantize(torch.ones(n, 16), "modelopt") for n in (1, 2))
    with pytest.raises(ValueError, match="one shape and convention"):
        stack([one, other])
