"""What a request asks, read once for all that look at it, and of what kind it is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.api import Constraint
from classifiers.asked import read_constraints
from classifiers.conversation import counts, task_of
from classifiers.working import Given, given, words_in

TYPES = ("choice", "code", "structured", "math", "lookup", "chat")

_WORD = re.compile(r"[a-z]+")
_NUMBER = re.compile(r"\d+")
_OPTION = re.compile(r"^[ \t]*\(?([A-Ea-e])[.):][ \t]", re.MULTILINE)
_SUM = re.compile(r"\d\s?[+*/×÷^=-]\s?\d")
_LANGUAGES = frozenset((
    "bash", "css", "golang", "haskell", "html", "java", "javascript", "kotlin", "python", "regex", "sql", "typescript",
))  # fmt: skip
_PROGRAMS = frozenset(("algorithm", "bug", "class", "code", "function", "program", "query", "script", "unittest"))
_PROGRAMMING = frozenset(("debug", "fix", "implement", "optimize", "refactor", "write"))
_FORMATS = frozenset(("csv", "json", "toml", "xml", "yaml"))
_QUANTITIES = frozenset((
    "altogether", "average", "calculate", "cheaper", "compute", "cost", "difference", "evaluate", "longer", "many", "much",
    "older", "pay", "percent", "percentage", "product", "remainder", "solve", "sum", "total",
))  # fmt: skip
_QUESTIONS = frozenset((
    "are", "can", "could", "did", "do", "does", "how", "is", "what", "when", "where", "which", "who", "whose",
))  # fmt: skip
_LOOKUP_WORDS = 40
_LEAST_OPTIONS = 3
_LEAST_NUMBERS = 2


@dataclass(frozen=True)
class Task:
    """What a conversation asks now. Each part is read when it is first wanted, and kept: the drafts of a request share one."""

    messages: Sequence[Mapping[str, Any]]

    @cached_property
    def text(self) -> str:
        """What is asked, of what the conversation holds: `conversation.task_of`."""
        return task_of(self.messages)

    @cached_property
    def counts(self) -> NDArray[np.float32]:
        """`conversation.counts` of the text."""
        return counts(self.text)

    @cached_property
    def words(self) -> list[str]:
        """`working.words_in` of the text."""
        return words_in(self.text)

    @cached_property
    def given(self) -> Given:
        """`working.given` of the text and its words."""
        return given(self.text, self.words)

    @cached_property
    def type(self) -> str:
        """`task_type` of the text."""
        return task_type(self.text)

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """What the conversation asks of its answer's form."""
        return read_constraints(self.messages)


def task_type(asked: str) -> str:
    """One of TYPES, told from a few marks of what is asked: good enough to calibrate by, not to route by.

    The first that fits: "choice" lists options A, B, C; "code" holds some, names a programming language or asks for a program;
    "structured" names a format of data; "math" has two numbers and asks for a quantity, or a sum; "lookup" is a short question;
    all else is "chat".
    """
    lower = asked.lower()
    words = set(_WORD.findall(lower))
    if lower.count("\n") + 1 >= _LEAST_OPTIONS and len(set(_OPTION.findall(lower))) >= _LEAST_OPTIONS:
        return "choice"
    if "```" in asked or words & _LANGUAGES or (words & _PROGRAMMING and words & _PROGRAMS):
        return "code"
    if words & _FORMATS:
        return "structured"
    if len(_NUMBER.findall(asked)) >= _LEAST_NUMBERS and (words & _QUANTITIES or "%" in asked or _SUM.search(asked)):
        return "math"
    if "?" in asked and words & _QUESTIONS and len(asked.split()) <= _LOOKUP_WORDS:
        return "lookup"
    return "chat"
