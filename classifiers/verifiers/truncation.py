"""A text that stops before its end."""

import re

from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

MOST_WORDS = 3  # of a last line that may end in a comma, colon or dash: "Best regards,", "- your email:"

_DANGLING = re.compile(r"[,:×\[{]\Z|(?<!:)\(\Z|(?<=\s)[=+-]\Z")  # "C++", "18+" and ":(" end well
_FENCE = re.compile(r"^[^\S\n]*(?:(?:>|[*+-]|\d{1,3}[.)])[^\S\n]*)*(`{3,})([^`\n]*)$", re.MULTILINE)


def truncation(evidence: DraftEvidence) -> Problem | None:
    """The text is finished: not at its limit, not empty, no code block open, no sign at its end that wants more."""
    text = evidence.text.rstrip()
    if not text:
        return Problem("expected an answer, got an empty text")
    if evidence.finish_reason == "length":
        return Problem("expected an end of turn, got the token limit", (len(text) - 1, len(text)))
    if (begin := _open_block(text)) is not None:
        return Problem("expected every code block closed, got one that is open", (begin, len(text)))
    dangling = _DANGLING.search(text, max(0, len(text) - 2))
    if dangling and not (dangling[0] in ",:-" and len(re.findall(r"\w+", text[text.rfind("\n") + 1 :])) <= MOST_WORDS):
        return Problem(f'expected a finished sentence, got one that ends in "{dangling[0]}"', dangling.span())
    return None


def _open_block(text: str) -> int | None:
    """Where the block begins that is never closed.

    Fences stand at the beginning of a line; of a block within a block, which CommonMark doesn't know, they come in pairs.
    """
    fences = list(_FENCE.finditer(text))
    opened: re.Match[str] | None = None
    for fence in fences:
        if opened is None:
            opened = fence
        elif len(fence[1]) >= len(opened[1]) and not fence[2].strip():
            opened = None
    return opened.start(1) if opened and len(fences) % 2 else None
