"""An answer that is mostly the request again."""

import re

from classifiers import text as texts
from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

GRAM_WORDS = 5
SHORTEST_WORDS = 20  # a shorter answer may well consist of the request's words
MOST_SHARE = 0.5

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
    request = next((texts.text_of(turn) for turn in reversed(evidence.messages) if turn.get("role") == "user"), "")
    spans = texts.words(evidence.text)
    if len(spans) < SHORTEST_WORDS or _ASKED.search(request):
        return None
    asked = _grams([request[slice(*span)].lower() for span in texts.words(request)])
    known = set(asked)
    grams = _grams([evidence.text[slice(*span)].lower() for span in spans])
    places = [at for at, gram in enumerate(grams) if gram in known]
    share = len(places) / len(grams)
    if share <= MOST_SHARE:
        return None
    reason = f"expected an answer of its own words, got {share:.0%} of its runs of {GRAM_WORDS} words from the request"
    return Problem(reason, (spans[places[0]][0], spans[places[-1] + GRAM_WORDS - 1][1]))


def _grams(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(GRAM_WORDS)), strict=False))
