"""The draft engine over HTTP, and what becomes of drafts without a denoiser's signals."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import pytest

from diffusion_engine.api import (
    DraftDeadline,
    DraftEngineClosed,
    DraftFailed,
    DraftOverloaded,
    DraftRejected,
    DraftRequest,
    DraftResult,
    DraftSettings,
)
from diffusion_engine.remote import SPREAD, RemoteDraftEngine
from engine_core.upstream.settings import Upstream
from tests.conftest import HANG_S
from tests.upstream import ANSWER, FakeUpstream, Reply, chunk, error, serving, sse, usage

CHAT = "/v1/chat/completions"
MESSAGES = ({"role": "user", "content": "Was ist zwölf plus 3?"},)
T = TypeVar("T")


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
def port(upstream: FakeUpstream) -> Iterator[int]:
    with serving(upstream) as port:
        yield port


def run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scenario, HANG_S))


@asynccontextmanager
async def started(port: int) -> AsyncGenerator[RemoteDraftEngine, None]:
    where = Upstream(base_url=f"http://127.0.0.1:{port}/v1", first_byte_timeout_s=0.3)
    engine = RemoteDraftEngine(DraftSettings(upstream=where, max_tokens=100), {})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def drafts(engine: RemoteDraftEngine, **fields: Any) -> list[DraftResult]:
    asked = DraftRequest(**{"request_id": "r1", "messages": MESSAGES} | fields)
    async with aclosing(engine.draft(asked)) as events:
        return [event async for event in events if isinstance(event, DraftResult)]


def draft(port: int, **fields: Any) -> list[DraftResult]:
    async def scenario() -> list[DraftResult]:
        async with started(port) as engine:
            return await drafts(engine, **fields)

    return run(scenario())


def test_a_draft_is_the_upstreams_answer(upstream, port):
    (result,) = draft(port, max_tokens=50, stop_token_ids=(7,))
    assert (result.text, result.finish_reason, result.prompt_tokens) == (ANSWER, "stop", 9)
    assert (result.token_ids, result.token_logprobs, result.signals.token_entropy) == ((), (), ())
    (sent,) = upstream.asked(CHAT)
    assert (sent["messages"], sent["max_tokens"], sent["temperature"]) == (list(MESSAGES), 50, 0.0)
    assert sent["stop_token_ids"] == [7]
    assert "n" not in sent
    assert "seed" not in sent


def test_ids_and_log_probabilities_are_taken_where_they_are_told(upstream, port):
    event = chunk("Hi", "length")
    event["choices"][0] |= {"token_ids": [17], "logprobs": {"content": [{"token": "Hi", "logprob": -0.5}]}}
    upstream.script.append(Reply([sse(event)]))
    (result,) = draft(port)
    assert (result.token_ids, result.token_logprobs, result.finish_reason) == ((17,), (-0.5,), "length")


def test_ids_that_an_upstream_refuses_to_tell_are_done_without(upstream, port):
    upstream.script.append(error(422, "Unexpected fields in the request: {'return_token_ids'}"))
    assert draft(port)[0].text == ANSWER
    assert ["return_token_ids" in sent for sent in upstream.asked(CHAT)] == [True, False]


def test_candidates_are_sampled_together(upstream, port):
    upstream.script.append(Reply([sse(chunk("b", "stop", 1), chunk("a", "stop", 0), usage(4, 2))]))
    assert [(result.candidate, result.text) for result in draft(port, candidates=2, seed=3)] == [(0, "a"), (1, "b")]
    (sent,) = upstream.asked(CHAT)
    assert (sent["n"], sent["temperature"], sent["seed"]) == (2, SPREAD, 3)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(400, "too long"), DraftRejected),
        (error(401, "no"), DraftFailed),
        (error(503, "busy"), DraftOverloaded),
        (error(504, "late"), DraftDeadline),
        (error(500, "broken"), DraftFailed),
        (Reply([sse(chunk("half"))]), DraftFailed),
        (Reply([sse(chunk("x", "stop", 3))]), DraftFailed),
    ],
)
def test_errors_are_the_draft_engines(upstream, port, reply, kind):
    upstream.script.append(reply)
    with pytest.raises(kind) as caught:
        draft(port)
    assert type(caught.value) is kind


def test_gaps_cannot_be_filled(port):
    with pytest.raises(DraftRejected, match="expected no template"):
        draft(port, template=("Dear ", 3))


def test_load_and_the_end(port):
    async def scenario() -> None:
        async with started(port) as engine:
            assert (engine.load().state, engine.load().context_tokens, engine.load().capacity) == ("ready", 4096, 64)
            await engine.close()
            assert engine.load().state == "closed"
            with pytest.raises(DraftEngineClosed):
                await drafts(engine)

    run(scenario())
