"""Kernels of `norms`. Rows and heads are kept in registers as float32, rounded where transformers' modules round."""
# pyright: basic

import triton
import triton.language as tl


@triton.jit
def _row(pointer, offset, column, width):
    """A row of the hidden states."""
    return tl.load(pointer + offset + column, mask=column < width, other=0.0).to(tl.float32)


@triton.jit
def _rounded(x, like):
    """As if x had been stored where `like` points, and loaded again."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _norm(x, weight, column, width, eps, like):
    x *= tl.rsqrt(tl.sum(x * x) / width + eps)
    if weight is not None:
        x *= tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    return _rounded(x, like)


@triton.jit
def rms_norm_kernel(x, weight, residual, out, width, eps, BLOCK: tl.constexpr):
    column, offset = tl.arange(0, BLOCK), tl.program_id(0).to(tl.int64) * width
    y = _norm(_row(x, offset, column, width), weight, column, width, eps, out)
    if residual is not None:
        y += _row(residual, offset, column, width)
    tl.store(out + offset + column, y, mask=column < width)


@triton.jit
def after_attention_kernel(
    residual, x, post_attention, pre_mlp, pre_experts, router_scale, hidden, mlp, experts, router, width, eps, root,
    BLOCK: tl.constexpr,
):  # fmt: skip
    column, offset = tl.arange(0, BLOCK), tl.program_id(0).to(tl.int64) * width
    inside = column < width
    y = _norm(_row(x, offset, column, width), post_attention, column, width, eps, hidden)
    y = _rounded(_row(residual, offset, column, width) + y, hidden)
    tl.store(hidden + offset + column, y, mask=inside)
    tl.store(mlp + offset + column, _norm(y, pre_mlp, column, width, eps, mlp), mask=inside)
    tl.store(experts + offset + column, _norm(y, pre_experts, column, width, eps, experts), mask=inside)
    scale = tl.load(router_scale + column, mask=inside, other=0.0).to(tl.float32)
    y = _rounded(_norm(y, None, column, width, eps, router) * scale, router)
    tl.store(router + offset + column, y * root, mask=inside)


@triton.jit(do_not_specialize=["scalar_stride"])
def after_experts_kernel(
    residual, mlp, experts, post_mlp, post_experts, post, next_weight, layer_scalar, hidden, normed, width, eps,
    scalar_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    column, offset = tl.arange(0, BLOCK), row.to(tl.int64) * width
    y = _norm(_row(mlp, offset, column, width), post_mlp, column, width, eps, hidden)
    y += _norm(_row(experts, offset, column, width), post_experts, column, width, eps, hidden)
    y = _norm(_rounded(y, hidden), post, column, width, eps, hidden)
    y = _rounded(_row(residual, offset, column, width) + y, hidden)
    y = _rounded(y * tl.load(layer_scalar + row * scalar_stride).to(tl.float32), hidden)
    tl.store(hidden + offset + column, y, mask=column < width)
    tl.store(normed + offset + column, _norm(y, next_weight, column, width, eps, normed), mask=column < width)


@triton.jit
def _head(x, weight, cos, sin, out, size, eps, HALF: tl.constexpr):
    """One head; cos and sin are None if it is not turned."""
    column = tl.arange(0, HALF)
    half = size // 2
    inside = column < half
    first = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + half + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / size + eps)
    first *= scale
    second *= scale
    if weight is not None:
        first *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        second *= tl.load(weight + half + column, mask=inside, other=0.0).to(tl.float32)
    first, second = _rounded(first, out), _rounded(second, out)
    if cos is not None:
        cos1 = _rounded(tl.load(cos + column, mask=inside, other=0.0).to(tl.float32), out)
        cos2 = _rounded(tl.load(cos + half + column, mask=inside, other=0.0).to(tl.float32), out)
        sin1 = _rounded(tl.load(sin + column, mask=inside, other=0.0).to(tl.float32), out)
        sin2 = _rounded(tl.load(sin + half + column, mask=inside, other=0.0).to(tl.float32), out)
        turned = _rounded(first * cos1, out) - _rounded(second * sin1, out)
        second = _rounded(second * cos2, out) + _rounded(first * sin2, out)
        first = turned
    tl.store(out + column, first, mask=inside)
    tl.store(out + half + column, second, mask=inside)


@triton.jit
def heads_kernel(
    q, k, v, q_weight, k_weight, cos, sin, q_out, k_out, v_out, q_stride, k_stride, v_stride, q_heads, k_heads, size,
    eps, HALF: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cos += token * size
    sin += token * size
    if head < q_heads:
        to = q_out + (token * q_heads + head) * size
        _head(q + token * q_stride + head * size, q_weight, cos, sin, to, size, eps, HALF)
    elif head < q_heads + k_heads:
        head -= q_heads
        to = k_out + (token * k_heads + head) * size
        _head(k + token * k_stride + head * size, k_weight, cos, sin, to, size, eps, HALF)
    elif v is not None:
        head -= q_heads + k_heads
        to = v_out + (token * k_heads + head) * size
        _head(v + token * v_stride + head * size, None, None, None, to, size, eps, HALF)
