"""The language an answer is written in."""

from functools import cache
from typing import Annotated, Any

from msgspec import Meta

from classifiers.verifiers.problem import Problem

Code = Annotated[str, Meta(pattern="^[a-z]{2,3}$")]  # ISO 639-1, or 639-3 where that has none
SHORT = 40  # letters below which the detector often takes one language for another
SURE = 0.999  # its probability for another language that counts nevertheless
LONGEST = 4_000  # characters looked at: enough to be sure, and bounded


def language(text: str, *, code: Code) -> Problem | None:
    """The text's beginning is more likely in that language than in any other; a text without a letter is in every language.

    The detector is the one that IFEval takes, so that verdicts can be compared. Of a few letters it only counts where it is
    sure; it is sometimes sure and wrong there ("No." is Portuguese to it), and such an answer fails.

    Source: Nakatani, "Language Detection Library for Java", 2010; here langdetect.
    """
    beginning = text[:LONGEST]
    if not any(map(str.isalpha, beginning)):
        return None
    found, probability = detected(beginning)
    if found is None or found.partition("-")[0] == code:  # zh-cn and zh-tw are zh
        return None
    if probability < SURE and sum(map(str.isalpha, beginning)) < SHORT:
        return None
    return Problem(f'expected the language "{code}", got "{found}"')


def detected(text: str) -> tuple[str | None, float]:
    """The likeliest language and its probability, the same each time; None for a text that shows none."""
    langdetect = _langdetect()
    try:
        likeliest = langdetect.detect_langs(text)
    except langdetect.LangDetectException:
        return None, 0.0
    return (likeliest[0].lang, likeliest[0].prob) if likeliest else (None, 0.0)


@cache
def _langdetect() -> Any:
    """It loads in a second or so; few requests ask for a language."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # or else the same text may get another answer
    return langdetect
