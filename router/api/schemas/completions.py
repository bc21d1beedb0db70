"""The older completions: a text that is gone on with, or filled in."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from router.api.schemas.shared import (
    Choices,
    DraftgateInfo,
    DraftgateOptions,
    ModelName,
    NoBias,
    Penalty,
    Seed,
    StopText,
    StopTexts,
    StreamOptions,
    Temperature,
    TextFinish,
    Tokens,
    TopP,
    WireUsage,
)


class TextRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A completion request."""

    model: ModelName
    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=128)]  # texts; token ids are not understood
    suffix: str | None = None  # with it, the gap between prompt and suffix is filled
    max_tokens: Tokens | None = None  # absent: 16, or a gap of 64
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    n: Choices | None = None
    best_of: Choices | None = None  # only the same as n
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logit_bias: NoBias | None = None
    draftgate: DraftgateOptions | None = None


class TextLogprobs(Struct, frozen=True, kw_only=True):
    """Tokens of an answer, or of a piece of it, each list with one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]  # the token itself, and the likeliest
    text_offset: list[int]  # characters from the answer's start


class TextChoice(Struct, frozen=True, kw_only=True):
    """One of the answers."""

    text: str
    index: int  # prompt * n + choice
    logprobs: TextLogprobs | None = None
    finish_reason: TextFinish | None = None  # null while it grows


class TextCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer, or one server-sent event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: ModelName
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: WireUsage | UnsetType | None = UNSET  # in a stream, if it was asked for: null until the last
    draftgate: list[DraftgateInfo] | UnsetType = UNSET  # one for each prompt; in a stream, as each prompt is done
