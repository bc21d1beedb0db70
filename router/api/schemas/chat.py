"""A chat completion's request."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from router.api.schemas.shared import (
    Choices,
    DraftgateOptions,
    ModelName,
    Name,
    Never,
    NoBias,
    Penalty,
    Seed,
    StopText,
    StopTexts,
    StreamOptions,
    Temperature,
    Tokens,
    TopP,
)


class TextPart(Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A piece of text."""

    text: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    """A refusal of the assistant's, as clients send it back."""

    refusal: str


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """Where an image is: a data: URL, or the address of one that the gateway may fetch."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """An image."""

    image_url: ImageUrl


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
UserParts = Annotated[list[TextPart | ImagePart], Meta(min_length=1)]
AssistantParts = Annotated[list[TextPart | RefusalPart], Meta(min_length=1)]


class CalledFunction(Struct, frozen=True, forbid_unknown_fields=True):
    """What the assistant called."""

    name: str
    arguments: str  # JSON
    parsed_arguments: Any = None  # comes back from the client's own parsing


class AssistantToolCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call of a tool, by the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # comes back from streams


class SystemMessage(Struct, frozen=True, tag_field="role", tag="system", forbid_unknown_fields=True):
    """What the assistant is told."""

    content: str | TextParts
    name: str | None = None


class DeveloperMessage(Struct, frozen=True, tag_field="role", tag="developer", forbid_unknown_fields=True):
    """The same, by its newer name."""

    content: str | TextParts
    name: str | None = None


class UserMessage(Struct, frozen=True, tag_field="role", tag="user", forbid_unknown_fields=True):
    """A turn of the user."""

    content: str | UserParts
    name: str | None = None


class AssistantMessage(
    Struct, frozen=True, kw_only=True, tag_field="role", tag="assistant", forbid_unknown_fields=True
):
    """A turn of the assistant, with all that clients send back of an answer."""

    content: str | AssistantParts | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: Any = None
    parsed: Any = None
    audio: None = None
    function_call: None = None


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool", forbid_unknown_fields=True):
    """What came of a call."""

    content: str | TextParts
    tool_call_id: str
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionDefinition(Struct, frozen=True, forbid_unknown_fields=True):
    """A function the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    """A tool; functions are all there is."""

    type: Literal["function"]
    function: FunctionDefinition


class ToolName(Struct, frozen=True, forbid_unknown_fields=True):
    """A tool, by its name."""

    name: str


class NamedToolChoice(Struct, frozen=True, forbid_unknown_fields=True):
    """This tool and no other."""

    type: Literal["function"]
    function: ToolName


class TextFormat(Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON schema with a name."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None  # answers are always held to the schema


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON of a schema."""

    json_schema: JsonSchema


class Prediction(Struct, frozen=True, forbid_unknown_fields=True):
    """What the answer may look like. Draftgate makes its own predictions."""

    type: Literal["content"]
    content: str | TextParts


Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ChatRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat completion request."""

    model: ModelName
    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None  # the older name
    # Absent: 0, greedy. For the refiner; a draft is sampled by the draft engine's own schedule.
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    n: Choices | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    draftgate: DraftgateOptions | None = None
    # Read for the conversation they tell apart.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Hints that change no answer.
    metadata: Metadata | None = None
    prediction: Prediction | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # Accepted only at the value that changes nothing: ignoring them would be a lie.
    store: Never | None = None
    logit_bias: NoBias | None = None
    modalities: list[Literal["text"]] | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    web_search_options: None = None
    moderation: None = None
