"""Who is let in, and what is given back."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import pytest

from ar_engine.api import RefineDeadline
from router.errors import DeadlinePassed, Overloaded, RateLimited
from router.serving.messages import BACKGROUND, Admitted, Ask, Caller, Decided, Decision, Delta, Finished, Usage
from router.serving.pace import Expected, Pace
from router.serving.service import GRACE_S, MARGIN, USUAL_ANSWER, Service
from router.settings import ServerSettings

pytestmark = pytest.mark.anyio


class FakeGrant:
    def __init__(self, settled: list[int]) -> None:
        self.headers = {"x-ratelimit-remaining-requests": "1"}
        self._settled = settled

    async def settle(self, tokens: int) -> None:
        await asyncio.sleep(0)
        self._settled.append(tokens)


class FakeLimiter:
    def __init__(self) -> None:
        self.reserved: list[tuple[int, float]] = []
        self.settled: list[int] = []
        self.full = False

    async def admit(self, caller: Caller, tokens: int, lease_s: float) -> FakeGrant:
        if self.full:
            raise RateLimited("enough", retry_after_s=3)
        self.reserved.append((tokens, lease_s))
        return FakeGrant(self.settled)


class FakePipeline:
    """Answers with five tokens to three, when let go."""

    def __init__(self) -> None:
        self.wait_s = 0.0
        self.go = asyncio.Event()
        self.route: Any = "draft"
        self.error: Exception | None = None
        self.told = ""

    def expect(self, wanted: str) -> Expected:
        return Expected(self.wait_s, 0.0)

    async def answer(self, ask: Ask, timeout_s: float) -> Any:
        await self.go.wait()
        if self.error:
            raise self.error
        decision = Decision(route=self.route, reason="any")
        yield Decided(decision)
        if self.told:
            yield Delta(text=self.told)
        yield Finished(usage=Usage(prompt_tokens=3, completion_tokens=5), decision=decision)


class House:
    def __init__(self, **settings: Any) -> None:
        self.pipeline, self.limiter = FakePipeline(), FakeLimiter()
        pipeline: Any = self.pipeline
        self.service = Service(pipeline, self.limiter, ServerSettings(**settings))

    async def ask(self, chars: int = 40, **fields: Any) -> list[Any]:
        content = {"role": "user", "content": "x" * chars}
        ask = Ask(request_id="r", model="draftgate", messages=(content,), **fields)
        async with aclosing(self.service.answer(ask, Caller())) as events:
            return [event async for event in events]


async def test_a_request_holds_its_place_from_first_to_last() -> None:
    house = House()
    asking = asyncio.create_task(house.ask(chars=40))
    while not house.limiter.reserved:
        await asyncio.sleep(0)
    assert (house.service.requests, house.service.tokens) == (1, 11)
    house.pipeline.go.set()
    events = await asking
    assert isinstance(events[0], Admitted)
    assert events[0].headers == {"x-ratelimit-remaining-requests": "1"}
    assert (house.service.requests, house.service.tokens) == (0, 0)
    await house.service.close()
    assert house.limiter.reserved == [(11 + USUAL_ANSWER, 60.0 + GRACE_S)]
    assert house.limiter.settled == [8]


@pytest.mark.parametrize(
    ("route", "fields", "reserved"),
    [("draft", {"max_tokens": 10}, 21), ("draft", {"max_tokens": 10, "n": 3}, 41), ("cache", {"max_tokens": 10}, 21)],
)
async def test_what_is_reserved_is_settled_to_what_was_used(route: str, fields: dict[str, Any], reserved: int) -> None:
    house = House()
    house.pipeline.route = route
    house.pipeline.go.set()
    await house.ask(**fields)
    await house.service.close()
    assert house.limiter.reserved[0][0] == reserved
    assert house.limiter.settled == [0 if route == "cache" else 8]


async def test_a_failed_request_costs_nothing_and_leaves_nothing() -> None:
    house = House()
    house.pipeline.error = ValueError("broken")
    house.pipeline.go.set()
    with pytest.raises(ValueError, match="broken"):
        await house.ask()
    await house.service.close()
    assert house.limiter.settled == [0]
    assert (house.service.requests, house.service.tokens) == (0, 0)


@pytest.mark.parametrize(("timeout_s", "kind"), [(5.0, DeadlinePassed), (None, RefineDeadline)])
async def test_a_deadline_of_the_requests_own_is_no_failure_of_the_server(
    timeout_s: float | None, kind: type[Exception]
) -> None:
    house = House()
    house.pipeline.error = RefineDeadline("late")
    house.pipeline.go.set()
    with pytest.raises(kind):
        await house.ask(timeout_s=timeout_s)


@pytest.mark.parametrize(("told", "tokens"), [("", 11), ("twelve chars", 14), ("long " * 100, 20)])
async def test_who_leaves_in_mid_answer_pays_what_was_told(told: str, tokens: int) -> None:
    house = House()
    house.pipeline.told = told
    house.pipeline.go.set()
    ask = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "x" * 40},), max_tokens=9)
    events = house.service.answer(ask, Caller())
    assert isinstance(await anext(events), Admitted)
    assert isinstance(await anext(events), Decided)
    if told:
        assert isinstance(await anext(events), Delta)
    await events.aclose()
    await house.service.close()
    assert house.limiter.settled == [tokens]


async def test_what_is_to_be_prepared_has_a_place_and_is_within_the_limits() -> None:
    house = House()
    house.pipeline.go.set()
    seen: list[tuple[int, int]] = []

    async def prepare(ask: Ask) -> Ask:
        seen.append((house.service.requests, len(house.limiter.reserved)))
        return ask

    ask = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},))
    async with aclosing(house.service.answer(ask, Caller(), prepare)) as events:
        assert isinstance([event async for event in events][-1], Finished)
    assert seen == [(1, 1)]
    house.limiter.full = True
    async with aclosing(house.service.answer(ask, Caller(), prepare)) as events:
        with pytest.raises(RateLimited):
            await anext(events)
    assert len(seen) == 1


async def test_what_is_to_be_prepared_ends_at_the_deadline() -> None:
    house = House()

    async def hang(ask: Ask) -> Ask:
        await asyncio.Event().wait()
        return ask

    ask = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},), timeout_s=0.01)
    async with aclosing(house.service.answer(ask, Caller(), hang)) as events:
        assert isinstance(await anext(events), Admitted)
        with pytest.raises(DeadlinePassed):
            await anext(events)
    assert (house.service.requests, house.service.tokens) == (0, 0)


async def test_more_than_can_be_answered_is_refused_at_once() -> None:
    house = House(max_requests=2, max_pending_tokens=40)
    tasks = [asyncio.create_task(house.ask(chars=40)) for _ in range(2)]
    while len(house.limiter.reserved) < 2:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 requests"):
        await house.ask()
    tasks.pop().cancel()
    while house.service.requests == 2:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="read"):
        await house.ask(chars=200)
    house.pipeline.wait_s = 61.0
    with pytest.raises(Overloaded, match="in time") as refused:
        await house.ask()
    assert refused.value.retry_after_s == pytest.approx(61.0 - 60.0 / MARGIN)
    assert len(house.limiter.reserved) == 2  # nobody who is refused uses up a limit
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_prompt_as_long_as_all_together_may_be_is_read_alone() -> None:
    house = House(max_pending_tokens=40)
    house.pipeline.go.set()
    assert await house.ask(chars=400)


async def test_requests_that_nobody_waits_for_take_no_place() -> None:
    house = House(max_requests=1)
    tasks = [asyncio.create_task(house.ask(priority=BACKGROUND)) for _ in range(3)]
    while len(house.limiter.reserved) < 3:
        await asyncio.sleep(0)
    assert house.service.requests == 0
    house.pipeline.go.set()
    assert len(await asyncio.gather(*tasks)) == 3


async def test_a_caller_over_its_limits_takes_no_place() -> None:
    house = House()
    house.limiter.full = True
    with pytest.raises(RateLimited):
        await house.ask()
    assert (house.service.requests, house.service.tokens) == (0, 0)


class FakeLoad:
    def __init__(
        self, running: int = 0, waiting: int = 0, capacity: int = 4, step_s: float = 0.0, background: int = 0
    ) -> None:
        self.running, self.waiting, self.capacity, self.step_s = running, waiting, capacity, step_s
        self.background_waiting = background


def test_the_time_an_engine_takes_is_learned() -> None:
    pace = Pace()
    assert pace.expect(FakeLoad(waiting=8)) == (0, 0)  # nothing is known
    pace.observe(steps=10, seconds=2.0)
    assert pace.expect(FakeLoad(running=4, waiting=8)) == pytest.approx((4.0, 2.0))  # an upstream tells no step
    assert pace.expect(FakeLoad(running=4, waiting=2, step_s=0.1)) == pytest.approx((0.5, 1.0))
    assert pace.expect(FakeLoad(running=2, waiting=2, step_s=0.1)) == pytest.approx((1.0, 1.0))  # no room for more
    assert pace.expect(FakeLoad(running=0, waiting=2, capacity=8, step_s=0.1)) == pytest.approx((1.0, 1.0))
    assert pace.expect(FakeLoad(running=4, waiting=8, background=6, step_s=0.1)).wait_s == pytest.approx(0.5)
    for _ in range(100):
        pace.observe(steps=20, seconds=4.0)
    assert pace.expect(FakeLoad(step_s=0.1)).work_s == pytest.approx(2.0, rel=0.01)
