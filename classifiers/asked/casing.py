"""Read whether an answer should be in small or in capital letters."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint
from classifiers.asked.amount import amounts
from classifiers.asked.request import Request

HINTS = ("case", "capital", "caps")
_CAPITALS = r"(?:all[\s-]+)?(?:capital\s+letters?|capitals|caps|upper[\s-]?case(?:\s+letters?)?)"
_CAPITAL_WORDS = re.compile(
    rf"\bwords?\s+(?:\w+\s+){{0,2}}(?:in|with)\s+{_CAPITALS}|\b(?:all[\s-]+)?(?:capitali[sz]ed|capital)\s+words?"
)
_TIMES = re.compile(r"\btimes?\b|\bonce\b|\btwice\b")
_SMALL = re.compile(
    r"""\blower[\s-]?cases?\b
    |\b(?:no|without(?:\s+(?:using|any)){0,2}|(?:not|n't)\s+(?:\w+\s+){0,3}?(?:any\s+)?|
        (?:avoid(?:ing)?|refrain\s+from)(?:\s+\w+){0,2}?)
     \s*(?:capital|upper[\s-]?case)\s+letters?""",
    re.VERBOSE,
)
_LARGE = re.compile(
    r"""\b(?:in|use|using|only|with)\s+(?:english\s+)?(?:and\s+)?(?:only\s+)?(?:in\s+)?
       (?:all[\s-]+(?:capital\s+letters?|capitals|caps|upper[\s-]?case)|capital\s+letters?|upper[\s-]?case)
    |\ball[\s-]+(?:capital\s+letters|caps\b|upper[\s-]?case)
    |\bletters?\s+[^.!?\n]{0,40}?capitali[sz]ed
    |\bcapital\s+letters\s+only
    |\bonly\s+(?:capital|upper[\s-]?case)\s+letters""",
    re.VERBOSE,
)
_NEGATED = re.compile(r"\b(?:not|n't|never|without|avoid|avoiding|refrain|no)\b|n't\b")
_EXCEPTION = re.compile(r"\bexcept\b|\bunless\b")
_OF_A_PART = re.compile(
    r"""\b(?:titles?|headings?|names?|words?|first\s+letter|sections?|each|every|key\s+points?|highlight\w*|emphasi\w*|
        at\s+least|at\s+most|less\s+than|fewer\s+than|more\s+than)\b""",
    re.VERBOSE,
)
_OF_ALL = re.compile(
    r"\b(?:entire|whole|response|answer|reply|output|all\s+of\s+the\s+letters|all\s+letters|single\s+word)\b"
)


def read(request: Request) -> Iterator[Constraint]:
    """All small, all capital, or so many words in capitals."""
    plain = request.plain
    counted = _CAPITAL_WORDS.search(plain)
    if counted:
        found = [*amounts(request, _CAPITAL_WORDS), *amounts(request, _TIMES)]
        near = [amount for amount in found if amount.start <= counted.end() + 60 and amount.end >= counted.start()]
        if near:
            amount = near[0]
            yield request.found("capital_words", (amount.start, amount.end), low=amount.low, high=amount.high)
        return
    for match in _SMALL.finditer(plain):
        if "lower" not in match[0] or _of_all(request, match):
            yield request.found("lowercase", match.span())
            return
    for match in _LARGE.finditer(plain):
        if _of_all(request, match):
            yield request.found("uppercase", match.span())
            return


def _of_all(request: Request, match: re.Match[str]) -> bool:
    before, after = request.before(match.start()), request.after(match.end(), 60)
    if _NEGATED.search(before) or _EXCEPTION.search(after):
        return False
    return not _OF_A_PART.search(before) or bool(_OF_ALL.search(before) or _OF_ALL.search(after))
