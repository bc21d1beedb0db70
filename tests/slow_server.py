"""The real server over engines that take time, in a process of its own: `python -m tests.slow_server FD JSON`.

JSON is a Plan; the socket to listen on is inherited, so that no port is lost to somebody else.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from ar_engine import api as ar
from diffusion_engine import api as diffusion
from router.app import Parts, create_app
from router.connections import Server
from router.server import server_config
from router.settings import Settings
from tests.fakes import FakeComplexity, FakeQuality, draft_result

ROOT = Path(__file__).parents[1]
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
HANG_S = 30.0


class Plan(Struct, frozen=True, kw_only=True):
    """What the engines can do, and what the gateway is told."""

    settings: Settings = Settings()
    slots: int = 4  # answers written at once, by each engine
    most_waiting: int = 256
    answer_s: float = 0.1  # of a slot's time
    words: int = 10  # of an answer
    linger_s: float = 0.0

    @property
    def answers_per_s(self) -> float:
        return self.slots / self.answer_s


class Slots:
    """As many at a time as an engine can do; the others wait in line."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(plan.slots)

    @asynccontextmanager
    async def place(self, overloaded: Callable[[str, float], Exception]) -> AsyncGenerator[None, None]:
        if self._free.locked() and self.waiting >= self.plan.most_waiting:
            raise overloaded("the queue is full", 1.0)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def _load(self) -> dict[str, Any]:
        slots = self.plan.slots
        return {
            "state": "ready",
            "running": self.running,
            "waiting": self.waiting,
            "capacity": slots,
            "context_tokens": 0,
        }


class SlowDrafts(Slots):
    """A draft of so many words, after the time that takes."""

    def load(self) -> diffusion.DraftLoad:
        return diffusion.DraftLoad(**self._load())

    async def draft(self, request: diffusion.DraftRequest) -> AsyncGenerator[diffusion.DraftEvent, None]:
        async with self.place(diffusion.DraftOverloaded):
            began = time.monotonic()
            await asyncio.sleep(self.plan.answer_s)
            yield draft_result(" ".join(["word"] * self.plan.words), elapsed_s=time.monotonic() - began)


class SlowAnswers(Slots):
    """So many words, one by one."""

    def load(self) -> ar.RefineLoad:
        return ar.RefineLoad(**self._load())

    async def refine(self, request: ar.RefineRequest) -> AsyncGenerator[ar.RefineEvent, None]:
        words = self.plan.words
        async with self.place(ar.RefineOverloaded):
            began = time.monotonic()
            for _ in range(words):
                await asyncio.sleep(self.plan.answer_s / words)
                yield ar.RefineDelta(text="word ")
            yield ar.RefineResult(
                text="word " * words,
                token_ids=tuple(range(words)),
                finish_reason="stop",
                prompt_tokens=9,
                completion_tokens=words,
                kept_tokens=0,
                forwards=words,
                first_token_s=self.plan.answer_s / words,
                elapsed_s=time.monotonic() - began,
            )

    async def score(self, request: ar.ScoreRequest) -> ar.DraftScore:
        raise NotImplementedError


class SlowServer:
    """The process, from the outside."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __enter__(self) -> "SlowServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Return when the process is there; it may not be ready yet."""
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            arguments = [str(listening.fileno()), msgspec.json.encode(self.plan).decode()]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.slow_server", *arguments], cwd=ROOT, pass_fds=[listening.fileno()]
            )

    def until_ready(self) -> None:
        """The socket takes connections from the start: the first answer comes when the server can give it."""
        assert httpx.get(f"{self.url}/health/ready", timeout=HANG_S).status_code == 200

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(2 * HANG_S)

    @property
    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_BYTES

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def main(fd: str, text: str) -> None:
    plan = msgspec.json.decode(text, type=Plan)
    logging.basicConfig(level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn sends itself the signal once more at its end
    parts = Parts(draft=SlowDrafts(plan), refine=SlowAnswers(plan), complexity=FakeComplexity(), quality=FakeQuality())
    server = Server(server_config(create_app(plan.settings, parts), plan.settings.server))
    server.linger_s = plan.linger_s
    server.run([socket.socket(fileno=int(fd))])


if __name__ == "__main__":
    main(*sys.argv[1:])
