"""The loop around a worker that runs in steps: order, bounds, cancellation, deadlines, failures. The worker is scripted."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core import loop as module
from engine_core.loop import Company, EngineLoop, Ticket
from tests.unit.engine_core.errors import ERRORS, Closed, Deadline, Failed, Overloaded, Wanted

HANG_S = 20.0
FOREVER = -1


class Count(NamedTuple):
    """Count to a number, one in a step; or say 0 and never end."""

    name: str
    to: int = 2


class Counter:
    """Works on all its requests at once, up to `slots` of them. Every call is logged; gates hold it where a test wants it."""

    def __init__(self, slots: int = 100) -> None:
        self.slots = slots
        self.work: dict[Ticket, tuple[Count, int]] = {}
        self.log: list[str] = []
        self.tickets: dict[str, Ticket] = {}
        self.may_step, self.may_add, self.in_step, self.in_add = (threading.Event() for _ in range(4))
        self.may_step.set()
        self.may_add.set()
        self.errors: list[Exception] = []  # one for each step that fails
        self.refuses: dict[str, Exception] = {}
        self.broken = False

    @property
    def running(self) -> int:
        return min(len(self.work), self.slots)

    @property
    def waiting(self) -> int:
        return max(0, len(self.work) - self.slots)

    @property
    def background(self) -> int:
        return sum(request.name.startswith("background") for request, _ in self.work.values())

    def add(self, request: Count, ticket: Ticket) -> None:
        self.in_add.set()
        assert self.may_add.wait(HANG_S)
        self.log.append(f"add {request.name}")
        self.tickets[request.name] = ticket
        if request.name in self.refuses:
            raise self.refuses[request.name]
        self.work[ticket] = request, 0

    def cancel(self, ticket: Ticket) -> None:
        request, _ = self.work.pop(ticket, (Count("nothing"), 0))
        self.log.append(f"cancel {request.name}")

    def step(self) -> bool:
        self.in_step.set()
        assert self.may_step.wait(HANG_S)
        some = list(self.work.items())[: self.slots]
        if some:
            self.log.append("step " + " ".join(request.name for _, (request, _) in some))
        error = self.errors.pop() if self.errors and some else None
        for ticket, (request, at) in some:
            if error is not None:
                ticket.fail(Failed(f"{request.name} failed"))
                del self.work[ticket]
            elif request.to == FOREVER and at:
                threading.Event().wait(0.001)  # a step of some length
            elif at < abs(request.to):
                ticket.send(f"{request.name} {at}")
                self.work[ticket] = request, at + 1
            else:
                ticket.end(f"{request.name} done", "twice")
                del self.work[ticket]
        if error is not None:
            raise error
        return bool(self.work)

    def probe(self) -> None:
        if self.broken:
            raise RuntimeError("the device is gone")


def engine(worker: Counter, max_waiting: int = 8, company: Company | None = None) -> EngineLoop[Count]:
    return EngineLoop("test", lambda: worker, ERRORS, max_waiting, company)


async def collect(loop: EngineLoop[Count], name: str, to: int = 2, deadline_s: float | None = None) -> list[object]:
    return [event async for event in loop.stream(Count(name, to), deadline_s)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread makes true."""
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.001)


def engines() -> set[threading.Thread]:
    """The threads of engines that have not ended."""
    return {thread for thread in threading.enumerate() if thread.name == "test-engine"}


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, HANG_S))


async def held(worker: Counter, loop: EngineLoop[Count], *names: str) -> list[asyncio.Task[list[object]]]:
    """Requests of which the first is held inside a step, and the others in the mailbox."""
    worker.may_step.clear()
    worker.in_step.clear()
    tasks = [asyncio.create_task(collect(loop, names[0]))]
    await until(worker.in_step.is_set)
    for name in names[1:]:
        before = loop.status().waiting
        tasks.append(asyncio.create_task(collect(loop, name)))
        await until(lambda before=before: loop.status().waiting > before)
    return tasks


def test_events_arrive_in_order_and_the_last_ones_end_the_stream():
    async def scenario():
        loop = engine(Counter())
        await loop.start()
        assert await collect(loop, "a", 3) == ["a 0", "a 1", "a 2", "a done", "twice"]
        await loop.close()

    run(scenario())


def test_requests_join_and_leave_between_steps():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        tasks = await held(worker, loop, "a", "b", "c")
        worker.may_step.set()
        for task, name in zip(tasks, "abc", strict=True):
            assert await task == [f"{name} 0", f"{name} 1", f"{name} done", "twice"]
        await loop.close()

    run(scenario())
    assert [line for line in worker.log if not line.startswith("cancel")] == [
        "add a",
        "step a",
        "add b",
        "add c",
        "step a b c",
        "step a b c",
        "step b c",
    ]
    assert worker.work == {}


def test_an_idle_worker_is_left_alone_and_woken_by_the_next_request():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        await collect(loop, "a")
        await until(lambda: worker.log[-1].startswith("cancel"))
        await collect(loop, "b")
        await loop.close()

    run(scenario())
    assert [line for line in worker.log if line.startswith("step")] == ["step a"] * 3 + ["step b"] * 3


class Timed(Counter):
    """Steps that take as long as the script says, by a clock that only they move."""

    def __init__(self, takes: list[float]) -> None:
        super().__init__()
        self.takes = takes
        self.now = 0.0

    def step(self) -> bool:
        self.now += self.takes.pop(0) if self.work else 1_000.0
        return super().step()


def test_a_steps_time_is_averaged_over_steps_that_have_work(monkeypatch: pytest.MonkeyPatch):
    worker = Timed([2.0, 4.0, 100.0, 1.0, 1.0])

    class Clock:
        monotonic = staticmethod(lambda: worker.now)

    monkeypatch.setattr(module, "time", Clock)

    async def scenario():
        loop = engine(worker)
        await loop.start()
        assert loop.status().step_s == 0.0
        assert len(await collect(loop, "a", 1)) == 3
        await until(lambda: worker.now >= 1_006.0)  # the end of a request wakes the thread, for a step without work
        assert loop.status().step_s == pytest.approx(2.0 + 0.1 * (4.0 - 2.0))
        worker.errors = [Failed("once")]
        with pytest.raises(Failed):
            await collect(loop, "b")
        await until(lambda: worker.now >= 2_106.0)
        assert loop.status().step_s == pytest.approx(2.2), "a step that failed tells nothing"
        await collect(loop, "c", 1)
        await until(lambda: loop.status().step_s == pytest.approx((2.2 * 0.9 + 0.1) * 0.9 + 0.1))
        await loop.close()

    run(scenario())


def test_requests_before_the_worker_is_loaded_are_refused():
    async def scenario():
        gate, worker = threading.Event(), Counter()
        loop = EngineLoop("test", lambda: worker if gate.wait(HANG_S) else None, ERRORS, 8)  # type: ignore[arg-type]
        starting = asyncio.create_task(loop.start())
        await asyncio.sleep(0)
        assert loop.status() == ("loading", 0, 0, "", 0.0)
        with pytest.raises(Closed, match="expected a test engine that is ready, got one that is loading"):
            await collect(loop, "a")
        gate.set()
        await starting
        assert loop.status() == ("ready", 0, 0, "", 0.0)
        await loop.close()
        assert loop.status().state == "closed"
        with pytest.raises(Closed, match="got one that is closed"):
            await collect(loop, "a")

    run(scenario())


def test_a_worker_that_does_not_load_fails_start_and_says_why():
    def load() -> Counter:
        raise OSError("no such checkpoint")

    async def scenario():
        loop: EngineLoop[Count] = EngineLoop("test", load, ERRORS, 8)
        with pytest.raises(Failed, match="OSError: no such checkpoint"):
            await loop.start()
        assert loop.status() == ("failed", 0, 0, "OSError: no such checkpoint", 0.0)
        with pytest.raises(Closed, match="got one that is failed"):
            await collect(loop, "a")
        await loop.close()
        assert loop.status().state == "failed"

    run(scenario())


def test_two_engines_never_load_at_the_same_time():
    loading, most = [], []

    def load() -> Counter:
        loading.append(1)
        threading.Event().wait(0.02)
        most.append(len(loading))
        loading.pop()
        return Counter()

    async def scenario():
        loops: list[EngineLoop[Count]] = [EngineLoop("test", load, ERRORS, 8) for _ in range(3)]
        await asyncio.gather(*(loop.start() for loop in loops))
        await asyncio.gather(*(loop.close() for loop in loops))

    run(scenario())
    assert most == [1, 1, 1]


def test_one_request_more_than_may_wait_is_refused_with_a_time_to_retry():
    worker = Counter(slots=1)

    async def scenario():
        loop = engine(worker, max_waiting=2)
        await loop.start()
        tasks = await held(worker, loop, "a", "b", "c")
        with pytest.raises(Overloaded, match="expected at most 2 requests waiting for the test engine") as refusal:
            await collect(loop, "d")
        assert refusal.value.retry_after_s > 0
        worker.may_step.set()
        await asyncio.gather(*tasks)
        assert await collect(loop, "d") == ["d 0", "d 1", "d done", "twice"]
        await loop.close()

    run(scenario())
    assert "add d" in worker.log


def test_requests_on_their_way_from_the_mailbox_to_the_worker_count_as_waiting():
    worker = Counter(slots=1)

    async def scenario():
        loop = engine(worker, max_waiting=2)
        await loop.start()
        tasks = await held(worker, loop, "a", "b", "c")
        worker.may_add.clear()
        worker.in_add.clear()
        worker.may_step.set()
        await until(worker.in_add.is_set)  # b is being added, c is next
        assert loop.status().waiting == 2
        with pytest.raises(Overloaded):
            await collect(loop, "d")
        worker.may_add.set()
        await asyncio.gather(*tasks)
        await loop.close()

    run(scenario())


def test_a_closed_iterator_cancels_a_running_request_before_the_next_step():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        events = loop.stream(Count("a", FOREVER), None)
        assert await anext(events) == "a 0"
        worker.may_step.clear()
        worker.in_step.clear()
        await until(worker.in_step.is_set)
        steps = worker.log.count("step a")
        await events.aclose()
        worker.may_step.set()
        await until(lambda: "cancel a" in worker.log)
        assert worker.log.count("step a") == steps + 1
        assert await collect(loop, "b") == ["b 0", "b 1", "b done", "twice"]
        assert worker.log.count("step a") == steps + 1
        await until(lambda: loop.status()[:4] == ("ready", 0, 0, ""))
        await loop.close()

    run(scenario())


def test_a_request_cancelled_in_the_mailbox_never_takes_part_in_a_step():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        first, second = await held(worker, loop, "a", "b")
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        worker.may_step.set()
        await first
        await collect(loop, "c")
        await loop.close()

    run(scenario())
    assert not any(line.startswith("step") and "b" in line.split() for line in worker.log)
    assert worker.work == {}


def test_an_iterator_closed_after_its_end_is_cancelled_without_harm():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        events = loop.stream(Count("a", 0), None)
        assert await anext(events) == "a done"
        await until(lambda: not worker.work)
        await events.aclose()
        await until(lambda: worker.log[-1] == "cancel nothing")
        assert await collect(loop, "b", 0) == ["b done", "twice"]
        await loop.close()

    run(scenario())


def test_the_worker_is_told_the_deadline():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        before = time.monotonic()
        await collect(loop, "a", deadline_s=100.0)
        after = time.monotonic()
        await collect(loop, "b")
        await loop.close()
        assert before + 100 <= (worker.tickets["a"].deadline or 0) <= after + 100
        assert worker.tickets["b"].deadline is None

    run(scenario())


def test_a_step_that_is_stuck_past_the_deadline_ends_the_request_and_not_the_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        worker.may_step.clear()
        with pytest.raises(Deadline, match=r"expected a result of the test engine within 0\.05 s, got none"):
            await collect(loop, "a", deadline_s=0.05)
        worker.may_step.set()
        await until(lambda: "cancel a" in worker.log)
        assert await collect(loop, "b") == ["b 0", "b 1", "b done", "twice"]
        await loop.close()

    run(scenario())


def test_a_slow_reader_gets_what_was_ready_in_time():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        events = loop.stream(Count("a"), HANG_S)
        read = [await anext(events)]
        await until(lambda: not worker.work)
        await asyncio.sleep(0)  # what the worker handed over is there
        worker.tickets["a"].deadline = time.monotonic() - 2 * module.GRACE_S
        read += [event async for event in events]
        assert read == ["a 0", "a 1", "a done", "twice"]
        await loop.close()

    run(scenario())


def test_a_request_that_can_not_be_added_leaves_the_others_untouched():
    worker = Counter()
    worker.refuses = {"bad": ZeroDivisionError(), "long": Wanted("expected less")}

    async def scenario():
        loop = engine(worker)
        await loop.start()
        first, bad, long, last = await held(worker, loop, "a", "bad", "long", "b")
        worker.may_step.set()
        with pytest.raises(Failed, match="the test engine failed with ZeroDivisionError") as failure:
            await bad
        assert isinstance(failure.value.__cause__, ZeroDivisionError)
        with pytest.raises(Wanted, match="expected less"):
            await long
        assert await first == ["a 0", "a 1", "a done", "twice"]
        assert await last == ["b 0", "b 1", "b done", "twice"]
        await loop.close()

    run(scenario())


def test_a_failed_step_costs_its_requests_and_the_others_go_on():
    worker = Counter(slots=1)
    worker.errors = [ValueError("this step")]

    async def scenario():
        loop = engine(worker)
        await loop.start()
        first, second = await held(worker, loop, "a", "b")
        worker.may_step.set()
        with pytest.raises(Failed, match="a failed"):
            await first
        assert await second == ["b 0", "b 1", "b done", "twice"]
        assert loop.status().state == "ready"
        assert await collect(loop, "c") == ["c 0", "c 1", "c done", "twice"]
        await loop.close()

    run(scenario())


def test_after_a_failed_step_the_others_go_on_before_anybody_has_read_of_it():
    worker = Counter(slots=1)

    async def scenario():
        loop = engine(worker)
        await loop.start()
        unread = loop.stream(Count("a", FOREVER), None)
        assert await anext(unread) == "a 0"
        other = asyncio.create_task(collect(loop, "b"))
        await until(lambda: loop.status().waiting == 1)
        worker.errors.append(ValueError("this step"))
        assert await other == ["b 0", "b 1", "b done", "twice"]
        await unread.aclose()
        await loop.close()

    run(scenario())


def test_a_broken_device_fails_everybody_and_refuses_who_comes_later():
    worker = Counter(slots=1)
    worker.errors = [ValueError("illegal memory access")]
    worker.broken = True

    async def scenario():
        loop = engine(worker)
        await loop.start()
        tasks = await held(worker, loop, "a", "b", "c")
        worker.may_step.set()
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(failure) for failure in failures] == [Failed] * 3
        assert len(set(map(id, failures))) == 3
        assert str(failures[1]) == "the test engine broke: ValueError: illegal memory access"
        state, _, _, detail, _ = loop.status()
        assert (state, detail) == ("failed", "ValueError: illegal memory access")
        assert not loop.foreground, "another engine's background would give way to it for good"
        with pytest.raises(Closed, match="got one that is failed"):
            await collect(loop, "d")
        await loop.close(drain_s=HANG_S)
        assert loop.status().state == "failed"

    run(scenario())


def test_a_worker_that_fails_at_a_cancellation_is_broken_and_nobody_hangs():
    class Careless(Counter):
        def cancel(self, ticket: Ticket) -> None:
            raise KeyError("lost")

    worker = Careless()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        first, second = await held(worker, loop, "a", "b")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        worker.may_step.set()
        with pytest.raises(Failed, match="the test engine broke: KeyError: 'lost'"):
            await second
        assert loop.status().state == "failed"
        await loop.close()

    run(scenario())


def test_close_lets_what_runs_and_waits_finish_when_told_to_and_refuses_what_is_new():
    worker = Counter(slots=1)

    async def scenario():
        loop = engine(worker)
        await loop.start()
        tasks = await held(worker, loop, "a", "b")
        closing = asyncio.create_task(loop.close(drain_s=HANG_S))
        await until(lambda: loop.status().state == "closed")
        with pytest.raises(Closed, match="got one that is closed"):
            await collect(loop, "c")
        assert not closing.done()
        worker.may_step.set()
        assert await tasks[0] == ["a 0", "a 1", "a done", "twice"]
        assert await tasks[1] == ["b 0", "b 1", "b done", "twice"]
        await closing

    run(scenario())
    assert worker.work == {}


def test_close_without_patience_ends_everybody_after_the_step_that_runs():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        tasks = await held(worker, loop, "a", "b")
        closing = asyncio.create_task(loop.close())
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(failure) for failure in failures] == ["the test engine is shutting down"] * 2
        assert [type(failure) for failure in failures] == [Closed] * 2
        assert len(set(map(id, failures))) == 2
        assert not closing.done()
        worker.may_step.set()
        await closing
        assert worker.log == ["add a", "step a"]
        assert loop.status().state == "closed"

    run(scenario())


def test_close_twice_and_at_once_is_close_once():
    worker = Counter()

    async def scenario():
        loop = engine(worker)
        await loop.start()
        (task,) = await held(worker, loop, "a")
        patient = asyncio.create_task(loop.close(drain_s=HANG_S))
        await until(lambda: loop.status().state == "closed")
        hasty = asyncio.create_task(loop.close())
        with pytest.raises(Closed):
            await task
        worker.may_step.set()
        await asyncio.gather(patient, hasty)
        await loop.close()

    run(scenario())


def test_close_before_start_closes():
    async def scenario():
        loop = engine(Counter())
        await loop.close()
        assert loop.status().state == "closed"
        with pytest.raises(Closed, match="got one that is closed"):
            await collect(loop, "a")

    run(scenario())


def test_close_while_loading_closes_and_ends_the_thread():
    before = engines()

    async def scenario():
        gate, worker = threading.Event(), Counter()
        loop = EngineLoop("test", lambda: worker if gate.wait(HANG_S) else None, ERRORS, 8)  # type: ignore[arg-type]
        starting = asyncio.create_task(loop.start())
        await asyncio.sleep(0)
        closing = asyncio.create_task(loop.close())
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(starting, closing)
        assert loop.status().state == "closed"
        with pytest.raises(Closed, match="got one that is closed"):
            await collect(loop, "a")
        assert engines() == before

    run(scenario())


def test_an_event_loop_that_is_gone_harms_nobody_else():
    worker = Counter()
    engine_loop = engine(worker)
    gone = asyncio.new_event_loop()
    gone.run_until_complete(engine_loop.start())
    events = engine_loop.stream(Count("a", 5), None)
    assert gone.run_until_complete(anext(events)) == "a 0"
    gone.close()

    async def scenario():
        assert await collect(engine_loop, "b") == ["b 0", "b 1", "b done", "twice"]
        await until(lambda: not worker.work)
        await engine_loop.close()

    run(scenario())


def test_a_worker_loaded_for_an_event_loop_that_is_gone_serves_the_next_one():
    gate, worker = threading.Event(), Counter()
    engine_loop: EngineLoop[Count] = EngineLoop(
        "test",
        lambda: worker if gate.wait(HANG_S) else None,  # type: ignore[arg-type]
        ERRORS,
        8,
    )

    async def give_up():
        starting = asyncio.create_task(engine_loop.start())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    asyncio.run(give_up())
    gate.set()

    async def scenario():
        await until(lambda: engine_loop.status().state == "ready")
        assert await collect(engine_loop, "b", 0) == ["b done", "twice"]
        await engine_loop.close()

    run(scenario())


readers = st.lists(
    st.tuples(
        st.integers(0, 4),  # counts to
        st.sampled_from(["reads all", "leaves at once", "leaves after one", "is cancelled"]),
        st.integers(0, 3),  # turns of the event loop before it comes
    ),
    min_size=1,
    max_size=12,
)


@given(readers, st.integers(1, 3), st.sampled_from([None, 0.0, HANG_S]))
@settings(max_examples=60, deadline=None)
def test_whoever_comes_and_goes_each_gets_his_own_and_nothing_stays_behind(
    drawn: list[tuple[int, str, int]], slots: int, drain_s: float | None
):
    worker, before = Counter(slots), engines()

    async def read(loop: EngineLoop[Count], name: str, to: int, how: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        expected = [f"{name} {i}" for i in range(to)] + [f"{name} done", "twice"]
        events = loop.stream(Count(name, to), HANG_S)
        try:
            if how == "reads all":
                assert [event async for event in events] == expected
            elif how == "leaves after one":
                assert await anext(events) == expected[0]
            elif how == "leaves at once":
                waiting = asyncio.ensure_future(anext(events))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            else:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await anext(events)
        except Closed:
            assert drain_s is not None
        finally:
            await events.aclose()

    async def scenario():
        loop = engine(worker, max_waiting=len(drawn))
        await loop.start()
        tasks = [asyncio.create_task(read(loop, f"r{i}", *one)) for i, one in enumerate(drawn)]
        if drain_s is None:
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: loop.status()[:4] == ("ready", 0, 0, ""))
            await loop.close()
        else:
            await asyncio.sleep(0)
            _, outcomes = await asyncio.gather(loop.close(drain_s), asyncio.gather(*tasks, return_exceptions=True))
        for outcome, (_, how, _) in zip(outcomes, drawn, strict=True):
            refused = drain_s is not None and isinstance(outcome, Closed)
            assert outcome is None or refused or (how == "is cancelled" and isinstance(outcome, asyncio.CancelledError))

    run(scenario())
    assert engines() == before


async def beside_a_busy_engine(name: str, then: Callable[[Counter, Counter], bool]) -> list[object]:
    """What a request gets of one engine while another works for somebody who waits, until `then` holds; after that the other one is left."""
    company = Company()
    busy, worker = Counter(), Counter()
    other, loop = engine(busy, company=company), engine(worker, company=company)
    await other.start()
    await loop.start()
    waited_for = asyncio.create_task(collect(other, "somebody", FOREVER))
    await until(lambda: other.foreground)
    task = asyncio.create_task(collect(loop, name))
    await until(lambda: f"add {name}" in worker.log)
    await until(lambda: then(busy, worker))
    waited_for.cancel()
    await asyncio.gather(waited_for, return_exceptions=True)
    events = await task
    await loop.close()
    await other.close()
    return events


def test_background_gives_way_while_another_engine_works_for_somebody_who_waits(monkeypatch):
    monkeypatch.setattr(module, "MOST_HELD", 1_000_000)
    seen: list[int] = []

    def twenty_steps_later(busy: Counter, worker: Counter) -> bool:
        seen.append(len(busy.log))
        assert "step background" not in worker.log
        return seen[-1] >= seen[0] + 20

    assert run(beside_a_busy_engine("background", twenty_steps_later))[-1] == "twice"


def test_background_that_gave_way_long_enough_does_a_step(monkeypatch):
    monkeypatch.setattr(module, "MOST_HELD", 2)
    stepped = run(beside_a_busy_engine("background", lambda _, worker: "step background" in worker.log))
    assert stepped[-1] == "twice"


def test_who_is_waited_for_gives_way_to_nobody(monkeypatch):
    monkeypatch.setattr(module, "MOST_HELD", 1_000_000)
    stepped = run(beside_a_busy_engine("another", lambda _, worker: worker.log.count("step another") == 3))
    assert stepped[-1] == "twice"
