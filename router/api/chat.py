"""POST /v1/chat/completions, whole and streamed."""

import asyncio
import time
from typing import Any, cast

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, SkipValidation
from msgspec.structs import replace

from router.api.access import caller_of
from router.api.answers import to_completion
from router.api.body import StrictBody, strictly
from router.api.chat_chunks import Chunks
from router.api.convert import to_ask
from router.api.desk import Desk
from router.api.document import StreamedOperation, errors
from router.api.events import Events, Opening, first_calls, headers_of, open_events, whole
from router.api.json_schemas import check_schema
from router.api.schemas.answers import ChatCompletion
from router.api.schemas.chat import ChatRequest
from router.api.stream import EventStream, request_id_of, unless_gone
from router.errors import BadRequest
from router.serving.messages import Answer, Ask, Caller, Decided


@post(
    "/v1/chat/completions",
    status_code=200,
    dto=StrictBody[ChatRequest],
    return_dto=None,
    operation_class=StreamedOperation,
    responses=errors(),
)
async def chat_completions(
    request: Request[Any, Any, Any],
    data: JSONBody[ChatRequest],
    desk: NamedDependency[SkipValidation[Desk]],
) -> Response[ChatCompletion]:
    """Answer a conversation."""
    caller = caller_of(
        request
    )  # not a dependency: with a second one Litestar starts a task for each, at a tenth of all it does
    ask = _ask(desk, data, caller, request_id_of(request))
    created = int(time.time())
    if not data.stream:
        answer, limits = await unless_gone(request, _whole(desk, data, ask, caller))
        body = to_completion(ask, created, answer, desk.fingerprint)
        return Response(body, headers=headers_of(ask, answer.decision, limits))
    # The first event has the route, unless provisional text comes before it: headers are final, and an error up to here is a
    # plain response with its own status.
    opening, events = await unless_gone(request, _opened(desk, data, ask, caller))
    decision = opening.event.decision if isinstance(opening.event, Decided) else None
    with_usage = bool(data.stream_options and data.stream_options.include_usage)
    chunks = Chunks(ask, created, desk.fingerprint, with_usage=with_usage).stream(opening, events)
    # Litestar reads the annotation for the document only; a stream is a Response as well.
    stream = EventStream(chunks, events, headers_of(ask, decision, opening.limits))
    return cast("Response[ChatCompletion]", stream)


async def answer_body(
    desk: Desk,
    body: Any,
    caller: Caller,
    *,
    request_id: str,
    priority: int = 0,
    timeout_s: float | None = None,
) -> ChatCompletion:
    """Answer the decoded body of a request that came by another way than HTTP.

    Args:
        desk: where it is taken in.
        body: what the endpoint takes, but for streams.
        caller: who asks.
        request_id: of this request.
        priority: as the engines have it.
        timeout_s: the longest it may take; None: the server's own.

    Raises:
        RouterError, DraftError, RefineError: `router.errors.describe` has the wire form.
    """
    data = strictly(body, ChatRequest)
    if data.stream:
        raise BadRequest("stream: expected an answer as a whole, got stream: true.", param="stream")
    ask = _ask(desk, data, caller, request_id, priority, timeout_s)
    answer, _ = await _whole(desk, data, ask, caller)
    return to_completion(ask, int(time.time()), answer, desk.fingerprint)


def _ask(
    desk: Desk, data: ChatRequest, caller: Caller, request_id: str, priority: int = 0, timeout_s: float | None = None
) -> Ask:
    return to_ask(
        data,
        caller,
        request_id=request_id,
        max_prompt_chars=desk.server.max_prompt_chars,
        priority=priority,
        timeout_s=desk.server.request_timeout_s if timeout_s is None else timeout_s,
    )


async def _whole(desk: Desk, data: ChatRequest, ask: Ask, caller: Caller) -> tuple[Answer, dict[str, str]]:
    return await whole(_answering(desk, data, ask, caller))


async def _opened(desk: Desk, data: ChatRequest, ask: Ask, caller: Caller) -> tuple[Opening, Events]:
    events = _answering(desk, data, ask, caller)
    return await open_events(events), events


def _answering(desk: Desk, data: ChatRequest, ask: Ask, caller: Caller) -> Events:
    async def prepare(ask: Ask) -> Ask:
        if ask.response_format is not None:
            await asyncio.to_thread(check_schema, ask.response_format)
        if "images" in ask.needs:
            ask = replace(ask, messages=tuple(await desk.images.inline(ask.messages)))
        return ask

    simple = ask.response_format is None and "images" not in ask.needs
    events = desk.service.answer(ask, caller, None if simple else prepare)
    return first_calls(events) if data.parallel_tool_calls is False else events
