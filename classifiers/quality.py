"""Whether a finished draft is good: verifiers first, then an acceptor over the denoiser's signals."""

from pathlib import Path

from classifiers import artifact
from classifiers.api import DraftEvidence, Verdict
from classifiers.features import DRAFT_FEATURES, DRAFT_VERSION, draft_features
from classifiers.verifiers import verify


class LogisticQuality:
    """Logistic regression on steps, convergence, entropy and length of a draft."""

    def __init__(self, model: artifact.Linear, version: str) -> None:
        """Take a loaded model; `load` is the usual way here."""
        self._weights, self._bias = model.folded
        self.version = version

    @classmethod
    def load(cls, folder: str | Path) -> "LogisticQuality":
        """Read a stored model. Raises ArtifactError."""
        return cls(*artifact.load(folder, DRAFT_VERSION, len(DRAFT_FEATURES)))

    def judge(self, evidence: DraftEvidence) -> Verdict:
        """P(the draft is good), and what each verifier said; one failed verifier makes it 0."""
        checks = verify(evidence)
        if not all(check.passed for check in checks):
            return Verdict(quality=0.0, checks=checks)
        logit = float(self._weights @ draft_features(evidence)) + self._bias
        return Verdict(quality=artifact.sigmoid(logit), checks=checks)
