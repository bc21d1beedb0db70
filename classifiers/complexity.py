"""How likely a conversation is beyond the draft model, before anything is generated."""

from pathlib import Path
from typing import Any

from classifiers import artifact
from classifiers.features import CONVERSATION_VERSION, COUNTS, HASHED, conversation_features


class LinearComplexity:
    """Logistic regression on hashed words and counts of the whole conversation."""

    def __init__(self, model: artifact.Linear, version: str) -> None:
        """Take a loaded model; `load` is the usual way here."""
        self._weights, self._bias = model.folded
        self.version = version

    @classmethod
    def load(cls, folder: str | Path) -> "LinearComplexity":
        """Read a stored model. Raises ArtifactError."""
        return cls(*artifact.load(folder, CONVERSATION_VERSION, HASHED + len(COUNTS)))

    def score(self, messages: tuple[dict[str, Any], ...]) -> float:
        """P(the draft is bad and the refiner would be good), 0..1."""
        columns, values = conversation_features(messages)
        return artifact.sigmoid(float(self._weights[columns] @ values) + self._bias)
