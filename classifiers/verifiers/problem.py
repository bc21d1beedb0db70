"""What a verifier says when it finds something wrong."""

from typing import NamedTuple

from classifiers.api import Span


class Problem(NamedTuple):
    """Why a text fails a check. Verifiers return None for a text that passes."""

    reason: str  # "expected ..., got ..."
    span: Span | None = None  # where it shows
