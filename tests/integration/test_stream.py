"""Streamed answers: their exact shape, and the openai client's reading of them."""

import json
from typing import Any

import httpx
import openai
import pytest

from ar_engine.api import RefineFailed
from tests.conftest import Gateway


def stream(gateway: Gateway, text: str, **options: Any) -> tuple[httpx.Response, list[Any]]:
    """The response and its events, the last of them "[DONE]" if it came."""
    body = {
        "model": "draftgate",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    } | options
    response = gateway.http.post("/v1/chat/completions", json=body)
    events = response.text.split("\n\n")
    assert events.pop() == ""
    data = [event.removeprefix("data: ") for event in events]
    return response, [item if item == "[DONE]" else json.loads(item) for item in data]


def text_of(chunks: list[Any]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


def test_chunks_have_the_shape_openai_sends(gateway: Gateway) -> None:
    response, events = stream(gateway, "hard")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-draftgate-route"] == "direct"
    *chunks, done = events
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)
    assert len({(chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    first, *middle, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"] for choice in middle] == [{"content": piece} for piece in ("answer ", "to ", "hard ")]
    assert {choice["finish_reason"] for choice in (first, *middle)} == {None}
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert chunks[-1]["draftgate"]["route"] == "direct"


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(gateway: Gateway) -> None:
    _, events = stream(gateway, "hello", stream_options={"include_usage": True})
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 7
    assert usage["draftgate"]["route"] == "draft"


def test_a_cached_answer_streams_too(gateway: Gateway) -> None:
    _, first = stream(gateway, "hello")
    response, again = stream(gateway, "hello")
    assert response.headers["x-draftgate-route"] == "cache"
    assert text_of(again[:-1]) == text_of(first[:-1]) == "draft of hello"


def test_a_stop_sequence_split_over_deltas_is_never_shown(gateway: Gateway) -> None:
    gateway.refine.enqueue("one two three")
    _, events = stream(gateway, "hard", stop="o thr")
    assert text_of(events[:-1]) == "one tw"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def test_an_error_before_the_first_word_is_a_plain_response(gateway: Gateway) -> None:
    gateway.refine.enqueue(RefineFailed("broken"))
    response = gateway.http.post(
        "/v1/chat/completions",
        json={
            "model": "draftgate-refine",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
        },
    )
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_error"


def test_an_error_in_mid_stream_is_an_event_and_no_done(gateway: Gateway) -> None:
    gateway.refine.enqueue(["one two", RefineFailed("/secret")])
    _, events = stream(gateway, "hard")
    assert text_of(events[:-1]) == "one two "
    assert events[-1]["error"]["code"] == "engine_error"
    assert "secret" not in json.dumps(events[-1])


def test_a_broken_answer_is_not_cached(gateway: Gateway) -> None:
    gateway.refine.enqueue(["one two", RefineFailed("broken")])
    stream(gateway, "hard")
    response, _ = stream(gateway, "hard")
    assert response.headers["x-draftgate-route"] == "direct"


def test_several_answers_stream_beside_each_other(gateway: Gateway) -> None:
    _, events = stream(gateway, "hard", n=2, temperature=1.0)
    *chunks, done = events
    assert done == "[DONE]"
    for index in (0, 1):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
        assert own[-1]["delta"] == {}
        assert "".join(choice["delta"].get("content", "") for choice in own)


def test_log_probabilities_stream_with_their_text(gateway: Gateway) -> None:
    _, events = stream(gateway, "hard", logprobs=True, top_logprobs=1)
    choices = [choice for chunk in events[:-1] for choice in chunk["choices"] if choice["delta"].get("content")]
    tokens = [token for choice in choices for token in choice["logprobs"]["content"]]
    assert "".join(token["token"] for token in tokens) == text_of(events[:-1])
    assert all(len(token["top_logprobs"]) == 1 for token in tokens)


def test_a_draft_is_shown_as_it_settles_if_asked_for(gateway: Gateway) -> None:
    response, events = stream(gateway, "hello", draftgate={"provisional": True})
    assert response.status_code == 200
    assert "x-draftgate-request-id" in response.headers
    assert "x-draftgate-route" not in response.headers, "it is not known when the response begins"
    *chunks, done = events
    assert done == "[DONE]"
    kinds = [chunk["draftgate"].get("type", "end") for chunk in chunks if "draftgate" in chunk]
    assert kinds == ["provisional", "decided", "end"]
    assert chunks[0]["choices"] == []
    assert set(chunks[0]["draftgate"]) == {"type", "text", "canvas", "step", "settled"}
    assert text_of(chunks) == "draft of hello", "a reader of deltas alone never takes back a word"


def test_a_rejected_draft_that_was_shown_is_not_in_the_text(gateway: Gateway) -> None:
    gateway.draft.enqueue("bad draft")
    _, events = stream(gateway, "hello", draftgate={"provisional": True})
    assert text_of(events[:-1]) == "answer to hello "
    assert events[-2]["draftgate"]["route"] == "refine"


def test_an_error_after_provisional_text_is_an_event(gateway: Gateway) -> None:
    gateway.draft.enqueue("bad draft")
    gateway.refine.enqueue(RefineFailed("/secret"))
    response, events = stream(gateway, "hello", draftgate={"provisional": True})
    assert response.status_code == 200
    assert events[-1]["error"]["code"] == "engine_error"
    assert "bad draft" not in text_of(events[:-1])


def test_openai_client_streams(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    chunks = list(
        client.chat.completions.create(
            model="draftgate",
            messages=[{"role": "user", "content": "hard"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "answer to hard "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_openai_client_raises_on_an_error_event(gateway: Gateway) -> None:
    gateway.refine.enqueue(["one", RefineFailed("broken")])
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    chunks = client.chat.completions.create(
        model="draftgate", messages=[{"role": "user", "content": "hard"}], stream=True
    )
    with pytest.raises(openai.APIError):
        list(chunks)


@pytest.mark.anyio
async def test_async_openai_client_streams(gateway: Gateway) -> None:
    url = f"{gateway.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        chunks = await client.chat.completions.create(
            model="draftgate", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        texts = [c.choices[0].delta.content or "" async for c in chunks if c.choices]
    assert "".join(texts) == "draft of hello"
