"""The application: handlers, their dependencies and what runs beside them. Imports no engine."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import ClientException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from classifiers.api import ComplexityModel, QualityModel
from router.api.chat import chat_completions
from router.api.health import live, metrics, ready
from router.api.models import get_model, list_models
from router.errors import ErrorBody, describe
from router.policy import DecisionRecord
from router.serving.pipeline import Pipeline
from router.serving.protocols import DraftEngine, RefineEngine
from router.settings import Settings
from router.state.cache import AnswerCache, fingerprint
from router.state.decisions import DecisionLog
from router.state.metrics import Metrics
from router.state.outbox import Outbox
from router.state.store import Store
from router.version import version

logger = logging.getLogger("draftgate")


@dataclass(frozen=True)
class Parts:
    """What an application is put together from."""

    draft: DraftEngine
    refine: RefineEngine
    complexity: ComplexityModel
    quality: QualityModel
    revision: str = ""  # changes with the weights, so that no cached answer outlives its model


class JsonRequest(Request[Any, Any, Any]):
    """A request whose JSON may be hostile."""

    async def json(self) -> Any:
        """Decode the body; called by Litestar."""
        try:
            return await super().json()
        except RecursionError:
            raise ClientException("The JSON is nested too deeply.") from None


def create_app(settings: Settings, parts: Parts) -> Litestar:
    """Put the gateway together; nothing runs until the server starts it."""
    store = Store(settings.redis)
    outbox = Outbox(store)
    decisions = DecisionLog(store, outbox)
    counters = Metrics(store, outbox, {"draft": parts.draft.load, "refine": parts.refine.load})

    def observe(record: DecisionRecord) -> None:
        counters.observe(record)
        decisions.add(record)

    pipeline = Pipeline(
        draft=parts.draft,
        refine=parts.refine,
        complexity=parts.complexity,
        quality=parts.quality,
        cache=AnswerCache(store, settings.cache, namespace(settings, parts)),
        policy=settings.policy,
        timeout_s=settings.server.request_timeout_s,
        observe=observe,
    )

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncGenerator[None, None]:
        tasks = [
            asyncio.create_task(_start("draft", parts.draft)),
            asyncio.create_task(_start("refine", parts.refine)),
            asyncio.create_task(outbox.flush_forever()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.draft.close()
            await parts.refine.close()
            await outbox.flush()
            await store.close()

    def respond(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
        wire, body, headers = describe(error)
        counters.refused(wire.code, wire.status)
        return Response(body, status_code=wire.status, headers=headers)

    provided = {
        "pipeline": pipeline,
        "server": settings.server,
        "draft": parts.draft,
        "refine": parts.refine,
        "store": store,
        "metrics": counters,
    }
    return Litestar(
        [chat_completions, list_models, get_model, live, ready, metrics],
        dependencies={name: _provide(part) for name, part in provided.items()},
        exception_handlers={Exception: respond},
        lifespan=[running],
        logging_config=None,  # the server's business
        request_class=JsonRequest,
        request_max_body_size=settings.server.max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="Draftgate",
            version=version(),
            path="/schema",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        ),
    )


def namespace(settings: Settings, parts: Parts) -> str:
    """Stands for all of the configuration that can change an answer."""
    models = (parts.revision, parts.complexity.version, parts.quality.version)
    configured = (settings.policy, settings.draft, settings.refine)
    return fingerprint((version(), *models, *configured)).hex()


async def _start(name: str, engine: DraftEngine | RefineEngine) -> None:
    try:
        await engine.start()
    except Exception:
        logger.exception("the %s engine did not start; the gateway stays not ready", name)
    else:
        logger.info("the %s engine is ready", name)


def _provide(part: Any) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)
