"""What the tests of the remote engine share: an engine for a server of this machine, and how to listen to it."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from ar_engine.api import Draft, RefineDelta, RefineRequest, RefineResult, RefineSettings
from ar_engine.remote import RemoteEngine
from engine_core.upstream.settings import Upstream
from tests.conftest import HANG_S

KEY = "sk-canary-7f3b"
QUESTION = ({"role": "user", "content": "Was ist zwölf plus 3?"},)
T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T], hang_s: float = HANG_S) -> T:
    """Run it; the timeout is only against hangs."""
    return asyncio.run(asyncio.wait_for(scenario, hang_s))


@asynccontextmanager
async def started(
    port: int, environ: Mapping[str, str] | None = None, upstream: Any = None, **settings: Any
) -> AsyncGenerator[RemoteEngine, None]:
    """An engine of a server there, patient for a second at most."""
    short: dict[str, Any] = {"connect_timeout_s": 1.0, "first_byte_timeout_s": 1.0, "idle_timeout_s": 1.0} | (
        upstream or {}
    )
    where = Upstream(base_url=f"http://127.0.0.1:{port}/v1", **short)
    engine = RemoteEngine(RefineSettings(upstream=where, **settings), environ or {})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def request(draft: str | None = None, **fields: Any) -> RefineRequest:
    given = None if draft is None else Draft(text=draft, token_ids=(), tokenizer_fingerprint="")
    return RefineRequest(**{"request_id": "r1", "messages": QUESTION, "draft": given} | fields)


async def answers(engine: RemoteEngine, asked: RefineRequest) -> tuple[list[RefineDelta], list[RefineResult]]:
    """All deltas and all results, which come last."""
    deltas, results = list[RefineDelta](), list[RefineResult]()
    async with aclosing(engine.refine(asked)) as events:
        async for event in events:
            if isinstance(event, RefineDelta):
                assert not results
                deltas.append(event)
            else:
                results.append(event)
    for result in results:
        mine = [delta for delta in deltas if delta.choice == result.choice]
        assert result.text == "".join(delta.text for delta in mine)
        assert result.reasoning == "".join(delta.reasoning for delta in mine)
    return deltas, results


async def answer(engine: RemoteEngine, asked: RefineRequest) -> RefineResult:
    """The one result."""
    _, (result,) = await answers(engine, asked)
    return result
