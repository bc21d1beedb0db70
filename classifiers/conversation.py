"""What a conversation asks now, and numbers that describe it. A stored model names the version it was trained on."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers.ngrams import ngrams
from classifiers.text import text_of

VERSION = "conversation-2"
MOST_CHARS = 8_000  # of a task; of a longer one the first and the last half as many are read
SHORT = 3  # words: so few ask for nothing by themselves
FOLLOWING = 12  # words, at most, of a turn that refers to the one before
MOST_UNCLOSED = 16  # kinds of tags without an end, before a turn is left as it is
LEAST_TOLD = 2  # lines that instruct the assistant, in paragraphs taken for instructions

_REFERS = frozenset((
    "it", "that", "this", "those", "these", "them", "they", "ones", "same", "again", "former", "latter", "yes", "yeah", "yep", "ok", "okay",
    "sure", "nope", "continue", "proceed", "ahead", "instead", "too", "above", "previous", "earlier", "option",
))  # fmt: skip
_BEGINS = ("and ", "but ", "what about", "how about", "go on", "then ", "now ", "or ")
_WORD = re.compile(r"\w+")
_SAID = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+"
)  # two signs: a word

# Agents wrap what they tell the model about itself and its surroundings in tags of these names, inside the user's turn.
_TAG = re.compile(r"<([A-Za-z][\w-]*+)(?:\s[^<>]*+)?>")
_HARNESS = re.compile(
    r"(?:system|environment|user|custom|project|agent|tools?|workspace|editor|session|ide|open|attached|additional|local|command|git|repo|"
    r"memory|function|mcp|previous|recently)[-_][\w-]*",
    re.IGNORECASE,
)
_EITHER = frozenset(
    {"instructions", "rules", "skills", "guidelines", "persona", "tools", "memory", "metadata"}
)  # of an agent, or the task
_SPOKEN = frozenset(
    {"user_query", "user-query", "user_message", "user-message", "user_request", "user_prompt", "user_input"}
)
_TOLD = re.compile(
    r"[ \t#>*\d.)-]*(?:you are (?:a|an|the)\b|you must\b|you should\b|you will\b|you have access|your (?:task|job|role|goal|output)\b|"
    r"always\b|never\b|do not\b|don't\b|avoid\b|ensure\b|make sure\b|respond\b|follow these\b|if the user\b|when (?:the user|asked)\b|"
    r"(?:instructions|rules|guidelines|tools|constraints|persona|style)\s*:?\s*$)",
    re.IGNORECASE,
)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")

_CLASSES = (
    b"0123456789", bytes(range(65, 91)), bytes(range(97, 123)), b" ", b"\n", b",", b".", b"?", b":", b";", b"()", b"[]{}",
    b"+-*/=<>^%", b"$", b"\\", b"_", b"\"'", b"|", bytes(range(128, 256)),
)  # fmt: skip
_IN_CLASS = np.zeros((256, len(_CLASSES)), np.float32)
for _column, _members in enumerate(_CLASSES):
    _IN_CLASS[list(_members), _column] = 1

# Words and phrases whose number says what kind of work a text asks for.
_TELLING = (
    "total", "altogether", "combined", "left", "remain", "remaining", "rest", "each", "every", "both", "same", "another", "additional",
    "fewer", "less", "most", "least", "best", "twice", "half", "third", "quarter", "fraction", "times", "percent", "percentage",
    "ratio", "average", "increase", "decrease", "discount", "cost", "costs", "price", "buy", "sell", "sold", "spend", "earn", "pay",
    "profit", "minutes", "hours", "day", "days", "week", "month", "year", "years", "age", "speed", "miles", "distance", "first",
    "second", "next", "then", "after", "before", "if", "per", "not", "except", "true", "false", "statement", "likely", "according",
    "because", "why", "who", "when", "where", "would", "calculate", "find", "evaluate", "define", "let", "law", "court", "patient",
    "theory",
)  # fmt: skip
_PHRASES = (
    "how many", "how much", "how old", "as many", "as much", "all of", "none of", "more than", "less than", "an hour", "if each", "true of",
    "which of the following", "following is", "what is", "x^", "f(x)", "/", "%", "$",
)  # fmt: skip
_NUMBER = re.compile(r"\d[\d,]*\.?\d*")
# `re` skips to where a set matches that a pattern begins with: these take a third less time than \d+ and \b[A-Z][a-z]+.
_DIGITS = re.compile(r"\d\d*")
_NAME = re.compile(r"[A-Z](?<!\w.)[a-z]+")
_SHAPE = (
    "characters", "words", "numbers", "mean word", "longest word", "long words", "short words", "longest line", "median line", "first line",
    "last line", "spread of lines", "sentences", "words a sentence",
)  # fmt: skip
_NUMBERS = (
    "largest number", "mean number", "different numbers", "repeated numbers", "fractions", "names", "different words", "share of them",
)  # fmt: skip
_NOT_TOLD = dict.fromkeys(_TELLING, 0)
COUNTS = 2 * len(_CLASSES) + len(_SHAPE) + len(_TELLING) + len(_PHRASES) + len(_NUMBERS)


class Features(NamedTuple):
    """A conversation as the complexity model sees it."""

    columns: NDArray[np.int64]  # (G,) of hashed n-grams, below `classifiers.ngrams.COLUMNS`
    values: NDArray[np.float32]  # (G,)
    counts: NDArray[np.float32]  # (COUNTS,)


def features(messages: Sequence[Mapping[str, Any]]) -> Features:
    """Hashed n-grams and counts of what a conversation asks now; any conversation has some, an empty one too."""
    task = task_of(messages)
    return Features(*ngrams(_DIGITS.sub("0", task.lower())), counts(task))


def task_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a conversation asks now, at most MOST_CHARS characters.

    That is the last user turn, without what an agent has pasted into it. A turn that only makes sense after another ("yes, do it")
    takes the assistant's turn before and the user's turn before that along, back to one that stands by itself. System and developer
    messages say nothing about one request's difficulty and are left out.
    """
    taken: list[str] = []
    room = MOST_CHARS
    for message in reversed(messages):
        role = message.get("role")
        if role == "user":
            taken.append(asked(text_of(message)))
            if not refers(taken[-1]):
                break
        elif role == "assistant" and taken:
            taken.append(_bounded(text_of(message)))
        else:
            continue
        room -= len(taken[-1]) + 1
        if room < 0:
            break
    return _bounded("\n".join(reversed(taken)))


def refers(turn: str) -> bool:
    """Does a turn lean on the one before? Such are very short ones, and short ones that begin or point like it (in English)."""
    found = _SAID.finditer(turn[:400].lower())
    words = [match[0] for match in islice(found, FOLLOWING + 1)]  # more make no difference
    if len(words) <= SHORT:
        return True
    return len(words) <= FOLLOWING and (turn.lower().startswith(_BEGINS) or not _REFERS.isdisjoint(words))


def asked(turn: str) -> str:
    """A user's turn without what an agent put before or around it: tagged blocks, and leading paragraphs that instruct the assistant.

    A tag that may as well hold the task (`<instructions>`) counts as the agent's only where something else asks.
    """
    rest = _without_blocks(turn, either=True).strip()
    if refers(rest):
        rest = _without_blocks(turn, either=False).strip() or turn
    return _without_preamble(_bounded(rest))


def _without_blocks(turn: str, *, either: bool) -> str:
    """Cut `<system-reminder> ... </system-reminder>` and the like; an opening tag without its end is left."""
    kept, at, unclosed = [], 0, set()
    for match in _TAG.finditer(turn):
        name = match[1]
        if match.start() < at or name in unclosed or name.lower() in _SPOKEN:
            continue
        if not (_HARNESS.fullmatch(name) or (either and name.lower() in _EITHER)):
            continue
        end = turn.find(f"</{name}>", match.end())
        if end < 0:
            unclosed.add(name)
            if len(unclosed) == MOST_UNCLOSED:
                break
            continue
        kept.append(turn[at : match.start()])
        at = end + len(name) + 3
    return "".join([*kept, turn[at:]])


def _without_preamble(turn: str) -> str:
    """Cut the leading paragraphs of which at least half the lines instruct the assistant, if they are LEAST_TOLD in all."""
    paragraphs = _PARAGRAPH.split(turn)
    told, before = 0, 0
    for paragraph in paragraphs[:-1]:
        lines = paragraph.splitlines()
        found = sum(_TOLD.match(line) is not None for line in lines)
        if 2 * found < max(1, len(lines)):
            break
        told, before = told + found, before + 1
    return "\n\n".join(paragraphs[before:]) if told >= LEAST_TOLD else turn


def _bounded(text: str) -> str:
    half = MOST_CHARS // 2
    return text if len(text) <= MOST_CHARS else f"{text[:half]}\n{text[-half:]}"


def counts(text: str) -> NDArray[np.float32]:
    """How much of what stands in a text: signs, words, lines, phrases and numbers; (COUNTS,) float32, most of them log(1 + n).

    Of the few dozen words and lines of a usual text Python's own numbers take less time than arrays. What is rounded to float32 on the
    way, or is a logarithm, stays numpy's: others differ in the last bit.
    """
    data = np.frombuffer(text.encode(errors="replace"), np.uint8)
    signs = np.bincount(data, minlength=256).astype(np.float32) @ _IN_CLASS
    lower = text.lower()
    words = _WORD.findall(lower)
    lengths = sorted(map(len, words)) or [0]
    lines = np.log1p(np.array([len(line) for line in text.split("\n")], np.float32))
    heights = lines.tolist()
    sentences = max(1, lower.count(". ") + lower.count("? "))
    often = Counter(words)
    different = len(often)
    telling = _NOT_TOLD | {word: min(3, often[word]) for word in _NOT_TOLD.keys() & often.keys()}
    numbers = [min(float(number.replace(",", "")), 1e15) for number in _NUMBER.findall(text)]
    logs = np.log1p([
        len(data), len(words), len(_DIGITS.findall(text)), sentences,
        max(numbers, default=0.0), sum(numbers) / max(1, len(numbers)), different,
    ]).tolist()  # fmt: skip
    return np.concatenate([
        np.log1p(signs),
        signs / max(1, len(data)),
        np.array([
            *logs[:3],
            sum(lengths) / len(lengths),
            lengths[-1],
            (len(lengths) - bisect_right(lengths, 7)) / len(lengths),
            bisect_right(lengths, 3) / len(lengths),
            max(heights),
            median(heights),
            heights[0],
            heights[-1],
            lines.std() if len(heights) > 1 else 0.0,
            logs[3],
            len(words) / sentences,
            *telling.values(),
            *(count if count < 3 else 3 for count in map(lower.count, _PHRASES)),
            *logs[4:6],
            len(set(numbers)),
            len(numbers) - len(set(numbers)),
            sum(number % 1 > 0 for number in numbers),
            len(set(_NAME.findall(text))),
            logs[6],
            different / max(1, len(words)),
        ], np.float32),
    ], dtype=np.float32)  # fmt: skip
