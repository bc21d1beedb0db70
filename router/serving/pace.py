"""How long an engine would take now, from its queue, the time of its steps and what answers took lately."""

from typing import NamedTuple, Protocol

RATE = 0.1  # of what is new, in a moving average
BURST = 4  # at least a capacity's so-manyth part is thought to run: those who came together may not run yet


class Load(Protocol):
    """The part of an engine's load that this looks at."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def background_waiting(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def step_s(self) -> float: ...


class Expected(NamedTuple):
    """Seconds until a new request is served, and then until it is done."""

    wait_s: float
    work_s: float  # 0: nothing is known yet


class Pace:
    """Learns what an engine's answers take.

    Work is steps an answer times the time of a step, which follows the company at once; for upstreams, which tell no steps, the time of the last
    answers. With c requests served together a newcomer behind w others waits w / c times the work. Where requests wait, c is how many run: pages
    may be scarcer than slots.
    """

    def __init__(self) -> None:
        self._steps = 0.0
        self._seconds = 0.0

    def observe(self, steps: int, seconds: float) -> None:
        """Take note of an answer: the steps it took part in (0: unknown), and the seconds on the engine, queueing not counted."""
        self._steps = _average(self._steps, steps)
        self._seconds = _average(self._seconds, seconds)

    def expect(self, load: Load) -> Expected:
        """For a request that comes now."""
        work_s = self._steps * load.step_s or self._seconds
        ahead = max(0, load.waiting - load.background_waiting)  # those of the background give way
        together = max(1, load.running, load.capacity // BURST)
        return Expected(work_s * ahead / together, work_s)


def _average(old: float, new: float) -> float:
    return old + RATE * (new - old) if old else new
