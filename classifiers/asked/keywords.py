"""Read which words and letters an answer should or should not contain."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint, Span
from classifiers.asked.amount import Amount, amounts
from classifiers.asked.request import Request

HINTS = ("word", "phrase", "term", "letter", "includ", "mention", "avoid", "hashtag", "use", "using", "contain", "say")
_ITEM = r"\"[^\"\n]{1,80}\""
_AND = r"(?:\s*[,;]\s*(?:(?:and|or|nor|&)\s+)?|\s+(?:and|or|nor|&)\s+)"
_BARE = r"[^\W\d_][\w'-]{0,30}+"
_BARE_LIST = rf"{_BARE}(?:{_AND}{_BARE}){{1,15}}(?=\s*[.\n\])]|\s*$|\s+in\b)"
_LIST = rf"(?P<list>{_ITEM}(?:{_AND}{_ITEM}){{0,15}})"
_NOUN = r"(?:key\s?words?|words?|phrases?|terms?|items?)"
_BEFORE_ITEMS = r"\s*(?:(?:such\s+as|like)\s+)?(?::\s*)?[\[(]?\s*"
_NAMED = re.compile(
    rf"\b(?:{_NOUN}\b{_BEFORE_ITEMS}{_LIST}"
    rf"|(?:{_NOUN}(?<=s)\b|{_NOUN}(?=\s*[:\[(])){_BEFORE_ITEMS}(?P<bare>{_BARE_LIST})"  # "the keyword this and" names one
    rf"|{_NOUN}\b{_BEFORE_ITEMS}(?P<one>{_BARE})(?=\W|$))"
)
_VERBS = r"(?:includ(?:e|es|ing)|us(?:e|ing)|mention(?:ing)?|contain(?:s|ing)?|say(?:ing)?|write|avoid(?:ing)?)"
_END = (  # not a noun that they describe
    r"(?=\s*(?:[.,;:!?)\n]|$|(?:and|but|in|at|exactly|once|twice|no|more|less|as|throughout|somewhere)\b))"
)
_DIRECT = re.compile(rf"\b{_VERBS}\s+(?:the\s+(?:(?:name|line|sentence|quote)\s+)?|both\s+|either\s+)?{_LIST}{_END}")
_QUOTED = re.compile(r"\"([^\"\n]{1,80})\"")
_PARTS = re.compile(_BARE)
_COMMON = (
    "that which who in of with for is are and or to on at the a an you from should must not can count limit used using "
    "it as by such like per long max maximum minimum only will were was be appear appears less more"
)
_NO_KEYWORD = frozenset(_COMMON.split())
_JOIN = frozenset(("and", "or", "nor"))
_NEGATED = re.compile(r"\b(?:not|n't|never|without|avoid|avoiding|refrain|exclude|excluding|no|omit|nor)\b|n't\b")
_WANTED = re.compile(
    r"\b(?:includ(?:e|es|ing)|us(?:e|es|ing)|mentions?|contain(?:s|ing)?|incorporate|add|insert|with|features?)"
    r"\s+(?:\w+\s+){0,4}$"
)
_FORBIDDEN_BEHIND = re.compile(r"\s*[\])]?\s*(?:should|must|may|can|do|does|is|are|shall|will)\s*(?:not|never|n't)\b")
_CLAUSE = re.compile(
    r"(?:[,;(]|\band\b|\bbut\b)\s+(?:also\s+|please\s+|then\s+|it\s+|that\s+)?"
    r"(?:should|must|make\s+sure|be\s+sure|ensure|includ|mention|us(?:e|ing)\b|add\b|contain)"
)
_WANTED_BEHIND = re.compile(
    r"[^.!?\n]{0,20}?\b(?:should|must|to)\b[^.!?\n]{0,20}?\b(?:appear|used?|included?|present|mention\w*|contain\w*)\b"
)
_ENSURED = re.compile(r"\b(?:sure|ensure)\b[^.!?;,]*$")
_TIMES = re.compile(r"\btimes?\b|\bonce\b|\btwice\b|\bthrice\b")
_LETTER = re.compile(r"\bletters?\s+(?:\"(?P<quoted>[^\"])\"|(?P<bare>[a-z#!?&])(?=[\s,.;)]|$))")
_HASHTAGS = re.compile(r"\bhashtags?\b")
_EACH = re.compile(r"\b(?:each|every)\b")
_AT_AN_EDGE = re.compile(r"\b(?:start|begin|end|finish|conclude|clos)\w*\b[^.!?,;]*$")
_SINGLED_OUT = re.compile(r"\bthe\s+(?:\w+\s+)?$")
_REACH = 70  # characters behind the words in which "at least twice" belongs to them


def read(request: Request) -> Iterator[Constraint]:
    """Words that are named or quoted, with how often; letters with how often."""
    if not request.holds("word", "phrase", "term", "item", "letter", "hashtag", '"'):
        return
    times = list(amounts(request, _TIMES)) if _TIMES.search(request.plain) else []
    yield from _letters(request, times)
    for match in (*_NAMED.finditer(request.plain), *_DIRECT.finditer(request.plain)):
        words = _words(request, match)
        constraint = _of_words(request, match, words, times) if words else None
        if constraint:
            yield constraint


def _words(request: Request, match: re.Match[str]) -> tuple[str, ...]:
    groups = match.groupdict()
    if groups["list"]:
        start = match.start("list")
        inside = [
            request.text[start + item.start(1) : start + item.end(1)] for item in _QUOTED.finditer(groups["list"])
        ]
        words = (word.strip(" ,.") for word in inside)
        return tuple(word for word in words if any(map(str.isalnum, word)))
    if groups.get("bare"):
        return tuple(part for part in _PARTS.findall(groups["bare"]) if part not in _JOIN)
    one = groups.get("one") or ""
    noun = match[0].split()[0]
    plural = noun.endswith("s") and not noun.startswith("key")  # "the words say": names none
    return (one,) if one and one not in _NO_KEYWORD and not plural else ()


def _of_words(request: Request, match: re.Match[str], words: tuple[str, ...], times: list[Amount]) -> Constraint | None:
    before, after = _clause_before(request, match.start()), request.after(match.end(), _REACH)
    span = match.span()
    if _AT_AN_EDGE.search(before) or _EACH.search(after):
        return None
    if not match["list"] and not match[0].startswith("key") and not _SINGLED_OUT.search(before):
        return None  # "400 words about": no word is named
    often = next((amount for amount in times if 0 <= amount.start - match.end() < len(after)), None)
    negated = _FORBIDDEN_BEHIND.match(after) or _NEGATED.search(f"{before}{match[0].split()[0]} ")
    if negated and not often:
        return request.found("forbidden", span, words=words)
    if not (
        often or match.re is _DIRECT or _WANTED.search(before) or _WANTED_BEHIND.match(after) or _ENSURED.search(before)
    ):
        return None
    if often is None:
        return request.found("keywords", span, words=words)
    if words[1:]:
        return None
    if (often.low, often.high) == (1, None) and not negated:
        return request.found("keywords", (span[0], often.end), words=words)
    return _counted(request, "keyword_frequency", (span[0], often.end), often, bool(negated), word=words[0])


def _counted(request: Request, kind: str, span: Span, often: Amount, negated: bool, **args: str) -> Constraint | None:
    """So often; "not more than twice" bounds from above what "more than twice" bounds from below."""
    if not negated:
        return request.found(kind, span, low=often.low, high=often.high, **args)
    if often.low is None or often.high is not None:
        return None
    return request.found(kind, span, high=max(often.low - 1, 0), **args)


def _clause_before(request: Request, at: int) -> str:
    before = request.before(at, 100)
    breaks = [match.start() for match in _CLAUSE.finditer(before)]
    return before[breaks[-1] :] if breaks else before


def _letters(request: Request, times: list[Amount]) -> Iterator[Constraint]:
    for match in _LETTER.finditer(request.plain):
        letter = request.text[match.start("quoted")] if match["quoted"] else match["bare"]
        often = next((amount for amount in times if 0 <= amount.start - match.end() < _REACH), None)
        negated = bool(_NEGATED.search(_clause_before(request, match.start())))
        if negated and often is None:
            yield request.found("letter_frequency", match.span(), letter=letter.lower(), high=0)
        if often and often.said:
            span = (match.start(), often.end)
            counted = _counted(request, "letter_frequency", span, often, negated, letter=letter.lower())
            if counted:
                yield counted
    for amount in amounts(request, _HASHTAGS):
        yield request.found(
            "letter_frequency", (amount.start, amount.end), letter="#", low=amount.low, high=amount.high
        )
