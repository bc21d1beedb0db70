"""The core with a scripted runner: who is told what and when, and that nothing stays behind."""

import contextlib
import time
from collections.abc import Callable
from collections.abc import Sequence as Listed
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from diffusion_engine.api import CanvasUpdate, DraftDeadline, DraftRejected, DraftRequest, DraftResult
from diffusion_engine.core import Core, Job
from diffusion_engine.runner import Stepped
from diffusion_engine.scheduler import Plan, Scheduler
from diffusion_engine.sequence import CanvasReport, Sampling, Sequence
from engine_core.chat import ChatTokenizer
from engine_core.scheduler import Budget

C = 8
END = ord(".")
CONTEXT = 200
BUDGET = Budget(
    slots=3,
    encode_rows=32,
    windows={"full_attention": None, "sliding_attention": 20},
    pages={"full_attention": 61, "sliding_attention": 31},
)
SAMPLING = Sampling(
    max_steps=10,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    confidence=0.1,
    stability=1,
    max_tokens=40,
    end_ids=(END,),
    give_up=False,
)


class Letters(ChatTokenizer):
    """A token for each letter; a dot ends an answer."""

    def __init__(self) -> None:
        self.fingerprint = "letters"
        self.breaks_at = "nothing"

    def prompt(self, messages: Any, tools: Any = (), **variables: Any) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Listed[int], special: bool = False) -> str:
        text = "".join(map(chr, ids))
        if self.breaks_at in text:
            raise RuntimeError("not a text")
        return text


class ScriptedRunner:
    """Writes what `says` says, a canvas in `takes` steps; keeps to the rules that a real runner relies on."""

    def __init__(self, says: Callable[[Sequence], str], takes: Callable[[Sequence], int]) -> None:
        self.says = says
        self.takes = takes
        self.plans: list[list[Sequence]] = []
        self.fails: Exception | None = None

    def run(self, plan: Plan, scheduler: Scheduler) -> list[Stepped]:
        slots = [sequence.slot for sequence in plan.sequences()]
        assert len(set(slots)) == len(slots)
        assert set(slots) <= set(range(BUDGET.slots))
        self.plans.append(plan.sequences())
        for sequence in plan.sequences():
            sequence.forwards += 1
        for sequence in plan.canvases:
            sequence.step += 1
        if self.fails:
            raise self.fails
        return [Stepped(one, one.step >= self.takes(one), 1.0) for one in plan.canvases]

    def report(self, sequence: Sequence, converged: bool) -> CanvasReport:
        some, steps = [0.5] * C, sequence.step
        return CanvasReport(self._ids(sequence), [-0.5] * C, some, some, [1] * C, steps, converged)

    def look(self, sequence: Sequence) -> tuple[list[int], list[bool]]:
        return self._ids(sequence), [i < sequence.step for i in range(C)]

    def probe(self) -> None:
        pass

    def _ids(self, sequence: Sequence) -> list[int]:
        assert sequence.slot >= 0
        written = len(sequence.tokens) - len(sequence.prompt)
        return [ord(letter) for letter in self.says(sequence)[written : written + C].ljust(C, ".")]


class Caller:
    """Who waits for a request."""

    def __init__(self) -> None:
        self.updates: list[CanvasUpdate] = []
        self.told: list[list[DraftResult] | Exception] = []
        self.job: Job | None = None

    @property
    def results(self) -> list[DraftResult]:
        (told,) = self.told
        assert isinstance(told, list)
        return told

    @property
    def error(self) -> Exception:
        (told,) = self.told
        assert isinstance(told, Exception)
        return told


class Desk:
    """A core, and what happens around it."""

    def __init__(
        self,
        says: Callable[[Sequence], str] = lambda one: "hello.",
        takes: Callable[[Sequence], int] = lambda one: 2,
        sampling: Sampling = SAMPLING,
    ) -> None:
        self.runner = ScriptedRunner(says, takes)
        self.scheduler = Scheduler(BUDGET)
        self.tokenizer = Letters()
        self.core = Core(self.runner, self.scheduler, self.tokenizer, sampling, C, CONTEXT)

    def ask(self, prompt: str = "question", deadline: float | None = None, **wishes: Any) -> Caller:
        caller = Caller()
        request = DraftRequest(request_id="r", messages=({"role": "user", "content": prompt},), **wishes)
        caller.job = self.core.add(
            request, update=caller.updates.append, done=caller.told.append, failed=caller.told.append, deadline=deadline
        )
        return caller

    def drop(self, caller: Caller) -> None:
        assert caller.job is not None
        self.core.drop(caller.job)

    def run(self) -> None:
        """Until nothing is left to do."""
        for _ in range(1000):
            if not self.core.busy:
                break
            self.core.step()
        self.check_empty()

    def check_empty(self) -> None:
        assert (self.core.busy, self.core.running, self.core.waiting) == (False, 0, 0)
        for kind, pool in self.scheduler.pools.items():
            assert (pool.in_use(), pool.available) == (0, BUDGET.pages[kind] - 1)


def test_an_answer_of_one_canvas() -> None:
    desk = Desk()
    caller = desk.ask()
    desk.run()
    (result,) = caller.results
    assert (result.text, result.finish_reason, result.prompt_tokens) == ("hello", "stop", 8)
    assert (result.signals.steps, result.signals.forwards) == ((2,), 2)
    assert result.elapsed_s >= 0
    assert caller.updates == []


def test_an_answer_of_several_canvases() -> None:
    desk = Desk(says=lambda one: "an answer of more than one canvas.")
    caller = desk.ask()
    desk.run()
    (result,) = caller.results
    assert (result.text, result.finish_reason) == ("an answer of more than one canvas", "stop")
    assert len(result.signals.steps) == 5


def test_an_answer_ends_at_the_most_tokens() -> None:
    desk = Desk(says=lambda one: "endless " * 20)
    asked, not_asked = desk.ask(max_tokens=11), desk.ask()
    desk.run()
    assert [(one.text, one.finish_reason) for one in asked.results] == [("endless end", "length")]
    assert len(not_asked.results[0].token_ids) == SAMPLING.max_tokens


def test_updates_come_after_every_step_to_whom_asked_for_them() -> None:
    desk = Desk(says=lambda one: "nine text.", takes=lambda one: 2)
    quiet, curious = desk.ask("a"), desk.ask("b", updates=True)
    desk.run()
    assert quiet.updates == []
    seen = [(one.candidate, one.canvas, one.step, one.text) for one in curious.updates]
    assert seen == [(0, 0, 1, "nine tex"), (0, 0, 2, "nine tex"), (0, 1, 1, "t"), (0, 1, 2, "t")]
    assert curious.updates[0].settled == (True,) + (False,) * 7
    assert all(len(one.settled) == len(one.token_ids) == len(one.text) for one in curious.updates)


def test_a_request_may_end_its_answer_by_tokens_of_its_own() -> None:
    desk = Desk(says=lambda one: "a,b.")
    caller = desk.ask(stop_token_ids=(ord(","),))
    desk.run()
    assert (caller.results[0].text, caller.results[0].finish_reason) == ("a", "stop")


def test_candidates_come_best_first_and_the_first_has_the_requests_seed() -> None:
    desk = Desk(says=lambda one: ["odd one.", "same.", "same."][one.candidate])
    caller = desk.ask(candidates=3, seed=7)
    job = caller.job
    assert job is not None
    seeds = [sequence.sampling.seed for sequence in job.group.sequences]
    desk.run()
    assert [(one.text, one.candidate) for one in caller.results] == [("same", 1), ("same", 2), ("odd one", 0)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    again = desk.ask(candidates=2, seed=7).job
    assert again is not None
    assert [sequence.sampling.seed for sequence in again.group.sequences] == seeds[:2]


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_seed_gives_every_candidate_a_valid_seed_of_its_own(seed: int) -> None:
    job = Desk().ask(candidates=3, seed=seed).job
    assert job is not None
    seeds = {sequence.sampling.seed for sequence in job.group.sequences}
    assert len(seeds) == 3
    for sequence in job.group.sequences:
        sequence.sampling.check()


def test_results_wait_for_the_last_candidate() -> None:
    desk = Desk(takes=lambda one: 1 + 3 * one.candidate)
    caller = desk.ask(candidates=2)
    while desk.core.running != 1:
        desk.core.step()
        assert caller.told == []
    desk.run()
    assert len(caller.results) == 2


def test_a_request_has_its_own_wishes_and_no_more_steps_than_the_checkpoint_allows() -> None:
    desk = Desk()
    job = desk.ask(max_steps=99, t_min=0.1, t_max=0.9, entropy_bound=0.3, confidence=0.0, stability=0, seed=3).job
    assert job is not None
    assert job.group.sequences[0].sampling == replace(
        SAMPLING, t_min=0.1, t_max=0.9, entropy_bound=0.3, confidence=0.0, stability=0, seed=3
    )
    fewer = desk.ask(max_steps=2).job
    assert fewer is not None
    assert fewer.group.sequences[0].sampling.max_steps == 2


def test_a_canvas_that_does_not_settle_stops_at_its_most_steps() -> None:
    desk = Desk(takes=lambda one: 99)
    caller = desk.ask(max_steps=4)
    desk.run()
    assert caller.results[0].signals.steps == (4,)
    assert caller.results[0].signals.converged == (False,)


def test_a_canvas_is_given_up_where_both_settings_and_request_allow_it() -> None:
    for wanted, allowed in ((True, True), (True, False), (False, True)):
        desk = Desk(takes=lambda one: 99, sampling=replace(SAMPLING, give_up=allowed))
        caller = desk.ask(give_up=wanted)
        desk.run()
        assert caller.results[0].finish_reason == ("unsettled" if wanted and allowed else "stop")


def test_infilling_fills_its_gaps() -> None:
    desk = Desk(says=lambda one: "ab.de.gh")
    caller = desk.ask(template=("ab", 1, "de", 2))
    job = caller.job
    assert job is not None
    (sequence,) = job.group.sequences
    assert sequence.given == [ord("a"), ord("b"), -1, ord("d"), ord("e"), -1, -1, END]
    desk.run()
    (result,) = caller.results
    assert (result.text, result.filled, result.finish_reason) == ("ab.de.g", (".", ".g"), "stop")


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"prompt": "x" * CONTEXT}, f"expected at most {CONTEXT} tokens in all, got a prompt of {CONTEXT}"),
        ({"prompt": "x" * 190, "max_tokens": 11}, "got a prompt of 190 and 11 answer tokens"),
        ({"max_tokens": -1}, "expected max_tokens of at least 1, got -1"),
        ({"max_tokens": 0}, "expected max_tokens of at least 1, got 0"),
        ({"max_steps": 0}, "expected max_steps of at least 1, got 0"),
        ({"max_steps": -3}, "expected max_steps of at least 1, got -3"),
        ({"t_min": 0.9}, "expected 0 <= t_min <= t_max < inf, got 0.9 and 0.8"),
        ({"stability": -1}, "expected stability of at least 0, got -1"),
        ({"seed": 2**63}, "expected a seed of 64 bits"),
        ({"candidates": 4}, "expected .* candidates, got 4"),
        ({"candidates": 0}, "expected .* candidates, got 0"),
        ({"candidates": -1}, "expected .* candidates, got -1"),
        ({"template": ("text",)}, "expected a template with a gap to fill, got none"),
        ({"template": (9,)}, "expected a template of at most 8 tokens, got 9"),
    ],
)
def test_what_can_not_be_served_is_refused_with_expected_and_got(wishes: dict[str, Any], message: str) -> None:
    desk = Desk()
    with pytest.raises(DraftRejected, match=message):
        desk.ask(**wishes)
    desk.check_empty()
    caller = desk.ask()
    desk.run()
    assert caller.results


def test_a_template_longer_than_the_most_tokens_is_refused_not_cut() -> None:
    desk = Desk(sampling=replace(SAMPLING, max_tokens=4))
    with pytest.raises(DraftRejected, match=r"expected .* at most 4 tokens, got 6"):
        desk.ask(template=("ab", 4))


def past() -> float:
    return time.monotonic() - 1


def test_a_deadline_before_the_first_canvas_is_finished_is_an_error() -> None:
    desk = Desk(says=lambda one: "a long answer.")
    late, in_time = desk.ask(deadline=past(), deadline_s=0.5), desk.ask()
    desk.run()
    assert isinstance(late.error, DraftDeadline)
    assert str(late.error) == "expected a draft within 0.5 s, got no finished canvas"
    assert in_time.results[0].text == "a long answer"


def test_a_deadline_ends_a_request_in_line() -> None:
    desk = Desk()
    running = desk.ask(candidates=3)
    desk.core.step()
    late, next_one = desk.ask(deadline=past()), desk.ask()
    desk.run()
    assert isinstance(late.error, DraftDeadline)
    assert len(running.results) == 3
    assert next_one.results


def test_background_that_pauses_is_ended_by_its_deadline_and_can_be_dropped() -> None:
    desk = Desk(takes=lambda one: 20)
    late, dropped = desk.ask(priority=2), desk.ask(priority=2)
    desk.core.step()
    user = desk.ask()
    desk.core.step()
    assert [len(plan) for plan in desk.runner.plans] == [2, 1]
    assert (desk.core.running, desk.core.background) == (3, 2)
    assert late.job is not None
    late.job.deadline = past()
    desk.drop(dropped)
    desk.core.step()
    assert isinstance(late.error, DraftDeadline)
    assert (desk.core.running, desk.core.background) == (1, 0)
    desk.run()
    assert user.results
    assert not dropped.told


def test_a_failed_step_does_not_cost_whoever_pauses() -> None:
    desk = Desk(takes=lambda one: 3)
    paused = desk.ask(priority=2)
    desk.core.step()
    failing = desk.ask()
    desk.runner.fails = ValueError("once")
    with pytest.raises(ValueError, match="once"):
        desk.core.step()
    desk.runner.fails = None
    assert isinstance(failing.error, ValueError)
    desk.run()
    assert paused.results[0].text == "hello"


def test_after_a_deadline_what_is_finished_is_the_result() -> None:
    desk = Desk(says=lambda one: "never ends " * 9, takes=lambda one: 1 if not one.reports else 99)
    caller = desk.ask()
    job = caller.job
    assert job is not None
    while not job.group.sequences[0].reports:
        desk.core.step()
    desk.core.step()  # in the second canvas
    job.deadline = past()
    desk.core.step()
    (result,) = caller.results
    assert (result.text, result.finish_reason) == ("never en", "deadline")
    assert len(result.token_logprobs) == 8
    desk.check_empty()


def test_after_a_deadline_finished_candidates_come_before_those_cut_off_and_without_those_that_have_nothing() -> None:
    says = ["short.", "this one takes longer.", "nothing."]
    desk = Desk(
        says=lambda one: says[one.candidate],
        takes=lambda one: 99 if one.candidate == 2 or (one.candidate == 1 and one.reports) else 1,
    )
    caller = desk.ask(candidates=3, max_steps=10)
    job = caller.job
    assert job is not None
    while not job.group.sequences[1].reports:
        desk.core.step()
    job.deadline = past()
    desk.core.step()
    assert [(one.text, one.finish_reason) for one in caller.results] == [("short", "stop"), ("this one", "deadline")]
    desk.check_empty()


def test_a_failed_step_costs_its_requests_and_nobody_else() -> None:
    desk = Desk()
    first, second, waiting = desk.ask(candidates=2), desk.ask(), desk.ask(candidates=2)
    desk.core.step()
    desk.runner.fails = ValueError("no more memory")
    with pytest.raises(ValueError, match="no more memory"):
        desk.core.step()
    assert first.error is second.error is desk.runner.fails
    assert waiting.told == []
    assert (desk.core.busy, desk.core.running, desk.core.waiting) == (True, 0, 1)
    desk.runner.fails = None
    desk.run()
    assert len(waiting.results) == 2


def test_a_result_that_can_not_be_made_is_an_error_to_whom_it_belongs_and_nobody_else() -> None:
    desk = Desk(says=lambda one: "broken." if one.prompt == [ord("b")] else "fine.")
    desk.tokenizer.breaks_at = "broken"
    caller, neighbour = desk.ask("b"), desk.ask("f")
    desk.run()
    assert isinstance(caller.error, RuntimeError)
    assert neighbour.results[0].text == "fine"


def test_a_late_result_that_can_not_be_made_is_an_error_too() -> None:
    desk = Desk(says=lambda one: "broken text", takes=lambda one: 1 if not one.reports else 9)
    desk.tokenizer.breaks_at = "broken"
    caller = desk.ask()
    job = caller.job
    assert job is not None
    while not job.group.sequences[0].reports:
        desk.core.step()
    job.deadline = past()
    desk.run()
    assert isinstance(caller.error, RuntimeError)


def test_a_request_can_be_dropped_in_every_state() -> None:
    for steps in range(12):
        desk = Desk(says=lambda one: "two canvases.", takes=lambda one: 2 + one.candidate)
        dropped, other = desk.ask("x" * 70, candidates=2), desk.ask("y" * 20, candidates=2)
        for _ in range(steps):
            desk.core.step()
        told = list(dropped.told)
        desk.drop(dropped)
        desk.drop(dropped)
        seen = len(desk.runner.plans)
        desk.run()
        assert dropped.told == told
        assert len(other.results) == 2
        job = dropped.job
        assert job is not None
        assert not {one for plan in desk.runner.plans[seen:] for one in plan} & set(job.group.sequences)


def test_a_request_dropped_in_line_is_never_run() -> None:
    desk = Desk()
    running, waiting, last = desk.ask(candidates=3), desk.ask(candidates=3), desk.ask()
    desk.core.step()
    desk.drop(waiting)
    assert desk.core.waiting == 1
    desk.run()
    assert waiting.told == []
    assert running.results
    assert last.results


def test_a_caller_may_drop_its_request_while_it_is_told_something() -> None:
    desk = Desk(says=lambda one: "hello.", takes=lambda one: 1)
    impatient, other = Caller(), Caller()

    def drop(_: CanvasUpdate) -> None:
        desk.drop(impatient)

    request = DraftRequest(request_id="r", messages=({"content": "hi"},), updates=True, candidates=2)
    impatient.job = desk.core.add(request, update=drop, done=impatient.told.append, failed=impatient.told.append)
    other.job = desk.core.add(request, update=lambda _: None, done=other.told.append, failed=other.told.append)
    desk.run()
    assert impatient.told == []
    assert len(other.results) == 2


def test_a_later_turn_reuses_the_work_of_the_one_before_under_its_key() -> None:
    desk = Desk(says=lambda one: "an answer of some length.")
    first, prompt = desk.ask("x" * 40, prefix_key="a"), "x" * 40
    desk.run()
    again = desk.ask(prompt + first.results[0].text, prefix_key="a")
    stranger = desk.ask(prompt, prefix_key="b")
    desk.run()
    assert again.results[0].signals.reused_tokens == 64
    assert stranger.results[0].signals.reused_tokens == 0


def test_an_idle_core_does_nothing() -> None:
    desk = Desk()
    desk.core.step()
    desk.core.probe()
    assert desk.runner.plans == []
    desk.check_empty()


actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 60), st.integers(1, 3), st.integers(1, 30)),
        st.tuples(st.just("ask in the background"), st.integers(1, 60), st.integers(1, 3), st.integers(1, 30)),
        st.tuples(st.just("step"), st.integers(1, 5), st.just(0), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 20), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("late"), st.integers(0, 20), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(actions)
@settings(deadline=None)
def test_everybody_is_told_once_unless_dropped_and_nothing_leaks(drawn: list[tuple[str, int, int, int]]) -> None:
    desk = Desk(
        says=lambda one: "some words that go on and on"[: 3 + len(one.prompt) % 24] + ".",
        takes=lambda one: 1 + (len(one.tokens) + one.candidate) % 4,
    )
    callers: list[Caller] = []
    dropped: set[Caller] = set()
    for action, number, candidates, max_tokens in drawn:
        caller = callers[number % len(callers)] if callers else None
        if action.startswith("ask"):
            priority = 2 if action.endswith("background") else 0
            callers.append(desk.ask("p" * number, candidates=candidates, max_tokens=max_tokens, priority=priority))
        elif action == "step":
            for _ in range(number):
                desk.core.step()
        elif action == "drop" and caller:
            if not caller.told:
                dropped.add(caller)
            desk.drop(caller)
        elif action == "late" and caller and caller.job:
            caller.job.deadline = past()
        elif action == "fail" and desk.core.busy:
            desk.runner.fails = ValueError()
            with contextlib.suppress(ValueError):  # or there is nothing left that is not late
                desk.core.step()
            desk.runner.fails = None
    desk.run()
    for caller in callers:
        assert len(caller.told) == (caller not in dropped)
        for told in caller.told:
            assert isinstance(told, (DraftDeadline, ValueError)) or told
