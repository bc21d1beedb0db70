"""Whatever is sent: a 4xx in OpenAI's envelope, never a 500, and the server lives on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Gateway

HELLO = {"model": "draftgate", "messages": [{"role": "user", "content": "hello"}]}
URL = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]
REVEALING = re.compile(re.escape(str(ROOT)) + r"|Traceback|File \"|site-packages|0x[0-9a-f]{6}|<class|\"data: ")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """One for all: what was sent before must not matter."""
    gateway = Gateway()
    gateway.start()
    yield gateway
    gateway.stop()


def user(content: Any) -> dict[str, Any]:
    return HELLO | {"messages": [{"role": "user", "content": content}]}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "out", "schema": value}}


def check(response: httpx.Response, status: int, param: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]
    assert not REVEALING.search(response.text), response.text


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        pytest.param(b"", 400, None, id="nothing"),
        pytest.param(b"{", 400, None, id="truncated"),
        pytest.param(b"hello", 400, None, id="not JSON"),
        pytest.param(b"\xff\xfe", 400, None, id="not UTF-8"),
        pytest.param(b'"hello"', 400, None, id="string"),
        pytest.param(b"[]", 400, None, id="list"),
        pytest.param(b"7", 400, None, id="number"),
        pytest.param(b"null", 400, None, id="null"),
        pytest.param(b"[" * 100_000, 400, None, id="deep"),
        pytest.param(b'{"a":' * 100_000, 400, None, id="deep objects"),
        pytest.param(b" " * 1_100_000, 413, None, id="over 1 MB"),
        pytest.param(b'{"model":"draftgate","messages":[{"role":"user","content":"\\ud800"}]}',
                     400, None, id="lone surrogate"),
    ],
)  # fmt: skip
def test_hostile_bodies(gateway: Gateway, body: bytes, status: int, param: str | None) -> None:
    headers = {"content-type": "application/json"}
    for url in (URL, "/v1/completions"):
        check(gateway.http.post(url, content=body, headers=headers), status, param)
    assert gateway.http.post(URL, json=HELLO).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "model"),
        ({"model": "draftgate"}, 400, "messages"),
        (HELLO | {"messages": []}, 400, "messages"),
        (HELLO | {"messages": None}, 400, "messages"),
        (HELLO | {"messages": "hello"}, 400, "messages"),
        (HELLO | {"messages": [123]}, 400, "messages[0]"),
        (HELLO | {"messages": [{}]}, 400, "messages[0].role"),
        (HELLO | {"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role"),
        (HELLO | {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].tool_call_id"),
        (HELLO | {"messages": HELLO["messages"] * 2000}, 400, "messages"),
        (user(None), 400, "messages[0].content"),
        (user(5), 400, "messages[0].content"),
        (user([{"type": "text"}]), 400, "messages[0].content[0].text"),
        (
            user([{"type": "image_url", "image_url": {"url": "http://x"}}]),
            400,
            "messages[0].content[0].image_url.url",
        ),
        (user([{"type": "input_audio"}]), 400, "messages[0].content[0].type"),
        (user("x" * 100_000), 400, "messages"),
        (HELLO | {"model": "gpt-9"}, 404, "model"),
        (HELLO | {"model": 9}, 400, "model"),
        (HELLO | {"max_tokens": 0}, 400, "max_tokens"),
        (HELLO | {"max_tokens": "5"}, 400, "max_tokens"),
        (HELLO | {"max_tokens": 5.0}, 400, "max_tokens"),
        (HELLO | {"stream": 1}, 400, "stream"),
        (HELLO | {"max_completion_tokens": -1}, 400, "max_completion_tokens"),
        (HELLO | {"temperature": 2.5}, 400, "temperature"),
        (HELLO | {"top_p": 0}, 400, "top_p"),
        (HELLO | {"seed": 2**70}, 400, "seed"),
        (HELLO | {"stop": [""]}, 400, "stop[0]"),
        (HELLO | {"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        (HELLO | {"stop": 5}, 400, "stop"),
        (HELLO | {"stream": "yes"}, 400, "stream"),
        (HELLO | {"stream_options": {"include_usage": True}}, 400, "stream_options"),
        (HELLO | {"n": 17}, 400, "n"),
        (HELLO | {"tools": [{"type": "function"}]}, 400, "tools[0].function"),
        (HELLO | {"tool_choice": "required"}, 400, "tool_choice"),
        (HELLO | {"logprobs": 1}, 400, "logprobs"),
        (HELLO | {"top_logprobs": 21}, 400, "top_logprobs"),
        (HELLO | {"logit_bias": {"5": 1}}, 400, "logit_bias"),
        (HELLO | {"presence_penalty": 2.5}, 400, "presence_penalty"),
        (HELLO | {"response_format": {"type": "json"}}, 400, "response_format.type"),
        (HELLO | {"response_format": schema({"type": "strin"})}, 400, "response_format.json_schema.schema"),
        (HELLO | {"response_format": schema({"$schema": 5})}, 400, "response_format.json_schema.schema"),
        (HELLO | {"response_format": schema([])}, 400, "response_format.json_schema.schema"),
        (HELLO | {"response_format": schema({"allOf": [{}] * 999})}, 400, "response_format.json_schema.schema"),
        (HELLO | {"modalities": ["text", "audio"]}, 400, "modalities[1]"),
        (HELLO | {"some_future_field": 1}, 400, "some_future_field"),
        (HELLO | {"draftgate": {"route": "fast"}}, 400, "draftgate.route"),
        (HELLO | {"draftgate": {"rout": "draft"}}, 400, "draftgate.rout"),
        (HELLO | {"draftgate": {"max_steps": 0}}, 400, "draftgate.max_steps"),
        (
            HELLO | {"model": "draftgate-draft", "draftgate": {"route": "refine"}},
            400,
            "draftgate.route",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_wrong_fields_are_named(gateway: Gateway, body: dict[str, Any], status: int, param: str | None) -> None:
    before = len(gateway.draft.requests)
    check(gateway.http.post(URL, json=body), status, param)
    assert len(gateway.draft.requests) == before


def test_depth_counts_up_to_the_limit(gateway: Gateway) -> None:
    def nested(levels: int) -> dict[str, Any]:
        parameters: Any = "deep"
        for _ in range(levels):
            parameters = {"a": parameters}
        return HELLO | {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}

    assert gateway.http.post(URL, json=nested(60)).status_code == 200
    check(gateway.http.post(URL, json=nested(61)), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", URL, 405), ("DELETE", "/v1/models", 405), ("GET", "/nowhere", 404)],
)
def test_wrong_paths_and_methods(gateway: Gateway, method: str, path: str, status: int) -> None:
    response = gateway.http.request(method, path)
    check(response, status)
    assert status != 405 or "allow" in response.headers


def test_fields_at_the_value_that_changes_nothing_are_fine(gateway: Gateway) -> None:
    harmless = {
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logprobs": False,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "modalities": ["text"],
        "stop": None,
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
    }
    assert gateway.http.post(URL, json=HELLO | harmless).status_code == 200


def test_an_unexpected_error_is_a_500_that_tells_nothing(gateway: Gateway) -> None:
    gateway.refine.enqueue(RuntimeError("/secret/path"))
    response = gateway.http.post(URL, json=HELLO | {"model": "draftgate-refine"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
