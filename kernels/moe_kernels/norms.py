"""What stands between a layer's matrix products: RMSNorm, residual sums and rotary embedding, fused to few launches.

A decoder layer of DiffusionGemma takes eight norms of the hidden states and three of heads. Here that is three
launches: `qk_norm_rope`, `norms_after_attention`, and `norms_after_experts`, which also takes the next layer's first
norm (after the last layer, the model's final one); only the first layer needs `rms_norm`.

Everything is computed in float32 and rounded to the input's dtype where transformers' modules round, so results differ
from theirs only where a sum taken in another order, or a GPU's approximate root, falls on the other side of a rounding.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from moe_kernels._norms import after_attention_kernel, after_experts_kernel, heads_kernel, rms_norm_kernel
from moe_kernels.aot import Case
from moe_kernels.dispatch import backend, expect, launches

MAX_WIDTH = 16384  # a row stays in registers


class AttentionNorms(NamedTuple):
    """The weights of `norms_after_attention`, (H,) each."""

    post_attention: Tensor
    pre_mlp: Tensor
    pre_experts: Tensor
    router_scale: Tensor


class AfterAttention(NamedTuple):
    """The hidden states after attention and what three modules read of them, all (..., H)."""

    hidden: Tensor
    mlp: Tensor
    experts: Tensor
    router: Tensor


class ExpertsNorms(NamedTuple):
    """The weights of `norms_after_experts`, (H,) each."""

    post_mlp: Tensor
    post_experts: Tensor
    post: Tensor
    next: Tensor


class AfterExperts(NamedTuple):
    """The layer's output and the next layer's normed input, both (..., H)."""

    hidden: Tensor
    normed: Tensor


class Heads(NamedTuple):
    """Queries, keys and values ready for attention, each (..., heads, D) and contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor | None


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, residual: Tensor | None = None) -> Tensor:
    """Root-mean-square norm, on request added to a residual.

    y = x / sqrt(mean(x^2) + eps) * weight [+ residual]

    Args:
        x: (..., H), any float dtype.
        weight: (H,), any float dtype, or None for ones.
        eps: added to the mean square.
        residual: like x; the norm is rounded before it is added.

    Raises:
        ValueError: shapes or dtypes don't agree.
        KernelUnsupported: H is over 16,384 on a GPU.

    Source: `DiffusionGemmaRMSNorm` in transformers.
    """
    _check(x, {"residual": residual}, {"weight": weight})
    chosen = rms_norm_triton if backend("rms_norm", x.device) == "triton" else rms_norm_torch
    return chosen(x, weight, eps, residual)


def rms_norm_torch(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, residual: Tensor | None = None
) -> Tensor:
    """Twin of `rms_norm`."""
    wide = x.float()
    normed = wide * _inverse_root(wide, eps)
    if weight is not None:
        normed.mul_(weight)
    normed = normed.type_as(x)
    return normed if residual is None else normed.add_(residual)


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of each row of float32."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # squared again it is still cheaper than a mean
    return torch.addcmul(_number(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt_()


@cache
def _number(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # others may want gradients later
        return torch.tensor([value], device=device)


@launches
def rms_norm_triton(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, residual: Tensor | None = None
) -> Tensor:
    """Kernel of `rms_norm`: a program a row."""
    out = _empty_like(x)
    _launch(rms_norm_kernel, (x, weight, residual), (out,), eps)
    return out


def norms_after_attention(residual: Tensor, x: Tensor, weights: AttentionNorms, eps: float = 1e-6) -> AfterAttention:
    """Close the attention block and open the MLP, the experts and the router.

    hidden = residual + norm(x) * post_attention
    mlp = norm(hidden) * pre_mlp; experts = norm(hidden) * pre_experts; router = norm(hidden) * router_scale / sqrt(H)

    Args:
        residual: (..., H), any float dtype: the layer's input.
        x: like residual: what the attention put out.
        weights: any float dtype.
        eps: of every norm.

    Raises:
        ValueError: shapes or dtypes don't agree.
        KernelUnsupported: H is over 16,384 on a GPU.

    Source: `DiffusionGemmaDecoderTextLayer` and `DiffusionGemmaTextRouter` in transformers.
    """
    _check(residual, {"x": x}, weights._asdict())
    on_gpu = backend("norms_after_attention", residual.device) == "triton"
    chosen = norms_after_attention_triton if on_gpu else norms_after_attention_torch
    return chosen(residual, x, weights, eps)


def norms_after_attention_torch(
    residual: Tensor, x: Tensor, weights: AttentionNorms, eps: float = 1e-6
) -> AfterAttention:
    """Twin of `norms_after_attention`."""
    hidden = rms_norm_torch(x, weights.post_attention, eps, residual)
    wide = hidden.float()
    normed = wide * _inverse_root(wide, eps)
    mlp, experts = (normed.mul(weight).type_as(x) for weight in (weights.pre_mlp, weights.pre_experts))
    router = normed.type_as(x).mul_(weights.router_scale).mul_(x.shape[-1] ** -0.5)
    return AfterAttention(hidden, mlp, experts, router)


@launches
def norms_after_attention_triton(
    residual: Tensor, x: Tensor, weights: AttentionNorms, eps: float = 1e-6
) -> AfterAttention:
    """Kernel of `norms_after_attention`: a program a row."""
    out = AfterAttention(*(_empty_like(residual) for _ in range(4)))
    _launch(after_attention_kernel, (residual, x, *weights), out, eps, residual.shape[-1] ** -0.5)
    return out


def norms_after_experts(
    residual: Tensor, mlp: Tensor, experts: Tensor, weights: ExpertsNorms, layer_scalar: Tensor, eps: float = 1e-6
) -> AfterExperts:
    """Close the layer and take the next one's first norm.

    hidden = (residual + norm(norm(mlp) * post_mlp + norm(experts) * post_experts) * post) * layer_scalar
    normed = norm(hidden) * next

    Args:
        residual: (..., H), any float dtype: the hidden states after attention.
        mlp: like residual: what the dense MLP put out.
        experts: like residual: what the experts put out.
        weights: any float dtype.
        layer_scalar: one number or one for each row, shape (...), on the device.
        eps: of every norm.

    Raises:
        ValueError: shapes or dtypes don't agree.
        KernelUnsupported: H is over 16,384 on a GPU.

    Source: `DiffusionGemmaDecoderTextLayer` in transformers.
    """
    _check(residual, {"mlp": mlp, "experts": experts}, weights._asdict())
    if layer_scalar.numel() != 1 and layer_scalar.shape != residual.shape[:-1]:
        expected = f"one number or {tuple(residual.shape[:-1])} as layer_scalar"
        raise ValueError(f"expected {expected}, got {tuple(layer_scalar.shape)}")
    on_gpu = backend("norms_after_experts", residual.device) == "triton"
    chosen = norms_after_experts_triton if on_gpu else norms_after_experts_torch
    return chosen(residual, mlp, experts, weights, layer_scalar, eps)


def norms_after_experts_torch(
    residual: Tensor, mlp: Tensor, experts: Tensor, weights: ExpertsNorms, layer_scalar: Tensor, eps: float = 1e-6
) -> AfterExperts:
    """Twin of `norms_after_experts`."""
    both = rms_norm_torch(mlp, weights.post_mlp, eps, rms_norm_torch(experts, weights.post_experts, eps))
    scalar = layer_scalar if layer_scalar.numel() == 1 else layer_scalar[..., None]
    hidden = rms_norm_torch(both, weights.post, eps, residual).mul_(scalar)
    return AfterExperts(hidden, rms_norm_torch(hidden, weights.next, eps))


@launches
def norms_after_experts_triton(
    residual: Tensor, mlp: Tensor, experts: Tensor, weights: ExpertsNorms, layer_scalar: Tensor, eps: float = 1e-6
) -> AfterExperts:
    """Kernel of `norms_after_experts`: a program a row."""
    out = AfterExperts(_empty_like(residual), _empty_like(residual))
    stride = int(layer_scalar.numel() != 1)
    _launch(after_experts_kernel, (residual, mlp, experts, *weights, layer_scalar), out, eps, stride)
    return out


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6,
    v: Tensor | None = None,
) -> Heads:  # fmt: skip
    """Norm each head of q and k and turn it by its position; norm v, without a weight.

    y = norm(x) * weight; (y1, y2) -> (y1 * cos1 - y2 * sin1, y2 * cos2 + y1 * sin2), where 1 and 2 are the halves of D

    Args:
        q: (..., N, D), any float dtype. Tokens may lie apart, so slices of one product for q, k and v are not copied.
        k: (..., M, D).
        q_weight: (D,).
        k_weight: (D,).
        cos: (..., D) as transformers computes it, rounded to q's dtype as it does; a "proportional" embedding has 1
            where nothing turns.
        sin: like cos, with 0 where nothing turns.
        eps: of every norm.
        v: like k, or None. A layer without values of its own passes k.

    Raises:
        ValueError: shapes or dtypes don't agree, or D is odd.
        KernelUnsupported: D is over 16,384 on a GPU.

    Source: `DiffusionGemmaDecoderTextAttention` and `apply_rotary_pos_emb` in transformers.
    """
    _check_heads(q, k, v, {"q_weight": q_weight, "k_weight": k_weight}, {"cos": cos, "sin": sin})
    chosen = qk_norm_rope_triton if backend("qk_norm_rope", q.device) == "triton" else qk_norm_rope_torch
    return chosen(q, k, q_weight, k_weight, cos, sin, eps, v)


def qk_norm_rope_torch(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6,
    v: Tensor | None = None,
) -> Heads:  # fmt: skip
    """Twin of `qk_norm_rope`."""
    first, half = q.shape[-2], q.shape[-1] // 2  # heads of q, all before those of k
    both = first + k.shape[-2]
    wide = torch.cat((q, k) if v is None else (q, k, v), dim=-2).float()  # for few tokens it is operations that cost
    wide.mul_(_inverse_root(wide, eps))
    wide[..., :first, :].mul_(q_weight)
    wide[..., first:both, :].mul_(k_weight)
    normed = wide.type_as(q)
    x = normed[..., :both, :]
    across = x.roll(half, dims=-1).mul_(sin.to(q.dtype).unsqueeze(-2))
    across[..., :half].neg_()
    x.mul_(cos.to(q.dtype).unsqueeze(-2))
    return Heads(
        x[..., :first, :] + across[..., :first, :],
        x[..., first:, :] + across[..., first:, :],
        None if v is None else normed[..., both:, :].contiguous(),
    )


@launches
def qk_norm_rope_triton(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6,
    v: Tensor | None = None,
) -> Heads:  # fmt: skip
    """Kernel of `qk_norm_rope`: a program a head."""
    size = q.shape[-1]
    expect(size <= MAX_WIDTH, "qk_norm_rope", f"heads of at most {MAX_WIDTH}", size)
    out = Heads(_empty_like(q), _empty_like(k), None if v is None else _empty_like(v))
    by_token = [None if x is None else _by_token(x) for x in (q, k, v)]
    strides = [0 if x is None else x.stride(0) for x in by_token]
    tables = [x.contiguous() for x in (q_weight, k_weight, cos, sin)]
    heads = q.shape[-2] + k.shape[-2] * (1 if v is None else 2)
    grid = (q.shape[:-2].numel(), heads)
    if all(grid):
        arguments: tuple[Any, ...] = (*by_token, *tables, *out, *strides, q.shape[-2], k.shape[-2], size, eps)
        heads_kernel[grid](*arguments, **_head_options(size))
    return out


def _check(x: Tensor, rows: dict[str, Tensor | None], vectors: dict[str, Tensor | None]) -> None:
    if not x.is_floating_point() or x.ndim < 1:
        raise ValueError(f"expected rows (..., H) of a float dtype, got {tuple(x.shape)} of {x.dtype}")
    for name, row in rows.items():
        if row is not None and (row.shape != x.shape or row.dtype != x.dtype):
            raise ValueError(f"expected {name} {tuple(x.shape)} of {x.dtype}, got {tuple(row.shape)} of {row.dtype}")
    for name, vector in vectors.items():
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"expected {name} ({x.shape[-1]},), got {tuple(vector.shape)}")


def _check_heads(q: Tensor, k: Tensor, v: Tensor | None, weights: dict[str, Tensor], tables: dict[str, Tensor]) -> None:
    if q.ndim < 2 or q.shape[-1] % 2 or not q.is_floating_point():
        raise ValueError(f"expected q (..., N, D) of a float dtype, D even, got {tuple(q.shape)} of {q.dtype}")
    *tokens, _, size = q.shape
    for name, x in {"k": k, "v": v}.items():
        if x is not None and (x.dtype != q.dtype or [*x.shape[:-2], x.shape[-1]] != [*tokens, size]):
            raise ValueError(f"expected {name} {(*tokens, 'M', size)} of {q.dtype}, got {tuple(x.shape)} of {x.dtype}")
    if v is not None and v.shape != k.shape:
        raise ValueError(f"expected v {tuple(k.shape)}, got {tuple(v.shape)}")
    for kind, shape in ((weights, (size,)), (tables, (*tokens, size))):
        for name, x in kind.items():
            if x.shape != shape:
                raise ValueError(f"expected {name} {shape}, got {tuple(x.shape)}")


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _by_token(x: Tensor) -> Tensor:
    """(T, N, D) with each token's heads in one piece, a copy only if they don't lie so."""
    x = x.reshape(-1, *x.shape[-2:])
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _launch(kernel: Any, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...], *numbers: float) -> None:
    """A program a row of the last dimension."""
    out = outputs[0]
    width = out.shape[-1]
    expect(width <= MAX_WIDTH, kernel.__name__, f"rows of at most {MAX_WIDTH}", width)
    rows = out.shape[:-1].numel()
    if rows and width:
        given = (None if x is None else x.contiguous() for x in inputs)
        kernel[(rows,)](*given, *outputs, width, *numbers, **_row_options(width))


def _row_options(width: int) -> dict[str, Any]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def _head_options(size: int) -> dict[str, Any]:
    half = triton.next_power_of_2(size // 2)
    return {"HALF": half, "num_warps": min(max(half // 256, 1), 16)}


def kernels_to_compile() -> list[Case]:
    """Hidden size 2816; heads of 256 and of 512."""
    rows = _row_options(2816)
    return [
        _case("rms_norm", rms_norm_kernel, rows),
        _case("norms_after_attention", after_attention_kernel, rows),
        _case("norms_after_experts", after_experts_kernel, rows),
        _case("qk_norm_rope, heads of 256", heads_kernel, _head_options(256)),
        _case("qk_norm_rope, heads of 512", heads_kernel, _head_options(512)),
    ]


def _case(name: str, kernel: Any, options: dict[str, Any]) -> Case:
    constants = {key: value for key, value in options.items() if key != "num_warps"}
    strides = ("q_stride", "k_stride", "v_stride")
    kinds = dict.fromkeys(constants, "constexpr") | {"eps": "fp32", "root": "fp32"}
    kinds |= dict.fromkeys((*strides, "scalar_stride", "q_heads", "k_heads", "width", "size"), "i32")
    signature = {argument: kinds.get(argument, "*bf16") for argument in kernel.arg_names}
    aligned = tuple(argument for argument in (*strides, "width", "size") if argument in signature)
    return Case(name, kernel, signature, constants, num_warps=options["num_warps"], aligned=aligned)
