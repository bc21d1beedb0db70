"""The two launches of the experts' MLP over weights decoded in registers, and the parts `_moe_fp4.py` shares. The op is in `moe.py`."""

import triton
import triton.language as tl

from moe_kernels._nvfp4_dot import UNDO, block_dot


@triton.jit
def tile_of(offsets, tile, E: tl.constexpr, EXPERTS: tl.constexpr, BM: tl.constexpr):
    """The expert of a tile of BM sorted rows, its first row and the expert's end; -1 for a tile past the last."""
    experts = tl.arange(0, EXPERTS)
    known = experts < E
    starts = tl.load(offsets + experts, mask=known, other=0)
    ends = tl.load(offsets + experts + 1, mask=known, other=0)
    tiles = (ends - starts + BM - 1) // BM
    before = tl.cumsum(tiles, 0) - tiles
    here = (before <= tile) & (tile < before + tiles)
    expert = tl.sum(tl.where(here, experts + 1, 0)) - 1
    first = tl.sum(tl.where(here, starts + (tile - before) * BM, 0))
    return expert, first, tl.sum(tl.where(here, ends, 0))


@triton.jit
def zero_arrivals(arrivals, size):
    """Every program clears its share of the counters for the second launch."""
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    for at in range(program * 128, size, tl.num_programs(0) * tl.num_programs(1) * 128):
        cells = at + tl.arange(0, 128)
        tl.store(arrivals + cells, tl.zeros((128,), tl.int32), mask=cells < size)


@triton.jit
def store_inner(gate, up, inner, rows, end, n, INNER: tl.constexpr, BN: tl.constexpr):
    """Store gelu(gate) * up (BN, BM) of sorted rows; gelu with tanh is g * sigmoid(2 sqrt(2/pi) (g + 0.044715 g^3))."""
    slope = 1.5957691216057308 * gate * (1 + 0.044715 * gate * gate)
    gelu = gate * tl.sigmoid(tl.maximum(slope, -80.0))  # exp(80) is finite, and gelu far below any rounding there
    cells = inner + rows[None, :].to(tl.int64) * INNER + n * BN + tl.arange(0, BN)[:, None]
    tl.store(cells, (gelu * up).to(inner.dtype.element_ty), mask=(rows < end)[None, :])


@triton.jit
def combine(
    acc,  # (BN, BM) float32, weighted
    slot,  # (BM,)
    valid,  # (BM,)
    partial,  # (T*K, HIDDEN)
    arrivals,  # (T,) counters of these columns
    out,  # (T, HIDDEN)
    columns,  # (BN, 1)
    HIDDEN: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """Store partial sums; the program that stores the last of a token's K adds them up, always in the order of k.

    So there is no third launch, and the same bits come out whatever order programs end in. The barrier and the atomic's release
    and acquire put every store before the loads that need it.
    """
    cells = partial + slot[None, :].to(tl.int64) * HIDDEN + columns
    tl.store(cells, acc.to(partial.dtype.element_ty), mask=valid[None, :])
    token = slot // TOP_K
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals + token, 1, mask=valid, sem="acq_rel")
    last = valid & (arrived == TOP_K - 1)
    if tl.max(last.to(tl.int32), 0) > 0:
        total = tl.zeros((BN, BM), tl.float32)
        start = partial + (token * TOP_K)[None, :].to(tl.int64) * HIDDEN + columns
        for k in tl.static_range(TOP_K):
            total += tl.load(start + k * HIDDEN, mask=last[None, :], other=0.0, cache_modifier=".cg").to(tl.float32)
        cells = out + token[None, :].to(tl.int64) * HIDDEN + columns
        tl.store(cells, total.to(out.dtype.element_ty), mask=last[None, :])


@triton.jit(do_not_specialize=["arrivals_size"])
def gate_up_kernel(
    x,  # (T, HIDDEN) bfloat16
    words,  # (E, INNER/BN, HIDDEN/BK, 2, BN, BK/8) int32, gate and up side by side
    scales,  # (E, INNER/BN, HIDDEN/BK, 2, BN, BK/32) int16
    gate_scale,  # (E,) float32
    up_scale,  # (E,) float32
    order,  # (T*K,) int32, slots t*K + k grouped by expert
    offsets,  # (E + 1,) int32
    inner,  # (T*K, INNER) bfloat16 in the order of `order`: gelu(gate) * up
    arrivals,  # zeroed here for the second launch
    arrivals_size,
    E: tl.constexpr,
    EXPERTS: tl.constexpr,  # E rounded up to a power of two
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    NATIVE: tl.constexpr,
):
    n, tile = tl.program_id(0), tl.program_id(1)
    zero_arrivals(arrivals, arrivals_size)
    expert, first, end = tile_of(offsets, tile, E, EXPERTS, BM)
    if expert < 0:
        return
    rows = first + tl.arange(0, BM)
    token = tl.load(order + rows, mask=rows < end, other=0) // TOP_K
    x += token[None, :].to(tl.int64) * HIDDEN + tl.arange(0, BK)[:, None]
    block = (expert * (INNER // BN) + n).to(tl.int64) * (HIDDEN // BK) * 2
    words += block * (BN * BK // 8)
    scales += block * (BN * BK // 32)
    gate = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    for _ in range(HIDDEN // BK):
        some = tl.load(x)  # rows past the end repeat a token, and are not stored
        gate = block_dot(gate, words, scales, some, BN, BK, NATIVE)
        up = block_dot(up, words + BN * BK // 8, scales + BN * BK // 32, some, BN, BK, NATIVE)
        x += BK
        words += BN * BK // 4
        scales += BN * BK // 16
    gate *= tl.load(gate_scale + expert) * UNDO
    up *= tl.load(up_scale + expert) * UNDO
    store_inner(gate, up, inner, rows, end, n, INNER, BN)


@triton.jit(do_not_specialize=["T"])
def down_kernel(
    inner,  # (T*K, INNER) bfloat16, sorted rows
    words,  # (E, HIDDEN/BN, INNER/BK, BN, BK/8) int32
    scales,  # (E, HIDDEN/BN, INNER/BK, BN, BK/32) int16
    down_scale,  # (E,) float32
    order,  # (T*K,) int32
    offsets,  # (E + 1,) int32
    weights,  # (T*K,) float32, the routing weight of each slot
    partial,  # (T*K, HIDDEN) bfloat16 by slot: weighted outputs, one of each of a token's K experts
    arrivals,  # (HIDDEN/BN, T) int32, zero: how many of a token's partial sums are stored
    out,  # (T, HIDDEN) bfloat16
    T,
    E: tl.constexpr,
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    NATIVE: tl.constexpr,
):
    n, tile = tl.program_id(0), tl.program_id(1)
    expert, first, end = tile_of(offsets, tile, E, EXPERTS, BM)  # pyright: ignore[reportGeneralTypeIssues]
    if expert < 0:
        return
    rows = first + tl.arange(0, BM)
    valid = rows < end
    x = inner + tl.where(valid, rows, first)[None, :].to(tl.int64) * INNER + tl.arange(0, BK)[:, None]
    block = (expert * (HIDDEN // BN) + n).to(tl.int64) * (INNER // BK)
    words += block * (BN * BK // 8)
    scales += block * (BN * BK // 32)
    acc = tl.zeros((BN, BM), tl.float32)
    for _ in range(INNER // BK):
        acc = block_dot(acc, words, scales, tl.load(x), BN, BK, NATIVE)
        x += BK
        words += BN * BK // 8
        scales += BN * BK // 32
    slot = tl.load(order + rows, mask=valid, other=0)
    acc *= tl.load(down_scale + expert) * UNDO * tl.load(weights + slot, mask=valid, other=0.0)[None, :]
    columns = n * BN + tl.arange(0, BN)[:, None]
    combine(acc, slot, valid, partial, arrivals + n * T, out, columns, HIDDEN, BN, BM, TOP_K)
