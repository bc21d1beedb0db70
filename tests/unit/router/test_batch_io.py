"""The files of `draftgate batch`, and what it does with wrong ones."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import batch
from router.batch_io import Output, Unusable, missing, requests, survey
from router.serving.batch_lines import result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def write(source: Path, *values: Any) -> Path:
    source.write_text("\n".join(json.dumps(value) for value in values))  # the last line has no end
    return source


def test_a_line_may_be_a_text_a_body_or_a_whole_request(source: Path) -> None:
    body = {"messages": [], "model": "draftgate-refine"}
    other = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}}
    found = [msgspec.to_builtins(line) for line in requests(write(source, "hi", body, {"body": body}, other))]
    chat = {"method": "POST", "url": "/v1/chat/completions"}
    assert found == [
        {"custom_id": "1", "body": {"model": "draftgate", "messages": [{"role": "user", "content": "hi"}]}, **chat},
        {"custom_id": "2", "body": body, **chat},
        {"custom_id": "3", "body": body, **chat},
        other | {"body": {"model": "draftgate", "prompt": "p"}},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'"ok"\n\n{"x": \n', "line 3: This line is not parseable as valid JSON."),
        (b"7", "line 1: expected a request, a body or a text to ask, got something else"),
        (b"{}", "line 1: This line is no request: Object missing required field `body`."),
        (b'{"body": 1}', "line 1: This line is no request: Expected `object`, got `int`."),
        (b'{"body": {}, "url": "/v1/embeddings"}', "line 1: expected the url /v1/chat/completions or /v1/completions"),
        (b'{"body": {}, "method": "GET"}', "line 1: This line is no request: Invalid enum value 'GET'."),
        (b'{"body": {}, "custom_id": "2"}\n"x"', "expected a custom_id of its own for each line, got '2' twice"),
    ],
)
def test_wrong_input_is_told_before_anything_is_asked(
    source: Path, capsys: pytest.CaptureFixture[str], text: bytes, said: str
) -> None:
    source.write_bytes(text)
    assert batch.main([str(source), str(source.with_name("out"))]) == 2
    words = capsys.readouterr().err
    assert said in words
    assert len(words.splitlines()) == 1
    assert not source.with_name("out").exists()


@pytest.mark.parametrize("place", ["nowhere.jsonl", ""])
def test_input_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    assert batch.main([str(tmp_path / place), str(tmp_path / "out")]) == 2
    assert "can't be read" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(source, "hi")
    assert batch.main([str(source), str(source / "out")]) == 2
    assert "can't be written" in capsys.readouterr().err


def test_two_at_once_do_not_write_the_same_file(source: Path) -> None:
    path = source.with_name("out")
    with Output(path, 1), pytest.raises(Unusable, match="another draftgate batch"):
        Output(path, 1)
    with Output(path, 1):
        pass


@pytest.mark.parametrize(
    "options",
    [
        ["--key", "K"],
        ["--url", "http://h", "--config", "f"],
        ["--url", "http://h", "--concurrency", "2"],
        ["--concurrency", "0"],
    ],
)
def test_options_that_do_not_go_together_are_refused(source: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        batch.main([str(source), "out", *options])
    assert exit_.value.code == 2


def test_a_key_that_is_not_set_is_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(source, "hi")
    argv = [str(source), str(source.with_name("out")), "--url", "http://127.0.0.1:1", "--key", "NO_SUCH_VARIABLE"]
    assert batch.main(argv) == 2
    assert "NO_SUCH_VARIABLE, which is not set" in capsys.readouterr().err


@settings(deadline=None)
@given(data=st.data(), count=st.integers(0, 8))
def test_output_cut_anywhere_keeps_good_answers_and_asks_the_rest(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    source, path = write(folder / "in", *["q"] * count), folder / "out"
    statuses = [data.draw(st.sampled_from([200, 200, 400])) for _ in range(count)]
    written = [
        msgspec.json.encode(result(str(n), "r", status, {"text": "é"})) + b"\n" for n, status in enumerate(statuses, 1)
    ]
    cut = data.draw(st.integers(0, sum(map(len, written))))
    path.write_bytes(b"".join(written)[:cut])
    good = {str(n) for n in range(1, count + 1) if statuses[n - 1] == 200 and cut >= sum(map(len, written[:n]))}
    assert survey(source) == count
    with Output(path, count) as output:
        assert output.done == good
        left = [line.custom_id for line in missing(source, output)]
        assert sorted([*left, *good], key=int) == [str(n) for n in range(1, count + 1)]
        for name in left:
            output.add(result(name, "r", 200, {}))
        assert output.answered == count
    ids = [json.loads(text)["custom_id"] for text in path.read_bytes().splitlines()]
    assert sorted(ids, key=int) == [str(n) for n in range(1, count + 1)]
