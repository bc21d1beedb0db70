"""Every op of moe_kernels on a GPU, at DiffusionGemma's shapes: `python -m benchmarks.kernels --json FILE`.

Each op is timed beside what one would use without it, on the same numbers: torch's bfloat16 products (cuBLAS's) on
dequantised weights, transformers' `grouped_mm` experts, a head that stores its logits, the same norms op by op. Times
are those of CUDA events around one call, with the L2 cache overwritten before each and the queue kept full, so that
launches cost what they cost in a CUDA graph; only ways that keep the host busy for over a millisecond, as experts one
by one do, pay more. An op's bytes are those it cannot avoid to move (its weights, inputs and outputs, once), its FLOPs
those of its formula, done or skipped; both are given as a share of what a plain read and a big matrix product reach in
the same run. `--smoke` runs tiny shapes on any device.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, grouped_mm, linear
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.profiler import ProfilerActivity, profile

from benchmarks._harness import environment
from benchmarks._rivals import transformers_experts
from moe_kernels import norms
from moe_kernels.denoise_head import denoise_head
from moe_kernels.dispatch import has_fp4_units
from moe_kernels.linear import NVFP4Linear, nvfp4_linear
from moe_kernels.moe import Experts, experts_mlp, experts_mlp_torch
from moe_kernels.moe_fp4 import FP4Experts, fp4_experts_mlp
from moe_kernels.nvfp4 import NVFP4, quantize
from moe_kernels.routing import Sorted, route, route_torch, sort_by_expert, sort_by_expert_torch

OURS, GROUPED, BY_OP = "moe_kernels", "torch grouped_mm bf16", "torch, op by op"
SOFTCAP, TEMPERATURE = 30.0, 0.6
LEAD = 4  # overwriting the L2 cache so many times takes the GPU about a millisecond, in which all launches get queued


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of the model; those of DiffusionGemma 26B-A4B unless told otherwise."""

    tokens: tuple[int, ...] = (256, 512, 1024, 4096)
    hidden: int = 2816
    inner: int = 2112
    experts: int = 128
    top_k: int = 8
    moe_inner: int = 704
    vocab: int = 262_144
    heads: tuple[tuple[str, int, int, int], ...] = (("sliding", 16, 8, 256), ("full", 16, 2, 512))
    flush_bytes: int = 1 << 30
    probe_bytes: int = 1 << 32
    probe_matrix: int = 8192


SMOKE = Sizes(
    tokens=(4, 6), hidden=128, inner=32, experts=8, top_k=2, moe_inner=64, vocab=512,
    heads=(("sliding", 4, 2, 16), ("full", 4, 1, 32)), flush_bytes=1 << 16, probe_bytes=1 << 16, probe_matrix=64,
)  # fmt: skip


class Way(NamedTuple):
    """One way to compute an op; with `kernel`, only the GPU kernel of that name counts."""

    name: str
    run: Callable[[], object]
    bytes: int
    kernel: str | None = None


class Case(NamedTuple):
    """An op at one number of tokens, and the ways to compute it, ours first."""

    op: str
    tokens: int
    flops: int
    ways: list[Way]


class NotMeasured(RuntimeError):
    """This way cannot be timed here."""


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device, repeats: int, flush_bytes: int) -> None:
        self.device, self.repeats = device, repeats
        self._flush = torch.empty(flush_bytes, dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object], kernel: str | None = None) -> list[float]:
        """How long each of `repeats` calls took, after two that warm up."""
        for _ in range(2):
            run()
        if self.device.type != "cuda":
            if kernel is not None:
                raise NotMeasured("only a GPU tells the kernels of one op apart")
            return [self._wall(run) for _ in range(self.repeats)]
        return self._events(run) if kernel is None else self._profiled(run, kernel)

    def _wall(self, run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    def _overwrite(self) -> None:
        for _ in range(LEAD):
            self._flush.zero_()

    def _events(self, run: Callable[[], object]) -> list[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]
        for start, end in marks:
            self._overwrite()
            start.record()
            run()
            end.record()
            end.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    def _profiled(self, run: Callable[[], object], kernel: str) -> list[float]:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(self.repeats):
                self._overwrite()
                run()
            torch.cuda.synchronize()
        events = [e for e in recorded.events() or [] if e.device_type.name == "CUDA" and kernel in e.name]
        if len(events) != self.repeats:
            raise NotMeasured(f"expected {self.repeats} runs of a kernel {kernel}, the profiler saw {len(events)}")
        return [event.time_range.elapsed_us() / 1e6 for event in events]


def roofline(clock: Clock, sizes: Sizes) -> dict[str, float]:
    """What this device reaches: bytes a second of a read and of a copy, FLOPs a second of a bfloat16 product."""
    values = torch.zeros(sizes.probe_bytes // 4, device=clock.device)
    read = median(clock.seconds(values.sum))
    copy = median(clock.seconds(values.clone))
    side = sizes.probe_matrix
    matrix = torch.randn(side, side, device=clock.device).bfloat16()
    product = median(clock.seconds(lambda: matrix @ matrix))
    return {
        "read_bytes_per_s": sizes.probe_bytes / read,
        "copy_bytes_per_s": 2 * sizes.probe_bytes / copy,
        "bfloat16_flops_per_s": 2 * side**3 / product,
    }


def random(*shape: int, device: torch.device) -> Tensor:
    """Normal numbers, scaled so that a product over the last dimension keeps their size."""
    return (torch.randn(shape, device=device) * shape[-1] ** -0.5).bfloat16()


def size_of(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def packed_size(*weights: NVFP4) -> int:
    """Bytes of the codes and scales."""
    return sum(size_of(weight.packed, weight.scales) for weight in weights)


def experts_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """The experts' MLP, whole and its two products apart; experts that no token chose count as not read."""
    count, hidden, inner = sizes.experts, sizes.hidden, sizes.moe_inner
    shapes = ((count, inner, hidden), (count, inner, hidden), (count, hidden, inner))
    gate, up, down = (quantize(random(*shape, device=device), "modelopt") for shape in shapes)
    experts = Experts.from_nvfp4(gate, up, down)
    dense = experts.decode(torch.bfloat16)
    kept = dataclasses.replace(experts, dense=dense)  # our kernels don't look at these
    module = transformers_experts(*dense)
    in_fp4 = FP4Experts.from_nvfp4(gate, up, down)
    for tokens in sizes.tokens:
        x = random(tokens, hidden, device=device) * hidden**0.5
        weights, chosen = route(torch.randn(tokens, count, device=device), sizes.top_k)
        grouped = sort_by_expert(chosen, count)
        rows, bounds = x[grouped.order // sizes.top_k], grouped.offsets.tolist()
        inside, ends = random(len(rows), inner, device=device), grouped.offsets[1:]
        used = sum(a < b for a, b in pairwise(bounds)) / count
        ours = [int(used * packed_size(*parts)) for parts in ((gate, up), (down,))]
        theirs = [int(used * size_of(part)) for part in dense]
        in_out, flops = size_of(x, x), 2 * len(rows) * hidden * inner
        a: Any = (x, kept, chosen, weights)
        loop: Any = (x, dense, grouped, bounds, weights)
        slow: Any = (x, chosen.long(), weights)
        whole = [
            Way(OURS, lambda a=a: experts_mlp(*a), sum(ours) + in_out),
            Way(GROUPED, lambda a=a: experts_mlp_torch(*a), sum(theirs) + in_out),
            Way("transformers grouped_mm bf16", lambda a=slow: module(*a), sum(theirs) + in_out),
            Way("torch linear bf16, one by one", lambda a=loop: an_expert_at_a_time(*a), sum(theirs) + in_out),
        ]
        if device.type == "cpu" or has_fp4_units(device):
            b: Any = (x, in_fp4, chosen, weights)
            whole.append(Way("moe_kernels, activations in FP4", lambda b=b: fp4_experts_mlp(*b), sum(ours) + in_out))
        yield Case("experts_mlp", tokens, 3 * flops, whole)
        moved = size_of(x, inside)
        apart = (("gate-up", "gate_up_kernel", rows, 2 * flops), ("down", "down_kernel", inside, flops))
        for (part, kernel, given, own), four_bit, bf16, weight in zip(apart, ours, theirs, dense, strict=True):
            yield Case(f"experts_mlp: {part}", tokens, own, [
                Way(OURS, whole[0].run, four_bit + moved, kernel),
                Way(GROUPED, lambda g=given, w=weight.mT, e=ends: grouped_mm(g, w, offs=e), bf16 + moved),
            ])  # fmt: skip


def an_expert_at_a_time(
    x: Tensor, dense: tuple[Tensor, Tensor], grouped: Sorted, bounds: list[int], weights: Tensor
) -> Tensor:
    """Dense products in a loop, given on the host how many rows each expert has."""
    top_k, out = weights.shape[1], torch.zeros_like(x)
    tokens, scale = grouped.order // top_k, weights.flatten()[grouped.order, None]
    for gate_up, down, (first, last) in zip(*dense, pairwise(bounds), strict=True):
        if first < last:
            own = tokens[first:last]
            gate, up = linear(x[own], gate_up).chunk(2, dim=-1)
            made = linear(gelu(gate, approximate="tanh") * up, down) * scale[first:last]
            out.index_add_(0, own, made.to(x.dtype))
    return out


def routing_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Router scores to slots in the order of their experts."""
    scale = torch.rand(sizes.experts, device=device) + 0.5
    for tokens in sizes.tokens:
        scores = torch.randn(tokens, sizes.experts, device=device).bfloat16()

        def ours(scores: Tensor = scores) -> Sorted:
            return sort_by_expert(route(scores, sizes.top_k, scale).experts, sizes.experts)

        def twins(scores: Tensor = scores) -> Sorted:
            return sort_by_expert_torch(route_torch(scores, sizes.top_k, scale).experts, sizes.experts)

        moved = size_of(scores) + 12 * tokens * sizes.top_k
        yield Case("route and sort", tokens, 0, [Way(OURS, ours, moved), Way(BY_OP, twins, moved)])


def linear_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """One product of the dense MLP."""
    weight = quantize(random(sizes.inner, sizes.hidden, device=device), "modelopt")
    packed, dense = NVFP4Linear.from_nvfp4(weight), weight.dequantize()
    for tokens in sizes.tokens:
        x = random(tokens, sizes.hidden, device=device)
        ends = size_of(x) + 2 * tokens * sizes.inner
        yield Case("nvfp4_linear", tokens, 2 * tokens * sizes.hidden * sizes.inner, [
            Way(OURS, lambda x=x: nvfp4_linear(x, packed), packed_size(weight) + ends),
            Way("torch linear bf16", lambda x=x: linear(x, dense), size_of(dense) + ends),
        ])  # fmt: skip


def head_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """The denoise head on rows that know their token, as late steps have, and on rows that know nothing."""
    embedding = random(sizes.vocab, sizes.hidden, device=device)
    for tokens in sizes.tokens:
        likely = torch.randint(sizes.vocab, (tokens,), device=device)
        row = torch.arange(tokens, device=device)
        settings = {
            "softcap": SOFTCAP, "temperature": torch.full((tokens,), TEMPERATURE, device=device),
            "seed": row // 256, "step": torch.zeros_like(row), "position": row % 256,
        }  # fmt: skip
        for kind, hidden in (
            ("confident", 20 * embedding[likely]),
            ("knowing nothing", random(tokens, sizes.hidden, device=device)),
        ):
            moved = size_of(embedding, hidden, hidden)
            yield Case(f"denoise_head, {kind}", tokens, 4 * tokens * sizes.vocab * sizes.hidden, [
                Way(OURS, lambda h=hidden, s=settings: denoise_head(h, embedding, **s), moved),
                Way("torch, logits stored", lambda h=hidden: stored_logits_head(h, embedding), moved),
            ])  # fmt: skip


def stored_logits_head(hidden: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
    """What the denoise head computes, as torch does it with float32 logits in memory."""
    logits = linear(hidden, embedding).float().div_(SOFTCAP).tanh_().mul_(SOFTCAP / TEMPERATURE)
    log_p = logits.log_softmax(dim=-1)
    p = log_p.exp()
    noise = -torch.empty_like(p).exponential_().log_()
    sample = (log_p + noise).argmax(dim=-1)
    chosen = log_p.gather(1, sample[:, None])
    return log_p.argmax(dim=-1), sample, -(p * log_p).sum(dim=-1), chosen, p.to(embedding.dtype) @ embedding


def norm_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """The ops between the products of a layer."""
    vectors = [1 + random(sizes.hidden, device=device) for _ in range(4)]
    opening, closing = norms.AttentionNorms(*vectors), norms.ExpertsNorms(*vectors)
    scalar = torch.ones(1, device=device, dtype=torch.bfloat16)
    for tokens in sizes.tokens:
        x, y, z = (random(tokens, sizes.hidden, device=device) for _ in range(3))
        yield Case("rms_norm", tokens, 0, [
            Way(OURS, lambda x=x: norms.rms_norm(x, vectors[0]), size_of(x, x)),
            Way("torch rms_norm", lambda x=x: torch_rms_norm(x, x.shape[-1:], vectors[0], 1e-6), size_of(x, x)),
        ])  # fmt: skip
        yield Case("norms_after_attention", tokens, 0, [
            Way(OURS, lambda x=x, y=y: norms.norms_after_attention(x, y, opening), 6 * size_of(x)),
            Way(BY_OP, lambda x=x, y=y: norms.norms_after_attention_torch(x, y, opening), 6 * size_of(x)),
        ])  # fmt: skip
        yield Case("norms_after_experts", tokens, 0, [
            Way(OURS, lambda x=x, y=y, z=z: norms.norms_after_experts(x, y, z, closing, scalar), 5 * size_of(x)),
            Way(BY_OP, lambda x=x, y=y, z=z: norms.norms_after_experts_torch(x, y, z, closing, scalar), 5 * size_of(x)),
        ])  # fmt: skip
        for kind, q_heads, k_heads, size in sizes.heads:
            product = random(tokens, q_heads + 2 * k_heads, size, device=device)
            q, k, v = product.split([q_heads, k_heads, k_heads], dim=1)
            ones, cos, sin = torch.ones_like(q[0, 0]), torch.ones_like(q[:, 0]), torch.zeros_like(q[:, 0])
            a: Any = (q, k, ones, ones, cos, sin, 1e-6, v)
            moved = 2 * size_of(product) + size_of(cos, sin)
            yield Case(f"qk_norm_rope, {kind} layers", tokens, 0, [
                Way(OURS, lambda a=a: norms.qk_norm_rope(*a), moved),
                Way(BY_OP, lambda a=a: norms.qk_norm_rope_torch(*a), moved),
            ])  # fmt: skip


def measure(clock: Clock, case: Case, way: Way, roof: dict[str, float]) -> dict[str, Any]:
    """One row of the report."""
    times = clock.seconds(way.run, way.kernel)
    middle, cuts = median(times), quantiles(times, n=10, method="inclusive")
    return {
        "op": case.op,
        "tokens": case.tokens,
        "way": way.name,
        "seconds": {"median": middle, "p10": cuts[0], "p90": cuts[-1]},
        "bytes": way.bytes,
        "bytes_per_s": way.bytes / middle,
        "share_of_read": way.bytes / middle / roof["read_bytes_per_s"],
        "flops": case.flops,
        "share_of_bfloat16": case.flops / middle / roof["bfloat16_flops_per_s"],
    }


@torch.inference_mode()
def report(sizes: Sizes, device: torch.device, repeats: int, seed: int, only: str) -> dict[str, Any]:
    """Measure everything whose name contains `only`, printing as it goes; list what cannot run here, and why."""
    torch.manual_seed(seed)
    clock = Clock(device, repeats, sizes.flush_bytes)
    roof = roofline(clock, sizes)
    print(", ".join(f"{name} {value:.3g}" for name, value in roof.items()))
    print(f"{'op':30} {'tokens':>6}  {'way':33} {'median us':>10} {'of read':>8} {'of bf16':>8}")
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for group in (experts_cases, routing_cases, linear_cases, head_cases, norm_cases):
        for case in (case for case in group(sizes, device) if only in case.op):
            for way in case.ways:
                label = f"{case.op:30} {case.tokens:6}  {way.name:33}"
                try:
                    row = measure(clock, case, way, roof)
                except (torch.OutOfMemoryError, NotMeasured) as error:  # the other ways still tell something
                    why = str(error).splitlines()[0]
                    skipped.append({"op": case.op, "tokens": case.tokens, "way": way.name, "why": why})
                    print(f"{label} skipped: {why}")
                else:
                    rows.append(row)
                    shares = f"{row['share_of_read']:8.1%} {row['share_of_bfloat16']:8.1%}"
                    print(f"{label} {row['seconds']['median'] * 1e6:10.1f} {shares}")
    where = {"device": device.type, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}
    return {
        **environment(seed), **where, "repeats": repeats, "sizes": dataclasses.asdict(sizes), "roofline": roof,
        "results": rows, "skipped": skipped,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, print; 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, three repeats, on whatever device there is")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.smoke:
        print(
            "benchmarks.kernels: needs an NVIDIA GPU, found none (--smoke runs tiny shapes anywhere)", file=sys.stderr
        )
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, repeats = (SMOKE, 3) if options.smoke else (Sizes(), options.repeats)
    made = report(sizes, device, repeats, options.seed, options.only)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
