"""Every way through the pipeline, with scripted engines."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from ar_engine.api import (
    RefineDeadline,
    RefineEngineClosed,
    RefineFailed,
    RefineOverloaded,
    RefineRejected,
    RefineUnavailable,
)
from diffusion_engine.api import (
    DraftDeadline,
    DraftFailed,
    DraftOverloaded,
    DraftRejected,
)
from router.policy import Choice, DecisionRecord, Policy, replay
from router.serving.messages import Ask, ChoiceEnd, Decided, Delta, Event, Finished
from router.serving.pipeline import Pipeline
from router.settings import CacheSettings, RedisSettings
from router.state.cache import AnswerCache
from router.state.outbox import Outbox
from router.state.store import Store
from tests.fakes import (
    HANG,
    FakeComplexity,
    FakeDraftEngine,
    FakeQuality,
    FakeRefineEngine,
    draft_result,
)

pytestmark = pytest.mark.anyio


def new_cache() -> AnswerCache:
    store = Store(RedisSettings())
    return AnswerCache(store, Outbox(store), CacheSettings(), "test")


class Bench:
    """A pipeline with all its parts in reach."""

    def __init__(self, timeout_s: float = 20.0, candidates: int = 1) -> None:
        self.draft = FakeDraftEngine()
        self.quality = FakeQuality()
        self.refine = FakeRefineEngine()
        self.records: list[DecisionRecord] = []
        self.pipeline = Pipeline(
            draft=self.draft,
            refine=self.refine,
            complexity=FakeComplexity(),
            quality=self.quality,
            cache=new_cache(),
            policy=Policy(sketch_steps=0, candidates=candidates),
            observe=lambda record, _: self.records.append(record),
        )
        self.timeout_s = timeout_s

    async def run(self, text: str, **fields: Any) -> list[Event]:
        ask = Ask(
            request_id="r",
            model="draftgate",
            messages=({"role": "user", "content": text},),
            **fields,
        )
        async with aclosing(self.pipeline.answer(ask, self.timeout_s)) as events:
            return [event async for event in events]

    async def answer(self, text: str, **fields: Any) -> tuple[str, str, str]:
        """Text, route and reason; checks what holds for every answer."""
        first, *deltas, end, last = await self.run(text, **fields)
        assert isinstance(first, Decided)
        assert isinstance(last, Finished)
        assert all(isinstance(delta, Delta) for delta in deltas)
        assert isinstance(end, ChoiceEnd)
        assert first.decision == last.decision
        record = self.records[-1]
        assert record.status == 200
        assert (record.route, record.reason) == (last.decision.route, last.decision.reason)
        if record.route != "cache":
            assert replay(record) == Choice(last.decision.route, last.decision.reason)
        shown = "".join(delta.text for delta in deltas if isinstance(delta, Delta))
        return shown, last.decision.route, last.decision.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DraftFailed("x"), "draft_failed"),
        (DraftOverloaded("x", 1.0), "draft_overloaded"),
        (DraftRejected("x"), "draft_rejected"),
        (DraftDeadline("x"), "draft_late"),
        (RuntimeError("a bug"), "draft_failed"),
    ],
)
async def test_a_draft_that_fails_is_replaced_by_a_direct_answer(error: Exception, reason: str) -> None:
    bench = Bench()
    bench.draft.enqueue(error)
    assert await bench.answer("hello") == ("answer to hello ", "direct", reason)
    assert bench.refine.requests[0].draft is None


async def test_a_draft_that_hangs_leaves_the_refiner_half_of_the_time() -> None:
    bench = Bench(timeout_s=0.4)
    bench.draft.enqueue(HANG)
    assert await bench.answer("hello") == ("answer to hello ", "direct", "draft_late")
    assert bench.draft.cancelled == 1
    assert 0 < bench.refine.requests[0].deadline_s <= 0.2


async def test_an_engine_that_ends_without_a_draft_has_failed() -> None:
    bench = Bench()
    bench.draft.enqueue([])
    assert await bench.answer("hello") == ("answer to hello ", "direct", "draft_failed")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RefineFailed("x"), "refine_failed"),
        (RefineUnavailable("x", 1.0), "refine_failed"),
        (RefineOverloaded("x", 1.0), "refine_overloaded"),
        (RefineRejected("x"), "refine_rejected"),
    ],
)
async def test_a_refiner_that_fails_without_a_draft_is_replaced_by_a_good_draft(error: Exception, reason: str) -> None:
    bench = Bench()
    bench.refine.enqueue(error)
    assert await bench.answer("hard") == ("draft of hard", "draft", reason)


@pytest.mark.parametrize("draft", ["bad draft", DraftFailed("x")])
async def test_without_a_good_draft_the_refiners_error_stands(draft: Any) -> None:
    bench = Bench()
    bench.refine.enqueue(RefineOverloaded("full", 1.0))
    bench.draft.enqueue(draft)
    with pytest.raises(RefineOverloaded):
        await bench.run("hard")
    assert bench.records[-1].status == 503
    assert len(bench.refine.requests) == 1


@pytest.mark.parametrize("error", [RefineFailed("x"), RefineOverloaded("x", 1.0), RuntimeError("a bug")])
async def test_a_rejected_draft_never_stands_in_for_an_error(error: Exception) -> None:
    bench = Bench()
    bench.draft.enqueue("bad draft")
    bench.refine.enqueue(error)
    with pytest.raises(type(error)):
        await bench.run("hello")
    assert len(bench.draft.requests) == 1


async def test_a_refiner_that_fails_in_mid_answer_is_not_replaced() -> None:
    bench = Bench()
    bench.refine.enqueue(["one two", RefineFailed("x")])
    with pytest.raises(RefineFailed):
        await bench.run("hard")
    assert bench.draft.requests == []


@pytest.mark.parametrize(("wanted", "error"), [("draft", DraftFailed), ("refine", RefineFailed)])
async def test_an_explicit_route_is_not_left_when_it_fails(wanted: str, error: type[Exception]) -> None:
    bench = Bench()
    bench.draft.enqueue(DraftFailed("x"))
    bench.refine.enqueue(RefineFailed("x"))
    with pytest.raises(error):
        await bench.run("hello", wanted=wanted)
    assert len(bench.draft.requests) + len(bench.refine.requests) == 1


async def test_a_refiner_that_hangs_ends_at_the_deadline() -> None:
    bench = Bench(timeout_s=0.1)
    bench.refine.enqueue(HANG)
    with pytest.raises(RefineDeadline):
        await bench.run("hard")
    assert bench.refine.cancelled == 1
    assert bench.records[-1].status == 504


async def test_while_the_draft_engine_loads_the_refiner_answers() -> None:
    bench = Bench()
    bench.draft.state = "loading"
    assert await bench.answer("hello") == ("answer to hello ", "direct", "draft_unavailable")
    assert bench.draft.requests == []


async def test_without_the_refiner_good_drafts_are_given_and_bad_ones_not() -> None:
    bench = Bench()
    bench.refine.state = "failed"
    assert await bench.answer("hard") == ("draft of hard", "draft", "refine_unavailable")
    bench.draft.enqueue("bad draft")
    bench.refine.enqueue(RefineEngineClosed("x"))
    with pytest.raises(RefineEngineClosed):
        await bench.run("hello")


async def test_scoring_that_breaks_costs_no_request() -> None:
    bench = Bench()
    assert await bench.answer("unscorable") == ("draft of unscorable", "draft", "accepted")
    bench.draft.enqueue("uncheckable")
    assert await bench.answer("hello") == ("answer to hello ", "refine", "check_failed")


async def test_of_several_candidates_the_best_is_judged() -> None:
    bench = Bench(candidates=3)
    bench.draft.enqueue(["bad one", "good one", "bad two"])
    assert await bench.answer("hello") == ("good one", "draft", "accepted")
    assert bench.draft.requests[0].candidates == 3


async def test_the_best_of_bad_candidates_is_refined() -> None:
    bench = Bench(candidates=2)
    bench.draft.enqueue(["bad 1+1=3", "bad one"])
    assert await bench.answer("hello") == ("answer to hello ", "refine", "quality")
    assert bench.refine.requests[0].draft.text == "bad one"


async def test_long_drafts_are_checked_off_the_event_loop_and_short_ones_at_once() -> None:
    bench = Bench()
    await bench.answer("hello")
    assert bench.quality.thread == threading.get_ident()
    bench.draft.enqueue("fine " * 300)
    await bench.answer("something else")
    assert bench.quality.thread not in (0, threading.get_ident())


async def test_the_check_sees_the_draft_as_the_client_would() -> None:
    bench = Bench()
    bench.draft.enqueue(draft_result("fine STOP bad", finish_reason="length"))
    assert await bench.answer("hello", stop=("STOP",)) == ("fine ", "draft", "accepted")


async def test_a_stopped_answer_is_counted_to_its_end() -> None:
    bench = Bench()
    bench.refine.enqueue("one two three four")
    *_, end = await bench.run("hard", stop=("two",))
    assert isinstance(end, Finished)
    assert end.usage.completion_tokens == 4


async def test_a_cached_answer_costs_no_tokens_and_says_its_first_route() -> None:
    bench = Bench()
    first = await bench.run("hard")
    again = await bench.run("hard")
    assert isinstance(again[-1], Finished)
    assert again[-1].decision.cached_route == "direct"
    assert isinstance(first[-1], Finished)
    assert again[-1].usage == first[-1].usage
    assert bench.records[-1].completion_tokens == 0
    assert replay(bench.records[-1]) == Choice("direct", "complexity")


async def test_the_record_holds_no_text() -> None:
    bench = Bench()
    bench.draft.enqueue("canary bad draft")
    await bench.answer("canary question")
    assert "canary" not in repr(bench.records)


@pytest.mark.parametrize(
    ("question", "engine"),
    [
        ("hello", lambda bench: bench.draft),
        ("hard", lambda bench: bench.refine),
    ],
)
async def test_cancelling_frees_the_engine(
    question: str, engine: Callable[[Bench], FakeDraftEngine | FakeRefineEngine]
) -> None:
    bench = Bench()
    engine(bench).enqueue(HANG)
    task = asyncio.create_task(bench.run(question))
    while not engine(bench).running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine(bench).running == 0
    assert engine(bench).cancelled == 1
    assert bench.records[-1].status == 499


async def test_closing_in_mid_answer_frees_the_engine() -> None:
    bench = Bench()
    bench.refine.enqueue(["one two", HANG])
    ask = Ask(request_id="r", model="m", messages=({"role": "user", "content": "hard"},))
    events = bench.pipeline.answer(ask, 20.0)
    assert isinstance(await anext(events), Decided)
    await events.aclose()
    assert bench.refine.running == 0
    assert bench.records[-1].status == 499
