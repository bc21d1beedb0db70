"""Device code of the denoise head; `denoise_head` explains the design and launches it.

Letters: R rows, V vocabulary, H hidden, G = `GROUP` tokens of a group, T = ceil(V / G) groups, B = `BLOCK_R` rows of a
block. What is kept for each group and row lies as (T, R), for the programs that write it own many rows of one group.
"""

import triton
import triton.language as tl

from moe_kernels.rng import noise

NEVER = tl.constexpr(-128.0)  # below this, float32 exp is 0 exactly; finite, so that 0 * NEVER is 0


@triton.jit
def _dot(a, b, acc, WIDE: tl.constexpr):
    if WIDE:  # Triton's interpreter takes bfloat16 for integers; in float32 the products are the same
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _logits(
    hidden,
    embedding,
    temperature,
    allowed,
    row,
    group,
    V,
    H: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    G: tl.constexpr,
):
    """Logits over temperature, (B, G) float32, of existing rows and a group; -inf where a token is not allowed."""
    column = tl.arange(0, G)
    exists = column < V - group * G
    embedding += group.to(tl.int64) * (G * H)
    at = tl.where(exists, column, 0)[None, :] * H
    inner = tl.arange(0, BLOCK_H)
    acc = tl.zeros((BLOCK_R, G), tl.float32)
    for h in range(0, H, BLOCK_H):
        k = h + inner
        if H % BLOCK_H == 0:
            a = tl.load(hidden + row[:, None] * H + k[None, :])
            b = tl.load(embedding + at + k[:, None])
        else:
            a = tl.load(hidden + row[:, None] * H + k[None, :], mask=k[None, :] < H, other=0.0)
            b = tl.load(embedding + at + k[:, None], mask=k[:, None] < H, other=0.0)
        acc = _dot(a, b, acc, WIDE)
    if SOFTCAP > 0:
        # tanh(z) = 1 - 2 / (exp(2z) + 1), in float32 1 from z = 10; exp must not overflow
        acc = SOFTCAP - (2 * SOFTCAP) / (tl.exp(tl.minimum(acc * (2 / SOFTCAP), 80.0)) + 1)
    t = tl.load(temperature + row)
    acc *= (1 / tl.where(t > 0, t, 1.0))[:, None]  # a greedy row needs the order only
    if MASKED:
        word = tl.arange(0, G // 32)
        width = (V + 31) // 32
        at_word = group * (G // 32) + word
        bits = tl.load(allowed + row[:, None] * width + at_word[None, :], mask=at_word[None, :] < width, other=0)
        bit = (bits[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
        acc = tl.where(tl.reshape(bit, (BLOCK_R, G)) != 0, acc, float("-inf"))
    return tl.where(exists[None, :], acc, float("-inf"))


@triton.jit
def scan(
    hidden,
    embedding,
    temperature,
    allowed,
    mass,
    spread,
    peak,
    peak_token,
    R,
    V,
    H: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    G: tl.constexpr,
):
    """Of one group, for each row of a block: log-mass, entropy within, largest logit and its lowest token; each (T, R).

    Grid (row blocks, T): programs that read the same part of the embedding run side by side.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    group = tl.program_id(1)
    x = _logits(
        hidden,
        embedding,
        temperature,
        allowed,
        tl.minimum(row, R - 1),
        group,
        V,
        H,
        SOFTCAP,
        MASKED,
        WIDE,
        BLOCK_R,
        BLOCK_H,
        G,
    )
    top, column = tl.max(x, 1, return_indices=True, return_indices_tie_break_left=True)
    x = tl.maximum(x - tl.where(top == float("-inf"), 0.0, top)[:, None], NEVER)
    e = tl.exp(x)
    total = tl.maximum(tl.sum(e, 1), 1.0)  # the largest adds 1; only where nothing is allowed there is none
    log_total = tl.log(total)
    at = group * R + row
    tl.store(mass + at, top + log_total, mask=row < R)  # -inf where nothing is allowed
    tl.store(spread + at, log_total - tl.sum(e * x, 1) / total, mask=row < R)
    tl.store(peak + at, top, mask=row < R)
    tl.store(peak_token + at, group * G + column, mask=row < R)


@triton.jit
def choose(
    mass,
    spread,
    peak,
    peak_token,
    temperature,
    seed,
    position,
    step,
    fixed,
    argmax,
    sample,
    entropy,
    logprob,
    argmax_logprob,
    point,
    log_z,
    floor,
    chosen,
    R,
    log_share,
    T: tl.constexpr,
    T_2: tl.constexpr,
    FIXED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """From its groups, all of a row but the sampled token: that needs the logits of the group chosen here. Grid (R,).

    `point` is the token of a row whose distribution is one token, else -1; `floor` is the log-mass from which a group
    counts.
    """
    row = tl.program_id(0)
    group = tl.arange(0, T_2)
    at = group * R + row
    m = tl.load(mass + at, mask=group < T, other=float("-inf"))
    s = tl.load(spread + at, mask=group < T, other=0.0)
    p = tl.load(peak + at, mask=group < T, other=float("-inf"))
    top, best = tl.max(p, 0, return_indices=True, return_indices_tie_break_left=True)  # pyright: ignore
    some = top > float("-inf")
    token = tl.where(some, tl.load(peak_token + best * R + row), -1)

    # Entropy by the chain rule: H = sum_g q_g (H_g - log q_g), with q_g the share of group g.
    heaviest = tl.where(some, tl.max(m, 0), 0.0)
    log_sum = tl.log(tl.maximum(tl.sum(tl.exp(m - heaviest), 0), 1.0))
    log_q = tl.maximum(m - heaviest - log_sum, NEVER)
    spread_all = tl.sum(tl.exp(log_q) * (s - log_q), 0)
    z = heaviest + log_sum

    one = tl.arange(0, 1)
    g = noise(tl.load(seed + row + one), tl.load(position + row + one), tl.load(step + row + one), GROUPS, one, T_2)
    drawn = tl.argmax(m + tl.reshape(g, (T_2,)), 0, tie_break_left=True)

    certain = tl.where(tl.load(temperature + row) > 0, -1, token)
    if FIXED:
        forced = tl.load(fixed + row).to(tl.int32)
        certain = tl.where(forced >= 0, forced, certain)
        token = tl.where(forced >= 0, forced, token)
    free = some & (certain < 0)
    nothing = (certain < 0) & (some == 0)
    known = tl.where(nothing, float("-inf"), 0.0)
    tl.store(argmax + row, token.to(tl.int64))
    tl.store(sample + row, token.to(tl.int64))  # of a free row, overwritten by `finish`
    tl.store(logprob + row, known)
    tl.store(argmax_logprob + row, tl.where(free, top - z, known))
    tl.store(entropy + row, tl.where(free, tl.maximum(spread_all, 0.0), 0.0))
    tl.store(point + row, certain)
    tl.store(log_z + row, z)
    tl.store(floor + row, tl.where(free, z + log_share, float("inf")))
    tl.store(chosen + row, tl.where(free, drawn, -1))


@triton.jit
def plan(
    mass,
    floor,
    chosen,
    groups,
    count,
    R,
    T: tl.constexpr,
    SPLITS: tl.constexpr,
    PART: tl.constexpr,
    PART_2: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STEP_R: tl.constexpr,
):
    """The groups that count for some row of a block, in ascending order. Grid (row blocks, SPLITS).

    Split s owns the groups s, s + SPLITS, ...: neighbours in the vocabulary are alike in use, so the splits are alike
    in work. groups is (row blocks, SPLITS, PART) int32, count (row blocks, SPLITS) int32.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    group = split + SPLITS * tl.arange(0, PART_2)
    wanted = tl.zeros((PART_2,), tl.int32)
    for first in range(0, BLOCK_R, STEP_R):
        row = block * BLOCK_R + first + tl.arange(0, STEP_R)
        here = (row < R)[:, None] & (group < T)[None, :]
        m = tl.load(mass + group[None, :] * R + row[:, None], mask=here, other=float("-inf"))
        least = tl.load(floor + row, mask=row < R, other=float("inf"))
        pick = tl.load(chosen + row, mask=row < R, other=-1)
        counts = (m >= least[:, None]) | (group[None, :] == pick[:, None])
        wanted = tl.maximum(wanted, tl.max((counts & here).to(tl.int32), 0))
    slot = tl.cumsum(wanted, 0) - 1
    at = block * SPLITS + split
    tl.store(groups + at * PART + slot, group, mask=wanted > 0)
    tl.store(count + at, tl.sum(wanted, 0))


@triton.jit(do_not_specialize=["begin"])
def weigh(
    hidden,
    embedding,
    temperature,
    allowed,
    mass,
    log_z,
    floor,
    chosen,
    groups,
    count,
    weights,
    picked,
    begin,
    R,
    V,
    H: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
    PART: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    G: tl.constexpr,
):
    """Probabilities of one listed group, and the logits for the rows that chose it. Grid (row blocks, SPLITS * SLOTS).

    A row for which the group does not count gets zeros, whatever its neighbours need: its sum depends on itself alone.
    weights is (row blocks, SPLITS, SLOTS, B, G), of the embedding's dtype; picked is (R, G) float32.
    """
    block = tl.program_id(0)
    split = tl.program_id(1) // SLOTS
    slot = tl.program_id(1) % SLOTS
    lists = block * SPLITS + split
    if begin + slot >= tl.load(count + lists):
        return
    group = tl.load(groups + lists * PART + begin + slot)
    local = tl.arange(0, BLOCK_R)
    row = block * BLOCK_R + local
    real = tl.minimum(row, R - 1)
    x = _logits(hidden, embedding, temperature, allowed, real, group, V, H, SOFTCAP, MASKED, WIDE, BLOCK_R, BLOCK_H, G)
    z = tl.load(log_z + real)
    drawn = (tl.load(chosen + real) == group) & (row < R)
    counts = (tl.load(mass + group * R + real) >= tl.load(floor + real)) | drawn
    column = tl.arange(0, G)
    p = tl.where(counts[:, None], tl.exp(x - z[:, None]), 0.0)
    weights += (lists * SLOTS + slot).to(tl.int64) * (BLOCK_R * G)
    tl.store(weights + local[:, None] * G + column[None, :], p.to(weights.dtype.element_ty))
    tl.store(picked + row[:, None] * G + column[None, :], x, mask=drawn[:, None])


@triton.jit(do_not_specialize=["begin"])
def mix(
    weights,
    embedding,
    groups,
    count,
    partial,
    begin,
    R,
    V,
    H: tl.constexpr,
    SPLITS: tl.constexpr,
    PART: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
    G: tl.constexpr,
):
    """Add the listed groups' probabilities times embeddings to partial (SPLITS, R, H) float32.

    Grid (row blocks, H blocks, SPLITS).
    """
    block = tl.program_id(0)
    split = tl.program_id(2)
    lists = block * SPLITS + split
    end = tl.minimum(tl.load(count + lists), begin + SLOTS)
    if (begin > 0) & (begin >= end):
        return
    local = tl.arange(0, BLOCK_R)
    row = block * BLOCK_R + local
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    out = partial + (split * R + row).to(tl.int64)[:, None] * H + n[None, :]
    inside = (row < R)[:, None] & (n < H)[None, :]
    acc = tl.load(out, mask=inside & (begin > 0), other=0.0)
    weights += (lists * SLOTS).to(tl.int64) * (BLOCK_R * G)
    groups += lists * PART + begin
    for i in range((end - begin) * (G // BLOCK_K)):
        slot = i // (G // BLOCK_K)
        k = (i - slot * (G // BLOCK_K)) * BLOCK_K + inner
        group = tl.load(groups + slot)
        p = tl.load(weights + slot * (BLOCK_R * G) + local[:, None] * G + k[None, :])
        token = tl.minimum(k, V - 1 - group * G)  # past the end the probability is 0
        e = tl.load(
            embedding + group.to(tl.int64) * (G * H) + token[:, None] * H + n[None, :], mask=n[None, :] < H, other=0.0
        )
        acc = _dot(p, e, acc, WIDE)
    tl.store(out, acc, mask=inside)


@triton.jit
def finish(
    partial,
    embedding,
    point,
    chosen,
    picked,
    log_z,
    seed,
    position,
    step,
    soft,
    sample,
    logprob,
    R,
    H: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    G: tl.constexpr,
):
    """The sampled token in its group, and the sum of the splits, in order, or the one token's embedding. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.load(chosen + row)
    if group >= 0:
        column = tl.arange(0, G)
        x = tl.load(picked + row * G + column)
        one = tl.arange(0, 1)
        first = group * G + one
        g = noise(tl.load(seed + row + one), tl.load(position + row + one), tl.load(step + row + one), TOKENS, first, G)
        drawn = tl.argmax(x + tl.reshape(g, (G,)), 0, tie_break_left=True)
        tl.store(sample + row, (group * G + drawn).to(tl.int64))
        tl.store(logprob + row, tl.sum(tl.where(column == drawn, x, 0.0), 0) - tl.load(log_z + row))
    token = tl.load(point + row).to(tl.int64)
    for begin in range(0, H, BLOCK_F):
        h = begin + tl.arange(0, BLOCK_F)
        acc = tl.zeros((BLOCK_F,), tl.float32)
        for split in tl.static_range(SPLITS):
            acc += tl.load(partial + (split * R + row) * H + h, mask=h < H, other=0.0)
        one_token = tl.load(embedding + tl.maximum(token, 0) * H + h, mask=h < H, other=0.0).to(tl.float32)
        tl.store(soft + row * H + h, tl.where(token >= 0, one_token, acc).to(soft.dtype.element_ty), mask=h < H)
