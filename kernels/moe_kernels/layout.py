"""The load-time repack of NVFP4 weights into the blocks the kernels stream; `_nvfp4_dot.py` says why they look as they do."""

import torch
from torch import Tensor

from moe_kernels.dispatch import expect
from moe_kernels.nvfp4 import NVFP4, decode_e2m1

GROUP = 16  # columns that share a scale


def block_of(size: int, largest: int, smallest: int, op: str) -> int:
    """The largest power of two from `largest` down to `smallest` that divides `size`."""
    expect(size % smallest == 0, op, f"a multiple of {smallest}", size)
    return next(block for block in (largest >> shift for shift in range(8)) if size % block == 0)


def repack(weight: NVFP4, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cut (..., N, K) into blocks of `rows` x `columns`, each in one piece, in the order the kernels' lanes want.

    Args:
        weight: as on disk.
        rows: of a block; N is a multiple of it.
        columns: of a block, a multiple of 32; K is a multiple of it.

    Returns:
        Words (..., N/rows, K/columns, rows, columns/8) int32: word 4 s + t of a row holds the codes of its columns
        32 s + 16 i + 8 h + 2 t + b at bits 16 b + 8 i + 4 h. Scales (..., N/rows, K/columns, rows, columns/32) int16: two bytes,
        each exponent + 10 in the high five bits and three bits of mantissa, so E4M3's subnormals become ordinary numbers; 0 where
        the scale is 0, and then the codes are 0 too. The sign of a negative scale moves into the codes.

    Raises:
        KernelUnsupported: N or K is no multiple of the block.
        ValueError: a scale is NaN.
    """
    *_, n, half = weight.packed.shape
    expect(n % rows == 0 and 2 * half % columns == 0, "repack", f"multiples of {rows} x {columns}", (n, 2 * half))
    stored, negative = _widen(weight.scales)
    flips = torch.where(negative, 0x88, 0x00).to(torch.uint8)
    keeps = torch.where(stored == 0, 0x00, 0xFF).to(torch.uint8)
    packed = weight.packed.unflatten(-1, (-1, GROUP // 2))
    packed = ((packed ^ flips[..., None]) & keeps[..., None]).flatten(-2)
    # A byte on disk is columns (2 t, 2 t + 1) of one (s, i, h); a word is four of them, their low nibbles in its low half.
    quads = blocks(packed, rows, columns // 2).unflatten(-1, (-1, 2, 2, 4)).to(torch.int32)
    low, high = quads & 0xF, quads >> 4
    words = sum(((low | high << 16) << 4 * at)[..., at // 2, at % 2, :] for at in range(4))
    scales = blocks(stored, rows, columns // GROUP).contiguous().view(torch.int16)
    return words.flatten(-2).contiguous(), scales  # pyright: ignore[reportAttributeAccessIssue]


def unpack(words: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `repack`, decoded: (..., N, K) without the global scale, exact in float32 and bfloat16."""
    shifts = torch.arange(0, 32, 4, device=words.device).view(2, 2, 2)  # (b, i, h)
    codes = (words[..., None, None, None] >> shifts) & 0xF  # (..., columns/8, b, i, h)
    codes = codes.unflatten(-4, (-1, 4)).movedim((-5, -4, -3, -2, -1), (-5, -2, -1, -4, -3)).flatten(-5)
    stored = scales.view(torch.uint8)
    exponent, mantissa = (stored >> 3).to(dtype), (stored & 7).to(dtype)
    scale = torch.where(stored == 0, 0.0, torch.exp2(exponent - 10) * (1 + mantissa / 8))
    values = (decode_e2m1(codes).to(dtype).unflatten(-1, (-1, GROUP)) * scale[..., None]).flatten(-2)
    return (
        values.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    )  # (..., N/rows, K/columns, rows, columns) -> (..., N, K)


def blocks(cells: Tensor, rows: int, columns: int) -> Tensor:
    """(..., N, C) -> (..., N/rows, C/columns, rows, columns)."""
    return cells.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows)).transpose(-3, -2)


def _widen(scales: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 bytes as five bits of exponent (biased by 10) and three of mantissa; and which are negative."""
    if scales.isnan().any():
        raise ValueError("expected finite block scales, got NaN")
    value = scales.float().abs()
    mantissa, exponent = torch.frexp(value)  # value = mantissa * 2^exponent, mantissa in [0.5, 1)
    stored = ((exponent - 1 + 10) << 3) | ((mantissa * 16).to(torch.int32) - 8)
    return torch.where(value == 0, 0, stored).to(torch.uint8), scales.float() < 0
