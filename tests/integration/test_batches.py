"""Files and batches of the real application, asked with OpenAI's own client, and `draftgate batch --url`."""

import json
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from router import batch as command
from router.settings import BatchSettings, ServerSettings, Settings
from tests.conftest import HANG_S, Gateway, eventually
from tests.fakes import HANG
from tests.slow_server import Plan, SlowServer

CHAT = "/v1/chat/completions"


def line(custom_id: str, content: str, **changes: Any) -> dict[str, Any]:
    body = {"model": "draftgate", "messages": [{"role": "user", "content": content}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body | changes}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with client_of(gateway.url) as client:
        yield client


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HANG_S)


def make(client: OpenAI, *lines: Any, endpoint: Any = CHAT) -> Batch:
    file = client.files.create(file=("in.jsonl", BytesIO(jsonl(*lines))), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def ended(client: OpenAI, batch: Batch) -> Batch:
    while (batch := client.batches.retrieve(batch.id)).status in (
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        time.sleep(0.05)
    return batch


def results(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    read = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    by_id = {each["custom_id"]: each for each in read}
    assert len(by_id) == len(read)
    return by_id


def test_openais_client_makes_lists_and_deletes_files(client: OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", b"{}\n" * n), purpose="batch") for n in (1, 2, 3)]
    assert [(file.bytes, file.filename, file.purpose, file.status) for file in made] == [
        (3 * n, f"{n}.jsonl", "batch", "processed") for n in (1, 2, 3)
    ]
    assert [file.id for file in client.files.list(limit=2)] == [file.id for file in made[::-1]]
    assert client.files.retrieve(made[1].id) == made[1]
    assert client.files.content(made[1].id).read() == b"{}\n{}\n"
    assert client.files.delete(made[1].id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[1].id)
    assert [file.id for file in client.files.list(order="asc")] == [made[0].id, made[2].id]


@pytest.mark.timeout(120)
def test_two_thousand_lines_are_answered(client: OpenAI) -> None:
    batch = ended(client, make(client, *(line(f"q{n}", f"question {n}") for n in range(2_000))))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 2_000, "completed": 2_000, "failed": 0}
    found = results(client, batch.output_file_id)
    for n in range(2_000):
        result = found[f"q{n}"]
        completion = result["response"]["body"]
        assert (result["response"]["status_code"], result["error"]) == (200, None)
        assert completion["object"] == "chat.completion"
        assert completion["choices"][0]["message"]["content"] == f"draft of question {n}"
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(each["response"]["body"]["usage"]["total_tokens"] for each in found.values())
    assert [each.id for each in client.batches.list(limit=1)] == [batch.id]


def test_completions_have_batches_too(client: OpenAI) -> None:
    body = {"model": "draftgate", "prompt": "Once", "max_tokens": 5}
    lines = [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}]
    found = results(client, ended(client, make(client, *lines, endpoint="/v1/completions")).output_file_id)
    assert found["a"]["response"]["body"]["object"] == "text_completion"


def test_a_line_that_is_refused_is_a_failure_among_answers(client: OpenAI) -> None:
    batch = ended(
        client, make(client, line("good", "hello"), line("bad", "hello", temperature=9), line("odd", "x", foo=1))
    )
    assert batch.status == "completed"
    assert results(client, batch.output_file_id).keys() == {"good"}
    failed = results(client, batch.error_file_id)
    shown = {
        name: (each["response"]["status_code"], each["response"]["body"]["error"]["param"])
        for name, each in failed.items()
    }
    assert shown == {"bad": (400, "temperature"), "odd": (400, "foo")}


def test_wrong_lines_fail_the_batch_with_their_numbers(client: OpenAI, gateway: Gateway) -> None:
    batch = ended(client, make(client, line("a", "x"), line("a", "x"), line("b", "x", model="gpt-4"), {}))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.line, error.code) for error in batch.errors.data or []] == [
        (2, "duplicate_custom_id"),
        (3, "model_not_found"),
        (4, "invalid_request"),
    ]
    assert gateway.draft.requests == []


def test_a_batch_is_cancelled(client: OpenAI, gateway: Gateway) -> None:
    gateway.draft.enqueue("first", *[HANG] * 40)
    batch = make(client, *(line(f"q{n}", f"question {n}") for n in range(200)))
    eventually(lambda: gateway.draft.running == BatchSettings().max_running)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert len(results(client, batch.output_file_id)) == 1
    eventually(lambda: gateway.draft.running == 0)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_people_are_served_while_a_batch_runs(client: OpenAI, gateway: Gateway) -> None:
    gateway.draft.enqueue(*[HANG] * BatchSettings().max_running)
    make(client, *(line(f"q{n}", f"question {n}") for n in range(100)))
    eventually(lambda: gateway.draft.running == BatchSettings().max_running)
    answer = client.chat.completions.create(model="draftgate", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content == "draft of hello"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-" + "0" * 32}, 404, None),
        ({"input_file_id": "../../etc/passwd"}, 404, None),
        ({"input_file_id": 7}, 400, "input_file_id"),
        ({"metadata": {"k" * 65: "v"}}, 400, None),
        ({"metadata": {str(n): "v" for n in range(17)}}, 400, "metadata"),
        ({"surplus": 1}, 400, "surplus"),
    ],
)
def test_a_wrong_batch_is_refused(gateway: Gateway, body: dict[str, Any], status: int, param: str | None) -> None:
    right = {"input_file_id": "file-" + "0" * 32, "endpoint": CHAT, "completion_window": "24h"}
    response = gateway.http.post("/v1/batches", json=right | body if body else {})
    assert response.status_code == status, response.text
    assert (response.json()["error"]["param"] or "").startswith(param or "")


def test_a_file_may_be_larger_than_other_bodies(make_gateway: Any) -> None:
    settings = Settings(server=ServerSettings(max_body_bytes=2_000), batch=BatchSettings(max_file_bytes=20_000))
    gateway = make_gateway(Gateway(settings))
    for size, status in ((20_000, 200), (20_001, 413), (200_000, 413)):
        form = {"file": ("f", b"x" * size)}
        assert gateway.http.post("/v1/files", data={"purpose": "batch"}, files=form).status_code == status
    assert gateway.http.post("/v1/batches", content=b"x" * 2_001).status_code == 413


@pytest.mark.timeout(120)
def test_killed_servers_go_on_and_every_line_has_one_result(tmp_path: Path) -> None:
    """Killed three times without warning in the middle of a batch."""
    data_dir = ServerSettings(data_dir=str(tmp_path))
    plan = Plan(settings=Settings(server=data_dir, batch=BatchSettings(max_running=8)), slots=8, answer_s=0.02)
    names = {f"q{n}" for n in range(1_000)}
    output = tmp_path.glob("batches/*/batch_*/output.jsonl")
    with SlowServer(plan) as server:
        server.until_ready()
        with client_of(server.url) as client:
            batch = make(client, *(line(name, f"question {name}") for name in sorted(names)))
        eventually(lambda: any(tmp_path.glob("batches/*/batch_*/output.jsonl")))
        path = next(output)
    counted = 0
    for _ in range(2):
        with SlowServer(plan):
            before = counted
            eventually(lambda: path.read_bytes().count(b"\n") > before + 50)  # noqa: B023  waited for at once
        counted = path.read_bytes().count(b"\n")
        with path.open("ab") as torn:
            torn.write(b'{"id": "batch_req_torn", "custom_id": "q')
    assert counted < 1_000
    with SlowServer(plan) as server:
        server.until_ready()
        with client_of(server.url) as client:
            batch = ended(client, batch)
            assert batch.status == "completed"
            assert results(client, batch.output_file_id).keys() == names
            assert batch.request_counts is not None
            assert batch.request_counts.to_dict() == {"total": 1_000, "completed": 1_000, "failed": 0}


def run(source: Path, target: Path, gateway: Gateway) -> int:
    return command.main([str(source), str(target), "--url", gateway.url])


def read(target: Path) -> dict[str, Any]:
    lines = [json.loads(text) for text in target.read_bytes().splitlines()]
    by_id = {each["custom_id"]: each for each in lines}
    assert len(by_id) == len(lines)
    return by_id


def test_the_command_sends_all_kinds_of_lines_through_a_gateway(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    text = {"custom_id": "text", "url": "/v1/completions", "body": {"prompt": "Once"}}
    source.write_bytes(jsonl("hello", {"messages": [{"role": "user", "content": "bare"}]}, line("own", "whole"), text))
    assert run(source, target, gateway) == 0
    found = {name: each["response"]["body"]["choices"][0] for name, each in read(target).items()}
    assert {name: choice["message"]["content"] for name, choice in found.items() if name != "text"} == {
        "1": "draft of hello",
        "2": "draft of bare",
        "own": "draft of whole",
    }
    assert found["text"]["text"]
    assert capsys.readouterr().err.endswith("4 of 4 answered, 0 failed.\n")


def test_the_command_asks_again_only_for_what_failed(gateway: Gateway, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(jsonl(line("a", "x"), line("bad", "x", temperature=9)))
    assert run(source, target, gateway) == 1
    first = read(target)
    assert {name: each["response"]["status_code"] for name, each in first.items()} == {"a": 200, "bad": 400}
    source.write_bytes(jsonl(line("a", "x"), line("bad", "x")))
    assert run(source, target, gateway) == 0
    assert read(target)["a"] == first["a"]
    assert read(target)["bad"]["response"]["status_code"] == 200
    asked = len(gateway.draft.requests)
    assert run(source, target, gateway) == 0
    assert len(gateway.draft.requests) == asked


def test_a_command_that_was_ended_finds_its_batch_again(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(jsonl(*(f"question {n}" for n in range(20))))

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("router.batch_remote.time.sleep", interrupted)
        assert run(source, target, gateway) == command.STOPPED
    assert "The same command goes on" in capsys.readouterr().err
    assert run(source, target, gateway) == 0
    assert read(target).keys() == {str(n) for n in range(1, 21)}
    assert len(gateway.http.get("/v1/batches").json()["data"]) == 1


def test_the_command_tells_what_a_gateway_refuses(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.write_bytes(jsonl(line("a", "x", model="gpt-4")))
    assert run(source, tmp_path / "out", gateway) == 2
    assert "line 1: No such model" in capsys.readouterr().err


def test_a_key_is_sent(make_gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = make_gateway(Gateway(environ={"DRAFTGATE_API_KEY": "secret"}))
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(jsonl("hello"))
    monkeypatch.setenv("MY_KEY", "secret")
    assert run(source, target, gateway) == 1
    assert command.main([str(source), str(target), "--url", gateway.url, "--key", "MY_KEY"]) == 0
