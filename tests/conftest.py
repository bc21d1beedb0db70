"""Fixtures: a real redis-server, and the real application on a real socket with fake engines."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest

# Before any kernel is imported: without a GPU, tests run the Triton kernels through Triton's interpreter.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from router.app import Parts, create_app
from router.connections import Server
from router.server import server_config
from router.settings import RedisSettings, ServerSettings, Settings
from tests.fakes import FakeComplexity, FakeDraftEngine, FakeQuality, FakeRefineEngine

HANG_S = 30.0  # only against hangs: no test measures time


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that another thread makes true."""
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


@dataclass
class RedisServer:
    """A redis-server process of this test's own."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    def start(self) -> None:
        options = {
            "port": "0",
            "unixsocket": f"{self.folder}/redis.sock",
            "save": "",
            "dir": str(self.folder),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            ["redis-server", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(self._answers)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{self.folder}/redis.sock")
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def redis_settings(request: pytest.FixtureRequest) -> RedisSettings:
    """Both backends: what holds for one holds for the other."""
    if request.param == "embedded":
        return RedisSettings()
    server: RedisServer = request.getfixturevalue("redis_server")
    return RedisSettings(url=server.url, timeout_s=5.0)


@dataclass
class Gateway:
    """The application on a socket of its own, in a thread of its own."""

    settings: Settings = field(default_factory=Settings)
    draft: FakeDraftEngine = field(default_factory=FakeDraftEngine)
    refine: FakeRefineEngine = field(default_factory=FakeRefineEngine)
    environ: dict[str, str] = field(default_factory=dict)  # of the gateway

    def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        server_settings = msgspec.structs.replace(self.settings.server, port=0)
        if server_settings.data_dir == ServerSettings().data_dir:
            server_settings = msgspec.structs.replace(server_settings, data_dir=self._folder.name)
        settings = msgspec.structs.replace(self.settings, server=server_settings)
        parts = Parts(
            draft=self.draft,
            refine=self.refine,
            complexity=FakeComplexity(),
            quality=FakeQuality(),
        )
        config = server_config(create_app(settings, parts, self.environ), server_settings)
        self._socket = config.bind_socket()
        self._server = Server(config)
        self._server.linger_s = 0.0
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        eventually(lambda: self._server.started)
        # No certificates are loaded, that takes longer than all the rest.
        self.http = httpx.Client(base_url=self.url, verify=False, timeout=HANG_S)

    def begin_stop(self) -> None:
        """What SIGTERM does."""
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_stop()
        self._thread.join(HANG_S)
        self._socket.close()
        self.http.close()
        self._folder.cleanup()
        assert not self._thread.is_alive(), "the server did not stop"

    @property
    def address(self) -> tuple[str, int]:
        return self._socket.getsockname()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"


@pytest.fixture
def make_gateway() -> Iterator[Callable[[Gateway], Gateway]]:
    """Start gateways; they are stopped after the test."""
    running: list[Gateway] = []

    def make(gateway: Gateway) -> Gateway:
        gateway.start()
        running.append(gateway)
        return gateway

    yield make
    for gateway in running:
        gateway.stop()


@pytest.fixture
def gateway(make_gateway: Callable[[Gateway], Gateway]) -> Gateway:
    """A gateway with a short patience for hanging engines."""
    return make_gateway(Gateway(Settings(server=ServerSettings(request_timeout_s=20.0))))
