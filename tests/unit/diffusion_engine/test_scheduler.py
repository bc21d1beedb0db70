"""The scheduler: budgets, order, fairness, and a cache in which every row reads what its own sequence wrote.

The device is a dictionary that plans write to.
"""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diffusion_engine.scheduler import Group, Plan, Scheduler
from diffusion_engine.sequence import CanvasReport, Sampling, Sequence
from engine_core import scheduler as module
from engine_core.pages import NOWHERE, PAGE
from engine_core.scheduler import Budget, TooLong

CANVAS = 8
WINDOW = 20
END = 9
BUDGET = Budget(
    slots=4,
    encode_rows=20,
    windows={"full_attention": None, "sliding_attention": WINDOW},
    pages={"full_attention": 31, "sliding_attention": 25},
)
LIKE_ALONE = Budget(
    slots=8,
    encode_rows=32,
    windows={"full_attention": None, "sliding_attention": WINDOW},
    pages={"full_attention": 1000, "sliding_attention": 1000},
)


def sampling(max_tokens: int = CANVAS) -> Sampling:
    return Sampling(
        max_steps=4,
        t_min=0.4,
        t_max=0.8,
        entropy_bound=0.1,
        confidence=0.1,
        stability=1,
        max_tokens=max_tokens,
        end_ids=(END,),
    )


def group(
    prompt: Iterable[int] | int = 1,
    candidates: int = 1,
    priority: int = 0,
    key: str | None = "",
    max_tokens: int = CANVAS,
) -> Group:
    ids = [1] * prompt if isinstance(prompt, int) else list(prompt)
    return Group([Sequence(sampling(max_tokens), ids, CANVAS, candidate=i) for i in range(candidates)], priority, key)


def finish_canvas(sequence: Sequence, token: int) -> None:
    size = sequence.canvas
    nothing = [0.0] * size
    sequence.end_canvas(CanvasReport([token] * size, nothing, nothing, nothing, [1] * size, 1, True), False)


class Device:
    """A cache that remembers what each position holds, and checks what each row sees."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.key_of: dict[Sequence, str | None] = {}
        self.cache: dict[tuple[str, int, int], object] = {}

    def add(self, group: Group) -> None:
        self.scheduler.add(group)
        self.key_of.update(dict.fromkeys(group.sequences, group.share_key))

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        for sequence, start, count in plan.chunks:
            for position in range(start, start + count):
                self._write(sequence, position, self._stands_at(sequence, position))
        for sequence in plan.canvases:
            for position in range(len(sequence.tokens), len(sequence.tokens) + sequence.canvas):
                self._write(sequence, position, ("canvas", sequence))
        for sequence, start, count in plan.chunks:
            self._read(sequence, start, start + count)
        for sequence in plan.canvases:
            self._read(sequence, len(sequence.tokens), len(sequence.tokens))
        self.scheduler.encoded(plan)
        return plan

    def _stands_at(self, sequence: Sequence, position: int) -> object:
        key = self.key_of[sequence]
        return (sequence if key is None else key, tuple(sequence.tokens[: position + 1]))

    def _write(self, sequence: Sequence, position: int, what: object) -> None:
        for kind, pages in self.scheduler.pages(sequence).items():
            page = pages.table[position // PAGE]
            assert page != NOWHERE
            self.cache[kind, page, position % PAGE] = what

    def _read(self, sequence: Sequence, first_row: int, end: int) -> None:
        """The positions that rows from `first_row` on see, up to `end`."""
        for kind, pages in self.scheduler.pages(sequence).items():
            window = self.scheduler.budget.windows[kind]
            for position in range(0 if window is None else max(0, first_row - window + 1), end):
                page = pages.table[position // PAGE]
                assert self.cache[kind, page, position % PAGE] == self._stands_at(sequence, position)


class RequestsOfAllKinds(RuleBasedStateMachine):
    """Requests come, run and are cancelled in any order."""

    @initialize(patience=st.integers(1, 4), every=st.integers(2, 4), calm=st.integers(0, 3))
    def begin(self, patience: int, every: int, calm: int) -> None:
        self.constants = pytest.MonkeyPatch()
        for name, value in (("PATIENCE", patience), ("BACKGROUND_EVERY", every), ("CALM", calm)):
            self.constants.setattr(module, name, value)
        self.scheduler = Scheduler(BUDGET)
        self.device = Device(self.scheduler)
        self.line: list[Group] = []  # not admitted yet, in the order of their coming
        self.groups: list[Group] = []  # admitted, and not finished
        self.gone: list[Sequence] = []
        self.tickets = 0
        self.bounds: dict[Sequence, int] = {}  # of its plans, those within which the pending tokens must be encoded

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        try:
            for _ in range(10_000):
                if not self.line and not self.groups:
                    break
                self.step([True] * 4)
        finally:
            self.constants.undo()
        assert self.scheduler.plan() == Plan([], [])
        assert (self.scheduler.waiting, self.scheduler.running) == (0, [])
        for kind, pool in self.scheduler.pools.items():
            assert (pool.in_use(), pool.available) == (0, BUDGET.pages[kind] - 1)

    @rule(
        shared=st.integers(0, 90),
        own=st.integers(1, 30),
        last=st.integers(0, 1),
        candidates=st.integers(1, 3),
        priority=st.integers(0, 2),
        key=st.sampled_from(["", "", "a", None]),
        max_tokens=st.integers(1, 3 * CANVAS),
    )
    def add(
        self, shared: int, own: int, last: int, candidates: int, priority: int, key: str | None, max_tokens: int
    ) -> None:
        new = group([i % 3 for i in range(shared)] + [last] * own, candidates, priority, key, max_tokens)
        try:
            self.device.add(new)
        except TooLong:
            return
        assert new.ticket == self.tickets
        self.tickets += 1
        self.line.append(new)

    @precondition(lambda self: self.line or self.groups)
    @rule(done=st.lists(st.booleans(), min_size=4, max_size=4))
    def step(self, done: list[bool]) -> None:
        free = BUDGET.slots - len(self.scheduler.running)
        plan = self.device.step()
        assert plan.sequences()
        self._check_admitted(free)
        self._check_plan(plan)
        paused = self._paused(plan)
        for sequence in self.scheduler.running:
            if sequence in paused:
                continue
            if not sequence.pending:
                self.bounds.pop(sequence, None)
            elif sequence not in self.bounds:
                self.bounds[sequence] = 40  # every older one encodes at most its whole, at least half a budget a step
            else:
                self.bounds[sequence] -= 1
                assert self.bounds[sequence] > 0
        for sequence, ends in zip(plan.canvases, done, strict=False):
            if ends:
                finish_canvas(sequence, token=sequence.slot % 2)
            if sequence.finish:
                self.scheduler.remove([sequence])
                assert sequence.slot == -1
                self.gone.append(sequence)
        self.groups = [one for one in self.groups if not set(one.sequences) <= set(self.gone)]

    def _check_admitted(self, free: int) -> None:
        """Of each class the first in line were admitted, whole."""
        rank = {one: (one.ticket + one.priority * module.PATIENCE, one.ticket) for one in self.line}
        running = set(self.scheduler.running)
        passed = {False: False, True: False}
        for one in sorted(self.line, key=rank.__getitem__):
            admitted = running.issuperset(one.sequences)
            assert admitted or not running & set(one.sequences)
            if not admitted:
                passed[one.background] = True
                continue
            assert not passed[one.background]
            self.line.remove(one)
            self.groups.append(one)
            free -= one.slots
        assert free >= 0

    def _paused(self, plan: Plan) -> set[Sequence]:
        """The background, if some of it that could have taken part did not; foreground never is."""
        background = {sequence for one in self.groups if one.background for sequence in one.sequences}
        left_out = set(self.scheduler.running) - set(plan.sequences())
        denoises = {sequence for sequence in left_out if not sequence.pending}
        assert denoises <= background, "whatever foreground has encoded is denoised in every step"
        foreground = set(self.scheduler.running) - background
        assert not foreground or foreground & set(plan.sequences())
        return background & left_out and background

    def _check_plan(self, plan: Plan) -> None:
        assert sum(chunk.length for chunk in plan.chunks) <= BUDGET.encode_rows
        assert len(plan.canvases) <= BUDGET.slots
        assert len(set(plan.canvases)) == len(plan.canvases)
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks)
        assert not set(plan.sequences()) & set(self.gone)
        assert all(chunk.length > 0 for chunk in plan.chunks)
        for sequence in plan.canvases:
            assert sequence.pending == 0
        for chunk in plan.chunks:
            assert chunk.sequence.encoded == chunk.start + chunk.length
            assert (chunk.sequence in plan.canvases) == (not chunk.sequence.pending)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        known = self.line + self.groups
        if known:
            one = data.draw(st.sampled_from(known))
            self.scheduler.forget(one)
            self.scheduler.forget(one)
            self.line = [other for other in self.line if other is not one]
            self.groups = [other for other in self.groups if other is not one]
            self.gone += one.sequences

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.scheduler.running
        slots = [sequence.slot for sequence in running]
        assert len(set(slots)) == len(slots) <= BUDGET.slots
        assert set(slots) <= set(range(BUDGET.slots))
        assert self.scheduler.waiting == len(self.line)
        assert not set(running) & set(self.gone)
        for kind, pool in self.scheduler.pools.items():
            held = {page for one in running for page in self.scheduler.pages(one)[kind].table if page != NOWHERE}
            assert pool.in_use() == len(held)
            assert 0 <= pool.available < BUDGET.pages[kind]


TestRequestsOfAllKinds = RequestsOfAllKinds.TestCase
TestRequestsOfAllKinds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_first_come_first_served_and_nobody_passes_the_first_in_line() -> None:
    scheduler = Scheduler(BUDGET)
    first, big, small = group(candidates=2), group(candidates=3), group()
    for one in (first, big, small):
        scheduler.add(one)
    scheduler.plan()
    assert scheduler.running == first.sequences
    assert scheduler.waiting == 2
    scheduler.remove(first.sequences[:1])
    scheduler.plan()
    assert scheduler.running == [*first.sequences[1:], *big.sequences]
    scheduler.forget(first)
    scheduler.plan()
    assert scheduler.running == [*big.sequences, *small.sequences]


def test_the_first_in_line_is_not_passed_while_it_waits_for_pages() -> None:
    scheduler = Scheduler(BUDGET)
    long, as_long, short = group(250), group(250), group()
    for one in (long, as_long, short):
        scheduler.add(one)
    scheduler.plan()
    assert scheduler.running == long.sequences
    scheduler.forget(long)
    scheduler.plan()
    assert scheduler.running == [*as_long.sequences, *short.sequences]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60), st.integers(1, 6))
def test_lower_priorities_are_overtaken_by_at_most_patience_for_each_level(
    arrivals: list[tuple[int, bool]], patience: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATIENCE", patience)
        scheduler = Scheduler(BUDGET._replace(slots=1))
        groups, admitted = [], []

        def admit_one() -> None:
            scheduler.plan()
            admitted.extend(one for one in groups if one.sequences[0] in scheduler.running)
            scheduler.remove(list(scheduler.running))

        for priority, serve in arrivals:
            groups.append(group(priority=priority))
            scheduler.add(groups[-1])
            if serve:
                admit_one()
        while scheduler.waiting:
            admit_one()
    assert sorted(admitted, key=lambda one: one.ticket) == groups
    for i, one in enumerate(admitted):
        for level in range(4):
            overtook = [other for other in admitted[:i] if other.ticket > one.ticket and other.priority == level]
            assert len(overtook) <= max(0, one.priority - level) * patience


def test_patience_counts_a_thousand_arrivals() -> None:
    scheduler = Scheduler(BUDGET._replace(slots=1))
    patient = group(priority=1)
    scheduler.add(patient)
    later = [group() for _ in range(1001)]
    for one in later:
        scheduler.add(one)
    served = 0
    while patient.sequences[0] not in scheduler.running:
        scheduler.remove(list(scheduler.running))
        scheduler.plan()
        served += 1
    assert served == 1000  # 999 of them before it


def test_a_short_prompt_is_not_held_up_by_a_long_one_nor_the_long_one_by_short_ones() -> None:
    device = Device(Scheduler(LIKE_ALONE))
    long = group([2] * 600)
    device.add(long)
    steps = 0
    while long.sequences[0].pending:
        short = group([3 + steps] * 12, key=None)
        device.add(short)
        plan = device.step()
        assert short.sequences[0] in plan.canvases
        device.scheduler.forget(short)
        steps += 1
    assert steps == -(-600 // (LIKE_ALONE.encode_rows - 12))


@given(st.lists(st.lists(st.integers(1, 120), max_size=3), min_size=1, max_size=30))
def test_every_prompt_is_encoded_in_bounded_steps_whatever_else_arrives(arrivals: list[list[int]]) -> None:
    device = Device(Scheduler(LIKE_ALONE._replace(slots=200)))
    left: dict[Sequence, int] = {}
    step = 0
    while step < len(arrivals) or left:
        for length in arrivals[step] if step < len(arrivals) else ():
            new = group(length, key=None)
            device.add(new)
            before = [*left, new.sequences[0]]
            left[new.sequences[0]] = sum(-(-one.pending * 2 // LIKE_ALONE.encode_rows) for one in before)
        for sequence in device.step().canvases:
            device.scheduler.remove([sequence])
            del left[sequence]
        left = {sequence: steps - 1 for sequence, steps in left.items()}
        assert all(steps > 0 for steps in left.values())
        step += 1


@pytest.mark.parametrize(
    ("rows", "half"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (7, 4), (20, 10)],  # a single row is left to the oldest
)
def test_the_oldest_gets_half_and_what_the_shortest_leave(rows: int, half: int) -> None:
    scheduler = Scheduler(LIKE_ALONE._replace(encode_rows=rows))
    oldest, middle, shortest = group(100, key=None), group(70, key=None), group(60, key=None)
    for one in (oldest, middle, shortest):
        scheduler.add(one)
    chunks = scheduler.plan().chunks
    wanted = [(oldest.sequences[0], 0, half), (shortest.sequences[0], 0, rows - half)]
    assert chunks == [one for one in wanted if one[2]]
    scheduler.forget(middle)
    scheduler.forget(shortest)
    assert scheduler.plan().chunks == [(oldest.sequences[0], 0, rows)]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_even_the_smallest_budget_gets_everybody_through(rows: int) -> None:
    device = Device(Scheduler(LIKE_ALONE._replace(encode_rows=rows)))
    for length in (30, 3, 17):
        device.add(group(length, key=None, max_tokens=2 * CANVAS))
    steps = 0
    while device.scheduler.running or device.scheduler.waiting:
        for sequence in device.step().canvases:
            finish_canvas(sequence, 1)
            if sequence.finish:
                device.scheduler.remove([sequence])
        steps += 1
        assert steps <= 2 * (30 + 3 + 17 + 3 * CANVAS)


@pytest.mark.parametrize("prompt", [PAGE, PAGE + 1, 3 * PAGE - 1, 200])
def test_candidates_share_the_prompt(prompt: int) -> None:
    device = Device(Scheduler(LIKE_ALONE))
    one = group(prompt, candidates=3)
    device.add(one)
    encoded: dict[Sequence, int] = dict.fromkeys(one.sequences, 0)
    together = None
    while together is None:
        plan = device.step()
        for chunk in plan.chunks:
            encoded[chunk.sequence] += chunk.length
        if set(one.sequences[1:]) <= set(plan.canvases):
            together = plan
    assert encoded[one.sequences[0]] == prompt
    for sequence in one.sequences[1:]:
        assert sequence.reused == prompt // PAGE * PAGE
        assert encoded[sequence] == prompt % PAGE


def test_candidates_that_share_nothing_encode_side_by_side() -> None:
    device = Device(Scheduler(LIKE_ALONE))
    for one in (group(PAGE, candidates=2, key=None), group(PAGE - 1, candidates=2)):
        device.add(one)
        assert set(one.sequences) <= set(device.step().sequences())
        device.scheduler.forget(one)
        assert {sequence.reused for sequence in one.sequences} == {0}


def test_candidates_go_on_when_the_one_they_wait_for_is_gone() -> None:
    device = Device(Scheduler(LIKE_ALONE))
    one = group(100, candidates=2)
    device.add(one)
    assert device.step().sequences() == one.sequences[:1]
    device.scheduler.remove(one.sequences[:1])
    while one.sequences[1].pending:
        assert device.step().sequences() == one.sequences[1:]


@given(st.integers(1, 100), st.integers(1, 5 * CANVAS), st.sampled_from([1, 7, 20, 33]))
def test_a_sequence_never_has_more_pages_than_it_was_promised(prompt: int, max_tokens: int, rows: int) -> None:
    scheduler = Scheduler(LIKE_ALONE._replace(encode_rows=rows))
    (sequence,) = (one := group(prompt, max_tokens=max_tokens)).sequences
    scheduler.add(one)
    while not sequence.finish:
        plan = scheduler.plan()
        for kind, pool in scheduler.pools.items():
            assert pool.in_use() <= LIKE_ALONE.pages[kind] - 1 - pool.available
        scheduler.encoded(plan)
        for canvas in plan.canvases:
            finish_canvas(canvas, 1)


def run_alone(device: Device, one: Group) -> Sequence:
    """To its end."""
    device.add(one)
    (sequence,) = one.sequences
    while not sequence.finish:
        for canvas in device.step().canvases:
            finish_canvas(canvas, 4)
    device.scheduler.remove([sequence])
    return sequence


def test_a_later_turn_reuses_prompt_and_answer_of_the_one_before() -> None:
    device = Device(Scheduler(LIKE_ALONE))
    first = run_alone(device, group(range(50), max_tokens=4 * CANVAS))
    assert len(first.tokens) == 82
    again = run_alone(device, group([*first.tokens, 5, 6], max_tokens=CANVAS))
    assert again.reused == 64  # the last canvas, 74 to 81, was never encoded
    other = run_alone(device, group([*first.tokens, 5, 6], max_tokens=CANVAS, key="other"))
    assert other.reused == 0
    secret = run_alone(device, group([*first.tokens, 5, 6], max_tokens=CANVAS, key=None))
    assert secret.reused == 0


def test_nobody_reuses_what_was_encoded_without_a_key() -> None:
    device = Device(Scheduler(LIKE_ALONE))
    run_alone(device, group(100, key=None))
    assert run_alone(device, group(100)).reused == 0


def test_an_empty_prompt_is_served() -> None:
    device = Device(Scheduler(LIKE_ALONE))
    for _ in range(2):
        run_alone(device, Group([Sequence(sampling(4 * PAGE), [], canvas=2 * PAGE)]))
    assert [pool.in_use() for pool in device.scheduler.pools.values()] == [0, 0]


def test_what_can_never_fit_is_refused_with_expected_and_got() -> None:
    scheduler = Scheduler(BUDGET)
    with pytest.raises(TooLong, match="expected at most 4 answers at once, got 5"):
        scheduler.add(group(candidates=5))
    with pytest.raises(TooLong, match=r"fits the cache of 480 positions \(full_attention\), got 1 x 488"):
        scheduler.add(group(480))
    with pytest.raises(TooLong, match=r"got 4 x 128"):
        scheduler.add(group(120, candidates=4))
    assert scheduler.waiting == 0
    scheduler.add(group(472))
    assert scheduler.plan().chunks[0].length == BUDGET.encode_rows


def test_a_cancelled_requests_slots_and_pages_are_free_for_the_next_plan() -> None:
    scheduler = Scheduler(BUDGET)
    running, waiting, last = group(400, candidates=1), group(400), group(400)
    for one in (running, waiting, last):
        scheduler.add(one)
    scheduler.plan()
    scheduler.forget(waiting)
    assert scheduler.waiting == 1
    scheduler.forget(running)
    assert scheduler.plan().sequences() == last.sequences
    assert scheduler.waiting == 0


def test_an_idle_engine_plans_nothing() -> None:
    scheduler = Scheduler(BUDGET)
    assert scheduler.plan() == Plan([], [])
    one = group()
    scheduler.add(one)
    scheduler.forget(one)
    assert scheduler.plan() == Plan([], [])
    assert scheduler.waiting == 0
