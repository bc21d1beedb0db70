"""What the gateway itself costs, over engines that take no time: `python -m benchmarks.gateway --json FILE`.

Beside it, in the same run and on the same machine: a bare ASGI application that sends the same bytes (the floor: what uvicorn, the loopback and
the client take), LiteLLM's proxy with its mock response (`--litellm PYTHON`, an interpreter that has litellm[proxy]) and RouteLLM's server with
its random router (`--routellm PYTHON`), which asks the floor for its answers. All have one worker, no keys and no database. The parts:

Ours runs with the demo's classifiers, and once more with stubs in their place: no rival scores or checks anything.

throughput  closed loop: requests per second of CPU time that the server's processes take, by /proc. What else runs on the machine takes its
            share of the time, but little of this number
latency     open loop, Poisson arrivals, each prompt a new one; and at one rate a prompt that repeats (cache hits), and streams. Servers take
            turns; added latency is the difference of a quantile to the floor's in the same round
features    closed loop: CPU time of a request by what it makes the gateway do

Every number is the median of rounds. A rival is asked at the rates that it can bear: no more than `BEARABLE` of its closed loop's.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from tqdm import tqdm

from benchmarks import _gateway_servers as servers
from benchmarks._gateway_client import Asking, Job, Load
from benchmarks._gateway_processes import resident_mb
from benchmarks._gateway_servers import Server
from benchmarks._harness import environment, publish

FLOOR, OURS, OURS_WITH_REDIS = "floor", "draftgate", "draftgate, redis-server"
UNSCORED = "draftgate, stub classifiers"  # what is left when nothing is scored or checked, as no rival does
VARIANTS = (OURS, OURS_WITH_REDIS, UNSCORED)
LITELLM, ROUTELLM = "litellm", "routellm"
BEARABLE = 0.6
QUANTILES = ("p50", "p90", "p99")
ADDED_P50_MS, P99_MS, P99_AT, TIMES_LITELLM, HIT_P50_MS = 1.0, 10.0, 300, 10.0, 2.0

POLICY = {"load_rule": False}  # else a moment's wait for a core sends a request another way, which costs something else
SETTINGS = {"policy": POLICY}
KEY = "dg-of-the-benchmark"
LOCKED = {"DRAFTGATE_API_KEY": KEY}  # the environment's key: a gateway that has it lets nobody in without


@dataclass(frozen=True)
class Counts:
    """How much is measured."""

    rates: tuple[int, ...] = (50, P99_AT)  # requests per second
    case_rate: int = 100  # of cache hits and of streams
    seconds: float = 8.0
    warm_up_s: float = 1.0
    rounds: int = 3
    connections: int = 32  # of a closed loop
    saturated_s: float = 8.0
    feature_s: float = 3.0


SMOKE = Counts(
    rates=(50,), case_rate=50, seconds=0.5, warm_up_s=0.1, rounds=1, connections=4, saturated_s=0.4, feature_s=0.2
)


@dataclass(frozen=True)
class Feature:
    """Something a request may make the gateway do."""

    asking: Asking
    settings: Mapping[str, Any] = field(default_factory=lambda: SETTINGS)  # of the server
    environment: Mapping[str, str] = field(default_factory=dict)  # likewise


CASES = {"new prompts": Asking(), "cache hits": Asking(repeated=True), "streams": Asking(stream=True)}
FEATURES = {
    "GET /health/live": Feature(Asking(get="/health/live")),
    "GET /metrics": Feature(Asking(get="/metrics")),
    "cache hit": Feature(Asking(repeated=True)),
    "draft accepted": Feature(Asking()),
    "draft accepted, cache off": Feature(Asking(body={"draftgate": {"cache": False}})),
    "draft accepted, streamed": Feature(Asking(stream=True)),
    "draft accepted, with a key": Feature(Asking(headers={"authorization": f"Bearer {KEY}"}), environment=LOCKED),
    "refused, without its key": Feature(Asking(), environment=LOCKED),
    "direct, asked for": Feature(Asking(body={"draftgate": {"route": "refine"}})),
    "direct, complex": Feature(Asking(), {"policy": {**POLICY, "complexity_threshold": 0.0}}),
}


class Bench:
    """Servers that run, and loads put on them."""

    def __init__(self, running: Mapping[str, Server], counts: Counts, seed: int) -> None:
        self._running, self._counts, self._seed = running, counts, seed

    def load(self, server: Server, asking: Asking, seconds: float, rate: float | None) -> Load:
        """One measurement, with prompts that no other one has."""
        self._seed += 1000
        job = Job(
            port=server.port,
            asking=msgspec.structs.replace(asking, model=server.model),
            pids=server.pids,
            rate=rate,
            connections=self._counts.connections,
            seconds=seconds,
            warm_up_s=self._counts.warm_up_s,
            seed=self._seed,
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._gateway_client"], input=msgspec.json.encode(job), capture_output=True
        )
        if done.returncode:
            raise RuntimeError(f"the load client ended with {done.returncode}:\n{done.stderr.decode()}")
        return msgspec.json.decode(done.stdout, type=Load)

    def rounds(self, names: Sequence[str], measure: Callable[[str], Load], what: str) -> dict[str, list[Load]]:
        """Each by turns; none is always first."""
        found: dict[str, list[Load]] = {name: [] for name in names}
        for number in tqdm(range(self._counts.rounds), desc=what, disable=None):
            at = number % len(names)
            for name in [*names[at:], *names[:at]]:
                found[name].append(measure(name))
        return found

    def throughput(self) -> dict[str, Any]:
        """Of all servers, saturated; and ours as multiples of the others."""
        counts, running = self._counts, self._running
        found = self.rounds(
            list(running),
            lambda name: self.load(running[name], CASES["new prompts"], counts.saturated_s, None),
            "throughput",
        )
        per_core = {name: [one.requests / one.used["server"].cpu_s for one in loads] for name, loads in found.items()}
        return {
            "connections": counts.connections,
            "servers": {
                name: {
                    "requests_per_cpu_s": median(per_core[name]),
                    "rounds": per_core[name],
                    **totals(loads),
                    "resident_mb": resident_mb(running[name].pids["server"]),
                }
                for name, loads in found.items()
            },
            "times_per_cpu_s": {
                name: {
                    other: median(a / b for a, b in zip(per_core[name], per_core[other], strict=True))
                    for other in running
                    if other not in VARIANTS
                }
                for name in running
                if name in VARIANTS
            },
        }

    def latency(self, bearable: Mapping[str, float]) -> list[dict[str, Any]]:
        """Each case at its rates; `bearable`: the most requests per second, of rivals."""
        counts, running = self._counts, self._running
        planned = [("new prompts", rate) for rate in counts.rates]
        planned += [(case, counts.case_rate) for case in CASES if case != "new prompts"]
        report = []
        for case, rate in planned:
            names = [name for name in running if rate <= bearable.get(name, rate)]
            if case == "cache hits":
                names = [name for name in names if name not in bearable]  # no rival was given a cache
            found = self.rounds(
                names,
                lambda name, case=case, rate=rate: self.load(running[name], CASES[case], counts.seconds, rate),
                f"{case}, {rate} requests/s",
            )
            report.append({"case": case, "rate": rate, "servers": compared(found)})
        return report

    def features(self) -> dict[str, Any]:
        """Of ours without a Redis."""
        with ExitStack() as stack:
            started: dict[str, Server] = {}
            for feature in FEATURES.values():
                if (kind := _kind(feature)) not in started:
                    running = servers.draftgate(feature.settings, feature.environment)
                    started[kind] = stack.enter_context(running)

            def measure(name: str) -> Load:
                feature = FEATURES[name]
                return self.load(started[_kind(feature)], feature.asking, self._counts.feature_s, None)

            found = self.rounds(list(FEATURES), measure, "features")
        return {name: totals(loads) for name, loads in found.items()}


def _kind(feature: Feature) -> str:
    return json.dumps([dict(feature.settings), dict(feature.environment)])


def compared(found: Mapping[str, Sequence[Load]]) -> dict[str, Any]:
    """Latencies of a case, and by how much they exceed the floor's."""
    report: dict[str, Any] = {}
    for name, loads in found.items():
        report[name] = totals(loads)
        for key in ("latency_ms", "first_ms"):
            rounds = [getattr(one, key) for one in loads]
            floors = [getattr(one, key) for one in found[FLOOR]]
            if any(one is None for one in (*rounds, *floors)):
                continue  # not a stream, or nothing was answered in some round
            report[name][key] = {q: median(one[q] for one in rounds) for q in QUANTILES}
            report[name][f"{key}_rounds"] = {q: [one[q] for one in rounds] for q in QUANTILES}
            if name != FLOOR:
                report[name][f"added_{key}"] = {
                    q: median(one[q] - low[q] for one, low in zip(rounds, floors, strict=True)) for q in QUANTILES
                }
    return report


def totals(loads: Sequence[Load]) -> dict[str, Any]:
    """What all loads have, over rounds."""
    answers: Counter[str] = Counter()
    for one in loads:
        answers.update(one.answers)
    return {
        "answers": dict(answers),
        "unanswered": sum(one.unanswered for one in loads),
        "requests_per_s": median(one.requests_per_s for one in loads),
        "sent_late_p99_ms": median(one.sent_late_ms["p99"] for one in loads),
        "used": {
            name: {
                key: median(getattr(one.used[name], key) for one in loads)
                for key in ("cpu_us_per_request", "cores", "waited_us_per_request")
            }
            for name in loads[0].used
        },
    }


def goals(throughput: Mapping[str, Any], latency: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was aimed at, and what came of it, with the demo's classifiers and with stubs; a measured None: not measured in this run."""

    def worst(
        name: str, case: str, rates: Callable[[int], bool], read: Callable[[Mapping[str, Any]], float]
    ) -> float | None:
        found = [cell for cell in latency if cell["case"] == case and rates(cell["rate"])]
        return max((read(cell["servers"][name]) for cell in found), default=None)

    def goal(measured: float | None, aim: float, *, at_least: bool = False) -> dict[str, Any]:
        met = None if measured is None else measured >= aim if at_least else measured <= aim
        return {"aim": f"{'>=' if at_least else '<='} {aim:g}", "measured": measured, "met": met}

    def of(name: str) -> dict[str, Any]:
        added = worst(name, "new prompts", lambda rate: True, lambda one: one["added_latency_ms"]["p50"])
        late = worst(name, "new prompts", lambda rate: rate == P99_AT, lambda one: one["latency_ms"]["p99"])
        hit = worst(name, "cache hits", lambda rate: True, lambda one: one["latency_ms"]["p50"])
        times = throughput["times_per_cpu_s"][name].get(LITELLM)
        return {
            "added_p50_ms": goal(added, ADDED_P50_MS),
            f"p99_ms_at_{P99_AT}": goal(late, P99_MS),
            "requests_per_cpu_s_times_litellm": goal(times, TIMES_LITELLM, at_least=True),
            "cache_hit_p50_ms": goal(hit, HIT_P50_MS),
        }

    return {name: of(name) for name in (OURS, UNSCORED)}


def measure(counts: Counts, seed: int, litellm: str | None, routellm: str | None) -> dict[str, Any]:
    """All parts, one after the other."""
    here = ("litestar", "uvicorn", "uvloop", "httptools", "msgspec", "redis", "fakeredis")
    rivals: dict[str, Any] = {
        LITELLM: servers.versions(litellm, "litellm", "uvicorn", "fastapi") if litellm else "not run: no --litellm",
        ROUTELLM: servers.versions(routellm, "routellm", "litellm", "uvicorn", "fastapi")
        if routellm
        else "not run: no --routellm",
    }
    with ExitStack() as stack:
        running = {OURS: stack.enter_context(servers.draftgate(SETTINGS, {}))}
        running = {FLOOR: stack.enter_context(servers.floor(servers.record(running[OURS]))), **running}
        running[UNSCORED] = stack.enter_context(servers.draftgate(SETTINGS, {}, classifiers=False))
        if servers.has_redis():
            running[OURS_WITH_REDIS] = stack.enter_context(servers.draftgate_with_redis(SETTINGS))
        if litellm:
            running[LITELLM] = stack.enter_context(servers.litellm(litellm))
        if routellm:
            running[ROUTELLM] = stack.enter_context(servers.routellm(routellm, running[FLOOR]))
        bench = Bench(running, counts, seed)
        throughput = bench.throughput()
        saturated = {
            name: throughput["servers"][name]["requests_per_s"] for name in (LITELLM, ROUTELLM) if name in running
        }
        latency = bench.latency({name: BEARABLE * rate for name, rate in saturated.items()})
    return {
        "installed": {FLOOR: "as ours", OURS: servers.versions(sys.executable, *here), **rivals},
        "redis_server": servers.has_redis(),
        "counts": asdict(counts),
        "goals": goals(throughput, latency),
        "throughput": throughput,
        "latency": latency,
        "features": bench.features(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--litellm", metavar="PYTHON", help="an interpreter that has litellm[proxy]")
    parser.add_argument("--routellm", metavar="PYTHON", help="an interpreter that has routellm[serve]")
    parser.add_argument("--rounds", type=int, default=Counts.rounds, help="of each measurement")
    parser.add_argument("--smoke", action="store_true", help="fractions of a second each")
    options = parser.parse_args(arguments)
    found = measure(
        SMOKE if options.smoke else Counts(rounds=options.rounds), options.seed, options.litellm, options.routellm
    )
    publish({**environment(options.seed), **found}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
