"""POST /v1/chat/completions, whole and streamed."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Schema
from litestar.params import JSONBody, SkipValidation
from msgspec import UNSET, UnsetType

from router.api import convert
from router.api.schemas import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Delta,
    DraftgateInfo,
    WireUsage,
)
from router.api.stream import EventStream, sse, unless_gone
from router.errors import ErrorBody, describe
from router.serving.messages import Answer, Ask, Decided, Decision, Event, Finished, TextDelta
from router.serving.pipeline import Pipeline
from router.settings import ServerSettings

ERRORS = {
    400: "The request is wrong; param names the field.",
    404: "No such model.",
    413: "The body is too large.",
    500: "The answer could not be made.",
    503: "Busy or still starting; see Retry-After.",
    504: "The deadline passed.",
}


@dataclass
class ChatOperation(Operation):
    """Adds the streamed form of the answer to the OpenAPI document."""

    def __post_init__(self) -> None:
        response = (self.responses or {})["200"]
        events = Schema(
            type=OpenAPIType.STRING,
            description="With stream: true. Events `data: {chat.completion.chunk}`, then `data: [DONE]`.",
        )
        content: Any = getattr(response, "content", None) or {}
        content["text/event-stream"] = OpenAPIMediaType(schema=events)


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=ChatOperation,
    responses={
        status: ResponseSpec(ErrorBody, generate_examples=False, description=words) for status, words in ERRORS.items()
    },
)
async def chat_completions(
    request: Request[Any, Any, Any],
    data: JSONBody[ChatRequest],
    pipeline: NamedDependency[SkipValidation[Pipeline]],
    server: NamedDependency[SkipValidation[ServerSettings]],
) -> Response[ChatCompletion]:
    """Answer a conversation."""
    data = convert.strictly(await request.json())  # Litestar's own decoding is too kind
    ask = convert.to_ask(data, uuid.uuid4().hex, server.max_prompt_chars)
    created = int(time.time())
    events = pipeline.answer(ask)
    if not data.stream:
        answer = await unless_gone(request, _whole(events))
        body = convert.to_completion(ask, created, answer)
        return Response(body, headers=_headers(ask, answer.decision))
    # The first event has the route: headers are final, and an error up to here is a plain
    # response with its own status.
    decision = await unless_gone(request, _first(events))
    with_usage = bool(data.stream_options and data.stream_options.include_usage)
    chunks = _chunks(ask, created, events, with_usage=with_usage)
    # Litestar reads the annotation for the document only; a stream is a Response as well.
    return cast("Response[ChatCompletion]", EventStream(chunks, events, _headers(ask, decision)))


async def _whole(events: AsyncGenerator[Event, None]) -> Answer:
    text: list[str] = []
    end = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                text.append(event.text)
            elif isinstance(event, Finished):
                end = event
    assert end is not None, "the pipeline ends with Finished or raises"
    return Answer(text="".join(text), finish_reason=end.finish_reason, usage=end.usage, decision=end.decision)


async def _first(events: AsyncGenerator[Event, None]) -> Decision:
    try:
        event = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    assert isinstance(event, Decided), "the pipeline begins with Decided"
    return event.decision


async def _chunks(
    ask: Ask, created: int, events: AsyncGenerator[Event, None], *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    def chunk(
        *choices: ChunkChoice,
        usage: WireUsage | None = None,
        info: DraftgateInfo | UnsetType = UNSET,
    ) -> bytes:
        event = ChatChunk(
            id=convert.completion_id(ask),
            created=created,
            model=ask.model,
            choices=list(choices),
            usage=usage if with_usage else UNSET,
            draftgate=info,
        )
        return sse(event)

    async with aclosing(events):
        try:
            yield chunk(ChunkChoice(Delta(role="assistant", content="")))
            async for event in events:
                if isinstance(event, TextDelta):
                    yield chunk(ChunkChoice(Delta(content=event.text)))
                elif isinstance(event, Finished):
                    info = convert.to_info(ask.request_id, event.decision, event.usage)
                    yield chunk(ChunkChoice(Delta(), event.finish_reason), info=info)
                    if with_usage:
                        yield chunk(usage=convert.to_usage(event.usage), info=info)
        except Exception as error:  # noqa: BLE001  described and logged like any other
            # The status is long sent: an error event, and no [DONE], tell that the text is cut off.
            _, body, _ = describe(error)
            yield sse(body)
            return
        yield b"data: [DONE]\n\n"


def _headers(ask: Ask, decision: Decision) -> dict[str, str]:
    headers = {
        "x-draftgate-request-id": ask.request_id,
        "x-draftgate-route": decision.route,
        "x-draftgate-reason": decision.reason,
    }
    if decision.complexity is not None:
        headers["x-draftgate-complexity"] = f"{decision.complexity:.4f}"
    if decision.quality is not None:
        headers["x-draftgate-quality"] = f"{decision.quality:.4f}"
    return headers
