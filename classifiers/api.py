"""What other packages may know of the classifiers: evidence in, scores out. Imports no torch and no scikit-learn."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct


class ArtifactError(ValueError):
    """A stored classifier that can't be used: missing, damaged, or of another feature version."""


Span = tuple[int, int]  # first character and the one behind the last


class Constraint(Struct, frozen=True, kw_only=True):
    """Something a request asks of the form of its answer."""

    kind: str  # a name in `classifiers.verifiers.CONSTRAINTS`
    args: dict[str, Any] = {}  # keyword arguments of that verifier
    span: Span | None = None  # the words of the request's last turn that say so; None: said elsewhere


class Check(Struct, frozen=True, kw_only=True):
    """What one verifier found."""

    verifier: str  # a name in `classifiers.verifiers.VERIFIERS` or `CONSTRAINTS`
    passed: bool
    reason: str = ""  # for people: what was expected and what stood there; "" when passed
    span: Span | None = None  # of the draft's text, where it shows; None: nowhere in particular
    decisive: bool = True  # a decisive check that fails rejects the draft; another is a hint for the acceptor


class RefinerScore(Struct, frozen=True, kw_only=True):
    """What the refiner thinks of a draft, from one forward over it."""

    token_logprobs: tuple[float, ...]  # natural log, per token of the refiner's tokenizer
    token_ranks: tuple[int, ...]  # 0: the refiner's own choice
    agreeing_prefix: int  # leading tokens that are its own choice


class DraftEvidence(Struct, frozen=True, kw_only=True):
    """All that is known of a draft when it is judged. Of what has a default, any part may be missing."""

    messages: tuple[dict[str, Any], ...]
    text: str
    finish_reason: Literal["stop", "length", "unsettled", "deadline"] = "stop"
    steps: tuple[int, ...] = ()  # per canvas; empty: the denoiser's signals are unknown
    converged: tuple[bool, ...] = ()  # per canvas
    token_entropy: tuple[float, ...] = ()  # nats, per token
    token_logprobs: tuple[float, ...] = ()  # natural log, per token
    late_flips: int = 0
    score: RefinerScore | None = None
    others: tuple[str, ...] = ()  # texts of the other candidates of the same request
    response_format: dict[str, Any] | None = None  # OpenAI's: json_object, or json_schema with its schema


class Verdict(Struct, frozen=True, kw_only=True):
    """Is the draft good?"""

    quality: float  # P(the draft is good), 0..1; 0 when a decisive check failed
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The decisive checks that did not pass."""
        return tuple(check for check in self.checks if check.decisive and not check.passed)


class ComplexityModel(Protocol):
    """Scores a conversation before anything is generated."""

    version: str

    def score(self, messages: tuple[dict[str, Any], ...]) -> float:
        """P(the draft is bad and the refiner would be good), 0..1."""
        ...


class QualityModel(Protocol):
    """Judges a finished draft."""

    version: str

    def judge(self, evidence: DraftEvidence) -> Verdict:
        """Run the verifiers, then the acceptor."""
        ...

    def unverifiable(self, response_format: dict[str, Any]) -> str | None:
        """Why no answer could be held to this format; None when one can."""
        ...

    def choose(self, evidences: Sequence[DraftEvidence]) -> tuple[int, Verdict]:
        """Judge several candidates of one request: the best one's index and verdict, the first one's of equals."""
        ...
