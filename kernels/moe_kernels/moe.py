"""The experts' MLP over NVFP4 weights: y[t] = sum_k w[t,k] * down_e (gelu_tanh(gate_e x[t]) * up_e x[t]), with e = expert[t,k].

On a GPU two launches after the sort (`_moe.py`): gate and up with the activation, then down with the weighted sum over a token's experts. Weights
stay in four bits in memory; each tile of weights is decoded once for all tokens of its expert (up to BM of them), and multiplied in
bfloat16 with float32 sums. Bytes read at T = 256 tokens, K = 8 of E = 128 experts, H = 2816 and I = 704: 3 E H I (1/2 + 1/16) = 428 MB,
100 us at 4.3 TB/s; real arithmetic 6 T K H I = 24 GFLOP. Elsewhere the torch twin.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import torch
import triton
from torch import Tensor
from torch.nn.functional import embedding_bag, grouped_mm

from moe_kernels import dispatch
from moe_kernels._moe import down_kernel, gate_up_kernel
from moe_kernels.activation import gated_gelu
from moe_kernels.aot import Case
from moe_kernels.dispatch import expect, launches
from moe_kernels.layout import block_of, repack, restore
from moe_kernels.nvfp4 import NVFP4
from moe_kernels.routing import max_tiles, sort_by_expert, sort_by_expert_torch


@dataclass(frozen=True)
class PackedExperts:
    """What every form of one layer's packed experts has; I and H are inner and hidden features.

    gate_up, down: blocks (E, down, across, ..., rows, columns); gate_up_scales, down_scales: theirs; gate_scale, up_scale and down_scale
    (E,) float32, each weight's own global scale, as a factor.
    """

    gate_up: Tensor
    gate_up_scales: Tensor
    down: Tensor
    down_scales: Tensor
    gate_scale: Tensor
    up_scale: Tensor
    down_scale: Tensor

    @property
    def count(self) -> int:
        """E."""
        return self.gate_up.shape[0]

    @property
    def hidden(self) -> int:
        """H."""
        return self.down.shape[1] * self.down.shape[3]

    def to(self, device: torch.device | str) -> Self:
        """The same experts on another device, without decoded weights."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(PackedExperts)))


@dataclass(frozen=True)
class Experts(PackedExperts):
    """One layer's experts, repacked for streaming. Make them with `from_nvfp4`.

    With blocks of BN rows and BK columns (`layout.repack`): gate_up (E, I/BN, H/BK, 2, BN, BK/8) int32 and gate_up_scales (..., BK/32)
    int16, gate before up; down (E, H/BN, I/BK, BN, BK/8) int32 and down_scales; dense: the decoded weights (E, 2I, H) and (E, H, I)
    for the torch twin, if they are kept, stored column by column (`by_column`).
    """

    dense: tuple[Tensor, Tensor] | None = None

    @property
    def inner(self) -> int:
        """I."""
        return self.gate_up.shape[1] * self.gate_up.shape[4]

    @staticmethod
    def from_nvfp4(gate: NVFP4, up: NVFP4, down: NVFP4, *, keep: torch.dtype | None = None) -> "Experts":
        """Repack the weights of a layer, in either convention of the global scale; nothing is requantised.

        Args:
            gate: (E, I, H), as read from a checkpoint.
            up: (E, I, H).
            down: (E, H, I).
            keep: also keep the weights decoded in this dtype, for the torch twin: 3 E H I values more memory, many times the speed.

        Raises:
            KernelUnsupported: H or I is no multiple of 32.
            ValueError: the three shapes do not belong together, or a block scale is NaN.
        """
        count, inner, hidden = check_experts(gate, up, down)
        rows, columns = block_of(inner, 64, 32, "experts_mlp"), block_of(hidden, 128, 32, "experts_mlp")
        gates, ups = repack(gate, rows, columns), repack(up, rows, columns)
        gate_up, gate_up_scales = (torch.stack(pair, dim=3) for pair in zip(gates, ups, strict=True))
        down_words, down_scales = repack(
            down, block_of(hidden, 128, 32, "experts_mlp"), block_of(inner, 128, 32, "experts_mlp")
        )
        gate_scale, up_scale, down_scale = (w.factor().expand(count).contiguous() for w in (gate, up, down))
        made = Experts(gate_up, gate_up_scales, down_words, down_scales, gate_scale, up_scale, down_scale)
        return made if keep is None else replace(made, dense=by_column(*made.decode(keep)))

    def decode(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights as transformers holds them: gate_up (E, 2I, H), gate before up, and down (E, H, I)."""
        gate = _decoded(self.gate_up[:, :, :, 0], self.gate_up_scales[:, :, :, 0], self.gate_scale, dtype)
        up = _decoded(self.gate_up[:, :, :, 1], self.gate_up_scales[:, :, :, 1], self.up_scale, dtype)
        return torch.cat([gate, up], dim=1), _decoded(self.down, self.down_scales, self.down_scale, dtype)


@dataclass(frozen=True)
class DenseExperts:
    """One layer's experts that are not quantised; the torch twin serves them on every device."""

    gate_up: Tensor  # (E, 2I, H), gate before up
    down: Tensor  # (E, H, I)

    @property
    def dense(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.gate_up, self.down

    @property
    def count(self) -> int:
        """E."""
        return len(self.down)

    @property
    def hidden(self) -> int:
        """H."""
        return self.down.shape[1]


def _decoded(words: Tensor, scales: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    tensors = (words, scales, factors)
    parts = zip(*(tensor.split(16) for tensor in tensors), strict=True)  # some experts at a time bound the memory
    return torch.cat([restore(*part).dequantize(dtype) for part in parts])


def check_experts(gate: NVFP4, up: NVFP4, down: NVFP4) -> tuple[int, int, int]:
    """(E, I, H) of gate (E, I, H), up (E, I, H) and down (E, H, I); ValueError if they are not of that form."""
    if len(gate.shape) != 3:
        raise ValueError(f"gate: expected shape (E, I, H), got {gate.shape}")
    count, inner, hidden = gate.shape
    for name, weight, shape in (("up", up, gate.shape), ("down", down, (count, hidden, inner))):
        if weight.shape != shape:
            raise ValueError(f"{name}: expected shape {shape} beside a gate of {gate.shape}, got {weight.shape}")
    return count, inner, hidden


def check_tokens(x: Tensor, hidden: int, top_k_index: Tensor, top_k_weights: Tensor) -> None:
    """ValueError unless x is (T, H) and index and weights are (T, K) with K at least 1."""
    tokens, *top_k = top_k_index.shape
    if x.shape != (tokens, hidden) or top_k_weights.shape != (tokens, *top_k) or len(top_k) != 1 or top_k[0] < 1:
        raise ValueError(
            f"expected x (T, {hidden}) with index and weights (T, K), got {tuple(x.shape)}, "
            f"{tuple(top_k_index.shape)}, {tuple(top_k_weights.shape)}"
        )


def check_placed(offsets: Tensor, order: Tensor) -> None:
    """ValueError if an expert's id is E, by which transformers means that another rank has it: here every expert must be."""
    if (placed := int(offsets[-1])) != len(order):
        raise ValueError(f"expected every expert here, got {len(order) - placed} slots for those of other ranks")


def experts_mlp(x: Tensor, experts: Experts | DenseExperts, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """y[t] = sum_k weight[t,k] * down_e (gelu_tanh(gate_e x[t]) * up_e x[t]) with e = top_k_index[t,k].

    Args:
        x: (T, H); bfloat16 on a GPU, any float dtype on a CPU, where float32 is computed in.
        experts: on x's device.
        top_k_index: (T, K) integers in [0, E), K at least 1; on a GPU they are not checked, for that would make the device wait.
        top_k_weights: (T, K), taken as float32.

    Returns:
        (T, H) in x's dtype. Sums run in float32; the kernels round the inner activation and each expert's weighted output to x's
        dtype before the sum over k, as transformers' experts do. The same bits for the same input, whatever order programs run in.

    Raises:
        ValueError: shapes that do not belong together.
        KernelUnsupported: on a GPU, x is not bfloat16.
    """
    check_tokens(x, experts.hidden, top_k_index, top_k_weights)
    if x.shape[0] == 0:
        return torch.empty_like(x)
    if isinstance(experts, Experts) and dispatch.backend("experts_mlp", x.device) == "triton":
        return experts_mlp_triton(x, experts, top_k_index, top_k_weights)
    return experts_mlp_torch(x, experts, top_k_index, top_k_weights)


def by_column(*weights: Tensor) -> tuple[Tensor, ...]:
    """The same weights (..., N, K), stored with K as the outer of the two.

    With these, MKL sums the product of a float32 row of a few hundred numbers in one order, however many rows there are, from two on. With
    weights stored row by row it sums those of up to ten rows in another.
    """
    return tuple(weight.mT.contiguous().mT for weight in weights)


def experts_mlp_torch(x: Tensor, experts: Experts | DenseExperts, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The twin of `experts_mlp`: rows sorted by expert, two grouped products, a sum over each token's experts.

    Computes in the dtype of `experts.dense`, or decodes the weights anew in float32; the last sum is in float32 either way. With
    float32 weights that are kept, a token's result does not depend on the rest of the batch in any bit, if H and I are at most a few hundred
    (see `by_column`).
    """
    gate_up, down = experts.dense or experts.decode(torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    order, offsets = sort_by_expert_torch(top_k_index, experts.count)
    check_placed(offsets, order)
    if any(last - first == 1 for first, last in pairwise(offsets.tolist())):
        order, offsets = _at_least_two(order, offsets)
    rows = x.index_select(0, order // top_k_index.shape[1]).to(gate_up.dtype)
    gate, up = grouped_mm(rows, gate_up.mT, offs=offsets[1:]).chunk(2, dim=-1)
    return down_and_combine(gated_gelu(gate, up), down, order, offsets, top_k_weights).to(x.dtype)


def _at_least_two(order: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Let an expert that has one slot have it twice: the product of a single row is summed in another order."""
    counts = offsets.diff()
    alone = (counts == 1).int()
    more = alone.cumsum(0, dtype=torch.int32)
    return order.repeat_interleave(1 + alone.repeat_interleave(counts)), offsets + torch.cat([offsets[:1], more])


def down_and_combine(inner: Tensor, down: Tensor, order: Tensor, offsets: Tensor, top_k_weights: Tensor) -> Tensor:
    """Weighted sums over k of the down products of sorted rows: inner (R, I) and down (E, H, I) -> (T, H) float32."""
    rows = grouped_mm(inner, down.mT, offs=offsets[1:]).float()
    order = order.long()
    place = order.new_empty(top_k_weights.numel())  # where a slot's row is
    place.scatter_(0, order, torch.arange(len(order), device=order.device))
    return embedding_bag(place.view(top_k_weights.shape), rows, mode="sum", per_sample_weights=top_k_weights.float())


def rows_per_tile(slots: int, experts: int) -> int:
    """BM: twice the mean number of rows of an expert, from 16 to 128, so that nearly every expert is one tile."""
    return min(128, max(16, triton.next_power_of_2(2 * slots // experts)))  # pyright: ignore[reportReturnType]


@launches
def experts_mlp_triton(x: Tensor, experts: Experts, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Launch both kernels, everything on one CUDA device; Triton's interpreter takes x in float32 as well."""
    expect(x.dtype == torch.bfloat16 or not x.is_cuda, "experts_mlp", "x in bfloat16", x.dtype)
    x = x.contiguous()
    (tokens, hidden), top_k = x.shape, top_k_index.shape[1]
    order, offsets = sort_by_expert(top_k_index, experts.count)
    slots = tokens * top_k
    rows = rows_per_tile(slots, experts.count)
    tiles = max_tiles(slots, experts.count, rows)
    _, n_gate, _, _, bn_gate, words_gate = experts.gate_up.shape
    _, n_down, _, bn_down, words_down = experts.down.shape
    inner = torch.empty(slots, experts.inner, dtype=x.dtype, device=x.device)
    partial = torch.empty(slots, hidden, dtype=x.dtype, device=x.device)
    arrivals = torch.empty(n_down, tokens, dtype=torch.int32, device=x.device)
    out = torch.empty_like(x)
    fixed = constants(experts.count, hidden, experts.inner, top_k) | _options(rows) | {"NATIVE": x.is_cuda}
    gate_up_kernel[(n_gate, tiles)](
        x, experts.gate_up, experts.gate_up_scales, experts.gate_scale, experts.up_scale, order, offsets, inner,
        arrivals, arrivals.numel(), **fixed, **block_size(bn_gate, 8 * words_gate),
    )  # fmt: skip
    weights = top_k_weights.float().contiguous()
    down_kernel[(n_down, tiles)](
        inner, experts.down, experts.down_scales, experts.down_scale, order, offsets, weights, partial, arrivals, out,
        tokens, **fixed, **block_size(bn_down, 8 * words_down),
    )  # fmt: skip
    return out


def constants(count: int, hidden: int, inner: int, top_k: int) -> dict[str, Any]:
    """What both launches are compiled for."""
    return {"E": count, "EXPERTS": triton.next_power_of_2(count), "HIDDEN": hidden, "INNER": inner, "TOP_K": top_k}


def _options(rows: int) -> dict[str, Any]:
    return {"BM": rows, "num_warps": 4 if rows <= 64 else 8, "num_stages": 4 if rows <= 32 else 3}


def block_size(rows: int, columns: int) -> dict[str, Any]:
    """BN and BK."""
    return {"BN": rows, "BK": columns}


def kernels_to_compile() -> list[Case]:
    """Both launches at the shape of DiffusionGemma 26B-A4B, at every BM."""
    made = []
    for tokens in (64, 256, 512, 1024):  # one of each BM
        options = _options(rows_per_tile(tokens * 8, 128))
        fixed = constants(128, 2816, 704, 8) | {"BM": options.pop("BM"), "NATIVE": True}
        for kernel, blocks, types in (
            (gate_up_kernel, block_size(64, 128), "*bf16 *i32 *i16 *fp32 *fp32 *i32 *i32 *bf16 *i32 i32"),
            (down_kernel, block_size(128, 64), "*bf16 *i32 *i16 *fp32 *i32 *i32 *fp32 *bf16 *i32 *bf16 i32"),
        ):
            made.append(Case.of(f"{kernel.__name__} T={tokens}", kernel, types, fixed | blocks, **options))
    return made
