"""The refine engine over HTTP: a model that an upstream with OpenAI's API serves. Imports no torch.

Modes. `fresh` and `polish` work with every upstream. `exact` and `typical` need one that tells how likely it finds a
prompt's tokens and goes on from token ids, which is vLLM: POST /tokenize renders the conversation and encodes the
draft, POST /completions with prompt_logprobs scores both, one after the other, and a second POST /completions goes on
behind the part that is kept. Ids, not a rendered assistant message: chat templates trim and rewrite such messages, so
that neither the draft's beginning nor what is continued would be known. A request that the raw form can't carry (tools,
images, a response format, reasoning, log-probabilities) is answered fresh; so is `exact` with a temperature or
penalties, where the model's own choice is not the likeliest token. `typical` has no entropies to go by: it keeps tokens
that are the likeliest, or at least `typical_floor` likely.

Sent only where a request asks for it, since OpenAI's own API refuses fields that it doesn't know: top_k,
repetition_penalty, stop_token_ids, and chat_template_kwargs {"enable_thinking": true}. An upstream whose model thinks
unless told otherwise has to be started with that turned off.

What an upstream does not say: forwards are 0, token_ids empty, and times include its queue.
"""

import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from ar_engine.api import (
    MODES,
    DraftScore,
    RefineDeadline,
    RefineEngineClosed,
    RefineError,
    RefineEvent,
    RefineFailed,
    RefineLoad,
    RefineMode,
    RefineOverloaded,
    RefineRejected,
    RefineRequest,
    RefineSettings,
    RefineUnavailable,
    ScoreRequest,
)
from ar_engine.polish import polished
from ar_engine.remote_wire import Choice, Kept, chat, is_text, sampling, score_of, shares
from ar_engine.sequence import leading
from engine_core.upstream import wire
from engine_core.upstream.client import Session, UpstreamClient
from engine_core.upstream.errors import (
    UpstreamClosed,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)

logger = logging.getLogger("draftgate")

WITHOUT_SCORES: tuple[RefineMode, ...] = ("polish", "fresh")
LOOKS = 3  # at an upstream that fails when it is asked to score; one that refuses is believed at once
MOST_CUT = 4  # tokens taken back where a kept prefix ends inside a character, which has at most 4 bytes

Answer = TypeVar("Answer")


class RemoteEngine:
    """Serves one model of an upstream."""

    def __init__(self, settings: RefineSettings, environ: Mapping[str, str] = os.environ) -> None:
        """Remember the settings; `start` asks the upstream. `environ` holds its key."""
        self._settings = settings
        self._client = UpstreamClient("refine", settings.upstream, settings.max_waiting, environ)
        self._modes: tuple[RefineMode, ...] = ()
        self._looks = 0  # in vain, for whether the upstream can score
        self._told: set[RefineMode] = set()  # modes of which the log says that they aren't possible

    async def start(self) -> None:
        """Wait until the upstream answers, however long that takes: the gateway serves meanwhile.

        Raises:
            RefineFailed: settings that can never work.
            RefineEngineClosed: `close` came first.
        """
        try:
            await self._client.start(self._learn)
        except UpstreamError as error:
            raise _told(error) from error

    async def _learn(self) -> None:
        """Find out whether the upstream can score."""
        try:
            async with self._client.session(None, probe=True) as session:
                await self._score(session, ({"role": "user", "content": "1"},), "1")
        except UpstreamError as error:
            self._looks += 1
            if error.failure is not False and self._looks < LOOKS:
                raise  # it may have been busy, or just gone
            self._modes = WITHOUT_SCORES
            where = self._settings.upstream.base_url
            logger.warning("%s can't score drafts, so `exact` and `typical` are answered fresh: %s", where, error)
        else:
            self._modes = MODES

    async def refine(self, request: RefineRequest) -> AsyncGenerator[RefineEvent, None]:
        """Yield a RefineDelta for each piece of the answer, then a RefineResult for each choice. Raises RefineError."""
        try:
            async with (
                self._client.session(request.deadline_s) as session,
                aclosing(self._answer(session, request)) as events,
            ):
                async for event in events:
                    yield event
        except UpstreamError as error:
            raise _told(error) from error

    async def score(self, request: ScoreRequest) -> DraftScore:
        """What the upstream's model thinks of a draft, from one prefill.

        Raises:
            RefineError: RefineRejected where the upstream can't score, or not this.
        """
        try:
            async with self._client.session(request.deadline_s) as session:
                if "exact" not in self._modes:
                    raise RefineRejected("expected an upstream that scores prompts, as vLLM does, got one that doesn't")
                _, score = await self._score(session, request.messages, request.draft.text)
                return score
        except UpstreamError as error:
            raise _told(error) from error

    def load(self) -> RefineLoad:
        """How busy the engine is, read without a lock. Images are the upstream's to refuse."""
        client = self._client
        return RefineLoad(
            state=client.state,
            running=client.running,
            waiting=client.waiting,
            capacity=self._settings.upstream.max_connections,
            context_tokens=client.context_tokens,
            modes=self._modes,
            images=True,
            formats=True,
            detail=client.detail,
        )

    async def close(self) -> None:
        """End what runs and what waits."""
        await self._client.close()

    async def _answer(self, session: Session, request: RefineRequest) -> AsyncGenerator[RefineEvent, None]:
        began, client, draft = time.monotonic(), self._client, request.draft
        limit = min(request.max_tokens or self._settings.max_tokens, self._settings.max_tokens)
        mode = self._mode(request)
        kept = None
        if draft and (mode == "exact" or mode == "typical"):
            kept = await self._kept(session, request, draft.text, mode, limit)
        if kept is None:
            messages = polished(request.messages, draft.text) if draft and mode == "polish" else request.messages
            url, kept = f"{client.api}/chat/completions", Kept()
            body = sampling(request, client.model, limit) | chat(request, messages)
        else:
            url = f"{client.api}/completions"
            body = sampling(request, client.model, limit - kept.tokens) | {"prompt": kept.prompt}
        choices = [Choice(number, began, kept) for number in range(request.n)]
        if kept.text:
            for choice in choices:
                yield choice.begin()
        if any(stop in kept.text for stop in request.stop):
            for choice in choices:
                yield choice.result(None, 0)
            return
        usage = None
        async with aclosing(session.stream(url, body)) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                for piece in chunk.choices:
                    if piece.index >= len(choices) or piece.index < 0:
                        raise UpstreamFailed(f"expected choices 0 to {request.n - 1}, got number {piece.index}")
                    if delta := choices[piece.index].take(piece):
                        yield delta
        written = shares(usage.completion_tokens if usage else None, [choice.tokens for choice in choices])
        for choice, tokens in zip(choices, written, strict=True):
            yield choice.result(usage, tokens)

    def _mode(self, request: RefineRequest) -> RefineMode:
        """What is done with the draft: what is asked for, if it is possible."""
        mode = request.mode or self._settings.mode
        if request.draft is None or not request.draft.text:
            return "fresh"
        if mode not in self._modes:
            if mode not in self._told:
                self._told.add(mode)
                logger.warning("%s is not possible with %s; such requests are answered fresh", mode, self._client.api)
            return "fresh"
        if mode == "polish" or mode == "fresh":
            return mode
        formed = request.response_format not in (None, {"type": "text"})
        raw = not (request.tools or request.reasoning or formed or request.logprobs is not None)
        chosen = (request.presence_penalty, request.frequency_penalty, request.repetition_penalty) == (0, 0, 1)
        likeliest = mode == "typical" or (chosen and request.temperature == 0)
        return mode if raw and likeliest and is_text(request.messages) else "fresh"

    async def _kept(
        self, session: Session, request: RefineRequest, draft: str, mode: Literal["exact", "typical"], limit: int
    ) -> Kept | None:
        """The part of a draft to go on from; None when there is none."""
        try:
            prompt, score = await self._score(session, request.messages, draft)
        except UpstreamRejected:  # too long together with the draft, perhaps; the answer itself will tell
            return None
        count = score.agreeing_prefix
        if mode == "typical":
            likely = zip(score.token_ranks, score.token_logprobs, strict=True)
            floor = math.log(self._settings.typical_floor) if self._settings.typical_floor > 0 else -math.inf
            count = leading(rank == 0 or logprob >= floor for rank, logprob in likely)
        ends = leading(token not in request.stop_token_ids for token in score.token_ids)
        count = min(count, ends, limit - 1)  # at least one token is the upstream's, which also says why the answer ends
        for cut in range(min(count, MOST_CUT)):
            ids = score.token_ids[: count - cut]
            text = (await self._ask(session, "detokenize", {"tokens": ids}, wire.Text)).prompt
            if draft.startswith(text) and text:
                return Kept(
                    text=text,
                    prompt=(*prompt, *ids),
                    tokens=len(ids),
                    prompt_tokens=len(prompt),
                    tried=len(score.token_ids),
                )
        return None

    async def _score(
        self, session: Session, messages: tuple[dict[str, Any], ...], draft: str
    ) -> tuple[tuple[int, ...], DraftScore]:
        """The ids of the conversation up to where the answer begins, and how likely those of the draft are behind them.

        Raises:
            UpstreamRejected: a conversation that isn't text, or that the upstream refuses.
            UpstreamError: it can't score, or something went wrong.
        """
        if not is_text(messages):
            raise UpstreamRejected("expected messages of text alone to score a draft, got images or tools")
        asked = {"messages": messages, "add_generation_prompt": True}
        prompt = tuple((await self._ask(session, "tokenize", asked, wire.Tokens)).tokens)
        asked = {"prompt": draft, "add_special_tokens": False}
        ids = tuple((await self._ask(session, "tokenize", asked, wire.Tokens)).tokens)
        body = {
            "model": self._client.model,
            "prompt": (*prompt, *ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 1,
        }
        found = await session.ask("POST", f"{self._client.api}/completions", body, wire.ScoredCompletion)
        return prompt, score_of(ids, found, len(prompt))

    async def _ask(self, session: Session, endpoint: str, body: dict[str, Any], kind: type[Answer]) -> Answer:
        return await session.ask("POST", f"{self._client.root}/{endpoint}", {"model": self._client.model, **body}, kind)


def _told(error: UpstreamError) -> RefineError:
    """An upstream's error as the callers of a refine engine know it."""
    match error:
        case UpstreamRejected():
            return RefineRejected(str(error))
        case UpstreamOverloaded():
            return RefineOverloaded(str(error), error.retry_after_s)
        case UpstreamTimeout():
            return RefineDeadline(str(error))
        case UpstreamUnavailable():
            return RefineUnavailable(str(error), error.retry_after_s)
        case UpstreamClosed():
            return RefineEngineClosed(str(error))
        case _:
            return RefineFailed(str(error))
