"""Reading a service's events: whole answers, several at once, and chunks of a stream."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from ar_engine.api import TokenLogprob, ToolCall
from router.api.chat_chunks import Chunks
from router.api.events import Events, first_calls, merged, open_events, whole
from router.errors import Overloaded
from router.serving.messages import (
    Admitted,
    Ask,
    ChoiceEnd,
    Decided,
    Decision,
    Delta,
    Event,
    Finished,
    Provisional,
    Usage,
)

DECISION = Decision(route="direct", reason="complexity", complexity=0.9)
LIMITS = {"x-ratelimit-limit-requests": "5"}
ADMITTED = Admitted(LIMITS)
END = Finished(usage=Usage(prompt_tokens=3, completion_tokens=2), decision=DECISION)
CALLS = (
    Delta(tool_calls=(ToolCall(index=0, id="a", name="f", arguments='{"x":'), ToolCall(index=1, id="b", name="g"))),
    Delta(tool_calls=(ToolCall(index=1, arguments="{}"), ToolCall(index=0, arguments=" 1}"))),
    ChoiceEnd(finish_reason="tool_calls"),
)


class Script:
    """Scripted events, and whether they were closed. An exception among them is raised; None waits for ever."""

    def __init__(self, *steps: Event | Exception | None) -> None:
        self.steps = steps
        self.closed = False

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            for step in self.steps:
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    await asyncio.Event().wait()
                else:
                    yield step
        finally:
            self.closed = True


def answering(*steps: Event) -> Script:
    return Script(ADMITTED, Decided(DECISION), *steps, END)


async def chunks_of(ask: Ask, events: Events, *, with_usage: bool = False) -> list[Any]:
    opening = await open_events(events)
    stream = Chunks(ask, 0, "fp", with_usage=with_usage).stream(opening, events)
    sent = b"".join([piece async for piece in stream]).decode()
    *found, rest = sent.split("\n\n")
    assert rest == ""
    data = [event.removeprefix("data: ") for event in found]
    return [item if item == "[DONE]" else msgspec.json.decode(item) for item in data]


def asked(**fields: Any) -> Ask:
    return Ask(request_id="r", model="draftgate", messages=(), **fields)


pytestmark = pytest.mark.anyio


async def test_whole_puts_interleaved_choices_together() -> None:
    token = TokenLogprob(token="a", logprob=-1.0)
    script = answering(
        Delta(choice=1, text="b"),
        Delta(choice=0, text="a", reasoning="r", logprobs=(token,)),
        Delta(choice=1, text="c"),
        ChoiceEnd(choice=1, finish_reason="length"),
        ChoiceEnd(choice=0, finish_reason="stop"),
    )
    answer, limits = await whole(script.events())
    assert [choice.text for choice in answer.choices] == ["a", "bc"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert (answer.choices[0].reasoning, answer.choices[0].logprobs) == ("r", (token,))
    assert (answer.usage, answer.decision, limits) == (END.usage, DECISION, LIMITS)
    assert script.closed


async def test_pieces_of_calls_are_put_together() -> None:
    answer, _ = await whole(answering(*CALLS).events())
    assert answer.choices[0].tool_calls == (
        ToolCall(index=0, id="a", name="f", arguments='{"x": 1}'),
        ToolCall(index=1, id="b", name="g", arguments="{}"),
    )


async def test_one_call_at_a_time_is_the_first() -> None:
    answer, _ = await whole(first_calls(answering(*CALLS).events()))
    assert [call.id for call in answer.choices[0].tool_calls] == ["a"]


async def test_an_error_before_the_opening_closes_the_events() -> None:
    script = Script(ADMITTED, Overloaded("full"))
    with pytest.raises(Overloaded):
        await open_events(script.events())
    assert script.closed


async def test_merged_tells_whose_event_it_is() -> None:
    scripts = [answering(Delta(text=text), ChoiceEnd(finish_reason="stop")) for text in "abc"]
    found = [item async for item in merged([script.events() for script in scripts])]
    texts = {number: event.text for number, event in found if isinstance(event, Delta)}
    assert texts == {0: "a", 1: "b", 2: "c"}
    assert len(found) == 3 * 5
    assert all(script.closed for script in scripts)


@pytest.mark.timeout(30)
async def test_the_first_error_ends_all_that_are_merged() -> None:
    scripts = [Script(ADMITTED, None), Script(ADMITTED, Overloaded("full")), Script(ADMITTED, None)]
    with pytest.raises(Overloaded):
        async for _ in merged([script.events() for script in scripts]):
            pass
    assert all(script.closed for script in scripts)


@pytest.mark.timeout(30)
async def test_leaving_early_closes_all_that_are_merged() -> None:
    scripts = [Script(ADMITTED, None), answering(*[Delta(text="x")] * 50)]
    events = merged([script.events() for script in scripts])
    await anext(events)
    await events.aclose()
    await asyncio.sleep(0)
    assert scripts[1].closed


async def test_each_choice_begins_with_its_role_and_ends_alone() -> None:
    script = answering(
        Delta(choice=1, text="b"),
        ChoiceEnd(choice=1, finish_reason="length"),
        Delta(choice=0, text="a"),
        ChoiceEnd(choice=0, finish_reason="stop"),
    )
    *chunks, usage, done = await chunks_of(asked(n=2), script.events(), with_usage=True)
    assert done == "[DONE]"
    told = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in chunks]
    assert told == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
        (1, {"content": "b"}),
        (1, {}),
        (0, {"content": "a"}),
        (0, {}),
    ]
    reasons = [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
    assert [reason for reason in reasons if reason[1]] == [(1, "length"), (0, "stop")]
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert ["draftgate" in chunk for chunk in chunks] == [False] * 5 + [True]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp"}


async def test_calls_are_named_before_their_arguments_come() -> None:
    chunks = await chunks_of(asked(), answering(*CALLS).events())
    pieces = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks[1:-2]]
    assert pieces == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
        {"index": 0, "function": {"arguments": " 1}"}},
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_reasoning_and_logprobs_come_with_their_chunks() -> None:
    token = TokenLogprob(token="é", logprob=float("-inf"), top=(("e", -0.5),))
    script = answering(
        Delta(reasoning="hm"), Delta(text="é", logprobs=(token,)), Delta(), ChoiceEnd(finish_reason="stop")
    )
    chunks = await chunks_of(asked(logprobs=1), script.events())
    choices = [chunk["choices"][0] for chunk in chunks[1:-2]]
    assert [choice["delta"] for choice in choices] == [{"reasoning_content": "hm"}, {"content": "é"}]
    assert choices[1]["logprobs"] == {
        "content": [
            {
                "token": "é",
                "logprob": -9999.0,
                "bytes": [195, 169],
                "top_logprobs": [{"token": "e", "logprob": -0.5, "bytes": [101]}],
            }
        ],
        "refusal": None,
    }


async def test_a_draft_that_settles_is_shown_beside_the_answer() -> None:
    settling = [Provisional(text=text, canvas=0, step=at + 1, settled=(at, 2)) for at, text in enumerate(["h", "he"])]
    script = Script(ADMITTED, *settling, Decided(DECISION), Delta(text="hello"), ChoiceEnd(finish_reason="stop"), END)
    chunks = await chunks_of(asked(provisional=True), script.events())
    assert [chunk["choices"] for chunk in chunks[:3]] == [[], [], []]
    assert [chunk["draftgate"] for chunk in chunks[:2]] == [
        {"type": "provisional", "text": "h", "canvas": 0, "step": 1, "settled": [0, 2]},
        {"type": "provisional", "text": "he", "canvas": 0, "step": 2, "settled": [1, 2]},
    ]
    assert chunks[2]["draftgate"]["type"] == "decided"
    assert chunks[2]["draftgate"]["route"] == "direct"
    text = "".join(choice["delta"].get("content", "") for chunk in chunks[:-1] for choice in chunk["choices"])
    assert text == "hello"
    assert chunks[-2]["draftgate"]["route"] == "direct"


async def test_a_stream_that_breaks_ends_with_the_error() -> None:
    script = Script(ADMITTED, Decided(DECISION), Delta(text="he"), Overloaded("full"))
    chunks = await chunks_of(asked(), script.events())
    assert chunks[-1]["error"]["code"] == "server_is_overloaded"
    assert "[DONE]" not in chunks
    assert script.closed
