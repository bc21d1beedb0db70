"""Deterministic checks of a draft, each a small pure function found by its name.

`VERIFIERS` hold for every draft. What a request asks of its answer's form is read out of the conversation, and checked by
`CONSTRAINTS`.
"""

import logging
from collections.abc import Callable, Iterator

from classifiers.api import Check, DraftEvidence
from classifiers.tasks import Task
from classifiers.verifiers.arithmetic import arithmetic
from classifiers.verifiers.code import code
from classifiers.verifiers.constraints import CONSTRAINTS, check
from classifiers.verifiers.copied import copied
from classifiers.verifiers.json_format import json_format
from classifiers.verifiers.numbers import numbers
from classifiers.verifiers.problem import Problem
from classifiers.verifiers.refusal import refusal
from classifiers.verifiers.repetition import repetition
from classifiers.verifiers.settled import settled
from classifiers.verifiers.truncation import truncation

__all__ = ["CONSTRAINTS", "HINTS", "VERIFIERS", "verify"]

logger = logging.getLogger("draftgate")

VERIFIERS: dict[str, Callable[[DraftEvidence], Problem | None]] = {
    "settled": settled,  # first: of a draft that is given up nothing else is worth saying
    "truncation": truncation,
    "repetition": repetition,
    "arithmetic": arithmetic,
    "json_format": json_format,
    "code": code,
    "refusal": refusal,
    "copied": copied,
    "numbers": numbers,
}
HINTS = frozenset(("refusal", "copied", "numbers"))  # a good draft may fail them; every other check is decisive


def verify(evidence: DraftEvidence, task: Task | None = None) -> tuple[Check, ...]:
    """One check for each verifier, in their order, then one for each constraint that the conversation states.

    A verifier that breaks is logged and its check left out: nothing is known then, and the acceptor copes with that.

    Args:
        evidence: of the draft.
        task: of the evidence's messages, where several drafts share it.
    """
    return tuple(_checks(evidence, task or Task(evidence.messages)))


def _checks(evidence: DraftEvidence, task: Task) -> Iterator[Check]:
    for name, verifier in VERIFIERS.items():
        try:
            problem = verifier(evidence)
        except Exception:
            logger.exception("the verifier %s broke; its check is left out", name)
            continue
        reason, span = problem or ("", None)
        yield Check(verifier=name, passed=problem is None, reason=reason, span=span, decisive=name not in HINTS)
    try:
        found = [check(evidence.text, constraint) for constraint in task.constraints]
    except Exception:
        logger.exception("the conversation's constraints could not be checked; they are left out")
        return
    yield from found
