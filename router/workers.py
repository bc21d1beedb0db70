"""Several processes that serve one socket, each with engines of its own.

uvicorn's own supervisor kills a worker that doesn't answer it in time, as one does that imports torch or loads weights, and starts one that
can't start again and again.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess

from uvicorn.config import STARTUP_FAILURE

from router.settings import Settings

Serve = Callable[[Settings, socket.socket], int]

HOPELESS = {2, STARTUP_FAILURE}  # exit statuses of what would end the same way again
RESTART_AFTER_S = 1.0  # so that one that keeps dying takes no more than its share

logger = logging.getLogger("draftgate")


def supervise(serve: Serve, settings: Settings, listener: socket.socket, count: int) -> int:
    """Keep processes serving until SIGTERM or SIGINT, which all of them get; then wait for them to finish.

    Args:
        serve: what each process does; a function that can be imported.
        settings: for it.
        listener: a bound socket that all of them accept from.
        count: of processes.

    Returns: the exit status: 0, or that of a process that could not start.
    """
    stopping = threading.Event()
    workers: dict[int, SpawnProcess] = {}  # by the handle that tells of its end
    status = 0

    def stop(*_: object) -> None:
        stopping.set()
        for worker in workers.values():
            worker.terminate()

    def start() -> None:
        worker = get_context("spawn").Process(target=_work, args=(serve, settings, listener))
        worker.start()
        workers[worker.sentinel] = worker
        if stopping.is_set():  # since it was looked at last
            worker.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for _ in range(count):
        start()
    while workers:
        for sentinel in connection.wait(list(workers)):
            assert isinstance(sentinel, int), "a process's sentinel is a number"
            worker = workers.pop(sentinel)
            worker.join()
            if stopping.is_set():
                continue
            if worker.exitcode in HOPELESS:
                status = worker.exitcode
                stop()
                continue
            logger.error("worker %s ended with status %s; another takes its place", worker.pid, worker.exitcode)
            time.sleep(RESTART_AFTER_S)
            if not stopping.is_set():
                start()
    return status


def _work(serve: Serve, settings: Settings, listener: socket.socket) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(serve(settings, listener))


def _end_with_parent() -> None:
    """A worker that nobody would stop or start again finishes its requests and goes."""
    parent = parent_process()
    assert parent is not None, "it was started by one"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
