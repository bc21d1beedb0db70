"""How likely a conversation needs the refiner, before anything is generated.

    z = clip((counts - mean) / scale, -4, 4)
    s = sum_g hashed[column_g] value_g + sum_m bumps_m exp(-sharpness |z - centres_m|^2) + bias
    P(the draft is wrong and the refiner right) = 1 / (1 + exp(-(slope s + offset)))

Linear in hashed n-grams, and in bumps (a radial basis network, Broomhead and Lowe 1988) over counts, which learn that a count means
one thing in a word problem and another in a quiz question. `classifiers/train_complexity.py` says how the numbers come about.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers import artifact
from classifiers.api import ArtifactError
from classifiers.artifact import sigmoid
from classifiers.conversation import COUNTS, VERSION, Features, features
from classifiers.ngrams import COLUMNS

KIND = "draftgate-complexity"
CLIP = 4.0

Conversation = Sequence[dict[str, Any]]


class Weights(NamedTuple):
    """A model's numbers, float32. M: bumps; F: COUNTS; G: COLUMNS."""

    hashed: NDArray[np.float32]  # (G,)
    mean: NDArray[np.float32]  # (F,)
    scale: NDArray[np.float32]  # (F,)
    centres: NDArray[np.float32]  # (M, F)
    bumps: NDArray[np.float32]  # (M,)
    sharpness: NDArray[np.float32]  # (1,)
    bias: NDArray[np.float32]  # (1,)
    calibration: NDArray[np.float32]  # (2,): slope, offset


class Complexity:
    """A trained model. One thread scores 2,000 characters in half a millisecond, and any conversation in a few: what it reads is bounded."""

    def __init__(self, weights: Weights, version: str = "unsaved") -> None:
        """Take trained weights; `load` is the usual way here."""
        self.weights = weights
        self.version = version
        self._centre_squares = (weights.centres**2).sum(axis=1)

    @classmethod
    def load(cls, folder: str | Path) -> "Complexity":
        """Read a stored model. Raises ArtifactError."""
        tensors, about = artifact.load(folder, KIND, VERSION)
        bumps = len(tensors.get("bumps", ()))
        shapes = {
            "hashed": (COLUMNS,), "mean": (COUNTS,), "scale": (COUNTS,), "centres": (bumps, COUNTS), "bumps": (bumps,), "sharpness": (1,),
            "bias": (1,), "calibration": (2,),
        }  # fmt: skip
        weights = Weights(**artifact.shaped(folder, tensors, shapes))
        if not (weights.scale > 0).all():
            raise ArtifactError(f"expected positive scales in {Path(folder).name}, got {weights.scale.min()}")
        return cls(weights, artifact.version(about))

    def save(self, folder: str | Path, about: dict[str, Any]) -> None:
        """Write the model and what is known of its making."""
        artifact.save(folder, KIND, VERSION, self.weights._asdict(), about)

    def score(self, messages: Conversation) -> float:
        """P(the draft is bad and the refiner would be good), 0..1."""
        slope, offset = self.weights.calibration.tolist()
        return sigmoid(slope * self.raw(features(messages)) + offset)

    def raw(self, found: Features) -> float:
        """The score s before calibration: what the refiner's answer is expected to gain over the draft, -1..1 or a little more."""
        hashed = self.weights.hashed.take(found.columns) @ found.values
        return float(hashed + self._bumped(found.counts) @ self.weights.bumps + self.weights.bias[0])

    def _bumped(self, counts: NDArray[np.float32]) -> NDArray[np.float32]:
        weights = self.weights
        z = np.minimum(
            np.maximum((counts - weights.mean) / weights.scale, -CLIP), CLIP
        )  # np.clip takes three times as long
        return np.exp(-weights.sharpness[0] * (z @ z - 2 * (weights.centres @ z) + self._centre_squares))
