"""`draftgate batch` with the shipped models in its own process: killed, and gone on with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually

ROOT = Path(__file__).parents[2]
ITEMS = ("lamp", "mug", "vase", "chair", "clock")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        "from router.cli import main; raise SystemExit(main())",
        "batch",
        *map(str, arguments),
    ]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)


def lines_of(target: Path) -> int:
    return target.read_bytes().count(b"\n") if target.exists() else 0


def read(target: Path) -> dict[str, Any]:
    lines = [json.loads(text) for text in target.read_bytes().splitlines()]
    by_id = {each["custom_id"]: each for each in lines}
    assert len(by_id) == len(lines)
    return by_id


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ((signal.SIGKILL,), 40),
        pytest.param((signal.SIGKILL, signal.SIGINT, signal.SIGKILL), 400, marks=pytest.mark.slow),
    ],
)
def test_killed_and_interrupted_it_goes_on_where_it_was(tmp_path: Path, ends: tuple[int, ...], count: int) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions = [f"How much is the {ITEMS[n % len(ITEMS)]}? ({n})" for n in range(count)]
    source.write_text("".join(json.dumps(question) + "\n" for question in questions))
    for number, end in enumerate(ends):
        before = lines_of(target)
        with start(source, target, "--concurrency", "2") as process:
            eventually(lambda: lines_of(target) > before + 2)  # noqa: B023  waited for at once
            process.send_signal(end)
            _, words = process.communicate(timeout=60)
        if end == signal.SIGINT:
            assert process.returncode == 130, words
            assert "The same command goes on from here." in words
        with target.open("ab") as torn:
            torn.write(f'{{"custom_id": "torn{number}", "resp'.encode())
    assert lines_of(target) < count
    with start(source, target) as process:
        _, words = process.communicate(timeout=200)
    assert process.returncode == 0, words
    assert f"{count} of {count} answered, 0 failed." in words
    found = read(target)
    assert found.keys() == {str(n + 1) for n in range(count)}
    assert found["1"]["response"]["body"]["choices"][0]["message"]["content"] == "The lamp costs $45."


@pytest.mark.timeout(120)
def test_an_engine_that_does_not_start_ends_it(tmp_path: Path) -> None:
    source, config = tmp_path / "in.jsonl", tmp_path / "draftgate.toml"
    source.write_text('"hello"\n')
    config.write_text(f'[refine]\nmodel = "{tmp_path}"\n')
    with start(source, tmp_path / "out.jsonl", "--config", config) as process:
        _, words = process.communicate(timeout=100)
    assert process.returncode == 1, words
    assert "The refine engine failed. 0 of 1 answered" in words
