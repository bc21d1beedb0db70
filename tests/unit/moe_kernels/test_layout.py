"""The load-time repack: nothing is lost, whatever the scales, and the words are laid out as the kernels read them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.layout import block_of, repack, restore
from moe_kernels.nvfp4 import NVFP4, quantize


def every_scale_and_code() -> NVFP4:
    """127 finite scales of either sign, each with every code: (16, 254 * 16) padded to a multiple of 32 columns."""
    finite = torch.tensor([byte for byte in range(256) if byte & 0x7F != 0x7F] + [0, 0], dtype=torch.uint8)
    scales = finite.view(torch.float8_e4m3fn).expand(16, -1).contiguous()
    codes = torch.arange(16).roll(1).repeat(16, len(finite))
    for row in range(16):
        codes[row] = codes[row].roll(row)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    return NVFP4(packed, scales, torch.tensor(1.0), "modelopt")


@settings(deadline=None, max_examples=30)
@given(
    n=st.sampled_from([32, 64, 96]),
    k=st.sampled_from([32, 64, 128, 192]),
    seed=st.integers(0, 2**31),
    block=st.sampled_from([32, 64]),
)
def test_restoring_gives_back_the_weight_bit_for_bit(n: int, k: int, seed: int, block: int):
    weight = quantize(torch.randn(2, n, k, generator=torch.Generator().manual_seed(seed)), "modelopt")
    words, scales = repack(weight, 32, block if k % block == 0 else 32)
    back = restore(words, scales, weight.global_scale)
    assert torch.equal(back.packed, weight.packed)
    assert torch.equal(back.scales.view(torch.uint8), weight.scales.view(torch.uint8))


def test_every_finite_scale_and_code_survives_exactly():
    weight = every_scale_and_code()
    words, scales = repack(weight, 16, 32)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(restore(words, scales, weight.global_scale).dequantize(dtype), weight.dequantize(dtype))


def test_a_lane_finds_its_eight_codes_in_one_word():
    codes = torch.randint(0, 16, (32, 64), generator=torch.Generator().manual_seed(1))
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    weight = NVFP4(packed, torch.ones(32, 4).to(torch.float8_e4m3fn), torch.tensor(1.0), "modelopt")
    words, _ = repack(weight, 32, 64)
    for s in range(2):
        for t in range(4):
            word = words[0, 0, :, 4 * s + t]
            for i in (0, 1):
                for h in (0, 1):
                    for b in (0, 1):
                        column = 32 * s + 16 * i + 8 * h + 2 * t + b
                        assert torch.equal(word >> (16 * b + 8 * i + 4 * h) & 0xF, codes[:, column].int())


def test_codes_under_a_zero_scale_become_zero():
    weight = NVFP4(
        torch.full((32, 16), 0x77, dtype=torch.uint8),
        torch.zeros(32, 2).to(torch.float8_e4m3fn),
        torch.tensor(1.0),
        "modelopt",
    )
    words, scales = repack(weight, 32, 32)
    assert not words.any()
    assert not scales.any()


def test_a_scale_that_is_not_a_number_is_refused():
    weight = quantize(torch.ones(32, 32), "modelopt")
    weight.scales.view(torch.uint8)[3, 1] = 0x7F
    with pytest.raises(ValueError, match="expected finite block scales, got NaN"):
        repack(weight, 32, 32)


def test_a_shape_that_blocks_do_not_fill_is_refused():
    weight = quantize(torch.ones(32, 48), "modelopt")
    with pytest.raises(KernelUnsupported, match=r"expected multiples of 32 x 32, got \(32, 48\)"):
        repack(weight, 32, 32)


@pytest.mark.parametrize(("size", "block"), [(2816, 128), (704, 64), (96, 32), (128, 128)])
def test_the_largest_block_that_divides_is_chosen(size: int, block: int):
    assert block_of(size, 128, 32, "op") == block
