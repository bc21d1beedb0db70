"""Linear models as they are stored: `weights.safetensors` beside `model.json`."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from classifiers.api import ArtifactError

KIND = "draftgate-linear"


class Linear(NamedTuple):
    """P = 1 / (1 + exp(-(weights . (x - mean) / scale + bias)))."""

    weights: NDArray[np.float32]  # (F,)
    bias: NDArray[np.float32]  # (1,)
    mean: NDArray[np.float32]  # (F,)
    scale: NDArray[np.float32]  # (F,)

    @property
    def folded(self) -> tuple[NDArray[np.float32], float]:
        """Weights and bias that take x as it is."""
        weights = self.weights / self.scale
        return weights, float(self.bias[0] - weights @ self.mean)


def save(folder: Path, feature_version: str, model: Linear, card: dict[str, Any]) -> None:
    """Write a model and what is known of its making."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in model._asdict().items()}, folder / "weights.safetensors"
    )
    about = {"kind": KIND, "feature_version": feature_version, **card}
    (folder / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=1) + b"\n")


def load(folder: str | Path, feature_version: str, features: int) -> tuple[Linear, str]:
    """Read a model and its version, a short name for this very artifact.

    Raises:
        ArtifactError: files are missing or damaged, or the model was trained on other features.
    """
    folder = Path(folder)
    try:
        about = msgspec.json.decode((folder / "model.json").read_bytes(), type=dict[str, Any])
        tensors = load_file(folder / "weights.safetensors")
    except (OSError, msgspec.DecodeError, SafetensorError) as err:
        raise ArtifactError(f"expected a classifier in {folder.name} (model.json, weights.safetensors): {err}") from err
    for key, expected in (("kind", KIND), ("feature_version", feature_version)):
        if about.get(key) != expected:
            raise ArtifactError(f"expected {key} {expected!r} in {folder.name}, got {about.get(key)!r}")
    if set(tensors) != set(Linear._fields) or tensors["weights"].shape != (features,):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        raise ArtifactError(f"expected {Linear._fields} over {features} features in {folder.name}, got {shapes}")
    return Linear(**tensors), f"{feature_version}:{about.get('trained_at', 'unknown')}"


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return float(np.exp(-np.logaddexp(0.0, -logit)))
