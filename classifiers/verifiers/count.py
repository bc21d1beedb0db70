"""How many there may be: the range that every counting verifier shares."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from classifiers.api import Span
from classifiers.verifiers.problem import Problem

Low = Annotated[int, Meta(ge=0)]  # at least so many
High = Annotated[int, Meta(ge=0)] | None  # at most so many; None: no limit


def outside(found: Sequence[Span], what: str, low: int, high: int | None) -> Problem | None:
    """A problem unless `low <= len(found) <= high`; too many show from the first superfluous one on."""
    if len(found) < low:
        return Problem(f"expected {amount(low, high)} {what}, got {len(found)}")
    if high is not None and len(found) > high:
        return Problem(f"expected {amount(low, high)} {what}, got {len(found)}", (found[high][0], found[-1][1]))
    return None


def amount(low: int, high: int | None) -> str:
    """A range in words."""
    if high is None:
        return f"at least {low}"
    if low == high:
        return f"exactly {low}"
    return f"{low} to {high}" if low else f"at most {high}"
