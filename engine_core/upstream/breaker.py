"""When to leave a failing upstream alone, and when to try it a second time. Plain Python; the clock is handed in."""

import time
from collections import deque
from collections.abc import Callable

WINDOW = 20  # calls that are looked back on
SHARE = 0.5  # of them that fail, and the breaker opens
PAUSE_S = 5.0  # between two trials of an upstream that is left alone


class CircuitBreaker:
    """Leaves an upstream alone once half of the last 20 calls to it failed.

    Closed, every call goes through. Open, one call every 5 s does, as a trial, and the first trial that succeeds closes
    it. A trial that takes long does not hold up the next one: an answer of a language model may well take longer than
    the pause.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start closed. `clock` gives seconds that never go back."""
        self._clock = clock
        self._last: deque[bool] = deque(maxlen=WINDOW)  # whether a call failed
        self._next_trial_s: float | None = None  # None: closed
        self._period = 0  # counts openings and closings: what began before one says nothing after it

    @property
    def wait_s(self) -> float:
        """Seconds until a call may go through; 0: it may now."""
        return 0.0 if self._next_trial_s is None else max(0.0, self._next_trial_s - self._clock())

    @property
    def is_open(self) -> bool:
        """Whether the upstream is being left alone."""
        return self._next_trial_s is not None

    def begin(self) -> int:
        """Let a call through, which `wait_s` must have allowed. Returns what `end` wants to know of it."""
        if self._next_trial_s is not None:
            self._next_trial_s = self._clock() + PAUSE_S
        return self._period

    def end(self, period: int, failed: bool | None) -> None:
        """Take in what came of a call; None: nothing that says anything of the upstream."""
        if failed is None or period != self._period:
            return
        if self._next_trial_s is not None:
            if failed:
                self._next_trial_s = self._clock() + PAUSE_S
            else:
                self._turn(None)
            return
        self._last.append(failed)
        if len(self._last) == WINDOW and sum(self._last) >= SHARE * WINDOW:
            self._turn(self._clock() + PAUSE_S)

    def _turn(self, next_trial_s: float | None) -> None:
        self._next_trial_s = next_trial_s
        self._last.clear()
        self._period += 1


class RetryBudget:
    """At most one retry for every ten calls, so that retries never double the load of an upstream in trouble.

    The idea is Finagle's RetryBudget.
    """

    SHARE = 0.1
    MOST = 3.0  # retries saved up, also those there are at first

    def __init__(self) -> None:
        """Start full."""
        self._saved = self.MOST

    def deposit(self) -> None:
        """A call was made."""
        self._saved = min(self.MOST, self._saved + self.SHARE)

    def withdraw(self) -> bool:
        """Whether one more retry may be made; counts it."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
