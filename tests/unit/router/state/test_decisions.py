from collections.abc import AsyncIterator

import msgspec
import pytest

from router.policy import DecisionRecord, Policy
from router.settings import RedisSettings
from router.state.decisions import KEPT, STREAM, DecisionLog
from router.state.outbox import Outbox
from router.state.store import Store

pytestmark = pytest.mark.anyio


def record(request_id: str) -> DecisionRecord:
    return DecisionRecord(
        request_id=request_id,
        at_unix_s=1.0,
        model="draftgate",
        status=200,
        route="draft",
        reason="accepted",
        policy=Policy(),
        features=None,
        outcome=None,
        complexity_version="c",
        quality_version="q",
        prompt_tokens=1,
        completion_tokens=1,
        kept_tokens=None,
        elapsed_s=0.1,
    )


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[Store]:
    store = Store(redis_settings)
    yield store
    await store.close()


async def test_decisions_come_back_newest_first(store: Store) -> None:
    outbox = Outbox(store)
    log = DecisionLog(store, outbox)
    for name in "abc":
        log.add(record(name))
    assert await log.latest(10) == []
    await outbox.flush()
    assert [r.request_id for r in await log.latest(2)] == ["c", "b"]
    assert (await log.latest(1))[0] == record("c")


async def test_the_stream_is_capped(store: Store) -> None:
    outbox = Outbox(store)
    log = DecisionLog(store, outbox)
    log.add(record("old"))
    await outbox.flush()
    filler = [("XADD", STREAM, "MAXLEN", "~", KEPT, "*", "record", b"{}")] * 1000
    for _ in range(11):
        await store.run(*filler)
    replies = await store.run(("XREVRANGE", STREAM, "+", "-"))
    assert replies is not None
    assert KEPT <= len(replies[0]) < KEPT + 1000


async def test_without_redis_nothing_is_known() -> None:
    gone = Store(RedisSettings(url="unix:///nowhere.sock"))
    assert await DecisionLog(gone, Outbox(gone)).latest(5) == []


async def test_each_decision_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(RedisSettings())
    with caplog.at_level("INFO", "draftgate.decisions"):
        DecisionLog(store, Outbox(store)).add(record("r"))
    word, line = caplog.messages[0].split(" ", 1)
    assert word == "decision"
    assert msgspec.json.decode(line, type=DecisionRecord) == record("r")
