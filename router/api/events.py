"""Reading a service's events: the first that matters, all of them, those of several requests together."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec.structs import replace

from ar_engine.api import TokenLogprob, ToolCall
from router.serving.messages import (
    Admitted,
    Answer,
    AnswerChoice,
    Ask,
    ChoiceEnd,
    Decided,
    Decision,
    Delta,
    Event,
    Finished,
    FinishReason,
    Provisional,
)

Events = AsyncGenerator[Event, None]


@dataclass(frozen=True)
class Opening:
    """What is known before a response begins."""

    event: Provisional | Decided
    limits: dict[str, str]  # headers that say what is left of the caller's


async def open_events(events: Events) -> Opening:
    """The first event that a client sees something of; the rest is still to come. An error closes the events."""
    limits: dict[str, str] = {}
    try:
        async for event in events:
            if isinstance(event, Admitted):
                limits = event.headers
            elif isinstance(event, Provisional | Decided):
                return Opening(event, limits)
    except BaseException:
        await events.aclose()
        raise
    raise AssertionError("a service's events begin with Admitted, then comes Provisional or Decided")


async def whole(events: Events) -> tuple[Answer, dict[str, str]]:
    """All of an answer, and what is left of the caller's limits as headers. Always closes the events."""
    limits: dict[str, str] = {}
    growing: dict[int, _Growing] = {}
    end = None
    async with aclosing(events):
        async for event in events:
            match event:
                case Admitted(headers):
                    limits = headers
                case Delta(choice=at):
                    growing.setdefault(at, _Growing()).add(event)
                case ChoiceEnd(choice=at, finish_reason=reason):
                    growing.setdefault(at, _Growing()).finish_reason = reason
                case Finished():
                    end = event
                case Provisional() | Decided():
                    pass
    assert end is not None, "a service's events end with Finished"
    choices = tuple(growing[at].choice() for at in sorted(growing))
    return Answer(choices=choices, usage=end.usage, decision=end.decision), limits


async def first_calls(events: Events) -> Events:
    """The events without all but the first call of each choice, for clients that take one call at a time."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta) and event.tool_calls:
                calls = tuple(call for call in event.tool_calls if call.index == 0)
                yield replace(event, tool_calls=calls)
            else:
                yield event


async def merged(sources: Sequence[Events]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several requests as they come, each with the number of its request.

    The first error ends them all. Whatever ends this closes all sources.
    """
    arrived: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue(maxsize=len(sources))

    async def read(number: int, events: Events) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    await arrived.put((number, event))
        except Exception as error:  # noqa: BLE001  raised again by the one who reads
            await arrived.put(error)
        else:
            await arrived.put(None)

    readers = [asyncio.create_task(read(number, events)) for number, events in enumerate(sources)]
    try:
        left = len(readers)
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def headers_of(ask: Ask, decision: Decision | None, limits: dict[str, str]) -> dict[str, str]:
    """The headers of a response; without a decision, those that are known before it."""
    headers = {"x-draftgate-request-id": ask.request_id, **limits}
    if decision is None:
        return headers
    headers |= {"x-draftgate-route": decision.route, "x-draftgate-reason": decision.reason}
    if decision.arm:
        headers["x-draftgate-arm"] = decision.arm
    if decision.complexity is not None:
        headers["x-draftgate-complexity"] = f"{decision.complexity:.4f}"
    if decision.quality is not None:
        headers["x-draftgate-quality"] = f"{decision.quality:.4f}"
    return headers


@dataclass
class _Growing:
    """A choice, piece by piece."""

    text: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])
    calls: dict[int, ToolCall] = field(default_factory=dict[int, ToolCall])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish_reason: FinishReason = "stop"

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.logprobs += delta.logprobs
        for new in delta.tool_calls:
            old = self.calls.get(new.index) or ToolCall(index=new.index)
            self.calls[new.index] = ToolCall(
                index=new.index,
                id=old.id or new.id,
                name=old.name + new.name,
                arguments=old.arguments + new.arguments,
            )

    def choice(self) -> AnswerChoice:
        return AnswerChoice(
            text="".join(self.text),
            reasoning="".join(self.reasoning),
            tool_calls=tuple(self.calls[index] for index in sorted(self.calls)),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
        )
