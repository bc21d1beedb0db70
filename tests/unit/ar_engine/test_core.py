"""The core with a scripted runner: who is told what and when, and that nothing stays behind."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Listed
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ar_engine.api import (
    Draft,
    DraftScore,
    RefineDeadline,
    RefineRejected,
    RefineRequest,
    RefineResult,
    RefineSettings,
    ScoreRequest,
)
from ar_engine.core import Core
from ar_engine.polish import POLISH
from ar_engine.prompts import Prompts
from ar_engine.scheduler import Scheduler
from ar_engine.sequence import Sequence
from engine_core.chat import ChatTokenizer
from engine_core.pages import Kind
from engine_core.scheduler import Budget
from tests.unit.ar_engine.engines import Inbox, ToyRunner, check_empty, essence, run, told

END, SILENT, VOCAB = 0, 1, 256
CONTEXT = 200
MOST = 40
BUDGET = Budget(
    slots=3,
    encode_rows=32,
    windows={"full_attention": None, "sliding_attention": 20},
    pages={"full_attention": 46, "sliding_attention": 37},
)


class Bytes(ChatTokenizer):
    """A token for each byte of a text; 0 ends an answer, 1 has no text."""

    fingerprint = "bytes"
    silent_ids = frozenset({SILENT})

    def __init__(self) -> None:
        self.breaks_at = "nothing"

    def prompt(self, messages: Iterable[Mapping[str, Any]], tools: Any = (), **variables: Any) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Listed[int], special: bool = False) -> str:
        text = bytes(token for token in ids if token != SILENT).decode(errors="replace")
        if self.breaks_at in text:
            raise RuntimeError("not a text")
        return text

    def token_id(self, token: str) -> None:
        return None


def flat(_: Sequence, before: list[int]) -> Tensor:
    """A model for which all letters are about equally likely."""
    logits = torch.full((VOCAB,), -20.0)
    logits[ord("a") : ord("z") + 1] = torch.linspace(1.0, 0.5, 26)
    return logits


class Desk:
    """A core, and what happens around it. The model says `says`, whatever is tried."""

    def __init__(
        self,
        says: Callable[[Sequence], str] = lambda one: "hello",
        logits: Callable[[Sequence, list[int]], Tensor] | None = None,
        encode_rows: int = 32,
        pages: dict[Kind, int] | None = None,
        **wishes: Any,
    ) -> None:
        self.says = says
        self.runner = ToyRunner(logits or self._script)
        self.tokenizer = Bytes()
        asked = RefineSettings(**{"max_tokens": MOST, **wishes})
        budget = BUDGET._replace(encode_rows=encode_rows, pages=pages or BUDGET.pages)
        self.scheduler = Scheduler(budget)
        self.core = Core(
            self.runner, self.scheduler, Prompts(self.tokenizer), asked, frozenset({END}), CONTEXT, vocab=1 << 20
        )

    def _script(self, sequence: Sequence, before: list[int]) -> Tensor:
        said = [*self.says(sequence).encode(), END]
        logits = torch.zeros(VOCAB)
        logits[said[min(len(before) - len(sequence.prompt), len(said) - 1)]] = 10.0
        return logits

    def ask(
        self, prompt: str = "question", draft: str | None = None, deadline: float | None = None, **wishes: Any
    ) -> Inbox:
        inbox = Inbox(deadline)
        self.put(inbox, prompt, draft, **wishes)
        return inbox

    def put(self, inbox: Inbox, prompt: str = "question", draft: str | None = None, **wishes: Any) -> None:
        shown = None if draft is None else self.draft(draft)
        self.core.add(RefineRequest(request_id="r", messages=told(prompt), draft=shown, **wishes), inbox)

    def draft(self, text: str) -> Draft:
        return Draft(text=text, token_ids=tuple(self.tokenizer.encode(text)), tokenizer_fingerprint="bytes")

    def score(self, prompt: str, draft: Draft, **wishes: Any) -> Inbox:
        inbox = Inbox()
        self.core.add(ScoreRequest(request_id="s", messages=told(prompt), draft=draft, **wishes), inbox)
        return inbox

    def run(self) -> int:
        return run(self.core)


def past() -> float:
    return time.monotonic() - 1


def test_an_answer_comes_piece_by_piece_and_its_result_last():
    desk = Desk()
    inbox = desk.ask()
    desk.run()
    assert [one.text for one in inbox.told[:-1]] == list("hello")
    result = inbox.result
    assert inbox.told[-1] is result
    assert (result.text, result.finish_reason, result.prompt_tokens, result.completion_tokens) == (
        "hello",
        "stop",
        8,
        6,
    )
    assert (result.forwards, result.kept_tokens, result.tried_tokens, result.reused_tokens) == (6, 0, 0, 0)
    assert 0 <= result.first_token_s <= result.elapsed_s
    assert result.logprobs == ()


def test_a_right_draft_is_told_at_once():
    desk = Desk()
    inbox = desk.ask(draft="hello")
    desk.run()
    assert [one.text for one in inbox.told[:-1]] == ["hello"]
    result = inbox.result
    assert (result.text, result.kept_tokens, result.tried_tokens, result.forwards) == ("hello", 5, 5, 1)
    assert (result.completion_tokens, result.finish_reason, result.reused_draft_tokens) == (6, "stop", 0)


def test_what_is_reused_after_a_rejected_token_is_counted_apart():
    desk = Desk(says=lambda one: "the price of the lamp is 45 dollars")
    inbox = desk.ask(draft="the price of the lump is 45 dollars")
    steps = desk.run()
    result = inbox.result
    assert (result.text, result.kept_tokens) == ("the price of the lamp is 45 dollars", 18)
    assert result.reused_draft_tokens > 10
    assert result.forwards == steps < 12


def test_an_answer_ends_at_the_most_tokens_asked_for_or_allowed():
    desk = Desk(says=lambda one: "endless " * 20)
    inboxes = [desk.ask(max_tokens=most, draft=draft) for most in (1, 11) for draft in (None, "endless endless")]
    inboxes.append(desk.ask())
    desk.run()
    assert [inbox.result.text for inbox in inboxes] == ["e", "e", "endless end", "endless end", ("endless " * 5)]
    assert {inbox.result.finish_reason for inbox in inboxes} == {"length"}
    assert [inbox.result.completion_tokens for inbox in inboxes] == [1, 1, 11, 11, MOST]


def test_a_request_may_end_its_answer_by_tokens_of_its_own():
    desk = Desk(says=lambda one: "a,b")
    for draft in (None, "a,b", "a"):
        inbox = desk.ask(draft=draft, stop_token_ids=(ord(","),))
        desk.run()
        assert (inbox.result.text, inbox.result.finish_reason, inbox.result.completion_tokens) == ("a", "stop", 2)


def test_an_answer_ends_once_it_holds_a_stop_string():
    desk = Desk(says=lambda one: "one two three two")
    inbox = desk.ask(stop=("never", "", "two"))
    desk.run()
    assert (inbox.result.text, inbox.result.finish_reason, inbox.result.forwards) == ("one two", "stop", 7)


words = st.text("ab ", max_size=24)


@given(
    says=words, draft=words, stop=st.lists(st.text("ab ", min_size=1, max_size=3), max_size=2), rows=st.integers(1, 30)
)
@settings(max_examples=40, deadline=None)
def test_stop_strings_end_an_answer_at_the_same_token_with_and_without_a_draft(says, draft, stop, rows):
    found = []
    for tried in (None, draft, says):
        desk = Desk(says=lambda one: says, encode_rows=rows)
        inbox = desk.ask(draft=tried, stop=tuple(stop), logprobs=0, max_tokens=20)
        desk.run()
        found.append((*essence(inbox.result), len(inbox.result.logprobs)))
    assert found[1:] == found[:1] * 2
    text = says[:20]
    ends = [text.index(one) + len(one) for one in stop if one in text]
    assert found[0][2] == text[: min(ends, default=20)]


# "�" is what a broken character would be told as; newlines at the start belong to the protocol
@given(
    st.text(st.characters(exclude_characters="\0\1\n�", exclude_categories=["Cs"]), max_size=12),
    st.integers(1, 20),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_no_delta_ends_inside_a_character(text: str, rows: int, drafted: bool):
    desk = Desk(says=lambda one: text, encode_rows=rows, max_tokens=100)
    inbox = desk.ask(draft=text if drafted else None, logprobs=0)
    desk.run()
    assert inbox.result.text == text
    assert all("�" not in one.text for one in inbox.told)


def test_the_log_probabilities_of_tokens_without_text_are_told_too():
    for draft in (None, "ab\1", "a"):
        desk = Desk(says=lambda one: "\1ab\1\1")
        inbox = desk.ask(draft=draft, logprobs=2)
        desk.run()
        assert (inbox.result.text, len(inbox.result.logprobs)) == ("ab", 5)
        assert [len(one.top) for one in inbox.result.logprobs] == [2] * 5


def test_the_first_choice_is_the_one_it_would_be_alone_and_the_others_differ():
    desk, wishes = Desk(logits=flat), {"temperature": 1.0, "seed": 5, "max_tokens": 12}
    single = desk.ask(**wishes)
    several = desk.ask(n=3, **wishes)
    desk.run()
    assert [one.choice for one in several.results] == [0, 1, 2]
    assert essence(several.results[0]) == essence(single.result)
    assert len({one.text for one in several.results}) == 3
    again = desk.ask(n=2, draft=several.results[1].text, **wishes)
    desk.run()
    assert [essence(one) for one in again.results] == [essence(one) for one in several.results[:2]]
    assert again.results[1].kept_tokens == 12


def test_choices_without_temperature_are_alike_and_share_their_prompt():
    desk = Desk()
    inbox = desk.ask("a question of more than one page", n=3)
    desk.run()
    assert {one.text for one in inbox.results} == {"hello"}
    assert [one.reused_tokens for one in inbox.results] == [0, 16, 16]


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 0.05}, {"frequency_penalty": 0.03}, {"repetition_penalty": 2.0}, {"presence_penalty": -1.0}],
    ids=str,
)
def test_penalties_hold_for_the_answer_and_that_of_repetition_for_the_prompt_too(penalty: dict[str, float]):
    expected = greedy_with(penalty, "a", 8)
    assert (expected == greedy_with({}, "a", 8)) == (penalty == {"presence_penalty": -1.0})
    for draft in (None, expected, "zzz", "aaaaaaaa"):
        desk = Desk(logits=flat)
        inbox = desk.ask("a", draft, max_tokens=8, **penalty)
        desk.run()
        assert inbox.result.text == expected


def greedy_with(penalty: dict[str, float], prompt: str, most: int) -> str:
    """The greedy answer of `flat`, token by token, by the formula."""
    answer = ""
    for _ in range(most):
        z = {letter: float(flat(None, [])[ord(letter)]) for letter in map(chr, range(97, 123))}  # pyright: ignore[reportArgumentType]
        for letter in z:
            if letter in prompt + answer:
                z[letter] /= penalty.get("repetition_penalty", 1.0)
            if letter in answer:
                z[letter] -= penalty.get("presence_penalty", 0.0)
                z[letter] -= penalty.get("frequency_penalty", 0.0) * answer.count(letter)
        answer += max(z, key=z.__getitem__)
    return answer


def test_the_engines_own_mode_holds_where_a_request_names_none():
    for mode, tried in (("exact", 5), ("fresh", 0)):
        desk = Desk(mode=mode)
        inbox, named = desk.ask(draft="hello"), desk.ask(draft="hello", mode="exact")
        desk.run()
        assert (inbox.result.tried_tokens, named.result.tried_tokens) == (tried, 5)


def test_polish_shows_the_draft_to_the_model_and_tries_it_too():
    desk = Desk(max_tokens=5)
    draft = "help"
    desk.core.context_tokens = 400
    prompt = desk.core._refine(
        RefineRequest(request_id="r", messages=told("q"), draft=desk.draft(draft), mode="polish"), Inbox()
    )
    (sequence,) = prompt.group.sequences
    assert bytes(sequence.prompt).decode() == "q" + draft + POLISH
    assert sequence.propose(64) == list(b"help")


def test_a_draft_of_another_tokenizer_is_encoded_anew():
    desk = Desk()
    other = Draft(text="hello", token_ids=(1, 2, 3), tokenizer_fingerprint="another")
    inbox = Inbox()
    desk.core.add(RefineRequest(request_id="r", messages=told("q"), draft=other), inbox)
    scored = desk.score("q", other)
    desk.run()
    assert inbox.result.kept_tokens == 5
    assert scored.score.token_ids == tuple(b"hello")


def test_a_score_tells_of_every_token_of_the_draft():
    desk = Desk(encode_rows=3)
    inbox, nothing = desk.score("question", desk.draft("hexlo")), desk.score("question", desk.draft(""))
    desk.run()
    score = inbox.score
    assert bytes(score.greedy_tokens).decode() == "hello"
    assert (score.agreeing_prefix, [rank > 0 for rank in score.token_ranks]) == (2, [False] * 2 + [True] + [False] * 2)
    assert [value > -0.1 for value in score.token_logprobs] == [True, True, False, True, True]
    assert nothing.score == DraftScore(
        token_ids=(), token_logprobs=(), token_ranks=(), greedy_tokens=(), agreeing_prefix=0
    )


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"prompt": "x" * CONTEXT}, f"expected at most {CONTEXT} tokens in all, got a prompt of {CONTEXT}"),
        ({"prompt": "x" * 190, "max_tokens": 11}, "got a prompt of 190 and 11 answer tokens"),
        ({"max_tokens": 0}, "expected max_tokens of at least 1, got 0"),
        ({"max_tokens": -1}, "expected max_tokens of at least 1, got -1"),
        ({"n": 4}, "expected n of 1 to 3, got 4"),
        ({"n": 0}, "expected n of 1 to 3, got 0"),
        ({"temperature": -1.0}, "expected a temperature of at least 0, got -1"),
        ({"top_p": 0.0}, "expected 0 < top_p <= 1, got 0"),
        ({"top_k": -1}, "expected top_k of at least 0 and of 31 bits, got -1"),
        ({"presence_penalty": 3.0}, "expected presence_penalty of -2 to 2, got 3"),
        ({"frequency_penalty": -3.0}, "expected frequency_penalty of -2 to 2, got -3"),
        ({"repetition_penalty": -1.0}, "expected a repetition_penalty of 0.01 to 100, got -1"),
        ({"seed": 2**63}, "expected a seed of 64 bits, got 9223372036854775808"),
        ({"logprobs": 21}, "expected logprobs of 0 to 20, got 21"),
        ({"priority": -1}, "expected a priority of at least 0, got -1"),
        ({"response_format": {"type": "json_object"}}, "expected a response_format of type text, .* got 'json_object'"),
        ({"tool_choice": "required"}, "expected tool_choice .* got 'required'"),
        ({"prompt": "x" * 150, "n": 3}, "expected a request that fits the cache of 400 positions .* got 3 x 190"),
    ],
)
def test_what_can_not_be_served_is_refused_with_expected_and_got(wishes: dict[str, Any], message: str):
    desk = Desk(pages={"full_attention": 26, "sliding_attention": 37})
    with pytest.raises(RefineRejected, match=message):
        desk.ask(**wishes)
    check_empty(desk.core)
    inbox = desk.ask()
    desk.run()
    assert inbox.result


def test_a_score_beyond_the_context_is_refused():
    with pytest.raises(RefineRejected, match="got a prompt of 190 and 11 answer tokens"):
        Desk().score("x" * 190, Desk().draft("y" * 11))


def test_a_prompt_that_leaves_room_for_one_token_gets_one():
    desk = Desk()
    inbox = desk.ask("x" * (CONTEXT - 1))
    desk.run()
    assert (inbox.result.text, inbox.result.finish_reason) == ("h", "length")


def test_after_a_deadline_a_request_is_gone_by_the_next_step_wherever_it_was():
    desk = Desk(says=lambda one: "a long answer")
    late, running = desk.ask(n=2, deadline=past(), deadline_s=0.5), desk.ask(n=2)
    desk.core.step()
    in_line, next_one = desk.ask(n=2), desk.ask()
    desk.core.step()
    assert isinstance(late.error, RefineDeadline)
    assert str(late.error) == "expected an answer within 0.5 s, got an unfinished one"
    assert late.told == []
    in_line.deadline = running.deadline = past()
    desk.core.step()
    assert isinstance(in_line.error, RefineDeadline)
    assert isinstance(running.error, RefineDeadline)
    assert "".join(one.text for one in running.told if one.choice == 0) == "a "
    desk.run()
    assert next_one.result.text == "a long answer"


def test_background_that_pauses_is_ended_by_its_deadline_and_can_be_cancelled():
    desk = Desk(says=lambda one: "a long answer")
    late, gone = desk.ask(priority=2), desk.ask(priority=2)
    desk.core.step()
    user = desk.ask()
    desk.core.step()
    assert (len(desk.runner.steps[0]), len(desk.runner.steps[1])) == (2, 1)
    assert (desk.core.running, desk.core.background) == (3, 2)
    late.deadline = past()
    desk.core.cancel(gone)
    desk.core.step()
    assert isinstance(late.error, RefineDeadline)
    assert (desk.core.running, desk.core.background) == (1, 0)
    desk.run()
    assert user.result.text == "a long answer"
    assert not gone.over


def test_an_answer_that_pauses_for_foreground_goes_on_where_it_was():
    desk = Desk(says=lambda one: "a long answer")
    paused = [desk.ask("p" * length, "a wrong answer", n=2, priority=2) for length in (3, 60)]
    for _ in range(3):
        desk.core.step()
    users = [desk.ask("u" * length) for length in (5, 70)]
    desk.run()
    alone = Desk(says=lambda one: "a long answer")
    for length, inbox in zip((3, 60), paused, strict=True):
        single = alone.ask("p" * length, "a wrong answer", n=2)
        alone.run()
        assert [essence(result) for result in inbox.results] == [essence(result) for result in single.results]
    assert [inbox.result.text for inbox in users] == ["a long answer"] * 2
    took_part = [{work.sequence for work in works} for works in desk.runner.steps]
    first = took_part[2]
    assert (took_part[1] & first, took_part[3] & first) == (first, set())
    assert any(first & later for later in took_part[4:])


def test_a_failed_step_costs_its_requests_and_nobody_else():
    desk = Desk()
    first, second, waiting = desk.ask(n=2), desk.ask(), desk.ask(n=2)
    desk.core.step()
    desk.runner.fails = ValueError("no more memory")
    with pytest.raises(ValueError, match="no more memory"):
        desk.core.step()
    assert first.error is second.error is desk.runner.fails
    assert waiting.told == []
    assert (desk.core.running, desk.core.waiting) == (0, 1)
    desk.runner.fails = None
    desk.run()
    assert len(waiting.results) == 2


def test_a_text_that_can_not_be_made_is_an_error_to_whom_it_belongs_and_nobody_else():
    desk = Desk(says=lambda one: "broken" if one.prompt == [ord("b")] else "fine")
    desk.tokenizer.breaks_at = "bro"
    inbox, neighbour = desk.ask("b", "broken", n=2), desk.ask("f")
    desk.run()
    assert isinstance(inbox.error, RuntimeError)
    assert neighbour.result.text == "fine"


def test_a_result_that_can_not_be_made_is_an_error_to_whom_it_belongs_and_nobody_else(monkeypatch: pytest.MonkeyPatch):
    desk = Desk()
    make = desk.core._result

    def breaks(job: Any, sequence: Sequence) -> RefineResult:
        if sequence.prompt == [ord("b")]:
            raise RuntimeError("no result")
        return make(job, sequence)

    monkeypatch.setattr(desk.core, "_result", breaks)
    inbox, neighbour = desk.ask("b"), desk.ask("f")
    desk.run()
    assert isinstance(inbox.error, RuntimeError)
    assert neighbour.result.text == "hello"


def test_a_request_can_be_dropped_in_every_state():
    for steps in range(9):
        desk = Desk(says=lambda one: "hello" if one.choice else "hi")
        dropped, other = desk.ask("x" * 70, n=2, max_tokens=20), desk.ask("y" * 20, n=2, max_tokens=20)
        for _ in range(steps):
            desk.core.step()
        seen = list(dropped.told)
        sequences = [one for one in desk.core._jobs if one.prompt[0] == ord("x")]
        desk.core.cancel(dropped)
        desk.core.cancel(dropped)
        before = len(desk.runner.steps)
        desk.run()
        assert dropped.told == seen
        assert len(other.results) == 2
        assert not {work.sequence for works in desk.runner.steps[before:] for work in works} & set(sequences)


def test_a_request_dropped_in_line_is_never_run():
    desk = Desk()
    running, waiting, last = desk.ask(n=3), desk.ask("waits", n=3), desk.ask()
    desk.core.step()
    desk.core.cancel(waiting)
    assert desk.core.waiting == 1
    desk.run()
    assert waiting.told == []
    assert len(running.results) == 3
    assert last.result
    assert all(len(work.sequence.prompt) == 8 for works in desk.runner.steps for work in works)


def test_a_later_turn_reuses_the_work_of_the_one_before_under_its_key_only():
    desk = Desk(says=lambda one: "an answer of some length")
    prompt = "x" * 40
    first = desk.ask(prompt, prefix_key="a")
    desk.run()
    follow_up = prompt + first.result.text
    inboxes = [desk.ask(follow_up, prefix_key=key) for key in ("a", "b", None)]
    scored = desk.score(follow_up, desk.draft("yes"), prefix_key="a")
    desk.run()
    assert [inbox.result.reused_tokens for inbox in inboxes] == [48, 0, 0]  # of 64, the last is needed to go on from
    assert {inbox.result.text for inbox in inboxes} == {first.result.text}
    assert scored.score.token_ids == tuple(b"yes")


def test_an_idle_core_does_nothing():
    desk = Desk()
    assert desk.core.step() is False
    desk.core.probe()
    assert desk.runner.steps == []
    check_empty(desk.core)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 60), st.integers(1, 3), st.integers(1, 30)),
        st.tuples(st.just("ask in the background"), st.integers(1, 60), st.integers(1, 3), st.integers(1, 30)),
        st.tuples(st.just("score"), st.integers(1, 60), st.just(0), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 5), st.just(0), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 20), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("late"), st.integers(0, 20), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@given(actions)
@settings(max_examples=50, deadline=None)
def test_everybody_is_told_once_unless_dropped_and_nothing_leaks(drawn: list[tuple[str, int, int, int]]):
    text = "some words that go on and on"
    desk = Desk(says=lambda one: text[: 3 + len(one.prompt) % 24])
    inboxes: list[Inbox] = []
    dropped: set[Inbox] = set()
    for action, number, n, length in drawn:
        inbox = inboxes[number % len(inboxes)] if inboxes else None
        if action.startswith("ask"):
            draft, priority = text[:length] if length % 2 else None, 2 if action.endswith("background") else 0
            inboxes.append(desk.ask("p" * number, draft, n=n, max_tokens=length, priority=priority))
        elif action == "score":
            inboxes.append(desk.score("p" * number, desk.draft(text[:length])))
        elif action == "step":
            for _ in range(number):
                desk.core.step()
        elif action == "drop" and inbox:
            if not inbox.over:
                dropped.add(inbox)
            desk.core.cancel(inbox)
        elif action == "late" and inbox:
            inbox.deadline = past()
        elif action == "fail":
            desk.runner.fails = ValueError()
            with contextlib.suppress(ValueError):  # or there is nothing left that is not late
                desk.core.step()
            desk.runner.fails = None
    desk.run()
    for inbox in inboxes:
        assert inbox.over == (inbox not in dropped)
        assert inbox.error is None or isinstance(inbox.error, RefineDeadline | ValueError)


def test_a_draft_that_leaves_no_room_to_show_it_is_only_tried():
    desk = Desk(mode="polish")
    prompt = "q" * (CONTEXT - MOST - 8)
    inbox = desk.ask(prompt, "hello", max_tokens=MOST)
    desk.run()
    result = inbox.result
    assert (result.text, result.kept_tokens) == ("hello", 5)
    assert result.prompt_tokens <= CONTEXT - MOST


def test_tokens_without_an_embedding_end_a_draft_and_are_refused_in_a_score():
    desk = Desk()
    desk.core._vocab = 200
    ids = (*b"hel", 1000, *b"lo")
    draft = Draft(text="hel?lo", token_ids=ids, tokenizer_fingerprint="bytes")
    inbox = Inbox()
    desk.core.add(RefineRequest(request_id="r", messages=told("question"), draft=draft), inbox)
    desk.run()
    assert (inbox.result.text, inbox.result.tried_tokens) == ("hello", 3)
    with pytest.raises(RefineRejected, match="expected tokens below 200 in the draft, got 1000"):
        desk.score("question", draft)


def test_tokens_behind_the_end_of_an_answer_are_not_counted_as_reused():
    desk = Desk(lambda _: "one, two. three")
    inbox = desk.ask(draft="One, two. three", stop=("two",))
    desk.run()
    result = inbox.result
    assert result.kept_tokens + result.reused_draft_tokens <= len(result.token_ids)


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 1e-300])
def test_a_temperature_next_to_none_is_greedy(temperature: float):
    desk = Desk()
    inbox = desk.ask(temperature=temperature, top_p=0.5)
    desk.run()
    assert inbox.result.text == "hello"
