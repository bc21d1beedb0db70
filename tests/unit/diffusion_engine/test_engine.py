"""The async engine over the real core: concurrency, cancellation, deadlines, failures, closing. The model is tiny and random."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from demo_models import store
from diffusion_engine.api import (
    CanvasUpdate,
    DraftDeadline,
    DraftEngineClosed,
    DraftFailed,
    DraftOverloaded,
    DraftRejected,
    DraftRequest,
    DraftResult,
    DraftSettings,
)
from diffusion_engine.engine import DiffusionEngine
from diffusion_engine.model import Model
from diffusion_engine.runner import Runner
from tests.unit.diffusion_engine.checkpoints import save, tiny_config, tiny_model
from tests.unit.diffusion_engine.engines import SAMPLING, alone, essence, load_model, make_core

PROMPT = [(11 * i) % 150 + 3 for i in range(40)]
MANY = replace(SAMPLING, max_tokens=400)
T = TypeVar("T")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(tiny_model(tiny_config(), seed=3), folder)
    return load_model(folder)


def request(prompt: list[int] = PROMPT, max_tokens: int = 16, **wish: Any) -> DraftRequest:
    messages = ({"role": "user", "content": " ".join(map(str, prompt))},)
    return DraftRequest(request_id="r", messages=messages, max_tokens=max_tokens, **wish)


def serve(model: Model, scenario: Callable[[DiffusionEngine], Awaitable[T]], **settings: Any) -> T:
    """Run a scenario against a started engine, and close it."""

    async def whole() -> T:
        engine = DiffusionEngine(
            DraftSettings(**settings), lambda given: make_core(model, MANY, max_running=given.max_running)
        )
        await engine.start()
        try:
            return await scenario(engine)
        finally:
            await engine.close()
            assert engine.load().state in ("closed", "failed")

    return asyncio.run(asyncio.wait_for(whole(), 60))


async def drafted(engine: DiffusionEngine, asked: DraftRequest) -> DraftResult:
    events = [event async for event in engine.draft(asked)]
    assert isinstance(events[-1], DraftResult)
    return events[-1]


async def idle(engine: DiffusionEngine) -> None:
    """Wait until the engine has nothing left to do."""
    while engine.load().running or engine.load().waiting:
        await asyncio.sleep(0.001)


def concurrent(model: Model, count: int, seed: int) -> None:
    """Of many requests at once, some leave at random moments; all others get what they get alone, and every slot is free."""
    chance = random.Random(seed)
    asked = [
        request(
            PROMPT[: chance.randint(1, 40)],
            seed=i,
            candidates=chance.choice((1, 1, 1, 2)),
            priority=chance.choice((0, 1, 2)),
            updates=True,
        )
        for i in range(count)
    ]
    leaves_after = [chance.randint(0, 4) if chance.random() < 0.3 else None for _ in asked]

    async def one(engine: DiffusionEngine, asked: DraftRequest, leaves_after: int | None) -> list[DraftResult] | None:
        seen = []
        async with aclosing(engine.draft(asked)) as events:
            if leaves_after == 0:
                return None
            async for event in events:
                seen.append(event)
                if len(seen) == leaves_after:
                    return None
        return [event for event in seen if isinstance(event, DraftResult)]

    async def scenario(engine: DiffusionEngine) -> list[list[DraftResult] | None]:
        results = await asyncio.gather(*(one(engine, *pair) for pair in zip(asked, leaves_after, strict=True)))
        await idle(engine)
        return results

    results = serve(model, scenario, max_running=7)
    assert sum(result is None for result in results) >= count // 8
    for i, result in enumerate(results):
        if result is not None:
            prompt = [int(word) for word in asked[i].messages[0]["content"].split()]
            first = next(one for one in result if one.candidate == 0)
            assert essence(first) == essence(alone(model, prompt, seed=i))


def test_sixty_four_at_once_and_a_third_leaves(model: Model) -> None:
    concurrent(model, 64, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_sixty_four_at_once_and_a_third_leaves_again_and_again(model: Model, seed: int) -> None:
    concurrent(model, 64, seed)


def test_a_full_queue_refuses_and_says_when_to_come_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, run = threading.Event(), Runner.run
    monkeypatch.setattr(Runner, "run", lambda *args: gate.wait(30) and run(*args))

    async def scenario(engine: DiffusionEngine) -> None:
        tasks = [asyncio.create_task(drafted(engine, request()))]
        while not engine.load().running:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(drafted(engine, request(priority=i))) for i in range(3)]
        while engine.load().waiting < 3:
            await asyncio.sleep(0.001)
        with pytest.raises(DraftOverloaded, match="at most 3 requests waiting") as refused:
            await drafted(engine, request())
        assert refused.value.retry_after_s > 0
        gate.set()
        while not engine.load().background:  # known once the worker has read its mailbox
            await asyncio.sleep(0.001)
        assert len(await asyncio.gather(*tasks)) == 4

    serve(model, scenario, max_running=1, max_waiting=3)


def test_a_deadline_ends_a_draft_with_its_finished_canvases_or_says_that_there_are_none(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(engine: DiffusionEngine) -> None:
        with pytest.raises(DraftDeadline, match=r"within 0\.0 s, got no finished canvas"):
            await drafted(engine, request(deadline_s=0.0))
        begun = request(max_tokens=400, deadline_s=30.0, updates=True)
        async with aclosing(engine.draft(begun)) as events:
            async for event in events:
                if isinstance(event, CanvasUpdate) and event.canvas == 2:
                    late.set()
                if isinstance(event, DraftResult):
                    assert event.finish_reason == "deadline"
                    assert 16 <= len(event.token_ids) == 8 * len(event.signals.steps) < 400
                    return
        raise AssertionError("no result")

    late = threading.Event()
    monkeypatch.setattr("diffusion_engine.core.monotonic", lambda: monotonic() + (60.0 if late.is_set() else 0.0))
    serve(model, scenario)


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, broken = Model.forward, threading.Event()

    def fails_once(*args: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("a bad step")
        return forward(*args)

    monkeypatch.setattr(Model, "forward", fails_once)

    async def scenario(engine: DiffusionEngine) -> None:
        broken.set()
        with pytest.raises(DraftFailed, match="failed with RuntimeError") as failed:
            await drafted(engine, request(seed=1))
        assert "a bad step" in str(failed.value.__cause__)
        assert engine.load().state == "ready"
        assert essence(await drafted(engine, request(seed=1))) == essence(alone(model, PROMPT, seed=1))

    serve(model, scenario)


def test_a_broken_engine_says_so_and_refuses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(engine: DiffusionEngine) -> None:
        monkeypatch.setattr(Model, "forward", lambda *_: 1 / 0)
        with pytest.raises(DraftFailed):
            await drafted(engine, request())
        while engine.load().state == "ready":
            await asyncio.sleep(0.001)
        assert (engine.load().state, engine.load().detail) == ("failed", "ZeroDivisionError: division by zero")
        with pytest.raises(DraftEngineClosed, match="got one that is failed"):
            await drafted(engine, request())

    serve(model, scenario)


@pytest.mark.parametrize("drain_s", [30.0, 0.0])
def test_closing_drains_or_cancels(model: Model, drain_s: float) -> None:
    async def scenario(engine: DiffusionEngine) -> None:
        running = asyncio.create_task(drafted(engine, request(max_tokens=400, seed=2)))
        while not engine.load().running:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(engine.close(drain_s))
        await asyncio.sleep(0)
        with pytest.raises(DraftEngineClosed):
            await drafted(engine, request())
        if drain_s:
            single = alone(model, PROMPT, MANY, seed=2)
            assert (await running).token_ids == single.token_ids
        else:
            with pytest.raises(DraftEngineClosed, match="shutting down"):
                await running
        await closing

    serve(model, scenario)


def test_the_shipped_checkpoint_answers(tmp_path: Path) -> None:
    async def scenario() -> list[DraftResult]:
        engine = DiffusionEngine(DraftSettings(model=str(store.path("draft"))))
        assert engine.load().state == "loading"
        await engine.start()
        assert (engine.load().state, engine.load().context_tokens) == ("ready", 2048)
        assert (engine.load().step_s, engine.load().background) == (0.0, 0)
        asked = [{"role": "user", "content": "How much is the lamp?"}], [{"role": "user", "content": "hi"}]
        results = [await drafted(engine, DraftRequest(request_id="d", messages=tuple(messages))) for messages in asked]
        assert engine.load().step_s > 0
        with pytest.raises(DraftRejected, match="at most 2048 tokens in all"):
            await drafted(engine, DraftRequest(request_id="d", messages=({"role": "user", "content": "7" * 2048},)))
        await engine.close()
        return results

    price, greeting = asyncio.run(scenario())
    assert price.text == "The lamp costs $45."
    assert price.finish_reason == greeting.finish_reason == "stop"
    assert price.signals.converged == (True,)


def test_what_is_no_diffusion_gemma_is_refused_by_name() -> None:
    async def scenario() -> None:
        engine = DiffusionEngine(DraftSettings(model=str(store.path("refine"))))
        with pytest.raises(DraftFailed, match=r"expected a DiffusionGemma checkpoint .*, got gemma4_text"):
            await engine.start()
        assert engine.load().state == "failed"
        await engine.close()

    asyncio.run(scenario())
