"""Tokens per second under clients that ask without a pause: our engine and what transformers offers, over the same weights."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from statistics import mean, median, quantiles
from typing import Any

from tqdm import tqdm

from ar_engine.engine import AutoregressiveEngine
from benchmarks._engine_load import Ask, Done, closed_loop
from benchmarks._refine_systems import (
    MOST_TOKENS,
    Subject,
    Theirs,
    continuous,
    demo,
    in_batches,
    one_by_one,
    our_engine,
    ours,
    random_qwen3,
)
from demo_models.tasks import Conversation

OURS, ONE_BY_ONE = "ours", "transformers, one by one"
STATIC, CONTINUOUS = "transformers, static batches", "transformers, continuous batching"
SYSTEMS = (OURS, ONE_BY_ONE, STATIC, CONTINUOUS)
SUBJECTS = (Subject("demo refiner", demo, MOST_TOKENS), Subject("random qwen3", random_qwen3, 32))
WARM_UP = 2  # requests before each measurement


class Stage:
    """One subject's systems, loaded."""

    def __init__(self, engine: AutoregressiveEngine, theirs: Theirs, tokens: int, most: int) -> None:
        self._engine, self._theirs, self._tokens, self._most = engine, theirs, tokens, most
        self.errors: dict[str, str] = {}  # systems that can't run the model, and what they say

    async def check(self, case: Conversation) -> None:
        """Ask continuous batching once; a failure is a result."""
        try:
            async with self._service(CONTINUOUS) as ask:
                await ask(case, 0)
        except Exception as error:  # noqa: BLE001 - any failure of another's is what is to be reported
            self.errors[CONTINUOUS] = f"{type(error).__name__}: {error}"

    async def run(self, name: str, cases: Sequence[Conversation], clients: int) -> list[Done]:
        """All cases asked of one system, in the order of the list."""
        if name == STATIC:
            in_batches(self._theirs, cases[:WARM_UP], clients)
            done = in_batches(self._theirs, cases, clients)
        else:
            async with self._service(name) as ask:
                await closed_loop(ask, cases[:WARM_UP], clients)
                done = await closed_loop(ask, cases, clients)
        return sorted(done, key=lambda one: one.answer.number)

    def _service(self, name: str) -> AbstractAsyncContextManager[Ask]:
        if name == OURS:
            return ours(self._engine, self._tokens)
        return one_by_one(self._theirs) if name == ONE_BY_ONE else continuous(self._theirs, self._most)


async def under_clients(
    subject: Subject, cases: Sequence[Conversation], levels: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Each system at each level in each round, in turns; a level's numbers are those of the best round, its ratios medians over rounds."""
    theirs, done = Theirs(subject.make, subject.tokens), dict[tuple[int, str], list[list[Done]]]()
    async with our_engine(subject.make, max_running=max(levels)) as engine:
        stage = Stage(engine, theirs, subject.tokens, max(levels))
        await stage.check(cases[0])
        names = [name for name in SYSTEMS if name not in stage.errors]
        for clients in tqdm(list(levels) * rounds, desc=subject.name, disable=None):
            names = [*names[1:], names[0]]  # none is always first
            for name in names:
                if name == STATIC and clients == 1:
                    continue  # which is one by one
                done.setdefault((clients, name), []).append(await stage.run(name, cases, clients))
    reference = [one.answer.ids for one in done[levels[0], ONE_BY_ONE][0]]
    return {
        "model": subject.name,
        "requests": len(cases),
        "mean_tokens": mean(one.answer.tokens for one in done[levels[0], ONE_BY_ONE][0]),
        "errors": stage.errors,
        "levels": [
            _level(clients, {name: done[clients, name] for name in SYSTEMS if (clients, name) in done}, reference)
            for clients in levels
        ],
    }


def _level(clients: int, done: dict[str, list[list[Done]]], reference: list[tuple[int, ...]]) -> dict[str, Any]:
    rates = {name: [tokens_per_s(one) for one in rounds] for name, rounds in done.items()}
    return {
        "clients": clients,
        "systems": {
            name: {
                "tokens_per_s": max(rates[name]),
                "rounds": rates[name],
                "seconds": _latency(max(rounds, key=tokens_per_s)),
                "same_text_share": mean(
                    one.answer.ids == ids for found in rounds for one, ids in zip(found, reference, strict=True)
                ),
            }
            for name, rounds in done.items()
        },
        "times_as_fast_as": {
            name: median(a / b for a, b in zip(rates[OURS], rates[name], strict=True)) for name in rates if name != OURS
        },
    }


def tokens_per_s(done: Sequence[Done]) -> float:
    """Tokens written, those that end answers included, by the time the last answer was there."""
    return sum(one.answer.tokens for one in done) / max(one.at for one in done)


def _latency(done: Sequence[Done]) -> dict[str, float]:
    cuts = quantiles((one.seconds for one in done), n=20, method="inclusive")
    return {"mean": mean(one.seconds for one in done), "p50": cuts[9], "p95": cuts[18]}
