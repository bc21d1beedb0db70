"""Numbers that describe a draft's text: its form, its working, and how both relate to what was asked."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from classifiers import conversation
from classifiers.api import Check, DraftEvidence
from classifiers.tasks import Task
from classifiers.verifiers import HINTS
from classifiers.working import (
    ADDING,
    DIVIDING,
    MULTIPLYING,
    TAKING,
    USUAL,
    Given,
    Working,
    bounded,
    numbers_in,
    rounded,
    sources,
    words_in,
    working,
)

_FORM = (
    "characters", "words", "lines", "longest line", "words a sentence", "mean word", "share of different words", "share of digits",
    "ends a sentence", "ends in a digit", "brackets", "long decimals", "empty lines", "equals signs a line", "hedges", "algebra",
    "conclusions", "conclusions a line",
)  # fmt: skip
_RELATION = (
    "words over words asked", "share of words that were asked", "share of words asked", "share of question in the last lines",
    "share of names", "conditions first",
)  # fmt: skip
_NUMBERS = (
    "numbers", "different numbers", "numbers asked", "spelled numbers asked", "numbers left out", "share of numbers left out",
    "spelled numbers left out", "numbers from nowhere", "share of numbers from nowhere",
)  # fmt: skip
_WORKING = (
    "results", "repeated results", "fractional results", "share of fractional results", "operators", "additions", "subtractions",
    "multiplications", "divisions", "share of subtractions", "share of divisions", "operators a number asked",
    "operators less numbers asked", "sums", "notes less written sums", "open notes", "operands", "operands a sum",
    "share of earlier results", "usual operands", "operands from nowhere", "share of operands from nowhere", "unused results",
    "numbers asked that are no operand", "share of numbers asked that are no operand", "numbers used again",
    "more asked", "less asked", "more without an addition", "less without a subtraction",
)  # fmt: skip
_ANSWER = (
    "marked", "place of the mark", "words of the answer", "numbers of the answer", "size of the answer", "decimals of the answer",
    "decimals of a count", "decimals where no money is asked", "answer over the largest number", "answer over the smallest number",
    "answer is the last result", "answer is a result", "answer is the last sum's", "answer is the largest result", "answer's occurrences",
)  # fmt: skip
_HINTS = tuple(sorted(HINTS))
ASKED = tuple(f"asked {number}" for number in range(conversation.COUNTS))
TEXT = (
    *ASKED,
    *_FORM,
    *_RELATION,
    *_NUMBERS,
    *_WORKING,
    *_ANSWER,
    *(f"hint: {name}" for name in _HINTS),
)

_NAME = re.compile(
    r"[A-Z](?<!\w.)(?<![.?!]\s.)(?<!^.)[a-z]+"
)  # not at a beginning; the set first, as in `conversation`
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MARK = re.compile(r"(?=[#\\a])(?:####|\\boxed\b|\banswer(?:\s+is\b|\s*[:=]))", re.IGNORECASE)
_LONG_DECIMAL = re.compile(r"\.\d{3,}|≈")
_VARIABLE = re.compile(r"\b[A-Za-z] ?=|\b\d[A-Za-z]\b")
_MONEY = re.compile(r"[$€£]|\b(?:cents?|dollars?|euros?|pounds?)\b", re.IGNORECASE)
_MORE = re.compile(r"(\d[\d,]{0,15}) (?:more|additional|extra)\b")
_LESS = re.compile(r"(\d[\d,]{0,15}) (?:fewer|less)\b")
_BEHIND_SIGN = re.compile(r"([+\-−\u2013])\s*(?:[$€£(]\s*)?(\d[\d,]{0,15})")
_BEFORE_SIGN = re.compile(r"(\d[\d,]{0,15})\s*([+\-−\u2013])")
_HEDGES = frozenset((
    "about", "approximately", "assume", "assumed", "assuming", "assumption", "can't", "cannot", "depending", "depends",
    "however", "information", "likely", "maybe", "might", "missing", "perhaps", "possible", "specified", "suppose", "unclear",
    "unknown",
))  # fmt: skip
_ALGEBRA = frozenset((
    "denote", "equation", "equations", "let", "let's", "represent", "represents", "solve", "solving", "substitute",
    "substituting", "variable",
))  # fmt: skip
_CONCLUSIONS = frozenset(("altogether", "finally", "hence", "so", "therefore", "thus", "total"))
_EMPTY_WORDS = frozenset((
    "a", "all", "an", "and", "are", "as", "at", "be", "by", "can", "did", "do", "does", "each", "for", "from", "had", "has",
    "have", "he", "her", "his", "how", "if", "in", "is", "it", "many", "much", "of", "on", "per", "she", "so", "that", "the",
    "their", "then", "there", "they", "this", "to", "was", "were", "what", "when", "which", "will", "with", "would",
))  # fmt: skip


def text_features(evidence: DraftEvidence, checks: Sequence[Check], task: Task | None = None) -> NDArray[np.float32]:
    """TEXT of any draft, an empty one too; (len(TEXT),). Sizes are log(1 + n); what can't be said is -1."""
    task = task or Task(evidence.messages)
    text = bounded(evidence.text.strip())
    words, done = words_in(text), working(text)
    values = [
        *_form(text, words),
        *_relation(text, words, task.text, task.words),
        *_numbers(done, task.given),
        *_steps(text, done, task.text, task.given),
        *_answer(text, done, task.text, task.given),
        *_hints(checks),
    ]
    return np.concatenate([task.counts, np.array(values, np.float32)])


def _form(text: str, words: list[str]) -> list[float]:
    lines = [line for line in text.split("\n") if line.strip()]
    often = Counter(words)
    conclusions = _among(often, _CONCLUSIONS)
    return [
        math.log1p(len(text)),
        math.log1p(len(words)),
        math.log1p(len(lines)),
        math.log1p(max(map(len, lines), default=0)),
        len(words) / len(_SENTENCE_END.split(text)),
        sum(map(len, words)) / max(1, len(words)),
        len(often) / max(1, len(words)),
        sum(map(text.count, "0123456789")) / max(1, len(text)),
        text.endswith((".", "!", "?", ")", "`", '"')),
        text[-1:].isdigit(),
        text.count("("),
        len(_LONG_DECIMAL.findall(text)),
        text.count("\n\n"),
        text.count("=") / max(1, len(lines)),
        _among(often, _HEDGES),
        _among(often, _ALGEBRA) + len(_VARIABLE.findall(text)),
        conclusions,
        conclusions / max(1, len(lines)),
    ]


def _relation(text: str, words: list[str], asked: str, asked_words: list[str]) -> list[float]:
    said, wanted = set(words) - _EMPTY_WORDS, set(asked_words) - _EMPTY_WORDS
    question = _SENTENCE_END.split(asked.strip())[-1].lower()
    end = set(words if text.count("\n") < 2 else words_in("\n".join(text.split("\n")[-2:])))
    in_question = set(words_in(question)) - _EMPTY_WORDS
    names = set(_NAME.findall(asked))
    return [
        math.log1p(len(words)) - math.log1p(len(asked_words)),
        len(said & wanted) / max(1, len(said)),
        len(said & wanted) / max(1, len(wanted)),
        len(in_question & end) / max(1, len(in_question)),
        sum(name in text for name in names) / max(1, len(names)),
        question.startswith("if"),
    ]


def _numbers(done: Working, given: Given) -> list[float]:
    different, spelled = set(map(rounded, done.numbers)), set(given.spelled)
    left_out = sum(number not in different and shares.isdisjoint(different) for number, shares in given.shares.items())
    spelled_out = sum(value not in different and rounded(1 / value) not in different for value in spelled)
    known = spelled.union(given.shares, given.percentages, USUAL, map(rounded, done.results))
    stray = len(different - known)
    return [
        math.log1p(len(done.numbers)),
        math.log1p(len(different)),
        len(given.written),
        len(given.spelled),
        left_out,
        left_out / max(1, len(given.shares)),
        spelled_out,
        stray,
        stray / max(1, len(different)),
    ]


def _steps(text: str, done: Working, asked: str, given: Given) -> list[float]:
    found = sources(done.sums, given.percentages.union(given.shares, given.spelled))
    operands = [rounded(operand) for one in done.sums for operand in one.operands]
    operators, sums, used = len(done.operators), len(done.sums), set(operands)
    unused = sum(number not in used and shares.isdisjoint(used) for number, shares in given.shares.items())
    asked_numbers = len(given.written) + len(given.spelled)
    fractional = sum(result % 1 > 0 for result in done.results)
    more, less = _MORE.findall(asked), _LESS.findall(asked)
    plus, minus = _signed(text)
    return [
        len(done.results),
        len(done.results) - len(set(done.results)),
        fractional,
        fractional / max(1, len(done.results)),
        operators,
        done.count(ADDING),
        done.count(TAKING),
        done.count(MULTIPLYING),
        done.count(DIVIDING),
        done.count(TAKING) / max(1, operators),
        done.count(DIVIDING) / max(1, operators),
        operators / (1 + asked_numbers),
        operators - asked_numbers,
        sums,
        done.notes - done.written,
        text.count("<<") - text.count(">>"),
        len(operands),
        len(operands) / max(1, sums),
        found.earlier / max(1, len(operands)),
        found.usual,
        found.nowhere,
        found.nowhere / max(1, len(operands)),
        found.unused_results,
        unused,
        unused / max(1, len(given.shares)),
        sum(max(0, operands.count(number) - given.written.count(number)) for number in given.shares),
        len(more),
        len(less),
        sum(number not in plus for number in more),
        sum(number not in minus for number in less),
    ]


def _answer(text: str, done: Working, asked: str, given: Given) -> list[float]:
    marks = list(_MARK.finditer(text))
    behind = text[marks[-1].end() :].split("\n")[0] if marks else ""
    marked = numbers_in(behind)
    answer = marked[0] if marked else done.numbers[-1] if done.numbers else 0.0
    decimals = 0 if answer % 1 == 0 else min(6, len(f"{answer:.6f}".rstrip("0").split(".")[1]))
    size = math.log1p(answer)
    return [
        bool(marks),
        marks[0].start() / max(1, len(text)) if marks else -1,
        len(behind.split()) if marks else -1,
        len(marked) if marks else -1,
        size,
        decimals,
        decimals * ("how many" in asked.lower()),
        0 if decimals == 0 or _MONEY.search(asked) else decimals,
        size - math.log1p(max(given.written, default=0)),
        size - math.log1p(min(given.written, default=0)),
        bool(done.results) and _same(answer, done.results[-1]),
        any(_same(answer, result) for result in done.results),
        _same(answer, done.sums[-1].result) if done.sums else -1,
        bool(done.results) and answer >= max(done.results),
        sum(_same(answer, number) for number in done.numbers),
    ]


def _hints(checks: Sequence[Check]) -> list[float]:
    failed = {check.verifier for check in checks if not check.passed and not check.decisive}
    return [name in failed for name in _HINTS]


def _signed(text: str) -> tuple[set[str], set[str]]:
    """The numbers beside a plus and those beside a minus."""
    signed = [*_BEHIND_SIGN.findall(text), *((sign, number) for number, sign in _BEFORE_SIGN.findall(text))]
    plus = {number for sign, number in signed if sign == "+"}
    minus = {number for sign, number in signed if sign != "+"}
    return plus, minus


def _among(often: Counter[str], wanted: frozenset[str]) -> int:
    return sum(often[word] for word in often.keys() & wanted)


def _same(a: float, b: float) -> bool:
    return abs(a - abs(b)) <= 1e-6 * max(1.0, a)
