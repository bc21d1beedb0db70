"""The experts' MLP with activations in NVFP4 too (W4A4), for chips whose matrix units multiply block-scaled FP4 (sm_100, sm_120).

The formula of `moe.experts_mlp`, with x and the inner activation each rounded to NVFP4 row by row. Costs four launches (`_moe_fp4.py`):
quantise x, gate and up, quantise the inner activation, down. Weights keep the order of their bytes on disk, cut into blocks.
Nothing picks it by itself: it rounds activations, so whoever serves must choose it. It pays where arithmetic is the limit, from about
1,024 tokens; at 256 both forms wait for the same 428 MB of weights, and `moe.experts_mlp` rounds nothing but results. Input scales that
checkpoints carry are not used: each row has its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, grouped_mm

from moe_kernels import dispatch
from moe_kernels._moe_fp4 import down_fp4_kernel, gate_up_fp4_kernel, quantize_rows_kernel
from moe_kernels.aot import Case
from moe_kernels.dispatch import expect, launches
from moe_kernels.layout import block_of, blocks, unblock
from moe_kernels.moe import (
    PackedExperts,
    block_size,
    check_experts,
    check_placed,
    check_tokens,
    constants,
    down_and_combine,
    rows_per_tile,
)
from moe_kernels.nvfp4 import NVFP4, quantize
from moe_kernels.routing import max_tiles, sort_by_expert, sort_by_expert_torch

ROWS = 64  # of gate and of up in a block: together the 128 that a matrix instruction takes


@dataclass(frozen=True)
class FP4Experts(PackedExperts):
    """One layer's experts as `tl.dot_scaled` takes them. Make them with `from_nvfp4`.

    gate_up (E, I/64, H/BK, 128, BK/2) uint8, 64 rows of gate above 64 of up, and gate_up_scales (..., BK/16) float8_e4m3fn;
    down (E, H/BN, I/BK, BN, BK/2) uint8 and down_scales.
    """

    @property
    def inner(self) -> int:
        """I."""
        return self.gate_up.shape[1] * ROWS

    @staticmethod
    def from_nvfp4(gate: NVFP4, up: NVFP4, down: NVFP4) -> "FP4Experts":
        """Cut the weights of a layer into blocks; arguments and errors as in `moe.Experts.from_nvfp4`.

        Raises:
            KernelUnsupported: I is no multiple of 64, or H none of 128.
            ValueError: the three shapes do not belong together.
        """
        count, inner, hidden = check_experts(gate, up, down)
        expect(inner % ROWS == 0 and hidden % 128 == 0, "fp4_experts_mlp", "I of 64s and H of 128s", (inner, hidden))
        wide, high = (block_of(size, 128, 64, "fp4_experts_mlp") for size in (hidden, inner))
        pairs = [
            torch.cat([blocks(g, ROWS, wide // per), blocks(u, ROWS, wide // per)], dim=-2)
            for g, u, per in ((gate.packed, up.packed, 2), (_bytes(gate), _bytes(up), 16))
        ]
        return FP4Experts(
            pairs[0],
            pairs[1].view(torch.float8_e4m3fn),
            blocks(down.packed, 128, high // 2).contiguous(),
            blocks(_bytes(down), 128, high // 16).contiguous().view(torch.float8_e4m3fn),
            *(weight.factor().expand(count).contiguous() for weight in (gate, up, down)),
        )

    def nvfp4(self) -> tuple[NVFP4, NVFP4, NVFP4]:
        """Gate, up and down as they were, the global scales as factors."""
        weights = zip(
            (self.gate_up[..., :ROWS, :], self.gate_up[..., ROWS:, :], self.down),
            (self.gate_up_scales[..., :ROWS, :], self.gate_up_scales[..., ROWS:, :], self.down_scales),
            (self.gate_scale, self.up_scale, self.down_scale),
            strict=True,
        )
        joined = ((unblock(packed), unblock(scales.view(torch.uint8)), scale) for packed, scales, scale in weights)
        gate, up, down = (NVFP4(p, s.view(torch.float8_e4m3fn), scale, "modelopt") for p, s, scale in joined)
        return gate, up, down


def _bytes(weight: NVFP4) -> Tensor:
    return weight.scales.view(torch.uint8)


def fp4_experts_mlp(x: Tensor, experts: FP4Experts, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute `moe.experts_mlp` with x and the inner activation rounded to NVFP4, each row with a global scale of its own.

    Args:
        x: (T, H); bfloat16 on a GPU, any float dtype on a CPU; finite.
        experts: on x's device.
        top_k_index: (T, K) integers in [0, E).
        top_k_weights: (T, K), taken as float32.

    Returns:
        (T, H) in x's dtype.

    Raises:
        ValueError: shapes that do not belong together.
        KernelUnsupported: on a GPU, x is not bfloat16 or the chip has no block-scaled FP4 units.
    """
    check_tokens(x, experts.hidden, top_k_index, top_k_weights)
    if x.shape[0] == 0:
        return torch.empty_like(x)
    if x.is_cuda:
        expect(dispatch.has_fp4_units(x.device), "fp4_experts_mlp", "block-scaled FP4 units (sm_100, sm_120)", x.device)
    if dispatch.backend("fp4_experts_mlp", x.device) == "triton":
        return fp4_experts_mlp_triton(x, experts, top_k_index, top_k_weights)
    return fp4_experts_mlp_torch(x, experts, top_k_index, top_k_weights)


def fp4_experts_mlp_torch(x: Tensor, experts: FP4Experts, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The twin of `fp4_experts_mlp`."""
    gate, up, down = (weight.dequantize(torch.float32) for weight in experts.nvfp4())
    order, offsets = sort_by_expert_torch(top_k_index, experts.count)
    check_placed(offsets, order)
    rows = _rounded(x).index_select(0, order // top_k_index.shape[1])
    gates, ups = (grouped_mm(rows, weight.transpose(1, 2), offs=offsets[1:]) for weight in (gate, up))
    inner = _rounded((gelu(gates, approximate="tanh") * ups).to(x.dtype))
    return down_and_combine(inner, down, order, offsets, top_k_weights).to(x.dtype)


def _rounded(x: Tensor) -> Tensor:
    return quantize(x[:, None].float(), "modelopt").dequantize(torch.float32)[:, 0]


@launches
def quantize_rows_triton(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row of x (R, K), K a multiple of 16, as `nvfp4.quantize(x[:, None], "modelopt")` bit for bit: bytes, scales, factors."""
    rows, columns = x.shape
    packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(rows, columns // 16, dtype=torch.uint8, device=x.device)
    factors = torch.empty(rows, dtype=torch.float32, device=x.device)
    quantize_rows_kernel[(rows,)](x, packed, scales, factors, **_columns(columns))
    return packed, scales.view(torch.float8_e4m3fn), factors


@launches
def fp4_experts_mlp_triton(x: Tensor, experts: FP4Experts, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Launch the four kernels; Triton's interpreter takes x in float32 as well."""
    expect(x.dtype == torch.bfloat16 or not x.is_cuda, "fp4_experts_mlp", "x in bfloat16", x.dtype)
    x = x.contiguous()
    (tokens, hidden), top_k = x.shape, top_k_index.shape[1]
    order, offsets = sort_by_expert(top_k_index, experts.count)
    slots = tokens * top_k
    options = _options(slots, experts.count)
    tiles = max_tiles(slots, experts.count, options["BM"])
    n_gate, bk_gate = experts.gate_up.shape[1], 2 * experts.gate_up.shape[-1]
    n_down, bk_down = experts.down.shape[1], 2 * experts.down.shape[-1]
    inner = torch.empty(slots, experts.inner, dtype=x.dtype, device=x.device)
    partial = torch.empty(slots, hidden, dtype=x.dtype, device=x.device)
    arrivals = torch.empty(n_down, tokens, dtype=torch.int32, device=x.device)
    out = torch.empty_like(x)
    fixed = constants(experts.count, hidden, experts.inner, top_k) | options | {"NATIVE": x.is_cuda}
    gate_up_fp4_kernel[(n_gate, tiles)](
        *quantize_rows_triton(x), experts.gate_up, experts.gate_up_scales, experts.gate_scale,
        experts.up_scale, order, offsets, inner, arrivals, arrivals.numel(),
        **fixed, **block_size(ROWS, bk_gate),
    )  # fmt: skip
    down_fp4_kernel[(n_down, tiles)](
        *quantize_rows_triton(inner), experts.down, experts.down_scales, experts.down_scale, order, offsets,
        top_k_weights.float().contiguous(), partial, arrivals, out, tokens,
        **fixed, **block_size(128, bk_down),
    )  # fmt: skip
    return out


def _columns(count: int) -> dict[str, Any]:
    return {"K": count, "COLUMNS": 1 << (count - 1).bit_length()}


def _options(slots: int, experts: int) -> dict[str, Any]:
    rows = rows_per_tile(slots, experts)
    return {"BM": rows, "num_warps": 4 if rows <= 32 else 8, "num_stages": 3}


def kernels_to_compile() -> list[Case]:
    """All launches at the shape of DiffusionGemma 26B-A4B, at every BM."""
    made = [
        Case.of(
            f"quantize_rows_kernel K={columns}",
            quantize_rows_kernel,
            "*bf16 *u8 *u8 *fp32",
            _columns(columns),
            chips=dispatch.FP4_CHIPS,
        )
        for columns in (2816, 704)
    ]
    for tokens in (64, 256, 512, 1024):  # one of each BM
        options = _options(tokens * 8, 128)
        rows = options.pop("BM")
        for kernel, block, types in (
            (gate_up_fp4_kernel, (ROWS, 128), "*u8 *fp8e4nv *fp32 *u8 *fp8e4nv *fp32 *fp32 *i32 *i32 *bf16 *i32 i32"),
            (down_fp4_kernel, (128, 64), "*u8 *fp8e4nv *fp32 *u8 *fp8e4nv *fp32 *i32 *i32 *fp32 *bf16 *i32 *bf16 i32"),
        ):
            fixed = constants(128, 2816, 704, 8) | block_size(*block) | {"BM": rows, "NATIVE": True}
            name = f"{kernel.__name__} T={tokens}"
            made.append(Case.of(name, kernel, types, fixed, chips=dispatch.FP4_CHIPS, **options))
    return made
