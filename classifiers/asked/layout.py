"""Read how an answer should be laid out."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint
from classifiers.asked.amount import Amount, amounts
from classifiers.asked.request import Request

HINTS = (
    "bullet", "list", "item", "section", "bracket", "<<", "placeholder", "highlight", "itali", "bold", "json", "***",
    "asterisk", "one of", "option", "choose", '" or "',
)  # fmt: skip
_BULLETS = re.compile(r"\bbullet(?:ed)?[\s-]?(?:points?|list\s+items?|items?)\b|\bbullets\b")
_ITEMS = re.compile(r"\b(?:list\s+)?items\b")
_LIST_OF = re.compile(r"\b(?:numbered|bulleted)\s+list\s+(?:of|with)\s+$")
_SECTIONS = re.compile(r"\bsections?\b")
_MARKED = re.compile(
    r"""\b(?:mark|start|begin|label|indicate)\w*\b[^.!?\n]{0,60}?\b(?:with|as|by|:)\s*:?\s*(?:the\s+(?:word|keyword)\s+)?
     "?(?P<marker>[a-z]{2,20})\s+(?:x|n|1|i|\#|number)\b""",
    re.VERBOSE,
)
_TITLE = re.compile(r"\bdouble\s+angul?\w*\s+brackets|<<(?!\s)[^<>\n]{1,60}(?<!\s)>>")
_PLACEHOLDERS = re.compile(r"\bplace[\s-]?holders?\b")
_HIGHLIGHT = re.compile(r"\b(?:highlight\w*|itali\w+|bold\w*|emphasi\w+)\b")
_PARTS = re.compile(
    r"\b(?:(?:section|part|phrase|word|passage|point|keyword|sentence|highlight|text|title)s?|of\s+your)\b"
)
_SIX = re.compile(r"(?<!\*)\*{6}(?!\*)|\b(?:6|six)\s+asterisks?\b")
_JSON = re.compile(
    r"""\b(?:in|as|into|using|valid|only|contain\w*|return|output)\s+(?:a\s+|an\s+|the\s+)?
     (?:(?:valid|single|proper|pure|raw)\s+)?json\b(?!\s+(?:schema|parser|files?|library|web))
     (?:\s+(?:format|block|object|array|output|only))?""",
    re.VERBOSE,
)
_JSON_ANSWER = re.compile(
    r"\b(?:format\w*|wrap\w*|output|respond|response|answer|reply|return|give|provide|write|generate|produce|list|present|"
    r"tell|contain\w*|should|must)\b"
)
_JSON_INPUT = re.compile(
    r"\b(?:this|following|given|from|parse|parsing|convert(?:ing)?|why|how|explain|what|not|function|script|code)\b|n't\b"
)
_JSON_OUTPUT = re.compile(r"\bjson\s+(?:format|block|object|output|only)\b|\bvalid\s+json\b")
_ONE_OF = re.compile(
    r"""\b(?:(?:answer|reply|respond|classify|choose|pick|contain|use)\w*\b[^.:\n]{0,40}\bone\s+of
    |one\s+of\s+(?:the\s+)?(?:following|these)
    |choose\s+(?:from|one)
    |from\s+the\s+following\s+(?:options|choices))\b[^:\n"]{0,60}(?P<colon>:?)""",
    re.VERBOSE,
)
_OPTION_QUOTES = re.compile(
    '["“”\']([^"“”\n]{1,120}?)["“”\'](?=[\\s,.;)\\]]|$)|\\(([^()\n]{1,300})\\)|^\\s*[-*]\\s*(.{1,120})$', re.MULTILINE
)
_OPTION_SPLIT = re.compile(r"\s*[,;/]\s*(?:or\s+)?|\s+or\s+")
_EITHER = re.compile(
    r"\b(?:answer|reply|respond|say)\s+(?:only\s+)?(?:with\s+)?(?:either\s+)?(?=\"[^\"\n]+\"\s*,?\s*(?:or\s*)?\")"
)
_OPTIONS_LENGTH = 400
_NEGATED = re.compile(r"(?:\b(?:no|not|never|without|avoid)|n't)(?:\s+(?!and\b|but\b)\w+){0,2}\s*$")


def read(request: Request) -> Iterator[Constraint]:
    """Lists, sections, title, placeholders, highlights, two answers, one of several, JSON."""
    plain = request.plain
    yield from _counted(request)
    title = _TITLE.search(plain)
    if title:
        yield request.found("title", title.span())
    six = _SIX.search(plain)
    if six:
        yield request.found("two_responses", six.span())
    for match in _JSON.finditer(plain):
        before = request.before(match.start())
        asked = _JSON_ANSWER.search(f"{before}{match[0]}") or _JSON_OUTPUT.search(match[0])
        if asked and not _JSON_INPUT.search(before):
            yield request.found("json", match.span())
            break
    yield from _options(request)


def _counted(request: Request) -> Iterator[Constraint]:
    plain = request.plain
    for noun, kind in ((_BULLETS, "bullets"), (_ITEMS, "items")):
        found = next((amount for amount in amounts(request, noun) if _affirmed(request, amount)), None)
        if found and (kind == "bullets" or found.said or _LIST_OF.search(request.before(found.start))):
            yield request.found(kind, (found.start, found.end), low=found.low, high=found.high)
            break
    marked = _MARKED.search(plain)
    if marked and "section" in plain:
        count = next(iter(amounts(request, _SECTIONS)), None)
        if count:
            marker = request.text[marked.start("marker") : marked.end("marker")]
            yield request.found("sections", (count.start, marked.end()), marker=marker, low=count.low)
    for amount in amounts(request, _PLACEHOLDERS):
        yield request.found("placeholders", (amount.start, amount.end), low=amount.low, high=_unless_bare(amount))
        break
    for match in _HIGHLIGHT.finditer(plain):
        near = (
            amount
            for amount in amounts(request, _PARTS)
            if match.start() - 60 <= amount.end and amount.start <= match.end() + 40
        )
        found = next(near, None)
        if found:
            yield request.found("highlights", (found.start, found.end), low=found.low, high=_unless_bare(found))
            break


def _unless_bare(amount: Amount) -> int | None:
    """Who asks for three placeholders won't mind four; who asks for exactly three will."""
    return amount.high if amount.said else None


def _affirmed(request: Request, amount: Amount) -> bool:
    return not _NEGATED.search(request.before(amount.start, 30))


def _options(request: Request) -> Iterator[Constraint]:
    match = _ONE_OF.search(request.plain) or _EITHER.search(request.plain)
    if not match:
        return
    behind = request.text[match.end() : match.end() + _OPTIONS_LENGTH]
    found = [next(filter(None, groups)) for groups in _OPTION_QUOTES.findall(behind)]
    if not found and match.groupdict().get("colon"):
        found = [re.split(r"[.!?\n]", behind.lstrip(), maxsplit=1)[0]]
    if len(found) == 1:
        found = _OPTION_SPLIT.split(found[0])
    options = tuple(option.strip(" \t'\"“”") for option in found if option.strip(" \t'\"“”"))
    if len(options) > 1:
        yield request.found("one_of", match.span(), options=options)
