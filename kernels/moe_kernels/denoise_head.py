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
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from moe_kernels import _denoise_head as device_code
from moe_kernels.aot import Case
from moe_kernels.dispatch import backend, expect, launches
from moe_kernels.rng import gumbel

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


Done = Callable[[slice, Tensor, Tensor], bool]  # of rows, given their argmax and entropy: nothing is drawn for them


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
    done: Done | None = None,
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
        done: spares a CPU what nobody will read. Where the vocabulary is small, it is asked for each block of rows, given their
            argmax and entropy as they are before greedy and fixed rows are seen to; if it says True, their sample is their argmax and
            their soft 0.

    Raises:
        ValueError: shapes, dtypes or numbers are not as above.
        KernelUnsupported: a tensor is not contiguous.
    """
    options: dict[str, Any] = {
        "softcap": softcap,
        "temperature": temperature,
        "seed": seed,
        "step": step,
        "position": position,
        "allowed": allowed,
        "fixed": fixed,
        "skip": skip,
    }
    if backend("denoise_head", hidden.device) == "triton":
        return denoise_head_triton(hidden, embedding, **options)
    return denoise_head_torch(hidden, embedding, **options, done=done)


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
    done: Done | None = None,
) -> DenoiseHead:
    """Twin of the kernel: one pass over the vocabulary, with a running normaliser like flash attention's.

    Arguments and results are `denoise_head`'s. The share of a group is taken of what has been seen so far, so it may
    only be judged too large, never too small, and `skip` holds.
    """
    _check(hidden, embedding, softcap, temperature, seed, step, position, allowed, fixed, skip)
    rows, vocab = len(hidden), len(embedding)
    padded = rows + -rows % _CPU_ROWS
    scale = (softcap or 1) / temperature.clamp(min=_COLDEST)
    x_all = hidden.float() / softcap if softcap else hidden.float() * scale[:, None]
    x_all, scale = _pad(x_all, padded), _pad(scale[:, None], padded)
    by_row = (x_all, scale, *(_pad(key, padded) for key in (seed, position, step)))
    blocks = [_Block(x, scale, key) for x, scale, *key in zip(*(x.split(_CPU_ROWS) for x in by_row), strict=True)]
    floor = _log_share(skip, vocab)
    for first in range(0, vocab, _CPU_TOKENS):
        part = embedding[first : first + _CPU_TOKENS].float()
        for i, block in enumerate(blocks):
            x = block.x @ part.T
            if softcap:
                x.tanh_().mul_(block.scale)
            own = slice(i * _CPU_ROWS, min(rows, (i + 1) * _CPU_ROWS))
            count = own.stop - own.start
            if allowed is not None:
                x[:count].masked_fill_(_forbidden(allowed[own], first, len(part)), _NOTHING)
            seen = block.see(x, first)
            if done is not None and vocab <= _CPU_TOKENS and done(own, block.argmax[:count], block.entropy[:count]):
                block.draw_nothing()
            else:
                block.draw(seen, part, first, floor)
    return _result(blocks, embedding, temperature, fixed)


def _log_share(skip: float, vocab: int) -> float:
    """Log of the share of its row's probability below which a group is skipped."""
    return math.log(skip / math.ceil(vocab / GROUP)) if skip else -math.inf


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


def _pad(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])]) if count > len(rows) else rows


def _forbidden(allowed: Tensor, first: int, count: int) -> Tensor:
    words = allowed[:, first // 32 : (first + count + 31) // 32, None]
    bits = 1 << torch.arange(32, dtype=torch.int32, device=allowed.device)
    return (words & bits).flatten(1)[:, :count] == 0


class _Block:
    """What is known of `_CPU_ROWS` rows after a part of the vocabulary.

    Attributes:
        x: hidden states, divided by what comes before tanh, or by the temperature where there is no softcap.
        scale: (B, 1), what comes after tanh.
        key: each row's seed, position and step.
        log_z, entropy, soft: of the distribution over what was seen; soft is float32.
        peak, argmax: the largest logit and its token.
        score: log-mass plus noise of the group that is the sample's.
        sample, sampled: the sample and its logit.
    """

    def __init__(self, x: Tensor, scale: Tensor, key: list[Tensor]) -> None:
        self.x, self.scale, self.key = x, scale, key
        self.log_z = self.peak = self.score = self.sampled = x.new_full((len(x),), _NOTHING)
        self.argmax = self.sample = key[0].new_full((len(x),), -1)
        self.entropy, self.soft = x.new_zeros(len(x)), torch.zeros_like(x)

    def see(self, x: Tensor, first: int) -> "_Seen":
        """Take in logits x (B, n) of the tokens from `first`, as far as argmax and entropy go."""
        if tail := -x.shape[1] % GROUP:
            x = torch.nn.functional.pad(x, (0, tail), value=_NOTHING)
        x = x.unflatten(1, (-1, GROUP))
        top = x.amax(2)
        centred = x - top[..., None]
        e = centred.exp()
        total = e.sum(2)
        log_total = total.log()
        mass = top + log_total
        spread = log_total.sub_(centred.mul_(e).sum(2).div_(total))

        peak, group = top.max(1)
        higher = peak > self.peak
        begin, logits = _group_of(x, group, first)
        self.argmax = torch.where(higher, begin.add_(logits.argmax(1)), self.argmax)
        self.peak = torch.maximum(peak, self.peak)

        # Groups and what came before are parts of one distribution: its entropy follows from theirs.
        parts = torch.cat([self.log_z[:, None], mass], 1)
        top = parts.amax(1, keepdim=True)
        share = (parts - top).exp_()
        log_z = top.add_(share.sum(1, keepdim=True).log_())
        log_q = parts.sub_(log_z)
        share = log_q.exp()
        self.log_z = log_z[:, 0]
        self.entropy = torch.cat([self.entropy[:, None], spread], 1).sub_(log_q).mul_(share).sum(1)
        return _Seen(x, e, total, mass, log_q, share)

    def draw(self, seen: "_Seen", part: Tensor, first: int, floor: float) -> None:
        """Take in the same as far as sample and soft embedding go; `part` are the tokens' embeddings."""
        x, e, total, mass, log_q, share = seen
        seed, position, step = self.key
        score, group = (mass + gumbel(seed, position, step, GROUPS, first // GROUP, mass.shape[1])).max(1)
        higher = score > self.score
        if higher.any():
            begin, logits = _group_of(x, group, first)
            drawn = logits + gumbel(seed, position, step, TOKENS, begin, GROUP)
            column = drawn.argmax(1)
            self.sample = torch.where(higher, begin.add_(column), self.sample)
            self.sampled = torch.where(higher, logits.gather(1, column[:, None])[:, 0], self.sampled)
            self.score = torch.maximum(score, self.score)
        self.soft.mul_(share[:, :1])
        counts = log_q[:, 1:] >= floor
        if counts.any():
            # e sums to `total` in each group, so this spreads the group's share over its tokens.
            weight = share[:, 1:].div(total).mul_(counts)
            self.soft.addmm_(e.mul_(weight[..., None]).flatten(1)[:, : len(part)], part)

    def draw_nothing(self) -> None:
        """Let the sample be the argmax and the soft embedding 0."""
        self.sample, self.sampled = self.argmax, self.peak


class _Seen(NamedTuple):
    """What `_Block.see` leaves for `_Block.draw`."""

    logits: Tensor  # (B, groups, G)
    e: Tensor  # (B, groups, G), exp(logits - the group's largest)
    total: Tensor  # (B, groups), of e
    mass: Tensor  # (B, groups), log of the sum of exp(logits)
    log_q: Tensor  # (B, 1 + groups), log of the shares
    share: Tensor  # (B, 1 + groups): what came before, and each group


def _group_of(x: Tensor, group: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """One group of each row of logits (B, groups, G) of the tokens from `first`: its first token, and its logits."""
    begin = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)
    return group * GROUP + first, x.flatten(0, 1).index_select(0, begin.add_(group))


def _result(blocks: list[_Block], embedding: Tensor, temperature: Tensor, fixed: Tensor | None) -> DenoiseHead:
    """The rows' results, with greedy and fixed rows reduced to their token."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(block, name) for block in blocks])[: len(temperature)]

    argmax, sample, log_z = joined("argmax"), joined("sample"), joined("log_z")
    entropy, soft = joined("entropy").clamp_(min=0), joined("soft").to(embedding.dtype)
    logprob, argmax_logprob = joined("sampled").sub_(log_z), joined("peak").sub_(log_z)
    point = torch.where(temperature > 0, -1, argmax)
    if fixed is not None:
        point = torch.where(fixed >= 0, fixed, point)
        argmax = torch.where(fixed >= 0, fixed, argmax)
    certain = point >= 0
    decided = certain | (argmax < 0)
    if decided.any():
        sample = torch.where(certain, point, sample)
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
    common = constants | {"embedding": embedding, "V": vocab, "log_share": _log_share(skip, vocab)}
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
