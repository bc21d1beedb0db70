"""The circuit breaker and the retry budget, with a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from engine_core.upstream.breaker import PAUSE_S, WINDOW, CircuitBreaker, RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def call(breaker: CircuitBreaker, failed: bool | None) -> None:
    assert breaker.wait_s == 0
    breaker.end(breaker.begin(), failed)


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock)
    for _ in range(WINDOW):
        call(breaker, True)
    assert breaker.is_open
    return breaker


@given(st.lists(st.sampled_from([True, False, None]), max_size=3 * WINDOW))
def test_it_opens_exactly_when_half_of_the_last_twenty_failed(outcomes):
    breaker, last = CircuitBreaker(Clock()), list[bool]()
    for failed in outcomes:
        call(breaker, failed)
        last = last if failed is None else [*last, failed][-WINDOW:]
        assert breaker.is_open == (len(last) == WINDOW and 2 * sum(last) >= WINDOW)
        if breaker.is_open:
            return


def test_open_it_lets_one_trial_through_every_five_seconds():
    clock = Clock()
    breaker = opened(clock)
    assert breaker.wait_s == PAUSE_S
    clock.now += PAUSE_S
    period = breaker.begin()
    assert breaker.wait_s == PAUSE_S  # the trial hasn't ended, and is the only one
    breaker.end(period, True)
    assert breaker.wait_s == PAUSE_S
    clock.now += PAUSE_S - 0.5
    assert breaker.wait_s == 0.5


def test_a_trial_that_succeeds_closes_it_and_the_past_is_forgotten():
    clock = Clock()
    breaker = opened(clock)
    clock.now += PAUSE_S
    call(breaker, False)
    assert not breaker.is_open
    for _ in range(WINDOW - 1):
        call(breaker, True)
    assert not breaker.is_open


def test_a_trial_that_takes_long_closes_it_too_and_holds_up_no_other():
    clock = Clock()
    breaker = opened(clock)
    clock.now += PAUSE_S
    slow = breaker.begin()
    clock.now += PAUSE_S
    call(breaker, True)
    breaker.end(slow, False)
    assert not breaker.is_open


def test_a_trial_that_was_left_by_its_caller_leaves_it_open():
    clock = Clock()
    breaker = opened(clock)
    clock.now += PAUSE_S
    call(breaker, None)
    assert breaker.wait_s == PAUSE_S


def test_what_began_before_it_opened_is_no_trial():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    early = breaker.begin()
    for _ in range(WINDOW):
        call(breaker, True)
    breaker.end(early, False)
    assert breaker.is_open


@given(st.lists(st.booleans(), max_size=300))
def test_retries_are_a_tenth_of_the_calls_and_a_few_more_at_most(steps):
    budget, calls, retries = RetryBudget(), 0, 0
    for retry in steps:
        if retry:
            retries += budget.withdraw()
        else:
            budget.deposit()
            calls += 1
    assert retries <= RetryBudget.MOST + RetryBudget.SHARE * calls + 1e-9
