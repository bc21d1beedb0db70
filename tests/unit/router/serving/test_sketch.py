"""A complex request gets a sketch: it helps the refiner, is never shown, and harms nobody."""

from contextlib import aclosing
from typing import Any

import pytest

from diffusion_engine.api import DraftDeadline, DraftFailed, DraftOverloaded
from router.policy import DecisionRecord, Policy
from router.serving import drafting
from router.serving.messages import Ask, Decided, Delta, Event, Finished
from router.serving.pipeline import Pipeline
from router.settings import CacheSettings, RedisSettings
from router.state.cache import AnswerCache
from router.state.outbox import Outbox
from router.state.store import Store
from tests.fakes import FINGERPRINT, HANG, FakeComplexity, FakeDraftEngine, FakeQuality, FakeRefineEngine, draft_result

pytestmark = pytest.mark.anyio


class Bench:
    def __init__(self, steps: int = 3, timeout_s: float = 20.0) -> None:
        self.draft, self.refine = FakeDraftEngine(), FakeRefineEngine()
        self.records: list[DecisionRecord] = []
        store = Store(RedisSettings())
        self.pipeline = Pipeline(
            draft=self.draft,
            refine=self.refine,
            complexity=FakeComplexity(),
            quality=FakeQuality(),
            cache=AnswerCache(store, Outbox(store), CacheSettings(), "test"),
            policy=Policy(sketch_steps=steps),
            observe=lambda record, _: self.records.append(record),
        )
        self.timeout_s = timeout_s

    async def run(self, text: str, **fields: Any) -> list[Event]:
        messages = ({"role": "user", "content": text},)
        ask = Ask(request_id="r1", model="draftgate", messages=messages, **{"wanted": "auto", "cache": False} | fields)
        async with aclosing(self.pipeline.answer(ask, self.timeout_s)) as events:
            return [event async for event in events]


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_the_sketch_travels_to_the_refiner_which_may_not_change_a_word_for_it():
    bench = Bench()
    bench.draft.enqueue(draft_result("a bad sketch", finish_reason="unsettled"))
    events = await bench.run("a hard one", max_tokens=17)
    assert said(events) == "answer to a hard one "
    [drafted], [refined] = bench.draft.requests, bench.refine.requests
    assert (drafted.max_steps, drafted.priority, drafted.max_tokens) == (3, 1, 17), "short, and after drafts"
    assert (refined.mode, refined.draft.text, refined.draft.tokenizer_fingerprint) == (
        "exact", "a bad sketch", FINGERPRINT
    )  # fmt: skip
    decided = next(event for event in events if isinstance(event, Decided))
    assert (decided.decision.route, decided.decision.reason) == ("direct", "complexity")
    assert decided.decision.quality is None, "nobody judged it"


async def test_what_the_sketch_had_right_is_counted_apart_from_drafts():
    bench = Bench()
    [end] = [event for event in await bench.run("a hard one") if isinstance(event, Finished)]
    assert (end.usage.sketched_tokens, end.usage.kept_tokens, end.usage.steps) == (1, None, None)
    assert (bench.records[0].sketched_tokens, bench.records[0].kept_tokens) == (1, None)
    bench.draft.enqueue("bad draft")
    [end] = [event for event in await bench.run("an easy one") if isinstance(event, Finished)]
    assert (end.usage.sketched_tokens, end.usage.kept_tokens) == (None, 1)


@pytest.mark.parametrize(
    "error", [DraftOverloaded("full", 1.0), DraftFailed("broken"), DraftDeadline("late"), ValueError("a bug")]
)
async def test_a_sketch_that_fails_harms_nobody(error):
    bench = Bench()
    bench.draft.enqueue(error)
    events = await bench.run("a hard one")
    assert said(events) == "answer to a hard one "
    assert bench.refine.requests[0].draft is None
    [end] = [event for event in events if isinstance(event, Finished)]
    assert end.usage.sketched_tokens is None


async def test_a_hanging_draft_engine_costs_a_small_share_of_the_time(monkeypatch):
    monkeypatch.setattr(drafting, "SKETCH_SHARE", 0.001)
    bench = Bench()
    bench.draft.enqueue(HANG)
    assert said(await bench.run("a hard one")) == "answer to a hard one "
    assert (bench.draft.running, bench.draft.cancelled) == (0, 1)


@pytest.mark.parametrize(
    ("steps", "text", "wanted"), [(0, "a hard one", "auto"), (4, "a hard one", "refine"), (4, "an easy one", "draft")]
)
async def test_who_gets_no_sketch(steps, text, wanted):
    bench = Bench(steps)
    await bench.run(text, wanted=wanted)
    assert all(request.priority == 0 for request in bench.draft.requests)
    assert all(request.draft is None for request in bench.refine.requests)


@pytest.mark.parametrize(("running", "waiting"), [(4, 0), (1, 1)])
async def test_a_busy_draft_engine_is_left_to_drafts(running, waiting):
    """A sketch would wait behind all drafts that are still to come, and the refiner for it."""
    bench = Bench()
    bench.draft.running, bench.draft.waiting = running, waiting
    assert said(await bench.run("a hard one")) == "answer to a hard one "
    assert bench.draft.requests == []
