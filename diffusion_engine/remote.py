"""The draft engine over HTTP: any model that an upstream with OpenAI's API serves, such as a small one. No torch.

What a denoiser says of its draft is not known of such a draft: its signals are empty, and there are no updates. If the
upstream tells them, its tokens and their log-probabilities are there, under a fingerprint that is no refiner's, so the
text is encoded anew.
"""

import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from diffusion_engine.api import (
    DraftDeadline,
    DraftEngineClosed,
    DraftError,
    DraftEvent,
    DraftFailed,
    DraftLoad,
    DraftOverloaded,
    DraftRejected,
    DraftRequest,
    DraftResult,
    DraftSettings,
    DraftSignals,
)
from engine_core.upstream import wire
from engine_core.upstream.client import UpstreamClient
from engine_core.upstream.errors import (
    UpstreamClosed,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)

SPREAD = (
    0.7  # temperature where there are several candidates and the request names none: equal drafts would be of no use
)
UNKNOWN = DraftSignals(steps=(), converged=(), token_entropy=(), late_flips=0)


class RemoteDraftEngine:
    """Drafts with one model of an upstream."""

    def __init__(self, settings: DraftSettings, environ: Mapping[str, str] = os.environ) -> None:
        """Remember the settings; `start` asks the upstream. `environ` holds its key."""
        self._settings = settings
        self._client = UpstreamClient("draft", settings.upstream, settings.max_waiting, environ)

    async def start(self) -> None:
        """Wait until the upstream answers, however long that takes.

        Raises:
            DraftFailed: settings that can never work.
            DraftEngineClosed: `close` came first.
        """
        try:
            await self._client.start(_nothing)
        except UpstreamError as error:
            raise _told(error) from error

    async def draft(self, request: DraftRequest) -> AsyncGenerator[DraftEvent, None]:
        """Yield a DraftResult for each candidate. Raises DraftError."""
        if request.template:
            raise DraftRejected("expected no template: an upstream can't fill gaps")
        try:
            async with self._client.session(request.deadline_s) as session:
                began, drafts = time.monotonic(), [_Draft() for _ in range(request.candidates)]
                usage = None
                async with aclosing(
                    session.stream(f"{self._client.api}/chat/completions", self._body(request))
                ) as chunks:
                    async for chunk in chunks:
                        usage = chunk.usage or usage
                        for piece in chunk.choices:
                            if not 0 <= piece.index < len(drafts):
                                raise UpstreamFailed(f"expected {len(drafts)} choices, got number {piece.index}")
                            drafts[piece.index].take(piece)
        except UpstreamError as error:
            raise _told(error) from error
        for number, draft in enumerate(drafts):
            yield draft.result(number, usage, time.monotonic() - began)

    def _body(self, request: DraftRequest) -> dict[str, Any]:
        settings, many = self._settings, request.candidates > 1
        temperature = (SPREAD if many else 0.0) if request.t_max is None else request.t_max
        body = {
            "model": self._client.model,
            "messages": request.messages,
            "max_tokens": min(request.max_tokens or settings.max_tokens, settings.max_tokens),
            "temperature": temperature,
            "logprobs": True,
            "return_token_ids": True,
            "stream_options": {"include_usage": True},
        }
        asked = {"n": request.candidates if many else None, "seed": request.seed if temperature else None}
        asked |= {"stop_token_ids": request.stop_token_ids or None}
        return body | {name: value for name, value in asked.items() if value is not None}

    def load(self) -> DraftLoad:
        """How busy the engine is, read without a lock."""
        client = self._client
        return DraftLoad(
            state=client.state,
            running=client.running,
            waiting=client.waiting,
            capacity=self._settings.upstream.max_connections,
            context_tokens=client.context_tokens,
            detail=client.detail,
        )

    async def close(self) -> None:
        """End what runs and what waits."""
        await self._client.close()


async def _nothing() -> None:
    """There is nothing more to learn of an upstream that drafts."""


class _Draft:
    """One candidate, put together from chunks."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._finish = ""

    def take(self, piece: wire.ChunkChoice) -> None:
        self._text.append((piece.delta and piece.delta.content) or "")
        self._ids += piece.token_ids or ()
        self._logprobs += [token.logprob for token in (piece.logprobs and piece.logprobs.content) or ()]
        self._finish = piece.finish_reason or self._finish

    def result(self, number: int, usage: wire.Usage | None, elapsed_s: float) -> DraftResult:
        return DraftResult(
            text="".join(self._text),
            token_ids=tuple(self._ids),
            token_logprobs=tuple(self._logprobs),
            tokenizer_fingerprint="",
            finish_reason="length" if self._finish == "length" else "stop",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            signals=UNKNOWN,
            candidate=number,
            elapsed_s=elapsed_s,
        )


def _told(error: UpstreamError) -> DraftError:
    """An upstream's error as the callers of a draft engine know it."""
    match error:
        case UpstreamRejected():
            return DraftRejected(str(error))
        case UpstreamOverloaded():
            return DraftOverloaded(str(error), error.retry_after_s)
        case UpstreamTimeout():
            return DraftDeadline(str(error))
        case UpstreamClosed():
            return DraftEngineClosed(str(error))
        case _:
            return DraftFailed(str(error))
