"""Tools: from the request to the refiner, and its calls back to the client."""

import json
from typing import Any

import openai
import pytest

from ar_engine.api import RefineDelta, ToolCall
from tests.conftest import Gateway

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "What a thing costs.",
        "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}},
    },
}
QUESTION: Any = {"role": "user", "content": "How much is the lamp?"}
PIECES = (
    ToolCall(index=0, id="call_a", name="price", arguments='{"thing":'),
    ToolCall(index=0, arguments=' "lamp"}'),
    ToolCall(index=1, id="call_b", name="price", arguments='{"thing": "mug"}'),
)


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    gateway.refine.enqueue([RefineDelta(tool_calls=(piece,)) for piece in PIECES])
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def test_calls_come_back_whole(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="draftgate", messages=[QUESTION], tools=[TOOL], tool_choice="auto"
    )
    assert (raw.headers["x-draftgate-route"], raw.headers["x-draftgate-reason"]) == ("direct", "tools")
    choice = raw.parse().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls or []
    assert [(call.id, call.type) for call in calls] == [("call_a", "function"), ("call_b", "function")]
    assert calls[0].type == "function"
    assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == ("price", {"thing": "lamp"})
    asked = gateway.refine.requests[0]
    assert (asked.tools, asked.tool_choice) == ((TOOL,), "auto")
    assert gateway.draft.requests == []


def test_calls_stream_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="draftgate", messages=[QUESTION], tools=[TOOL], stream=True))
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    found: dict[int, str] = {}
    for piece in pieces:
        assert piece.function is not None
        if piece.id is None:
            assert piece.function.name is None
        else:
            assert piece.index not in found, "named once"
            assert (piece.type, piece.function.name, piece.function.arguments) == ("function", "price", "")
        found[piece.index] = found.get(piece.index, "") + (piece.function.arguments or "")
    assert {at: json.loads(arguments) for at, arguments in found.items()} == {0: {"thing": "lamp"}, 1: {"thing": "mug"}}
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


def test_one_call_at_a_time_if_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="draftgate", messages=[QUESTION], tools=[TOOL], parallel_tool_calls=False
    )
    assert [call.id for call in answer.choices[0].message.tool_calls or ()] == ["call_a"]


def test_what_came_of_a_call_goes_back_with_the_conversation(gateway: Gateway, client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="draftgate", messages=[QUESTION], tools=[TOOL])
    message = first.choices[0].message
    messages: Any = [QUESTION, message.to_dict()]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "45"} for call in message.tool_calls or ()]
    again = client.chat.completions.create(model="draftgate", messages=messages, tools=[TOOL])
    assert again.choices[0].message.content
    told = gateway.refine.requests[1].messages
    assert [turn["role"] for turn in told] == ["user", "assistant", "tool", "tool"]
    assert told[1]["tool_calls"][0]["function"]["arguments"] == '{"thing": "lamp"}'
    assert told[2] == {"role": "tool", "content": "45", "tool_call_id": "call_a"}


@pytest.mark.parametrize("fields", [{"model": "draftgate-draft"}, {"extra_body": {"draftgate": {"route": "draft"}}}])
def test_drafts_know_no_tools(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(**{"model": "draftgate", "messages": [QUESTION], "tools": [TOOL]} | fields)
