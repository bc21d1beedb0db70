"""Background requests: they pause for foreground, leave it room, and come to their end all the same. The engine is a toy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core import scheduler as module
from engine_core.pages import PAGE
from engine_core.scheduler import BACKGROUND, Admission, Budget, Group

BUDGET = Budget(
    slots=4,
    encode_rows=PAGE,
    windows={"full_attention": None, "sliding_attention": 20},
    pages={"full_attention": 21, "sliding_attention": 17},
)
ROOMY = BUDGET._replace(slots=16, pages={"full_attention": 1000, "sliding_attention": 1000})


@dataclass(eq=False)
class Toy:
    """Encodes a page in a step, and then works for so many steps."""

    prompt: list[int]
    steps: int = 1
    tokens: list[int] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0
    slot: int = -1

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def longest(self) -> int:
        return len(self.tokens)

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.encoded


class Scheduler(Admission[Toy]):
    def most_rows(self, sequence: Toy) -> int:
        return PAGE

    def step(self) -> list[Toy]:
        """Do all that can be done now; who took part."""
        able = self.able()
        self.work(able)
        return able

    def work(self, able: list[Toy]) -> None:
        for one in able:
            if one.pending:
                reached = one.encoded + min(one.pending, PAGE)
                self.reach(one, reached)
                self.stands(one, reached)
            else:
                one.steps -= 1
        self.remove([one for one in able if one.steps == 0])

    def admit(self) -> list[Toy]:
        """Who could take part if nobody paused; prefixes are adopted later, and end a twin's wait."""
        self._admit()
        return [one for one in self.running if not self._waits_for_twin(one)]


def group(priority: int = 0, count: int = 1, length: int = 1, steps: int = 1000, key: str | None = None) -> Group[Toy]:
    return Group([Toy([7] * length, steps) for _ in range(count)], priority, key)


def added(scheduler: Scheduler, *groups: Group[Toy]) -> list[Toy]:
    for one in groups:
        scheduler.add(one)
    return [sequence for one in groups for sequence in one.sequences]


def background(count: int, length: int = 1, steps: int = 1000) -> list[Group[Toy]]:
    return [group(BACKGROUND, length=length, steps=steps) for _ in range(count)]


def reserve(whole: int) -> int:
    return max(1, whole // 4)


@contextmanager
def constants(patience: int, every: int, calm: int, few: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATIENCE", patience)
        patch.setattr(module, "BACKGROUND_EVERY", every)
        patch.setattr(module, "CALM", calm)
        patch.setattr(module, "FEW", few)
        yield


class BackgroundBesideForeground(RuleBasedStateMachine):
    """Requests of both classes come, run and are cancelled in any order."""

    @initialize(patience=st.integers(1, 4), every=st.integers(1, 4), calm=st.integers(0, 3), few=st.integers(1, 4))
    def begin(self, patience: int, every: int, calm: int, few: int) -> None:
        self.every, self.calm, self.few = every, calm, max(1, BUDGET.slots // few)
        self.constants = constants(patience, every, calm, few)
        self.constants.__enter__()
        self.patience = patience
        self.scheduler = Scheduler(BUDGET)
        self.line: list[Group[Toy]] = []
        self.of: dict[Toy, Group[Toy]] = {}
        self.paused = 0  # plans in a row without any of the background, though some could have taken part
        self.quiet = calm  # plans since foreground ran

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        try:
            for _ in range(2_000):
                if not self.scheduler.running and not self.scheduler.waiting:
                    break
                self.step()
        finally:
            self.constants.__exit__(None, None, None)
        assert (self.scheduler.waiting, self.scheduler.running, self.scheduler.background) == (0, [], 0)
        for kind, pool in self.scheduler.pools.items():
            assert (pool.in_use(), pool.available) == (0, BUDGET.pages[kind] - 1)

    @rule(
        priority=st.integers(0, 3),
        count=st.integers(1, 4),
        length=st.integers(1, 150),
        steps=st.integers(1, 4),
        key=st.sampled_from(["", None]),
    )
    def add(self, priority: int, count: int, length: int, steps: int, key: str | None) -> None:
        new = group(priority, count, length, steps, key)
        try:
            self.scheduler.add(new)
        except module.TooLong:
            return
        self.line.append(new)
        self.of |= dict.fromkeys(new.sequences, new)

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule()
    def step(self) -> None:
        before = list(self.scheduler.running)
        could = self.scheduler.admit()
        able = self.scheduler.able()
        assert able, "there is always something to do"
        self._check_admitted(before)
        self._check_taking_part(able, could)
        self.scheduler.work(able)
        self.quiet = 0 if any(not self.of[one].background for one in able) else self.quiet + 1

    def _rank(self, one: Group[Toy]) -> tuple[int, int]:
        return one.ticket + one.priority * self.patience, one.ticket

    def _fits_share(self, held: list[Toy], foreground_waits: bool) -> bool:
        wholes = {"slots": BUDGET.slots} | {kind: count - 1 for kind, count in BUDGET.pages.items()}
        holds = {"slots": len(held)} | self.scheduler._needs(held)
        return all(
            holds[what] <= (reserve(whole) if foreground_waits else whole - reserve(whole))
            for what, whole in wholes.items()
        )

    def _check_admitted(self, before: list[Toy]) -> None:
        running = self.scheduler.running
        came = list(dict.fromkeys(self.of[one] for one in running if one not in before))
        left = [one for one in self.line if one not in came]
        for one in came:
            assert set(one.sequences) <= set(running), "a request is admitted whole"
        for one in came:
            assert all(self._rank(one) < self._rank(other) for other in left if other.background == one.background)
        for i, one in enumerate(came):
            if not one.background:
                continue
            others = running[: running.index(one.sequences[0])]
            waits = [other for other in [*came[i + 1 :], *left] if not other.background]
            held = [*(other for other in others if self.of[other].background), *one.sequences]
            assert all(self._rank(one) < self._rank(other) for other in waits), "foreground is passed by patience alone"
            assert not others or self._fits_share(held, bool(waits)), "background leaves the reserve"
        foreground, waiting = ([one for one in left if one.background == which] for which in (False, True))
        if foreground:
            assert not self.scheduler._fits(min(foreground, key=self._rank)), "who fits is not kept waiting"
        elif waiting:
            first = min(waiting, key=self._rank)
            held = [*(one for one in running if self.of[one].background), *first.sequences]
            assert running, "whatever an idle engine can serve it serves"
            assert not (self.scheduler._fits(first) and self._fits_share(held, False))
        self.line = left

    def _check_taking_part(self, able: list[Toy], could: list[Toy]) -> None:
        foreground, others = ([one for one in could if self.of[one].background == which] for which in (False, True))
        taking = [one for one in able if self.of[one].background]
        assert [one for one in able if one not in taking] == foreground, "foreground takes part in every step"
        assert taking == others[: len(taking)], "the oldest of the background"
        if foreground:
            self.paused = 0 if taking or not others else self.paused + 1
            assert self.paused < self.every
            assert len(taking) <= self.few
        else:
            self.paused = 0
            assert len(taking) == len(others if self.quiet >= self.calm else others[: self.few])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        known = [*self.line, *dict.fromkeys(self.of[one] for one in self.scheduler.running)]
        if known:
            one = data.draw(st.sampled_from(known))
            self.scheduler.forget(one)
            self.line = [other for other in self.line if other is not one]

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.scheduler.running
        assert self.scheduler.waiting == len(self.line)
        assert self.scheduler.background == sum(self.of[one].background for one in running) + sum(
            one.background for one in self.line
        )
        slots = [one.slot for one in running]
        assert len(set(slots)) == len(slots) <= BUDGET.slots


TestBackgroundBesideForeground = BackgroundBesideForeground.TestCase
TestBackgroundBesideForeground.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_background_pauses_while_foreground_runs_and_keeps_its_place():
    scheduler = Scheduler(ROOMY)
    others = added(scheduler, *background(3))
    assert scheduler.step() == others
    slots = [one.slot for one in others]
    (user,) = added(scheduler, group(steps=40))
    took_part = [scheduler.step() for _ in range(33)]
    assert all(user in able for able in took_part)
    assert [i for i, able in enumerate(took_part, 1) if len(able) > 1] == [16, 32]
    assert took_part[15] == [others[0], user], "in the order of admission"
    assert [one.slot for one in others] == slots
    assert all(set(scheduler.pages(one)) == set(ROOMY.windows) for one in others)


@pytest.mark.parametrize(("priority", "pauses"), [(0, False), (1, False), (2, True), (3, True)])
def test_background_begins_at_priority_two(priority: int, pauses: bool):
    scheduler = Scheduler(ROOMY)
    user, other = added(scheduler, group(0), group(priority))
    assert scheduler.step() == ([user] if pauses else [user, other])
    assert scheduler.background == pauses


def test_after_foreground_only_some_of_the_background_goes_on_until_it_stays_calm():
    scheduler = Scheduler(ROOMY._replace(slots=40))
    others = added(scheduler, *background(12))
    (user,) = added(scheduler, group(length=0))
    user.steps = 1
    assert scheduler.step() == [user]
    assert [len(scheduler.step()) for _ in range(module.CALM + 2)] == [2] * module.CALM + [12] * 2
    assert scheduler.step() == others


def test_an_engine_that_never_had_foreground_works_at_its_full_width():
    scheduler = Scheduler(ROOMY)
    others = added(scheduler, *background(20))
    assert scheduler.step() == others[:12]


def test_foreground_finds_slots_and_pages_that_background_leaves():
    scheduler = Scheduler(ROOMY._replace(pages={"full_attention": 101, "sliding_attention": 1000}))
    others = added(scheduler, *background(20, length=10 * PAGE))
    scheduler.step()
    assert scheduler.running == others[:7], "three quarters of 100 pages"
    users = added(scheduler, group(length=15 * PAGE), group(length=15 * PAGE))
    scheduler.step()
    assert scheduler.running == [*others[:7], *users]
    assert (scheduler.waiting, scheduler.background) == (13, 20)


def test_background_that_waits_holds_up_its_own_class_alone():
    scheduler = Scheduler(ROOMY)
    scheduler.add(group(BACKGROUND, count=8))
    scheduler.step()
    wide, narrow, user = group(BACKGROUND, count=5), group(BACKGROUND), group()
    added(scheduler, wide, narrow, user)
    scheduler.step()
    assert scheduler.running[8:] == user.sequences


def test_background_larger_than_its_share_runs_when_nothing_else_does():
    scheduler = Scheduler(BUDGET)
    user, wide, narrow = group(), group(BACKGROUND, count=4), group(BACKGROUND)
    added(scheduler, user, wide, narrow)
    scheduler.step()
    assert scheduler.running == user.sequences
    scheduler.forget(user)
    scheduler.step()
    assert scheduler.running == wide.sequences
    scheduler.forget(wide)
    scheduler.step()
    assert scheduler.running == narrow.sequences


def test_the_only_slot_is_backgrounds_too_but_foreground_comes_first():
    scheduler = Scheduler(ROOMY._replace(slots=1))
    first, second = background(2, steps=3)
    added(scheduler, first, second)
    assert scheduler.step() == first.sequences
    user = group(steps=2)
    scheduler.add(user)
    while scheduler.running == first.sequences:
        scheduler.step()
    assert scheduler.step() == user.sequences
    scheduler.forget(user)
    assert scheduler.step() == second.sequences


def test_background_passes_foreground_that_waits_by_patience_alone_and_leaves_it_the_more(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "PATIENCE", 2)
    scheduler = Scheduler(ROOMY)
    runs, waits, later = group(count=10), group(count=16), group(count=16)
    old = background(6)
    added(scheduler, runs, waits, *old)
    for _ in range(10):
        passing = group()
        scheduler.add(passing)
        scheduler.forget(passing)
    scheduler.add(later)
    scheduler.step()
    assert scheduler.running == runs.sequences, "background would find six slots, but foreground is before it"
    scheduler.forget(waits)
    scheduler.step()
    assert scheduler.running[10:] == [one.sequences[0] for one in old[:4]], (
        "as much as the reserve, since another waits"
    )


def test_paused_background_can_be_cancelled_and_its_place_is_free():
    scheduler = Scheduler(BUDGET._replace(slots=2))
    gone, waits = background(2)
    added(scheduler, gone, waits, group())
    scheduler.step()
    scheduler.forget(gone)
    assert (gone.sequences[0].slot, scheduler.background) == (-1, 1)
    scheduler.step()
    assert waits.sequences[0] in scheduler.running


def test_twins_of_a_paused_request_still_share_its_prompt():
    scheduler = Scheduler(ROOMY)
    others = added(scheduler, group(BACKGROUND, count=3, length=3 * PAGE, steps=1, key=""))
    added(scheduler, group())
    for _ in range(3 * 16):
        scheduler.step()
    assert [one.encoded for one in others] == [3 * PAGE, 0, 0]
    while scheduler.background:
        scheduler.step()
    assert [one.reused for one in others] == [0, 3 * PAGE, 3 * PAGE]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 300)), min_size=1, max_size=12), st.integers(1, 4))
@settings(deadline=None)
def test_background_alone_always_comes_to_its_end(wishes: list[tuple[int, int]], slots: int):
    scheduler = Scheduler(BUDGET._replace(slots=slots))
    for count, length in wishes:
        if count <= slots and count * -(-length // PAGE) <= 16:
            scheduler.add(group(BACKGROUND, count, length, steps=2))
    while scheduler.waiting or scheduler.running:
        assert scheduler.step()
