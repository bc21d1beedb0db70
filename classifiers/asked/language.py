"""Read which language an answer should be in."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint
from classifiers.asked.request import Request

_CODES = {  # of the languages that the verifier can tell apart
    "afrikaans": "af", "albanian": "sq", "arabic": "ar", "bengali": "bn",
    "bulgarian": "bg", "catalan": "ca", "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da", "dutch": "nl",
    "english": "en", "estonian": "et", "finnish": "fi", "french": "fr", "german": "de", "greek": "el",
    "gujarati": "gu", "hebrew": "he", "hindi": "hi", "hungarian": "hu", "indonesian": "id",
    "italian": "it", "japanese": "ja", "kannada": "kn", "korean": "ko", "latvian": "lv",
    "lithuanian": "lt", "macedonian": "mk", "malayalam": "ml", "mandarin": "zh", "marathi": "mr",
    "nepali": "ne", "norwegian": "no", "persian": "fa", "farsi": "fa", "polish": "pl", "portuguese": "pt",
    "punjabi": "pa", "romanian": "ro", "russian": "ru", "slovak": "sk", "slovenian": "sl",
    "spanish": "es", "swahili": "sw", "swedish": "sv", "tagalog": "tl", "tamil": "ta", "telugu": "te", "thai": "th",
    "turkish": "tr", "ukrainian": "uk", "urdu": "ur", "vietnamese": "vi", "welsh": "cy",
}  # fmt: skip
HINTS = tuple(_CODES)
_NAME = rf"(?P<name>{'|'.join(_CODES)})\b"
_ANSWER = r"(?:response|answer|reply|output|respond|(?:re)?write|speak|it|everything)"
_ASKED = (
    re.compile(
        rf"\b(?:only|exclusively|entirely|completely|solely)\s+(?:(?:in|using|use)\s+)?(?:the\s+)?{_NAME}"
        r"(?:\s+language\b|\s+(?:is|throughout|please)\b|\s*[.,;!)]|\s*$)"
    ),
    re.compile(
        rf"\b(?:in|using|use)\s+(?:only\s+)?(?:the\s+)?{_NAME}(?:\s+language)?"
        r"(?:\s*only\b|[^.!?\n]{0,60}?\bno\s+other\s+language)"
    ),
    re.compile(
        rf"\b{_ANSWER}\s+[^.!?;:\n]{{0,60}}?\b(?:in|using)\s+(?:the\s+)?{_NAME}"
        r"(?=\s*(?:[.,!?;)\n]|$|language|and\b|with\b|please\b))"
    ),
)
_NEGATED = re.compile(r"\b(?:not|n't|never|avoid)\b|n't\b")
_OTHERWISE = re.compile(
    r"\b(?:who|they|people|customers|users|clients|team|i|we)\s+speaks?\b|"
    r"\b(?:translat\w+|word\s+for|speak(?:er|ers|ing)|taught|lessons?|class|course|movie|book|called|means?)\b"
)


def read(request: Request) -> Iterator[Constraint]:
    """One language for the whole answer; "translate into French" is none."""
    for pattern in _ASKED:
        for match in pattern.finditer(request.plain):
            said = request.before(match.start(), 60) + match[0]
            if not _NEGATED.search(said.partition(match["name"])[0]) and not _OTHERWISE.search(said):
                yield request.found("language", match.span(), code=_CODES[match["name"]])
                return
