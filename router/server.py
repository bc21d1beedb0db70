"""`draftgate serve`: settings, keys, engines, socket."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping

import msgspec
import uvicorn
from litestar import Litestar

from classifiers.api import ArtifactError
from router import workers
from router.api.guard import Guard
from router.app import DRAIN, create_app
from router.connections import Connection, Server
from router.settings import ServerSettings, Settings, SettingsError, load
from router.state.keys import KeysError, is_loopback, shelf_of
from router.state.store import Store

KEEP_ALIVE_S = 10  # longer than the 5 s of httpx, and so of OpenAI's client, which else may send into a connection that is being closed
BACKLOG = 2048  # connections that wait for a busy event loop; the kernel's own limit may be lower
PATIENT_S = 5.0  # with a Redis, at the start

logger = logging.getLogger("draftgate")


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; requests under way are finished first."""
    parser = argparse.ArgumentParser(prog="draftgate serve", description="Run the gateway.")
    parser.add_argument("--config", metavar="FILE", help="TOML; see config.example.toml")
    options = parser.parse_args(argv)
    try:
        settings = load(options.config, os.environ)
        check(settings, os.environ)
    except (SettingsError, KeysError) as error:
        sys.stderr.write(f"draftgate: {error}\n")
        return 2
    if settings.server.workers == 1:
        return serve(settings, None)
    _log()
    listener = uvicorn.Config("", host=settings.server.host, port=settings.server.port, log_config=None).bind_socket()
    return workers.supervise(serve, settings, listener, settings.server.workers)


def check(settings: Settings, environ: Mapping[str, str]) -> None:
    """Refuse to serve what nobody can want served.

    Raises:
        SettingsError: anybody could ask, or several processes would each have a truth of their own.
        KeysError: the file with the keys can't be read.
    """
    server = settings.server
    Store(settings.redis)  # which tells whether its URL can be read
    if server.workers > 1 and not settings.redis.url:
        raise SettingsError(
            f"server.workers: {server.workers} processes need a redis.url: without it each has limits, cached answers, counters and decisions of its own"
        )
    if is_loopback(server.host) or environ.get(settings.keys.env):
        return
    if asyncio.run(_any_key(settings)) is False:
        raise SettingsError(
            f"server.host: {server.host} lets other machines ask, which needs an API key: `draftgate keys add`, or one in {settings.keys.env}"
        )


def serve(settings: Settings, listener: socket.socket | None) -> int:
    """Serve in this process.

    Args:
        settings: of all of it.
        listener: the socket to listen on; None for one of its own.

    Returns: the exit status.
    """
    _log()
    # uvicorn sends itself the signal that stopped it once more, when all is finished.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    if not settings.redis.url:
        logger.info(
            "no redis.url: cached answers, limits, counters and decisions end with this process, and no other shares them"
        )
    try:
        app = _build(settings)
    except (SettingsError, ArtifactError) as error:
        sys.stderr.write(f"draftgate: {error}\n")
        return 2
    Server(server_config(app, settings.server)).run([listener] if listener else None)
    return 0


def server_config(app: Litestar, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn runs an application, the guard around it.

    It has no limit of its own on requests under way: the gateway refuses what it can't answer, in the API's own words.
    """
    return uvicorn.Config(
        Guard(app, settings, on_drain=app.state[DRAIN]),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Connection,
        ws="none",
        proxy_headers=False,  # what a client says of its address is nowhere believed
        access_log=False,  # the decision log has a line for every request
        log_config=None,  # ours is set up already
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )


def _build(settings: Settings) -> Litestar:
    # Importing torch holds the GIL for seconds: it is done before the socket is open, so that
    # /health/live answers at once from then on. The weights load later, in the engines' threads.
    from router import wiring

    parts = wiring.build(settings)
    logger.info(wiring.banner(settings))
    return create_app(settings, parts)


async def _any_key(settings: Settings) -> bool | None:
    """Is there a key? None: Redis doesn't say, and then nobody is let in until it does."""
    store = Store(msgspec.structs.replace(settings.redis, timeout_s=PATIENT_S))
    try:
        return any(key.revoked_unix_s is None for key in (await shelf_of(settings, store).read()).values())
    except KeysError:
        if not settings.redis.url:
            raise
        return None
    finally:
        await store.close()


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def _leave(*_: object) -> None:
    sys.exit(0)
