"""Prompts just under, at and over what each model reads go where they should, or are refused in words that clients know."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI

from benchmarks._server import running_server
from demo_models import store

CONTEXT: dict[Literal["draft", "refine"], int] = {"draft": 256, "refine": 512}  # tokens, prompt and answer together
ANSWER = 8


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder: Path = tmp_path_factory.mktemp("models")
    settings = {"DRAFTGATE_SERVER__DATA_DIR": str(folder / "data")}
    for name, context in CONTEXT.items():
        shutil.copytree(store.path(name), folder / name)
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        config.get("text_config", config)["max_position_embeddings"] = context
        path.write_text(json.dumps(config))
        settings[f"DRAFTGATE_{name.upper()}__MODEL"] = str(folder / name)
    with (
        running_server(settings) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def ask(client: OpenAI, words: int, model: str) -> Any:
    """A question of so many words, each of one token."""
    messages: Any = [{"role": "user", "content": "lamp" + " lamp" * (words - 1)}]
    return client.chat.completions.create(
        model=model, messages=messages, max_tokens=ANSWER, extra_body={"draftgate": {"cache": False}}
    )


@pytest.fixture(scope="module")
def frame(client: OpenAI) -> int:
    """Tokens that the chat template puts around a question."""
    return ask(client, 10, "draftgate-refine").usage.prompt_tokens - 10


@pytest.mark.parametrize("name", CONTEXT)
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_model_reads_what_fits_and_refuses_one_token_more(
    client: OpenAI, frame: int, name: Literal["draft", "refine"], over: int
) -> None:
    words = CONTEXT[name] - ANSWER - frame + over
    if over <= 0:
        answer = ask(client, words, f"draftgate-{name}")
        assert answer.usage.prompt_tokens == CONTEXT[name] - ANSWER + over
        return
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, words, f"draftgate-{name}")
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_routed_prompt_goes_to_a_model_that_reads_it(client: OpenAI, frame: int, over: int) -> None:
    answer = ask(client, CONTEXT["draft"] - ANSWER - frame + over, "draftgate")
    if over <= 0:
        assert answer.draftgate["steps"] is not None or answer.draftgate["reason"] == "complexity"
    else:
        assert answer.draftgate["route"] == "direct"
        assert answer.draftgate["reason"] in ("draft_rejected", "complexity")


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_routed_prompt_that_no_model_reads_is_refused(client: OpenAI, frame: int, over: int) -> None:
    words = CONTEXT["refine"] - ANSWER - frame + over
    if over <= 0:
        assert ask(client, words, "draftgate").draftgate["route"] == "direct"
        return
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, words, "draftgate")
    assert refused.value.code == "context_length_exceeded"
