"""Stored numbers: what comes back, and what is refused."""

import numpy as np
import pytest

from classifiers import artifact
from classifiers.api import ArtifactError


def test_what_is_stored_comes_back(tmp_path):
    artifact.save(tmp_path / "new", "kind", "v1", {"a": np.arange(3)}, {"trained_at": "now"})
    tensors, about = artifact.load(tmp_path / "new", "kind", "v1")
    assert artifact.shaped(tmp_path, tensors, {"a": (3,)})["a"].tolist() == [0, 1, 2]
    assert artifact.version(about) == "v1:now"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    tensors = {"good": np.zeros(2), "bad": np.array([0, value])}
    with pytest.raises(ArtifactError, match=r"expected finite numbers in .*, got others in bad$"):
        artifact.shaped(tmp_path, tensors, {"good": (2,), "bad": (2,)})
