"""A text that goes round in circles."""

import re
from operator import eq

from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

LONGEST_PHRASE = 12  # words
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def repetition(evidence: DraftEvidence) -> Problem | None:
    """No phrase follows itself too often: no word four times in a row, no longer phrase three times.

    Phrases without a letter don't count, since columns of figures repeat with good reason; nor does code, for the same.
    """
    prose = _CODE.sub(lambda block: " " * len(block[0]), evidence.text) if "```" in evidence.text else evidence.text
    words = prose.split()
    repeats = len(words) - len(set(words))  # a phrase of n words that stands three times repeats 2 n words, at least
    for length in range(1, min(LONGEST_PHRASE, repeats // 2) + 1):
        most = 3 if length == 1 else 2
        equal = list(map(eq, words[length:], words))  # does the text equal itself `length` words earlier?
        if sum(equal) < length * most:
            continue
        run = 0  # positions in a row at which it does
        for begin, same in enumerate(equal, 1):
            run = run + 1 if same else 0
            end = begin + length
            if run >= length * most and any(map(str.isalpha, "".join(words[begin:end]))):
                spans = [match.span() for match in re.finditer(r"\S+", prose)]
                phrase = " ".join(words[begin:end])
                reason = f'expected no phrase more than {most} times in a row, got "{phrase}" {run // length + 1} times'
                return Problem(reason, (spans[begin - run][0], spans[end - 1][1]))
    return None
