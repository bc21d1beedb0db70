"""A real server in a process of its own, for benchmarks."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

import httpx


@contextlib.contextmanager
def running_server(settings: Mapping[str, str], ready_within_s: float = 120) -> Iterator[str]:
    """Start `draftgate serve` with `DRAFTGATE_...` settings on a free port; yield its address, stop it after.

    Raises:
        RuntimeError: it ended, or was not ready in time; the message holds its output.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        own = {"DRAFTGATE_SERVER__DATA_DIR": folder, "DRAFTGATE_SERVER__PORT": str(port)}
        environment = {**os.environ, **own, **settings}
        process = subprocess.Popen(
            [sys.executable, "-m", "router"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + ready_within_s
            while not _is_ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f"the server did not get ready:\n{output.read().decode()}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
