"""The remote engine and a server that does not do as it should: every fault is a typed error, and none is a hang."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ar_engine.api import (
    RefineDeadline,
    RefineDelta,
    RefineEngineClosed,
    RefineError,
    RefineFailed,
    RefineOverloaded,
    RefineRejected,
    RefineSettings,
    RefineUnavailable,
)
from ar_engine.remote import RemoteEngine
from engine_core.upstream import client, transport
from engine_core.upstream.breaker import PAUSE_S, WINDOW, CircuitBreaker
from engine_core.upstream.settings import Upstream
from tests.conftest import HANG_S, eventually
from tests.proxy import BLACK_HOLE, DROP, GARBAGE, GOOD, RESET, WEB_PAGE, Fault, Proxy, http
from tests.unit.ar_engine.remote import KEY, answer, request, run, started
from tests.upstream import ANSWER, FakeUpstream, Reply, chunk, error, serving, sse

CHAT = "/v1/chat/completions"
IMPATIENT = {"connect_timeout_s": 0.3, "first_byte_timeout_s": 0.3, "idle_timeout_s": 0.3}
HELD = threading.Event()  # never set
PLAIN = {"content-type": "text/plain"}


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream(scores=False)


@pytest.fixture
def port(upstream: FakeUpstream) -> Iterator[int]:
    with serving(upstream) as port:
        yield port


def replied(port: int, upstream: FakeUpstream, *replies: Reply, **asked: Any) -> RefineError:
    """The error that comes of a request to which the upstream replies so."""

    async def scenario() -> RefineError:
        async with started(port, {"DRAFTGATE_UPSTREAM_KEY": KEY}, IMPATIENT) as engine:
            upstream.script.extend(replies)
            with pytest.raises(RefineError) as caught:
                await answer(engine, request(**asked))
            return caught.value

    return run(scenario())


def pieces(*sent: bytes | threading.Event, **headers: str) -> Reply:
    return Reply([*sent], headers={"content-type": "text/event-stream"} | headers)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefineRejected), (404, RefineRejected), (413, RefineRejected), (422, RefineRejected),
        (401, RefineFailed), (403, RefineFailed), (402, RefineFailed), (302, RefineFailed), (204, RefineFailed),
        (408, RefineDeadline), (504, RefineDeadline), (429, RefineOverloaded), (503, RefineOverloaded),
        (500, RefineUnavailable), (502, RefineUnavailable), (599, RefineUnavailable),
    ],
)  # fmt: skip
def test_a_status_is_a_typed_error(upstream, port, status, kind):
    reply = Reply([], status) if status == 204 else error(status, "why it is so")
    found = replied(port, upstream, reply)
    assert type(found) is kind
    assert len(upstream.asked(CHAT)) == 1  # a status is never tried again
    if status not in (204, 401, 403):
        assert "why it is so" in str(found)


REFUSED = "the model's server refused this request with status 400"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(400, "at http://10.0.0.7:8000/v1, in /srv/model/a.py"), "at [...], in [...]"),
        (error(400, "too   long\n\x1b[31m"), "too long [31m"),
        (error(400, "x" * 10_000), "x" * 300 + " ..."),
        (Reply([b'{"detail": [{"loc": ["body", "n"]}]}'], 422, PLAIN), '[{"loc":["body","n"]}]'),
        (Reply([b'{"error": "broken"}'], 400, PLAIN), "broken"),
        (Reply([b"<h1>Bad</h1>"], 400, PLAIN), REFUSED),
        (Reply([b"[" * 50_000], 400, PLAIN), REFUSED),
        (Reply([b"<" * 100_000], 400, PLAIN), REFUSED),
        (Reply([b'{"err', HELD], 400, PLAIN), REFUSED),
    ],
    ids=["addresses", "one line", "bounded", "FastAPI", "a text", "a web page", "lists in lists", "a long body", "one that stalls"],
)  # fmt: skip
def test_what_an_upstream_says_is_passed_on_within_bounds(upstream, port, reply, said):
    assert str(replied(port, upstream, reply)) == said


@pytest.mark.parametrize("header", ["7", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", "-3", "1e99", "9" * 400])
def test_retry_after_is_what_the_upstream_says_if_it_makes_sense(upstream, port, header):
    found = replied(port, upstream, error(429, "slow down", **{"retry-after": header}))
    assert isinstance(found, RefineOverloaded)
    assert found.retry_after_s == {"7": 7.0, "Thu, 01 Jan 1970 00:00:00 GMT": 0.0}.get(header, 1.0)


GOOD_CHUNK = sse(chunk("begun ")).removesuffix(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        (pieces(GOOD_CHUNK), RefineUnavailable, "broke off"),
        (pieces(GOOD_CHUNK, b"data: [DONE]\n\n"), RefineUnavailable, "broke off"),
        (pieces(), RefineUnavailable, "broke off"),
        (pieces(GOOD_CHUNK, b'data: {"choices": [{"ind'), RefineUnavailable, "broke off"),
        (pieces(sse(chunk("x", "abort"))), RefineUnavailable, "'abort'"),
        (pieces(GOOD_CHUNK, HELD), RefineDeadline, "more of an answer"),
        (pieces(HELD), RefineDeadline, "first byte"),
        (pieces(GOOD_CHUNK, b"data: gibberish\n\n"), RefineFailed, "expected a chunk"),
        (pieces(GOOD_CHUNK, b"data: \xff\xfe\n\n"), RefineFailed, "expected a chunk"),
        (pieces(b'data: {"choices": 3}\n\n'), RefineFailed, "expected a chunk"),
        (pieces(b'data: {"error": ' + b"[" * 50_000 + b"\n\n"), RefineFailed, "expected a chunk"),
        (pieces(sse(chunk("x", "stop", index=1))), RefineFailed, "got number 1"),
        (pieces(sse(chunk("x", "stop", index=-1))), RefineFailed, "got number -1"),
        (pieces(b'data: {"error": "CUDA out of memory"}\n\n'), RefineUnavailable, "CUDA out of memory"),
        (pieces(b'data: {"error": {"message": "no", "code": 400}}\n\n'), RefineRejected, "no"),
        (pieces(GOOD_CHUNK, b'data: {"error": {"message": "later", "code": 429}}\n\n'), RefineOverloaded, "later"),
        (pieces(b"<h1>Hi</h1>", **{"content-type": "text/html"}), RefineFailed, "got 'text/html'"),
        (pieces(b"\x1f\x8b", **{"content-encoding": "gzip"}), RefineFailed, "'gzip'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_broken_stream_is_a_typed_error(upstream, port, reply, kind, says):
    found = replied(port, upstream, reply)
    assert type(found) is kind
    assert says in str(found)
    assert len(upstream.asked(CHAT)) == 1


@pytest.mark.parametrize(
    "sent",
    [b": " + b"x" * 3_000, b"data: " + b"x" * 3_000, b"data: x\n" * 400, b"data: {}\n\n" * 400],
    ids=["a comment", "a line", "an event", "a stream"],
)
def test_nothing_endless_is_read_to_its_end(upstream, port, sent, monkeypatch):
    monkeypatch.setattr(client, "MOST_EVENT_BYTES", 1_000)
    monkeypatch.setattr(transport.Transport.pieces, "__defaults__", (2_500,))
    found = replied(port, upstream, pieces(sent, HELD))
    assert type(found) is RefineFailed
    assert "expected" in str(found)


def test_what_json_cannot_hold_is_the_requests_fault(port):
    async def scenario() -> None:
        async with started(port) as engine:
            with pytest.raises(RefineRejected, match="that JSON can hold"):
                await answer(engine, request(messages=({"role": "user", "content": "\ud800"},)))

    run(scenario())


def test_a_choice_that_never_comes_is_missed(upstream, port):
    found = replied(port, upstream, pieces(sse(chunk("x", "stop"))), n=2)
    assert isinstance(found, RefineUnavailable)
    assert "expected 2 choices to their end" in str(found)


def test_a_connection_left_open_after_done_is_not_waited_for(upstream, port, monkeypatch):
    monkeypatch.setattr(client, "DRAIN_S", 0.05)
    upstream.script.append(pieces(sse(chunk("done", "stop")), HELD))

    async def scenario() -> str:
        async with started(port) as engine:
            return (await answer(engine, request())).text

    assert run(scenario()) == "done"


def test_the_key_is_told_to_nobody(upstream, port, caplog):
    with caplog.at_level(logging.DEBUG):
        told = [
            replied(port, upstream, error(status, f"Incorrect API key provided: {KEY}"))
            for status in (400, 401, 402, 403, 429, 500)
        ]
        told.append(replied(port, upstream, pieces(b'data: {"error": "key %s"}\n\n' % KEY.encode())))
    engine = RemoteEngine(
        RefineSettings(upstream=Upstream(base_url="http://127.0.0.1:9")), {"DRAFTGATE_UPSTREAM_KEY": KEY}
    )
    words = [repr(found) + str(found) + repr(found.__cause__) for found in told]
    assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in upstream.seen)
    assert KEY not in "".join([*words, caplog.text, repr(engine), repr(vars(engine)), repr(engine.load())])
    assert all("DRAFTGATE_UPSTREAM_KEY, which is set" in str(found) for found in (told[1], told[3]))


@pytest.mark.parametrize("key", ["kéy", "a\x00b", "a\nb"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_told(key):
    async def scenario() -> None:
        where = Upstream(base_url="http://127.0.0.1:9/v1")
        engine = RemoteEngine(RefineSettings(upstream=where), {"DRAFTGATE_UPSTREAM_KEY": key})
        with pytest.raises(RefineFailed, match="DRAFTGATE_UPSTREAM_KEY") as caught:
            await engine.start()
        assert key not in str(caught.value)
        assert engine.load().state == "failed"
        with pytest.raises(RefineEngineClosed):
            await answer(engine, request())
        await engine.close()

    run(scenario())


# Networks


def through(upstream_port: int, scenario: Callable[[RemoteEngine, Proxy], Any], **settings: Any) -> None:
    """A scenario with an engine whose connections go through a proxy, which is fine while the engine starts."""

    async def whole() -> None:
        async with Proxy(upstream_port).running() as proxy, started(proxy.port, None, IMPATIENT, **settings) as engine:
            await proxy.hang_up()  # the next request makes a connection of its own
            await scenario(engine, proxy)

    run(whole())


@pytest.mark.parametrize(
    ("fault", "kind", "connections"),
    [
        (DROP, RefineUnavailable, 2),
        (RESET, RefineUnavailable, 2),
        (GARBAGE, RefineUnavailable, 2),
        (BLACK_HOLE, RefineDeadline, 1),
        (WEB_PAGE, RefineFailed, 1),
        (Fault(answer=http(b"Bad Gateway", status="502 Bad Gateway")), RefineUnavailable, 1),
        (Fault(passes=5, then="hang"), RefineDeadline, 1),
        (Fault(passes=300), RefineUnavailable, 1),
        (Fault(passes=300, then="reset"), RefineUnavailable, 1),
        (Fault(passes=300, then="hang"), RefineDeadline, 1),
    ],
    ids=str,
)
def test_a_faulty_connection_is_a_typed_error_and_tried_again_only_before_the_answer(
    upstream, port, fault, kind, connections
):
    async def scenario(engine: RemoteEngine, proxy: Proxy) -> None:
        proxy.fault, before = fault, proxy.connections
        with pytest.raises(kind) as caught:
            await answer(engine, request())
        assert type(caught.value) is kind
        assert proxy.connections - before == connections
        proxy.fault = GOOD
        assert (await answer(engine, request())).text == ANSWER

    through(port, scenario)


@pytest.mark.parametrize("fault", [DROP, RESET], ids=["dropped", "reset"])
def test_one_broken_connection_is_not_noticed(port, fault):
    async def scenario(engine: RemoteEngine, proxy: Proxy) -> None:
        proxy.faults.append(fault)
        assert (await answer(engine, request())).text == ANSWER
        assert not proxy.faults

    through(port, scenario)


def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_noticed(port):
    async def scenario() -> None:
        async with Proxy(port).running() as proxy, started(proxy.port) as engine:
            await proxy.hang_up()
            assert (await answer(engine, request())).text == ANSWER

    run(scenario())


def test_nobody_at_the_port_is_unavailable():
    async def scenario(engine: RemoteEngine, proxy: Proxy) -> None:
        proxy.stop()
        with pytest.raises(RefineUnavailable, match="ConnectError") as caught:
            await answer(engine, request())
        assert caught.value.retry_after_s > 0

    with serving(FakeUpstream()) as port:
        through(port, scenario)


def test_the_deadline_holds_wherever_a_request_stands(upstream, port):
    async def scenario() -> None:
        async with started(
            port, None, {"max_connections": 1, "first_byte_timeout_s": 60.0, "idle_timeout_s": 60.0}
        ) as engine:
            upstream.script.extend([pieces(HELD), pieces(GOOD_CHUNK, HELD), pieces(HELD)])
            for _ in range(2):  # before the first byte, and after it
                with pytest.raises(RefineDeadline, match="before the deadline"):
                    await answer(engine, request(deadline_s=0.1))
            held = asyncio.create_task(answer(engine, request()))
            while not engine.load().running:
                await asyncio.sleep(0.005)
            with pytest.raises(RefineDeadline, match="a free connection"):
                await answer(engine, request(deadline_s=0.1))
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
            assert (await answer(engine, request(deadline_s=60.0))).text == ANSWER

    run(scenario())


# Leaving and closing


@pytest.mark.parametrize("sent", [[HELD], [GOOD_CHUNK, HELD]], ids=["before the first byte", "within the answer"])
def test_leaving_ends_the_upstreams_work_at_once(upstream, port, sent):
    async def scenario() -> None:
        async with started(port) as engine:
            upstream.script.append(pieces(*sent))
            reading = asyncio.create_task(answer(engine, request()))
            while not upstream.asked(CHAT):
                await asyncio.sleep(0.005)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await asyncio.to_thread(eventually, upstream.left.is_set)
            assert engine.load().running == 0

    run(scenario())


def test_closing_the_iterator_ends_the_upstreams_work_at_once(upstream, port):
    async def scenario() -> None:
        async with started(port) as engine:
            upstream.script.append(pieces(GOOD_CHUNK, HELD))
            async with contextlib.aclosing(engine.refine(request())) as events:
                assert await anext(events) == RefineDelta(text="begun ")
            await asyncio.to_thread(eventually, upstream.left.is_set)
            assert (await answer(engine, request())).text == ANSWER

    run(scenario())


def test_closing_the_engine_ends_what_runs_and_what_waits(upstream, port):
    async def scenario() -> None:
        async with started(port, None, {"max_connections": 1, "first_byte_timeout_s": 60.0}) as engine:
            upstream.script.append(pieces(HELD))
            tasks = [asyncio.create_task(answer(engine, request())) for _ in range(3)]
            while engine.load().waiting < 2:
                await asyncio.sleep(0.005)
            await engine.close()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(end) for end in ends] == [RefineEngineClosed] * 3
            assert engine.load().state == "closed"
            with pytest.raises(RefineEngineClosed):
                await answer(engine, request())

    run(scenario())


def test_who_is_one_too_many_is_refused_at_once(upstream, port):
    async def scenario() -> None:
        async with started(port, None, {"max_connections": 1, "first_byte_timeout_s": 60.0}, max_waiting=1) as engine:
            hold = threading.Event()
            upstream.script.append(pieces(hold, sse(chunk("late", "stop"))))
            tasks = [asyncio.create_task(answer(engine, request())) for _ in range(2)]
            while (load := engine.load()).waiting < 1:
                await asyncio.sleep(0.005)
            assert (load.running, load.capacity) == (1, 1)
            with pytest.raises(RefineOverloaded, match="expected at most 1 requests waiting") as caught:
                await answer(engine, request())
            assert caught.value.retry_after_s > 0
            hold.set()
            assert [result.text for result in await asyncio.gather(*tasks)] == ["late", ANSWER]

    run(scenario())


# Recovery


def test_the_engine_waits_for_an_upstream_that_comes_later(monkeypatch, caplog):
    monkeypatch.setattr(client, "PROBE_S", 0.02)

    async def scenario() -> None:
        async with Proxy(port, fault=DROP).running() as proxy:
            where = Upstream(base_url=f"http://127.0.0.1:{proxy.port}/v1")
            engine = RemoteEngine(RefineSettings(upstream=where), {})
            starting = asyncio.create_task(engine.start())
            while proxy.connections < 3 * WINDOW:
                await asyncio.sleep(0.005)
            assert engine.load().state == "loading"
            assert "expected an answer" in engine.load().detail
            with pytest.raises(RefineUnavailable, match="isn't there yet"):
                await answer(engine, request())
            proxy.fault = GOOD
            await asyncio.wait_for(starting, HANG_S)
            assert engine.load().state == "ready"
            for _ in range(WINDOW):  # the looks in vain are not held against it
                assert (await answer(engine, request())).text == ANSWER
            await engine.close()

    with serving(FakeUpstream()) as port, caplog.at_level(logging.WARNING):
        run(scenario())
    assert caplog.text.count("waits for its upstream") <= 3  # once for each reason, not for each look


def test_closing_ends_a_start_that_waits():
    async def scenario() -> None:
        engine = RemoteEngine(RefineSettings(upstream=Upstream(base_url="http://127.0.0.1:9/v1")), {})
        starting = asyncio.create_task(engine.start())
        while not engine.load().detail.startswith("expected an answer"):
            await asyncio.sleep(0.005)
        await engine.close()
        with pytest.raises(RefineEngineClosed):
            await starting

    run(scenario())


def test_an_upstream_that_fails_is_left_alone_and_found_again(upstream, port):
    now = [0.0]

    async def scenario() -> None:
        async with started(port) as engine:
            used = engine._client.transport
            assert used is not None
            used.breaker = CircuitBreaker(lambda: now[0])
            upstream.script.extend([error(500, "broken")] * WINDOW)
            for _ in range(WINDOW):
                with pytest.raises(RefineUnavailable, match="broken"):
                    await answer(engine, request())
            asked = len(upstream.seen)
            with pytest.raises(RefineUnavailable, match="failed too often") as caught:
                await answer(engine, request())
            assert (caught.value.retry_after_s, len(upstream.seen)) == (PAUSE_S, asked)
            assert (engine.load().state, "left alone" in engine.load().detail) == ("ready", True)
            now[0] += PAUSE_S
            assert (await answer(engine, request())).text == ANSWER
            assert engine.load().detail == ""

    run(scenario())


def test_a_model_that_fails_behind_a_tokenizer_that_works_is_left_alone():
    async def scenario(port: int) -> None:
        async with started(port, mode="exact") as engine:
            upstream.broken = True
            for _ in range(WINDOW):
                with pytest.raises(RefineUnavailable, match="the model is broken"):
                    await answer(engine, request(ANSWER))
            with pytest.raises(RefineUnavailable, match="failed too often"):
                await answer(engine, request(ANSWER))

    upstream = FakeUpstream()
    with serving(upstream) as port:
        run(scenario(port))


def test_a_deadline_that_left_no_time_is_no_reason_to_leave_it_alone(upstream, port):
    async def scenario() -> None:
        async with started(port, None, {"first_byte_timeout_s": 60.0}) as engine:
            upstream.script.extend([pieces(HELD)] * WINDOW)
            for _ in range(WINDOW):
                with pytest.raises(RefineDeadline):
                    await answer(engine, request(deadline_s=0.02))
            assert engine.load().detail == ""

    run(scenario())


def test_silence_up_to_the_deadline_is_a_reason(upstream, port, monkeypatch):
    monkeypatch.setattr(transport, "SILENT_S", 0.0)

    async def scenario() -> None:
        async with started(port, None, {"first_byte_timeout_s": 60.0}) as engine:
            upstream.script.extend([pieces(HELD)] * WINDOW)
            for _ in range(WINDOW):
                with pytest.raises(RefineDeadline):
                    await answer(engine, request(deadline_s=0.1))
            assert "left alone" in engine.load().detail

    run(scenario())


@pytest.mark.parametrize(("deadline_s", "given_s"), [(60.0, 59.9), (0.5, 0.45)])
def test_the_engine_gives_up_before_its_caller_does(deadline_s, given_s):
    assert client.give_up_at(7.0, deadline_s) == pytest.approx(7.0 + given_s)


@pytest.mark.parametrize("status", [400, 401, 429])
def test_what_an_upstream_refuses_is_no_reason_to_leave_it_alone(upstream, port, status):
    async def scenario() -> None:
        async with started(port) as engine:
            upstream.script.extend([error(status, "no")] * 2 * WINDOW)
            for _ in range(2 * WINDOW):
                with pytest.raises(RefineError):
                    await answer(engine, request())
            assert engine.load().detail == ""

    run(scenario())
