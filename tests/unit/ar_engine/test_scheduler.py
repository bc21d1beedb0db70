"""The scheduler: budgets, order, fairness, and a cache in which every row sees what its own sequence stands for.

The device is a dictionary that works write to; the model chooses by a hash of all tokens before.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ar_engine.prompts import Image
from ar_engine.scheduler import Group, Scheduler, Work
from ar_engine.sequence import Choice, Sampling, Scored, Sequence
from ar_engine.speculate import Guide
from engine_core import scheduler as module
from engine_core.pages import NOWHERE, PAGE
from engine_core.scheduler import Budget, TooLong

WINDOW = 20
END, VOCAB = 3, 4
BUDGET = Budget(
    slots=4,
    encode_rows=20,
    windows={"full_attention": None, "sliding_attention": WINDOW},
    pages={"full_attention": 31, "sliding_attention": 29},
)
LIKE_ALONE = BUDGET._replace(slots=8, encode_rows=32, pages={"full_attention": 1000, "sliding_attention": 1000})


def sequence(
    prompt: Iterable[int] | int = 1, max_tokens: int = 8, draft: list[int] | None = None, **fields: Any
) -> Sequence:
    ids = [1] * prompt if isinstance(prompt, int) else list(prompt)
    guide = Guide(draft, 8) if draft else None
    return Sequence(Sampling(max_tokens=max_tokens, end_ids=frozenset({END})), ids, guide=guide, **fields)


def group(
    prompt: Iterable[int] | int = 1, count: int = 1, priority: int = 0, key: str | None = "", **fields: Any
) -> Group:
    prompt = prompt if isinstance(prompt, int) else list(prompt)
    return Group([sequence(prompt, **fields) for _ in range(count)], priority, key)


def scored(prompt: list[int], draft: list[int], key: str | None = "") -> Group:
    return Group([Scored(Sampling(max_tokens=len(draft)), prompt, draft=draft)], share_key=key)


def stands_for(ids: Iterable[int], start: object) -> list[int]:
    """What each position holds: it depends on all tokens up to there, and on whom they belong to."""
    so_far, found = crc32(repr(start).encode()), []  # a string's own hash differs from run to run
    for token in ids:
        so_far = hash((so_far, token))
        found.append(so_far)
    return found


def says(ids: list[int]) -> int:
    """The model's next token; seldom the end."""
    found = stands_for(ids, "says")[-1] % 13
    return END if found == 0 else found % (VOCAB - 1)


def answer_alone(prompt: list[int], most: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + most and (token := says(ids)) != END:
        ids.append(token)
    return ids[len(prompt) :]


class Device:
    """A cache that remembers what each position holds, and checks what each row sees."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.key_of: dict[Sequence, str | None] = {}
        self.cache: dict[tuple[str, int, int], int] = {}

    def add(self, group: Group) -> None:
        self.scheduler.add(group)
        self.key_of.update(dict.fromkeys(group.sequences, group.share_key))

    def step(self) -> list[Work]:
        works = self.scheduler.plan()
        held = [self._held(work) for work in works]
        for work, holds in zip(works, held, strict=True):
            self._write(work, holds)
        for work, holds in zip(works, held, strict=True):
            self._read(work, holds)
        for work in works:
            self._commit(work)
        return works

    def run(self) -> int:
        """Until nothing is left; how many steps it took."""
        for steps in range(10_000):
            if not self.step():
                assert (self.scheduler.running, self.scheduler.waiting) == ([], 0)
                return steps
        raise AssertionError("it never ends")

    def _held(self, work: Work) -> list[int]:
        key = self.key_of[work.sequence]
        whose = id(work.sequence) if key is None else key
        return stands_for(work.sequence.tokens[: work.start + work.length] + work.tried, whose)

    def _write(self, work: Work, held: list[int]) -> None:
        for kind, pages in self.scheduler.pages(work.sequence).items():
            for position in range(work.start, work.start + work.rows):
                page = pages.table[position // PAGE]
                assert page != NOWHERE
                self.cache[kind, page, position % PAGE] = held[position]

    def _read(self, work: Work, held: list[int]) -> None:
        for kind, pages in self.scheduler.pages(work.sequence).items():
            window = self.scheduler.budget.windows[kind]
            first = 0 if window is None else max(0, work.start - window + 1)
            for position in range(first, work.start + work.rows):
                page = pages.table[position // PAGE]
                assert self.cache[kind, page, position % PAGE] == held[position]

    def _commit(self, work: Work) -> None:
        one, stands = work.sequence, work.start + work.length
        if work.answers:
            ids = one.tokens + work.tried
            rows = [says(ids[: len(one.tokens) + i]) for i in range(len(work.tried) + 1)]
            stands += one.commit(work.tried, [Choice(token) for token in rows])
        self.scheduler.stands(one, min(stands, len(one.tokens) - (one.finish is None)))
        if one.finish:
            self.scheduler.remove([one])


class RequestsOfAllKinds(RuleBasedStateMachine):
    """Requests come, run, end and are cancelled in any order."""

    @initialize(patience=st.integers(1, 4), every=st.integers(2, 4), calm=st.integers(0, 3))
    def begin(self, patience: int, every: int, calm: int) -> None:
        self.constants = pytest.MonkeyPatch()
        for name, value in (("PATIENCE", patience), ("BACKGROUND_EVERY", every), ("CALM", calm)):
            self.constants.setattr(module, name, value)
        self.scheduler = Scheduler(BUDGET)
        self.device = Device(self.scheduler)
        self.line: list[Group] = []  # not admitted yet, in the order of their coming
        self.groups: list[Group] = []  # admitted, and not finished
        self.gone: set[Sequence] = set()  # finished or cancelled
        self.bounds: dict[Sequence, int] = {}  # steps within which a prompt must be encoded

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        try:
            for _ in range(10_000):
                if not self.line and not self.groups:
                    break
                self.step()
        finally:
            self.constants.undo()
        assert self.scheduler.plan() == []
        assert (self.scheduler.waiting, self.scheduler.running) == (0, [])
        for kind, pool in self.scheduler.pools.items():
            assert (pool.in_use(), pool.available) == (0, BUDGET.pages[kind] - 1)

    @rule(
        shared=st.integers(0, 90),
        own=st.integers(1, 30),
        last=st.integers(0, 1),
        count=st.integers(1, 3),
        priority=st.integers(0, 2),
        key=st.sampled_from(["", "", "a", None]),
        max_tokens=st.integers(1, 30),
        draft=st.sampled_from(["none", "right", "wrong here and there", "other", "scored"]),
    )
    def add(self, shared, own, last, count, priority, key, max_tokens, draft) -> None:
        prompt = [i % 3 for i in range(shared)] + [last] * own
        right = answer_alone(prompt, max_tokens + 5)
        tried = {
            "none": [],
            "right": right,
            "wrong here and there": [(token + (i % 5 == 4)) % 3 for i, token in enumerate(right)],
        }.get(draft, [i % 3 for i in range(own)])
        new = scored(prompt, tried, key) if draft == "scored" else group(
            prompt, count, priority, key, max_tokens=max_tokens, draft=tried
        )  # fmt: skip
        try:
            self.device.add(new)
        except TooLong:
            return
        self.line.append(new)

    @precondition(lambda self: self.line or self.groups)
    @rule()
    def step(self) -> None:
        free = BUDGET.slots - len(self.scheduler.running)
        waited = {one: one.pending for one in self.scheduler.running}
        before = list(self.scheduler.running)
        works = self.device.step()
        assert works, "there is always something to do for whoever runs"
        self._check_admitted(free, [*before, *(work.sequence for work in works)])
        self._check_works(works, waited)
        for one in [one for group in self.groups for one in group.sequences]:
            if one.finish:
                self.gone.add(one)
                answered = len(one.tokens) - len(one.prompt)
                if isinstance(one, Scored):
                    assert one.tokens == one.prompt + one.draft
                    assert len(one.scores) == len(one.draft) == answered
                else:
                    assert one.answer == answer_alone(one.prompt, one.sampling.max_tokens), "drafts change no answer"
        took_part = {work.sequence for work in works}
        background = {one for group in self.groups if group.background for one in group.sequences}
        paused = background if background & set(self.scheduler.running) - took_part else set()
        for one in self.scheduler.running:
            if one in paused:
                continue
            if one.pending == 1:
                self.bounds.pop(one, None)
            else:
                # every older one encodes at most its whole, at least half a budget a step
                self.bounds[one] = self.bounds.get(one, 41) - 1
                assert self.bounds[one] > 0
        self.groups = [one for one in self.groups if not set(one.sequences) <= self.gone]

    def _check_admitted(self, free: int, seen: list[Sequence]) -> None:
        """Of each class the first in line were admitted, whole."""
        running = set(self.scheduler.running) | set(seen)
        rank = {one: (one.ticket + one.priority * module.PATIENCE, one.ticket) for one in self.line}
        passed = {False: False, True: False}
        for one in sorted(self.line, key=rank.__getitem__):
            if not running & set(one.sequences):
                passed[one.background] = True
                continue
            assert not passed[one.background], "nobody passes the first in line of the same class"
            self.line.remove(one)
            self.groups.append(one)
            free -= one.slots
        assert free >= 0

    def _check_works(self, works: list[Work], waited: dict[Sequence, int]) -> None:
        assert len({work.sequence for work in works}) == len(works) <= BUDGET.slots
        assert not {work.sequence for work in works} & self.gone
        assert all(work.length > 0 for work in works)
        reading = [work for work in works if not (work.answers and work.length == 1)]
        assert sum(work.length for work in reading) <= BUDGET.encode_rows
        tried = sum(len(work.tried) for work in works if not isinstance(work.sequence, Scored))
        judged = sum(max(0, len(work.tried) - 1) for work in works if isinstance(work.sequence, Scored))
        assert tried + judged <= BUDGET.encode_rows
        assert all(work.answers or not work.tried for work in works)
        background = {one for group in self.groups if group.background for one in group.sequences}
        decoding = {one for one, pending in waited.items() if pending == 1} - background
        assert decoding <= {work.sequence for work in works if work.answers}, "whoever answers goes on in every step"

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        known = self.line + self.groups
        if known:
            one = data.draw(st.sampled_from(known))
            self.scheduler.forget(one)
            self.scheduler.forget(one)
            self.line = [other for other in self.line if other is not one]
            self.groups = [other for other in self.groups if other is not one]
            self.gone |= set(one.sequences)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.scheduler.running
        slots = [one.slot for one in running]
        assert len(set(slots)) == len(slots) <= BUDGET.slots
        assert set(slots) <= set(range(BUDGET.slots))
        assert self.scheduler.waiting == len(self.line)
        assert not set(running) & self.gone
        assert all(one.pending >= 1 for one in running), "of what is adopted, a token is left to follow from"
        for kind, pool in self.scheduler.pools.items():
            held = {page for one in running for page in self.scheduler.pages(one)[kind].table if page != NOWHERE}
            assert pool.in_use() == len(held)
            assert 0 <= pool.available < BUDGET.pages[kind]


TestRequestsOfAllKinds = RequestsOfAllKinds.TestCase
TestRequestsOfAllKinds.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_first_come_first_served_within_a_priority_and_nobody_passes_the_first_in_line():
    scheduler = Scheduler(BUDGET)
    first, later, big, urgent = group(count=2), group(priority=1), group(count=3), group(count=2)
    for one in (first, later, big, urgent):
        scheduler.add(one)
    scheduler.plan()
    assert scheduler.running == first.sequences
    scheduler.remove(first.sequences)
    scheduler.plan()
    assert scheduler.running == big.sequences
    scheduler.forget(big)
    scheduler.plan()
    assert scheduler.running == [*urgent.sequences, *later.sequences]


def test_answers_go_on_while_prompts_are_read():
    device = Device(Scheduler(LIKE_ALONE))
    writer = group([2, 1], max_tokens=200)
    writer.sequences[0].sampling = Sampling(max_tokens=200)
    device.add(writer)
    device.step()
    device.add(group([1] * 400, key=None))
    device.add(group([2] * 300, key=None))
    for count in range(2, 20):
        device.step()
        assert len(writer.sequences[0].answer) == count


@pytest.mark.parametrize(
    ("rows", "half"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (7, 4), (20, 10)],  # a single row is left to the oldest
)
def test_the_oldest_prompt_gets_half_and_what_the_shortest_leave(rows: int, half: int):
    scheduler = Scheduler(LIKE_ALONE._replace(encode_rows=rows))
    oldest, middle, shortest = (group(length, key=None) for length in (100, 70, 60))
    for one in (oldest, middle, shortest):
        scheduler.add(one)
    wanted = [(oldest.sequences[0], half), (shortest.sequences[0], rows - half)]
    works = scheduler.plan()
    assert [(work.sequence, work.length) for work in works] == [one for one in wanted if one[1]]
    assert not any(work.answers or work.tried for work in works)


def test_a_prompts_last_chunk_gives_the_first_token_and_tries_the_draft_in_the_same_step():
    device = Device(Scheduler(LIKE_ALONE))
    prompt = [1, 2] * 20
    right = answer_alone(prompt, 8)
    one = group(prompt, max_tokens=8, draft=right)
    device.add(one)
    (first,) = device.step()
    assert (first.length, first.tried, first.answers) == (32, [], False)
    (second,) = device.step()
    assert (second.start, second.length, second.tried, second.answers) == (32, 8, right[:7], True)
    assert one.sequences[0].answer == right


def test_drafts_share_a_steps_rows_in_the_order_of_admission():
    scheduler = Scheduler(LIKE_ALONE._replace(encode_rows=10))
    drafted = [group(1, max_tokens=50, draft=[0] * count, key=None) for count in (7, 7, 7)]
    for one in drafted:
        scheduler.add(one)
    assert [len(work.tried) for work in scheduler.plan()] == [7, 3, 0]


def test_a_draft_is_tried_up_to_the_last_token_but_one():
    scheduler = Scheduler(LIKE_ALONE)
    scheduler.add(group(1, max_tokens=5, draft=[0] * 20))
    (work,) = scheduler.plan()
    assert len(work.tried) == 4


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_even_the_smallest_budget_gets_everybody_through(rows: int):
    device = Device(Scheduler(LIKE_ALONE._replace(encode_rows=rows)))
    for length in (30, 3, 17):
        device.add(group(length, key=None, max_tokens=10, draft=[1, 0, 1]))
    device.add(scored([1, 2, 0], [1] * 9))
    assert device.run() <= 2 * (30 + 3 + 17 + 3) + 40


@pytest.mark.parametrize("prompt", [PAGE, PAGE + 1, 3 * PAGE - 1, 3 * PAGE, 200])
def test_choices_share_the_prompt_but_for_its_last_token(prompt: int):
    device = Device(Scheduler(LIKE_ALONE))
    one = group(prompt, count=3)
    device.add(one)
    encoded = dict.fromkeys(one.sequences, 0)
    while not all(each.answer or each.finish for each in one.sequences):
        for work in device.step():
            encoded[work.sequence] += work.length if not work.sequence.answer or work.start < prompt else 0
    for other in one.sequences[1:]:
        assert other.reused == (prompt - 1) // PAGE * PAGE
        assert encoded[other] == prompt - other.reused


def test_choices_that_share_nothing_are_encoded_side_by_side():
    for one in (group(PAGE, count=2, key=None), group(PAGE - 1, count=2)):
        device = Device(Scheduler(LIKE_ALONE))
        device.add(one)
        assert [work.sequence for work in device.step()] == one.sequences
        assert {each.reused for each in one.sequences} == {0}


def test_choices_go_on_when_the_one_they_wait_for_is_gone():
    device = Device(Scheduler(LIKE_ALONE))
    one = group(100, count=2)
    device.add(one)
    assert [work.sequence for work in device.step()] == one.sequences[:1]
    device.scheduler.remove(one.sequences[:1])
    while not one.sequences[1].answer and not one.sequences[1].finish:
        assert [work.sequence for work in device.step()] == one.sequences[1:]


@given(st.integers(1, 100), st.integers(1, 50), st.sampled_from([1, 7, 20, 33]), st.booleans(), st.integers(0, 60))
@settings(deadline=None)
def test_a_sequence_never_has_more_pages_than_it_was_promised(prompt, max_tokens, rows, is_scored, draft):
    scheduler = Scheduler(LIKE_ALONE._replace(encode_rows=rows))
    tried = [i % 3 for i in range(draft + is_scored)]
    one = scored([1] * prompt, tried) if is_scored else group(prompt, max_tokens=max_tokens, draft=tried)
    device = Device(scheduler)
    device.add(one)
    while device.step():
        for kind, pool in scheduler.pools.items():
            assert pool.in_use() <= LIKE_ALONE.pages[kind] - 1 - pool.available


def run_alone(device: Device, one: Group) -> Sequence:
    device.add(one)
    device.run()
    return one.sequences[0]


def test_a_later_turn_reuses_prompt_and_answer_of_the_one_before_under_its_key_only():
    device = Device(Scheduler(LIKE_ALONE))
    endless = Sampling(max_tokens=40)
    first = group([0, 1] * 20)
    first.sequences[0].sampling = endless
    ids = [*run_alone(device, first).tokens, 2, 2]
    assert len(ids) == 82
    assert run_alone(device, group(ids)).reused == 64  # the last token of the answer, 79, was never encoded
    assert run_alone(device, group(ids, key="other")).reused == 0
    assert run_alone(device, group(ids, key=None)).reused == 0


def test_nobody_reuses_what_was_encoded_without_a_key():
    device = Device(Scheduler(LIKE_ALONE))
    run_alone(device, group(100, key=None))
    assert run_alone(device, group(100)).reused == 0


def test_rejected_draft_tokens_are_never_found_by_others():
    device = Device(Scheduler(LIKE_ALONE))
    prompt = [1] * 10
    right = answer_alone(prompt, 30)
    wrong = [(right[0] + 1) % 3] + [0] * 29
    run_alone(device, group(prompt, max_tokens=30, draft=wrong))
    assert run_alone(device, group([*prompt, *wrong], max_tokens=4)).reused == 0


def images(*spans: tuple[int, int]) -> tuple[Any, ...]:
    nothing: Any = None
    return tuple(Image(start, count, nothing, nothing) for start, count in spans)


@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_an_image_whose_tokens_see_each_other_is_encoded_in_one_piece(rows: int):
    device = Device(Scheduler(LIKE_ALONE._replace(encode_rows=rows)))
    shown = images((3, 12), (20, 30), (52, 1))
    device.add(group(60, images=shown, whole_images=True))
    device.add(group(40, key=None))
    chunks = []
    for _ in range(500):
        works = device.step()
        chunks += [(work.start, work.start + work.length) for work in works if work.sequence.images]
        if not works:
            break
    for image in shown:
        assert any(start <= image.start and image.start + image.count <= end for start, end in chunks)
    assert all(b == c for (_, b), (c, _) in pairwise(chunks))


def test_an_image_whose_tokens_see_only_those_before_may_be_cut():
    device = Device(Scheduler(LIKE_ALONE._replace(encode_rows=8)))
    device.add(group(60, images=images((3, 12))))
    assert [(work.start, work.length) for work in device.step()] == [(0, 8)]


def test_what_can_never_fit_is_refused_with_expected_and_got():
    scheduler = Scheduler(BUDGET)
    with pytest.raises(TooLong, match="expected at most 4 answers at once, got 5"):
        scheduler.add(group(count=5))
    with pytest.raises(TooLong, match=r"fits the cache of 480 positions \(full_attention\), got 1 x 488"):
        scheduler.add(group(480))
    with pytest.raises(ValueError, match="expected a priority of at least 0, got -1"):
        scheduler.add(group(priority=-1))
    assert scheduler.waiting == 0
    scheduler.add(group(472))
    assert scheduler.plan()[0].length == BUDGET.encode_rows


def test_a_cancelled_requests_slots_and_pages_are_free_for_the_next_plan():
    scheduler = Scheduler(BUDGET)
    running, waiting, last = group(400), group(400), group(400)
    for one in (running, waiting, last):
        scheduler.add(one)
    scheduler.plan()
    scheduler.forget(waiting)
    assert scheduler.waiting == 1
    scheduler.forget(running)
    assert [work.sequence for work in scheduler.plan()] == last.sequences
    assert scheduler.waiting == 0


def test_an_idle_engine_plans_nothing():
    scheduler = Scheduler(BUDGET)
    assert scheduler.plan() == []
    scheduler.add(one := group())
    scheduler.forget(one)
    assert scheduler.plan() == []
