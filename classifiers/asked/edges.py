"""Read how an answer should begin and end."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint
from classifiers.asked.amount import amounts
from classifiers.asked.request import Request

HINTS = ("end", "finish", "conclude", "start", "begin", "quot", "p.s", "p.p.s", "postscript", "repeat", "wrap")
_QUOTED = r"\"(?P<quoted>[^\"\n]{1,200})\""
_REST = r"(?P<rest>[^\n\"]{2,200})"
_PHRASE = r"(?:phrase|sentence|words?|question|statement|line|text|quote|sign-?off|greeting)"
_WITH = (
    r"(?P<what>[^.!?:;,\n\"]{0,40}?)\s+(?:only\s+)?(?:with|by\s+(?:saying|asking|writing)|in)(?:\s+(?:exactly|only|just))?"
    rf"(?:\s+(?:this|the|these|following|exact|same|one|exactly|very|of|a|simple|closing|final|last|{_PHRASE})){{0,5}}"
)
_ENDING = r"(?=[efc])\b(?:end|ends|ending|finish|finishing|conclude|close)\b"  # the look ahead halves the time
_ENDS = re.compile(
    rf"{_ENDING}{_WITH}\s*(?:{_QUOTED}|:\s*(?:{_QUOTED.replace('quoted', 'later')}|{_REST}))|"
    rf"{_ENDING}[^.!?:\n\"]{{0,30}}\s(?:this|the)\s+(?:exact|following)\s+{_PHRASE}\s+(?P<unquoted>[^\n\"]{{2,200}})"
)
_LAST = re.compile(
    r"\b(?:the\s+(?:very\s+)?)?(?:end|last\s+(?:words?|sentence|line|phrase))\s+(?:of\s+(?:the|your)\s+(?:entire\s+)?\w+\s+)?"
    rf"(?:should|must|has\s+to)\s+(?:be|read|say)(?:\s+(?:the|this|exact|exactly|phrase|sentence)){{0,4}}\s*:?\s*{_QUOTED}"
)
_STARTS = re.compile(rf"\b(?:start|starts|begin|begins|open)\b{_WITH}\s*:?\s*{_QUOTED}")
_PHRASES = (  # each with signs of which it needs one
    ("ends_with", _ENDS, ('"', ":", "exact", "following")),
    ("ends_with", _LAST, ('"',)),
    ("starts_with", _STARTS, ('"',)),
)
_NOT_THE_WHOLE = re.compile(
    r"\b(?:each|every|paragraph|sections?|sentences|title|lines|bullets?|points?|postscript|not|names?)\b|n't\b"
)
_WRAPPED = re.compile(
    r"""\b(?:wrap\w*|enclos\w*|surround\w*|put|place\w*|contain\w*|be|is)\b[^.!?;:\n]{0,60}?
     \b(?:in|with|within|inside|by|around)\s+(?:a\s+(?:pair|set)\s+of\s+)?double[\s-]+(?:quotation\s*marks?|quotes?)
    |\bdouble[\s-]+(?:quotation\s*marks?|quotes?)\s+(?:\w+\s+){0,3}?around""",
    re.VERBOSE,
)
_OF_A_PART = re.compile(r"\b(?:title|names?|each|every|keywords?|quotes|words?|phrase|not|n't)\b")
_PART_BEFORE = re.compile(r"\b(?:title|names?|each|every|keywords?|not|n't)\b|n't\b")
_POSTSCRIPT = re.compile(r"(?<![\w.])p\.\s?(?P<second>p\.\s?)?s\b\.?")
_POSTSCRIPT_CUE = re.compile(r"\bpost[\s-]?scripts?\b|\bstart\w*\s+with|\badd\b|\bend\b|\binclude\b")
_FIRST_WORD = re.compile(
    r"""\b(?:
     (?:start|begin)\s+(?:the\s+)?(?P<a>paragraph\s+\w+|\w+\s+paragraph)
     \s+with\s+(?:the\s+)?(?:word\s+)?(?P<x>"[^"\s]+"|[\w'-]+)
    |(?P<b>paragraph\s+\w+|\w+\s+paragraph)\s+(?:must|should|has\s+to|needs\s+to|will|to)\s+(?:start|begin)
     \s+with\s+(?:the\s+)?(?:word\s+)?(?P<y>"[^"\s]+"|[\w'-]+)
    )""",
    re.VERBOSE,
)
_PARAGRAPHS = re.compile(r"\bparagraphs\b")
_ORDINALS = {
    name: value
    for value, names in enumerate(
        ("first 1st 1 one", "second 2nd 2 two", "third 3rd 3 three", "fourth 4th 4 four", "fifth 5th 5 five",
         "sixth 6th 6 six", "seventh 7th 7 seven", "eighth 8th 8 eight", "ninth 9th 9 nine", "tenth 10th 10 ten"), 1
    )
    for name in names.split()
}  # fmt: skip
_REPEATED = re.compile(
    r"\brepeat(?:ing)?\s+(?:the\s+|this\s+|my\s+)?(?:(?:exact|entire|above|same|first|whole|following|very)\s+){0,2}"
    r"(?:request|prompt|question|sentence|line|text|instruction|query|message|paragraph)s?\b[^\n]{0,80}"
)
_REPEATED_QUOTE = re.compile(
    r"\brepeat\s+\"([^\"]{2,2000})\"\s+(?:word\s+for\s+word|exactly|without|and\s+then|then)\b"
)
_ANSWER_AFTER = re.compile(r"\b(?:then|before)\b|\bword\s+for\s+word\b|\bwithout\s+(?:any\s+)?chang")


def read(request: Request) -> Iterator[Constraint]:
    """Phrases at the start and the end, quotes around, a postscript, a paragraph's first word, the prompt repeated."""
    yield from _phrases(request)
    for match in _WRAPPED.finditer(request.plain) if request.holds("double") else ():
        inside = match[0].replace("double quotation marks", "").replace("double quotes", "")
        around = f"{request.before(match.start(), 25)} | {request.after(match.end(), 25)}"
        if not _OF_A_PART.search(inside) and not _PART_BEFORE.search(around):
            yield request.found("quoted", match.span())
            break
    for match in _POSTSCRIPT.finditer(request.plain) if request.holds("p.") else ():
        if _POSTSCRIPT_CUE.search(request.plain, max(0, match.start() - 120), match.end() + 25):
            yield request.found("postscript", match.span(), marker="P.P.S" if match["second"] else "P.S.")
            break
    if request.holds("paragraph"):
        yield from _first_word(request)
    if request.holds("repeat"):
        yield from _repetition(request)


def _phrases(request: Request) -> Iterator[Constraint]:
    for kind, pattern, signs in _PHRASES:
        for match in pattern.finditer(request.plain) if request.holds(*signs) else ():
            groups = match.groupdict()
            if _NOT_THE_WHOLE.search(f"{request.before(match.start(), 30)} {groups.pop('what', None) or ''}"):
                continue
            group = next(name for name, text in groups.items() if text)
            phrase = request.text[match.start(group) : match.end(group)].strip()
            if any(map(str.isalnum, phrase)) and (group != "unquoted" or phrase[0].isupper()):
                yield request.found(kind, match.span(), phrase=phrase)
                break


def _first_word(request: Request) -> Iterator[Constraint]:
    match = _FIRST_WORD.search(request.plain)
    if not match:
        return
    count = next((amount.high for amount in amounts(request, _PARAGRAPHS) if amount.low == amount.high), None)
    group = "x" if match["x"] else "y"
    word = request.text[match.start(group) : match.end(group)].strip("\"'“”\u2018\u2019")
    place = (match["a"] or match["b"]).replace("paragraph", "").strip()
    paragraph = count if place in ("last", "final") else _ORDINALS.get(place)
    if paragraph and word:
        yield request.found("paragraph_first_word", match.span(), paragraph=paragraph, word=word, paragraphs=count)


def _repetition(request: Request) -> Iterator[Constraint]:
    """The prompt is what stands above the sentence that asks to repeat it; if nothing does, what follows a blank line."""
    quoted = _REPEATED_QUOTE.search(request.plain)
    if quoted:
        yield request.found("repeats_prompt", quoted.span(), prompt=request.text[quoted.start(1) : quoted.end(1)])
        return
    match = _REPEATED.search(request.plain)
    if not match:
        return
    at = match.start() - len(request.before(match.start(), 200))
    if not _ANSWER_AFTER.search(request.plain, at, match.end() + 80):
        return
    prompt = request.text[:at].strip() or request.text[match.start() :].partition("\n\n")[2].strip()
    if prompt:
        yield request.found("repeats_prompt", match.span(), prompt=prompt)
