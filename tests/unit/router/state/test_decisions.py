import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from router.policy import DecisionRecord
from router.serving.messages import Texts
from router.settings import PrivacySettings, RedisSettings
from router.state.decisions import KEPT, PAGE, STREAM, DecisionLog, LoggedDecision
from router.state.outbox import Outbox
from router.state.store import Store
from tests.fakes import decision_record

pytestmark = pytest.mark.anyio


TEXTS = Texts("I am jo@example.com, canary", "Hello canary")
KEEP = PrivacySettings(keep_text=True)


def record(request_id: str, tenant: str = "") -> DecisionRecord:
    return decision_record(request_id=request_id, tenant=tenant)


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[Store]:
    store = Store(redis_settings)
    yield store
    await store.close()


async def test_decisions_come_back_newest_first(store: Store) -> None:
    outbox = Outbox(store)
    log = DecisionLog(store, outbox, PrivacySettings())
    for name in "abc":
        log.add(record(name))
    assert await log.latest(10) == []
    await outbox.flush()
    assert [logged.record.request_id for logged in await log.latest(2)] == ["c", "b"]
    assert await log.latest(1) == [LoggedDecision(record("c"))]


async def test_the_stream_is_capped(store: Store) -> None:
    outbox = Outbox(store)
    log = DecisionLog(store, outbox, PrivacySettings())
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
    assert await DecisionLog(gone, Outbox(gone), PrivacySettings()).latest(5) == []


async def test_each_decision_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(RedisSettings())
    with caplog.at_level("INFO", "draftgate.decisions"):
        DecisionLog(store, Outbox(store), PrivacySettings()).add(record("r"))
    word, line = caplog.messages[0].split(" ", 1)
    assert word == "decision"
    assert msgspec.json.decode(line, type=DecisionRecord) == record("r")


async def test_texts_are_kept_only_if_that_is_wanted_redacted_and_cut(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(store)
    with caplog.at_level("DEBUG"):
        DecisionLog(store, outbox, PrivacySettings()).add(record("a"), TEXTS)
        DecisionLog(store, outbox, KEEP).add(record("b"), TEXTS)
        log = DecisionLog(store, outbox, PrivacySettings(keep_text=True, text_chars=12))
        log.add(record("c"), TEXTS)
        await outbox.flush()
    shown = [logged.texts for logged in await log.latest(3)]
    assert shown == [Texts("I am [email]", "Hello canary"), Texts("I am [email], canary", "Hello canary"), None]
    assert "canary" not in caplog.text


async def test_a_line_of_another_version_is_left_out(store: Store) -> None:
    outbox = Outbox(store)
    log = DecisionLog(store, outbox, PrivacySettings())
    log.add(record("a"))
    outbox.add(("XADD", STREAM, "*", "record", b'{"request_id": "b"}'))
    await outbox.flush()
    assert [logged.record.request_id for logged in await log.latest(2)] == ["a"]


async def test_a_request_is_forgotten_by_its_own_tenant_only(store: Store) -> None:
    outbox = Outbox(store)
    log = DecisionLog(store, outbox, KEEP)
    log.add(record("a", "one"), TEXTS)
    for i in range(PAGE + 5):
        log.add(record(f"b{i}", "two"))
    log.add(record("a", "two"))
    assert not await log.forget("three", "a")
    assert await log.forget("one", "a")
    assert not await log.forget("one", "a")
    left = [(logged.record.request_id, logged.record.tenant) for logged in await log.latest(2 * PAGE)]
    assert len(left) == PAGE + 6
    assert left[0] == ("a", "two")
    assert ("a", "one") not in left


async def test_deleting_does_not_pretend_while_redis_is_away() -> None:
    gone = Store(RedisSettings(url="unix:///nowhere.sock"))
    assert await DecisionLog(gone, Outbox(gone), KEEP).forget("", "a") is None


async def test_old_lines_are_let_go_of_exactly(store: Store) -> None:
    log = DecisionLog(store, Outbox(store), PrivacySettings(keep_hours=2))
    now_ms = int(time.time() * 1000)
    line = msgspec.json.encode(record("r"))
    for age_h in (3, 1):
        await store.run(("XADD", STREAM, now_ms - age_h * 3_600_000, "record", line))
    await log.trim()
    assert len(await log.latest(5)) == 1
    left_ms = await store.run(("PTTL", STREAM))
    assert left_ms is not None
    assert 0 < left_ms[0] <= 2 * 3_600_000
