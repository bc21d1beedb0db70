"""Routes, headers and bodies of whole answers, asked by the openai client over a real socket."""

from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from ar_engine.api import RefineFailed, RefineOverloaded
from diffusion_engine.api import DraftFailed, DraftOverloaded
from tests.conftest import Gateway
from tests.fakes import HANG


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, text: str, **options: Any) -> tuple[ChatCompletion, httpx.Headers]:
    fields = {"model": "draftgate", "messages": [{"role": "user", "content": text}]} | options
    raw = client.chat.completions.with_raw_response.create(**fields)
    return raw.parse(), raw.headers


def route_of(headers: httpx.Headers) -> tuple[str, str]:
    return headers["x-draftgate-route"], headers["x-draftgate-reason"]


def text_of(completion: ChatCompletion) -> str | None:
    return completion.choices[0].message.content


def info_of(completion: ChatCompletion) -> dict[str, Any]:
    return (completion.model_extra or {})["draftgate"]


def test_a_simple_question_is_drafted(client: openai.OpenAI) -> None:
    completion, headers = ask(client, "hello")
    assert text_of(completion) == "draft of hello"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 7 + 3
    assert route_of(headers) == ("draft", "accepted")
    assert headers["x-draftgate-complexity"] == "0.1000"
    assert headers["x-draftgate-quality"] == "0.9500"
    assert info_of(completion) == {
        "request_id": headers["x-draftgate-request-id"],
        "route": "draft",
        "reason": "accepted",
        "arm": None,
        "complexity": 0.1,
        "quality": 0.95,
        "cached_route": None,
        "steps": 5,
        "kept_tokens": None,
        "sketched_tokens": None,
    }


def test_a_hard_question_goes_to_the_refiner_without_a_draft(gateway: Gateway, client: openai.OpenAI) -> None:
    completion, headers = ask(client, "a hard one")
    assert text_of(completion) == "answer to a hard one "
    assert route_of(headers) == ("direct", "complexity")
    assert "x-draftgate-quality" not in headers
    assert all(request.priority == 1 for request in gateway.draft.requests), "a sketch at most"


def test_a_rejected_draft_travels_to_the_refiner(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue("bad draft")
    completion, headers = ask(client, "hello")
    assert text_of(completion) == "answer to hello "
    assert route_of(headers) == ("refine", "quality")
    assert gateway.refine.requests[0].draft.text == "bad draft"
    assert completion.usage is not None
    details = completion.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (1, 1)
    assert info_of(completion)["kept_tokens"] == 1


def test_a_failed_verifier_is_named(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue("1+1=3")
    _, headers = ask(client, "sum")
    assert route_of(headers) == ("refine", "verifier:arithmetic")


def test_a_repeated_question_is_answered_from_the_cache(gateway: Gateway, client: openai.OpenAI) -> None:
    first, _ = ask(client, "hello")
    again, headers = ask(client, "hello")
    assert text_of(again) == text_of(first)
    assert again.id != first.id
    assert route_of(headers) == ("cache", "hit")
    assert info_of(again)["cached_route"] == "draft"
    assert len(gateway.draft.requests) == 1


def test_the_cache_can_be_passed_by(gateway: Gateway, client: openai.OpenAI) -> None:
    for _ in range(2):
        _, headers = ask(client, "hello", extra_body={"draftgate": {"cache": False}})
        assert route_of(headers) == ("draft", "accepted")


def test_sampled_answers_are_not_cached_unless_seeded(gateway: Gateway, client: openai.OpenAI) -> None:
    for _ in range(2):
        _, headers = ask(client, "hello", temperature=0.7)
        assert route_of(headers) == ("draft", "accepted")
    ask(client, "hello", temperature=0.7, seed=3)
    _, headers = ask(client, "hello", temperature=0.7, seed=3)
    assert route_of(headers) == ("cache", "hit")
    first, second, third = gateway.draft.requests
    assert first.seed != second.seed
    assert third.seed == 3


@pytest.mark.parametrize(
    "options",
    [
        {"model": "draftgate-draft"},
        {"extra_body": {"draftgate": {"route": "draft"}}},
        {"model": "draftgate-draft", "extra_body": {"draftgate": {"route": "draft"}}},
    ],
)
def test_an_explicit_draft_is_given_whatever_its_quality(
    gateway: Gateway, client: openai.OpenAI, options: dict[str, Any]
) -> None:
    gateway.draft.enqueue("bad draft")
    completion, headers = ask(client, "a hard one", **options)
    assert text_of(completion) == "bad draft"
    assert route_of(headers) == ("draft", "explicit")
    assert headers["x-draftgate-quality"] == "0.2000"


@pytest.mark.parametrize(
    "options",
    [{"model": "draftgate-refine"}, {"extra_body": {"draftgate": {"route": "refine"}}}],
)
def test_an_explicit_refine_makes_no_draft(gateway: Gateway, client: openai.OpenAI, options: dict[str, Any]) -> None:
    _, headers = ask(client, "hello", **options)
    assert route_of(headers) == ("direct", "explicit")
    assert gateway.draft.requests == []


def test_sampling_fields_reach_the_refiner(gateway: Gateway, client: openai.OpenAI) -> None:
    ask(client, "hard", max_completion_tokens=5, temperature=0.5, top_p=0.9, seed=-1)
    request = gateway.refine.requests[0]
    assert (request.max_tokens, request.temperature, request.top_p) == (5, 0.5, 0.9)
    assert request.seed == 2**63 - 1


def test_text_parts_and_the_developer_role_are_understood(gateway: Gateway, client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    ask(
        client,
        "",
        messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}],
    )
    assert gateway.draft.requests[0].messages == (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one\ntwo"},
    )


def test_stop_cuts_drafts_and_refined_text(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue("one two three")
    completion, _ = ask(client, "hello", stop=" thr")
    assert text_of(completion) == "one two"
    gateway.refine.enqueue("one two three")
    completion, _ = ask(client, "hard", stop=["three", "two"])
    assert text_of(completion) == "one "
    assert completion.choices[0].finish_reason == "stop"


def test_a_failing_draft_engine_loses_no_request(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue(DraftFailed("secret reason"))
    completion, headers = ask(client, "hello")
    assert text_of(completion) == "answer to hello "
    assert route_of(headers) == ("direct", "draft_failed")


def test_a_failing_refiner_after_a_rejected_draft_is_an_error_not_the_draft(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    gateway.draft.enqueue("bad draft")
    gateway.refine.enqueue(RefineFailed("/secret/path"))
    with pytest.raises(openai.InternalServerError) as error:
        ask(client, "hello")
    assert error.value.status_code == 500
    assert error.value.code == "engine_error"
    assert "secret" not in error.value.response.text
    assert "bad draft" not in error.value.response.text


@pytest.mark.parametrize("model", ["draftgate-draft", "draftgate-refine"])
def test_a_full_engine_says_when_to_come_back(gateway: Gateway, client: openai.OpenAI, model: str) -> None:
    gateway.draft.enqueue(DraftOverloaded("full", retry_after_s=3.2))
    gateway.refine.enqueue(RefineOverloaded("full", retry_after_s=3.2))
    with pytest.raises(openai.APIStatusError) as error:
        ask(client, "hello", model=model)
    assert error.value.status_code == 503
    assert error.value.response.headers["retry-after"] == "3"


def test_several_answers_are_numbered(client: openai.OpenAI) -> None:
    for question in ("hello", "a hard one"):
        completion, _ = ask(client, question, n=3, temperature=1.0)
        assert [choice.index for choice in completion.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in completion.choices} == {"stop"}
        assert all(choice.message.content for choice in completion.choices)


def test_log_probabilities_come_from_the_refiner(client: openai.OpenAI) -> None:
    completion, headers = ask(client, "hello", logprobs=True, top_logprobs=2)
    assert route_of(headers) == ("direct", "logprobs")
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for token in logprobs.content:
        assert bytes(token.bytes or ()).decode() == token.token
        assert len(token.top_logprobs) == 2
    completion, _ = ask(client, "hello", logprobs=True, top_logprobs=0)
    assert completion.choices[0].logprobs is not None
    assert [token.top_logprobs for token in completion.choices[0].logprobs.content or ()] != []
    assert all(token.top_logprobs == [] for token in completion.choices[0].logprobs.content or ())


def test_images_go_to_the_refiner(gateway: Gateway, client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "what is it?"}, image]
    _, headers = ask(client, "", messages=[{"role": "user", "content": content}])
    assert route_of(headers) == ("direct", "images")
    assert gateway.refine.requests[0].messages[0]["content"] == content
    assert gateway.draft.requests == []


def test_all_options_reach_the_engines(gateway: Gateway, client: openai.OpenAI) -> None:
    options = {"candidates": 2, "max_steps": 7, "refine_mode": "polish", "quality_target": 1.0}
    gateway.draft.enqueue("bad draft")
    ask(client, "hello", extra_body={"draftgate": options})
    assert (gateway.draft.requests[0].candidates, gateway.draft.requests[0].max_steps) == (2, 7)
    assert gateway.refine.requests[0].mode == "polish"


def test_a_deadline_of_the_request_counts(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.draft.enqueue(HANG)
    gateway.refine.enqueue(HANG)
    with pytest.raises(openai.APIStatusError) as error:
        ask(client, "hello", extra_body={"draftgate": {"deadline_ms": 200}})
    assert (error.value.status_code, error.value.code) == (408, "deadline_passed")


def test_a_cache_can_be_asked_for(client: openai.OpenAI) -> None:
    for reason in ("accepted", "hit"):
        _, headers = ask(client, "hello", temperature=0.7, extra_body={"draftgate": {"cache": True}})
        assert route_of(headers)[1] == reason


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "draftgate",
        "draftgate-draft",
        "draftgate-refine",
    ]
    assert client.models.retrieve("draftgate-draft").object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-9")
    assert error.value.code == "model_not_found"
