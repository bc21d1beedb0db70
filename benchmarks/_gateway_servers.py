"""The servers that are compared, each in a process of its own, on the loopback, one worker each."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from benchmarks._gateway_stub import ANSWER, Recorded

STOP_S = 20
LITELLM_CONFIG = {
    "model_list": [
        {
            "model_name": "stub",
            "litellm_params": {"model": "openai/stub", "api_key": "none", "mock_response": ANSWER},
        }
    ],
    "litellm_settings": {"set_verbose": False, "json_logs": True, "request_timeout": 60},
}
# What LiteLLM's page of production settings asks for, and what it takes to run without a network and without keys, as we do.
LITELLM_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
# RouteLLM's own entry point listens on all addresses.
ROUTELLM_PROGRAM = """
import sys, uvicorn
port, sys.argv = int(sys.argv[1]), sys.argv[1:]
from routellm import openai_server
uvicorn.run(openai_server.app, host="127.0.0.1", port=port, access_log=False)
"""
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


class Server(NamedTuple):
    """Where to ask, for which model, and which processes do the work; those beside "server" are only helpers of it."""

    port: int
    model: str
    pids: dict[str, int]


@contextlib.contextmanager
def draftgate(
    settings: Mapping[str, Any], environment: Mapping[str, str], classifiers: bool = True
) -> Iterator[Server]:
    """Ours, over engines that take no time, with the demo's classifiers or stubs."""
    with _stub(
        "draftgate" if classifiers else "unscored", json.dumps(dict(settings)), environment, "/health/ready"
    ) as server:
        yield server


@contextlib.contextmanager
def draftgate_with_redis(settings: Mapping[str, Any]) -> Iterator[Server]:
    """The same, with a redis-server of its own. Raises FileNotFoundError: none is installed."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        with (
            server_process(command, folder, os.environ, None) as pid,
            draftgate({**settings, "redis": {"url": f"unix://{path}"}}, {}) as server,
        ):
            yield server._replace(pids={**server.pids, "redis-server": pid})


@contextlib.contextmanager
def floor(recorded: Recorded) -> Iterator[Server]:
    """No framework and no work: what uvicorn and the loopback take."""
    with _stub("floor", msgspec.json.encode(recorded).decode(), {}, "/") as server:
        yield server


@contextlib.contextmanager
def _stub(kind: str, text: str, environment: Mapping[str, str], ready: str) -> Iterator[Server]:
    port, root = free_port(), Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks._gateway_stub", kind, str(port), text]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRAFTGATE_")}
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(
            command,
            folder,
            {**inherited, "PYTHONPATH": str(root), **environment},
            f"http://127.0.0.1:{port}{ready}",
        ) as pid,
    ):
        yield Server(port, "draftgate", {"server": pid})


@contextlib.contextmanager
def litellm(python: str) -> Iterator[Server]:
    """LiteLLM's proxy, whose model is its own mock: no request leaves it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps(LITELLM_CONFIG))
        program = str(Path(python).with_name("litellm"))
        options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        with server_process(
            [python, program, *options],
            folder,
            {"PATH": os.environ["PATH"], "HOME": folder, **LITELLM_ENVIRONMENT},
            f"http://127.0.0.1:{port}/health/liveliness",
        ) as pid:
            yield Server(port, "stub", {"server": pid})


@contextlib.contextmanager
def routellm(python: str, upstream: Server) -> Iterator[Server]:
    """RouteLLM's server with its random router, the one without weights; its models are another server, whose work isn't its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        models = ["--strong-model", "openai/draftgate", "--weak-model", "openai/draftgate"]
        upstream_options = ["--base-url", f"http://127.0.0.1:{upstream.port}/v1", "--api-key", "none"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "OPENAI_API_KEY": "none",
            "HF_HUB_OFFLINE": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        with server_process(
            [python, "-c", ROUTELLM_PROGRAM, str(port), "--routers", "random", *models, *upstream_options],
            folder,
            environment,
            f"http://127.0.0.1:{port}/openapi.json",
        ) as pid:
            yield Server(port, "router-random-0.5", {"server": pid, "its upstream": upstream.pids["server"]})


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server_process(
    command: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    ready_url: str | None,
    ready_within_s: float = 120,
) -> Iterator[int]:
    """Start a server in a folder, yield its process id once `ready_url` answers 200, stop it after; None: it is ready at once.

    Raises:
        RuntimeError: it ended, or was not ready in time; the message holds its output.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + ready_within_s
            while ready_url and not _answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f"{command[0]} did not get ready:\n{output.read().decode()}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def has_redis() -> bool:
    return shutil.which("redis-server") is not None


def versions(python: str, *packages: str) -> dict[str, str]:
    """Of packages that another interpreter has. Raises subprocess.CalledProcessError: it lacks one."""
    found = subprocess.run([python, "-c", VERSIONS, *packages], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def record(server: Server) -> Recorded:
    """An answer of ours, whole and streamed, for the floor."""
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    body = {"model": server.model, "messages": [{"role": "user", "content": "How much is the lamp?"}]}
    whole = httpx.post(url, json=body).raise_for_status()
    streamed = httpx.post(url, json={**body, "stream": True}).raise_for_status()
    return Recorded(
        headers=_kept(whole),
        body=whole.text,
        stream_headers=_kept(streamed),
        events=[f"{event}\n\n" for event in streamed.text.split("\n\n") if event],
    )


def _kept(response: httpx.Response) -> dict[str, str]:
    """All but what uvicorn adds by itself."""
    added = {"date", "server", "transfer-encoding"}
    return {name: value for name, value in response.headers.items() if name not in added}
