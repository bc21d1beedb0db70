"""A text that goes round in circles."""

import re

from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

LONGEST_PHRASE = 12  # words
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def repetition(evidence: DraftEvidence) -> Problem | None:
    """No phrase follows itself too often: no word four times in a row, no longer phrase three times.

    Phrases without a letter don't count, since columns of figures repeat with good reason; nor does code, for the same.
    """
    prose = _CODE.sub(lambda block: " " * len(block[0]), evidence.text)
    spans = [match.span() for match in re.finditer(r"\S+", prose)]
    words = [prose[slice(*span)] for span in spans]
    lettered = [any(map(str.isalpha, word)) for word in words]
    for length in range(1, LONGEST_PHRASE + 1):
        most = 3 if length == 1 else 2
        run = 0  # positions in a row at which the text equals itself `length` words earlier
        for at in range(length, len(words)):
            run = run + 1 if words[at] == words[at - length] else 0
            begin = at - length + 1
            if run >= length * most and any(lettered[begin : at + 1]):
                phrase = " ".join(words[begin : at + 1])
                reason = f'expected no phrase more than {most} times in a row, got "{phrase}" {run // length + 1} times'
                return Problem(reason, (spans[begin - run][0], spans[at][1]))
    return None
