"""The async engine over the real core: concurrency, cancellation, deadlines, failures, closing. The model is tiny and random."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from time import monotonic
from typing import Any, TypeVar

import pytest

from ar_engine.api import (
    DraftScore,
    RefineDeadline,
    RefineDelta,
    RefineEngineClosed,
    RefineEvent,
    RefineFailed,
    RefineOverloaded,
    RefineRejected,
    RefineRequest,
    RefineResult,
    RefineSettings,
    ScoreRequest,
)
from ar_engine.core import Core
from ar_engine.engine import AutoregressiveEngine
from ar_engine.runner import Runner
from demo_models import store
from tests.unit.ar_engine.engines import (
    Pair,
    answer,
    check_deltas,
    check_empty,
    draft_of,
    essence,
    pair,
    put,
    request,
    run,
    score_request,
    told,
)

PROMPT = [(11 * i) % 150 + 20 for i in range(40)]
T = TypeVar("T")


@pytest.fixture(scope="module")
def models() -> Pair:
    return pair("llama")


def serve(models: Pair, scenario: Callable[[AutoregressiveEngine], Awaitable[T]], **settings: Any) -> T:
    """Run a scenario against a started engine, and close it; nothing is left behind if it ended all requests."""
    cores: list[Core] = []

    def load(given: RefineSettings) -> Core:
        cores.append(models.core(max_running=given.max_running, encode_tokens=given.encode_tokens))
        return cores[0]

    async def whole() -> T:
        engine = AutoregressiveEngine(RefineSettings(**settings), load)
        await engine.start()
        try:
            return await scenario(engine)
        finally:
            await engine.close()
            assert engine.load().state in ("closed", "failed")

    result = asyncio.run(asyncio.wait_for(whole(), 90))
    if not cores[0].running:
        check_empty(cores[0])
    return result


async def events_of(engine: AutoregressiveEngine, asked: RefineRequest) -> list[RefineEvent]:
    return [event async for event in engine.refine(asked)]


async def refined(engine: AutoregressiveEngine, asked: RefineRequest) -> RefineResult:
    events = await events_of(engine, asked)
    assert isinstance(events[-1], RefineResult)
    check_deltas([event for event in events if isinstance(event, RefineDelta)], events[-1])
    return events[-1]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread makes true; the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.001)


def random_requests(models: Pair, count: int, seed: int) -> list[RefineRequest]:
    """Prompts of all lengths with common beginnings, drafts that are right in part, greedy and sampled, of all modes."""
    chance, asked = random.Random(seed), []
    right = [answer(models.core(), PROMPT[:length], max_tokens=12).token_ids for length in range(1, 41, 13)]
    for i in range(count):
        draft = list(chance.choice(right))
        draft[chance.randrange(len(draft))] = chance.randrange(20, 250)
        wishes: dict[str, Any] = {"max_tokens": chance.randint(1, 12), "seed": i, "n": chance.choice((1, 1, 1, 2))}
        wishes |= {"mode": chance.choice(("exact", "exact", "typical", "fresh")), "priority": chance.choice((0, 1, 2))}
        wishes |= chance.choice(({}, {}, {"temperature": 1.0}, {"frequency_penalty": 1.0}, {"logprobs": 1}))
        asked.append(request(PROMPT[: chance.randint(1, 40)], chance.choice((None, draft, draft)), **wishes))
    return asked


def concurrent(models: Pair, count: int, seed: int) -> None:
    """Of many requests at once, some leave at random moments; all others get what they get alone, and every slot is free."""
    chance, asked = random.Random(seed), random_requests(models, count, seed)
    leaves_after = [chance.randint(0, 4) if chance.random() < 0.33 else None for _ in asked]

    async def one(
        engine: AutoregressiveEngine, asked: RefineRequest, leaves_after: int | None
    ) -> list[RefineEvent] | None:
        seen: list[RefineEvent] = []
        async with aclosing(engine.refine(asked)) as events:
            if leaves_after == 0:
                return None
            async for event in events:
                seen.append(event)
                if len(seen) == leaves_after:
                    return None
        return seen

    async def scenario(engine: AutoregressiveEngine) -> list[list[RefineEvent] | None]:
        found = await asyncio.gather(*(one(engine, *pair) for pair in zip(asked, leaves_after, strict=True)))
        await until(lambda: not engine.load().running and not engine.load().waiting)
        return found

    found = serve(models, scenario, max_running=7, encode_tokens=24)
    assert sum(events is None for events in found) >= count // 8
    for events, wish in zip(found, asked, strict=True):
        if events is None:
            continue
        core = models.core()
        single = put(core, wish)
        run(core)
        results = sorted((event for event in events if isinstance(event, RefineResult)), key=lambda one: one.choice)
        assert [essence(result) for result in results] == [essence(result) for result in single.results]
        for result in results:
            check_deltas([event for event in events if isinstance(event, RefineDelta)], result)


def test_thirty_two_at_once_and_a_third_leaves(models: Pair):
    concurrent(models, 32, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("name", ["llama", "gemma4_moe", "gemma4_shared_kv"])
def test_thirty_two_at_once_and_a_third_leaves_again_and_again(name: str, seed: int):
    concurrent(pair(name), 32, seed)


def test_drafts_are_scored_beside_answers(models: Pair):
    expected = answer(models.core(), PROMPT, max_tokens=8).token_ids

    async def scenario(engine: AutoregressiveEngine) -> DraftScore:
        asked = (engine.score(score_request(PROMPT, expected)), refined(engine, request(PROMPT, max_tokens=8)))
        score, result = await asyncio.gather(*asked)
        assert result.token_ids == expected
        nothing = await engine.score(score_request(PROMPT, []))
        assert (nothing.token_ids, nothing.agreeing_prefix) == ((), 0)
        await until(lambda: not engine.load().running)
        return score

    assert serve(models, scenario).agreeing_prefix == len(expected)


def test_a_full_queue_refuses_and_says_when_to_come_back(models: Pair, monkeypatch: pytest.MonkeyPatch):
    gate, plainly = threading.Event(), Runner.run
    monkeypatch.setattr(Runner, "run", lambda *args: gate.wait(60) and plainly(*args))

    async def scenario(engine: AutoregressiveEngine) -> None:
        short = request(PROMPT, max_tokens=2)
        tasks = [asyncio.create_task(refined(engine, short))]
        await until(lambda: engine.load().running == 1)
        tasks += [asyncio.create_task(refined(engine, short)) for _ in range(3)]
        await until(lambda: engine.load().waiting == 3)
        with pytest.raises(RefineOverloaded, match="at most 3 requests waiting") as refused:
            await refined(engine, short)
        assert refused.value.retry_after_s > 0
        with pytest.raises(RefineOverloaded):
            await engine.score(score_request(PROMPT, [20]))
        gate.set()
        assert len(await asyncio.gather(*tasks)) == 4

    serve(models, scenario, max_running=1, max_waiting=3)


def test_a_deadline_ends_an_answer_that_is_not_finished(models: Pair, monkeypatch: pytest.MonkeyPatch):
    late = threading.Event()
    monkeypatch.setattr("ar_engine.core.monotonic", lambda: monotonic() + (60.0 if late.is_set() else 0.0))

    async def scenario(engine: AutoregressiveEngine) -> None:
        with pytest.raises(RefineDeadline, match=r"within 0\.0 s, got an unfinished one"):
            await refined(engine, request(PROMPT, deadline_s=0.0))
        begun = engine.refine(request(PROMPT, max_tokens=400, deadline_s=30.0))
        assert isinstance(await anext(begun), RefineDelta)
        late.set()
        with pytest.raises(RefineDeadline, match=r"expected an answer within 30\.0 s"):
            assert all([isinstance(event, RefineDelta) async for event in begun])
        late.clear()
        assert (await refined(engine, request(PROMPT, max_tokens=2, deadline_s=60.0))).token_ids

    serve(models, scenario)


def test_a_cancelled_request_is_gone_by_the_next_step(models: Pair, monkeypatch: pytest.MonkeyPatch):
    plainly, seen = Runner.run, []

    def note(runner: Runner, works: Any, scheduler: Any) -> Any:
        seen.append([len(work.sequence.prompt) for work in works])
        return plainly(runner, works, scheduler)

    monkeypatch.setattr(Runner, "run", note)

    async def scenario(engine: AutoregressiveEngine) -> None:
        async with aclosing(engine.refine(request(PROMPT, max_tokens=400))) as events:
            await anext(events)
        await refined(engine, request(PROMPT[:5], max_tokens=4))
        first = next(i for i, lengths in enumerate(seen) if 5 in lengths)
        assert not any(40 in lengths for lengths in seen[first:])

    serve(models, scenario)


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(models: Pair, monkeypatch: pytest.MonkeyPatch):
    plainly, broken = Runner.run, threading.Event()

    def fails_once(*args: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("a bad step")
        return plainly(*args)

    monkeypatch.setattr(Runner, "run", fails_once)
    single = answer(models.core(), PROMPT, max_tokens=8)

    async def scenario(engine: AutoregressiveEngine) -> None:
        broken.set()
        with pytest.raises(RefineFailed, match="failed with RuntimeError") as failed:
            await refined(engine, request(PROMPT, max_tokens=8))
        assert "a bad step" in str(failed.value.__cause__)
        assert engine.load().state == "ready"
        assert essence(await refined(engine, request(PROMPT, max_tokens=8))) == essence(single)

    serve(models, scenario)


def test_a_broken_engine_says_so_and_refuses(models: Pair, monkeypatch: pytest.MonkeyPatch):
    async def scenario(engine: AutoregressiveEngine) -> None:
        monkeypatch.setattr("ar_engine.attention.paged_attention", lambda *_: 1 / 0)
        with pytest.raises(RefineFailed):
            await refined(engine, request(PROMPT))
        await until(lambda: engine.load().state != "ready")
        assert (engine.load().state, engine.load().detail) == ("failed", "ZeroDivisionError: division by zero")
        with pytest.raises(RefineEngineClosed, match="got one that is failed"):
            await refined(engine, request(PROMPT))
        with pytest.raises(RefineEngineClosed):
            await engine.score(score_request(PROMPT, [20]))

    serve(models, scenario)


@pytest.mark.parametrize("drain_s", [60.0, 0.0])
def test_closing_drains_or_cancels(models: Pair, drain_s: float):
    single = answer(models.core(), PROMPT, max_tokens=60) if drain_s else None

    async def scenario(engine: AutoregressiveEngine) -> None:
        running = asyncio.create_task(refined(engine, request(PROMPT, max_tokens=60 if drain_s else 400)))
        await until(lambda: engine.load().running == 1)
        closing = asyncio.create_task(engine.close(drain_s))
        await asyncio.sleep(0)
        with pytest.raises(RefineEngineClosed):
            await refined(engine, request(PROMPT))
        if single:
            assert essence(await running) == essence(single)
        else:
            with pytest.raises(RefineEngineClosed, match="shutting down"):
                await running
        await closing

    serve(models, scenario)


def test_rejected_requests_leave_the_others_untouched(models: Pair):
    single = answer(models.core(), PROMPT, max_tokens=8)

    async def scenario(engine: AutoregressiveEngine) -> None:
        running = asyncio.create_task(refined(engine, request(PROMPT, max_tokens=8)))
        wishes: tuple[tuple[dict[str, Any], str], ...] = (
            ({"top_p": 2.0}, "expected 0 < top_p <= 1, got 2.0"),
            ({"n": 17}, "expected n of 1 to 16, got 17"),
            ({"max_tokens": 600}, "expected at most 512 tokens in all, got a prompt of 40 and 600 answer tokens"),
        )
        for wish, message in wishes:
            with pytest.raises(RefineRejected, match=message):
                await refined(engine, request(PROMPT, **wish))
        with pytest.raises(RefineRejected, match="got a prompt of 40 and 473 answer tokens"):
            await engine.score(score_request(PROMPT, [20] * 473))
        assert essence(await running) == essence(single)

    serve(models, scenario)


def test_the_shipped_checkpoint_answers():
    settings = RefineSettings(model=str(store.path("refine")))

    async def scenario() -> None:
        engine = AutoregressiveEngine(settings)
        assert (engine.load().state, engine.load().context_tokens) == ("loading", 0)
        with pytest.raises(RefineEngineClosed, match="got one that is loading"):
            await refined(engine, RefineRequest(request_id="r", messages=told("hi")))
        await engine.start()
        load = engine.load()
        assert (load.state, load.context_tokens, load.capacity, load.images) == ("ready", 2048, 16, False)
        assert (load.step_s, load.background) == (0.0, 0)
        assert load.modes == ("exact", "typical", "polish", "fresh")
        question = told("How much is the lamp?")
        fresh = await refined(engine, RefineRequest(request_id="r", messages=question))
        assert (fresh.text, fresh.finish_reason) == ("The lamp costs $45.", "stop")
        assert engine.load().step_s > 0
        core = engine._loop.worker
        assert isinstance(core, Core)
        draft = draft_of(fresh.token_ids, core.prompts.fingerprint)
        again = await refined(engine, RefineRequest(request_id="r", messages=question, draft=draft))
        assert (again.text, again.kept_tokens, again.forwards) == (fresh.text, len(fresh.token_ids), 1)
        score = await engine.score(ScoreRequest(request_id="s", messages=question, draft=draft))
        assert score.agreeing_prefix == len(draft.token_ids)
        with pytest.raises(RefineRejected, match="at most 2048 tokens in all"):
            await refined(engine, RefineRequest(request_id="r", messages=told("7" * 2048)))
        await engine.close()

    asyncio.run(scenario())


def test_what_is_no_causal_language_model_fails_to_start_and_says_why():
    async def scenario() -> None:
        engine = AutoregressiveEngine(RefineSettings(model=str(store.path("draft"))))
        with pytest.raises(RefineFailed, match=r"could not be loaded: .* expected a causal language model"):
            await engine.start()
        assert engine.load().state == "failed"
        await engine.close()

    asyncio.run(scenario())
