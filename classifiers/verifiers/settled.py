"""A draft that its own denoiser gave up."""

from classifiers.api import DraftEvidence


def check_settled(evidence: DraftEvidence) -> str:
    """What is known to have been left undone: a canvas that would not settle, or that the deadline cut short; else "".

    A draft from an upstream comes without a word about its canvases: then nothing is known, and it is not taken on trust.
    """
    if not evidence.steps:
        return "expected the denoiser's signals, got a draft without any"
    if evidence.finish_reason == "unsettled":
        return "expected every canvas to settle, got one that was given up"
    if evidence.finish_reason == "deadline":
        return "expected an end of turn, got the deadline"
    return ""
