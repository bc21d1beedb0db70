"""The experts' MLP on block-scaled FP4 matrix units: both operands stay packed, and the unit applies their block scales.

NATIVE is false in Triton's interpreter, which lacks `tl.dot_scaled`: there the same numbers are decoded and multiplied in float32.
"""

import triton
import triton.language as tl

from moe_kernels._moe import combine, store_inner, tile_of, zero_arrivals


@triton.jit
def quantize_rows_kernel(
    x,  # (R, K)
    packed,  # (R, K/2) uint8, low nibble first
    scales,  # (R, K/16) uint8, E4M3
    factors,  # (R,) float32: value = code * scale * factor
    K: tl.constexpr,
    COLUMNS: tl.constexpr,  # K rounded up to a power of two
):
    """One row a program: factor = max|x| / (6 * 448), scale = max|block| / 6 / factor rounded to E4M3, code = x / scale / factor."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, COLUMNS)
    value = tl.reshape(tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32), (COLUMNS // 16, 16))
    largest = tl.max(tl.abs(value), 1)
    factor = tl.div_rn(tl.max(largest, 0), 2688.0)
    factor = tl.where(factor == 0.0, 1.0, factor)
    wanted = tl.div_rn(largest, factor * 6.0)
    wanted = tl.clamp(tl.where(wanted == 0.0, 1.0, wanted), 0.001953125, 448.0)
    # E4M3 in integers, to nearest and ties to even: chips before sm_89 and the interpreter have no such conversion.
    bits = wanted.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    subnormal = ((wanted + 16384.0) - 16384.0) * 512.0
    byte = tl.where(wanted < 0.015625, subnormal.to(tl.int32), normal)
    mantissa, exponent = (byte & 7).to(tl.float32), byte >> 3
    power = ((exponent + 120) << 23).to(tl.float32, bitcast=True)
    scale = tl.where(exponent == 0, mantissa * 0.001953125, power * (1.0 + mantissa * 0.125))
    scaled = tl.div_rn(tl.abs(value), (scale * factor)[:, None])
    code = (scaled > 0.25).to(tl.int32) + (scaled >= 0.75) + (scaled > 1.25) + (scaled >= 1.75)
    code += (scaled > 2.5).to(tl.int32) + (scaled >= 3.5) + (scaled > 5.0)
    code |= tl.where(value < 0.0, 8, 0)
    low, high = tl.split(tl.reshape(code, (COLUMNS // 2, 2)))
    pairs, groups = tl.arange(0, COLUMNS // 2), tl.arange(0, COLUMNS // 16)
    tl.store(packed + row * (K // 2) + pairs, (low | (high << 4)).to(tl.uint8), mask=pairs < K // 2)
    tl.store(scales + row * (K // 16) + groups, byte.to(tl.uint8), mask=groups < K // 16)
    tl.store(factors + row, factor)


@triton.jit
def _decoded(packed, scales, ROWS: tl.constexpr, BK: tl.constexpr):
    """(ROWS, BK/2) uint8 and (ROWS, BK/16) E4M3 -> (ROWS, BK) float32."""
    code = tl.join(packed & 0xF, packed >> 4).to(tl.int32)
    exponent = (code >> 1) & 3
    half = (code & 1).to(tl.float32) * 0.5
    value = tl.where(exponent == 0, half, (1.0 + half) * ((exponent + 126) << 23).to(tl.float32, bitcast=True))
    value = tl.reshape(tl.where((code & 8) != 0, -value, value), (ROWS, BK // 16, 16))
    return tl.reshape(value * scales.to(tl.float32)[:, :, None], (ROWS, BK))


@triton.jit
def _scaled_dot(
    acc, weights, weight_scales, x, x_scales, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, NATIVE: tl.constexpr
):
    """Add W x^T to acc (BN, BM): weights (BN, BK/2), x (BK/2, BM), scales (BN, BK/16) and (BM, BK/16)."""
    if NATIVE:
        return tl.dot_scaled(weights, weight_scales, "e2m1", x, x_scales, "e2m1", acc)
    w = _decoded(weights, weight_scales, BN, BK)
    return tl.dot(w, tl.trans(_decoded(tl.trans(x), x_scales, BM, BK)), acc)


@triton.jit(do_not_specialize=["arrivals_size"])
def gate_up_fp4_kernel(
    x,  # (T, HIDDEN/2) uint8
    x_scales,  # (T, HIDDEN/16) E4M3
    x_factors,  # (T,) float32
    weights,  # (E, INNER/BN, HIDDEN/BK, 2*BN, BK/2) uint8, BN rows of gate, then of up
    scales,  # (E, INNER/BN, HIDDEN/BK, 2*BN, BK/16) E4M3
    gate_scale,  # (E,) float32
    up_scale,  # (E,) float32
    order,  # (T*K,) int32
    offsets,  # (E + 1,) int32
    inner,  # (T*K, INNER) bfloat16, sorted rows
    arrivals,
    arrivals_size,
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
    zero_arrivals(arrivals, arrivals_size)
    expert, first, end = tile_of(offsets, tile, E, EXPERTS, BM)
    if expert < 0:
        return
    rows = first + tl.arange(0, BM)
    token = (tl.load(order + rows, mask=rows < end, other=0) // TOP_K).to(tl.int64)
    x += token[None, :] * (HIDDEN // 2) + tl.arange(0, BK // 2)[:, None]
    x_scales += token[:, None] * (HIDDEN // 16) + tl.arange(0, BK // 16)[None, :]
    block = (expert * (INNER // BN) + n).to(tl.int64) * (HIDDEN // BK)
    lines = tl.arange(0, 2 * BN)[:, None]
    weights += block * (BN * BK) + lines * (BK // 2) + tl.arange(0, BK // 2)[None, :]
    scales += block * (BN * BK // 8) + lines * (BK // 16) + tl.arange(0, BK // 16)[None, :]
    acc = tl.zeros((2 * BN, BM), tl.float32)
    for _ in range(HIDDEN // BK):
        acc = _scaled_dot(acc, tl.load(weights), tl.load(scales), tl.load(x), tl.load(x_scales), 2 * BN, BM, BK, NATIVE)
        x += BK // 2
        x_scales += BK // 16
        weights += BN * BK
        scales += BN * BK // 8
    gate, up = tl.split(tl.permute(tl.reshape(acc, (2, BN, BM)), (1, 2, 0)))
    factor = tl.load(x_factors + token)[None, :]
    gate *= tl.load(gate_scale + expert) * factor
    up *= tl.load(up_scale + expert) * factor
    store_inner(gate, up, inner, rows, end, n, INNER, BN)


@triton.jit(do_not_specialize=["T"])
def down_fp4_kernel(
    x,  # (T*K, INNER/2) uint8, sorted rows
    x_scales,  # (T*K, INNER/16) E4M3
    x_factors,  # (T*K,) float32
    weights,  # (E, HIDDEN/BN, INNER/BK, BN, BK/2) uint8
    scales,  # (E, HIDDEN/BN, INNER/BK, BN, BK/16) E4M3
    down_scale,  # (E,) float32
    order,  # (T*K,) int32
    offsets,  # (E + 1,) int32
    routed,  # (T*K,) float32, the routing weight of each slot
    partial,  # (T*K, HIDDEN) bfloat16
    arrivals,  # (HIDDEN/BN, T) int32, zero
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
    row = tl.where(valid, rows, first).to(tl.int64)
    x += row[None, :] * (INNER // 2) + tl.arange(0, BK // 2)[:, None]
    x_scales += row[:, None] * (INNER // 16) + tl.arange(0, BK // 16)[None, :]
    block = (expert * (HIDDEN // BN) + n).to(tl.int64) * (INNER // BK)
    lines = tl.arange(0, BN)[:, None]
    weights += block * (BN * BK // 2) + lines * (BK // 2) + tl.arange(0, BK // 2)[None, :]
    scales += block * (BN * BK // 16) + lines * (BK // 16) + tl.arange(0, BK // 16)[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    for _ in range(INNER // BK):
        acc = _scaled_dot(acc, tl.load(weights), tl.load(scales), tl.load(x), tl.load(x_scales), BN, BM, BK, NATIVE)
        x += BK // 2
        x_scales += BK // 16
        weights += BN * BK // 2
        scales += BN * BK // 16
    slot = tl.load(order + rows, mask=valid, other=0)
    factor = tl.load(x_factors + row) * tl.load(routed + slot, mask=valid, other=0.0)
    acc *= tl.load(down_scale + expert) * factor[None, :]
    columns = n * BN + tl.arange(0, BN)[:, None]
    combine(acc, slot, valid, partial, arrivals + n * T, out, columns, HIDDEN, BN, BM, TOP_K)
