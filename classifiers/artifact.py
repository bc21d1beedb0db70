"""Classifiers as they are stored: `weights.safetensors` beside `model.json`. Numbers only: no pickle, and no text of any data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialised

from classifiers.api import ArtifactError

Tensors = dict[str, NDArray[Any]]


def save(
    folder: str | Path, kind: str, feature_version: str, tensors: Mapping[str, NDArray[Any]], about: dict[str, Any]
) -> None:
    """Write a model and what is known of its making.

    Args:
        folder: is made.
        kind: of model.
        feature_version: of the features it was trained on.
        tensors: its numbers.
        about: for `model.json`.

    Raises:
        OSError: the folder can't be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = serialised({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    (folder / "weights.safetensors").write_bytes(weights)
    text = msgspec.json.encode({"kind": kind, "feature_version": feature_version, **about})
    (folder / "model.json").write_bytes(msgspec.json.format(text, indent=1) + b"\n")


def load(folder: str | Path, kind: str, feature_version: str) -> tuple[Tensors, dict[str, Any]]:
    """Read a model's tensors and what is known of its making.

    Raises:
        ArtifactError: files are missing or damaged, or the model is of another kind or was trained on other features.
    """
    folder = Path(folder)
    try:
        about = msgspec.json.decode((folder / "model.json").read_bytes(), type=dict[str, Any])
        tensors = load_file(folder / "weights.safetensors")
    except (OSError, msgspec.DecodeError, SafetensorError) as err:
        raise ArtifactError(f"expected a classifier in {folder.name} (model.json, weights.safetensors): {err}") from err
    for key, expected in (("kind", kind), ("feature_version", feature_version)):
        if about.get(key) != expected:
            raise ArtifactError(f"expected {key} {expected!r} in {folder.name}, got {about.get(key)!r}")
    return tensors, about


def shaped(folder: str | Path, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The tensors, if they are exactly these and finite. Raises ArtifactError."""
    got = {name: tensor.shape for name, tensor in tensors.items()}
    if got != dict(shapes):
        differing = sorted(name for name in {*got, *shapes} if got.get(name) != shapes.get(name))
        words = ", ".join(f"{name} {shapes.get(name, 'absent')}, got {got.get(name, 'none')}" for name in differing)
        raise ArtifactError(f"expected in {Path(folder).name}: {words}")
    if broken := sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all()):
        raise ArtifactError(f"expected finite numbers in {Path(folder).name}, got others in {', '.join(broken)}")
    return tensors


def version(about: dict[str, Any]) -> str:
    """A short name for this very artifact."""
    return f"{about['feature_version']}:{about.get('trained_at', 'unknown')}"


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return float(np.exp(-np.logaddexp(0.0, -logit)))
