"""The OpenAI wire format of chat completions: what is accepted, what is sent back."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from router.policy import Route, Wanted

MODELS: dict[str, Wanted] = {
    "draftgate": "auto",
    "draftgate-draft": "draft",
    "draftgate-refine": "refine",
}
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Tokens = Annotated[int, Meta(ge=1)]


class ContentPart(Struct, frozen=True):
    """A piece of a message; only text for now."""

    type: str
    text: str | None = None


class ChatMessage(Struct, frozen=True):
    """One turn of the conversation."""

    role: Role
    content: str | list[ContentPart] | None = None
    tool_calls: Any = None


class StreamOptions(Struct, frozen=True):
    """How to stream."""

    include_usage: bool | None = None


class DraftgateOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Draftgate's own options, under `draftgate` in the body (`extra_body` of the client)."""

    route: Wanted = "auto"
    cache: bool = True
    max_steps: Annotated[int, Meta(ge=1)] | None = None  # denoising steps per canvas


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A chat completion request. Fields that OpenAI doesn't document are ignored."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    # Absent: 0, greedy. For the refiner; a draft is sampled by the draft engine's own schedule.
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    draftgate: DraftgateOptions | None = None
    # Accepted only at the value that changes nothing: ignoring them would be a lie.
    n: int | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: Any = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None


class DraftgateInfo(Struct, frozen=True, kw_only=True):
    """The route an answer took and why."""

    request_id: str
    route: Route
    reason: str
    complexity: float | None
    quality: float | None
    cached_route: Route | None
    steps: int | None  # denoising steps
    kept_tokens: int | None  # draft tokens in a refined answer
    sketched_tokens: int | None  # tokens of a direct answer that a sketch had right


class CompletionTokensDetails(Struct, frozen=True):
    """Draft tokens that the refiner kept and threw away."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class WireUsage(Struct, frozen=True, kw_only=True):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails


class AnswerMessage(Struct, frozen=True):
    """The assistant's turn."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(Struct, frozen=True):
    """The one answer."""

    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: WireUsage
    draftgate: DraftgateInfo


class Delta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """The one answer, growing."""

    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One server-sent event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: WireUsage | UnsetType | None = UNSET  # null until the last, if it was asked for
    draftgate: DraftgateInfo | UnsetType = UNSET  # from the finish on
