"""`draftgate serve`: settings, engines, socket."""

import argparse
import logging
import os
import sys

import uvicorn
from litestar import Litestar

from classifiers.api import ArtifactError
from router.app import create_app
from router.settings import ServerSettings, Settings, SettingsError, load

logger = logging.getLogger("draftgate")


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; requests under way are finished first."""
    parser = argparse.ArgumentParser(prog="draftgate serve", description="Run the gateway.")
    parser.add_argument("--config", metavar="FILE", help="TOML; see config.example.toml")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = load(options.config, os.environ)
        app = _build(settings)
    except (SettingsError, ArtifactError) as error:
        sys.stderr.write(f"draftgate: {error}\n")
        return 2
    uvicorn.Server(server_config(app, settings.server)).run()
    return 0


def _build(settings: Settings) -> Litestar:
    # Importing torch holds the GIL for seconds: it is done before the socket is open, so that
    # /health/live answers at once from then on. The weights load later, in the engines' threads.
    from router import wiring

    parts = wiring.build(settings)
    logger.info(wiring.banner(settings))
    return create_app(settings, parts)


def server_config(app: Litestar, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn runs an application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,  # the decision log has a line for every request
        log_config=None,  # ours is set up already
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
