"""The worker thread: order, bounds, cancellation, deadlines, failures. The model is a plain object."""

import asyncio
import threading

import pytest

from engine_core.thread import EngineThread
from tests.unit.engine_core.errors import ERRORS, Closed, Deadline, Failed, Overloaded


def engine(load=lambda: "model", max_waiting=8):
    return EngineThread("test", load, ERRORS, max_waiting)


async def collect(thread, work, deadline_s=None):
    return [event async for event in thread.stream(work, deadline_s)]


def count_to(number):
    def work(model, emit):
        for at in range(number):
            emit(at)
        return f"{model} done"

    return work


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 20))


def test_events_arrive_in_order_and_the_result_comes_last():
    async def scenario():
        thread = engine()
        await thread.start()
        assert await collect(thread, count_to(3)) == [0, 1, 2, "model done"]
        await thread.close()

    run(scenario())


def test_work_before_the_model_is_loaded_is_refused():
    async def scenario():
        gate = threading.Event()
        thread = engine(load=lambda: gate.wait(10) and "model")
        starting = asyncio.create_task(thread.start())
        await asyncio.sleep(0)
        assert thread.status().state == "loading"
        with pytest.raises(Closed, match="ready"):
            await collect(thread, count_to(1))
        gate.set()
        await starting
        assert thread.status().state == "ready"
        await thread.close()

    run(scenario())


def test_a_model_that_does_not_load_fails_start_and_says_why():
    def load():
        raise OSError("no such checkpoint")

    async def scenario():
        thread = engine(load)
        with pytest.raises(Failed, match="no such checkpoint"):
            await thread.start()
        assert thread.status().state == "failed"
        with pytest.raises(Closed):
            await collect(thread, count_to(1))
        await thread.close()

    run(scenario())


def test_two_engines_never_load_at_the_same_time():
    loading, most = [], []

    def load():
        loading.append(1)
        most.append(len(loading))
        threading.Event().wait(0.05)
        loading.pop()
        return "model"

    async def scenario():
        threads = [engine(load) for _ in range(3)]
        await asyncio.gather(*(thread.start() for thread in threads))
        await asyncio.gather(*(thread.close() for thread in threads))

    run(scenario())
    assert most == [1, 1, 1]


def test_an_error_in_one_request_leaves_the_next_untouched():
    def broken(model, emit):
        raise ZeroDivisionError

    def wanted(model, emit):
        raise Deadline("on purpose")

    async def scenario():
        thread = engine()
        await thread.start()
        with pytest.raises(Failed) as failure:
            await collect(thread, broken)
        assert isinstance(failure.value.__cause__, ZeroDivisionError)
        with pytest.raises(Deadline, match="on purpose"):
            await collect(thread, wanted)
        assert await collect(thread, count_to(1)) == [0, "model done"]
        await thread.close()

    run(scenario())


def test_a_cancelled_iterator_ends_the_work_at_its_next_event():
    ended = threading.Event()

    def endless(model, emit):
        try:
            while True:
                emit("more")
        finally:
            ended.set()

    async def scenario():
        thread = engine()
        await thread.start()
        events = thread.stream(endless, None)
        assert await anext(events) == "more"
        await events.aclose()
        assert await asyncio.to_thread(ended.wait, 10)
        assert await collect(thread, count_to(1)) == [0, "model done"]
        await thread.close()

    run(scenario())


def test_a_request_cancelled_while_it_waits_never_runs():
    gate, ran = threading.Event(), []

    async def scenario():
        thread = engine()
        await thread.start()
        first = asyncio.create_task(collect(thread, lambda model, emit: gate.wait(10)))
        while not thread.status().running:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(collect(thread, lambda model, emit: ran.append("second")))
        while not thread.status().waiting:
            await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert thread.status().waiting == 0
        gate.set()
        await first
        assert await collect(thread, count_to(0)) == ["model done"]
        assert ran == []
        await thread.close()

    run(scenario())


def test_one_request_more_than_the_queue_holds_is_refused_with_a_time_to_retry():
    gate = threading.Event()

    async def scenario():
        thread = engine(max_waiting=1)
        await thread.start()
        running = asyncio.create_task(collect(thread, lambda model, emit: gate.wait(10)))
        while not thread.status().running:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(collect(thread, count_to(0)))
        while not thread.status().waiting:
            await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as refusal:
            await collect(thread, count_to(0))
        assert refusal.value.retry_after_s > 0
        gate.set()
        await asyncio.gather(running, waiting)
        await thread.close()

    run(scenario())


def test_a_deadline_ends_a_request_that_runs_and_frees_the_thread():
    ended = threading.Event()

    def slow(model, emit):
        try:
            while True:
                ended.wait(0.01)
                emit("tick")
        finally:
            ended.set()

    async def scenario():
        thread = engine()
        await thread.start()
        with pytest.raises(Deadline, match=r"within 0\.2 s"):
            await collect(thread, slow, deadline_s=0.2)
        assert await collect(thread, count_to(1)) == [0, "model done"]
        assert ended.is_set()
        await thread.close()

    run(scenario())


def test_close_refuses_what_waits_and_ends_what_runs():
    gate = threading.Event()

    def running(model, emit):
        emit("on it")
        gate.wait(10)
        emit("still here")

    async def scenario():
        thread = engine()
        await thread.start()
        first = thread.stream(running, None)
        assert await anext(first) == "on it"
        second = asyncio.create_task(collect(thread, count_to(1)))
        while not thread.status().waiting:
            await asyncio.sleep(0.01)
        closing = asyncio.create_task(thread.close())
        with pytest.raises(Closed):
            await second
        with pytest.raises(Closed):
            await anext(first)
        gate.set()
        await closing
        assert thread.status().state == "closed"
        with pytest.raises(Closed):
            await collect(thread, count_to(1))

    run(scenario())
