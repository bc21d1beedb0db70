"""A request as the readers see it: what is quoted or pasted to be worked on is blanked out, at its place."""

import re
from dataclasses import dataclass
from functools import cached_property

from classifiers.api import Constraint, Span

WINDOW = 4_000  # characters read at either end: requests stand there, and hostile ones are long
BLANK = "\ue000"  # stands for each character that is not the request's own; no word, no space
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_OPENING_TAG = re.compile(r"(?<!<)<([A-Za-z][\w-]{0,40})>(?!>)")
_DOUBLE_QUOTED = re.compile('["“”]([^"“”]*)["“”]')
_SINGLE_QUOTED = re.compile(
    r"(?<!\w)['\u2018`](?=[^\s'])((?:[^'\u2018\u2019`\n]|['\u2019](?=\w)){1,200})['\u2019`](?!\w)"
)
_WORKED_ON = (
    r"(?:text|paragraph|passage|article|document|e-?mail|essay|story|letter|code|abstract|transcript|post|review|speech|content|"
    r"conversation|pitch|copy|statement|note|report|message|poem|lyrics|summary|description|excerpt|data|input)s?"
)
_PASTED = re.compile(
    rf"(?:(?=[fbt])\b(?:following|below|this|these)\s+(?:\w+\s+){{0,2}}{_WORKED_ON}\b[^:.\n]{{0,40}}|^[ \t]*{_WORKED_ON}[ \t]*)"
    r":(?!\s*[\"'\u201c\u2018])",
    re.IGNORECASE | re.MULTILINE,
)
_OF_THE_ANSWER = re.compile(r"\b(?:your|the|entire|whole)\s+(?:response|answer|reply|output)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_CLOSING_LENGTH = 300  # characters of a last paragraph that can be the request again, behind a pasted text


@dataclass(frozen=True)
class Request:
    """A turn's text, and the same with small letters and everything quoted or pasted blanked out."""

    text: str
    hidden: tuple[Span, ...] = ()  # places that are no part of the request either

    @cached_property
    def plain(self) -> str:
        """As long as `text`, so that places in one are places in the other."""
        small = self.text.lower()
        if len(small) != len(self.text):  # some capitals become two small letters
            small = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in self.text)
        return self._blanked(small)

    def holds(self, *signs: str) -> bool:
        """Does one of these stand anywhere? A question that costs next to nothing, before patterns are tried that need one of them."""
        return any(map(self.plain.__contains__, signs))

    def before(self, at: int, limit: int = 80) -> str:
        """What stands before a place in its sentence."""
        part = self.plain[max(0, at - limit) : at]
        ends = [match.end() for match in _SENTENCE_END.finditer(part)]
        return part[ends[-1] :] if ends else part

    def after(self, at: int, limit: int = 80) -> str:
        """What stands behind a place in its sentence."""
        part = self.plain[at : at + limit]
        end = _SENTENCE_END.search(part)
        return part[: end.start()] if end else part

    def sentence(self, span: Span, limit: int = 300) -> Span:
        """From where to where the sentence around a place goes, with its mark."""
        start, end = span
        return start - len(self.before(start, limit)), min(end + len(self.after(end, limit)) + 1, len(self.text))

    def found(self, kind: str, span: Span, **args: object) -> Constraint:
        """A constraint that stands at a place."""
        return Constraint(kind=kind, args={name: value for name, value in args.items() if value is not None}, span=span)

    def _blanked(self, small: str) -> str:
        joined = small
        if spans := [*_fenced(small), *_tagged(small), *_pasted(small), *self.hidden]:
            letters = list(small)
            for start, end in spans:
                letters[start:end] = BLANK * (end - start)
            joined = "".join(letters)
        if '"' in joined or "“" in joined or "”" in joined:
            joined = _DOUBLE_QUOTED.sub(_hollow, joined)
        if "'" in joined or "\u2018" in joined or "`" in joined:
            joined = _SINGLE_QUOTED.sub(_hollow, joined)
        return joined


def _hollow(match: re.Match[str]) -> str:
    return f'"{BLANK * (len(match[0]) - 2)}"'  # all kinds of quotes become one


def _fenced(text: str) -> list[Span]:
    return [match.span() for match in _FENCE.finditer(text)] if "```" in text else []


def _tagged(text: str) -> list[Span]:
    spans, at = [], 0
    for tag in _OPENING_TAG.finditer(text) if "</" in text else ():
        closing = f"</{tag[1]}>"
        end = text.find(closing, tag.end()) if tag.start() >= at else -1
        if end >= 0:
            at = end + len(closing)
            spans.append((tag.start(), at))
    return spans


def _pasted(text: str) -> list[Span]:
    """What follows the words that announce a text, but for sentences about the answer and a short last paragraph."""
    announced = _PASTED.search(text) if ":" in text else None
    if announced is None:
        return []
    end = len(text)
    last = text.rstrip().rfind("\n\n", announced.end())
    if last >= 0 and text[announced.end() : last].strip() and end - last <= _CLOSING_LENGTH:
        end = last
    return [
        match.span()
        for match in _SENTENCE.finditer(text, announced.end(), end)
        if match[0] and not _OF_THE_ANSWER.search(match[0])
    ]
