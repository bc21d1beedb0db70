"""Counts and latencies by route: in this process for Prometheus, in Redis across all gateways.

Redis holds one hash per minute. Latencies are counts in log-spaced bins 2 % wide, so adding is
one HINCRBY, hashes merge by addition, and a percentile is right to 1 %.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.policy import DecisionRecord
from router.state.outbox import Outbox
from router.state.store import Store

BUCKET_S = 60
KEPT_S = 48 * 3600
BIN_RATIO = 1.02
LEAST_S = 1e-6
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Load(Protocol):
    """The part of an engine's load that is shown."""

    @property
    def state(self) -> str: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Minute(Struct, frozen=True):
    """What happened in one minute, over all gateways."""

    requests: dict[tuple[str, str, int], int]  # (route, reason, status): count
    latency: dict[str, dict[int, int]]  # route: {bin: count}


def bin_of(seconds: float) -> int:
    """The log-spaced bin of a duration; anything under a microsecond counts as one."""
    return math.ceil(math.log(max(seconds, LEAST_S)) / math.log(BIN_RATIO))


def seconds_of(index: int) -> float:
    """The duration in a bin's middle, at most 1 % from any in it."""
    return 2 * BIN_RATIO**index / (1 + BIN_RATIO)


def bucket_key(at_unix_s: float) -> str:
    """The hash that holds the minute of a moment."""
    return f"draftgate:metrics:{BUCKET_S}:{int(at_unix_s // BUCKET_S)}"


class Metrics:
    """Takes one record per request; prompts never reach it."""

    def __init__(self, store: Store, outbox: Outbox, loads: dict[str, Callable[[], Load]]) -> None:
        self._store = store
        self._outbox = outbox
        self._bucket = ""  # the last minute counted in
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "draftgate_requests",
            "Requests answered or given up.",
            ("route", "reason", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "draftgate_request_seconds",
            "From arrival to the last token.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        tokens = Counter(
            "draftgate_tokens",
            "Tokens read (prompt), written (completion) and taken over from drafts (kept).",
            ("kind",),
            registry=self.registry,
        )
        self._tokens = [(kind, tokens.labels(kind)) for kind in ("prompt", "completion", "kept", "sketched")]
        self._refused = Counter(
            "draftgate_errors",
            "Error responses.",
            ("code", "status"),
            registry=self.registry,
        )
        self.registry.register(_Live(store, loads))

    def observe(self, record: DecisionRecord) -> None:
        """Count one request."""
        route = record.route or "none"
        self._requests.labels(route, record.reason, str(record.status)).inc()
        self._seconds.labels(route).observe(record.elapsed_s)
        for kind, counter in self._tokens:
            counter.inc(getattr(record, f"{kind}_tokens") or 0)
        key = bucket_key(record.at_unix_s)
        self._outbox.count(key, f"requests|{route}|{record.reason}|{record.status}")
        self._outbox.count(key, f"latency|{route}|{bin_of(record.elapsed_s)}")
        if key != self._bucket:
            self._bucket = key
            self._outbox.add(("EXPIRE", key, KEPT_S))
            # fakeredis lets go of expired keys that nobody asks for only when it counts them all
            self._outbox.add(("DBSIZE",))

    def refused(self, code: str, status: int) -> None:
        """Count one error response."""
        self._refused.labels(code, str(status)).inc()

    async def minute(self, at_unix_s: float | None = None) -> Minute | None:
        """Read one minute back; None when Redis is gone."""
        key = bucket_key(time.time() if at_unix_s is None else at_unix_s)
        replies = await self._store.run(("HGETALL", key))
        if replies is None:
            return None
        minute = Minute({}, {})
        for field, count in replies[0].items():
            match field.decode().split("|"):
                case ["requests", route, reason, status]:
                    minute.requests[route, reason, int(status)] = int(count)
                case ["latency", route, index]:
                    minute.latency.setdefault(route, {})[int(index)] = int(count)
                case _:  # written by a newer gateway
                    continue
        return minute


class _Live(Collector):
    """Read at the moment of scraping."""

    def __init__(self, store: Store, loads: dict[str, Callable[[], Load]]) -> None:
        self._store = store
        self._loads = loads

    def collect(self) -> Iterable[Metric]:
        requests = GaugeMetricFamily("draftgate_engine_requests", "Requests in an engine.", labels=("engine", "state"))
        ready = GaugeMetricFamily("draftgate_engine_ready", "1 when an engine can serve.", labels=("engine",))
        for engine, read in self._loads.items():
            load = read()
            requests.add_metric((engine, "running"), load.running)
            requests.add_metric((engine, "waiting"), load.waiting)
            ready.add_metric((engine,), float(load.state == "ready"))
        yield requests
        yield ready
        yield CounterMetricFamily("draftgate_redis_failures", "Calls Redis did not answer.", value=self._store.failures)
