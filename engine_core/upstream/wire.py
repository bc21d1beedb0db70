"""OpenAI's wire format as upstreams speak it, with vLLM's additions: what is read, optional where some omit it."""

import re
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
from msgspec import Struct

MOST_MESSAGE_CHARS = 300  # of an upstream's own words that are passed on
MOST_RETRY_AFTER_S = 300.0


class Function(Struct):
    """Of a piece of a tool call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPiece(Struct):
    """A piece of a tool call."""

    index: int | None = None  # some leave it out, and send calls whole
    id: str | None = None
    function: Function | None = None


class Delta(Struct):
    """What is new of a message."""

    content: str | None = None
    refusal: str | None = None  # OpenAI: in place of the content
    reasoning: str | None = None  # vLLM, OpenRouter
    reasoning_content: str | None = None  # the same: SGLang, transformers, DeepSeek
    tool_calls: list[ToolCallPiece] | None = None


class TopToken(Struct):
    """An alternative to a token."""

    token: str
    logprob: float


class Token(Struct):
    """A token with its log-probability."""

    token: str
    logprob: float
    top_logprobs: list[TopToken] | None = None


class Logprobs(Struct):
    """Those of a piece of chat; in completions, which have another form, `content` is missing."""

    content: list[Token] | None = None


class ChunkChoice(Struct):
    """What is new of one choice, in chat or in a completion."""

    index: int = 0
    delta: Delta | None = None  # chat
    text: str | None = None  # completions
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None  # vLLM, if asked for with return_token_ids


class Usage(Struct):
    """Tokens of a request, all its choices together."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(Struct):
    """One event of a stream."""

    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    error: Any = None


class Model(Struct):
    """An entry of GET /models."""

    id: str
    max_model_len: int | None = None  # vLLM


class Models(Struct):
    """GET /models."""

    data: list[Model]


class Tokens(Struct):
    """vLLM's POST /tokenize."""

    tokens: list[int]


class Text(Struct):
    """vLLM's POST /detokenize."""

    prompt: str


class PromptLogprob(Struct):
    """How likely a token was at its place in a prompt."""

    logprob: float
    rank: int  # 1: the most likely; tied tokens share the last rank that is theirs


class Scored(Struct):
    """A completion with vLLM's prompt_logprobs: for each prompt token but the first, itself and the likeliest."""

    prompt_logprobs: list[dict[int, PromptLogprob] | None]


class ScoredCompletion(Struct):
    """What comes of a completion of one choice."""

    choices: list[Scored]


CHUNK = msgspec.json.Decoder(Chunk)
NO_JSON = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)  # what decoding raises; the last for lists in lists in lists ...


def message_of(body: bytes) -> str:
    """What an upstream says in an error, in one bounded line; nothing where it isn't JSON, such as a proxy's web page.

    Known are `{"error": {"message": ...}}`, `{"error": "..."}`, `{"message": ...}` and FastAPI's `{"detail": ...}`.
    """
    try:
        found = msgspec.json.decode(body)
    except NO_JSON:
        return ""
    return words_of(found)


def words_of(error: Any) -> str:
    """The words of an error object."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and key in error:
            error = error[key]
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MOST_MESSAGE_CHARS]).split())
    return line if len(line) <= MOST_MESSAGE_CHARS else f"{line[:MOST_MESSAGE_CHARS]} ..."


def retry_after_s(header: str | None, now_unix_s: float, default_s: float = 1.0) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; bounded."""
    header = (header or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header):
        return min(float(header), MOST_RETRY_AFTER_S)
    try:
        wait_s = parsedate_to_datetime(header).timestamp() - now_unix_s
    except (ValueError, OverflowError):
        return default_s
    return min(max(wait_s, 0.0), MOST_RETRY_AFTER_S)
