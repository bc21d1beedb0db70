"""A batch beside people who wait: `python -m benchmarks.batch --lines 2000 --json FILE`.

The real server with the demo models. Interactive requests come as a Poisson process, open loop, each timed from when it was due; they come
alone, then while a batch is worked on until it is complete, then alone again. The ratio of the quantiles is what a batch costs those who wait;
the batch's own pace is what it gets of an engine that others use. Everything is asked without the cache.
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from benchmarks._harness import environment, publish
from benchmarks._server import running_server
from demo_models.tasks import conversations

UNCACHED = {"cache": False}


class Clients:
    """Asks interactive questions at a steady mean rate, and remembers how long each took."""

    def __init__(self, client: httpx.AsyncClient, rate: float, seed: int) -> None:
        self._client = client
        self._rate = rate
        self._random = random.Random(seed)
        self._cases = conversations("combinations", seed=seed)
        self.seconds: list[float] = []

    async def ask_until(self, done: asyncio.Event) -> list[float]:
        """Ask until told to stop; returns the seconds of every request asked."""
        self.seconds, tasks = [], list[asyncio.Task[None]]()
        due = time.perf_counter()
        while not done.is_set():
            due += self._random.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(next(self._cases).messages, due)))
        await asyncio.gather(*tasks)
        return self.seconds

    async def _ask(self, messages: Any, due: float) -> None:
        body = {"model": "draftgate", "messages": messages, "draftgate": UNCACHED}
        (await self._client.post("/v1/chat/completions", json=body)).raise_for_status()
        self.seconds.append(time.perf_counter() - due)


def lines(count: int, seed: int) -> Iterator[str]:
    """A batch's requests."""
    cases = itertools.islice(conversations("train", seed=seed), count)
    for at, case in enumerate(cases):
        body = {"model": "draftgate", "messages": case.messages, "draftgate": UNCACHED}
        request = {"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(request) + "\n"


async def alone(clients: Clients, seconds: float) -> list[float]:
    """Interactive requests and nothing else."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    return await clients.ask_until(done)


async def run_batch(client: httpx.AsyncClient, content: str) -> dict[str, Any]:
    """Have a batch worked on; returns it once it has ended."""
    file = {"file": ("batch.jsonl", content.encode()), "purpose": (None, "batch")}
    uploaded = (await client.post("/v1/files", files=file)).raise_for_status().json()
    asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await client.post("/v1/batches", json=asked)).raise_for_status().json()
    while batch["status"] in ("validating", "in_progress", "finalizing"):
        await asyncio.sleep(0.5)
        batch = (await client.get(f"/v1/batches/{batch['id']}")).raise_for_status().json()
    return batch


async def measure(address: str, options: argparse.Namespace) -> dict[str, Any]:
    """All phases on one server."""
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=256)) as client:
        clients = Clients(client, options.rate, options.seed)
        await alone(clients, 5)  # warm up
        before = await alone(clients, options.alone_s)
        began, done = time.perf_counter(), asyncio.Event()
        asking = asyncio.create_task(clients.ask_until(done))
        batch = await run_batch(client, "".join(lines(options.lines, options.seed)))
        took_s = time.perf_counter() - began
        done.set()
        beside = await asking
        after = await alone(clients, options.alone_s)
        began = time.perf_counter()
        unaccompanied = await run_batch(client, "".join(lines(options.lines_alone, options.seed + 1)))
        idle_s = time.perf_counter() - began
    return {
        "interactive": {
            "rate_per_s": options.rate,
            "alone_before": summary(before),
            "beside_the_batch": summary(beside),
            "alone_after": summary(after),
            "p50_ratio": ratio(beside, before + after, 50),
            "p95_ratio": ratio(beside, before + after, 95),
        },
        "batch": {
            "status": batch["status"],
            "counts": batch["request_counts"],
            "seconds": round(took_s, 1),
            "lines_per_s": round(options.lines / took_s, 2),
        },
        "batch_with_nobody_beside": {
            "status": unaccompanied["status"],
            "lines_per_s": round(options.lines_alone / idle_s, 2),
        },
        "goals": {"p95_ratio": 1.3},
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """Quantiles of a phase, in seconds."""
    return {"requests": len(seconds), "p50": quantile(seconds, 50), "p95": quantile(seconds, 95)}


def quantile(seconds: list[float], percent: int) -> float:
    """One of the 99 percentiles."""
    return round(quantiles(seconds, n=100, method="inclusive")[percent - 1], 5)


def ratio(one: list[float], other: list[float], percent: int) -> float:
    """Of two phases' quantiles."""
    return round(quantile(one, percent) / quantile(other, percent), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000, help="of the batch beside interactive requests")
    parser.add_argument("--lines-alone", type=int, default=400, help="of the batch with nobody beside it")
    parser.add_argument("--rate", type=float, default=2.0, help="interactive requests a second")
    parser.add_argument("--alone-s", type=float, default=60.0, help="seconds of interactive requests alone, twice")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with running_server({}) as address:
        report = asyncio.run(measure(address, options))
    publish({"benchmark": "batch", **environment(options.seed), **report}, options.json)


if __name__ == "__main__":
    main()
