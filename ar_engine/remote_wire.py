"""Between the refine engine's messages and OpenAI's: a request's body, a choice as it comes, a score. No torch."""

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

from msgspec import Struct

from ar_engine.api import DraftScore, RefineDelta, RefineRequest, RefineResult, TokenLogprob, ToolCall
from ar_engine.sequence import leading
from engine_core.upstream import wire
from engine_core.upstream.errors import UpstreamFailed

FINISHED: dict[str | None, Literal["stop", "length", "tool_calls"]] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}  # all else is "stop", such as OpenAI's "content_filter"


class Kept(Struct, frozen=True, kw_only=True):
    """The leading part of a draft that stands."""

    text: str = ""
    prompt: tuple[int, ...] = ()  # ids of the conversation and of what is kept
    tokens: int = 0  # kept
    prompt_tokens: int = 0  # of the conversation
    tried: int = 0  # tokens of the whole draft


def sampling(request: RefineRequest, model: str, max_tokens: int) -> dict[str, Any]:
    """The part of a body that chat and completions share; nothing is sent that asks for nothing."""
    optional = {
        "top_p": (request.top_p, 1.0),
        "seed": (request.seed if request.temperature else None, None),  # greedy decoding doesn't care
        "stop": (request.stop, ()),
        "n": (request.n, 1),
        "presence_penalty": (request.presence_penalty, 0.0),
        "frequency_penalty": (request.frequency_penalty, 0.0),
        "top_k": (request.top_k, 0),
        "repetition_penalty": (request.repetition_penalty, 1.0),
        "stop_token_ids": (request.stop_token_ids, ()),
    }
    asked = {name: value for name, (value, default) in optional.items() if value != default}
    body = {"model": model, "max_tokens": max_tokens, "temperature": request.temperature}
    return body | asked | {"stream_options": {"include_usage": True}}


def chat(request: RefineRequest, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The part of a body that only chat has."""
    body: dict[str, Any] = {"messages": messages}
    if request.tools:
        body["tools"] = request.tools
    if request.tool_choice is not None:
        body["tool_choice"] = request.tool_choice
    if request.response_format is not None:
        body["response_format"] = request.response_format
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.reasoning:
        body["chat_template_kwargs"] = {"enable_thinking": True}
    return body


def is_text(messages: Iterable[dict[str, Any]]) -> bool:
    """Whether a conversation is of text alone, without images and calls of tools."""
    contents = [message.get("content") if "tool_calls" not in message else None for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return all(isinstance(content, str | list) for content in contents) and all(
        part.get("type") == "text" for part in parts
    )


class Choice:
    """One of a request's answers, put together from chunks."""

    def __init__(self, number: int, began: float, kept: Kept) -> None:
        """Start with what is kept of a draft. `began` is on time.monotonic."""
        self.number = number
        self.tokens = 0  # at least so many were written, as far as one can see
        self._kept = kept
        self._began = began
        self._first_s: float | None = None
        self._text = [kept.text]
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._logprobs: list[TokenLogprob] = []
        self._finish: str | None = None

    def begin(self) -> RefineDelta:
        """What is kept, which comes first."""
        self._first_s = time.monotonic() - self._began
        return RefineDelta(choice=self.number, text=self._kept.text)

    def take(self, piece: wire.ChunkChoice) -> RefineDelta | None:
        """What is new with a chunk; None when nothing is."""
        new = piece.delta or wire.Delta()
        self._finish = piece.finish_reason or self._finish
        text = (piece.text or "") + (new.content or "") + (new.refusal or "")
        reasoning = new.reasoning_content or new.reasoning or ""  # who sends both means the same
        calls = tuple(self._call(call) for call in new.tool_calls or ())
        logprobs = tuple(_logprob(token) for token in (piece.logprobs and piece.logprobs.content) or ())
        if not (text or reasoning or calls or logprobs):
            return None
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began
        self.tokens += len(logprobs) or 1
        self._text.append(text)
        self._reasoning.append(reasoning)
        self._logprobs += logprobs
        return RefineDelta(choice=self.number, text=text, reasoning=reasoning, tool_calls=calls, logprobs=logprobs)

    def _call(self, piece: wire.ToolCallPiece) -> ToolCall:
        """A piece of a call, added to what there is of it. A piece without an index is a whole call."""
        index = len(self._calls) if piece.index is None else piece.index
        function = piece.function or wire.Function()
        new = ToolCall(index=index, id=piece.id or "", name=function.name or "", arguments=function.arguments or "")
        old = self._calls.get(index) or ToolCall(index=index)
        self._calls[index] = ToolCall(
            index=index, id=old.id or new.id, name=old.name + new.name, arguments=old.arguments + new.arguments
        )
        return new

    def result(self, usage: wire.Usage | None, completion_tokens: int) -> RefineResult:
        """The finished answer."""
        kept, elapsed_s = self._kept, time.monotonic() - self._began
        return RefineResult(
            choice=self.number,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=tuple(self._calls[index] for index in sorted(self._calls)),
            token_ids=(),
            logprobs=tuple(self._logprobs),
            finish_reason=FINISHED.get(self._finish, "stop"),
            prompt_tokens=kept.prompt_tokens or (usage.prompt_tokens if usage else 0),
            completion_tokens=completion_tokens,
            kept_tokens=kept.tokens,
            tried_tokens=kept.tried,
            forwards=0,
            first_token_s=elapsed_s if self._first_s is None else self._first_s,
            elapsed_s=elapsed_s,
        )


def _logprob(token: wire.Token) -> TokenLogprob:
    top = tuple((other.token, other.logprob) for other in token.top_logprobs or ())
    return TokenLogprob(token=token.token, logprob=token.logprob, top=top)


def shares(total: int | None, parts: Sequence[int]) -> list[int]:
    """A total as it falls to each choice, in proportion to `parts`, so that it is their sum; without one, the parts."""
    whole = sum(parts)
    if total is None or not whole:
        return [*parts] if total is None else [total, *[0] * (len(parts) - 1)]
    ends = [total * sum(parts[:count]) // whole for count in range(len(parts) + 1)]
    return [end - start for start, end in pairwise(ends)]


def score_of(ids: tuple[int, ...], found: wire.ScoredCompletion, start: int) -> DraftScore:
    """The score of a draft that stands in a prompt from `start` on. Raises UpstreamFailed: it isn't all there."""
    entries: list[dict[int, wire.PromptLogprob] | None] = found.choices[0].prompt_logprobs if found.choices else []
    if len(entries) != start + len(ids):
        raise UpstreamFailed(f"expected log-probabilities of {start + len(ids)} prompt tokens, got {len(entries)}")
    own, greedy = list[wire.PromptLogprob](), list[int]()
    for token, entry in zip(ids, entries[start:], strict=True):
        if entry is None or token not in entry:
            raise UpstreamFailed(f"expected a log-probability of token {token}, got those of {sorted(entry or ())}")
        own.append(entry[token])
        greedy.append(min(entry.items(), key=lambda item: (item[1].rank, -item[1].logprob))[0])
    return DraftScore(
        token_ids=ids,
        token_logprobs=tuple(entry.logprob for entry in own),
        token_ranks=tuple(entry.rank - 1 for entry in own),
        greedy_tokens=tuple(greedy),
        agreeing_prefix=leading(token == choice for token, choice in zip(ids, greedy, strict=True)),
    )
