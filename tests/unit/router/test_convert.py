"""From the wire to the gateway's own words: what is taken over, what is refused and by which name."""

from typing import Any

import pytest

from router.api.body import strictly
from router.api.convert import to_ask
from router.api.schemas.chat import ChatRequest
from router.errors import BadRequest, InvalidType, MissingParameter, PromptTooLong, UnknownModel, UnknownParameter
from router.serving.messages import Ask, Caller

USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "lamp"}'}}
CALLED = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "out", "schema": {"type": "object"}, "strict": True}}


ANYBODY = Caller()


def ask(caller: Caller = ANYBODY, max_prompt_chars: int = 1000, **fields: Any) -> Ask:
    body = {"model": "draftgate", "messages": [USER]} | fields
    request = strictly(body, ChatRequest)
    return to_ask(request, caller, request_id="r", max_prompt_chars=max_prompt_chars, timeout_s=60.0)


def said(*messages: Any) -> tuple[dict[str, Any], ...]:
    return ask(messages=list(messages)).messages


def test_a_bare_request_asks_for_one_greedy_answer() -> None:
    found = ask(caller=Caller(tenant="acme"))
    assert found == Ask(
        request_id="r",
        model="draftgate",
        messages=(USER,),
        tenant="acme",
        conversation=found.conversation,
        timeout_s=60.0,
    )


def test_sampling_fields_are_taken_over() -> None:
    found = ask(
        max_tokens=9,
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=-2,
        frequency_penalty=2.0,
        seed=-1,
        stop=["a", "b"],
        n=16,
        logprobs=True,
        top_logprobs=20,
    )
    assert (found.max_tokens, found.temperature, found.top_p, found.seed) == (5, 0.5, 0.9, 2**63 - 1)
    assert (found.presence_penalty, found.frequency_penalty) == (-2.0, 2.0)
    assert (found.stop, found.n, found.logprobs, found.needs) == (("a", "b"), 16, 20, ("logprobs",))
    assert ask(stop="a").stop == ("a",)
    assert ask(logprobs=True).logprobs == 0
    assert ask(logprobs=False).logprobs is None


def test_draftgate_options_are_taken_over() -> None:
    options = {
        "route": "refine",
        "quality_target": 0.05,
        "max_steps": 8,
        "candidates": 3,
        "deadline_ms": 1500,
        "refine_mode": "polish",
        "cache": False,
        "provisional": True,
    }
    found = ask(draftgate=options, stream=True)
    assert (found.wanted, found.quality_target, found.max_steps) == ("refine", 0.05, 8)
    assert (found.candidates, found.refine_mode, found.cache, found.provisional) == (3, "polish", False, True)
    assert found.timeout_s == 1.5


def test_a_deadline_only_lowers_the_servers() -> None:
    assert ask(draftgate={"deadline_ms": 3_600_000}).timeout_s == 60.0


@pytest.mark.parametrize(
    ("effort", "thinks"), [(None, False), ("none", False), ("minimal", False), ("low", True), ("high", True)]
)
def test_reasoning_effort_says_whether_to_think(effort: str | None, thinks: bool) -> None:
    assert ask(reasoning_effort=effort).reasoning is thinks


def test_developers_are_systems_and_text_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert said({"role": "developer", "content": "be kind"}, {"role": "user", "content": parts, "name": "ann"}) == (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one\ntwo", "name": "ann"},
    )


def test_calls_and_what_came_of_them_are_taken_over() -> None:
    found = ask(messages=[*CALLED, {"role": "tool", "tool_call_id": "call_1", "content": "a lamp"}])
    assert found.messages[1:] == (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "a lamp", "tool_call_id": "call_1"},
    )
    assert found.needs == ("tools",)


def test_an_answer_can_be_sent_back_as_clients_dump_it() -> None:
    echoed = {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": "hm",
        "parsed": None,
    }
    assert said(echoed) == ({"role": "assistant", "content": "hello", "reasoning_content": "hm"},)
    parsed = CALL["function"] | {"parsed_arguments": {"at": "lamp"}}  # of the client's `parse`
    call = CALL | {"function": parsed, "index": 0}
    assert said({"role": "assistant", "tool_calls": [call]})[0]["tool_calls"] == [CALL]
    assert said({"role": "assistant", "refusal": "no"}) == ({"role": "assistant", "content": "no"},)
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    assert said({"role": "assistant", "content": parts}) == ({"role": "assistant", "content": "a\nb"},)


def test_images_stay_parts() -> None:
    found = ask(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it?"}, IMAGE]}])
    assert found.messages[0]["content"] == [{"type": "text", "text": "what is it?"}, IMAGE]
    assert found.needs == ("images",)


def test_needs_are_sorted() -> None:
    content = [IMAGE]
    found = ask(messages=[{"role": "user", "content": content}], tools=[TOOL], logprobs=True)
    assert found.needs == ("images", "logprobs", "tools")


def test_tools_are_taken_over() -> None:
    found = ask(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}})
    assert found.tools == (TOOL,)
    assert found.tool_choice == {"type": "function", "function": {"name": "look"}}
    assert ask(tools=[TOOL], tool_choice="required").tool_choice == "required"


def test_tools_that_must_not_be_used_are_not_shown() -> None:
    found = ask(tools=[TOOL], tool_choice="none")
    assert (found.tools, found.tool_choice, found.needs) == ((), None, ())


def test_response_formats_are_taken_over() -> None:
    assert ask(response_format={"type": "text"}).response_format is None
    assert ask(response_format={"type": "json_object"}).response_format == {"type": "json_object"}
    assert ask(response_format=SCHEMA).response_format == SCHEMA


def test_a_conversation_is_told_by_its_beginning_or_by_name() -> None:
    more = [USER, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]
    assert ask().conversation == ask(messages=more).conversation != ask(messages=more[2:]).conversation
    assert len(ask().conversation) == 16
    assert int(ask().conversation, 16) >= 0
    named = [{"user": "u"}, {"prompt_cache_key": "u"}, {"draftgate": {"conversation": "u"}}]
    found = [ask(**name).conversation for name in named]
    assert len({ask().conversation, *found}) == 4
    assert ask(user="u", messages=more[2:]).conversation == found[0]
    assert ask(user="u", draftgate={"conversation": "u"}).conversation == found[2]
    assert ask(caller=Caller(tenant="acme")).conversation != ask().conversation


def test_what_changes_no_answer_is_accepted() -> None:
    harmless = {
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "verbosity": "low",
        "prediction": {"type": "content", "content": "hello"},
        "safety_identifier": "s",
        "prompt_cache_retention": "24h",
        "logit_bias": {},
        "modalities": ["text"],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "functions": None,
        "audio": None,
    }
    assert ask(**harmless).tools == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "hear"}}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 17}, "n"),
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"draftgate": {"provisional": True}}, "draftgate.provisional"),
        ({"draftgate": {"deadline_ms": 0}}, "draftgate.deadline_ms"),
        ({"draftgate": {"candidates": 9}}, "draftgate.candidates"),
        ({"draftgate": {"conversation": "x" * 201}}, "draftgate.conversation"),
        ({"model": "draftgate-draft", "logprobs": True}, "model"),
        ({"draftgate": {"route": "draft"}, "tools": [TOOL]}, "draftgate.route"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"metadata": {"a": 5}}, "metadata[...]"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as error:
        ask(**fields)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"messages": [USER | {"foo": 1}]}, "messages[0].foo"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}]}, "messages[0].content[0].cache"),
        ({"draftgate": {"rout": "draft"}}, "draftgate.rout"),
        ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x"),
    ],
    ids=str,
)  # fmt: skip
def test_unknown_fields_are_named_as_openai_does(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnknownParameter) as error:
        ask(**fields)
    assert (str(error.value), error.value.param) == (f"Unknown parameter: '{param}'.", param)


def test_missing_fields_and_wrong_types_have_codes_of_their_own() -> None:
    with pytest.raises(MissingParameter) as missing:
        strictly({"model": "draftgate"}, ChatRequest)
    assert missing.value.param == "messages"
    with pytest.raises(InvalidType) as wrong:
        ask(n="5")
    assert wrong.value.param == "n"
    with pytest.raises(BadRequest) as out_of_range:
        ask(n=0)
    assert not isinstance(out_of_range.value, InvalidType)


def test_messages_quote_no_more_than_a_little_of_a_request() -> None:
    unknown: dict[str, Any] = {"x" * 10_000: 1}
    with pytest.raises(BadRequest) as error:
        ask(**unknown)
    assert len(str(error.value)) < 300
    with pytest.raises(BadRequest) as error:
        ask(tool_choice="x" * 10_000)
    assert len(str(error.value)) < 300


def test_tools_and_schemas_count_as_prompt() -> None:
    long = {"type": "object", "description": "x" * 100}
    tool = {"type": "function", "function": {"name": "f", "parameters": long}}
    with pytest.raises(PromptTooLong):
        ask(max_prompt_chars=100, tools=[tool])
    with pytest.raises(PromptTooLong):
        ask(max_prompt_chars=100, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": long}})
    with pytest.raises(PromptTooLong):
        ask(max_prompt_chars=20, messages=CALLED)
    long_text = "x" * 100
    for message in (
        USER | {"name": long_text},
        {"role": "assistant", "content": "a", "reasoning_content": long_text},
        {"role": "assistant", "content": "a", "reasoning": long_text},
    ):
        with pytest.raises(PromptTooLong):
            ask(max_prompt_chars=100, messages=[message])
    with pytest.raises(PromptTooLong):
        ask(max_prompt_chars=100, stop=["x" * 99])
    assert ask(max_prompt_chars=2).prompt_chars == 2


def test_deep_json_is_refused() -> None:
    deep: Any = {}
    for _ in range(70):
        deep = {"properties": deep}
    with pytest.raises(BadRequest, match="at most 64 levels"):
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": deep}}])


def test_models_that_a_key_is_not_for_are_not_there() -> None:
    with pytest.raises(UnknownModel):
        ask(caller=Caller(models=("draftgate-draft",)))
    with pytest.raises(UnknownModel):
        ask(model="gpt-9")
    assert ask(caller=Caller(models=("draftgate-draft",)), model="draftgate-draft").wanted == "draft"
