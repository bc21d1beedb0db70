"""The denoise head: what a step of text diffusion asks of the logits, never holding rows x vocabulary numbers.

Two ideas carry it. The vocabulary is cut into groups of `GROUP` = 128 neighbours. A first pass reads the embedding once
and keeps four numbers of each row and group: log-mass, entropy within, the largest logit and its token. From these
follow exactly the normaliser, the entropy (chain rule: H = sum_g q_g (H_g - log q_g)), the argmax, and the *group* of
the sampled token. A second pass recomputes the logits of those groups only that weigh something, for the soft embedding
and for the sampled token in its group.

**The sample** is Gumbel-max on two levels, which draws from the softmax exactly: first the group, argmax_g(log mass_g +
noise_g), then the token in it, argmax_v(l_v + noise_v). That takes V / 128 + 128 draws for a row instead of V, at V =
262,144 a 120th, however flat the distribution. `GROUP` is therefore part of what a seed means and the same on every
device. Noise is `rng.gumbel` at (seed, position, step): of group g index g of stream `GROUPS`, of
token v index v of stream `TOKENS`.

**What is skipped**: a group that holds less than skip / T of a row's probability, T the number of groups, adds nothing
to its soft embedding (the kernels still add it if the sample fell into it). So soft is that of a distribution p' with
p - p' >= 0 and sum(p - p') <= skip, no further than skip * max_v |E_v| from the exact one; nothing else is
approximated. Each row decides for itself: what is computed because a neighbour needs it is multiplied by zero. With
fixed block shapes and sums in a fixed order (no atomics) a row's results don't depend on the rest of the batch in any
bit.

**Cost** at R = 256, H = 2816, V = 262,144 in bfloat16 on an H200 (4.3 TB/s, 790 TFLOP/s): the first pass reads E once,
1.48 GB or 0.34 ms, and multiplies for 0.378 TFLOP or 0.48 ms, so it is bound by the matrix units. The second costs, for
the fraction f of (128 rows, group) pairs that count, f * 0.96 ms and f * 2.95 GB from E, most of it out of the L2
cache: little once the rows are confident, but a canvas of pure noise (f = 1) needs 1.44 ms in all. Held beside inputs
and outputs for up to 512 rows at a time: 16 bytes of each row and group, float32 soft embeddings of 6 splits of the
vocabulary, and probabilities of an eighth of the groups, 0.1 GB in all. The goal is 1.2 ms; the numbers here are
arithmetic, no GPU was at hand.

transformers' sampler means the same by its terms: logits are softcapped in float32 and divided by the temperature
(`LinearTemperatureScheduleLogitsProcessor`); argmax, entropy and probabilities are of these. It differs in rounding:
its head rounds logits to the model's dtype before the softcap and once more before the self-conditioning softmax, and
probabilities to that dtype before it mixes embeddings; here all but the last is float32, and the CPU twin keeps that in
float32 as well. It multiplies the soft embedding by the embedding's scale after rounding it to the embedding's dtype;
so `soft` is unscaled and rounded, for the caller to scale.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from moe_kernels import _denoise_head as device_code
from moe_kernels.aot import Case
from moe_kernels.dispatch import backend, expect, launches
from moe_kernels.rng import GUMBEL_MAX, GUMBEL_MIN, gumbel

GROUP = 128
TOKENS, GROUPS = 0, 1  # streams of the generator
SKIP = 2.0**-12

_CPU_ROWS, _CPU_TOKENS = 64, 2048  # fixed, since a matrix product of another shape may round differently
_ROWS = 512  # of one launch: beyond, reading E again costs less than the space
_BLOCK_ROWS = 128
_SPLITS = 6  # 2 row blocks x 22 blocks of H x 6 = 264 programs of `mix`, two for each SM of an H200
_ROUNDS = 8
_OPTIONS: dict[str, Any] = {"num_warps": 8, "num_stages": 3}
_COLDEST = 2.0**-64  # in place of temperature 0; what follows of it for all but the argmax is not used
_NOTHING = -1e30  # a forbidden token's logit: far below all others, but finite, so that differences and 0 * it are


class DenoiseHead(NamedTuple):
    """What `denoise_head` tells of each row."""

    argmax: Tensor  # (R,) int64, the lowest token of the largest logit
    sample: Tensor  # (R,) int64
    entropy: Tensor  # (R,) float32, nats
    logprob: Tensor  # (R,) float32, of the sample
    argmax_logprob: Tensor  # (R,) float32
    soft: Tensor  # (R, H), the embedding's dtype


def denoise_head(
    hidden: Tensor,
    embedding: Tensor,
    *,
    softcap: float | None,
    temperature: Tensor,
    seed: Tensor,
    step: Tensor,
    position: Tensor,
    allowed: Tensor | None = None,
    fixed: Tensor | None = None,
    skip: float = SKIP,
) -> DenoiseHead:
    """Argmax, sample, entropy, log-probabilities and mean embedding of p = softmax(l / temperature).

        l_v = softcap * tanh(hidden . E_v / softcap), -inf if v is not allowed
        entropy = -sum_v p_v log p_v        soft = sum_v p_v E_v, unscaled

    A row of temperature 0 is greedy, the limit where one token has all the probability: sample = argmax, entropy 0,
    log-probabilities 0, soft = E[argmax]. A fixed row is the same with its fixed token, be it allowed or not. A row
    that allows nothing and is not fixed has argmax = sample = -1, entropy 0, log-probabilities -inf and soft 0; values
    are never checked, for that would make the device wait.

    Args:
        hidden: (R, H) float32 or bfloat16, contiguous.
        embedding: (V, H) of the same dtype, contiguous; finite.
        softcap: positive, or None for l = hidden . E_v.
        temperature: (R,) float32, not negative.
        seed: (R,) int64, the request's.
        step: (R,) integers; with seed and position it names the draw.
        position: (R,) integers.
        allowed: (R, ceil(V / 32)) int32, bit v % 32 of word v // 32 for token v; None allows all.
        fixed: (R,) int64, a token or -1; None fixes none.
        skip: the probability that may be missing from soft, at most; 0 for none.

    Raises:
        ValueError: shapes, dtypes or numbers are not as above.
        KernelUnsupported: a tensor is not contiguous.
    """
    chosen = denoise_head_triton if backend("denoise_head", hidden.device) == "triton" else denoise_head_torch
    return chosen(
        hidden, embedding, softcap=softcap, temperature=temperature, seed=seed, step=step, position=position,
        allowed=allowed, fixed=fixed, skip=skip,
    )  # fmt: skip


def denoise_head_torch(
    hidden: Tensor,
    embedding: Tensor,
    *,
    softcap: float | None,
    temperature: Tensor,
    seed: Tensor,
    step: Tensor,
    position: Tensor,
    allowed: Tensor | None = None,
    fixed: Tensor | None = None,
    skip: float = SKIP,
) -> DenoiseHead:
    """Twin of the kernel: one pass over the vocabulary, whose parts are brought together as in flash attention.

    Arguments and results are `denoise_head`'s. The share of a group is taken of its part of the vocabulary, so it may
    only be judged too large, never too small, and `skip` holds.
    """
    _check(hidden, embedding, softcap, temperature, seed, step, position, allowed, fixed, skip)
    if not len(hidden):
        return DenoiseHead(seed, seed, temperature, temperature, temperature, torch.empty_like(hidden))
    vocab = len(embedding)
    scale = (softcap or 1) / temperature.clamp(min=_COLDEST)[:, None]
    x_all = hidden.float() / softcap if softcap else hidden.float() * scale
    rows = list(zip(x_all.split(_CPU_ROWS), scale.split(_CPU_ROWS), strict=True))
    floor = skip / math.ceil(vocab / GROUP)
    seen = None
    for first in range(0, vocab, _CPU_TOKENS):
        part = embedding[first : first + _CPU_TOKENS].float()
        groups = math.ceil(len(part) / GROUP)
        noise = gumbel(seed, position, step, GROUPS, first // GROUP, groups).split(_CPU_ROWS)
        blocks = []
        for i, (x, factor) in enumerate(rows):
            logits = _full(x) @ part.T
            if softcap:
                logits.tanh_().mul_(_full(factor))
            if allowed is not None:
                own = allowed[i * _CPU_ROWS :][:_CPU_ROWS]
                logits[: len(own)].masked_fill_(_forbidden(own, first, len(part)), _NOTHING)
            blocks.append(_see(logits, part, first, _full(noise[i]), floor))
        now = _Seen(*map(torch.cat, zip(*blocks, strict=True)))
        seen = now if seen is None else _merged(seen, now)
    assert seen is not None, "a vocabulary has tokens"
    seen = _Seen(*(tensor[: len(hidden)] for tensor in seen))
    return _result(seen, _draw(seen, seed, position, step), embedding, temperature, fixed)


def _check(
    hidden: Tensor,
    embedding: Tensor,
    softcap: float | None,
    temperature: Tensor,
    seed: Tensor,
    step: Tensor,
    position: Tensor,
    allowed: Tensor | None,
    fixed: Tensor | None,
    skip: float,
) -> None:
    if hidden.dtype not in (torch.float32, torch.bfloat16) or hidden.dtype != embedding.dtype:
        raise ValueError(
            f"expected hidden and embedding both float32 or both bfloat16, got {hidden.dtype} and {embedding.dtype}"
        )
    if hidden.ndim != 2 or embedding.ndim != 2 or hidden.shape[1] != embedding.shape[1] or not embedding.numel():
        raise ValueError(
            f"expected hidden (R, H) and embedding (V, H), got {tuple(hidden.shape)} and {tuple(embedding.shape)}"
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"expected a positive softcap or None, got {softcap}")
    if not 0 <= skip < 1:
        raise ValueError(f"expected skip from 0 to less than 1, got {skip}")
    rows, words = len(hidden), (len(embedding) + 31) // 32
    integers = (torch.int32, torch.int64)
    for name, tensor, shape, dtypes in (
        ("temperature", temperature, (rows,), (torch.float32,)),
        ("seed", seed, (rows,), (torch.int64,)),
        ("step", step, (rows,), integers),
        ("position", position, (rows,), integers),
        ("allowed", allowed, (rows, words), (torch.int32,)),
        ("fixed", fixed, (rows,), (torch.int64,)),
    ):
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype not in dtypes):
            expected = " or ".join(map(str, dtypes))
            raise ValueError(f"expected {name} {shape} {expected}, got {tuple(tensor.shape)} {tensor.dtype}")


def _full(rows: Tensor) -> Tensor:
    """A block of `_CPU_ROWS`, with zeros where there are fewer."""
    missing = _CPU_ROWS - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def _forbidden(allowed: Tensor, first: int, count: int) -> Tensor:
    words = allowed[:, first // 32 : (first + count + 31) // 32, None]
    bits = 1 << torch.arange(32, dtype=torch.int32, device=allowed.device)
    return (words & bits).flatten(1)[:, :count] == 0


class _Seen(NamedTuple):
    """What a part of the vocabulary says of R rows with logits l; all exponentials and logarithms are relative to `top`."""

    top: Tensor  # (R, 1), the largest logit
    argmax: Tensor  # (R,) int64, its token
    total: Tensor  # (R, 1), sum of exp(l - top)
    moment: Tensor  # (R, 1), sum of exp(l - top) * (l - top)
    soft: Tensor  # (R, H), sum of exp(l - top) * embedding
    score: Tensor  # (R, 1), log-mass plus noise of the group that is the sample's
    begin: Tensor  # (R, 1) int64, the first token of that group
    picked: Tensor  # (R, GROUP), its logits, less top


def _see(x: Tensor, part: Tensor, first: int, noise: Tensor, floor: float) -> _Seen:
    """A block's logits x (B, n), which are overwritten, of the tokens from `first`.

    Args:
        x: finite.
        part: (n, H), the tokens' embeddings.
        first: a multiple of GROUP.
        noise: (B, groups), of each group of the tokens.
        floor: the share of this part's probability below which a group adds nothing to `soft`.
    """
    count = x.shape[1]
    if tail := -count % GROUP:
        x = torch.nn.functional.pad(x, (0, tail), value=_NOTHING)
    top, argmax = x.amax(1, keepdim=True), _argmax(x)
    e = x.sub_(top).exp()
    groups = e.view(len(x), -1, GROUP)
    totals = groups.sum(2)  # (B, groups)
    total = totals.sum(1, keepdim=True)
    score, group = totals.log().add_(noise).max(1, keepdim=True)
    place = torch.arange(0, totals.numel(), totals.shape[1], device=x.device).add_(group[:, 0])
    picked = x.view(-1, GROUP).index_select(0, place)
    moment = x.mul_(e).sum(1, keepdim=True)
    if floor and not (counts := totals >= total * floor).all():
        groups.mul_(counts[..., None])
    soft, begin = e[:, :count] @ part, group.mul_(GROUP).add_(first)
    return _Seen(top, argmax.add_(first), total, moment, soft, score, begin, picked)


def _merged(one: _Seen, other: _Seen) -> _Seen:
    """Of two parts of the vocabulary, the first before the other, what both say together."""
    top = torch.maximum(one.top, other.top)
    fall, drop = one.top - top, other.top - top
    left, right = fall.exp(), drop.exp()
    higher, score = one.score + fall, other.score + drop
    later = score > higher
    return _Seen(
        top=top,
        argmax=torch.where(drop[:, 0] > fall[:, 0], other.argmax, one.argmax),
        total=one.total * left + other.total * right,
        moment=(one.moment + one.total * fall) * left + (other.moment + other.total * drop) * right,
        soft=one.soft.mul_(left).addcmul_(other.soft, right),
        score=torch.maximum(higher, score),
        begin=torch.where(later, other.begin, one.begin),
        picked=torch.where(later, other.picked + drop, one.picked + fall),
    )


def _argmax(x: Tensor) -> Tensor:
    """The first of each row's largest, (R, n) -> (R,). On a CPU NumPy's takes a twentieth of the time of torch's."""
    return x.argmax(1) if x.is_cuda else torch.from_numpy(x.numpy(force=True).argmax(1))


def _draw(seen: _Seen, seed: Tensor, position: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's sample and its logit less top, (R,) each: Gumbel-max among the tokens of its group.

    Where four neighbours lie so far below the group's best that no noise could raise them above it, none is drawn: two fifths of a
    group in the first step of the demo model, nine tenths once its rows are confident.
    """
    quads = seen.picked.unflatten(1, (-1, 4))
    row, quad = (quads.amax(2) >= seen.picked.amax(1, keepdim=True) - (GUMBEL_MAX - GUMBEL_MIN)).nonzero(as_tuple=True)
    noise = gumbel(seed[row], position[row], step[row], TOKENS, seen.begin[row, 0] + 4 * quad, 4)
    drawn = torch.full_like(quads, -torch.inf)
    drawn[row, quad] = noise.add_(quads[row, quad])
    column = _argmax(drawn.flatten(1))[:, None]
    return (seen.begin + column)[:, 0], seen.picked.gather(1, column)[:, 0]


def _result(
    seen: _Seen, drawn: tuple[Tensor, Tensor], embedding: Tensor, temperature: Tensor, fixed: Tensor | None
) -> DenoiseHead:
    """The rows' results, with greedy and fixed rows reduced to their token; drawn is `_draw`'s. Writes to both."""
    sample, sampled = drawn
    log_total = seen.total.log()
    entropy = log_total.sub(seen.moment.div_(seen.total))[:, 0].clamp_(min=0)
    logprob, argmax_logprob = sampled.sub_(log_total[:, 0]), log_total[:, 0].neg()
    soft = seen.soft.div_(seen.total).to(embedding.dtype)
    argmax = torch.where(seen.top[:, 0] > _NOTHING, seen.argmax, -1)
    point = torch.where(temperature > 0, -1, argmax)
    if fixed is not None:
        point = torch.where(fixed >= 0, fixed, point)
        argmax = torch.where(fixed >= 0, fixed, argmax)
    certain = point >= 0
    decided = certain | (argmax < 0)
    if decided.any():
        sample = torch.where(decided, point, sample)
        soft.masked_fill_(decided[:, None], 0)
        soft[certain] = embedding[point[certain]]
        entropy.masked_fill_(decided, 0)
        for log_p in (logprob, argmax_logprob):
            log_p.masked_fill_(decided, -torch.inf).masked_fill_(certain, 0)
    return DenoiseHead(argmax, sample, entropy, logprob, argmax_logprob, soft)


@launches
def denoise_head_triton(
    hidden: Tensor,
    embedding: Tensor,
    *,
    softcap: float | None,
    temperature: Tensor,
    seed: Tensor,
    step: Tensor,
    position: Tensor,
    allowed: Tensor | None = None,
    fixed: Tensor | None = None,
    skip: float = SKIP,
) -> DenoiseHead:
    """The kernels; arguments and results are `denoise_head`'s. Nothing waits for the device: fit for a CUDA graph."""
    _check(hidden, embedding, softcap, temperature, seed, step, position, allowed, fixed, skip)
    rows, vocab = len(hidden), len(embedding)
    tensors = {"hidden": hidden, "embedding": embedding, "allowed": allowed, "fixed": fixed}
    for name, tensor in tensors.items():
        contiguous = tensor is None or tensor.is_contiguous()
        expect(contiguous, "denoise_head", f"contiguous {name}", tensor.stride() if tensor is not None else None)

    def per_row(dtype: torch.dtype) -> Tensor:
        return hidden.new_empty(rows, dtype=dtype)

    out = DenoiseHead(
        argmax=per_row(torch.int64),
        sample=per_row(torch.int64),
        entropy=per_row(torch.float32),
        logprob=per_row(torch.float32),
        argmax_logprob=per_row(torch.float32),
        soft=torch.empty_like(hidden),
    )
    rowwise = {
        "hidden": hidden,
        "temperature": temperature.contiguous(),
        "seed": seed.contiguous(),
        "position": position.int().contiguous(),
        "step": step.int().contiguous(),
        "allowed": hidden if allowed is None else allowed,  # never read where there is none
        "fixed": seed if fixed is None else fixed,
        **out._asdict(),
    }
    constants = _constants(hidden, embedding, softcap, masked=allowed is not None, fixed=fixed is not None)
    log_share = math.log(skip / math.ceil(vocab / GROUP)) if skip else -math.inf
    common = constants | {"embedding": embedding, "V": vocab, "log_share": log_share}
    for first in range(0, rows, _ROWS):
        _launch(common | {name: tensor[first : first + _ROWS] for name, tensor in rowwise.items()})
    return out


def _constants(
    hidden: Tensor, embedding: Tensor, softcap: float | None, *, masked: bool, fixed: bool
) -> dict[str, Any]:
    """What the kernels are compiled for; nothing here may depend on the number of rows."""
    vocab, width = embedding.shape
    groups = math.ceil(vocab / GROUP)
    part = math.ceil(groups / _SPLITS)
    line = 128 // hidden.element_size()  # of the inner dimension of a product: 96 KiB of shared memory in three stages
    return {
        "H": width,
        "SOFTCAP": float(softcap or 0),
        "MASKED": masked,
        "FIXED": fixed,
        "WIDE": knobs.runtime.interpret,
        "G": GROUP,
        "T": groups,
        "T_2": max(triton.next_power_of_2(groups), 4),
        "SPLITS": _SPLITS,
        "PART": part,
        "PART_2": triton.next_power_of_2(part),
        "SLOTS": math.ceil(part / _ROUNDS),
        "TOKENS": TOKENS,
        "GROUPS": GROUPS,
        "BLOCK_R": _BLOCK_ROWS,
        "STEP_R": 8,
        "BLOCK_H": line,
        "BLOCK_K": line,
        "BLOCK_N": 128,
        "BLOCK_F": 1024,
    }


def _launch(values: dict[str, Any]) -> None:
    """Run all kernels for up to `_ROWS` rows; each takes the values that are named as its parameters are."""
    hidden, groups, part, slots = (values[name] for name in ("hidden", "T", "PART", "SLOTS"))
    rows, width = hidden.shape
    blocks = math.ceil(rows / values["BLOCK_R"])

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return hidden.new_empty(size, dtype=dtype)

    values = values | {
        "R": rows,
        "mass": empty(groups, rows),
        "spread": empty(groups, rows),
        "peak": empty(groups, rows),
        "peak_token": empty(groups, rows, dtype=torch.int32),
        "log_z": empty(rows),
        "floor": empty(rows),
        "point": empty(rows, dtype=torch.int32),
        "chosen": empty(rows, dtype=torch.int32),
        "picked": empty(rows, GROUP),
        "groups": empty(blocks, _SPLITS, part, dtype=torch.int32),
        "count": empty(blocks, _SPLITS, dtype=torch.int32),
        "weights": empty(blocks, _SPLITS, slots, values["BLOCK_R"], GROUP, dtype=hidden.dtype),
        "partial": empty(_SPLITS, rows, width),
    }

    def run(kernel: Any, *grid: int) -> None:
        kernel[grid](**{name: values[name] for name in kernel.arg_names}, **_OPTIONS)

    run(device_code.scan, blocks, groups)
    run(device_code.choose, rows)
    run(device_code.plan, blocks, _SPLITS)
    for begin in range(0, part, slots):
        values["begin"] = begin
        run(device_code.weigh, blocks, _SPLITS * slots)
        run(device_code.mix, blocks, math.ceil(width / values["BLOCK_N"]), _SPLITS)
    run(device_code.finish, rows)


def kernels_to_compile() -> list[Case]:
    """Every kernel for DiffusionGemma's head, in bfloat16; `scan` and `weigh` with and without masks."""
    meta = torch.empty(262_144, 2816, dtype=torch.bfloat16, device="meta")
    types = {
        "*bf16": "hidden embedding weights soft",
        "*fp32": "temperature mass spread peak log_z floor picked partial entropy logprob argmax_logprob",
        "*i32": "position step allowed peak_token point chosen groups count",
        "*i64": "seed fixed argmax sample",
        "i32": "R V begin",
        "fp32": "log_share",
    }
    signature = {name: kind for kind, names in types.items() for name in names.split()}
    kernels = ("scan", "choose", "plan", "weigh", "mix", "finish")
    cases = []
    for name, masked in [(name, False) for name in kernels] + [("scan", True), ("weigh", True)]:
        constants = _constants(meta, meta, 30.0, masked=masked, fixed=True)
        kernel = getattr(device_code, name)
        own = {key: constants[key] for key in kernel.arg_names if key in constants}
        kinds = {key: "constexpr" if key in own else signature[key] for key in kernel.arg_names}
        label = f"denoise_head.{name}" + (", masked" if masked else "")
        cases.append(Case(label, kernel, kinds, own, aligned=("R", "V"), **_OPTIONS))
    return cases
