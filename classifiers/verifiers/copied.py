"""An answer that is mostly the request again."""

import re

from classifiers import text as texts
from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

GRAM_WORDS = 5
SHORTEST_WORDS = 20  # a shorter answer may well consist of the request's words
MOST_SHARE = 0.5

_WORD = re.compile(r"\w+")
_ASKED = re.compile(
    r"\b(?:repeat|translat|correct|proofread|rewrit|rephras|paraphras|edit|fix|improv|format|convert|quot|extract|copy"
    r"|summari|shorten|expand|continu|complet|fill|refactor|debug|sort|list|highlight|annotat|replac|chang|add|remov|mark"
    r"|transcri|word[- ]for[- ]word|verbatim|grammar|spell|classif|identify|which|select|choose)\w*",
    re.IGNORECASE,
)


def copied(evidence: DraftEvidence) -> Problem | None:
    """At most half of the answer's runs of five words stand in the last user turn as well.

    Short answers pass, and so does every answer to a request whose words may ask for its own text: to translate, correct,
    quote, complete it. A hint: an answer that restates a long question and then answers it is not wrong.
    """
    words = _WORD.findall(evidence.text)
    if len(words) < SHORTEST_WORDS:
        return None
    request = next((texts.text_of(turn) for turn in reversed(evidence.messages) if turn.get("role") == "user"), "")
    known = set(_grams(_WORD.findall(request)))
    grams = _grams(words)
    places = [at for at, gram in enumerate(grams) if gram in known]
    share = len(places) / len(grams)
    if share <= MOST_SHARE or _ASKED.search(
        request
    ):  # the search takes longer than all that is above, and is seldom needed
        return None
    reason = f"expected an answer of its own words, got {share:.0%} of its runs of {GRAM_WORDS} words from the request"
    spans = texts.words(evidence.text)
    return Problem(reason, (spans[places[0]][0], spans[places[-1] + GRAM_WORDS - 1][1]))


def _grams(words: list[str]) -> list[tuple[str, ...]]:
    small = [word.lower() for word in words]
    return list(zip(*(small[start:] for start in range(GRAM_WORDS)), strict=False))
