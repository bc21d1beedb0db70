"""Our refine engine with drafts of every kind against itself without, and against transformers: `python -m benchmarks.refine --json FILE`.

On a CPU in float32, with the shipped demo refiner and held-out conversations of the demo shop, all greedy; from messages to text. Nothing of a
prompt is shared, because conversations repeat within a run. The parts:

drafts    one client; each conversation asked `fresh` and in mode `exact` with a draft of each kind, in turns, so that a noisy minute hits all
          alike. Every request is measured in each of three passes over the list, and its least time counts: what others do on the machine only
          ever adds to it. A ratio is that of summed times; its interval is a bootstrap over conversations. The kinds: the refiner's own
          answer (right), with another ordinary token at one place drawn uniformly, with other tokens at half of its places, the right
          answer to a conversation of another family (something else), and what the demo draft model writes (drafted)
typical   the drafts of the demo draft model in modes `exact` and `typical`: tokens kept, texts changed, texts right
bf16      greedy answers in bfloat16 that differ from those of `generate` in bfloat16 (`_refine_bf16.py`)
clients   closed loop: tokens per second under 1, 4 and 16 clients, of ours without drafts, `generate` one by one, static batches of as many as
          there are clients, and continuous batching of transformers, which can't run Gemma 4's layers of two head sizes; so all of them also
          run a random Qwen3 of the same size, 32 tokens an answer (`_refine_clients.py`)
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ar_engine.api import Draft, RefineResult
from ar_engine.engine import AutoregressiveEngine
from benchmarks._harness import environment, publish
from benchmarks._refine_bf16 import bfloat16
from benchmarks._refine_clients import OURS, SUBJECTS, SYSTEMS, under_clients
from benchmarks._refine_drafts import DRAFTED, ELSE, KINDS, ONE_WRONG, RIGHT, Drafts, drafted
from benchmarks._refine_systems import demo, our_engine, refine
from demo_models.tasks import Conversation, conversations
from demo_models.train import keep_freed_memory

FRESH = "fresh"
SHORT, LONG = 12, 32  # tokens: a short answer has fewer, a long one more
GOALS = {RIGHT: 3.0, ONE_WRONG: 1.5, ELSE: 1 / 1.15}  # times as fast as fresh
RESAMPLES = 10_000


@dataclass(frozen=True)
class Counts:
    """How much is measured; requests are conversations."""

    drafts: int = 100
    passes: int = 3
    typical: int = 200
    bf16: int = 100
    clients: int = 32
    levels: tuple[int, ...] = (1, 4, 16)
    rounds: int = 2
    warm_up: int = 5  # requests that don't count


SMOKE = Counts(drafts=4, passes=1, typical=4, bf16=2, clients=4, levels=(1, 2), rounds=1, warm_up=1)


@dataclass(frozen=True)
class Bench:
    """What is asked, and what the demo draft model makes of it."""

    cases: list[Conversation]
    drafts: list[Draft]
    counts: Counts
    seed: int

    async def with_drafts(self) -> dict[str, Any]:
        """Every kind of draft, in turns."""
        counts = self.counts
        async with our_engine(demo) as engine:
            answers = [(await refine(engine, case))[0] for case in self.cases[: counts.drafts]]  # and a warm-up
            make = Drafts(self.seed)
            kinds: list[dict[str, Draft | None]] = [
                {FRESH: None, **make.of(case, answer.token_ids), DRAFTED: draft}
                for case, answer, draft in zip(self.cases, answers, self.drafts, strict=False)
            ]
            passes = [await self._one_pass(engine, kinds, turn) for turn in range(counts.passes)]
        seconds = {
            name: np.min([[one[name][1] for one in rows] for rows in passes], axis=0) for name in (FRESH, *KINDS)
        }
        results = {name: [[one[name][0] for one in rows] for rows in passes] for name in (FRESH, *KINDS)}
        lengths = np.array([len(answer.token_ids) for answer in answers])
        groups = {
            "short": lengths < SHORT,
            "medium": (lengths >= SHORT) & (lengths <= LONG),
            "long": lengths > LONG,
        }
        same = {
            name: mean(one.text == fresh.text for rows in found for one, fresh in zip(rows, answers, strict=True))
            for name, found in results.items()
        }
        wrong = np.array([not case.is_right(draft.text) for case, draft in zip(self.cases, self.drafts, strict=True)])
        report: dict[str, Any] = {
            "requests": counts.drafts,
            "passes": counts.passes,
            "mean_answer_tokens": float(lengths.mean()),
            "by_length": {"short": f"< {SHORT} tokens", "medium": "between", "long": f"> {LONG} tokens"},
            "goals_times_as_fast": GOALS,
            FRESH: {**self._summary(seconds[FRESH], results[FRESH][0]), "same_text_share": same[FRESH]},
            "kinds": {},
        }
        for name in KINDS:
            chosen = {**groups, "wrong drafts": wrong[: counts.drafts]} if name == DRAFTED else groups
            report["kinds"][name] = {
                **self._summary(seconds[name], results[name][0]),
                "same_text_share": same[name],
                "times_as_fast": ratio(seconds[FRESH], seconds[name], self.seed),
                "groups": {
                    group: {
                        "requests": int(who.sum()),
                        "fresh": self._summary(seconds[FRESH][who], select(results[FRESH][0], who)),
                        **self._summary(seconds[name][who], select(results[name][0], who)),
                        "times_as_fast": ratio(seconds[FRESH][who], seconds[name][who], self.seed),
                    }
                    for group, who in chosen.items()
                    if who.any()
                },
            }
        return report

    async def _one_pass(
        self, engine: AutoregressiveEngine, kinds: Sequence[dict[str, Draft | None]], turn: int
    ) -> list[dict[str, tuple[RefineResult, float]]]:
        names = [FRESH, *KINDS]
        for case in self.cases[: self.counts.warm_up]:
            await refine(engine, case)
        rows = []
        for case, drafts in zip(
            tqdm(self.cases[: len(kinds)], desc=f"drafts, pass {turn + 1}", disable=None), kinds, strict=True
        ):
            names = [*names[1:], names[0]]  # none is always first
            rows.append(
                {
                    name: await refine(engine, case, mode="exact" if drafts[name] else "fresh", draft=drafts[name])
                    for name in names
                }
            )
        return rows

    @staticmethod
    def _summary(seconds: np.ndarray, results: Sequence[RefineResult]) -> dict[str, Any]:
        return {
            "seconds": {
                "mean": float(seconds.mean()),
                "p50": float(np.quantile(seconds, 0.5)),
                "p95": float(np.quantile(seconds, 0.95)),
            },
            "mean_forwards": mean(one.forwards for one in results),
            "mean_kept_tokens": mean(one.kept_tokens for one in results),
            "mean_reused_tokens": mean(one.reused_draft_tokens for one in results),
            "mean_tried_tokens": mean(one.tried_tokens for one in results),
        }

    async def typical(self) -> dict[str, Any]:
        """The draft model's drafts in both modes that keep some of them."""
        cases, drafts = self.cases[: self.counts.typical], self.drafts[: self.counts.typical]
        modes = ("exact", "typical")
        rows = {mode: [] for mode in modes}
        async with our_engine(demo) as engine:
            for case, draft in zip(tqdm(cases, desc="typical", disable=None), drafts, strict=True):
                for mode in modes:
                    rows[mode].append((await refine(engine, case, mode=mode, draft=draft))[0])
        right = np.array([case.is_right(draft.text) for case, draft in zip(cases, drafts, strict=True)])
        return {
            "requests": len(cases),
            "all": accepted(cases, drafts, rows),
            "wrong drafts": accepted(
                *(select(one, ~right) for one in (cases, drafts)), {mode: select(rows[mode], ~right) for mode in modes}
            )
            if not right.all()
            else None,
        }

    async def bf16(self) -> dict[str, Any]:
        return await bfloat16(self.cases[: self.counts.bf16], self.drafts[: self.counts.bf16])

    async def clients(self) -> list[dict[str, Any]]:
        """The demo refiner, and a model that every system can run."""
        cases, counts = self.cases[: self.counts.clients], self.counts
        return [await under_clients(subject, cases, counts.levels, counts.rounds) for subject in SUBJECTS]


def accepted(
    cases: Sequence[Conversation], drafts: Sequence[Draft], rows: Mapping[str, Sequence[RefineResult]]
) -> dict[str, Any]:
    """What each mode keeps, and what becomes of the texts."""
    right = {
        mode: np.array([case.is_right(one.text) for case, one in zip(cases, found, strict=True)])
        for mode, found in rows.items()
    }
    changed = np.array([a.text != b.text for a, b in zip(rows["exact"], rows["typical"], strict=True)])
    return {
        "requests": len(cases),
        "mean_draft_tokens": mean(len(draft.token_ids) for draft in drafts),
        "drafts_right": sum(case.is_right(draft.text) for case, draft in zip(cases, drafts, strict=True)),
        "modes": {
            mode: {
                "mean_kept_tokens": mean(one.kept_tokens for one in found),
                "mean_reused_tokens": mean(one.reused_draft_tokens for one in found),
                "mean_forwards": mean(one.forwards for one in found),
                "whole_drafts_kept": sum(
                    one.token_ids == draft.token_ids for one, draft in zip(found, drafts, strict=True)
                ),
                "texts_right": int(right[mode].sum()),
            }
            for mode, found in rows.items()
        },
        "kept_tokens_times": sum(one.kept_tokens for one in rows["typical"])
        / max(1, sum(one.kept_tokens for one in rows["exact"])),
        "texts_changed": int(changed.sum()),
        "changed": {
            "right_before": int((changed & right["exact"]).sum()),
            "right_after": int((changed & right["typical"]).sum()),
            "stay_right": int((changed & right["exact"] & right["typical"]).sum()),
        },
    }


def select(rows: Sequence[Any], who: np.ndarray) -> list[Any]:
    """Those that are marked."""
    return [row for row, chosen in zip(rows, who, strict=True) if chosen]


def ratio(slow: np.ndarray, fast: np.ndarray, seed: int) -> dict[str, Any]:
    """How many times as fast: by summed seconds, and by request; intervals of 95 % by a bootstrap over pairs."""
    picks = np.random.default_rng(seed).integers(len(slow), size=(RESAMPLES, len(slow)))
    each = slow / fast
    cuts = np.quantile(each, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    ends = [0.025, 0.975]
    return {
        "ratio": float(slow.sum() / fast.sum()),
        "interval_95": np.quantile(slow[picks].sum(axis=1) / fast[picks].sum(axis=1), ends).tolist(),
        "of_each_request": {
            "mean": float(each.mean()),
            "mean_interval_95": np.quantile(each[picks].mean(axis=1), ends).tolist(),
            **dict(zip(("least", "p5", "p25", "p50", "p75", "p95", "most"), cuts.tolist(), strict=True)),
        },
    }


PARTS: dict[str, Callable[[Bench], Awaitable[Any]]] = {
    "drafts": Bench.with_drafts,
    "typical": Bench.typical,
    "bf16": Bench.bf16,
    "clients": Bench.clients,
}


async def measure(counts: Counts, parts: Sequence[str], seed: int) -> dict[str, Any]:
    """All parts, one after the other."""
    keep_freed_memory()  # or each system's large blocks go back to the kernel, and page faults are what is measured
    torch.set_flush_denormal(True)  # as in our engine's thread; threads that begin later have it from here
    most = max(counts.drafts, counts.typical, counts.bf16, counts.clients, counts.warm_up)
    cases = list(islice(conversations("combinations", seed), most))
    bench = Bench(cases, await drafted(cases), counts, seed)
    return {
        **environment(seed),
        "threads": torch.get_num_threads(),
        "measured": {part: await PARTS[part](bench) for part in parts},
    }


def pictures(report: dict[str, Any], file: Path) -> None:
    """Time relative to fresh by kind of draft; tokens per second by clients."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    def save(figure: Any, name: str) -> None:
        figure.savefig(file.with_name(f"{file.stem}_{name}.svg"), metadata={"Date": None})
        plt.close(figure)

    if "drafts" in report:
        kinds = report["drafts"]["kinds"]
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for i, (name, found) in enumerate(kinds.items()):
            value, (low, high) = (found["times_as_fast"][key] for key in ("ratio", "interval_95"))
            errors = [[1 / value - 1 / high], [1 / low - 1 / value]]
            axes.bar(i, 1 / value, yerr=errors, capsize=4, color="C0", alpha=0.6, label="all" if i == 0 else None)
            for group, marker in (("short", "v"), ("medium", "o"), ("long", "^")):
                if group in found["groups"]:
                    at = 1 / found["groups"][group]["times_as_fast"]["ratio"]
                    axes.plot(i, at, marker, color="C1", label=f"{group} answers" if i == 0 else None)
            if name in GOALS:
                axes.hlines(1 / GOALS[name], i - 0.4, i + 0.4, "C3", "--", label="goal" if i == 0 else None)
        axes.axhline(1, color="#888888", linewidth=1)
        axes.set_xticks(range(len(kinds)), list(kinds))
        axes.set(ylabel="time of a request, relative to fresh", xlabel="the draft", ylim=(0, None))
        axes.legend(loc="upper left")
        axes.grid(alpha=0.3, axis="y")
        save(figure, "drafts")
    if "clients" in report:
        figure, panels = plt.subplots(1, len(report["clients"]), figsize=(9, 4.5), layout="constrained")
        for axes, model in zip(panels, report["clients"], strict=True):
            for i, name in enumerate(SYSTEMS):
                found = [level for level in model["levels"] if name in level["systems"]]
                if found:
                    rates = [level["systems"][name]["tokens_per_s"] for level in found]
                    axes.plot([level["clients"] for level in found], rates, "o-" if name == OURS else "s:",
                              color=f"C{i}", label=name)  # fmt: skip
            counts = [level["clients"] for level in model["levels"]]
            axes.set(title=model["model"], xlabel="clients that ask without a pause", xscale="log", ylim=(0, None))
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("tokens per second")
        panels[-1].legend()
        save(figure, "clients")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the report here; pictures go beside it as .svg")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--threads", type=int, default=1, help="torch intra-op threads, of every system")
    parser.add_argument("--parts", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--requests", type=int, help="at most so many in each part")
    parser.add_argument("--smoke", action="store_true", help="a few requests")
    options = parser.parse_args(arguments)
    if torch.cuda.is_available():  # which our engine would take
        sys.stderr.write("benchmarks.refine: compares on a CPU, found a GPU (hide it: CUDA_VISIBLE_DEVICES=)\n")
        return 2
    torch.set_num_threads(options.threads)
    counts = SMOKE if options.smoke else Counts()
    if options.requests:
        most = {name: min(getattr(counts, name), options.requests) for name in ("drafts", "typical", "bf16", "clients")}
        counts = replace(counts, **most)
    report = asyncio.run(measure(counts, options.parts, options.seed))
    report |= report.pop("measured")
    publish(report, options.json)
    if options.json:
        pictures(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
