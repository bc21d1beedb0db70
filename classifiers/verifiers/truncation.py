"""A text that stops before its end."""

from classifiers.api import DraftEvidence

_DANGLING = tuple(",:;=+×(-[{")


def check_truncation(evidence: DraftEvidence) -> str:
    """What shows that the text is unfinished: its limit, nothing at all, an open code block, a sign at the end; else ""."""
    text = evidence.text.rstrip()
    if not text:
        return "expected an answer, got an empty text"
    if evidence.finish_reason == "length":
        return "expected an end of turn, got the token limit"
    if text.count("```") % 2:
        return "expected every code block closed, got one that is open"
    if text.endswith(_DANGLING):
        return f'expected a finished sentence, got one that ends in "{text[-1]}"'
    return ""
