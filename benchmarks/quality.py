"""Does the quality target hold on the demo store? `python -m benchmarks.quality --calibration FILE --fresh FILE --json FILE`.

FILEs are outcomes of `benchmarks.outcomes`, of one split and different seeds:

    python -m benchmarks.outcomes --split combinations --seed 2001 --count 4000 --out .build/calibration.jsonl
    python -m benchmarks.outcomes --split combinations --seed 3001 --count 6000 --out .build/fresh.jsonl

(the shipped classifiers: --split train --seed 1001 --count 4000; `draftgate train` took them from there).

The acceptance threshold is calibrated on the first file (`classifiers.risk`), for requests below the complexity threshold, and then
used on the second: how many accepted drafts are bad there, with a Clopper-Pearson bound, and how many requests are accepted. Beside
it: the acceptor's AUROC with all it may know and with less, and what complexity score and quality check cost beside a draft.
The classifiers are the shipped ones, or with `--train FILE ...` new ones that have learned from these outcomes.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks._harness import environment, publish
from classifiers.api import DraftEvidence
from classifiers.complexity import Complexity
from classifiers.outcomes import Outcome, as_served, read_outcomes
from classifiers.quality import Acceptor
from classifiers.risk import calibrate, clopper_pearson
from classifiers.train_complexity import fit_complexity
from classifiers.train_quality import fit_acceptor
from classifiers.verifiers import verify
from demo_models import store
from diffusion_engine import DiffusionGemmaModel
from router.policy import Policy

UNKNOWN: dict[str, dict[str, Any]] = {
    "all": {},
    "as served": {"score": None, "others": ()},
    "text and score": {
        "others": (), "steps": (), "converged": (), "token_entropy": (), "token_logprobs": (), "late_flips": 0,
    },
    "text alone": {
        "score": None, "others": (), "steps": (), "converged": (), "token_entropy": (), "token_logprobs": (), "late_flips": 0,
    },
}  # fmt: skip
DRAFTS = 100  # made one by one for the latencies


def drafts_of(outcomes: Sequence[Outcome]) -> list[DraftEvidence]:
    return [row.draft for row in outcomes if row.draft]


def auroc(acceptor: Acceptor, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of all drafts; one that fails a decisive check has quality 0."""
    right = [row.draft_right for row in outcomes]
    found = {}
    for name, lost in UNKNOWN.items():
        scores = [acceptor.judge(replace(draft, **lost)).quality for draft in tqdm(drafts_of(outcomes), name)]
        found[name] = round(float(roc_auc_score(right, scores)), 4)
    return found


def judged(complexity: Complexity, acceptor: Acceptor, outcomes: Sequence[Outcome], policy: Policy) -> tuple[Any, Any]:
    """Quality as the service would see it, -1 where the request goes direct; and which drafts are right."""
    quality = [
        acceptor.judge(as_served(row.draft)).quality
        if row.draft and complexity.score(row.messages) < policy.complexity_threshold
        else -1.0
        for row in tqdm(outcomes, "judged")
    ]
    return np.array(quality), np.array([row.draft_right for row in outcomes])


def kept(quality: Any, right: Any, threshold: float) -> dict[str, Any]:
    """What a threshold accepts, and how bad that is."""
    accepted = quality >= threshold
    n, bad = int(accepted.sum()), int((accepted & ~right).sum())
    upper = float(clopper_pearson(bad, n, 0.95, 1)[1])
    return {
        "threshold": threshold,
        "requests": len(quality),
        "direct_by_complexity": int((quality < 0).sum()),
        "accepted": n,
        "accepted_share": round(n / len(quality), 4),
        "bad": bad,
        "bad_share": round(bad / max(1, n), 4),
        "bad_share_at_most_with_95_percent_confidence": round(upper, 4),
    }


def costs(complexity: Complexity, acceptor: Acceptor, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Milliseconds on one thread, of a draft made alone and of what is done to it."""
    drafter = DiffusionGemmaModel.from_pretrained(str(store.path("draft")))
    drafts = drafts_of(outcomes)[:DRAFTS]
    stages = {
        "complexity": lambda draft: complexity.score(draft.messages),
        "draft": lambda draft: drafter.drafts([list(draft.messages)]),
        "verifiers": verify,
        "quality": acceptor.judge,
    }
    found: dict[str, Any] = {}
    with threadpool_limits(1):
        for name, stage in stages.items():
            for draft in drafts[:5]:
                stage(draft)
            taken = []
            for draft in drafts:
                start = time.perf_counter()
                stage(draft)
                taken.append(1e3 * (time.perf_counter() - start))
            p50, p99 = np.percentile(taken, [50, 99]).round(3).tolist()
            found[name] = {"mean_ms": round(float(np.mean(taken)), 3), "p50_ms": p50, "p99_ms": p99}
    found["quality_over_draft"] = round(found["quality"]["mean_ms"] / found["draft"]["mean_ms"], 4)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--fresh", type=Path, required=True)
    parser.add_argument("--train", type=Path, nargs="+", default=[])
    parser.add_argument("--target", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if learned := [row for path in options.train for row in read_outcomes(path)]:
        complexity, (acceptor, _) = fit_complexity(learned), fit_acceptor(learned)
    else:
        complexity, acceptor = Complexity.load(store.path("complexity")), Acceptor.load(store.path("quality"))
    policy = Policy()
    calibration, fresh = read_outcomes(options.calibration), read_outcomes(options.fresh)
    quality, right = judged(complexity, acceptor, calibration, policy)
    drafted = quality >= 0
    found = calibrate((quality[drafted], right[drafted]), options.target, options.confidence)
    quality, right = judged(complexity, acceptor, fresh, policy)
    report = {
        **environment(0),
        "trained_on": [path.stem for path in options.train],
        "complexity": complexity.version,
        "acceptor": acceptor.version,
        "auroc": auroc(acceptor, fresh),
        "calibration": {"rows": len(calibration), **msgspec.to_builtins(found)},
        "fresh": {"at_calibrated": kept(quality, right, found.threshold)} if found.threshold is not None else {},
        "costs": costs(complexity, acceptor, fresh),
    }
    report["fresh"]["at_default"] = kept(quality, right, policy.quality_threshold)
    publish(report, options.json)


if __name__ == "__main__":
    main()
