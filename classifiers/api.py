"""What other packages may know of the classifiers: evidence in, scores out. Imports no torch and no scikit-learn."""

from typing import Any, Literal, Protocol

from msgspec import Struct


class ArtifactError(ValueError):
    """A stored classifier that can't be used: missing, damaged, or of another feature version."""


class Check(Struct, frozen=True, kw_only=True):
    """What one verifier found."""

    verifier: str  # "settled", "repetition", "truncation", "arithmetic"
    passed: bool
    reason: str  # for people: what was expected and what stood there; "" when passed


class DraftEvidence(Struct, frozen=True, kw_only=True):
    """All that is known of a draft when it is judged."""

    messages: tuple[dict[str, Any], ...]
    text: str
    finish_reason: Literal["stop", "length", "unsettled", "deadline"]
    steps: tuple[int, ...]  # per canvas
    converged: tuple[bool, ...]  # per canvas
    token_entropy: tuple[float, ...]  # nats, per token
    token_logprobs: tuple[float, ...]  # natural log, per token
    late_flips: int


class Verdict(Struct, frozen=True, kw_only=True):
    """Is the draft good?"""

    quality: float  # P(the draft is good), 0..1; 0 when a verifier failed
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


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
