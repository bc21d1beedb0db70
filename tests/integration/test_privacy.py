"""What people ask is in no log and no shared store; what we are made of is in no answer."""

import copy
import json
import logging
import random
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from router.settings import RedisSettings, Settings
from tests.conftest import HANG_S, Gateway, RedisServer, eventually
from tests.fakes import HANG, FakeDraftEngine, FakeRefineEngine
from tests.raw_client import CHAT, send

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a91"
PACKAGES = "ar_engine|diffusion_engine|engine_core|classifiers|router|litestar|msgspec|uvicorn|redis|httpx|httpcore|jsonschema|torch"
REVEALING = re.compile(
    rf"""{re.escape(str(ROOT))} | site-packages | Traceback | File\s\\?" | \b0x[0-9a-f]{{6,}} | <class | \bobject\sat\b
    | (?:^|[\s"'(])(?:/[\w.-]+){{3,}} | \b(?:{PACKAGES})\.\w+ | \b[A-Z]\w*(?:Error|Exception)\b | \b\d+\.\d+\.\d+\.\d+\b""",
    re.VERBOSE,
)
MANY = 600
DEFAULTS = Settings()


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "draftgate", "messages": [{"role": "user", "content": text}]} | fields


# --- errors ---


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    gateway.start()
    yield gateway
    gateway.stop()


VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 1e308, "", "x", "\u0000", "\ud83d\ude00", "../../etc/passwd", "%s%n{0.__class__}", [], {}, [[]], [None],
    {"": None}, {"type": "object"}, {"$ref": "#"}, [{"type": "text"}], "data:image/png;base64,AA==", ["a"] * 200, {"a": {"b": {"c": []}}},
]  # fmt: skip
WHOLE: list[dict[str, Any]] = [
    question("hello"),
    question("hello", stream=True, stream_options={"include_usage": True}),
    question(
        "hello",
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice="auto",
    ),
    question(
        "hello", response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    ),
    question("hello", n=2, stop=["a"], seed=1, temperature=0.5, top_p=0.5, logprobs=True, top_logprobs=2, max_tokens=5),
    question("hello", draftgate={"route": "auto", "deadline_ms": 1000, "cache": True}),
    {"model": "draftgate", "prompt": "hello", "suffix": "you", "max_tokens": 5},
    {"model": "draftgate", "prompt": ["a", "b"], "n": 1, "echo": True},
    {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def spoilt(rng: random.Random) -> tuple[str, Any]:
    """A good body, wrong in one or two places, and where it would be sent."""
    body = copy.deepcopy(rng.choice(WHOLE))
    path = CHAT if "messages" in body else "/v1/completions" if "prompt" in body else "/v1/batches"
    for _ in range(rng.randint(1, 2)):
        place, value = rng.choice(places(body)), copy.deepcopy(rng.choice(VALUES))
        if not place:
            return path, value
        found = body
        for key in place[:-1]:
            found = found[key]
        found[place[-1]] = value
    return path, body


def operations(gateway: Gateway) -> list[tuple[str, str]]:
    """Every method and path of the API, as its own document has them."""
    document = gateway.http.get("/schema/openapi.json").json()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


def check(response: httpx.Response, sent: str) -> None:
    assert response.status_code < 500 or response.status_code == 503, f"{sent}: {response.status_code} {response.text}"
    if response.status_code < 400:
        return
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-draftgate-request-id"]
    found = REVEALING.search(error["message"])
    assert not found or found[0] in sent, f"{sent}: {error}"


def test_no_error_of_a_hostile_body_tells_what_we_are_made_of(gateway: Gateway) -> None:
    rng = random.Random(7)
    refused = 0
    for _ in range(MANY):
        path, body = spoilt(rng)
        text = json.dumps(body)
        response = gateway.http.post(path, content=text, headers={"content-type": "application/json"})
        refused += response.status_code >= 400
        check(response, f"POST {path} {text}")
    assert refused > MANY / 2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 5000, b'{"a":' * 5000, b'{"model":"\\ud800"}', b"--x\r\n", b"x" * 1_100_000]
)
@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", "application/msgpack", "x/\x7f"]
)
def test_no_error_of_a_body_that_cannot_be_read_does(gateway: Gateway, body: bytes, kind: str) -> None:
    for method, path in operations(gateway):
        path = re.sub(r"\{[^}]*\}", "nothing", path)
        response = gateway.http.request(method, path, content=body, headers={"content-type": kind})
        check(response, f"{method} {path}")


@pytest.mark.parametrize(
    "name",
    ["x", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "a" * 3000, "{0.__class__}", "%F0%9F%98%80", "-1", "file-", "'"],
)
def test_no_error_of_a_strange_name_or_query_does(gateway: Gateway, name: str) -> None:
    for method, path in operations(gateway):
        path = re.sub(r"\{[^}]*\}", name, path)
        response = gateway.http.request(method, f"{path}?limit={name}&after={name}&order={name}&purpose={name}")
        check(response, f"{method} {path}")


def test_no_error_of_an_engine_does(gateway: Gateway) -> None:
    for error in (
        RuntimeError(f"{ROOT}/secret.py at 0x7f3a2b1c4d50"),
        OSError(2, "no such file", "/srv/model"),
        KeyError("router.x"),
    ):
        for fields in ({}, {"stream": True}):
            gateway.refine.enqueue(error)
            response = gateway.http.post(CHAT, json=question(str(error), model="draftgate-refine", **fields))
            assert response.status_code == 500
            assert not REVEALING.search(response.text)


def test_an_error_in_the_middle_of_a_stream_does_not_either(gateway: Gateway) -> None:
    gateway.refine.enqueue(["begun", RuntimeError(f"{ROOT}/secret.py")])
    response = gateway.http.post(CHAT, json=question("?", model="draftgate-refine", stream=True))
    assert '"error"' in response.text
    assert "[DONE]" not in response.text
    assert not REVEALING.search(response.text)


# --- logs and stores ---


class Everything(logging.Handler):
    """All that is logged, tracebacks included, but by the test's own client."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("httpx", "httpcore")):
            self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[Everything]:
    root, handler = logging.getLogger(), Everything()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


class QuietDrafts(FakeDraftEngine):
    def _play(self, request: Any, default: str) -> AsyncGenerator[Any, None]:
        return super()._play(request, "fine")


class QuietAnswers(FakeRefineEngine):
    def _play(self, request: Any, default: str) -> AsyncGenerator[Any, None]:
        return super()._play(request, "fine")


def quiet(settings: Settings = DEFAULTS) -> Gateway:
    """A gateway whose engines don't repeat the question in their answers, as the fakes do."""
    return Gateway(settings, draft=QuietDrafts(), refine=QuietAnswers())


def troubles(gateway: Gateway) -> None:
    """Requests that hold the canary wherever one can stand, answered, refused, failed and left."""
    ask = gateway.http.post
    say = f"my secret is {CANARY}"
    gateway.http.headers["authorization"] = f"Bearer {CANARY}"
    headers = {"x-api-key": CANARY, "cookie": CANARY, "user-agent": CANARY, "referer": CANARY}
    gateway.draft.enqueue("fine", "fine", "bad", "uncheckable", RuntimeError("broken"))
    ask(CHAT, json=question(say), headers=headers)
    ask(CHAT, json=question(say, stream=True, user=CANARY, metadata={CANARY: CANARY}), headers=headers)
    ask(CHAT, json=question(f"bad {say}", draftgate={"cache": False}))
    ask(CHAT, json=question(f"uncheckable {say}", draftgate={"cache": False}))
    ask(CHAT, json=question(f"broken {say}", draftgate={"cache": False}))
    ask(CHAT, json=question(f"unscorable {say}", model=CANARY))
    gateway.draft.enqueue("fine")
    ask(CHAT, json=question(f"unscorable {say}"))
    gateway.refine.enqueue(RuntimeError("broken"), ["begun", RuntimeError("broken")], HANG)
    ask(CHAT, json=question(say, model="draftgate-refine"))
    ask(CHAT, json=question(f"{say}!", model="draftgate-refine", stream=True))
    ask(CHAT, json=question(f"{say}?", model="draftgate-refine", draftgate={"deadline_ms": 50}))
    ask(CHAT, json=question(say) | {CANARY: CANARY})
    ask(CHAT, json=question(say, tools=CANARY, response_format={"type": CANARY}))
    ask(CHAT, content=f'{{"{CANARY}": '.encode(), headers={"content-type": "application/json"})
    image = {"type": "image_url", "image_url": {"url": f"http://{CANARY}.example/{CANARY}"}}
    ask(CHAT, json=question(say) | {"messages": [{"role": "user", "content": [image]}]})
    gateway.http.get(f"/{CANARY}?key={CANARY}", headers=headers)
    gateway.http.get(f"/v1/models/{CANARY}")
    gateway.refine.enqueue(HANG)
    client = send(gateway, key=CANARY, model="draftgate-refine", messages=question(f"{say}, bye")["messages"])
    eventually(lambda: gateway.refine.running == 1)
    client.close()
    eventually(lambda: gateway.refine.running == 0)
    send(gateway, key=CANARY, messages=question(say)["messages"], cut=5).close()


@pytest.mark.parametrize("environ", [{}, {"DRAFTGATE_API_KEY": CANARY}], ids=["open", "with a key"])
def test_nothing_that_is_asked_is_logged(
    make_gateway: Callable[[Gateway], Gateway], log: Everything, environ: dict[str, str]
) -> None:
    gateway = quiet()
    gateway.environ = environ
    make_gateway(gateway)
    troubles(gateway)
    assert any("broken" in line for line in log.lines), "nothing was listened to"
    assert [line for line in log.lines if CANARY in line] == []


@pytest.mark.redis
def test_nothing_that_is_asked_is_stored(make_gateway: Callable[[Gateway], Gateway], redis_server: RedisServer) -> None:
    gateway = make_gateway(quiet(Settings(redis=RedisSettings(url=redis_server.url, timeout_s=HANG_S))))
    troubles(gateway)
    client = redis.Redis.from_url(redis_server.url)
    eventually(lambda: any(b"decisions" in key for key in client.scan_iter()))  # they follow a moment later
    keys = list(client.scan_iter())
    assert [key for key in keys if CANARY.encode() in key] == []
    dumped = b"".join(_all_of(client, key) for key in keys)
    assert b"fine" in dumped, "answers are kept"
    assert CANARY.encode() not in dumped
    client.close()


def _all_of(client: "redis.Redis", key: bytes) -> bytes:
    match client.type(key):
        case b"string":
            found: Any = client.get(key)
        case b"hash":
            found = client.hgetall(key)
        case b"stream":
            found = client.xrange(key)
        case b"zset":
            found = client.zrange(key, 0, -1)
        case b"set":
            found = client.smembers(key)
        case kind:
            raise AssertionError(f"expected a kind that is looked into, got {kind}")
    return found if isinstance(found, bytes) else repr(found).encode()
