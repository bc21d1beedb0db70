"""A draft that its own denoiser gave up."""

from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem


def settled(evidence: DraftEvidence) -> Problem | None:
    """Every canvas settled, as far as the engine says; an upstream says nothing of its canvases, which is no fault."""
    if evidence.finish_reason == "unsettled":
        return Problem("expected every canvas to settle, got one that was given up")
    if evidence.finish_reason == "deadline":
        return Problem("expected an end of turn, got the deadline")
    return None
