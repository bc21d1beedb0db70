"""Train both classifiers on labelled outcomes: `python -m classifiers.train --outcomes FILE --out FOLDER`.

FILE is JSON lines; each holds `messages`, `draft` (the fields of DraftEvidence but `messages`), `draft_right` and
`refine_right` (whether each model's answer was right), and may hold `group`, a name for reports.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from classifiers import artifact
from classifiers.api import DraftEvidence
from classifiers.features import (
    CONVERSATION_VERSION,
    COUNTS,
    DRAFT_FEATURES,
    DRAFT_VERSION,
    HASHED,
    conversation_features,
    draft_features,
)
from classifiers.verifiers import verify

FOLDS = 5


class Outcome(Struct, frozen=True, kw_only=True):
    """One conversation, its draft, and who was right."""

    messages: tuple[dict[str, Any], ...]
    draft: dict[str, Any]
    draft_right: bool
    refine_right: bool
    group: str = ""

    @property
    def evidence(self) -> DraftEvidence:
        """What the quality check would have seen."""
        return msgspec.convert({**self.draft, "messages": self.messages}, DraftEvidence)


def read_outcomes(path: Path) -> list[Outcome]:
    """Read JSON lines. Raises msgspec.ValidationError naming the field that is wrong."""
    decoder = msgspec.json.Decoder(Outcome)
    return [decoder.decode(line) for line in path.read_bytes().splitlines() if line.strip()]


def train_complexity(outcomes: list[Outcome]) -> tuple[artifact.Linear, dict[str, Any]]:
    """Fit P(draft wrong and refiner right | conversation); the report is cross-validated."""
    rows = [conversation_features(outcome.messages) for outcome in outcomes]
    indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    features: Any = sparse.csr_matrix(
        (np.concatenate([v for _, v in rows]), np.concatenate([c for c, _ in rows]), indptr),
        shape=(len(rows), HASHED + len(COUNTS)),
    )
    labels = np.array([not outcome.draft_right and outcome.refine_right for outcome in outcomes])
    model = LogisticRegression(C=10.0, max_iter=2000)
    report = _report(model, features, labels)
    model.fit(features, labels)
    return _linear(model, np.zeros(features.shape[1]), np.ones(features.shape[1])), report


def train_quality(outcomes: list[Outcome]) -> tuple[artifact.Linear, dict[str, Any]]:
    """Fit P(draft right | signals) on drafts that pass every verifier, since only those reach the acceptor."""
    passed: list[Outcome] = []
    failed: list[Outcome] = []
    for outcome in outcomes:
        ok = all(check.passed for check in verify(outcome.evidence))
        (passed if ok else failed).append(outcome)
    features = np.stack([draft_features(outcome.evidence) for outcome in passed])
    labels = np.array([outcome.draft_right for outcome in passed])
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-3, spread, 1.0)  # what hardly varied in training must not be blown up later
    model = LogisticRegression(C=1.0, max_iter=2000)
    report = _report(model, (features - mean) / scale, labels)
    report |= {"failed_a_verifier": len(failed), "of_these_right": sum(o.draft_right for o in failed)}
    model.fit((features - mean) / scale, labels)
    return _linear(model, mean, scale), report


def _report(model: LogisticRegression, features: Any, labels: NDArray[np.bool_]) -> dict[str, Any]:
    if min(labels.sum(), (~labels).sum()) < FOLDS:
        raise ValueError(f"expected at least {FOLDS} outcomes of each kind, got {labels.sum()} of {len(labels)}")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    predicted: Any = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    scores = predicted[:, 1]
    return {
        "outcomes": len(labels),
        "positive_share": round(float(labels.mean()), 4),
        "auroc_cross_validated": round(float(roc_auc_score(labels, scores)), 4),
        "brier_cross_validated": round(float(brier_score_loss(labels, scores)), 4),
    }


def _linear(model: Any, mean: NDArray, scale: NDArray) -> artifact.Linear:
    return artifact.Linear(
        weights=model.coef_[0].astype(np.float32),
        bias=model.intercept_.astype(np.float32),
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
    )


def main() -> None:
    """Parse the command line, train, store, and print the reports."""
    parser = argparse.ArgumentParser(prog="python -m classifiers.train", description=__doc__)
    parser.add_argument("--outcomes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="gets a folder `complexity` and a folder `quality`")
    options = parser.parse_args()
    outcomes = read_outcomes(options.outcomes)
    trained_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, version, fit in (
        ("complexity", CONVERSATION_VERSION, train_complexity),
        ("quality", DRAFT_VERSION, train_quality),
    ):
        model, report = fit(outcomes)
        artifact.save(options.out / name, version, model, {"trained_at": trained_at, "report": report})
        print(name, msgspec.json.encode(report).decode())  # noqa: T201
    weights = artifact.load(options.out / "quality", DRAFT_VERSION, len(DRAFT_FEATURES))[0].weights
    print("quality weights", dict(zip(DRAFT_FEATURES, weights.round(2).tolist(), strict=True)))  # noqa: T201


if __name__ == "__main__":
    main()
