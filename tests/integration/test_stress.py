"""Too many requests, engines that hang, restarts, a Redis that goes away: everyone gets an answer, and afterwards nothing is left behind."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from router.settings import CacheSettings, RedisSettings, ServerSettings, Settings
from tests.conftest import HANG_S, Gateway, RedisServer, eventually
from tests.fakes import HANG
from tests.raw_client import CHAT, answer_of, send
from tests.slow_server import Plan, SlowServer

pytestmark = pytest.mark.timeout(4 * HANG_S)
Make = Callable[[Gateway], Gateway]
REFINE = "draftgate-refine"


def body(text: str, **fields: object) -> dict[str, object]:
    return {"model": "draftgate", "messages": [{"role": "user", "content": text}]} | fields


def check_busy(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == "server_is_overloaded"
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["x-draftgate-request-id"]


def serving(**server: float) -> Gateway:
    return Gateway(Settings(server=ServerSettings(**server)))  # pyright: ignore[reportArgumentType]


def test_the_request_after_the_last_place_is_refused_and_health_answers(make_gateway: Make) -> None:
    gateway = make_gateway(serving(max_requests=3))
    gateway.refine.enqueue(*[HANG] * 3)
    clients = [send(gateway, model=REFINE, messages=body(str(i))["messages"]) for i in range(3)]
    eventually(lambda: gateway.refine.running == 3)
    for fields in ({}, {"stream": True}, {"model": REFINE}):
        check_busy(gateway.http.post(CHAT, json=body("one more", **fields)))
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert gateway.http.get(path).status_code == 200
    clients.pop().close()
    eventually(lambda: gateway.http.post(CHAT, json=body("one more")).status_code == 200)
    for client in clients:
        client.close()
    eventually(lambda: gateway.refine.running == 0)


def test_more_to_read_than_fits_is_refused_but_never_for_good(make_gateway: Make) -> None:
    gateway = make_gateway(serving(max_pending_tokens=1000))
    long, short = "long " * 700, "short"  # 875 tokens, as the gateway estimates
    gateway.refine.enqueue(HANG)
    client = send(gateway, model=REFINE, messages=body(long)["messages"])
    eventually(lambda: gateway.refine.running == 1)
    check_busy(gateway.http.post(CHAT, json=body(long + "?")))
    assert gateway.http.post(CHAT, json=body(short)).status_code == 200
    client.close()
    eventually(lambda: gateway.http.post(CHAT, json=body(long + "?")).status_code == 200)
    assert gateway.http.post(CHAT, json=body(long * 2)).status_code == 200  # alone, anything fits


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [REFINE, "draftgate-draft"])
def test_an_engine_that_hangs_is_given_up_at_the_deadline(gateway: Gateway, model: str, stream: bool) -> None:
    engine = gateway.refine if model == REFINE else gateway.draft
    engine.enqueue(HANG)
    response = gateway.http.post(CHAT, json=body("x", model=model, stream=stream, draftgate={"deadline_ms": 100}))
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "deadline_passed"
    eventually(lambda: engine.running == 0)


def test_a_deadline_of_the_request_never_exceeds_the_servers(make_gateway: Make) -> None:
    gateway = make_gateway(serving(request_timeout_s=0.2))
    gateway.refine.enqueue(HANG)
    response = gateway.http.post(CHAT, json=body("x", model=REFINE, draftgate={"deadline_ms": 3_600_000}))
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    eventually(lambda: gateway.refine.running == 0)


def test_a_draft_engine_that_hangs_is_replaced_by_the_refiner(gateway: Gateway) -> None:
    gateway.draft.enqueue(HANG)
    response = gateway.http.post(CHAT, json=body("x", draftgate={"deadline_ms": 2000}))
    assert response.status_code == 200
    assert response.headers["x-draftgate-route"] == "direct"
    eventually(lambda: gateway.draft.running == 0)


def test_a_body_that_does_not_come_holds_no_place(make_gateway: Make) -> None:
    gateway = make_gateway(serving(max_requests=1, body_timeout_s=0.2))
    clients = [send(gateway, cut=5) for _ in range(20)]
    assert gateway.http.post(CHAT, json=body("x")).status_code == 200
    for client in clients:
        status, answer = answer_of(client)
        assert (status, answer["error"]["code"]) == (408, "request_timeout")


# --- SIGTERM ---


def test_a_stream_under_way_is_finished_and_the_server_says_that_it_leaves() -> None:
    plan = Plan(answer_s=2.0, words=20, linger_s=1.0)
    with SlowServer(plan) as server, httpx.Client(base_url=server.url, timeout=HANG_S) as http:
        server.until_ready()
        with http.stream("POST", CHAT, json=body("x", model=REFINE, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.terminate()
            eventually(lambda: httpx.get(f"{server.url}/health/ready", timeout=HANG_S).status_code == 503)
            # until it stops to listen it answers whoever hasn't heard yet, and asks them not to come back
            late = httpx.post(f"{server.url}{CHAT}", json=body("late"), timeout=HANG_S)
            assert late.status_code == 200
            assert late.headers["connection"] == "close"
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.ended() == 0


@dataclass
class Fleet:
    """Replicas behind a balancer that looks whether they are ready, and clients that always want an answer."""

    plan: Plan
    replicas: list[SlowServer] = field(default_factory=list)
    whole: int = 0
    stopping: bool = False

    async def ask(self, number: int) -> None:
        """Ask again and again. What no replica has begun to answer is asked again elsewhere, as any client would."""
        turn = number
        while not self.stopping:
            turn += 1
            url = self.replicas[turn % len(self.replicas)].url + CHAT
            async with httpx.AsyncClient(timeout=HANG_S, verify=False) as http:
                request = http.build_request("POST", url, json=body(f"{number}.{turn}", model=REFINE, stream=True))
                try:
                    response = await http.send(request, stream=True)
                except httpx.TransportError:
                    continue
                assert response.status_code == 200
                assert (await response.aread()).endswith(b"data: [DONE]\n\n")
                self.whole += 1

    async def restart(self, times: int) -> None:
        """One replica after the other, the new one first."""
        for _ in range(times):
            fresh, old = SlowServer(self.plan), self.replicas[0]
            await asyncio.to_thread(fresh.start)
            await asyncio.to_thread(fresh.until_ready)
            self.replicas = [*self.replicas[1:], fresh]
            old.terminate()
            assert await asyncio.to_thread(old.ended) == 0

    async def run(self, times: int) -> None:
        for _ in range(2):
            self.replicas.append(SlowServer(self.plan))
            self.replicas[-1].start()
        try:
            for server in self.replicas:
                await asyncio.to_thread(server.until_ready)
            asking = [asyncio.create_task(self.ask(i)) for i in range(6)]
            await self.restart(times)
            self.stopping = True
            await asyncio.gather(*asking)
        finally:
            for server in self.replicas:
                server.process.kill()
                server.process.wait()


@pytest.mark.anyio
@pytest.mark.parametrize("times", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
async def test_rolling_restarts_cut_no_answer_short(times: int) -> None:
    fleet = Fleet(Plan(answer_s=0.4, slots=8, linger_s=0.2))
    await fleet.run(times)
    assert fleet.whole > times


# --- three times what the engines can do ---


@dataclass
class Overload:
    """Requests that come at their own pace, whatever becomes of the others."""

    server: SlowServer
    statuses: Counter[int] = field(default_factory=Counter)
    good: int = 0
    refused_without_when: int = 0

    async def ask(self, http: httpx.AsyncClient, text: str) -> None:
        fields = {"draftgate": {"deadline_ms": 2000, "cache": False}}
        response = await http.post(CHAT, json=body(text, model=REFINE, **fields))
        self.statuses[response.status_code] += 1
        if response.status_code in (429, 503) and not 1 <= int(response.headers.get("retry-after", 0)) <= 60:
            self.refused_without_when += 1

    async def run(self, rate: float, seconds: float) -> float:
        """Ask so many times a second; answers of status 200 per second."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=HANG_S, limits=limits, verify=False) as http:
            began, before = time.monotonic(), self.statuses[200]
            asked: set[asyncio.Task[None]] = set()
            for i in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, began + i / rate - time.monotonic()))
                asked.add(asyncio.create_task(self.ask(http, f"{rate} {i}")))
            sending_s = time.monotonic() - began
            during = self.statuses[200] - before
            await asyncio.gather(*asked)
        return during / sending_s


async def overload(seconds: float) -> tuple[float, float, Overload]:
    """Goodput at nine tenths of what the engine can do, and then at three times of it."""
    plan = Plan(slots=4, answer_s=0.2)
    with SlowServer(plan) as server:
        await asyncio.to_thread(server.until_ready)
        run = Overload(server)
        peak = await run.run(0.9 * plan.answers_per_s, min(seconds, 20) / 2)
        assert set(run.statuses) == {200}
        size, files = server.resident_bytes, server.open_files
        goodput = await run.run(3 * plan.answers_per_s, seconds)
        assert run.refused_without_when == 0
        assert set(run.statuses) <= {200, 408, 503}
        assert run.statuses[503] > 0, "it was never too much"
        assert server.resident_bytes < size + 50_000_000
        eventually(lambda: server.open_files <= files + 5)
        loads = (await asyncio.to_thread(httpx.get, f"{server.url}/health/ready")).json()
        assert (loads["refine"]["running"], loads["refine"]["waiting"]) == (0, 0)
        # every place is free again: as many as may be under way at once are let in
        again = Overload(server)
        async with httpx.AsyncClient(base_url=server.url, timeout=HANG_S, verify=False) as http:
            await asyncio.gather(*(again.ask(http, f"again {i}") for i in range(plan.slots)))
        assert again.statuses == {200: plan.slots}
    return peak, goodput, run


@pytest.mark.anyio
async def test_three_times_too_much_is_answered_or_refused() -> None:
    _, goodput, run = await overload(8.0)
    assert goodput > 0
    assert sum(run.statuses.values()) == round(0.9 * 20 * 4) + 3 * 20 * 8


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_three_times_too_much_costs_no_goodput() -> None:
    peak, goodput, run = await overload(120.0)
    assert goodput >= 0.9 * peak, f"{goodput:.1f}/s of {peak:.1f}/s: {run.statuses}"


# --- Redis ---


@dataclass
class Traffic:
    """Two gateways on one Redis, asked all the time."""

    gateways: tuple[Gateway, Gateway]
    statuses: Counter[int] = field(default_factory=Counter)
    asked: int = 0

    def ask(self, times: int = 15) -> None:
        for _ in range(times):
            self.asked += 1
            gateway = self.gateways[self.asked % 2]
            text = f"question {self.asked % 7 or self.asked}"  # some again, most for the first time
            self.statuses[gateway.http.post(CHAT, json=body(text)).status_code] += 1

    def redis(self) -> set[str]:
        return {gateway.http.get("/health/ready").json()["redis"] for gateway in self.gateways}


@pytest.fixture
def traffic(make_gateway: Make, redis_server: RedisServer) -> Traffic:
    redis = RedisSettings(url=redis_server.url, timeout_s=0.1, retry_after_s=0.1)
    settings = Settings(redis=redis, cache=CacheSettings(local_bytes=1))
    return Traffic((make_gateway(Gateway(settings)), make_gateway(Gateway(settings))))


@pytest.mark.redis
def test_a_redis_that_is_killed_and_comes_back_costs_no_answer(traffic: Traffic, redis_server: RedisServer) -> None:
    for _ in range(2):
        traffic.ask()
        redis_server.kill()
        traffic.ask()
        eventually(lambda: traffic.redis() == {"down"})
        traffic.ask()
        redis_server.start()
        eventually(lambda: traffic.redis() == {"ok"})
    assert traffic.statuses == {200: traffic.asked}


@pytest.mark.redis
def test_a_redis_that_is_frozen_costs_no_answer(traffic: Traffic, redis_server: RedisServer) -> None:
    assert redis_server.process is not None
    traffic.ask()
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    try:
        traffic.ask()
        eventually(lambda: traffic.redis() == {"down"})
        traffic.ask()
    finally:
        os.kill(redis_server.process.pid, signal.SIGCONT)
    eventually(lambda: traffic.redis() == {"ok"})
    traffic.ask()
    assert traffic.statuses == {200: traffic.asked}
