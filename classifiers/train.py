"""Train classifiers on labelled outcomes: `draftgate train --data FILE|DIR --out FOLDER`.

`classifiers.outcomes` says what a row holds. FOLDER gets a folder `complexity` (P(the draft is wrong and the refiner right), from
the conversation) where rows hold refine_right, and a folder `quality` (P(the draft is good), from the draft and what is known of
it) where rows hold drafts. Other rows are left out, and stderr counts them.
Name them in `[classifiers]` of the gateway's settings. The reports are cross-validated.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from classifiers.evaluation import (
    EvaluationError,
    Scores,
    calibration,
    labels_of,
    measure,
    out_of_fold,
    stratified_folds,
)
from classifiers.outcomes import Dataset, Outcome, OutcomesError, read_data
from classifiers.train_complexity import FOLDS, fit_complexity
from classifiers.train_quality import fit_acceptor

KINDS = {"complexity": "refine_right", "quality": "draft"}  # and the field that its rows must have


def train_complexity(rows: Sequence[Outcome], folder: Path, about: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Fit, store, and report what cross-validation says of it. Raises OutcomesError, OSError."""
    model = fit_complexity(rows, seed, progress=True)
    report = complexity_report(rows, seed)
    model.save(folder, about | {"report": report})
    return report


def complexity_report(rows: Sequence[Outcome], seed: int = 0) -> dict[str, Any]:
    """APGR, AUROC and calibration, out of fold, by source; `not_measured` says why where there is too little for them."""

    def recipe(train: Sequence[Outcome]) -> Any:
        model = fit_complexity(train, seed)
        return lambda test: np.array([model.score(row.messages) for row in test])

    report: dict[str, Any] = {row.source: {} for row in rows}
    for source in report:
        try:
            stratified_folds([row for row in rows if row.source == source], FOLDS, seed)
        except EvaluationError as error:
            report[source] = {"not_measured": str(error)}
    held = [row for row in rows if not report[row.source]]
    sources = [row.source for row in held]
    try:
        scores = out_of_fold(recipe, held, stratified_folds(held, FOLDS, seed, sources)) if held else np.empty(0)
    except (EvaluationError, OutcomesError) as error:
        report |= {source: {"not_measured": str(error)} for source in sources}
        return {source or "outcomes": found for source, found in report.items()}
    for source in dict.fromkeys(sources):
        those = np.flatnonzero(np.array(sources) == source)
        report[source] = _measured(scores[those], [held[i] for i in those])
    return {source or "outcomes": found for source, found in report.items()}


def _measured(scores: Scores, rows: Sequence[Outcome]) -> dict[str, Any]:
    drafts, refined = labels_of(rows)
    needed = ~drafts & refined
    held = calibration(scores, needed)
    try:
        found = measure(scores, drafts, refined, bootstraps=200)
    except EvaluationError as error:
        return {"not_measured": str(error)}
    return {
        "rows": len(rows),
        "needed": round(float(needed.mean()), 4),
        "apgr": str(found["apgr"]),
        "auroc_needed": str(found["auroc_needed"]),
        "brier": round(held.brier, 4),
        "ece": round(held.ece, 4),
    }


def train_quality(rows: Sequence[Outcome], folder: Path, about: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Fit, store, and report what cross-validation says of it. Raises OutcomesError, OSError."""
    model, report = fit_acceptor(rows, seed)
    model.save(folder, about | {"report": report})
    return report


def rows_for(kind: str, dataset: Dataset) -> list[Outcome]:
    """Those that this classifier can learn from: with the refiner's side, or with a draft."""
    if kind == "complexity":
        return [row for row in dataset.rows if row.refine_right is not None]
    return [row for row in dataset.rows if row.draft]


def about_of(kind: str, datasets: Mapping[str, Dataset], licence: str) -> dict[str, Any]:
    """What an artifact says of when it was made, and of what."""
    return {
        "trained_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "data": [
            {"name": name, "rows": count, "sha256": dataset.sha256, "licence": licence}
            for name, dataset in datasets.items()
            if (count := len(rows_for(kind, dataset)))
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, store, print the reports. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="draftgate train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of outcomes, or a folder of such files")
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each classifier")
    parser.add_argument("--only", choices=list(KINDS), help="train only this one")
    parser.add_argument("--licence", default="", help="of the data, for the artifact's model.json")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        datasets = read_data(options.data, every=True)
        count = sum(len(dataset.rows) for dataset in datasets.values())
        usable = {kind: [row for dataset in datasets.values() for row in rows_for(kind, dataset)] for kind in KINDS}
        if not any(usable.values()):
            raise OutcomesError(f"expected rows with {' or '.join(KINDS.values())}, got {count} without")
        options.out.mkdir(parents=True, exist_ok=True)  # or the training may be for nothing
        for kind in [options.only] if options.only else KINDS:
            rows = usable[kind]
            if len(rows) < count:
                sys.stderr.write(
                    f"draftgate train: {kind}: {count - len(rows)} of {count} rows left out, without {KINDS[kind]}\n"
                )
            if rows or options.only:
                fit = train_complexity if kind == "complexity" else train_quality
                report = fit(rows, options.out / kind, about_of(kind, datasets, options.licence), options.seed)
                sys.stdout.write(f"{kind} {msgspec.json.encode(report).decode()}\n")
    except (OutcomesError, OSError) as error:
        sys.stderr.write(f"draftgate train: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
