"""The load-time repack of NVFP4 weights into the blocks the kernels stream; `_nvfp4_dot.py` says why they look as they do."""

import torch
from torch import Tensor

from moe_kernels.dispatch import expect
from moe_kernels.nvfp4 import BLOCK, NVFP4


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
    packed = weight.packed.unflatten(-1, (-1, BLOCK // 2))
    packed = ((packed ^ flips[..., None]) & keeps[..., None]).flatten(-2)
    # A byte on disk is columns (2 t, 2 t + 1) of one (s, i, h); a word is four of them, their low nibbles in its low half.
    quads = blocks(packed, rows, columns // 2).unflatten(-1, (-1, 2, 2, 4)).to(torch.int32)
    low, high = quads & 0xF, quads >> 4
    words = sum(((low | high << 16) << 4 * at)[..., at // 2, at % 2, :] for at in range(4))
    scales = blocks(stored, rows, columns // BLOCK).contiguous().view(torch.int16)
    return words.flatten(-2).contiguous(), scales  # pyright: ignore[reportAttributeAccessIssue]


def restore(words: Tensor, scales: Tensor, factor: Tensor) -> NVFP4:
    """The inverse of `repack`: the weight (..., N, K) as on disk, but with signs of scales in the codes and `factor` for its global scale."""
    cells = words.contiguous().view(torch.uint8).unflatten(-1, (-1, 4, 2, 2))  # (..., s, t, b, i), both h in one byte
    first, second = cells.unbind(-2)
    pairs = torch.stack([first & 0xF | second << 4, first >> 4 | second & 0xF0], dim=-1)  # (..., s, t, i, h)
    packed = pairs.movedim(-3, -1).flatten(-4)
    stored = scales.contiguous().view(torch.uint8)
    value = torch.exp2((stored >> 3).float() - 10) * (1 + (stored & 7) / 8)
    exact = torch.where(stored == 0, 0.0, value).to(torch.float8_e4m3fn).view(torch.uint8)
    return NVFP4(unblock(packed), unblock(exact).view(torch.float8_e4m3fn), factor, "modelopt")


def blocks(cells: Tensor, rows: int, columns: int) -> Tensor:
    """(..., N, C) -> (..., N/rows, C/columns, rows, columns)."""
    return cells.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows)).transpose(-3, -2)


def unblock(cells: Tensor) -> Tensor:
    """The inverse of `blocks`."""
    return cells.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _widen(scales: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 bytes as five bits of exponent (biased by 10) and three of mantissa; and which are negative."""
    if scales.isnan().any():
        raise ValueError("expected finite block scales, got NaN")
    value = scales.float().abs()
    mantissa, exponent = torch.frexp(value)  # value = mantissa * 2^exponent, mantissa in [0.5, 1)
    stored = ((exponent - 1 + 10) << 3) | ((mantissa * 16).to(torch.int32) - 8)
    return torch.where(value == 0, 0, stored).to(torch.uint8), scales.float() < 0
