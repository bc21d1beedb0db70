"""Bodies answered without HTTP, as batches do."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from router.api import chat, completions
from router.api.desk import Desk
from router.errors import BadRequest, Overloaded
from router.serving.images import ImageFetcher
from router.serving.messages import (
    BACKGROUND,
    Admitted,
    Ask,
    Caller,
    ChoiceEnd,
    Decided,
    Decision,
    Delta,
    Event,
    Finished,
    Usage,
)
from router.serving.service import Prepare
from router.settings import ImageSettings, ServerSettings

pytestmark = pytest.mark.anyio
DECISION = Decision(route="draft", reason="accepted")
CHAT = {"model": "draftgate", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "draftgate", "prompt": ["one", "two"]}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


class Echo:
    """A service that answers with what was asked."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []
        self.callers: list[Caller] = []

    async def answer(self, ask: Ask, caller: Caller, prepare: Prepare | None = None) -> AsyncGenerator[Event, None]:
        ask = await prepare(ask) if prepare else ask
        self.asks.append(ask)
        self.callers.append(caller)
        if "busy" in str(ask.messages):
            raise Overloaded("full")
        yield Admitted({})
        yield Decided(DECISION)
        yield Delta(text=f"echo of {ask.messages[-1]['content']}")
        yield ChoiceEnd(finish_reason="stop")
        yield Finished(usage=Usage(prompt_tokens=1, completion_tokens=2), decision=DECISION)


@pytest.fixture
def service() -> Echo:
    return Echo()


@pytest.fixture
def desk(service: Echo) -> Desk:
    scripted: Any = service
    return Desk(scripted, ImageFetcher(ImageSettings()), ServerSettings(max_prompt_chars=1000), "fp_1")


async def test_chat_is_answered_for_the_caller_in_the_background(desk: Desk, service: Echo) -> None:
    caller = Caller(tenant="acme")
    found = await chat.answer_body(desk, CHAT, caller, request_id="r", priority=BACKGROUND, timeout_s=600.0)
    assert (found.id, found.choices[0].message.content) == ("chatcmpl-r", "echo of hello")
    assert (found.usage.total_tokens, found.draftgate.route, found.system_fingerprint) == (3, "draft", "fp_1")
    (ask,) = service.asks
    assert (ask.tenant, ask.priority, ask.timeout_s, ask.request_id) == ("acme", BACKGROUND, 600.0, "r")
    assert service.callers == [caller]


async def test_completions_are_too(desk: Desk, service: Echo) -> None:
    found = await completions.answer_body(desk, TEXT, Caller(), request_id="r", priority=BACKGROUND)
    assert found.id == "cmpl-r"
    assert [choice.text for choice in found.choices] == ["echo of one", "echo of two"]
    assert found.usage
    assert found.usage.total_tokens == 6
    assert {(ask.priority, ask.timeout_s) for ask in service.asks} == {(BACKGROUND, 60.0)}


async def test_a_body_may_ask_for_less_time(desk: Desk, service: Echo) -> None:
    body = CHAT | {"draftgate": {"deadline_ms": 5000}}
    await chat.answer_body(desk, body, Caller(), request_id="r", timeout_s=600.0)
    assert service.asks[0].timeout_s == 5.0


@pytest.mark.parametrize(("api", "body"), [(chat, CHAT), (completions, TEXT)])
async def test_streams_are_refused(desk: Desk, service: Echo, api: Any, body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as error:
        await api.answer_body(desk, body | {"stream": True}, Caller(), request_id="r")
    assert error.value.param == "stream"
    assert service.asks == []


@pytest.mark.parametrize("body", [None, [], "hello", 5, {}, CHAT | {"messages": 5}, CHAT | {"n": float("nan")}])
async def test_what_is_no_request_is_refused(desk: Desk, body: Any) -> None:
    for api in (chat, completions):
        with pytest.raises(BadRequest):
            await api.answer_body(desk, body, Caller(), request_id="r")


async def test_errors_are_raised(desk: Desk) -> None:
    busy = CHAT | {"messages": [{"role": "user", "content": "busy"}]}
    with pytest.raises(Overloaded):
        await chat.answer_body(desk, busy, Caller(), request_id="r")
    with pytest.raises(Overloaded):
        await completions.answer_body(desk, TEXT | {"prompt": ["one", "busy"]}, Caller(), request_id="r")


async def test_images_and_schemas_are_looked_at_before_anything_is_asked(desk: Desk, service: Echo) -> None:
    image = CHAT | {"messages": [{"role": "user", "content": [IMAGE]}]}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number", "minimum": "a"}}}
    for body, param in (
        (image, "messages[0].content[0].image_url.url"),
        (CHAT | {"response_format": schema}, "response_format.json_schema.schema"),
    ):
        with pytest.raises(BadRequest) as error:
            await chat.answer_body(desk, body, Caller(), request_id="r")
        assert error.value.param == param
    assert service.asks == []
