"""How long an answer is: its characters, words, sentences and paragraphs."""

from classifiers import text as texts
from classifiers.verifiers.count import High, Low, amount, outside
from classifiers.verifiers.problem import Problem


def characters(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Characters, white space at both ends left out."""
    stripped = text.strip()
    if low <= len(stripped) and (high is None or len(stripped) <= high):
        return None
    start = text.index(stripped)
    over = (start + high, start + len(stripped)) if high is not None and len(stripped) > high else None
    return Problem(f"expected {amount(low, high)} characters, got {len(stripped)}", over)


def words(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    r"""Words, runs of `\w`: "it's" is two."""
    return outside(texts.words(text), "words", low, high)


def sentences(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Sentences as `classifiers.text.sentences` finds them."""
    return outside(texts.sentences(text), "sentences", low, high)


def paragraphs(text: str, *, low: Low = 0, high: High = None, separator: str | None = None) -> Problem | None:
    """Paragraphs between blank lines, or between a separator such as "***".

    A separator may stand at either end of the text, but with nothing between two of them a paragraph is empty: a problem.
    """
    if not separator:
        return outside(texts.paragraphs(text), "paragraphs", low, high)
    spans, at = [], 0
    for part in text.split(separator):
        spans.append((at, at + len(part)))
        at += len(part) + len(separator)
    blank = [index for index, span in enumerate(spans) if not text[slice(*span)].strip()]
    inner = [index for index in blank if 0 < index < len(spans) - 1]
    if inner:
        return Problem(f'expected text between each two "{separator}", got none', spans[inner[0]])
    return outside([span for index, span in enumerate(spans) if index not in blank], "paragraphs", low, high)
