"""Our diffusion engine against transformers' `generate`, over the same weights: `python -m benchmarks.engine --json FILE`.

On a CPU in float32, with the shipped demo draft and held-out conversations of the demo shop; both start from messages and end with text. Where
systems are compared they take turns, so that a noisy minute hits all alike, and every claim is a ratio within the run. Ours never reuses a
prompt's work here, because conversations repeat within a run. The parts:

one client   each conversation asked of ours, of transformers, and of ours as it ships, which gives up on canvases that won't settle
             (the first two do the same work); the ratio's interval is a bootstrap over conversations
arrivals     open loop: Poisson arrivals, the same times for every system, at 1.25 times what our engine can do under 16 clients, so that all
             are saturated; ours is the asynchronous engine, the others are `generate` one by one and in static batches of 16
memory       resident set of each system in a process of its own under 16 clients
clients      closed loop: latency against how many clients ask without a pause
steps        accuracy and latency against the most denoising steps of a canvas, with one client

`--random-26b` measures the engine at DiffusionGemma 26B-A4B's size on a GPU instead (`_engine_26b.py`). `--smoke` does either at toy size.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import _engine_26b
from benchmarks._engine_load import (
    AS_SHIPPED,
    BATCH,
    ONE_BY_ONE,
    OURS,
    STATIC,
    Done,
    closed_loop,
    open_loop,
    our_service,
    peaks,
    poisson,
    service,
)
from benchmarks._engine_systems import Answer, Checkpoint, Ours, Theirs
from benchmarks._harness import environment, publish
from demo_models import store
from demo_models.tasks import Conversation, conversations
from demo_models.train import keep_freed_memory

THEIRS = "transformers"
OVERLOAD = 1.25  # times what our engine can do
RESAMPLES = 10_000
Way = Callable[[Conversation, int], Answer]  # a conversation and its seed


@dataclass(frozen=True)
class Counts:
    """How much is measured; requests are conversations asked of each system."""

    alone: int = 200  # requests of the one client
    arrivals: int = 160  # requests in each round
    rounds: int = 3
    memory: int = 64  # requests
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    each: int = 4  # requests of each of these clients
    least: int = 64  # requests of all of them together
    caps: tuple[int, ...] = (4, 8, 12, 16, 24, 48)
    capped: int = 60  # requests under each cap
    warm_up: int = 5  # requests that don't count


SMOKE = Counts(
    alone=4, arrivals=6, rounds=1, memory=2, clients=(1, 2), each=1, least=2, caps=(2, 4), capped=2, warm_up=1
)


@dataclass(frozen=True)
class Bench:
    """Both systems, loaded, and what they are asked."""

    checkpoint: Checkpoint
    ours: Ours
    theirs: Theirs
    cases: list[Conversation]
    counts: Counts
    seed: int

    def one_client(self) -> dict[str, Any]:
        """Three ways to answer each conversation, in turns."""
        steps = self.checkpoint.steps
        ways: dict[str, Way] = {
            OURS: partial(self.ours.answer, steps=steps, give_up=False),
            THEIRS: partial(self.theirs.answer, steps=steps),
            AS_SHIPPED: partial(self.ours.answer, steps=steps, give_up=True),
        }
        rows = self._in_turns(ways, self.counts.alone, "one client")
        return {
            "requests": self.counts.alone,
            "systems": {
                name: {"requests_per_s": 1 / mean(one.seconds for one in found), **self._summary(found)}
                for name, found in rows.items()
            },
            "same_text_share": mean(
                a.answer.text == b.answer.text for a, b in zip(rows[OURS], rows[THEIRS], strict=True)
            ),
            "times_as_fast": {name: ratio(rows[THEIRS], rows[name], self.seed) for name in (OURS, AS_SHIPPED)},
        }

    def steps(self) -> list[dict[str, Any]]:
        """Both under each limit of steps; the engine doesn't give up, or the limit would not be what is measured."""
        made = []
        for cap in self.counts.caps:
            ways: dict[str, Way] = {
                OURS: partial(self.ours.answer, steps=cap, give_up=False),
                THEIRS: partial(self.theirs.answer, steps=cap),
            }
            rows = self._in_turns(ways, self.counts.capped, f"{cap} steps")
            made.append({"max_steps": cap, "systems": {name: self._summary(found) for name, found in rows.items()}})
        return made

    def _in_turns(self, ways: dict[str, Way], count: int, label: str) -> dict[str, list[Done]]:
        rows: dict[str, list[Done]] = {name: [] for name in ways}
        names = list(ways)
        warm = [(-1, case) for case in self.cases[-self.counts.warm_up :]]
        for seed, case in tqdm([*warm, *enumerate(self.cases[:count])], desc=label, disable=None):
            names = [*names[1:], names[0]]  # none is always first
            for name in names:
                started = perf_counter()
                answer = ways[name](case, max(seed, 0))
                seconds = perf_counter() - started
                if seed >= 0:
                    rows[name].append(Done(answer, seconds, seconds))
        return rows

    def arrivals(self) -> dict[str, Any]:
        """Every system under the same arrivals, round after round."""
        cases = self.cases[: self.counts.arrivals]
        able = self._able(cases)
        times = poisson(OVERLOAD * able, len(cases), self.seed)
        rounds = []
        for turn in range(self.counts.rounds):
            names = [AS_SHIPPED, OURS, ONE_BY_ONE, STATIC][:: 1 if turn % 2 == 0 else -1]
            rounds.append({name: asyncio.run(self._arrive(name, cases, times)) for name in tqdm(names, disable=None)})
        throughput = {name: [one[name]["requests_per_s"] for one in rounds] for name in rounds[0]}
        return {
            "requests": len(cases),
            "ours_able_per_s": able,
            "arrivals_per_s": OVERLOAD * able,
            "last_arrival_s": times[-1],
            "rounds": rounds,
            "throughput_to": {
                ours: {
                    name: median(a / b for a, b in zip(throughput[ours], throughput[name], strict=True))
                    for name in (ONE_BY_ONE, STATIC)
                }
                for ours in (OURS, AS_SHIPPED)
            },
        }

    def _able(self, cases: Sequence[Conversation]) -> float:
        """Requests per second of our engine under 16 clients, the first 16 requests left out."""

        async def serve() -> list[Done]:
            async with our_service(self.checkpoint, len(cases), give_up=True) as served:
                await closed_loop(served.ask, cases[:BATCH], BATCH)
                return await closed_loop(served.ask, cases, BATCH)

        done = asyncio.run(serve())
        return len(done) / max(one.at for one in done)

    async def _arrive(self, name: str, cases: Sequence[Conversation], times: Sequence[float]) -> dict[str, Any]:
        async with service(name, self.checkpoint, self.theirs, len(cases)) as served:
            done = await open_loop(served.ask, cases, times)
            forwards = served.forwards()
        canvases = sum(one.answer.steps for one in done)
        return {
            "requests_per_s": len(done) / max(one.at for one in done),
            **self._summary(done),
            "canvas_steps": canvases,
            "forwards": forwards,
            "mean_occupancy": canvases / forwards,  # canvases that a forward brings further
        }

    def clients(self) -> list[dict[str, Any]]:
        """Ours and one by one, for each number of clients."""
        made = []
        for clients in tqdm(self.counts.clients, desc="clients", disable=None):
            cases = self.cases[: max(self.counts.least, self.counts.each * clients)]
            systems = {name: asyncio.run(self._ask_on(name, cases, clients)) for name in (OURS, ONE_BY_ONE)}
            made.append({"clients": clients, "requests": len(cases), "systems": systems})
        return made

    async def _ask_on(self, name: str, cases: Sequence[Conversation], clients: int) -> dict[str, Any]:
        async with service(name, self.checkpoint, self.theirs, len(cases)) as served:
            done = await closed_loop(served.ask, cases, clients)
        return {"requests_per_s": len(done) / max(one.at for one in done), "seconds": latency(done)}

    def memory(self) -> dict[str, dict[str, float]]:
        """Each system in a process of its own."""
        return peaks(self.checkpoint, self.cases[: self.counts.memory], torch.get_num_threads())

    def _summary(self, done: Sequence[Done]) -> dict[str, Any]:
        """Latency, accuracy and steps; `done` answers the first conversations in their order."""
        right = [case.is_right(one.answer.text) for case, one in zip(self.cases, done, strict=False)]
        return {
            "seconds": latency(done),
            "exact_share": mean(right),
            "mean_steps": mean(one.answer.steps for one in done),
        }


def latency(done: Sequence[Done]) -> dict[str, float]:
    """Seconds."""
    seconds = [one.seconds for one in done]
    cuts = quantiles(seconds, n=20, method="inclusive")
    return {"mean": mean(seconds), "p50": cuts[9], "p95": cuts[18]}


def ratio(slow: Sequence[Done], fast: Sequence[Done], seed: int) -> dict[str, Any]:
    """How many times as fast, for a request and for a denoising step, with bootstrap intervals of 95 % over pairs of requests.

    Both systems draw their own random numbers, so canvases that won't settle take them different numbers of steps.
    """
    seconds = np.array([[one.seconds for one in done] for done in (slow, fast)])
    steps = np.array([[one.answer.steps for one in done] for done in (slow, fast)])
    picks = np.random.default_rng(seed).integers(seconds.shape[1], size=(RESAMPLES, seconds.shape[1]))
    picks[0] = np.arange(seconds.shape[1])  # the first is what was measured
    total, taken = seconds[:, picks].sum(axis=2), steps[:, picks].sum(axis=2)
    ratios = {"a_request": total[0] / total[1], "a_step": total[0] / taken[0] * taken[1] / total[1]}
    return {
        of: {"ratio": values[0], "interval_95": np.quantile(values, [0.025, 0.975]).tolist()}
        for of, values in ratios.items()
    }


PARTS: dict[str, Callable[[Bench], Any]] = {
    "one_client": Bench.one_client,
    "arrivals": Bench.arrivals,
    "memory": Bench.memory,
    "clients": Bench.clients,
    "steps": Bench.steps,
}


def compare(counts: Counts, parts: Sequence[str], seed: int) -> dict[str, Any]:
    """Load both and measure."""
    keep_freed_memory()  # or each system's large blocks go back to the kernel, and page faults are what is measured
    asked = (
        counts.alone,
        counts.arrivals,
        counts.memory,
        counts.least,
        counts.each * max(counts.clients),
        counts.capped,
    )
    most = max(asked) + counts.warm_up
    cases = list(islice(conversations("combinations", seed, complex_share=0.3), most))
    with tempfile.TemporaryDirectory() as build:
        checkpoint = Checkpoint.prepare(store.path("draft"), Path(build), max(counts.caps))
        theirs = Theirs(checkpoint)
        bench = Bench(checkpoint, Ours(checkpoint), theirs, cases, counts, seed)
        measured = {part: PARTS[part](bench) for part in parts}
    return {
        **environment(seed),
        "threads": torch.get_num_threads(),
        "checkpoint": {"form": checkpoint.form, "max_steps": checkpoint.steps, "max_tokens": checkpoint.tokens},
        "transformers": theirs.options,
        **measured,
    }


def pictures(report: dict[str, Any], file: Path) -> None:
    """Latency against clients; accuracy and latency against steps."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    def save(figure: Any, name: str) -> None:
        figure.savefig(file.with_name(f"{file.stem}_{name}.svg"), metadata={"Date": None})

    if "clients" in report:
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        counts = [level["clients"] for level in report["clients"]]
        for name, colour in ((OURS, "C0"), (ONE_BY_ONE, "C1")):
            for what, style in (("p50", "o-"), ("p95", "s:")):
                values = [1e3 * level["systems"][name]["seconds"][what] for level in report["clients"]]
                axes.plot(counts, values, style, color=colour, label=f"{name}, {what}")
        axes.set(
            xlabel="clients that ask without a pause", ylabel="latency of a request, ms", xscale="log", yscale="log"
        )
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.legend()
        axes.grid(alpha=0.3)
        save(figure, "clients")
    if "steps" in report:
        figure, (above, below) = plt.subplots(2, figsize=(7, 6), sharex=True, layout="constrained")
        caps = [level["max_steps"] for level in report["steps"]]
        for name, style in ((OURS, "o-"), (THEIRS, "s:")):
            found = [level["systems"][name] for level in report["steps"]]
            above.plot(caps, [100 * one["exact_share"] for one in found], style, label=name)
            below.plot(caps, [1e3 * one["seconds"]["mean"] for one in found], style, label=name)
        above.set(ylabel="exact answers, %", ylim=(0, 100))
        below.set(xlabel="most denoising steps of a canvas", ylabel="mean latency of a request, ms")
        below.set_ylim(bottom=0)
        below.set_xticks(caps)
        for axes in (above, below):
            axes.legend()
            axes.grid(alpha=0.3)
        save(figure, "steps")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, print; 2 on the wrong device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the report here; pictures go beside it as .svg")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--threads", type=int, default=0, help="of torch, for all systems (default: torch's own choice)"
    )
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument(
        "--random-26b", action="store_true", help="the engine alone, full size, random weights, on a GPU"
    )
    parser.add_argument("--smoke", action="store_true", help="a few requests; with --random-26b a tiny model anywhere")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.random_26b:
        if not torch.cuda.is_available() and not options.smoke:
            sys.stderr.write(
                "benchmarks.engine: --random-26b needs an NVIDIA GPU, found none (--smoke runs anywhere)\n"
            )
            return 2
        size = _engine_26b.SMOKE if options.smoke else _engine_26b.FULL
        report = {**environment(options.seed), **_engine_26b.measure(size, options.seed)}
    else:
        if torch.cuda.is_available():  # which our engine would take
            sys.stderr.write("benchmarks.engine: compares on a CPU, found a GPU (hide it: CUDA_VISIBLE_DEVICES=)\n")
            return 2
        report = compare(SMOKE if options.smoke else Counts(), options.parts, options.seed)
    publish(report, options.json)
    if options.json:
        pictures(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
