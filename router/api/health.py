"""Liveness (the process answers), readiness (both engines serve) and Prometheus metrics."""

from typing import Any, Literal

from litestar import MediaType, Request, Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import SkipValidation
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ar_engine.api import RefineLoad
from diffusion_engine.api import DraftLoad
from router.api.access import DENIED
from router.policy import EngineState
from router.serving.protocols import DraftEngine, RefineEngine
from router.state.metrics import Metrics
from router.state.store import Store

METRICS = CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # which Litestar adds


class Live(Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class EngineHealth(Struct, frozen=True, kw_only=True):
    """One engine now. Why it failed is in the log: that may name paths."""

    state: EngineState
    running: int
    waiting: int
    capacity: int


class Ready(Struct, frozen=True, kw_only=True):
    """Can requests be served? Redis only ever degrades."""

    status: Literal["ready", "not_ready"]
    draft: EngineHealth
    refine: EngineHealth
    redis: Literal["embedded", "ok", "down"]


@get("/health/live", sync_to_thread=False)
def live() -> Live:
    """Answer at once, also while the weights load."""
    return Live()


@get(
    "/health/ready",
    responses={503: ResponseSpec(Ready, generate_examples=False, description="Not ready.")},
)
async def ready(
    draft: NamedDependency[SkipValidation[DraftEngine]],
    refine: NamedDependency[SkipValidation[RefineEngine]],
    store: NamedDependency[SkipValidation[Store]],
    request: Request[Any, Any, Any],
) -> Response[Ready]:
    """Say whether both engines serve and the server is not about to stop: 200 or 503."""
    answered = await store.run(("PING",)) is not None
    loads = draft.load(), refine.load()
    draining = request.scope["state"].get("draining", False)
    serving = not draining and all(load.state == "ready" for load in loads)
    body = Ready(
        status="ready" if serving else "not_ready",
        draft=_health(loads[0]),
        refine=_health(loads[1]),
        redis=store.state if answered else "down",
    )
    headers = {} if serving else {"retry-after": "5"}
    return Response(body, status_code=200 if serving else 503, headers=headers)


@get("/metrics", media_type=MediaType.TEXT, sync_to_thread=False, responses=DENIED)
def metrics(metrics: NamedDependency[SkipValidation[Metrics]]) -> Response[str]:
    """Expose counts and latencies for Prometheus."""
    text = generate_latest(metrics.registry).decode()
    return Response(text, media_type=METRICS)


def _health(load: DraftLoad | RefineLoad) -> EngineHealth:
    return EngineHealth(state=load.state, running=load.running, waiting=load.waiting, capacity=load.capacity)
