"""The gateway benchmark's harness: that it counts what it says; how fast anything is is not looked at."""

import asyncio
import itertools
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from benchmarks import _gateway_client, gateway
from benchmarks._gateway_client import Asking, Client, Job, Load, Reply, poisson, quantiles, requests, summary
from benchmarks._gateway_processes import Usage, usage

pytestmark = pytest.mark.timeout(60)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Draftgate-Route: draft\r\n\r\n{}"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


@asynccontextmanager
async def toy_server(answer: Answer) -> AsyncGenerator[int, None]:
    """Reads a request, then lets `answer` write; yields its port."""

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        while head := await read_head(reader):
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*(task for task in serving if task))


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


def on_a_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(run())


def test_an_open_loop_asks_without_waiting_for_answers_and_charges_for_the_wait() -> None:
    arrivals = [0.0, 0.01, 0.02, 0.03, 0.04]
    asked, everyone = itertools.count(1), asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        if next(asked) == len(arrivals):
            everyone.set()
        await everyone.wait()  # a closed loop of fewer connections would hang here
        writer.write(OK)

    async def work() -> None:
        async with toy_server(answer) as port, Client(port, requests(Asking(), port, 1)) as client:
            assert await client.open_loop(arrivals) == 0
        replies = sorted(client.replies)
        start = replies[0].due
        assert [reply.due - start for reply in replies] == pytest.approx(arrivals)
        assert all(reply.due <= reply.sent <= reply.end == reply.first for reply in replies)
        assert {(reply.status, reply.route) for reply in replies} == {(200, "draft")}
        assert min(reply.end for reply in replies) > replies[-1].due

    on_a_loop(work)


def test_a_request_that_is_sent_late_is_counted_from_when_it_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gateway_client, "MOST_CONNECTIONS", 1)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(OK)

    async def work() -> None:
        async with toy_server(answer) as port, Client(port, requests(Asking(), port, 1)) as client:
            assert await client.open_loop([0.0, 0.001, 0.002]) == 0
        first, second, third = sorted(client.replies)
        assert first.end <= second.sent  # it waited for the only connection ...
        assert second.end <= third.sent
        load = summary(client.replies, 0, 1.0, {}, stream=False)
        assert load.latency_ms is not None
        assert load.latency_ms["p99"] > 1e3 * (third.end - third.sent)  # ... which counts
        assert load.sent_late_ms["p99"] > 1e3 * (first.sent - first.due)

    on_a_loop(work)


def test_a_closed_loop_keeps_so_many_requests_under_way() -> None:
    running = most = 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        writer.write(OK)

    async def work() -> None:
        async with toy_server(answer) as port, Client(port, requests(Asking(), port, 1)) as client:
            assert await client.closed_loop(3, 0.1) == 0
        assert most == 3
        assert len(client.replies) > 3

    on_a_loop(work)


def test_what_is_broken_off_or_never_answered_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gateway_client, "DRAIN_S", 0.1)
    number, never = itertools.count(), asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        match next(number):
            case 0:
                writer.close()
            case 1:
                await never.wait()
            case _:
                writer.write(OK)

    async def work() -> None:
        async with toy_server(answer) as port, Client(port, requests(Asking(), port, 1)) as client:
            unanswered = await client.open_loop([0.0, 0.03, 0.06])
            never.set()
        assert unanswered == 1
        load = summary(client.replies, unanswered, 1.0, {}, stream=False)
        assert load.requests == 3
        assert load.answers == {"0": 1, "200 draft": 1}

    on_a_loop(work)


def test_a_streams_first_content_is_not_its_first_chunk() -> None:
    told: list[float] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        def chunk(data: bytes) -> None:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))

        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
        await asyncio.sleep(0.02)
        told.append(time.perf_counter())
        chunk(b'data: {"choices": [{"delta": {"content": "The"}}]}\n\n')
        await asyncio.sleep(0.02)
        told.append(time.perf_counter())
        chunk(b"data: [DONE]\n\n")
        chunk(b"")

    async def work() -> None:
        async with toy_server(answer) as port, Client(port, requests(Asking(stream=True), port, 1)) as client:
            assert await client.open_loop([0.0]) == 0
        (reply,) = client.replies
        assert told[0] <= reply.first < reply.end
        assert told[1] <= reply.end

    on_a_loop(work)


def test_a_job_is_measured_with_its_warm_up_left_out() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)

    found: list[Load] = []
    job = Job(port=0, asking=Asking(), pids={"server": os.getpid()}, rate=100, connections=1, seconds=0.3, warm_up_s=0.1, seed=4)  # fmt: skip

    async def work() -> None:
        async with toy_server(answer) as port:
            found.append(await _gateway_client.measure(msgspec.structs.replace(job, port=port)))

    on_a_loop(work)
    assert found[0].answers == {"200 draft": len(poisson(100, 0.3, seed=4))}
    assert set(found[0].used) == {"server", "client"}


def test_processor_time_is_of_the_process_and_all_it_started() -> None:
    before = usage(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert usage(child.pid).cpu_s >= 0.25
    assert usage(os.getpid()).since(before).cpu_s >= 0.25
    child.communicate(b"\n")
    assert usage(os.getpid()).since(before).cpu_s >= 0.25  # also after its end
    with pytest.raises(ProcessLookupError, match=str(child.pid)):
        usage(child.pid)


def body_of(request: bytes) -> dict[str, object]:
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    return json.loads(body)


def test_prompts_are_new_ones_unless_one_is_to_repeat() -> None:
    def first(asking: Asking, seed: int) -> list[bytes]:
        return list(itertools.islice(requests(asking, 1, seed), 600))

    assert len({*first(Asking(), 1), *first(Asking(), 2)}) == 1200
    assert len(set(first(Asking(repeated=True), 1))) == 1
    asked = body_of(first(Asking(stream=True, body={"draftgate": {"cache": False}}), 1)[0])
    assert (asked["stream"], asked["draftgate"]) == (True, {"cache": False})
    assert first(Asking(get="/metrics", headers={"x": "y"}), 1)[0].startswith(b"GET /metrics HTTP/1.1\r\n")


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = poisson(rate=50, seconds=200, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == poisson(rate=50, seconds=200, seed=1) == sorted(times)
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


def load(*milliseconds: float) -> Load:
    replies = [Reply(0.0, 0.0, one / 1e3, one / 1e3, 200, "draft") for one in milliseconds]
    return summary(replies, 0, 2.0, {"server": Usage(0.5, 0.25)}, stream=False)


def test_the_numbers_of_a_load() -> None:
    found = load(*range(1, 102))
    assert found.latency_ms == {"mean": 51, "p50": 51, "p90": 91, "p99": 100}
    assert found.latency_ms == quantiles(list(range(1, 102)))
    assert found.requests_per_s == 50.5
    assert found.used["server"].cpu_us_per_request == pytest.approx(1e6 * 0.5 / 101)
    assert found.used["server"].cores == 0.25
    assert found.first_ms is None


def test_added_latency_is_the_median_of_the_differences_in_each_round() -> None:
    found = gateway.compared({gateway.FLOOR: [load(1), load(2), load(9)], gateway.OURS: [load(3), load(5), load(10)]})
    ours = found[gateway.OURS]
    assert ours["latency_ms"]["p50"] == pytest.approx(5)
    assert ours["added_latency_ms"]["p50"] == pytest.approx(2)
    assert "added_latency_ms" not in found[gateway.FLOOR]
    assert ours["answers"] == {"200 draft": 3}


def test_a_goal_is_met_or_not_or_was_not_measured() -> None:
    def cell(case: str, rate: int, added: float, p99: float) -> dict[str, object]:
        return {
            "case": case,
            "rate": rate,
            "servers": {
                name: {"added_latency_ms": {"p50": added}, "latency_ms": {"p50": added, "p99": p99}}
                for name in (gateway.OURS, gateway.UNSCORED)
            },
        }

    cells = [cell("new prompts", 50, 0.5, 4), cell("new prompts", 300, 1.5, 9), cell("cache hits", 50, 0.5, 1)]
    times = {gateway.OURS: {gateway.FLOOR: 0.1}, gateway.UNSCORED: {gateway.FLOOR: 0.2, gateway.LITELLM: 11.0}}
    goals = gateway.goals({"times_per_cpu_s": times}, cells)
    assert goals[gateway.UNSCORED]["requests_per_cpu_s_times_litellm"]["met"]
    found = goals[gateway.OURS]
    assert {name: (one["measured"], one["met"]) for name, one in found.items()} == {
        "added_p50_ms": (1.5, False),
        "p99_ms_at_300": (9, True),
        "requests_per_cpu_s_times_litellm": (None, None),
        "cache_hit_p50_ms": (0.5, True),
    }


@pytest.mark.timeout(180)
def test_a_smoke_run_measures_every_part(tmp_path: Path) -> None:
    file = tmp_path / "new" / "gateway.json"
    assert gateway.main(["--smoke", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert {"git_sha", "machine", "versions", "seed", "counts", "goals"} <= set(report)
    assert report["installed"]["litellm"] == "not run: no --litellm"

    ours = [gateway.OURS, gateway.UNSCORED] + [gateway.OURS_WITH_REDIS] * report["redis_server"]
    assert list(report["throughput"]["times_per_cpu_s"]) == ours
    assert set(report["throughput"]["servers"]) == {gateway.FLOOR, *ours}
    cells = {(cell["case"], cell["rate"]): cell["servers"] for cell in report["latency"]}
    for name in ours:
        assert set(cells["new prompts", 50][name]["answers"]) == {"200 draft"}
        assert set(cells["cache hits", 50][name]["answers"]) == {"200 cache"}
        assert cells["streams", 50][name]["first_ms"]["p50"] <= cells["streams", 50][name]["latency_ms"]["p50"]
    assert {name: set(one["answers"]) for name, one in report["features"].items()} == {
        "GET /health/live": {"200"},
        "GET /metrics": {"200"},
        "cache hit": {"200 cache"},
        "draft accepted": {"200 draft"},
        "draft accepted, cache off": {"200 draft"},
        "draft accepted, streamed": {"200 draft"},
        "draft accepted, with a key": {"200 draft"},
        "refused, without its key": {"401"},
        "direct, asked for": {"200 direct"},
        "direct, complex": {"200 direct"},
    }
