"""The application: its parts, the handlers, and what runs beside them. Imports no engine."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from classifiers.api import ComplexityModel, QualityModel
from router.api import chat, completions, convert
from router.api.access import SCHEMES, SECURITY, caller_of, guard
from router.api.batches import cancel_batch, create_batch, get_batch, list_batches
from router.api.desk import Desk
from router.api.files import file_routes
from router.api.health import live, metrics, ready
from router.api.models import get_model, list_models
from router.api.requests import delete_request
from router.errors import ErrorBody, describe
from router.policy import DecisionRecord
from router.serving.batch_runner import BatchRunner
from router.serving.images import ImageFetcher
from router.serving.messages import Texts
from router.serving.pipeline import Pipeline
from router.serving.protocols import DraftEngine, RefineEngine
from router.serving.service import Service
from router.settings import Settings
from router.state.batches import BatchStore
from router.state.cache import AnswerCache, fingerprint
from router.state.decisions import DecisionLog
from router.state.files import FileStore
from router.state.keys import keys_of
from router.state.limits import RateLimiter
from router.state.metrics import Load, Metrics
from router.state.outbox import Outbox
from router.state.store import Store
from router.version import version

DAY_S = 86_400.0
DRAIN = "drain"  # in the application's state: what to call when the server is about to stop

logger = logging.getLogger("draftgate")


@dataclass(frozen=True)
class Parts:
    """What an application is put together from."""

    draft: DraftEngine
    refine: RefineEngine
    complexity: ComplexityModel
    quality: QualityModel
    revision: str = ""  # changes with the weights, so that no cached answer outlives its model


class House:
    """All parts put together; nothing runs yet."""

    def __init__(self, settings: Settings, parts: Parts, environ: Mapping[str, str] = os.environ) -> None:
        """Wire everything; `environ` may hold a key."""
        self.settings = settings
        self.parts = parts
        self.store = Store(settings.redis)
        self.outbox = Outbox(self.store)
        self.decisions = DecisionLog(self.store, self.outbox, settings.privacy)
        loads: dict[str, Callable[[], Load]] = {"draft": parts.draft.load, "refine": parts.refine.load}
        self.counters = Metrics(self.store, self.outbox, loads)
        self.keys = keys_of(settings, self.store, environ)
        models = namespace(settings, parts)
        self.cache = AnswerCache(self.store, self.outbox, settings.cache, models)
        pipeline = Pipeline(
            draft=parts.draft,
            refine=parts.refine,
            complexity=parts.complexity,
            quality=parts.quality,
            cache=self.cache,
            policy=settings.policy,
            observe=self._observe,
        )
        self.service = Service(pipeline, RateLimiter(self.store), settings.server)
        self.images = ImageFetcher(settings.images)
        self.desk = Desk(self.service, self.images, settings.server, f"fp_{models[:12]}")
        keep_s = settings.batch.keep_days * DAY_S
        folder = Path(settings.server.data_dir)
        self.files = FileStore(folder / "files", keep_s)
        self.batches = BatchStore(folder / "batches", self.files, keep_s)
        answers = {
            "/v1/chat/completions": partial(chat.answer_body, self.desk),
            "/v1/completions": partial(completions.answer_body, self.desk),
        }
        longest = settings.server.max_body_bytes
        self.runner = BatchRunner(self.batches, answers, convert.route_of, settings.batch, longest)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Engines load, batches go on and state is written, until the end."""
        await self.keys.load()
        tasks = [
            asyncio.create_task(_told(name, work))
            for name, work in {
                "the start of the draft engine": _start("draft", self.parts.draft),
                "the start of the refine engine": _start("refine", self.parts.refine),
                "reading the keys": self.keys.refresh_forever(),
                "watching for deletions": self.cache.watch_forever(),
                "trimming the decisions": self.decisions.trim_forever(),
                "writing to Redis": self.outbox.flush_forever(),
                "working on batches": self.runner.run_forever(),
            }.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.parts.draft.close()
            await self.parts.refine.close()
            await self.images.close()
            await self.service.close()
            await self.outbox.flush()
            await self.store.close()

    def _observe(self, record: DecisionRecord, texts: Texts) -> None:
        self.counters.observe(record)
        self.decisions.add(record, texts)


def create_app(settings: Settings, parts: Parts, environ: Mapping[str, str] = os.environ) -> Litestar:
    """The gateway; nothing runs until the server starts it."""
    house = House(settings, parts, environ)

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncGenerator[None, None]:
        async with house.running():
            yield

    def respond(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
        wire, body, headers = describe(error)
        house.counters.refused(wire.code, wire.status)
        return Response(body, status_code=wire.status, headers=headers)

    provided = {
        "desk": house.desk,
        "draft": parts.draft,
        "refine": parts.refine,
        "store": house.store,
        "metrics": house.counters,
        "cache": house.cache,
        "decisions": house.decisions,
        "files": house.files,
        "batch": settings.batch,
        "batches": house.batches,
    }
    return Litestar(
        [
            chat.chat_completions,
            completions.completions,
            list_models,
            get_model,
            delete_request,
            file_routes(settings.batch),
            create_batch,
            list_batches,
            get_batch,
            cancel_batch,
            live,
            ready,
            metrics,
        ],
        dependencies={name: _provide(part) for name, part in provided.items()}
        | {"caller": Provide(caller_of, sync_to_thread=False)},
        guards=[guard(house.keys)],
        exception_handlers={Exception: respond},
        lifespan=[running],
        state=State({DRAIN: house.runner.stop}),
        logging_config=None,  # the server's business
        request_max_body_size=settings.server.max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="Draftgate",
            version=version(),
            path="/schema",
            components=SCHEMES,
            security=SECURITY,
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        ),
    )


def namespace(settings: Settings, parts: Parts) -> str:
    """Stands for the models and all of their configuration that can change an answer. What judges answers judges kept ones anew."""
    return fingerprint((version(), parts.revision, settings.draft, settings.refine)).hex()


async def _told(name: str, work: Coroutine[Any, Any, None]) -> None:
    """Do what runs beside the requests; if it breaks, say so at once."""
    try:
        await work
    except Exception:
        logger.exception("%s broke", name)


async def _start(name: str, engine: DraftEngine | RefineEngine) -> None:
    try:
        await engine.start()
    except Exception:
        logger.exception("the %s engine did not start; the gateway stays not ready", name)
    else:
        logger.info("the %s engine is ready", name)


def _provide(part: Any) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)
