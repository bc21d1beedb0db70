"""`draftgate serve` with several processes: one is replaced, all are stopped, none is left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import HANG_S, RedisServer, eventually

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

GATEWAY = """
import asyncio, os, sys, uuid
from pathlib import Path
from router import server
from router.app import Parts, create_app
from router.settings import SettingsError
from tests.fakes import FakeComplexity, FakeDraftEngine, FakeQuality, FakeRefineEngine

class Slow(FakeDraftEngine):
    async def draft(self, request):
        Path(os.environ["TEST_ASKED"], uuid.uuid4().hex).touch()
        await asyncio.sleep(1.0)
        async for event in super().draft(request):
            yield event

def build(settings):
    if "TEST_HOPELESS" in os.environ:
        raise SettingsError("no engine can be built of this")
    parts = Parts(draft=Slow(), refine=FakeRefineEngine(), complexity=FakeComplexity(), quality=FakeQuality())
    return create_app(settings, parts)

def serve(settings, listener):
    server._build = build
    return real(settings, listener)

real, server.serve = server.serve, serve
if __name__ == "__main__":
    sys.exit(server.main([]))
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(redis_server: RedisServer, port: int, tmp_path: Path) -> Iterator[Start]:
    """Start two workers and who watches over them; what is left of them is killed after the test."""
    script, asked = tmp_path / "gateway.py", tmp_path / "asked"
    asked.mkdir()
    script.write_text(GATEWAY)
    started: list[subprocess.Popen[bytes]] = []

    def run(**environment: str) -> subprocess.Popen[bytes]:
        settings = {
            "DRAFTGATE_SERVER__WORKERS": "2",
            "DRAFTGATE_SERVER__PORT": str(port),
            "DRAFTGATE_SERVER__DATA_DIR": str(tmp_path),
            "DRAFTGATE_REDIS__URL": redis_server.url,
            "TEST_ASKED": str(asked),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "kernels")]),
        }
        process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **settings, **environment},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for pid in (*workers_of(process.pid), process.pid):
            kill(pid)
        process.communicate()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def workers_of(pid: int) -> list[int]:
    """The processes that it started to serve."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except FileNotFoundError:  # it has just ended
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ask(port: int, text: str = "hello") -> httpx.Response:
    body = {"model": "draftgate", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=HANG_S)


def serves(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=HANG_S).status_code == 200
    except httpx.TransportError:
        return False


def test_a_worker_that_dies_is_replaced_and_all_finish_what_they_have(start: Start, port: int, tmp_path: Path) -> None:
    process = start()
    eventually(lambda: serves(port))
    eventually(lambda: len(workers_of(process.pid)) == 2)
    first = workers_of(process.pid)
    os.kill(first[0], signal.SIGKILL)
    eventually(lambda: len(set(workers_of(process.pid)) - {first[0]}) == 2)

    answers: list[httpx.Response] = []
    asking = [threading.Thread(target=lambda at=at: answers.append(ask(port, f"late {at}"))) for at in range(8)]
    for thread in asking:
        thread.start()
    eventually(lambda: len(list((tmp_path / "asked").iterdir())) == 8)
    process.terminate()
    for thread in asking:
        thread.join(HANG_S)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert process.wait(HANG_S) == 0
    assert not serves(port)


def test_one_process_ends_well_too(start: Start, port: int, tmp_path: Path) -> None:
    process = start(DRAFTGATE_SERVER__WORKERS="1")
    eventually(lambda: serves(port))
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(port)))
    asking.start()
    eventually(lambda: len(list((tmp_path / "asked").iterdir())) == 1)
    process.terminate()
    asking.join(HANG_S)
    assert [answer.status_code for answer in answers] == [200]
    assert process.wait(HANG_S) == 0


def test_workers_end_with_who_watches_over_them(start: Start, port: int) -> None:
    process = start()
    eventually(lambda: serves(port))
    eventually(lambda: len(workers_of(process.pid)) == 2)
    workers = workers_of(process.pid)
    process.kill()
    eventually(lambda: not any(alive(pid) for pid in workers))


def test_what_can_not_start_is_not_tried_again(start: Start) -> None:
    process = start(TEST_HOPELESS="1")
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 2
    assert b"no engine can be built of this" in said
