"""Kernel of `attention`: a program holds the query heads of a block's rows that share one kv head, and meets their keys tile by tile."""
# pyright: basic

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e30)  # a running maximum before any key; finite, so that exp2(FLOOR - FLOOR) is 1
NO_KEY = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["most_pages"])
def attention_kernel(
    q,  # (T, M * G, D) bfloat16
    keys,  # (P, PAGE, M, D) bfloat16
    values,  # (P, PAGE, M, D) bfloat16
    tables,  # (S, most_pages) int32
    blocks,  # (B, 3) int32
    first,  # (T,) int32
    last,  # (T,) int32
    out,  # (T, M * G, D) bfloat16
    scale,  # times log2(e)
    most_pages,
    M: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Grid (B, M): neighbours read the same keys. NATIVE is false in Triton's interpreter, where all is float32."""
    block, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(blocks + block * 3 + 2)
    if count == 0:
        return
    sequence, begin = tl.load(blocks + block * 3).to(tl.int64), tl.load(blocks + block * 3 + 1).to(tl.int64)
    lane, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    mine = lane // G < tl.minimum(count, BLOCK_M // G)
    row = begin + lane // G
    low = tl.load(first + row, mask=mine, other=0)
    high = tl.load(last + row, mask=mine, other=0)
    start = tl.min(tl.where(low < high, low, NO_KEY), 0)
    end = tl.max(tl.where(low < high, high, 0), 0)
    cell = ((row * M + head) * G + lane % G)[:, None] * D + column[None, :]
    inside = mine[:, None] & (column < D)[None, :]
    x = tl.load(q + cell, mask=inside, other=0.0)
    if not NATIVE:
        x = x.to(tl.float32)
    tables += sequence * most_pages
    keys += head * D + column[None, :]
    values += head * D + column[None, :]
    top = tl.full((BLOCK_M,), FLOOR, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # Tiles start at multiples of BLOCK_N, not at the block's first key, and one in which a row sees nothing adds exact
    # zeros to it: a row's sums are the same whoever its neighbours are.
    for at in range(start // BLOCK_N * BLOCK_N, end, BLOCK_N):
        position = at + tl.arange(0, BLOCK_N)
        there = (position >= start) & (position < end)  # beyond, a page may be missing or hold anything, NaN as well
        page = tl.load(tables + position // PAGE, mask=there, other=0).to(tl.int64)
        offset = ((page * PAGE + position % PAGE) * (M * D))[:, None]
        there = there[:, None]
        if BLOCK_D != D:
            there = there & (column < D)[None, :]
        k = tl.load(keys + offset, mask=there, other=0.0)
        v = tl.load(values + offset, mask=there, other=0.0)
        if not NATIVE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        s = tl.dot(x, tl.trans(k), input_precision="ieee") * scale
        seen = (position[None, :] >= low[:, None]) & (position[None, :] < high[:, None])
        s = tl.where(seen, s, float("-inf"))
        peak = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - peak[:, None])
        shrink = tl.exp2(top - peak)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = peak
    acc /= tl.where(total > 0, total, 1.0)[:, None]  # a row that sees nothing has sums of 0
    tl.store(out + cell, acc.to(out.dtype.element_ty), mask=inside)
