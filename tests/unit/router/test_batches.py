"""Batches on the disk, and the runner that works on them, with scripted answers in place of a gateway."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_engine.api import DraftOverloaded
from router.errors import BadRequest, BudgetSpent, Conflict, NeverFits, NotFound, Overloaded, RateLimited, UnknownModel
from router.serving import batch_lines
from router.serving.batch_results import Results
from router.serving.batch_runner import BatchRunner
from router.serving.messages import BACKGROUND, Caller, Limits
from router.settings import BatchSettings
from router.state import disk
from router.state.batches import Batch, BatchStore
from router.state.files import FileStore

CHAT = "/v1/chat/completions"
ACME = Caller(key_id="k1", tenant="acme", limits=Limits(tokens_per_min=5))
LOOK_S = 0.01


class Clock:
    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"model": "draftgate", "messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | changes


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class Answers:
    """Answers with the question, and keeps who asked what."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.raising: dict[str, list[Exception]] = {}  # by question, before it is answered
        self.gate: asyncio.Event | None = None  # nothing is answered before it is set
        self.held: set[str] = set()  # questions that are never answered
        self.running = 0
        self.most = 0

    async def __call__(self, body: Any, caller: Caller, **how: Any) -> dict[str, Any]:
        question = body["messages"][0]["content"]
        self.asked.append(question)
        self.calls.append({"caller": caller, **how})
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
                await asyncio.to_thread(int)  # in line behind whatever another batch has in a thread
            if question in self.held:
                await asyncio.Event().wait()
            if errors := self.raising.get(question):
                raise errors.pop(0)
        finally:
            self.running -= 1
        details = {"prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 2}}
        return {"text": f"re {question}", "usage": {"prompt_tokens": 3, "completion_tokens": 4, **details}}


class Desk:
    """A folder with files and batches, as one process sees it."""

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.files = FileStore(root / "files", 1e6, clock)
        self.batches = BatchStore(root / "batches", self.files, 1e6, clock)
        self.root = root

    def put(self, content: bytes, caller: Caller = ACME) -> str:
        place = self.root / disk.new_id("new")
        place.write_bytes(content)
        return self.files.add(caller.tenant, place, "in.jsonl", "batch").id

    def make(self, *lines: Any, caller: Caller = ACME) -> str:
        return self.batches.create(caller, self.put(jsonl(*lines), caller), CHAT, {"for": "test"}).id

    def results(self, file_id: str | None, caller: Caller = ACME) -> dict[str, Any]:
        if file_id is None:
            return {}
        read = [json.loads(text) for text in self.files.path(caller.tenant, file_id).read_bytes().splitlines()]
        by_id = {each["custom_id"]: each for each in read}
        assert len(by_id) == len(read)
        return by_id

    @asynccontextmanager
    async def running(self, answers: Any, slots: int = 4) -> AsyncIterator[BatchRunner]:
        def check_model(caller: Caller, model: str) -> None:
            if model != "draftgate":
                raise UnknownModel("No such model.", param="model")

        batch = BatchSettings(max_running=slots)
        runner = BatchRunner(self.batches, {CHAT: answers}, check_model, batch, 10_000, self.clock, LOOK_S)
        task = asyncio.create_task(runner.run_forever())
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def ended(self, batch_id: str, caller: Caller = ACME) -> Batch:
        batch = await self.reaches(batch_id, "completed", "failed", "expired", "cancelled", caller=caller)
        while any(folder.name == batch_id for folder in self.batches.unfinished()):
            await asyncio.sleep(LOOK_S)
        return batch

    async def reaches(self, batch_id: str, *statuses: str, caller: Caller = ACME) -> Batch:
        while (batch := self.batches.get(caller.tenant, batch_id)).status not in statuses:
            await asyncio.sleep(LOOK_S)
        return batch


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, Clock())


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_every_line_is_answered_once(desk: Desk) -> None:
    answers = Answers()
    names = [f"q{n}" for n in range(2_000)]

    async def test() -> None:
        batch_id = desk.make(*map(line, names))
        assert desk.batches.get("acme", batch_id).status == "validating"
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        counts = msgspec.to_builtins(batch.request_counts)
        assert (batch.status, counts) == ("completed", {"total": 2_000, "completed": 2_000, "failed": 0})
        assert (batch.model, batch.metadata, batch.errors, batch.error_file_id) == (
            "draftgate",
            {"for": "test"},
            None,
            None,
        )
        assert msgspec.to_builtins(batch.usage) == {
            "input_tokens": 6_000,
            "input_tokens_details": {"cached_tokens": 2_000},
            "output_tokens": 8_000,
            "output_tokens_details": {"reasoning_tokens": 4_000},
            "total_tokens": 14_000,
        }
        times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert times == (desk.clock(),) * 4
        results = desk.results(batch.output_file_id)
        assert results.keys() == set(names)
        assert sorted(answers.asked) == sorted(names)
        for name, result in results.items():
            response = result["response"]
            assert (result["error"], response["status_code"], response["body"]["text"]) == (None, 200, f"re {name}")
            assert result["id"] == f"batch_req_{response['request_id']}"
        assert answers.most == 4
        assert desk.batches.unfinished() == []

    run(test)


def test_lines_are_asked_for_the_caller_and_in_the_background(desk: Desk) -> None:
    answers = Answers()

    async def test() -> None:
        batch_id = desk.make(line("a"))
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        request_id = desk.results(batch.output_file_id)["a"]["response"]["request_id"]
        timeout_s = batch_lines.TIMEOUT_S
        expected = {"caller": ACME, "request_id": request_id, "priority": BACKGROUND, "timeout_s": timeout_s}
        assert answers.calls == [expected]

    run(test)


def test_errors_go_to_their_own_file(desk: Desk) -> None:
    answers = Answers()
    answers.raising = {
        "bad": [BadRequest("no", param="n")],
        "spent": [BudgetSpent("gone")],
        "large": [NeverFits("too much for any minute")],
        "broken": [RuntimeError("/x")],
    }

    async def test() -> None:
        batch_id = desk.make(*map(line, ["good", *answers.raising]))
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        assert batch.status == "completed"
        assert msgspec.to_builtins(batch.request_counts) == {"total": 5, "completed": 1, "failed": 4}
        assert desk.results(batch.output_file_id).keys() == {"good"}
        failures = desk.results(batch.error_file_id)
        assert {name: each["response"]["status_code"] for name, each in failures.items()} == {
            "bad": 400,
            "spent": 429,
            "large": 429,
            "broken": 500,
        }
        assert failures["bad"]["response"]["body"] == {
            "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
        }
        assert "/x" not in str(failures)

    run(test)


def test_a_busy_gateway_is_asked_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines.random, "uniform", lambda *_: 0.001)
    answers = Answers()
    answers.raising = {"a": [Overloaded("full"), RateLimited("later", retry_after_s=3), DraftOverloaded("full", 1.0)]}

    async def test() -> None:
        batch_id = desk.make(line("a"), line("b"))
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        assert Counter(answers.asked) == {"a": 4, "b": 1}
        assert desk.results(batch.output_file_id).keys() == {"a", "b"}
        assert batch.error_file_id is None

    run(test)


def test_batches_share_the_slots(desk: Desk) -> None:
    """A long batch doesn't keep a short one waiting, nor does one whose lines are all refused for now."""
    answers = Answers()
    answers.raising = {f"limited{n}": [RateLimited("later", retry_after_s=60)] for n in range(50)}

    async def test() -> None:
        limited = desk.make(*map(line, answers.raising))
        async with desk.running(answers):
            while len(answers.asked) < 4:
                await asyncio.sleep(LOOK_S)
            answers.gate = asyncio.Event()
            long = desk.make(*(line(f"long{n}") for n in range(3_000)))
            short = desk.make(line("short"))
            await desk.reaches(short, "in_progress")
            answers.gate.set()
            assert (await desk.ended(short)).status == (await desk.ended(long)).status == "completed"
            assert desk.batches.get("acme", limited).status == "in_progress"
        assert answers.asked.index("short") < 1_500

    run(test)


WRONG = [
    (b"", None, "empty_file"),
    (b"\n \n", None, "empty_file"),
    (jsonl(line("a")) + b"{", 2, "invalid_json_line"),
    (b"[" * 9_000, 1, "invalid_json_line"),
    (b'{"custom_id": "\xff"}\n', 1, "invalid_json_line"),
    (jsonl(line("a"), line("b"), line("a")), 3, "duplicate_custom_id"),
    (b"\n" + jsonl([]), 2, "invalid_request"),
    (jsonl({}), 1, "invalid_request"),
    (jsonl(line("")), 1, "invalid_request"),
    (jsonl(line("a", method="GET")), 1, "invalid_request"),
    (jsonl(line("a", url="/v1/completions")), 1, "invalid_url"),
    (jsonl(line("a", body=[])), 1, "invalid_request"),
    (jsonl(line("a", body={})), 1, "missing_required_parameter"),
    (jsonl(line("a", body={"model": "gpt"})), 1, "model_not_found"),
    (jsonl(line("a", body={"model": "draftgate", "stream": True})), 1, "invalid_request"),
    (jsonl(line("a", extra="x" * 10_000)), 1, "line_too_long"),
]


@pytest.mark.parametrize(
    ("content", "number", "code"), WRONG, ids=[f"{n}:{code}" for n, (_, _, code) in enumerate(WRONG)]
)
def test_a_wrong_line_fails_the_batch_before_it_begins(
    desk: Desk, content: bytes, number: int | None, code: str
) -> None:
    answers = Answers()

    async def test() -> None:
        batch_id = desk.batches.create(ACME, desk.put(content), CHAT, None).id
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        assert (batch.status, batch.failed_at, batch.output_file_id) == ("failed", desk.clock(), None)
        assert batch.errors is not None
        first = batch.errors.data[0]
        assert (first.line, first.code) == (number, code)
        assert answers.asked == []
        assert desk.batches.unfinished() == []

    run(test)


def test_all_wrong_lines_are_named_up_to_a_limit(desk: Desk) -> None:
    async def test() -> None:
        batch_id = desk.make(*[{}] * 500)
        async with desk.running(Answers()):
            batch = await desk.ended(batch_id)
        assert batch.errors is not None
        assert [error.line for error in batch.errors.data] == list(range(1, 101))

    run(test)


def test_a_batch_has_a_most_of_lines(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.serving.batch_check.MOST_LINES", 3)

    async def test() -> None:
        fits, not_ = desk.make(*map(line, "abc")), desk.make(*map(line, "abcd"))
        async with desk.running(Answers()):
            assert (await desk.ended(fits)).status == "completed"
            batch = await desk.ended(not_)
        assert batch.errors is not None
        assert [error.code for error in batch.errors.data] == ["too_many_requests"]

    run(test)


def test_a_cancelled_batch_keeps_what_is_answered(desk: Desk) -> None:
    answers = Answers()
    answers.held = {f"q{n}" for n in range(3, 100)}

    async def test() -> None:
        batch_id = desk.make(*(line(f"q{n}") for n in range(100)))
        async with desk.running(answers):
            while answers.running < 4 or len(answers.asked) < 7:
                await asyncio.sleep(LOOK_S)
            cancelling = desk.batches.cancel("acme", batch_id)
            assert (cancelling.status, cancelling.cancelling_at is None) == ("cancelling", False)
            batch = await desk.ended(batch_id)
            assert answers.running == 0
        assert (batch.status, batch.cancelled_at) == ("cancelled", desk.clock())
        assert batch.cancelling_at == cancelling.cancelling_at
        assert msgspec.to_builtins(batch.request_counts) == {"total": 100, "completed": 3, "failed": 0}
        assert desk.results(batch.output_file_id).keys() == {"q0", "q1", "q2"}
        with pytest.raises(Conflict):
            desk.batches.cancel("acme", batch_id)

    run(test)


def test_a_batch_can_be_cancelled_before_it_begins(desk: Desk) -> None:
    async def test() -> None:
        batch_id = desk.make(line("a"))
        desk.batches.cancel("acme", batch_id)
        assert desk.batches.cancel("acme", batch_id).status == "cancelling"  # again changes nothing
        answers = Answers()
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        assert (batch.status, batch.output_file_id, answers.asked) == ("cancelled", None, [])

    run(test)


def test_after_its_window_a_batch_ends_with_what_there_is(tmp_path: Path) -> None:
    clock = Clock()
    desk = Desk(tmp_path, clock)
    answers = Answers()
    answers.held = {"b", "c"}

    async def test() -> None:
        batch_id = desk.make(*map(line, "abc"))
        async with desk.running(answers):
            while answers.asked != ["a", "b", "c"]:
                await asyncio.sleep(LOOK_S)
            clock.now += 86_400
            batch = await desk.ended(batch_id)
        assert (batch.status, batch.expired_at) == ("expired", batch.expires_at)
        assert msgspec.to_builtins(batch.request_counts) == {"total": 3, "completed": 1, "failed": 2}
        assert desk.results(batch.output_file_id).keys() == {"a"}
        late = desk.results(batch.error_file_id)
        assert {name: (each["response"], each["error"]["code"]) for name, each in late.items()} == {
            "b": (None, "batch_expired"),
            "c": (None, "batch_expired"),
        }

    run(test)


def test_a_stopped_gateway_goes_on_where_it_was(desk: Desk) -> None:
    answers = Answers()
    answers.held = {f"q{n}" for n in range(20, 30)}

    async def test() -> None:
        batch_id = desk.make(*(line(f"q{n}") for n in range(30)))
        async with desk.running(answers) as runner:
            while answers.running < 4 or len(answers.asked) < 24:
                await asyncio.sleep(LOOK_S)
            runner.stop()
            while answers.running:
                await asyncio.sleep(0)
            assert desk.batches.get("acme", batch_id).status == "in_progress"
        again = Answers()
        async with desk.running(again):
            batch = await desk.ended(batch_id)
        assert sorted(again.asked) == sorted(answers.held)
        assert desk.results(batch.output_file_id).keys() == {f"q{n}" for n in range(30)}

    run(test)


def test_two_processes_do_not_work_on_the_same_batch(desk: Desk) -> None:
    one, other = Answers(), Answers()

    async def test() -> None:
        one.gate = other.gate = asyncio.Event()
        ids = [desk.make(*(line(f"{b}-{n}") for n in range(20))) for b in "xyz"]
        async with desk.running(one), desk.running(other):
            while one.running + other.running < 4:
                await asyncio.sleep(LOOK_S)
            one.gate.set()
            batches = [await desk.ended(batch_id) for batch_id in ids]
        assert sorted(one.asked + other.asked) == sorted(f"{b}-{n}" for b in "xyz" for n in range(20))
        assert all(len(desk.results(batch.output_file_id)) == 20 for batch in batches)

    run(test)


def test_a_crash_while_it_ends_leaves_each_file_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each of the steps of finishing in turn, the next process ends it the same way."""
    answers = Answers()
    answers.raising = {"bad": [BadRequest("no")]}
    steps = 0
    write_whole = disk.write_whole

    def crashing(path: Path, data: bytes) -> None:
        nonlocal steps
        write_whole(path, data)
        if b'"finalizing"' in data or path.name.startswith("file-"):
            steps += 1
            if steps <= 3:
                raise OSError("killed here")

    monkeypatch.setattr("router.serving.batch_runner.AGAIN_S", 0.0)

    async def test() -> None:
        batch_id = desk.make(line("good"), line("bad"))
        monkeypatch.setattr(disk, "write_whole", crashing)
        async with desk.running(answers):
            batch = await desk.ended(batch_id)
        assert steps > 3
        assert sorted(answers.asked) == ["bad", "good"]
        outputs = [file for file in desk.files.page("acme")[0] if file.purpose == "batch_output"]
        assert {file.id for file in outputs} == {batch.output_file_id, batch.error_file_id}
        assert desk.results(batch.output_file_id).keys() == {"good"}
        assert desk.results(batch.error_file_id).keys() == {"bad"}

    run(test)


def test_a_disk_that_fails_loses_no_batch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [OSError(28, "full"), OSError(28, "full")]
    add = disk.Appender.add

    def full(self: disk.Appender, text: bytes) -> None:
        if failing:
            add(self, text[: len(text) // 2])
            raise failing.pop()
        add(self, text)

    monkeypatch.setattr(disk.Appender, "add", full)
    monkeypatch.setattr("router.serving.batch_runner.AGAIN_S", 0.0)

    async def test() -> None:
        batch_id = desk.make(*(line(f"q{n}") for n in range(20)))
        async with desk.running(Answers()):
            batch = await desk.ended(batch_id)
        assert not failing
        assert desk.results(batch.output_file_id).keys() == {f"q{n}" for n in range(20)}

    run(test)


def test_a_deleted_input_changes_nothing(desk: Desk) -> None:
    async def test() -> None:
        batch_id = desk.make(line("a"))
        desk.files.delete("acme", desk.batches.get("acme", batch_id).input_file_id)
        async with desk.running(Answers()):
            assert (await desk.ended(batch_id)).status == "completed"

    run(test)


def test_tenants_do_not_see_each_others_batches(desk: Desk) -> None:
    file_id = desk.put(jsonl(line("a")))
    batch_id = desk.batches.create(ACME, file_id, CHAT, None).id
    for tenant in ("", "other", "acme/", "../acme"):
        assert desk.batches.page(tenant) == ([], False)
        with pytest.raises(NotFound):
            desk.batches.get(tenant, batch_id)
        with pytest.raises(NotFound):
            desk.batches.cancel(tenant, batch_id)
        with pytest.raises(NotFound):
            desk.batches.create(Caller(tenant=tenant), file_id, CHAT, None)
    assert desk.batches.get("acme", batch_id).status == "validating"


def test_results_are_no_input(desk: Desk) -> None:
    async def test() -> None:
        batch_id = desk.make(line("a"))
        async with desk.running(Answers()):
            batch = await desk.ended(batch_id)
        assert batch.output_file_id is not None
        with pytest.raises(BadRequest):
            desk.batches.create(ACME, batch.output_file_id, CHAT, None)

    run(test)


def test_pages_show_the_newest_first(desk: Desk) -> None:
    ids = [desk.make(line("a")) for _ in range(5)][::-1]
    seen: list[str] = []
    more = True
    while more:
        page, more = desk.batches.page("acme", after=seen[-1] if seen else "", limit=2)
        seen += [batch.id for batch in page]
    assert seen == ids


def test_old_batches_are_swept_away(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 4e9  # all that is made now is older by far
    desk = Desk(tmp_path, clock)
    batch_id = desk.make(line("a"))
    desk.batches.sweep()
    with pytest.raises(NotFound):
        desk.batches.get("acme", batch_id)
    assert desk.batches.unfinished() == []


GOOD = [
    msgspec.json.encode(batch_lines.result(f"q{n}", "r", 200, {"usage": {"prompt_tokens": 1}, "text": "é" * n})) + b"\n"
    for n in range(6)
]


@settings(deadline=None)
@given(
    cut=st.integers(0, sum(map(len, GOOD))),
    tail=st.binary(max_size=40),
    zeroed=st.booleans(),
)
def test_a_torn_file_loses_only_what_was_torn(
    tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes, zeroed: bool
) -> None:
    """Cut anywhere, with anything after the cut, the whole lines before it are kept and no other is made up."""
    folder = tmp_path_factory.mktemp("torn")
    path = folder / "output.jsonl"
    path.write_bytes(b"".join(GOOD)[:cut] + (b"\0" * len(tail) if zeroed else tail.replace(b"\n", b"")))
    whole = sum(cut >= sum(map(len, GOOD[: n + 1])) for n in range(len(GOOD)))
    results = Results(path, folder / "errors.jsonl")
    assert results.done == {f"q{n}" for n in range(whole)}
    assert results.completed == whole
    results.add(batch_lines.result("new", "r", 200, {}))
    results.close()
    assert path.read_bytes().startswith(b"".join(GOOD[:whole]))
    again = Results(path, folder / "errors.jsonl")
    assert again.done == results.done
    again.close()


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"") + b"\n"), max_size=20), st.integers(1, 7))
@settings(deadline=None)
def test_lines_read_in_pieces_are_the_lines_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], count: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "in"
    path.write_bytes(b"".join(lines))
    read: list[bytes] = []
    offset = 0
    while True:
        piece, offset = batch_lines.read_lines(path, offset, count, 100)
        assert len(piece) <= count
        if not piece:
            break
        read += piece
    assert read == [text for text in lines if not text.isspace()]
