"""Limits: the script and its twin agree, and neither ever lets in more than a limit."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.errors import BudgetSpent, NeverFits, RateLimited, describe
from router.serving.messages import Caller, Limits
from router.settings import RedisSettings
from router.state.limits import SCRIPT, WINDOW, LocalLimits, RateLimiter, Reservation, Verdict, spent_key
from router.state.store import Store

START = 1_800_000_000_000  # ms
DAY = 86_400_000

most = st.none() | st.integers(1, 4)
any_limits = st.builds(
    Limits,
    requests_per_min=most,
    tokens_per_min=st.none() | st.integers(1, 40),
    concurrency=most,
    budget_tokens=st.none() | st.integers(1, 200),
)
later = st.sampled_from([0, 1, 400, 999, 1000, 20_000, 59_999, 60_000, 61_000, DAY]) | st.integers(0, 70_000)
admits = st.tuples(st.just("admit"), later, st.integers(0, 50), st.sampled_from([0, 1000, 65_000]))
settles = st.tuples(st.just("settle"), later, st.integers(0, 80), st.integers(0, 20))
histories = st.lists(admits | settles, max_size=40)


class Script:
    """The script's side of a comparison."""

    def __init__(self, store: Store, key_id: str) -> None:
        self._store = store
        self._keys = [f"test:{{{key_id}}}:{name}" for name in ("requests", "tokens", "leases", "spent")]

    async def admit(self, asked: Reservation, now: int) -> Verdict:
        limits = asked.limits
        fields = (limits.requests_per_min, limits.tokens_per_min, limits.concurrency, limits.budget_tokens)
        reply = await self._run("admit", now, asked, *(-1 if most is None else most for most in fields))
        return Verdict(reply[0].decode(), *reply[1:])

    async def settle(self, granted: Reservation, used: int, now: int, *, away: bool = False) -> int:
        return await self._run("settle", now, granted, used, int(granted.limits.tokens_per_min is not None), int(away))

    async def spent(self) -> int:
        replies = await self._store.run(("GET", self._keys[3]))
        assert replies is not None
        return int(replies[0] or 0)

    async def _run(self, operation: str, now: int, asked: Reservation, *arguments: int) -> Any:
        given_ = (now, asked.grant, asked.lease, asked.tokens)
        reply = await self._store.script(SCRIPT, self._keys, operation, *given_, *arguments)
        assert reply is not None
        return reply


def reservation(limits: Limits, tokens: int = 0, lease: int = 65_000, key_id: str = "k") -> Reservation:
    return Reservation(key_id=key_id, limits=limits, grant=uuid.uuid4().hex, lease=lease, tokens=tokens)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(limits=any_limits, history=histories)
def test_the_script_and_its_twin_say_the_same_of_any_history(
    redis_settings: RedisSettings, limits: Limits, history: list[tuple[str, int, int, int]]
) -> None:
    async def compare() -> None:
        store = Store(redis_settings)
        try:
            await replay(Script(store, uuid.uuid4().hex), LocalLimits())
        finally:
            await store.close()

    async def replay(script: Script, twin: LocalLimits) -> None:
        now, granted = START, list[Reservation]()
        for operation, wait, amount, which in history:
            now += wait
            if operation == "admit":
                asked = reservation(limits, amount, which)
                verdict = twin.admit(asked, now)
                assert await script.admit(asked, now) == verdict
                granted += [asked] if not verdict.refused else []
            elif granted:
                one = granted[which % len(granted)]
                twin.settle(one, amount)
                await script.settle(one, amount, now)
        probe = reservation(limits)
        assert await script.admit(probe, now) == twin.admit(probe, now)

    asyncio.run(compare())


@settings(deadline=None)
@given(
    limits=st.builds(Limits, requests_per_min=most, tokens_per_min=st.none() | st.integers(1, 40)),
    asked=st.lists(st.tuples(later, st.integers(0, 30)), max_size=60),
)
def test_no_minute_ever_sees_more_than_the_limit(limits: Limits, asked: list[tuple[int, int]]) -> None:
    twin, now = LocalLimits(), START
    admitted: list[tuple[int, int]] = []
    for wait, tokens in asked:
        now += wait
        if not twin.admit(reservation(limits, tokens), now).refused:
            admitted.append((now, tokens))
    for start, _ in admitted:
        minute = [tokens for at, tokens in admitted if start <= at < start + 60_000]
        assert limits.requests_per_min is None or len(minute) <= limits.requests_per_min
        assert limits.tokens_per_min is None or sum(minute) <= limits.tokens_per_min


@settings(deadline=None)
@given(
    limits=st.builds(Limits, requests_per_min=most, tokens_per_min=st.none() | st.integers(1, 40)),
    history=histories,
    tokens=st.integers(0, 50),
)
def test_a_refused_request_fits_when_it_was_told_and_not_before(
    limits: Limits, history: list[tuple[str, int, int, int]], tokens: int
) -> None:
    twin, now = LocalLimits(), START
    for operation, wait, amount, _ in history:
        now += wait
        if operation == "admit":
            twin.admit(reservation(limits, amount), now)
    verdict = twin.admit(reservation(limits, tokens), now)
    if verdict.wait < 0:
        assert limits.tokens_per_min is not None
        assert tokens > limits.tokens_per_min
    elif verdict.refused:
        assert 0 < verdict.wait <= WINDOW * 1000
        assert twin.admit(reservation(limits, tokens), now + verdict.wait - 1).refused == verdict.refused
        assert twin.admit(reservation(limits, tokens), now + verdict.wait).refused != verdict.refused


class TestScript:
    """What only the script can do: it is told of what was granted while Redis was away."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def script(self, redis_settings: RedisSettings) -> AsyncIterator[Script]:
        store = Store(redis_settings)
        yield Script(store, uuid.uuid4().hex)
        await store.close()

    async def test_what_was_granted_without_redis_is_booked_once(self, script: Script) -> None:
        granted = reservation(Limits(tokens_per_min=100), 50)
        assert await script.settle(granted, 30, START, away=True) == 1
        assert await script.settle(granted, 30, START + 5000, away=True) == 0
        assert await script.spent() == 30
        verdict = await script.admit(reservation(granted.limits, 70), START + 10_000)
        assert (verdict.refused, verdict.tokens_left) == ("", 0)

    async def test_a_reservation_whose_reply_was_lost_is_settled_like_any(self, script: Script) -> None:
        granted = reservation(Limits(tokens_per_min=100), 50)
        assert not (await script.admit(granted, START)).refused
        assert await script.settle(granted, 30, START, away=True) == 1
        assert await script.settle(granted, 30, START, away=True) == 0
        assert await script.spent() == 30

    async def test_without_a_clock_it_reads_the_servers_own(self, script: Script) -> None:
        granted = reservation(Limits(requests_per_min=1))
        reply = await script._run("admit", "", granted, 1, -1, -1, -1)  # pyright: ignore[reportArgumentType]
        assert reply[0] == b""
        reply = await script._run("admit", "", granted, 1, -1, -1, -1)  # pyright: ignore[reportArgumentType]
        assert reply[0] == b"requests"
        assert 55_000 < reply[1] <= WINDOW * 1000


class TestRateLimiter:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def store(self, redis_settings: RedisSettings) -> AsyncIterator[Store]:
        store = Store(redis_settings)
        yield store
        await store.close()

    @pytest.fixture
    def now(self) -> list[int]:
        return [START]

    @pytest.fixture
    def limiter(self, store: Store, now: list[int]) -> RateLimiter:
        return RateLimiter(store, lambda: now[0])

    async def test_callers_without_limits_cost_no_round_trip(self, limiter: RateLimiter, store: Store) -> None:
        await store.close()
        grant = await limiter.admit(Caller(key_id="k"), 10, 60.0)
        assert grant.headers == {}
        await grant.settle(5)
        assert store.failures == 0

    async def test_the_headers_say_what_is_left(self, limiter: RateLimiter, now: list[int]) -> None:
        caller = Caller(key_id="k", limits=Limits(requests_per_min=3, tokens_per_min=100))
        grant = await limiter.admit(caller, 60, 60.0)
        assert grant.headers == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-reset-requests": "61.0s",
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "40",
            "x-ratelimit-reset-tokens": "61.0s",
        }
        await grant.settle(10)
        now[0] += 500
        again = await limiter.admit(caller, 0, 60.0)
        assert again.headers["x-ratelimit-remaining-tokens"] == "90"
        assert again.headers["x-ratelimit-reset-requests"] == "60.5s"

    async def test_only_limits_that_there_are_have_headers(self, limiter: RateLimiter) -> None:
        grant = await limiter.admit(Caller(key_id="k", limits=Limits(concurrency=1)), 60, 60.0)
        assert grant.headers == {}

    async def test_a_spent_minute_says_when_to_come_back(self, limiter: RateLimiter, now: list[int]) -> None:
        caller = Caller(key_id="k", limits=Limits(requests_per_min=1))
        await (await limiter.admit(caller, 0, 60.0)).settle(0)
        now[0] += 20_000
        with pytest.raises(RateLimited, match=r"requests: 1 in a minute. Try again in 41.0s") as caught:
            await limiter.admit(caller, 0, 60.0)
        wire, _, headers = describe(caught.value)
        assert (wire.status, wire.code, headers["retry-after"]) == (429, "rate_limit_exceeded", "41")
        assert headers["x-ratelimit-remaining-requests"] == "0"
        now[0] += 41_000
        await limiter.admit(caller, 0, 60.0)

    async def test_a_request_that_never_fits_is_told_so(self, limiter: RateLimiter) -> None:
        caller = Caller(key_id="k", limits=Limits(tokens_per_min=100))
        with pytest.raises(NeverFits, match="may take 101 tokens and can never fit: the key's limit is 100 tokens"):
            await limiter.admit(caller, 101, 60.0)
        await limiter.admit(caller, 100, 60.0)

    async def test_a_failed_request_gives_its_tokens_back_but_counts(self, limiter: RateLimiter) -> None:
        caller = Caller(key_id="k", limits=Limits(requests_per_min=2, tokens_per_min=100, budget_tokens=100))
        await (await limiter.admit(caller, 100, 60.0)).settle(0)
        grant = await limiter.admit(caller, 100, 60.0)
        assert grant.headers["x-ratelimit-remaining-requests"] == "0"

    async def test_settling_again_changes_nothing(self, limiter: RateLimiter, store: Store) -> None:
        grant = await limiter.admit(Caller(key_id="k", limits=Limits(tokens_per_min=100)), 60, 60.0)
        for _ in range(3):
            await grant.settle(20)
        assert await store.run(("GET", spent_key("k"))) == [b"20"]

    async def test_a_lease_ends_by_settling_or_by_itself(self, limiter: RateLimiter, now: list[int]) -> None:
        caller = Caller(key_id="k", limits=Limits(concurrency=2))
        first = await limiter.admit(caller, 0, 60.0)
        await limiter.admit(caller, 0, 30.0)
        with pytest.raises(RateLimited, match="at once: 2"):
            await limiter.admit(caller, 0, 60.0)
        await first.settle(0)
        await limiter.admit(caller, 0, 60.0)
        now[0] += 30_000
        await limiter.admit(caller, 0, 60.0)
        with pytest.raises(RateLimited):
            await limiter.admit(caller, 0, 60.0)

    async def test_nothing_is_admitted_once_the_budget_is_spent(self, limiter: RateLimiter, now: list[int]) -> None:
        caller = Caller(key_id="k", limits=Limits(budget_tokens=100))
        grants = [await limiter.admit(caller, 60, 60.0) for _ in range(2)]
        with pytest.raises(BudgetSpent, match="budget of 100 tokens is used up"):
            await limiter.admit(caller, 0, 60.0)
        await grants[0].settle(10)
        await grants[1].settle(89)
        last = await limiter.admit(caller, 60, 60.0)
        await last.settle(200)
        for _ in range(5):
            now[0] += DAY
            with pytest.raises(BudgetSpent):
                await limiter.admit(caller, 0, 60.0)

    async def test_keys_are_counted_apart(self, limiter: RateLimiter) -> None:
        limits = Limits(requests_per_min=1)
        await limiter.admit(Caller(key_id="a", limits=limits), 0, 60.0)
        await limiter.admit(Caller(key_id="b", limits=limits), 0, 60.0)
        with pytest.raises(RateLimited):
            await limiter.admit(Caller(key_id="a", limits=limits), 0, 60.0)

    async def test_a_caller_who_gives_up_waiting_for_redis_holds_nothing(
        self, limiter: RateLimiter, store: Store
    ) -> None:
        caller = Caller(key_id="k", limits=Limits(concurrency=1, budget_tokens=1000))
        answered = store.script

        async def slow(*arguments: Any) -> Any:
            reply = await answered(*arguments)
            await asyncio.sleep(60)  # carried out, and the answer is on its way
            return reply

        store.script = slow  # pyright: ignore[reportAttributeAccessIssue]
        asking = asyncio.create_task(limiter.admit(caller, 100, 60.0))
        while await store.run(("GET", spent_key("k"))) == [None]:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        store.script = answered
        other = await limiter.admit(Caller(key_id="other", limits=Limits(concurrency=1)), 0, 60.0)
        await other.settle(0)
        await limiter.admit(caller, 0, 60.0)


class TestWithoutRedis:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def limiter(self) -> AsyncIterator[RateLimiter]:
        store = Store(RedisSettings(url="unix:///nowhere.sock", retry_after_s=60.0))
        yield RateLimiter(store)
        await store.close()

    async def test_the_twin_holds_the_limits(self, limiter: RateLimiter) -> None:
        caller = Caller(key_id="k", limits=Limits(requests_per_min=5, tokens_per_min=100, concurrency=3))
        grants = [await limiter.admit(caller, 10, 60.0) for _ in range(3)]
        with pytest.raises(RateLimited, match="at once"):
            await limiter.admit(caller, 10, 60.0)
        for grant in grants:
            await grant.settle(33)
        with pytest.raises(RateLimited, match="tokens"):
            await limiter.admit(caller, 10, 60.0)
        await limiter.admit(caller, 1, 60.0)
