"""Deterministic checks of a draft: each a small pure function of the evidence, found here by its name."""

from collections.abc import Callable

from classifiers.api import Check, DraftEvidence
from classifiers.verifiers.arithmetic import check_arithmetic
from classifiers.verifiers.repetition import check_repetition
from classifiers.verifiers.settled import check_settled
from classifiers.verifiers.truncation import check_truncation

VERIFIERS: dict[str, Callable[[DraftEvidence], str]] = {
    "settled": check_settled,  # first: of a draft that is given up nothing else is worth saying
    "arithmetic": check_arithmetic,
    "repetition": check_repetition,
    "truncation": check_truncation,
}  # each returns what is wrong, "" when nothing is


def verify(evidence: DraftEvidence) -> tuple[Check, ...]:
    """Run every verifier."""
    reasons = ((name, verifier(evidence)) for name, verifier in VERIFIERS.items())
    return tuple(Check(verifier=name, passed=not reason, reason=reason) for name, reason in reasons)
