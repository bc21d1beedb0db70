"""A chat completion's answer, whole and in chunks."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from router.api.schemas.shared import DraftgateInfo, WireUsage
from router.policy import Route
from router.serving.messages import FinishReason


class TopLogprob(Struct, frozen=True, kw_only=True):
    """A token that could have stood there."""

    token: str
    logprob: float  # natural log
    bytes: list[int]


class WireLogprob(Struct, frozen=True, kw_only=True):
    """A token of the answer, and those that could have stood in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct, frozen=True):
    """Those of an answer, or of a piece of it."""

    content: list[WireLogprob]
    refusal: None = None


class WireFunction(Struct, frozen=True):
    """What is called."""

    name: str
    arguments: str  # JSON, as the model wrote it


class WireToolCall(Struct, frozen=True, kw_only=True):
    """A call of a tool, to be made by the client."""

    id: str
    type: Literal["function"] = "function"
    function: WireFunction


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None  # null: there are only calls
    refusal: None = None
    tool_calls: list[WireToolCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # what the model thought first


class Choice(Struct, frozen=True, kw_only=True):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[Choice]
    usage: WireUsage
    draftgate: DraftgateInfo


class FunctionPiece(Struct, frozen=True, omit_defaults=True):
    """More of what is called."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallPiece(Struct, frozen=True, kw_only=True):
    """More of a call: first its id and name, then its arguments piece by piece."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionPiece


class ChunkDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPiece] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """One of the answers, growing."""

    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ProvisionalInfo(Struct, frozen=True, kw_only=True, tag_field="type", tag="provisional"):
    """The draft as it stands; replaces the one before, and promises nothing."""

    text: str
    canvas: int  # 0 for the first block of the answer
    step: int  # denoising steps of this canvas so far
    settled: tuple[int, int]  # tokens taken so far, and tokens in all


class DecidedInfo(Struct, frozen=True, kw_only=True, tag_field="type", tag="decided"):
    """The route is final, the text begins."""

    request_id: str
    route: Route
    reason: str
    arm: str | None
    complexity: float | None
    quality: float | None
    cached_route: Route | None


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One server-sent event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: WireUsage | UnsetType | None = UNSET  # null until the last, if it was asked for
    draftgate: DraftgateInfo | ProvisionalInfo | DecidedInfo | UnsetType = UNSET
