"""A streamed chat completion, chunk by chunk."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from msgspec import UNSET, UnsetType

from ar_engine.api import ToolCall
from router.api.answers import completion_id, to_info, to_logprobs, to_usage
from router.api.events import Events, Opening
from router.api.schemas.answers import (
    ChatChunk,
    ChunkChoice,
    ChunkDelta,
    DecidedInfo,
    FunctionPiece,
    ProvisionalInfo,
    ToolCallPiece,
)
from router.api.schemas.shared import DraftgateInfo, WireUsage
from router.api.stream import DONE, sse
from router.errors import describe
from router.serving.messages import Ask, ChoiceEnd, Decided, Decision, Delta, Event, Finished, Provisional


class Chunks:
    """Turns events into chunks as OpenAI sends them.

    Role deltas first, then what is new, and for each choice a delta that only says why it ended. The last of these, and the
    usage if it was asked for, say which route the answer took.
    """

    def __init__(self, ask: Ask, created: int, fingerprint: str | None, *, with_usage: bool) -> None:
        self._ask = ask
        self._created = created
        self._fingerprint = fingerprint
        self._with_usage = with_usage
        self._ended: ChoiceEnd | None = None  # held back, as it may be the last

    async def stream(self, opening: Opening, events: Events) -> AsyncGenerator[bytes, None]:
        """Server-sent events up to [DONE], or to an error event: the status is long sent then, and only that tells that the text is cut off."""
        async with aclosing(events):
            try:
                for chunk in self._of(opening.event):
                    yield sse(chunk)
                async for event in events:
                    for chunk in self._of(event):
                        yield sse(chunk)
            except Exception as error:  # noqa: BLE001  described and logged like any other
                _, body, _ = describe(error)
                yield sse(body)
                return
            yield DONE

    def _of(self, event: Event) -> Iterator[ChatChunk]:
        if self._ended and not isinstance(event, Finished):
            yield self._end(self._ended)
            self._ended = None
        match event:
            case Provisional():
                yield self._chunk(info=_provisional(event))
            case Decided(decision):
                if self._ask.provisional:
                    yield self._chunk(info=_decided(self._ask, decision))
                for at in range(self._ask.n):
                    yield self._chunk(ChunkChoice(index=at, delta=ChunkDelta(role="assistant", content="")))
            case Delta():
                yield from self._more(event)
            case ChoiceEnd():
                self._ended = event
            case Finished(usage=usage, decision=decision):
                info = to_info(self._ask.request_id, decision, usage)
                assert self._ended is not None, "all choices end before the answer does"
                yield self._end(self._ended, info)
                if self._with_usage:
                    yield self._chunk(usage=to_usage([usage]), info=info)
            case _:
                pass

    def _more(self, event: Delta) -> Iterator[ChatChunk]:
        if event.text or event.reasoning or event.logprobs:
            delta = ChunkDelta(
                content=event.text if event.text or not event.reasoning else UNSET,
                reasoning_content=event.reasoning or UNSET,
            )
            logprobs = to_logprobs(self._ask, event.logprobs)
            yield self._chunk(ChunkChoice(index=event.choice, delta=delta, logprobs=logprobs))
        for call in event.tool_calls:
            for piece in _pieces(call):
                yield self._chunk(ChunkChoice(index=event.choice, delta=ChunkDelta(tool_calls=[piece])))

    def _end(self, event: ChoiceEnd, info: DraftgateInfo | UnsetType = UNSET) -> ChatChunk:
        return self._chunk(
            ChunkChoice(index=event.choice, delta=ChunkDelta(), finish_reason=event.finish_reason), info=info
        )

    def _chunk(
        self,
        *choices: ChunkChoice,
        usage: WireUsage | None = None,
        info: DraftgateInfo | ProvisionalInfo | DecidedInfo | UnsetType = UNSET,
    ) -> ChatChunk:
        return ChatChunk(
            id=completion_id(self._ask),
            created=self._created,
            model=self._ask.model,
            system_fingerprint=self._fingerprint,
            choices=list(choices),
            usage=usage if self._with_usage else UNSET,
            draftgate=info,
        )


def _pieces(call: ToolCall) -> Iterator[ToolCallPiece]:
    """A piece of a call as OpenAI sends it: what names the call comes alone."""
    if call.id or call.name:
        named = FunctionPiece(name=call.name or UNSET, arguments="")
        yield ToolCallPiece(index=call.index, id=call.id or UNSET, type="function", function=named)
    if call.arguments:
        yield ToolCallPiece(index=call.index, function=FunctionPiece(arguments=call.arguments))


def _provisional(event: Provisional) -> ProvisionalInfo:
    return ProvisionalInfo(text=event.text, canvas=event.canvas, step=event.step, settled=event.settled)


def _decided(ask: Ask, decision: Decision) -> DecidedInfo:
    return DecidedInfo(
        request_id=ask.request_id,
        route=decision.route,
        reason=decision.reason,
        arm=decision.arm or None,
        complexity=decision.complexity,
        quality=decision.quality,
        cached_route=decision.cached_route,
    )
