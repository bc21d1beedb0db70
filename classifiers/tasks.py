"""What kind of task a request is, told from a few marks of its text: good enough to calibrate by, not to route by."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from classifiers.conversation import task_of

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


def task_type(messages: Sequence[Mapping[str, Any]]) -> str:
    """One of TYPES, of what a conversation asks now.

    The first that fits: "choice" lists options A, B, C; "code" holds some, names a programming language or asks for a program;
    "structured" names a format of data; "math" has two numbers and asks for a quantity, or a sum; "lookup" is a short question;
    all else is "chat".
    """
    asked = task_of(messages)
    lower = asked.lower()
    words = set(_WORD.findall(lower))
    if len(set(_OPTION.findall(lower))) >= _LEAST_OPTIONS:
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
