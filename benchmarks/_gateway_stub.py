"""Servers whose models take no time: `python -m benchmarks._gateway_stub draftgate|unscored|floor PORT JSON`.

draftgate   the real application, with the demo's classifiers, over engines that answer at once; JSON is its settings
unscored    the same, but its classifiers take no time either
floor       a bare ASGI application that sends an answer it was given, under the same server settings; JSON is a Recorded
"""

import logging
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
import uvicorn
from msgspec import Struct

from ar_engine.api import (
    DraftScore,
    RefineDelta,
    RefineEvent,
    RefineLoad,
    RefineRejected,
    RefineRequest,
    RefineResult,
    ScoreRequest,
)
from classifiers.api import DraftEvidence, Verdict
from classifiers.complexity import Complexity
from classifiers.quality import Acceptor
from demo_models import store
from diffusion_engine.api import DraftEvent, DraftLoad, DraftRequest, DraftResult, DraftSignals
from router.app import Parts, create_app
from router.server import server_config
from router.settings import Settings

ANSWER = "The lamp costs $45. It is in stock, and we would ship it to you within two working days."
TOKENS = tuple(range(24))
CAPACITY = 4096  # more than a client has connections: no queue is measured


class Recorded(Struct, frozen=True, kw_only=True):
    """An answer to send again and again."""

    headers: dict[str, str]
    body: str
    stream_headers: dict[str, str]
    events: list[str]


class StubDraftEngine:
    """Drafts ANSWER, with the signals of a canvas that settled in one step."""

    async def start(self) -> None:
        pass

    async def draft(self, request: DraftRequest) -> AsyncGenerator[DraftEvent, None]:
        signals = DraftSignals(steps=(1,), converged=(True,), token_entropy=(0.001,) * len(TOKENS), late_flips=0)
        yield DraftResult(
            text=ANSWER,
            token_ids=TOKENS,
            token_logprobs=(-0.0005,) * len(TOKENS),
            tokenizer_fingerprint="stub",
            finish_reason="stop",
            prompt_tokens=80,
            signals=signals,
            elapsed_s=0.0,
        )

    def load(self) -> DraftLoad:
        return DraftLoad(state="ready", running=0, waiting=0, capacity=CAPACITY, context_tokens=4096)

    async def close(self) -> None:
        pass


class StubRefineEngine:
    """Answers ANSWER, word by word."""

    async def start(self) -> None:
        pass

    async def refine(self, request: RefineRequest) -> AsyncGenerator[RefineEvent, None]:
        for piece in ANSWER.split(" "):
            yield RefineDelta(text=f"{piece} ")
        yield RefineResult(
            text=f"{ANSWER} ",
            token_ids=TOKENS,
            finish_reason="stop",
            prompt_tokens=80,
            completion_tokens=len(TOKENS),
            forwards=len(TOKENS),
            first_token_s=0.0,
            elapsed_s=0.0,
        )

    async def score(self, request: ScoreRequest) -> DraftScore:
        raise RefineRejected("the stub scores no drafts")

    def load(self) -> RefineLoad:
        return RefineLoad(state="ready", running=0, waiting=0, capacity=CAPACITY, context_tokens=4096)

    async def close(self) -> None:
        pass


class StubComplexity:
    """Finds everything simple."""

    version = "stub"

    def score(self, messages: tuple[dict[str, Any], ...]) -> float:
        return 0.1


class StubQuality:
    """Finds everything good."""

    version = "stub"

    def judge(self, evidence: DraftEvidence) -> Verdict:
        return Verdict(quality=0.9, checks=())

    def choose(self, evidences: Sequence[DraftEvidence]) -> tuple[int, Verdict]:
        return 0, self.judge(evidences[0])

    def unverifiable(self, response_format: dict[str, Any]) -> str | None:
        return None


def draftgate(settings: Settings, classifiers: bool = True) -> Any:
    """The application; torch is not imported."""
    parts = Parts(
        draft=StubDraftEngine(),
        refine=StubRefineEngine(),
        complexity=Complexity.load(str(store.path("complexity"))) if classifiers else StubComplexity(),
        quality=Acceptor.load(str(store.path("quality"))) if classifiers else StubQuality(),
    )
    assert "torch" not in sys.modules, "the gateway starts without torch"
    return create_app(settings, parts)


def floor(recorded: Recorded) -> Any:
    """An ASGI application that reads a request and sends what was recorded."""
    body = recorded.body.encode()
    events = [event.encode() for event in recorded.events]
    headers, stream_headers = (
        [(name.encode(), value.encode()) for name, value in one.items()]
        for one in (recorded.headers, recorded.stream_headers)
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "uvicorn takes this for: no lifespan"
        asked, more = b"", True
        while more:
            message = await receive()
            asked, more = asked + message.get("body", b""), message.get("more_body", False)
        stream = b'"stream":true' in asked
        await send({"type": "http.response.start", "status": 200, "headers": stream_headers if stream else headers})
        for event in events if stream else ():
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if stream else body})

    return app


def main(arguments: Sequence[str]) -> None:
    kind, port, text = arguments
    logging.basicConfig(level=logging.INFO)  # as `draftgate serve`: a line for every decision is part of the cost
    if kind == "floor":  # the guard and the connections' own timers are the gateway's
        app = floor(msgspec.json.decode(text, type=Recorded))
        config = uvicorn.Config(app, port=int(port), loop="uvloop", http="httptools", access_log=False, log_config=None)
    else:
        settings = msgspec.json.decode(text, type=Settings)
        app = draftgate(settings, classifiers=kind == "draftgate")
        config = server_config(app, msgspec.structs.replace(settings.server, port=int(port)))
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(sys.argv[1:])
