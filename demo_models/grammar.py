"""Surface forms: a bracket grammar for wordings, openers and politeness, and typos now and then."""

import random
import re

_CHOICE = re.compile(r"\(([^()]*)\)")

OPENERS = (
    "", "", "", "", "Hi, ", "Hello, ", "Hey, ", "Good morning, ", "Good evening, ", "Hi there, ", "Quick question: ",
    "Hello again. ", "Sorry to bother you, ", "One question: ",
)  # fmt: skip
CLOSERS = ("", "", "", "", "", " Thanks!", " Thank you.", " Please help.", " Thanks in advance.")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the support agent of Fern and Fable.",
    "Answer the customer's question briefly.",
)


def expand(template: str, rng: random.Random, **slots: object) -> str:
    """Choose one of each `(a|b)`, then fill the `{slots}`. An empty choice leaves one space, and none before a sign."""
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return re.sub(r" +(?=[ ?.!,])", "", text).strip().format(**slots)


def dress(question: str, rng: random.Random) -> str:
    """Put an opener before a question and a closer after it."""
    opener = rng.choice(OPENERS)
    if opener == "" or opener.endswith((". ", ": ")):
        question = question[0].upper() + question[1:]
    return opener + question + rng.choice(CLOSERS)


def misspell(text: str, rng: random.Random, protected: frozenset[str]) -> str:
    """Swap, drop or double one letter inside one word of five letters or more that carries no fact."""
    words = [match for match in re.finditer(r"\b[a-z]{5,}\b", text) if match[0] not in protected]
    if not words:
        return text
    word = rng.choice(words)
    at = word.start() + rng.randrange(1, len(word[0]) - 1)
    return rng.choice(
        (
            text[:at] + text[at + 1] + text[at] + text[at + 2 :],
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
        )
    )


def listing(words: list[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
