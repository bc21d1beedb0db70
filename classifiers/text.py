"""A text's words, sentences, paragraphs and lines, each as a span: what verifiers count and point at."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from classifiers.api import Span

_WORD = re.compile(r"\w+")
_STOP = re.compile(r"(?<![.?!])[.?!]++(?=[\"'”\u2019)\]}*_;:@({\[]|\s)|[。\uff01\uff1f]+")
_CLOSERS = re.compile(r"[\"'”\u2019)\]}]*")
_TOKEN = re.compile(r"[^\s\"'“”\u2018\u2019()\[\]{}*_,;:\u2014\u2013-]*$")
_LONGEST_TOKEN = 20
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_ABBREVIATED = (
    "mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt maj adm sen rep gov pres messrs mt ft ave "
    "inc ltd co corp bros vs al no vol p pp e.g i.e u.s u.k u.n u.s.a d.c n.y a.m p.m b.c a.d ph.d m.d b.a m.a "
    "jan feb mar apr jun jul aug sept sep oct nov dec mon tues wed thurs fri"
)
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_FREQUENT = (
    "a after although an and as at because before but each for from he her his how however i if in it its moreover my "
    "no on one our she since so some that the their then there these they this those to we what when where while who "
    "why with yet you your"
)
_STARTERS = frozenset(_FREQUENT.split())  # words that, capitalised, start a sentence even behind an abbreviation


def text_of(message: Mapping[str, Any]) -> str:
    """A message's text, its parts joined; "" where it has none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return " ".join(text for text in texts if isinstance(text, str))


def words(text: str) -> list[Span]:
    """Runs of letters, digits and underscores: "it's" is two."""
    return [match.span() for match in _WORD.finditer(text)]


def lines(text: str) -> Iterator[Span]:
    """Lines without their line breaks; a text that ends in one has no empty line behind it."""
    start = 0
    for line in text.splitlines(keepends=True):
        yield start, start + len(line.rstrip("\r\n"))
        start += len(line)


def paragraphs(text: str) -> list[Span]:
    """What stands between blank lines, empty ones left out."""
    return _between(text, _BLANK_LINE)


def sentences(text: str) -> list[Span]:
    """Sentences by the rules of Punkt, with a fixed list of abbreviations in place of its trained one.

    A sentence ends at ".", "?" or "!" before white space or a mark, and takes closing quotes and brackets with it. A "."
    doesn't end one behind an abbreviation or an initial, unless a word that only a new sentence capitalises follows; nor
    do "..." and a number before a small letter. Line breaks alone end nothing. Source: Kiss and Strunk, "Unsupervised
    Multilingual Sentence Boundary Detection", Computational Linguistics 32(4), 2006.
    """
    spans, start = [], 0
    for stop in _STOP.finditer(text):
        if stop.start() < start or not _ends_sentence(text, stop):
            continue
        end = _end_of_closers(text, stop.end())
        spans.append((start, end))
        start = end
    spans.append((start, len(text)))
    return [trimmed for span in spans if any(map(str.isalnum, text[slice(*(trimmed := _trim(text, span)))]))]


def _between(text: str, separator: re.Pattern[str]) -> list[Span]:
    ends = [match.span() for match in separator.finditer(text)]
    starts = [0, *(end for _, end in ends)]
    spans = zip(starts, [*(start for start, _ in ends), len(text)], strict=True)
    return [trimmed for span in spans if (trimmed := _trim(text, span))[0] < trimmed[1]]


def _trim(text: str, span: Span) -> Span:
    """The span without white space at its ends."""
    part = text[slice(*span)]
    start = span[0] + len(part) - len(part.lstrip())
    return start, start + len(part.strip())


def _end_of_closers(text: str, at: int) -> int:
    match = _CLOSERS.match(text, at)
    end = match.end() if match else at
    return end if end == len(text) or text[end].isspace() else at  # a quote that opens belongs to what follows


def _ends_sentence(text: str, stop: re.Match[str]) -> bool:
    if stop[0].strip("."):
        return True  # "?" and "!" always do
    token = _token_before(text, stop.start()).lower()
    following = text[stop.end() : stop.end() + _LONGEST_TOKEN].lstrip()
    small = following[:1].islower()
    if len(stop[0]) > 1 or token.isdigit():
        return not small
    if token in _ABBREVIATIONS or (len(token) == 1 and token.isalpha()):
        next_word = _WORD.match(following)
        return not small and next_word is not None and next_word[0].lower() in _STARTERS
    return True


def _token_before(text: str, at: int) -> str:
    match = _TOKEN.search(text[max(0, at - _LONGEST_TOKEN) : at])
    return match[0] if match else ""
