"""A real server that is none of ours, `transformers serve` with the demo's refiner, behind the remote engine."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ar_engine.api import RefineResult, RefineSettings
from ar_engine.remote import RemoteEngine
from demo_models import store
from engine_core.upstream import client
from engine_core.upstream.settings import Upstream
from tests.unit.ar_engine.remote import answers, request, run

MODEL = str(store.path("refine"))
QUESTIONS = ("What do 3 mugs at $15 cost?", "Where is my order 440?")
MOST_TOKENS = 24
START_S = 240.0  # against hangs; it takes half a minute to import what it serves with, on a machine that is busy


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("huggingface")
    (home / "hub").mkdir()  # it lists the models that are there
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environ = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"], env=environ, stdout=log, stderr=log
        )
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()
            sys.stdout.write((home / "log").read_text())


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PROBE_S", 0.2)


def refined(url: str, *questions: str, **fields: Any) -> list[tuple[list[str], RefineResult]]:
    """The texts of all deltas, and the result, for each question."""

    async def scenario() -> Any:
        engine = RemoteEngine(RefineSettings(upstream=Upstream(base_url=url, model=MODEL)), {})
        await engine.start()  # waits until the server is there
        assert engine.load().modes == ("polish", "fresh")
        found = []
        for question in questions:
            messages = ({"role": "user", "content": question},)
            deltas, (result,) = await answers(
                engine, request(**{"messages": messages, "max_tokens": MOST_TOKENS} | fields)
            )
            found.append(([delta.text for delta in deltas], result))
        await engine.close()
        return found

    return run(scenario(), START_S)


def generated(question: str) -> tuple[str, int, int]:
    """The model's own greedy answer: its text, and the tokens of prompt and answer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=MOST_TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True), prompt["input_ids"].shape[1], len(ids)


def test_the_streamed_answer_is_the_models_own(url):
    for question, (pieces, result) in zip(QUESTIONS, refined(url, *QUESTIONS), strict=True):
        text, prompt_tokens, completion_tokens = generated(question)
        assert result.text == text
        assert len(pieces) > 2
        assert (result.prompt_tokens, result.completion_tokens) == (prompt_tokens, completion_tokens)
        assert result.finish_reason == ("length" if completion_tokens == MOST_TOKENS else "stop")


def test_a_draft_is_ignored_by_an_upstream_that_cannot_score_it(url):
    ((_, fresh), (_, drafted)) = refined(url, QUESTIONS[0]) + refined(url, QUESTIONS[0], draft="3 mugs")
    assert drafted.text == fresh.text
    assert drafted.kept_tokens == 0


def test_polish_asks_for_another_answer(url):
    ((_, result),) = refined(url, QUESTIONS[0], draft="3 x $15 = $46.", mode="polish")
    assert result.prompt_tokens > generated(QUESTIONS[0])[1] + 20  # the draft, and what to do with it
    assert result.completion_tokens > 0
