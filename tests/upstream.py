"""A real HTTP server with as much of OpenAI's API, and of vLLM's, as an adapter needs; it answers by script or model.

The model reads bytes: its tokens are the bytes of a text, a conversation is rendered as `<user>question<assistant>`,
and to every question it has one answer, which it goes on with wherever a prompt agrees with it so far.
"""

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from tests.conftest import HANG_S, eventually

ANSWER = "Zwölf plus 3 = 15."
OTHER = ord("~")  # what it would say where a prompt left its answer


def chunk(text: str = "", finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    """A chunk of chat with one choice."""
    return {"choices": [{"index": index, "delta": {"content": text, **delta}, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def sse(*events: Any) -> bytes:
    """Events as they are sent; the last is [DONE]."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


@dataclass
class Reply:
    """What to answer. An event among the pieces holds the rest up until it is set."""

    pieces: list[bytes | threading.Event] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})


def error(status: int, message: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    return Reply([body], status, {"content-type": "application/json", **headers})


@dataclass
class Seen:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: Any
    connection: tuple[str, int]


class FakeUpstream:
    """Answers chat with what `script` has next, and else as its model would."""

    def __init__(self, *, scores: bool = True) -> None:
        self.scores = scores
        self.models: list[dict[str, Any]] = [{"id": "byte-model", "max_model_len": 4096}]
        self.answer = ANSWER
        self.broken = False  # its model, while its tokenizer works
        self.script: deque[Reply] = deque()
        self.seen: list[Seen] = []
        self.left = threading.Event()  # a client went before its answer was complete

    def asked(self, path: str) -> list[Any]:
        """The bodies that came there, since `forget`."""
        return [seen.body for seen in self.seen if seen.path == path]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = json.loads(data) if data else None
        self.seen.append(Seen(scope["path"], headers, body, scope["client"]))
        gone = asyncio.create_task(receive())  # the body is read: nothing but a disconnect can come
        await self._send(self._reply(scope["path"], body), send, gone)
        gone.cancel()

    async def _send(self, reply: Reply, send: Any, gone: asyncio.Task[Any]) -> None:
        headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        for piece in reply.pieces:
            if isinstance(piece, threading.Event):
                while not piece.is_set():
                    if gone.done():
                        self.left.set()
                        return
                    await asyncio.sleep(0.005)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _reply(self, path: str, body: Any) -> Reply:
        if path == "/v1/models":
            return _json({"data": self.models})
        if self.broken and path.endswith("/completions"):
            return error(500, "the model is broken")
        if path in ("/v1/chat/completions", "/v1/completions") and body.get("stream") and self.script:
            return self.script.popleft()
        if path == "/v1/chat/completions":
            return Reply([sse(chunk(self.answer), chunk(finish="stop"), usage(9, len(self.answer.encode())))])
        if self.scores and path == "/tokenize":
            text = body["prompt"] if "prompt" in body else render(body["messages"])
            return _json({"tokens": list(text.encode())})
        if self.scores and path == "/detokenize":
            return _json({"prompt": bytes(body["tokens"]).decode(errors="replace")})
        if self.scores and path == "/v1/completions":
            return self._complete(body)
        return error(404, f"no {path} here")

    def _complete(self, body: Any) -> Reply:
        ids, start = body["prompt"], bytes(body["prompt"]).rindex(b"<assistant>") + len("<assistant>")
        said, answer = bytes(ids[start:]), self.answer.encode()
        if "prompt_logprobs" in body:
            entries: list[Any] = [None] * start
            for at, token in enumerate(said):
                best = answer[at] if answer.startswith(said[:at]) and at < len(answer) else OTHER
                entry = {token: {"logprob": -4.0, "rank": 7, "decoded_token": "x"}}
                entries.append(entry | {best: {"logprob": -0.1, "rank": 1, "decoded_token": "y"}})
            return _json({"choices": [{"index": 0, "text": "", "prompt_logprobs": entries}]})
        assert answer.startswith(said), "the prompt is not how this model's answer begins"
        rest = answer[len(said) :].decode()
        events = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in rest]
        events.append({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
        return Reply([sse(*events, usage(len(ids), len(rest.encode())))])


def render(messages: list[dict[str, Any]]) -> str:
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def _json(found: Any) -> Reply:
    return Reply([json.dumps(found).encode()], headers={"content-type": "application/json"})


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """An application on a socket of its own, in a thread of its own; yields the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    eventually(lambda: server.started)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(HANG_S)
        listening.close()
        assert not thread.is_alive(), "the server did not stop"
