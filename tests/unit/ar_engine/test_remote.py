"""The remote engine and a server that does as it should: what is sent, what is heard, what becomes of drafts."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ar_engine.api import DraftScore, RefineRejected, RefineSettings, ScoreRequest, TokenLogprob, ToolCall
from ar_engine.polish import POLISH
from ar_engine.remote import RemoteEngine
from tests.unit.ar_engine.remote import KEY, QUESTION, answer, answers, request, run, started
from tests.upstream import ANSWER, FakeUpstream, Reply, chunk, error, serving, sse, usage

CHAT, RAW = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
def port(upstream: FakeUpstream) -> Iterator[int]:
    with serving(upstream) as port:
        yield port


def ask(port: int, asked: Any, **settings: Any) -> Any:
    """One request to an engine of its own: its deltas and results."""

    async def scenario() -> Any:
        async with started(port, **settings) as engine:
            return await answers(engine, asked)

    return run(scenario())


# What is sent


def test_a_plain_request_asks_for_nothing_that_openai_would_refuse(upstream, port):
    ask(port, request())
    assert upstream.asked(CHAT) == [
        {
            "model": "byte-model",
            "messages": list(QUESTION),
            "max_tokens": 1024,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_all_that_is_asked_for_is_passed_on_as_it_is(upstream, port):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = ({"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    options: dict[str, Any] = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "repetition_penalty": 1.1, "seed": 7, "stop": ["\n\n"], "stop_token_ids": [5], "n": 1, "tools": [tool],
        "tool_choice": "required", "response_format": {"type": "json_object"},
    }  # fmt: skip
    tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    ask(port, request(**tuples | {"messages": messages, "logprobs": 3, "max_tokens": 50, "reasoning": True}))
    (sent,) = upstream.asked(CHAT)
    assert sent == {key: value for key, value in options.items() if key != "n"} | {
        "model": "byte-model", "messages": list(messages), "max_tokens": 50, "logprobs": True, "top_logprobs": 3,
        "chat_template_kwargs": {"enable_thinking": True}, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_no_answer_is_longer_than_the_settings_allow(upstream, port):
    ask(port, request(max_tokens=5000), max_tokens=100)
    assert upstream.asked(CHAT)[0]["max_tokens"] == 100


def test_a_model_that_is_named_is_asked_for_and_context_that_is_set_counts(upstream, port):
    async def scenario() -> int:
        async with started(port, upstream={"model": "mine", "context_tokens": 99}) as engine:
            await answer(engine, request())
            return engine.load().context_tokens

    assert run(scenario()) == 99
    assert upstream.asked(CHAT)[0]["model"] == "mine"


@pytest.mark.parametrize(("environ", "header"), [({"MY_KEY": KEY}, f"Bearer {KEY}"), ({}, None)])
def test_the_key_comes_from_the_named_variable(upstream, port, environ, header):
    ask(port, request(), environ=environ, upstream={"api_key_env": "MY_KEY"})
    assert {seen.headers.get("authorization") for seen in upstream.seen} == {header}


def test_connections_are_used_again(upstream, port):
    async def scenario() -> None:
        async with started(port) as engine:
            for _ in range(3):
                await answer(engine, request())

    run(scenario())
    assert len({seen.connection for seen in upstream.seen}) == 1


@pytest.mark.parametrize(
    ("message", "field", "instead"),
    [
        ("Unknown parameter: 'stream_options'.", "stream_options", None),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", "max_tokens", "max_completion_tokens"),
    ],
)
def test_a_field_that_is_refused_is_left_out_once_and_for_all(upstream, port, message, field, instead):
    async def scenario() -> None:
        async with started(port) as engine:
            upstream.script.append(error(400, message))
            assert (await answer(engine, request())).text == ANSWER
            assert (await answer(engine, request())).text == ANSWER

    run(scenario())
    first, again, later = upstream.asked(CHAT)
    assert field in first
    assert (
        again
        == later
        == {key: value for key, value in first.items() if key != field} | ({instead: first[field]} if instead else {})
    )


def test_a_refusal_that_another_field_does_not_cure_is_the_answer_and_is_not_remembered(upstream, port):
    async def scenario() -> None:
        async with started(port) as engine:
            upstream.script.extend([error(400, "max_tokens or max_completion_tokens is too large: 1024")] * 2)
            with pytest.raises(RefineRejected, match="is too large"):
                await answer(engine, request())
            await answer(engine, request())

    run(scenario())
    assert ["max_tokens" in sent for sent in upstream.asked(CHAT)] == [True, False, True]


# What is heard


def test_text_comes_as_it_is_sent_and_usage_is_the_upstreams(upstream, port):
    upstream.script.append(Reply([sse(chunk(role="assistant"), chunk("one "), chunk("two", "length"), usage(7, 5))]))
    deltas, (result,) = ask(port, request())
    assert [delta.text for delta in deltas] == ["one ", "two"]
    assert (result.text, result.finish_reason, result.token_ids) == ("one two", "length", ())
    assert (result.prompt_tokens, result.completion_tokens, result.kept_tokens) == (7, 5, 0)
    assert 0 < result.first_token_s <= result.elapsed_s


def test_without_usage_pieces_are_counted(upstream, port):
    upstream.script.append(Reply([sse(chunk("one "), chunk("two"), chunk(finish="stop"))]))
    _, (result,) = ask(port, request())
    assert (result.prompt_tokens, result.completion_tokens) == (0, 2)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_stays_apart_from_the_answer(upstream, port, name):
    thoughts: list[dict[str, Any]] = [{name: "Let me "}, {name: "see."}]
    thought = [*(chunk(**delta) for delta in thoughts), chunk("15", "stop")]
    upstream.script.append(Reply([sse(*thought)]))
    _, (result,) = ask(port, request(reasoning=True))
    assert (result.reasoning, result.text) == ("Let me see.", "15")


def test_calls_of_tools_come_in_pieces(upstream, port):
    def piece(index: int | None, **call: Any) -> Any:
        named = {"id": call.pop("id")} if "id" in call else {}
        return chunk(tool_calls=[({} if index is None else {"index": index}) | named | {"function": call}])

    pieces = [piece(0, id="a", name="add", arguments=""), piece(0, arguments='{"x"'), piece(1, id="b", name="look")]
    upstream.script.append(Reply([sse(*pieces, piece(0, arguments=":1}"), chunk(finish="tool_calls"))]))
    upstream.script.append(Reply([sse(piece(None, id="c", name="f", arguments="{}"), chunk(finish="function_call"))]))

    async def scenario() -> Any:
        async with started(port) as engine:
            return await answers(engine, request()), await answer(engine, request())

    (deltas, (result,)), whole = run(scenario())
    add = ToolCall(index=0, id="a", name="add", arguments='{"x":1}')
    assert result.tool_calls == (add, ToolCall(index=1, id="b", name="look"))
    assert result.finish_reason == whole.finish_reason == "tool_calls"
    assert "".join(call.arguments for delta in deltas for call in delta.tool_calls if call.index == 0) == '{"x":1}'
    assert whole.tool_calls == (ToolCall(index=0, id="c", name="f", arguments="{}"),)


def test_log_probabilities_come_with_their_alternatives(upstream, port):
    token = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Ho", "logprob": -1.5}]}
    event = chunk("Hi", "stop")
    event["choices"][0]["logprobs"] = {"content": [token]}
    upstream.script.append(Reply([sse(event)]))
    (delta,), (result,) = ask(port, request(logprobs=1))
    assert delta.logprobs == result.logprobs == (TokenLogprob(token="Hi", logprob=-0.5, top=(("Ho", -1.5),)),)


def test_choices_come_interleaved_and_share_the_usage(upstream, port):
    events = [chunk("a", index=0), chunk("b", index=1), chunk("bb", "stop", 1), chunk("", "length", 0), usage(4, 9)]
    upstream.script.append(Reply([sse(*events)]))
    _, (first, second) = ask(port, request(n=2))
    assert (first.choice, first.text, first.finish_reason) == (0, "a", "length")
    assert (second.choice, second.text, second.finish_reason) == (1, "bbb", "stop")
    assert (first.completion_tokens, second.completion_tokens) == (3, 6)


def test_fields_that_are_null_and_fields_that_nobody_knows_do_no_harm(upstream, port):
    odd = {
        "index": 0,
        "delta": {"content": None, "tool_calls": None, "new": 1},
        "logprobs": None,
        "finish_reason": None,
    }
    bare = {"index": 0, "delta": None, "finish_reason": "stop", "stop_reason": 3}
    upstream.script.append(Reply([sse({"choices": [odd], "usage": None, "id": "x"}, chunk("ok"), {"choices": [bare]})]))
    _, (result,) = ask(port, request())
    assert result.text == "ok"


def test_a_stream_that_ends_without_done_is_complete_if_its_choices_are(upstream, port):
    upstream.script.append(Reply([sse(chunk("ok", "stop")).removesuffix(b"data: [DONE]\n\n")]))
    assert ask(port, request())[1][0].text == "ok"


# What becomes of drafts


@pytest.mark.parametrize(
    ("draft", "kept"),
    [
        ("Zwölf times", "Zwölf "),  # all that agrees, to the last blank
        (ANSWER, ANSWER),  # the whole draft, and the model adds nothing
        ("Zw\u00e4lf", "Zw"),  # they part in the second byte of a character: none of it is kept
    ],
)
def test_exact_goes_on_behind_what_the_model_would_have_written(upstream, port, draft, kept):
    deltas, (result,) = ask(port, request(draft), mode="exact")
    assert deltas[0].text == kept
    assert result.text == ANSWER
    assert (result.kept_tokens, result.tried_tokens) == (len(kept.encode()), len(draft.encode()))
    assert result.completion_tokens == len(ANSWER.encode()) - len(kept.encode())
    assert (result.prompt_tokens, result.finish_reason) == (
        len("<user><assistant>" + QUESTION[0]["content"]) + 1,
        "stop",
    )
    assert not upstream.asked(CHAT)


@pytest.mark.parametrize(
    "fields",
    [
        {"draft": "Nothing of this"},
        {"temperature": 0.5},  # then the model's own choice is not the likeliest
        {"repetition_penalty": 1.2},
        {"max_tokens": 1},  # the one token is the upstream's to write
        {"stop_token_ids": (ord("Z"),)},  # the draft's first
        {"tools": ({"type": "function", "function": {"name": "f"}},)},
        {"reasoning": True},
        {"logprobs": 0},
        {"response_format": {"type": "json_object"}},
        {"messages": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},)},
        {"mode": "fresh"},
    ],
    ids=str,
)
def test_exact_is_answered_fresh_where_nothing_can_be_kept(upstream, port, fields):
    _, (result,) = ask(port, request(**{"draft": ANSWER} | fields), mode="exact")
    assert (result.text, result.kept_tokens, result.tried_tokens) == (ANSWER, 0, 0)
    assert upstream.asked(CHAT)[0]["messages"] == list(fields.get("messages", QUESTION))


def test_typical_keeps_what_is_likely_enough(port, upstream):
    # Behind the first difference every token of the draft has exp(-4), which is 0.018.
    draft = "Zwölf + 3 = 15."
    upstream.script.append(Reply([sse({"choices": [{"text": " Right!", "finish_reason": "stop"}]})]))
    _, (result,) = ask(port, request(draft, temperature=0.5), mode="typical", typical_floor=0.01)
    assert (result.text, result.kept_tokens) == (draft + " Right!", len(draft.encode()))
    assert ask(port, request(draft), mode="typical", typical_floor=0.05)[1][0].text == ANSWER


def test_a_kept_part_that_holds_a_stop_is_all_of_the_answer(upstream, port):
    deltas, results = ask(port, request(ANSWER, stop=("plus",), n=2), mode="exact")
    assert [delta.text for delta in deltas] == [result.text for result in results] == [ANSWER, ANSWER]
    assert {(result.finish_reason, result.completion_tokens) for result in results} == {("stop", 0)}
    assert not any(sent.get("stream") for sent in upstream.asked(RAW))


def test_polish_shows_the_draft_to_the_model(upstream, port):
    ask(port, request("12 + 3 = 16"), mode="polish")
    draft, last = {"role": "assistant", "content": "12 + 3 = 16"}, {"role": "user", "content": POLISH}
    assert upstream.asked(CHAT)[0]["messages"] == [*QUESTION, draft, last]


def test_a_draft_is_scored_token_by_token(port):
    async def scenario() -> DraftScore:
        async with started(port) as engine:
            return await engine.score(score_request("Zx"))

    score = run(scenario())
    assert score.token_ids == (ord("Z"), ord("x"))
    assert score.token_logprobs == (-0.1, -4.0)
    assert score.token_ranks == (0, 6)
    assert score.greedy_tokens == (ord("Z"), ord("w"))
    assert score.agreeing_prefix == 1


def score_request(text: str, **fields: Any) -> ScoreRequest:
    draft = request(text).draft
    assert draft is not None
    return ScoreRequest(**{"request_id": "r1", "messages": QUESTION, "draft": draft} | fields)


def test_what_an_upstream_without_scores_can_do_is_said_once_and_the_rest_is_fresh(caplog):
    upstream = FakeUpstream(scores=False)

    async def scenario(port: int) -> None:
        async with started(port, mode="exact") as engine:
            assert engine.load().modes == ("polish", "fresh")
            for _ in range(2):
                assert (await answer(engine, request("draft"))).kept_tokens == 0
            with pytest.raises(RefineRejected, match="expected an upstream that scores"):
                await engine.score(score_request("draft"))

    with serving(upstream) as port, caplog.at_level(logging.WARNING):
        run(scenario(port))
    assert caplog.text.count("can't score drafts") == caplog.text.count("exact is not possible") == 1
    assert [sent["messages"] for sent in upstream.asked(CHAT)] == [list(QUESTION)] * 2


def test_load_tells_what_the_upstream_can_do(port):
    async def scenario() -> Any:
        async with started(port) as engine:
            return engine.load()

    load = run(scenario())
    assert (load.state, load.context_tokens, load.capacity) == ("ready", 4096, 64)
    assert load.modes == ("exact", "typical", "polish", "fresh")
    assert RemoteEngine(RefineSettings(), {}).load().state == "loading"


def test_text_crosses_as_it_is(upstream, port):
    odd = 'a "quote", \\, \x00, \u2028, 😀'
    upstream.answer = odd
    assert ask(port, request(messages=({"role": "user", "content": odd},)))[1][0].text == odd
    assert upstream.asked(CHAT)[0]["messages"][0]["content"] == odd
