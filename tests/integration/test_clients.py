"""The clients that people have: OpenAI's own, sync and async, and an agent framework's."""

from typing import Any, Literal

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI

from ar_engine import api as ar
from tests.conftest import HANG_S, Gateway

QUESTION: Any = [{"role": "user", "content": "hello"}]
PRICE: Any = {
    "type": "function",
    "function": {"name": "price", "parameters": {"type": "object", "properties": {"item": {"type": "string"}}}},
}


@pytest.fixture
def client(gateway: Gateway):
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=HANG_S) as client:
        yield client


def test_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="draftgate", messages=QUESTION)
    assert answer.choices[0].message.content == "draft of hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    extra: Any = answer.model_extra
    assert extra["draftgate"]["route"] == "draft"


def test_a_raw_response_has_the_headers(client: OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(model="draftgate", messages=QUESTION)
    body = response.parse().model_extra
    assert body is not None
    assert response.headers["x-draftgate-route"] == "draft"
    assert response.headers["x-draftgate-request-id"] == body["draftgate"]["request_id"]


def test_a_streamed_response_is_read_to_its_end(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="draftgate-refine", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as response:
        assert response.headers["x-draftgate-route"] == "direct"
        chunks = list(response.parse())
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "answer to hello "
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices].count("stop") == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


def test_the_clients_own_stream_helper_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(model="draftgate", messages=QUESTION, n=2) as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    assert [choice.message.content for choice in whole.choices] == ["draft of hello", "draft of hello (1)"]


def test_a_parsed_answer_is_of_the_asked_type(gateway: Gateway, client: OpenAI) -> None:
    class Lamp(pydantic.BaseModel):
        price: int

    gateway.draft.enqueue('{"price": 45}')
    answer = client.chat.completions.parse(model="draftgate", messages=QUESTION, response_format=Lamp)
    assert answer.choices[0].message.parsed == Lamp(price=45)


def test_a_tool_is_called_whole_and_streamed(gateway: Gateway, client: OpenAI) -> None:
    call = ar.ToolCall(index=0, id="call_1", name="price", arguments='{"item": "lamp"}')
    gateway.refine.enqueue([ar.RefineDelta(tool_calls=(call,))], [ar.RefineDelta(tool_calls=(call,))])
    answer = client.chat.completions.create(model="draftgate", messages=QUESTION, tools=[PRICE])
    (called,) = answer.choices[0].message.tool_calls or []
    assert called.type == "function"
    assert (called.id, called.function.name, called.function.arguments) == ("call_1", "price", '{"item": "lamp"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(
        model="draftgate", messages=QUESTION, tools=[PRICE], extra_body={"draftgate": {"cache": False}}
    ) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    (again,) = streamed.choices[0].message.tool_calls or []
    assert again.function.arguments == '{"item": "lamp"}'


def test_legacy_completions_and_infilling(gateway: Gateway, client: OpenAI) -> None:
    plain = client.completions.create(model="draftgate", prompt=["one", "two"], n=2)
    assert [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    gateway.draft.enqueue("filled")
    between = client.completions.create(
        model="draftgate", prompt="def add(a, b):\n", suffix="\n    return c", max_tokens=8
    )
    assert between.choices[0].text == "filled"
    assert 8 in gateway.draft.requests[-1].template


def test_errors_are_the_clients_own_kinds(gateway: Gateway, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="Unknown parameter: 'frobnicate'") as error:
        client.chat.completions.create(model="draftgate", messages=QUESTION, extra_body={"frobnicate": 1})
    assert (error.value.code, error.value.param) == ("unknown_parameter", "frobnicate")
    gateway.draft.enqueue("no object")
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="draftgate", messages=QUESTION, response_format={"type": "json_object"})


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["draftgate", "draftgate-draft", "draftgate-refine"]


@pytest.mark.anyio
async def test_the_async_client(gateway: Gateway) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=HANG_S) as client:
        whole = await client.chat.completions.create(model="draftgate", messages=QUESTION)
        assert whole.choices[0].message.content == "draft of hello"
        stream = await client.chat.completions.create(model="draftgate", messages=QUESTION, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        assert text == "draft of hello"


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["whole", "streamed"])
async def test_an_agent_uses_a_tool_and_answers(gateway: Gateway, way: Literal["whole", "streamed"]) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    call = ar.ToolCall(index=0, id="call_1", name="price", arguments='{"item": "lamp"}')
    gateway.refine.enqueue([ar.RefineDelta(tool_calls=(call,))], "The lamp costs $45.")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=HANG_S) as client:
        model = OpenAIChatModel("draftgate", provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, instructions="You sell lamps.")
        asked: list[str] = []

        @agent.tool_plain
        def price(item: str) -> str:
            asked.append(item)
            return "$45"

        if way == "whole":
            said = (await agent.run("How much is the lamp?")).output
        else:
            async with agent.run_stream("How much is the lamp?") as result:
                said = await result.get_output()
    assert asked == ["lamp"]
    assert said.strip() == "The lamp costs $45."
    history = gateway.refine.requests[-1].messages
    assert [message["role"] for message in history] == ["system", "user", "assistant", "tool"]
    assert history[-1]["content"] == "$45"
