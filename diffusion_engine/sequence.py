"""One answer in the making: what is asked for, what stands in the cache, and how its canvas fares. Imports no torch."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from msgspec import Struct

Finish = Literal["stop", "length", "unsettled", "deadline"]
GRACE_STEPS = 6  # a younger canvas is never given up
TREND_STEPS = 5  # steps that a trend is read from


class Sampling(Struct, frozen=True, kw_only=True):
    """How one answer is denoised. Entropies are in nats, at the step's temperature."""

    max_steps: int  # for each canvas
    t_min: float  # step n of N has temperature t_min + (t_max - t_min) * (N - n + 1) / N
    t_max: float
    entropy_bound: (
        float  # of the positions taken in a step, all but the least certain have at most this entropy together
    )
    confidence: float  # a canvas is done when its mean entropy is below this ...
    stability: int  # ... and its most likely tokens have stayed the same over this many steps
    max_tokens: int
    end_ids: tuple[int, ...] = ()  # tokens that end the answer
    seed: int = 0
    give_up: bool = True  # stop at a canvas that won't settle

    def check(self) -> None:
        """Raise ValueError unless every number is in its range; says expected and got."""
        for name, low in (("max_steps", 1), ("max_tokens", 1), ("stability", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"expected {name} of at least {low}, got {getattr(self, name)}")
        if not 0 <= self.t_min <= self.t_max < math.inf:
            raise ValueError(f"expected 0 <= t_min <= t_max < inf, got {self.t_min} and {self.t_max}")
        for name in ("entropy_bound", "confidence"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"expected a seed of 64 bits, got {self.seed}")

    def temperature(self, step: int) -> float:
        """Temperature of a step, 1 to max_steps."""
        return self.t_min + (self.t_max - self.t_min) * ((self.max_steps - step + 1) / self.max_steps)


class CanvasReport(NamedTuple):
    """What one finished canvas tells; one entry for each of its C positions."""

    ids: list[int]  # the most likely token
    logprobs: list[float]  # of it, in the last step
    entropy: list[float]  # in the last step
    mean_entropy: list[float]  # over all steps
    changed_at: list[int]  # the last step that changed the most likely token
    steps: int
    converged: bool


@dataclass(eq=False)
class Sequence:
    """A prompt and its growing answer.

    Attributes:
        tokens: the prompt, and after it the canvases that are finished.
        given: tokens of the first canvas that are fixed, -1 for those to be found; empty when there are none.
        encoded: how many of `tokens` stand in the cache.
        reused: how many of these another request had encoded.
        slot: the place of its canvas on the device, while it runs.
        step: of the current canvas, 1 once it has been denoised for the first time.
        forwards: forward passes it took part in.
        entropies: the current canvas's mean entropy after each step.
    """

    sampling: Sampling
    prompt: list[int]
    canvas: int
    given: list[int] = field(default_factory=list)
    candidate: int = 0
    tokens: list[int] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0
    slot: int = -1
    step: int = 0
    forwards: int = 0
    entropies: list[float] = field(default_factory=list)
    reports: list[CanvasReport] = field(default_factory=list)
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.prompt)

    @property
    def longest(self) -> int:
        """The most positions it will ever hold, its last canvas included."""
        return len(self.prompt) + math.ceil(self.sampling.max_tokens / self.canvas) * self.canvas

    @property
    def given_now(self) -> list[int]:
        """The given tokens of the current canvas; empty when there are none."""
        return [] if self.reports else self.given

    @property
    def pending(self) -> int:
        """Tokens that must be encoded before the next canvas can be denoised."""
        return len(self.tokens) - self.encoded

    def after_step(self, settled: bool, mean_entropy: float) -> Literal["go on", "converged", "at limit", "given up"]:
        """Take in a denoising step of the current canvas."""
        self.entropies.append(mean_entropy)
        if settled:
            return "converged"
        if self.step >= self.sampling.max_steps:
            return "at limit"
        if self.sampling.give_up and wont_settle(self.entropies, self.sampling):
            return "given up"
        return "go on"

    def end_canvas(self, report: CanvasReport, given_up: bool) -> None:
        """Take in a finished canvas: the answer ends here, or its tokens wait to be encoded."""
        self.reports.append(report)
        self.step, self.entropies = 0, []
        self.tokens += report.ids
        answered = len(self.tokens) - len(self.prompt)
        if given_up:
            self.finish = "unsettled"
        elif any(token in self.sampling.end_ids for token in report.ids):
            self.finish = "stop" if self._end() <= self.sampling.max_tokens else "length"
        elif answered >= self.sampling.max_tokens:
            self.finish = "length"

    def answer(self) -> list[int]:
        """The tokens of the answer so far, without the one that ends it."""
        return self.tokens[len(self.prompt) :][: min(self._end(), self.sampling.max_tokens)]

    def _end(self) -> int:
        answer = self.tokens[len(self.prompt) :]
        return next((i for i, token in enumerate(answer) if token in self.sampling.end_ids), len(answer))


def wont_settle(entropies: list[float], sampling: Sampling) -> bool:
    """Whether a canvas's mean entropies, one for each step so far, say that it won't converge within its steps.

    A canvas that settles does so about geometrically. A line through the logarithms of the last `TREND_STEPS` tells how many more steps it takes
    down to `confidence`; it is given up when that is more than there are.
    """
    if not 0 < sampling.confidence < entropies[-1] or len(entropies) < GRACE_STEPS:
        return False  # a confidence of 0 asks for all steps
    slope = _slope([math.log(max(entropy, 1e-9)) for entropy in entropies[-TREND_STEPS:]])
    if slope >= 0:
        return True
    needed = math.log(entropies[-1] / sampling.confidence) / -slope
    return len(entropies) + needed > sampling.max_steps


def _slope(values: list[float]) -> float:
    """Of the least-squares line through values at 0, 1, 2, ..."""
    middle = (len(values) - 1) / 2
    return sum((x - middle) * y for x, y in enumerate(values)) / sum((x - middle) ** 2 for x in range(len(values)))
