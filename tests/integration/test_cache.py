"""DELETE /v1/requests/{id}, with the cache and the decision stream behind it, on both kinds of Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
import msgspec
import pytest
from litestar import Litestar, Request, Response
from litestar.di import Provide

from router.api.requests import delete_request, forget
from router.errors import ErrorBody, Overloaded, describe
from router.policy import DecisionRecord
from router.serving.messages import Ask, Caller, Kept
from router.settings import CacheSettings, PrivacySettings, RedisSettings
from router.state.cache import AnswerCache
from router.state.decisions import DecisionLog
from router.state.outbox import Outbox
from router.state.store import Store
from tests.fakes import decision_record

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def record(request_id: str, tenant: str) -> DecisionRecord:
    return decision_record(request_id=request_id, tenant=tenant)


def always(_: Kept) -> bool:
    return True


@dataclass
class Gateway:
    """What keeps things of requests, and the way to have them deleted; `tenant` asks."""

    store: Store
    tenant: str = "one"

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.store)
        self.cache = AnswerCache(self.store, self.outbox, CacheSettings(), "n")
        self.decisions = DecisionLog(self.store, self.outbox, PrivacySettings())

    async def ask(self, request_id: str, text: str = "hello", *, cache: bool | None = None) -> str | None:
        """Answer a request; returns what request the answer was of, None for its own."""
        said = ({"role": "user", "content": text},)
        ask = Ask(request_id=request_id, model="draftgate", tenant=self.tenant, messages=said, cache=cache)
        self.decisions.add(record(request_id, self.tenant))
        async with self.cache.board(ask, always, 10.0) as flight:
            if flight.kept:
                return flight.kept.request_id
            await flight.land(Kept(request_id=request_id, complexity=None, complexity_version=""))
            return None

    async def delete(self, request_id: str) -> tuple[int, Any]:
        """The answer to DELETE."""

        def caller() -> Caller:
            return Caller(tenant=self.tenant)

        def refuse(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
            wire, body, headers = describe(error)
            return Response(body, status_code=wire.status, headers=headers)

        app = Litestar(
            [delete_request],
            dependencies={
                "caller": Provide(caller, sync_to_thread=False),
                "cache": Provide(lambda: self.cache, sync_to_thread=False),
                "decisions": Provide(lambda: self.decisions, sync_to_thread=False),
            },
            exception_handlers={Exception: refuse},
        )
        transport = httpx.ASGITransport(cast("Any", app))  # on this event loop, as the connections to Redis are
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            response = await client.delete(f"/v1/requests/{request_id}")
            return response.status_code, response.json()

    async def logged(self) -> list[str]:
        await self.outbox.flush()
        return [logged.record.request_id for logged in await self.decisions.latest(100)]


@pytest.fixture
async def gateway(redis_settings: RedisSettings) -> AsyncIterator[Gateway]:
    store = Store(redis_settings)
    yield Gateway(store)
    await store.close()


async def test_a_request_is_deleted_at_once(gateway: Gateway) -> None:
    await gateway.ask("a")
    assert await gateway.delete("a") == (200, {"id": "a", "object": "request.deleted", "deleted": True})
    assert await gateway.logged() == []
    assert await gateway.ask("b") is None
    status, body = await gateway.delete("a")
    assert status == 404
    assert body["error"]["code"] == "not_found"


async def test_what_a_request_was_served_from_is_deleted(gateway: Gateway) -> None:
    await gateway.ask("a")
    assert await gateway.ask("b") == "a"
    assert (await gateway.delete("b"))[0] == 200
    assert await gateway.logged() == ["a"]
    assert await gateway.ask("c") is None


async def test_a_request_that_was_not_cached_has_a_line_to_delete(gateway: Gateway) -> None:
    await gateway.ask("a", cache=False)
    assert (await gateway.delete("a"))[0] == 200
    assert await gateway.logged() == []


async def test_nobody_deletes_what_is_another_tenants(gateway: Gateway) -> None:
    await gateway.ask("a")
    gateway.tenant = "two"
    assert (await gateway.delete("a"))[0] == 404
    gateway.tenant = "one"
    assert await gateway.ask("b") == "a"
    assert await gateway.logged() == ["b", "a"]


@pytest.mark.parametrize("name", ["unknown", "%20", "a:b", "*", "x" * 65, "%00", "é", "..%2f"])
async def test_there_is_nothing_of_another_name(gateway: Gateway, name: str) -> None:
    status, body = await gateway.delete(name)
    assert status == 404
    assert msgspec.convert(body, ErrorBody)


async def test_while_redis_is_away_nothing_is_said_to_be_deleted() -> None:
    gateway = Gateway(Store(RedisSettings(url="unix:///nowhere.sock")))
    await gateway.ask("a")
    status, body = await gateway.delete("a")
    assert status == 503
    assert body["error"]["type"] == "server_error"
    with pytest.raises(Overloaded):
        await forget(gateway.cache, gateway.decisions, "one", "a")


@pytest.mark.parametrize("redis_settings", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
async def test_a_line_that_another_gateway_has_not_sent_yet_is_deleted_too(gateway: Gateway) -> None:
    other = Gateway(gateway.store)
    await other.ask("a")
    flushing = asyncio.create_task(other.outbox.flush_forever())
    assert (await gateway.delete("a"))[0] == 200
    await other.outbox.flush()
    flushing.cancel()
    assert await gateway.logged() == []
