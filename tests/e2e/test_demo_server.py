"""The real server with the shipped models, as `make serve` starts it, and with checkpoints named in the settings."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI

from benchmarks._server import running_server
from demo_models.configs import new_draft, new_refine
from demo_models.tasks import conversations
from demo_models.tokenizer import make_tokenizer

SIMPLE = "How much is the lamp?"
COMPLEX = "What do I pay for 2 lamps and 3 mugs with 20% off?"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_server({}) as address:
        yield address


@pytest.fixture(scope="module")
def client(address) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client: OpenAI, question: str, model: str = "draftgate", **options: Any):
    messages: Any = [{"role": "user", "content": question}]
    response = client.chat.completions.with_raw_response.create(model=model, messages=messages, **options)
    return response.headers, response.parse()


def test_a_simple_question_is_drafted_a_complex_one_refined_and_a_repeated_one_remembered(client):
    headers, simple = ask(client, SIMPLE)
    assert headers["x-draftgate-route"] == "draft"
    assert simple.choices[0].message.content == "The lamp costs $45."
    headers, hard = ask(client, COMPLEX)
    assert headers["x-draftgate-route"] in ("refine", "direct")
    assert hard.choices[0].message.content.endswith("The total is $96.")
    headers, again = ask(client, COMPLEX)
    assert headers["x-draftgate-route"] == "cache"
    assert again.choices[0].message.content == hard.choices[0].message.content


def test_every_answer_says_why_it_took_its_route(client):
    headers, completion = ask(client, "What is the vase made of?")
    body = completion.model_extra["draftgate"]
    assert headers["x-draftgate-reason"] == body["reason"] == "accepted"
    assert 0 <= float(headers["x-draftgate-complexity"]) < 0.5
    assert 0.7 <= float(headers["x-draftgate-quality"]) <= 1
    assert headers["x-draftgate-request-id"]


def test_a_stream_has_the_text_of_the_whole_answer(client):
    for question in (SIMPLE, COMPLEX):
        _, whole = ask(client, question, extra_body={"draftgate": {"cache": False}})
        stream = client.chat.completions.create(
            model="draftgate",
            messages=[{"role": "user", "content": question}],
            stream=True,
            extra_body={"draftgate": {"cache": False}},
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == whole.choices[0].message.content


def test_a_refined_draft_is_word_for_word_what_the_refiner_says_alone():
    """A policy that drafts everything and accepts nothing, on questions whose drafts are right, nearly right and wrong."""
    options: dict[str, Any] = {"extra_body": {"draftgate": {"cache": False}}}
    nothing_passes = {"DRAFTGATE_POLICY__COMPLEXITY_THRESHOLD": "1", "DRAFTGATE_POLICY__QUALITY_THRESHOLD": "1"}
    drafted_right = []
    with (
        running_server(nothing_passes) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", timeout=60) as client,
    ):
        for case in islice(
            conversations("combinations", seed=9, families=("which_sold", "cart_total", "three_of")), 15
        ):
            question = case.messages[-1]["content"]
            headers, refined = ask(client, question, **options)
            assert headers["x-draftgate-route"] == "refine"
            _, alone = ask(client, question, model="draftgate-refine", **options)
            assert refined.choices[0].message.content == alone.choices[0].message.content
            _, draft = ask(client, question, model="draftgate-draft", **options)
            drafted_right.append(draft.choices[0].message.content == alone.choices[0].message.content)
    assert {True, False} <= set(drafted_right)


@pytest.mark.parametrize("model", ["draftgate-draft", "draftgate-refine"])
def test_a_conversation_that_goes_on_is_not_read_again(client, model):
    uncached: dict[str, Any] = {"extra_body": {"draftgate": {"cache": False}}}
    turns: list[Any] = [{"role": "user", "content": f"Hello, I am {model}. " * 6 + SIMPLE}]
    first = client.chat.completions.create(model=model, messages=turns, **uncached)
    turns += [first.choices[0].message.to_dict(), {"role": "user", "content": "And the vase?"}]
    second = client.chat.completions.create(model=model, messages=turns, **uncached)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens // 2


def test_routes_are_counted_for_prometheus(address, client):
    ask(client, SIMPLE)
    text = httpx.get(f"{address}/metrics").text
    for route in ("draft", "cache"):
        counts = [
            float(line.split()[-1])
            for line in text.splitlines()
            if line.startswith("draftgate_requests_total") and f'route="{route}"' in line
        ]
        assert sum(counts) >= 1, route


def test_other_checkpoints_need_only_their_names(tmp_path):
    """Random models in the published form (bfloat16, several shards), each with a tokenizer of its own."""
    torch.manual_seed(0)
    for name, model, samples in (("draft", new_draft(), 1000), ("refine", new_refine(), 2000)):
        model.bfloat16().save_pretrained(tmp_path / name, max_shard_size="1MB")
        make_tokenizer(samples=samples).save_pretrained(tmp_path / name)
    settings = {
        "DRAFTGATE_DRAFT__MODEL": str(tmp_path / "draft"),
        "DRAFTGATE_DRAFT__MAX_STEPS": "2",
        "DRAFTGATE_REFINE__MODEL": str(tmp_path / "refine"),
    }
    with running_server(settings) as address, OpenAI(base_url=f"{address}/v1", api_key="none", timeout=60) as client:
        headers, _ = ask(client, SIMPLE, max_tokens=8)
        assert headers["x-draftgate-route"] in ("refine", "direct")  # a random draft convinces nobody
        headers, drafted = ask(client, SIMPLE, model="draftgate-draft", max_tokens=8)
        assert headers["x-draftgate-route"] == "draft"
        assert drafted.usage.completion_tokens <= 8
