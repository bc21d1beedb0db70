"""A dense NVFP4 linear layer, y = x W^T, for checkpoints that quantise the dense MLP beside the experts.

The same blocks and inner loop as the experts (`_nvfp4_dot.py`); one launch. Bytes read: N K (1/2 + 1/16), once for every BM tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels import dispatch
from moe_kernels._nvfp4_dot import UNDO, block_dot
from moe_kernels.aot import Case
from moe_kernels.dispatch import expect, launches
from moe_kernels.layout import block_of, repack, restore
from moe_kernels.nvfp4 import NVFP4


@dataclass(frozen=True)
class NVFP4Linear:
    """A weight (N, K) repacked for streaming (`layout.repack`): words (N/BN, K/BK, BN, BK/8) int32, scales
    (N/BN, K/BK, BN, BK/32) int16, and the global scale as a factor () float32.
    """  # noqa: D205

    words: Tensor
    scales: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        down, across, rows, words = self.words.shape
        return down * rows, across * words * 8

    @staticmethod
    def from_nvfp4(weight: NVFP4) -> "NVFP4Linear":
        """Repack one matrix.

        Raises:
            ValueError: not a matrix, or a block scale is NaN.
            KernelUnsupported: N or K is no multiple of 32.
        """
        if len(weight.shape) != 2:
            raise ValueError(f"expected a weight (N, K), got {weight.shape}")
        rows, columns = (
            block_of(size, most, 32, "nvfp4_linear") for size, most in zip(weight.shape, (64, 128), strict=True)
        )
        return NVFP4Linear(*repack(weight, rows, columns), weight.factor().reshape(()))

    def to(self, device: torch.device | str) -> "NVFP4Linear":
        """The same weight on another device."""
        return NVFP4Linear(*(tensor.to(device) for tensor in vars(self).values()))

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K), computed in float32 and rounded to `dtype`."""
        return restore(self.words, self.scales, self.scale).dequantize(dtype)


def nvfp4_linear(x: Tensor, weight: NVFP4Linear) -> Tensor:
    """Compute y = x W^T, with float32 sums, rounded once to x's dtype.

    Args:
        x: (..., K); bfloat16 on a GPU, any float dtype on a CPU.
        weight: (N, K), on x's device.

    Returns:
        (..., N) in x's dtype.

    Raises:
        ValueError: x's last dimension is not K.
        KernelUnsupported: on a GPU, x is not bfloat16.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"expected x (..., {weight.shape[1]}), got {tuple(x.shape)}")
    if dispatch.backend("nvfp4_linear", x.device) == "triton":
        return nvfp4_linear_triton(x, weight)
    return nvfp4_linear_torch(x, weight)


def nvfp4_linear_torch(x: Tensor, weight: NVFP4Linear) -> Tensor:
    """The twin of `nvfp4_linear`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) @ weight.decode(dtype).T).to(x.dtype)


@launches
def nvfp4_linear_triton(x: Tensor, weight: NVFP4Linear) -> Tensor:
    """Launch the kernel; Triton's interpreter takes x in float32 as well."""
    expect(x.dtype == torch.bfloat16 or not x.is_cuda, "nvfp4_linear", "x in bfloat16", x.dtype)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    down, _, bn, words = weight.words.shape
    out = torch.empty(rows.shape[0], down * bn, dtype=x.dtype, device=x.device)
    options = _options(rows.shape[0])
    if rows.shape[0]:
        linear_kernel[(down, triton.cdiv(rows.shape[0], options["BM"]))](
            rows, weight.words, weight.scales, weight.scale, out, rows.shape[0],
            **_constants(out.shape[1], rows.shape[1], bn, 8 * words, x.is_cuda), **options,
        )  # fmt: skip
    return out.view(*x.shape[:-1], out.shape[1])


def _constants(n: int, k: int, bn: int, bk: int, native: bool) -> dict[str, Any]:
    return {"N": n, "K": k, "BN": bn, "BK": bk, "NATIVE": native}


def _options(tokens: int) -> dict[str, Any]:
    """Few tokens in a tile while that keeps every multiprocessor busy; many once the weights are decoded too often."""
    rows = min(128, max(16, (1 << (tokens - 1).bit_length()) // 4))
    return {"BM": rows, "num_warps": 4, "num_stages": 4 if rows <= 32 else 3}


@triton.jit(do_not_specialize=["T"])
def linear_kernel(
    x,  # (T, K) bfloat16
    words,  # (N/BN, K/BK, BN, BK/8) int32
    scales,  # (N/BN, K/BK, BN, BK/32) int16
    scale,  # () float32
    out,  # (T, N) bfloat16
    T,
    N: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    NATIVE: tl.constexpr,
):
    n, tile = tl.program_id(0), tl.program_id(1)
    rows = tile * BM + tl.arange(0, BM)
    x += tl.minimum(rows, T - 1)[None, :].to(tl.int64) * K + tl.arange(0, BK)[:, None]
    block = n.to(tl.int64) * (K // BK)
    words += block * (BN * BK // 8)
    scales += block * (BN * BK // 32)
    acc = tl.zeros((BN, BM), tl.float32)
    for _ in range(K // BK):
        acc = block_dot(acc, words, scales, tl.load(x), BN, BK, NATIVE)
        x += BK
        words += BN * BK // 8
        scales += BN * BK // 32
    acc *= tl.load(scale) * UNDO
    cells = out + rows[None, :].to(tl.int64) * N + n * BN + tl.arange(0, BN)[:, None]
    tl.store(cells, acc.to(out.dtype.element_ty), mask=(rows < T)[None, :])


def kernels_to_compile() -> list[Case]:
    """The dense MLP's two shapes, at every BM."""
    made = []
    for n, k, bk in ((2112, 2816, 128), (2816, 2112, 64)):
        for tokens in (64, 128, 256, 1024):  # one of each BM
            options = _options(tokens)
            constexprs = _constants(n, k, 64, bk, True) | {"BM": options.pop("BM")}
            name = f"linear {n}x{k} T={tokens}"
            made.append(Case.of(name, linear_kernel, "*bf16 *i32 *i16 *fp32 *bf16 i32", constexprs, **options))
    return made
