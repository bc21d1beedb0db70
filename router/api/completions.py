"""POST /v1/completions, whole and streamed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, SkipValidation

from diffusion_engine.api import DraftRejected
from router.api.access import caller_of
from router.api.body import StrictBody, strictly
from router.api.desk import Desk
from router.api.document import StreamedOperation, errors
from router.api.events import Events, headers_of, merged, whole
from router.api.schemas.completions import TextCompletion, TextRequest
from router.api.stream import EventStream, request_id_of, unless_gone
from router.api.text_chunks import Numbered, TextChunks
from router.api.text_convert import USUAL_CANVAS, Place, to_infill, to_places, to_text_completion
from router.errors import BadRequest, NeverFits
from router.serving.messages import Admitted, Answer, Caller, Decided, Event


@post(
    "/v1/completions",
    status_code=200,
    dto=StrictBody[TextRequest],
    return_dto=None,
    operation_class=StreamedOperation,
    responses=errors(),
)
async def completions(
    request: Request[Any, Any, Any],
    data: JSONBody[TextRequest],
    desk: NamedDependency[SkipValidation[Desk]],
) -> Response[TextCompletion]:
    """Go on with a text, or fill a gap in one."""
    request_id, caller = request_id_of(request), caller_of(request)
    places = _places(desk, data, caller, request_id)
    name, created = f"cmpl-{request_id}", int(time.time())
    sources = _sources(desk, data, places, caller)
    if not data.stream:
        answers, limits = await unless_gone(request, _whole(sources))
        body = to_text_completion(name, created, places, answers, desk.fingerprint, echo=bool(data.echo))
        return Response(body, headers=_headers(places, answers[0], limits, request_id))
    events = merged(sources)
    first, limits = await unless_gone(request, _opened(events))
    with_usage = bool(data.stream_options and data.stream_options.include_usage)
    chunks = TextChunks(name, created, places, desk.fingerprint, echo=bool(data.echo), with_usage=with_usage)
    stream = EventStream(chunks.stream(first, events), events, _headers(places, first[1], limits, request_id))
    return cast("Response[TextCompletion]", stream)


async def answer_body(
    desk: Desk,
    body: Any,
    caller: Caller,
    *,
    request_id: str,
    priority: int = 0,
    timeout_s: float | None = None,
) -> TextCompletion:
    """Answer the decoded body of a request that came by another way than HTTP, as `chat.answer_body` does."""
    data = strictly(body, TextRequest)
    if data.stream:
        raise BadRequest("stream: expected an answer as a whole, got stream: true.", param="stream")
    places = _places(desk, data, caller, request_id, priority, timeout_s)
    answers, _ = await _whole(_sources(desk, data, places, caller))
    created = int(time.time())
    return to_text_completion(f"cmpl-{request_id}", created, places, answers, desk.fingerprint, echo=bool(data.echo))


def _places(
    desk: Desk, data: TextRequest, caller: Caller, request_id: str, priority: int = 0, timeout_s: float | None = None
) -> list[Place]:
    return to_places(
        data,
        caller,
        request_id=request_id,
        max_prompt_chars=desk.server.max_prompt_chars,
        priority=priority,
        timeout_s=desk.server.request_timeout_s if timeout_s is None else timeout_s,
    )


def _sources(desk: Desk, data: TextRequest, places: Sequence[Place], caller: Caller) -> list[Events]:
    """All prompts' events; as many at once as the caller may have.

    Raises:
        NeverFits: there are more prompts than the caller may send in a minute.
    """
    limits = caller.limits
    if limits.requests_per_min is not None and len(places) > limits.requests_per_min:
        most = limits.requests_per_min
        raise NeverFits(
            f"{len(places)} prompts are as many requests and can never fit: the key's limit is {most} in a minute."
        )
    together = asyncio.Semaphore(min(limits.concurrency or len(places), desk.server.max_requests))
    return [_answering(desk, data, place, caller, together) for place in places]


async def _answering(
    desk: Desk, data: TextRequest, place: Place, caller: Caller, together: asyncio.Semaphore
) -> Events:
    """One prompt's events. A gap that turns out too long for the model's canvas is asked for again, with less around it."""
    asks = [place.ask]
    if data.suffix:
        canvas = desk.service.canvas_tokens or USUAL_CANVAS
        canvases = (canvas, canvas // 2, canvas // 4)  # where text is denser than it usually is, less of it fits
        asks = [to_infill(place.ask, place.prompt, data.suffix, data.max_tokens, canvas) for canvas in canvases]
    for ask in asks:
        try:
            async with together, aclosing(desk.service.answer(ask, caller)) as events:
                async for event in events:
                    yield event
            return
        except DraftRejected:
            if ask is asks[-1]:
                raise


async def _whole(sources: Sequence[Events]) -> tuple[list[Answer], dict[str, str]]:
    """All answers, asked for at once; the first error ends them all."""
    tasks = [asyncio.create_task(whole(events)) for events in sources]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [answer for answer, _ in found], found[-1][1]


async def _opened(events: AsyncGenerator[Numbered, None]) -> tuple[Numbered, dict[str, str]]:
    """The first event that a client sees something of, and what is left of its limits."""
    limits: dict[str, str] = {}
    try:
        async for number, event in events:
            if isinstance(event, Admitted):
                limits = event.headers
            else:
                return (number, event), limits
    except BaseException:
        await events.aclose()
        raise
    raise AssertionError("a service's events begin with Admitted, then comes Decided")


def _headers(places: Sequence[Place], told: Answer | Event, limits: dict[str, str], request_id: str) -> dict[str, str]:
    """The headers; a decision is in them only where there is but one."""
    decision = told.decision if len(places) == 1 and isinstance(told, Answer | Decided) else None
    return headers_of(places[0].ask, decision, limits) | {"x-draftgate-request-id": request_id}
