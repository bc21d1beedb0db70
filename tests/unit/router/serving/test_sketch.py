"""A sketch goes along with complex requests, helps the refiner, and harms nobody."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from diffusion_engine.api import CanvasUpdate, DraftFailed, DraftOverloaded
from router.policy import DecisionRecord, Policy
from router.serving.messages import Ask, Decided, Event, Finished, TextDelta
from router.serving.pipeline import Pipeline
from router.settings import CacheSettings, RedisSettings
from router.state.cache import AnswerCache
from router.state.store import Store
from tests.fakes import HANG, FakeComplexity, FakeDraftEngine, FakeQuality, FakeRefineEngine

pytestmark = pytest.mark.anyio


def update(canvas: int, step: int, text: str, *ids: int) -> CanvasUpdate:
    return CanvasUpdate(
        candidate=0, canvas=canvas, step=step, text=text, token_ids=ids, settled=(True,) * len(ids),
        tokenizer_fingerprint="fake-tokenizer",
    )  # fmt: skip


class Bench:
    def __init__(self, steps: int = 4) -> None:
        self.draft, self.refine = FakeDraftEngine(), FakeRefineEngine()
        self.records: list[DecisionRecord] = []
        self.pipeline = Pipeline(
            draft=self.draft,
            refine=self.refine,
            complexity=FakeComplexity(),
            quality=FakeQuality(),
            cache=AnswerCache(Store(RedisSettings()), CacheSettings(), "test"),
            policy=Policy(sketch_steps=steps),
            timeout_s=20.0,
            observe=self.records.append,
        )

    async def run(self, text: str, **fields: Any) -> list[Event]:
        messages = ({"role": "user", "content": text},)
        ask = Ask(
            request_id="r1", model="draftgate", messages=messages, **{"wanted": "auto", "use_cache": False} | fields
        )
        async with aclosing(self.pipeline.answer(ask)) as events:
            return [event async for event in events]


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def until(ready: Any) -> None:
    async with asyncio.timeout(5):
        while not ready():
            await asyncio.sleep(0.001)


async def test_every_state_of_the_sketch_reaches_the_refiner_while_it_writes():
    bench = Bench()
    bench.draft.enqueue([update(0, 1, "to", 1), update(0, 2, "the sum", 2, 3), update(1, 1, " is 9", 4), HANG])
    bench.refine.enqueue([HANG])
    answer = asyncio.create_task(bench.run("a hard one"))
    await until(lambda: len(bench.refine.suggested) >= 4)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    drafts = [(request, draft.text, draft.token_ids) for request, draft in bench.refine.suggested]
    assert drafts[1:] == [("r1", "to", (1,)), ("r1", "the sum", (2, 3)), ("r1", "the sum is 9", (2, 3, 4))]
    assert bench.refine.suggested[-1][1].tokenizer_fingerprint == "fake-tokenizer"
    assert (bench.draft.running, bench.refine.running) == (0, 0), "both were let go"


async def test_the_answer_does_not_wait_for_its_sketch():
    bench = Bench()
    bench.draft.enqueue(HANG)
    events = await bench.run("a hard one")
    assert said(events) == "answer to a hard one "
    assert (bench.draft.running, bench.draft.cancelled) == (0, 1)
    decided = next(event for event in events if isinstance(event, Decided))
    assert (decided.decision.route, decided.decision.reason) == ("direct", "complexity")


@pytest.mark.parametrize("error", [DraftOverloaded("full", 1.0), DraftFailed("broken"), ValueError("a bug")])
async def test_a_sketch_that_fails_harms_nobody(error):
    bench = Bench()
    bench.draft.enqueue(error)
    assert said(await bench.run("a hard one")) == "answer to a hard one "


async def test_a_sketch_is_short_comes_after_drafts_and_tells_of_its_steps():
    bench = Bench(steps=3)
    await bench.run("a hard one", max_tokens=17)
    [request] = bench.draft.requests
    assert (request.max_steps, request.priority, request.updates, request.max_tokens) == (3, 1, True, 17)


@pytest.mark.parametrize(
    ("steps", "text", "wanted"), [(0, "a hard one", "auto"), (4, "a hard one", "refine"), (4, "an easy one", "auto")]
)
async def test_who_gets_no_sketch(steps, text, wanted):
    bench = Bench(steps)
    events = await bench.run(text, wanted=wanted)
    assert bench.refine.suggested == []
    [end] = [event for event in events if isinstance(event, Finished)]
    assert end.usage.sketched_tokens is None


async def test_a_busy_draft_engine_is_left_to_drafts():
    bench = Bench()
    bench.draft.running = 4
    await bench.run("a hard one")
    assert bench.draft.requests == []


async def test_what_the_sketch_had_right_is_counted():
    bench = Bench()
    events = await bench.run("a hard one")
    [end] = [event for event in events if isinstance(event, Finished)]
    assert end.usage.sketched_tokens == 0, "the fake takes none"
    assert bench.records[0].sketched_tokens == 0
