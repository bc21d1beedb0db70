"""Which experts a token goes to, and the order in which the experts' kernels meet the tokens.

A slot is one choice of one token: slot t * K + k is token t's k-th choice.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.aot import Case
from moe_kernels.dispatch import backend, expect, launches

MAX_EXPERTS = 512  # a row of scores stays in registers
_SORT: dict[str, Any] = {"BLOCK": 2048, "num_warps": 8}  # 256 tokens with 8 experts each are one block


class Routed(NamedTuple):
    """Each token's experts, the likeliest first, and how much each counts."""

    weights: Tensor  # (T, K) float32
    experts: Tensor  # (T, K) int32


class Sorted(NamedTuple):
    """Slots grouped by expert: expert e has order[offsets[e] : offsets[e + 1]], its slots in rising order."""

    order: Tensor  # (T * K,) int32: a permutation of the slots, dropped ones last
    offsets: Tensor  # (E + 1,) int32


def route(scores: Tensor, k: int, per_expert_scale: Tensor | None = None) -> Routed:
    """The k best experts of each token.

    w[t, j] = softmax(scores[t])[e_j] / sum_i softmax(scores[t])[e_i] * per_expert_scale[e_j]

    The denominators of the softmax over all experts cancel, so it is taken over the chosen ones only. Experts are
    chosen by score, equal scores by the lower id, so every device chooses the same. A NaN counts as the largest score
    and makes its token's weights NaN.

    Args:
        scores: (T, E), any float dtype; computed with in float32.
        k: experts a token, 1 to E.
        per_expert_scale: (E,), or None for ones.

    Raises:
        ValueError: a shape, a dtype or k is not as above.
        KernelUnsupported: more than 512 experts on a GPU.

    Source: `DiffusionGemmaTextRouter` in transformers.
    """
    _check_scores(scores, k, per_expert_scale)
    chosen = route_triton if backend("route", scores.device) == "triton" else route_torch
    return chosen(scores, k, per_expert_scale)


def route_torch(scores: Tensor, k: int, per_expert_scale: Tensor | None = None) -> Routed:
    """Twin of `route`."""
    best, experts = scores.float().sort(dim=1, descending=True, stable=True)  # a NaN first, and -0 equal to 0
    weights, experts = best[:, :k].softmax(dim=1), experts[:, :k].contiguous()
    if per_expert_scale is not None:
        weights.mul_(per_expert_scale.take(experts))
    return Routed(weights, experts.int())


@launches
def route_triton(scores: Tensor, k: int, per_expert_scale: Tensor | None = None) -> Routed:
    """Kernel of `route`: one launch."""
    tokens, num_experts = scores.shape
    expect(num_experts <= MAX_EXPERTS, "route", f"at most {MAX_EXPERTS} experts", num_experts)
    weights = scores.new_empty(tokens, k, dtype=torch.float32)
    experts = scores.new_empty(tokens, k, dtype=torch.int32)
    blocks = _route_blocks(num_experts, k)
    scale = None if per_expert_scale is None else per_expert_scale.contiguous()
    if tokens:
        grid = (triton.cdiv(tokens, blocks["BLOCK_T"]),)
        _route_kernel[grid](scores.contiguous(), scale, weights, experts, tokens, num_experts, k, **blocks)
    return Routed(weights, experts)


def sort_by_expert(experts: Tensor, num_experts: int) -> Sorted:
    """Group the slots by expert, stably.

    offsets[e] = the number of slots whose expert is below e; offsets[E] is T * K less the dropped ones.

    Args:
        experts: (T, K), int32 or int64: 0 to E - 1, or E for "not here", which drops the slot (what transformers writes
            for the experts of other ranks).
        num_experts: E.

    Raises:
        ValueError: a shape or dtype is not as above, or, on a CPU, an id is out of range. Looking would make a GPU
            wait; there such an id leaves entries of `order` unwritten. `route` makes none.
    """
    if experts.ndim != 2 or experts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"expected experts (T, K) of int32 or int64, got {tuple(experts.shape)} of {experts.dtype}")
    chosen = sort_by_expert_triton if backend("sort_by_expert", experts.device) == "triton" else sort_by_expert_torch
    return chosen(experts, num_experts)


def sort_by_expert_torch(experts: Tensor, num_experts: int) -> Sorted:
    """Twin of `sort_by_expert`."""
    ids, order = experts.flatten().sort(stable=True)
    if ids.numel() and ids.device.type == "cpu":  # another device would have to wait
        lowest, highest = ids[0].item(), ids[-1].item()
        if lowest < 0 or highest > num_experts:
            raise ValueError(f"expected expert ids from 0 to {num_experts}, got {lowest} to {highest}")
    bounds = torch.arange(num_experts + 1, dtype=ids.dtype, device=ids.device)
    return Sorted(order.int(), torch.searchsorted(ids, bounds, out_int32=True))


@launches
def sort_by_expert_triton(experts: Tensor, num_experts: int) -> Sorted:
    """Kernel of `sort_by_expert`: one launch, no atomics."""
    slots = experts.numel()
    order = experts.new_empty(slots, dtype=torch.int32)
    offsets = experts.new_empty(num_experts + 1, dtype=torch.int32)
    _sort_kernel[(num_experts + 1,)](experts.contiguous(), order, offsets, slots, **_SORT)
    return Sorted(order, offsets)


def max_tiles(slots: int, num_experts: int, block: int) -> int:
    """The most tiles of `block` rows that `slots` rows can need, however they fall on the experts."""
    return (slots + min(slots, num_experts) * (block - 1)) // block


def _check_scores(scores: Tensor, k: int, per_expert_scale: Tensor | None) -> None:
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(f"expected scores (T, E) of a float dtype, got {tuple(scores.shape)} of {scores.dtype}")
    num_experts = scores.shape[1]
    if not 1 <= k <= num_experts:
        raise ValueError(f"expected k from 1 to {num_experts}, the number of experts, got {k}")
    if per_expert_scale is not None and per_expert_scale.shape != (num_experts,):
        raise ValueError(f"expected per_expert_scale ({num_experts},), got {tuple(per_expert_scale.shape)}")


def _route_blocks(num_experts: int, k: int) -> dict[str, Any]:
    """A warp has one row of 128 experts, so that no maximum crosses warps."""
    block = triton.next_power_of_2(num_experts)
    return {"BLOCK_T": max(1, 512 // block), "BLOCK_E": block, "BLOCK_K": triton.next_power_of_2(k)}


@triton.jit
def _flip(bits):
    """Between the bits of a float32 and an int32 that sorts as the float does; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    scores, scale, weights, experts, tokens, num_experts, k,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    expert = tl.arange(0, BLOCK_E)[None, :]
    column = tl.arange(0, BLOCK_K)[None, :]
    inside = (token < tokens) & (expert < num_experts)
    score = tl.load(scores + token.to(tl.int64) * num_experts + expert, mask=inside, other=0.0).to(tl.float32)
    keys = _flip(score.to(tl.int32, bitcast=True))
    keys = tl.where(score == 0, 0, keys)  # -0 equals 0
    keys = tl.where(score != score, 0x7FFFFFFF, keys)  # every NaN is the largest
    keys = tl.where(expert < num_experts, keys, -0x80000000)

    best = tl.full((BLOCK_T, BLOCK_K), float("-inf"), tl.float32)
    chosen = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for j in range(k):
        key, at = tl.max(keys, axis=1, return_indices=True)  # the lower id wins a tie
        keys = tl.where(expert == at[:, None], -0x80000000, keys)
        best = tl.where(column == j, _flip(key).to(tl.float32, bitcast=True)[:, None], best)
        chosen = tl.where(column == j, at[:, None], chosen)

    first = tl.sum(tl.where(column == 0, best, 0.0), axis=1)[:, None]  # the largest; a maximum would lose a NaN
    power = tl.where(column < k, tl.exp(best - first), 0.0)
    weight = power / tl.sum(power, axis=1)[:, None]
    inside = (token < tokens) & (column < k)
    if scale is not None:
        weight *= tl.load(scale + chosen, mask=inside, other=0.0).to(tl.float32)
    to = token.to(tl.int64) * k + column
    tl.store(weights + to, weight, mask=inside)
    tl.store(experts + to, chosen, mask=inside)


@triton.jit(do_not_specialize=["slots"])
def _sort_kernel(experts, order, offsets, slots, BLOCK: tl.constexpr):
    """One program an expert, and one for the dropped slots.

    It counts the slots of lower ids, which is where its own begin, and then places its own. Every program reads all
    ids, twice: from L2, 8 kB at 256 tokens.
    """
    expert = tl.program_id(0)
    lower = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        ids = tl.load(experts + slot, mask=slot < slots, other=0x7FFFFFFF)
        lower += (ids < expert).to(tl.int32)
    at = tl.sum(lower)
    tl.store(offsets + expert, at)
    for start in range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        ids = tl.load(experts + slot, mask=slot < slots, other=0x7FFFFFFF)
        mine = (ids == expert).to(tl.int32)
        tl.store(order + at + tl.cumsum(mine, 0) - 1, slot, mask=mine > 0)
        at += tl.sum(mine)


def kernels_to_compile() -> list[Case]:
    """128 experts, 8 chosen; the number of tokens is no part of a kernel."""
    scores = {"scores": "*bf16", "scale": "*bf16", "weights": "*fp32", "experts": "*i32"}
    lists: dict[str, str] = dict.fromkeys(("experts", "order", "offsets"), "*i32")
    return [
        _case("route", _route_kernel, scores, _route_blocks(128, 8)),
        _case("sort_by_expert", _sort_kernel, lists, _SORT),
    ]


def _case(name: str, kernel: Any, pointers: dict[str, str], options: dict[str, Any]) -> Case:
    constants = {key: value for key, value in options.items() if key != "num_warps"}
    kinds = pointers | dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    return Case(name, kernel, signature, constants, num_warps=options.get("num_warps", 4))
