"""The older completions, asked by the openai client over a real socket."""

import json
from typing import Any

import httpx
import openai
import pytest

from ar_engine.api import RefineFailed
from diffusion_engine.api import DraftRejected
from tests.conftest import Gateway, eventually
from tests.fakes import HANG


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> openai.types.Completion:
    return client.completions.create(**{"model": "draftgate", "prompt": prompt} | options)


def stream(gateway: Gateway, prompt: Any, **options: Any) -> tuple[httpx.Response, list[Any]]:
    body = {"model": "draftgate", "prompt": prompt, "stream": True} | options
    response = gateway.http.post("/v1/completions", json=body)
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    data = [event.removeprefix("data: ") for event in events]
    return response, [item if item == "[DONE]" else json.loads(item) for item in data]


def test_a_prompt_is_answered(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="draftgate", prompt="hello")
    answer = raw.parse()
    assert (answer.object, answer.id[:5], answer.model) == ("text_completion", "cmpl-", "draftgate")
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "draft of hello", "stop")
    ]
    assert raw.headers["x-draftgate-route"] == "draft"
    assert raw.headers["x-draftgate-request-id"] == answer.id.removeprefix("cmpl-")
    assert gateway.draft.requests[0].max_tokens == 16
    assert gateway.draft.requests[0].messages == ({"role": "user", "content": "hello"},)
    assert (answer.model_extra or {})["draftgate"][0]["route"] == "draft"


def test_several_prompts_and_choices_are_numbered(client: openai.OpenAI) -> None:
    answer = complete(client, ["one", "a hard two"], n=2, best_of=2, temperature=1.0, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    begins = ["one", "one", "a hard two", "a hard two"]
    assert all(choice.text.startswith(begin) for choice, begin in zip(answer.choices, begins, strict=True))
    assert answer.choices[0].text == "onedraft of one"
    assert answer.choices[2].text == "a hard twoanswer to a hard two "
    assert [info["route"] for info in (answer.model_extra or {})["draftgate"]] == ["draft", "direct"]
    single = complete(client, "one", n=2, temperature=1.0)
    assert answer.usage is not None
    assert single.usage is not None
    assert answer.usage.prompt_tokens == single.usage.prompt_tokens + 9


def test_an_error_of_one_prompt_fails_all(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.refine.enqueue(RefineFailed("/secret"))
    with pytest.raises(openai.InternalServerError) as error:
        complete(client, ["one", "two"], model="draftgate-refine")
    assert "secret" not in error.value.response.text


def test_log_probabilities_have_their_older_form(client: openai.OpenAI) -> None:
    answer = complete(client, "hello", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens
    assert logprobs.text_offset is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:at])) for at in range(len(logprobs.tokens))]
    assert logprobs.top_logprobs is not None
    assert {len(top) for top in logprobs.top_logprobs} == {3}


def test_chunks_have_the_shape_openai_sends(gateway: Gateway) -> None:
    response, events = stream(gateway, "hard", echo=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-draftgate-route"] == "direct"
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in events[:-1]} == {"text_completion"}
    assert len({chunk["id"] for chunk in events[:-1]}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["hard", "answer ", "to ", "hard ", ""]
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["stop"]
    assert [chunk["usage"] for chunk in chunks] == [None] * 5
    assert chunks[-1]["draftgate"][0]["route"] == "direct"
    assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], 9)


def test_several_prompts_stream_beside_each_other(gateway: Gateway) -> None:
    response, events = stream(gateway, ["one", "a hard two"], n=2, temperature=1.0, logprobs=0)
    assert "x-draftgate-route" not in response.headers, "there are two"
    *chunks, done = events
    assert done == "[DONE]"
    for index in range(4):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
        tokens = [token for choice in own if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
        assert "".join(tokens) == "".join(choice["text"] for choice in own)


def test_an_error_in_mid_stream_is_an_event_and_no_done(gateway: Gateway) -> None:
    gateway.refine.enqueue(["one two", RefineFailed("/secret")])
    _, events = stream(gateway, "hard")
    assert events[-1]["error"]["code"] == "engine_error"
    assert "secret" not in json.dumps(events)


def test_a_gap_is_filled_by_the_draft_engine(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue("$45")
    answer = complete(client, "The lamp costs ", suffix=" today.", max_tokens=4)
    assert answer.choices[0].text == "$45"
    assert gateway.draft.requests[0].template == ("The lamp costs ", 4, " today.")
    assert gateway.refine.requests == []
    assert (answer.model_extra or {})["draftgate"][0]["reason"] == "explicit"


def test_a_gap_too_long_for_the_canvas_is_tried_with_less_around_it(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue(DraftRejected("too long"), DraftRejected("too long"), "filled")
    answer = complete(client, "before " * 100, suffix=" after" * 100)
    assert answer.choices[0].text == "filled"
    sizes = [
        len("".join(part for part in request.template if isinstance(part, str))) for request in gateway.draft.requests
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_a_gap_that_never_fits_is_a_bad_request(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue(*[DraftRejected("expected a template of at most 16 tokens, got 64")] * 3)
    with pytest.raises(openai.BadRequestError, match="at most 16 tokens"):
        complete(client, "before", suffix="after")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"best_of": 3}, "best_of"),
        ({"messages": []}, "messages"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"model": "gpt-9"}, "model"),
    ],
    ids=str,
)
def test_wrong_fields_are_named(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    response = gateway.http.post("/v1/completions", json={"model": "draftgate", "prompt": "x"} | fields)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


@pytest.mark.timeout(60)
def test_leaving_a_stream_frees_all_its_prompts(gateway: Gateway) -> None:
    gateway.refine.enqueue(["one ", HANG], ["two ", HANG], ["three ", HANG])
    body = {"model": "draftgate-refine", "prompt": ["one", "two", "three"], "stream": True}
    with gateway.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()  # to drop it would be to leave
        assert next(lines).startswith("data: ")
        eventually(lambda: gateway.refine.running == 3)
    eventually(lambda: gateway.refine.running == 0)
    assert gateway.refine.cancelled == 3
