"""Marks that an answer must or may not contain."""

from typing import Annotated

from msgspec import Meta

from classifiers.verifiers.problem import Problem

Marks = Annotated[str, Meta(min_length=1)]  # each character is one


def forbidden_marks(text: str, *, marks: Marks) -> Problem | None:
    """None of the marks stands anywhere."""
    at = next((index for index, character in enumerate(text) if character in marks), None)
    return None if at is None else Problem(f'expected no "{text[at]}", got one', (at, at + 1))


def required_marks(text: str, *, marks: Marks) -> Problem | None:
    """Each of the marks stands somewhere."""
    missing = next((mark for mark in marks if mark not in text), None)
    return None if missing is None else Problem(f'expected a "{missing}", got none')
