"""How often `calibrate` breaks its promise, how much it accepts, and how fast `whatif` is: simulated calibrations of known truth.

A world draws scores and labels; its true risk above any threshold is known in closed form or by summation. A calibration breaks its promise when the
true risk of what it accepts is above the target. An exact one-sided binomial test asks whether that happens in more than 1 - confidence of runs.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import trange

from benchmarks._harness import environment, publish
from classifiers.risk import Labelled, calibrate, labels_without_failure
from classifiers.whatif import Decisions, whatif

SEED = 20_260_101
Floats = NDArray[np.float64]


class World(NamedTuple):
    """Scores take one of S values, so that truth is a sum and ties abound; a fine grid stands for continuous scores."""

    scores: Floats  # (S,) rising
    weight: Floats  # (S,) probability of each score
    risk: Floats  # (S,) P(bad | score)
    labels: int  # per calibration
    target: float

    def draw(self, rng: np.random.Generator) -> Labelled:
        at = rng.choice(len(self.scores), self.labels, p=self.weight)
        return Labelled(self.scores[at], rng.random(self.labels) >= self.risk[at])

    def accepting(self, threshold: float) -> tuple[float, float]:
        """Share accepted at a threshold, and the true risk of what is accepted."""
        accepted = self.scores >= threshold
        share = float(self.weight[accepted].sum())
        return share, float((self.weight * self.risk)[accepted].sum()) / share if share else 0.0

    @property
    def oracle_share(self) -> float:
        """The largest share that any threshold within the target accepts."""
        found = [self.accepting(threshold) for threshold in self.scores]
        return max((share for share, risk in found if risk <= self.target + 1e-12), default=0.0)

    def best_test_share(self, confidence: float) -> float:
        """The share that one exact test accepts in the mean, had it known which threshold to test; all labels test, none plans."""
        found = [self.accepting(threshold) for threshold in self.scores]
        share, risk = np.array([one for one in found if one[0] * self.labels >= 1]).T
        n = (share * self.labels).astype(int)
        passing = stats.binom.ppf(1 - confidence, n, self.target)
        passing -= stats.binom.cdf(passing, n, self.target) > 1 - confidence
        return float((share * stats.binom.cdf(passing, n, risk) * (risk <= self.target)).max())


def _world(risk: Callable[[Floats], Floats], labels: int = 2000, target: float = 0.02, values: int = 1000) -> World:
    scores = (np.arange(values) + 0.5) / values
    return World(scores, np.full(values, 1 / values), np.clip(risk(scores), 0, 1), labels, target)


def _acceptor(auroc: float, bad: float, labels: int, target: float) -> World:
    """Two normal distributions of scores that far apart: good drafts and bad ones."""
    apart = np.sqrt(2) * stats.norm.ppf(auroc)
    edges = np.linspace(-4, 4 + apart, 1001)
    good = (1 - bad) * np.diff(stats.norm.cdf(edges, apart))
    wrong = bad * np.diff(stats.norm.cdf(edges))
    weight = (good + wrong) / (good + wrong).sum()
    return World(np.linspace(0, 1, 1000), weight, wrong / (good + wrong), labels, target)


WORLDS = {
    "well behaved: AUROC .95, 25 % bad": _acceptor(0.95, 0.25, 2000, 0.02),
    "well behaved, 500 labels": _acceptor(0.95, 0.25, 500, 0.05),
    "weak: AUROC .75": _acceptor(0.75, 0.25, 2000, 0.1),
    "U-shaped": _world(lambda s: 0.2 * (2 * s - 1) ** 2, target=0.05),
    "overconfident at the top": _world(lambda s: np.where(s > 0.9, 0.15, 0.01), target=0.03),
    "plateau just above the target": _world(lambda s: np.where(s > 0.3, 0.0201, 0.4)),
    "plateau at the target": _world(lambda s: np.full_like(s, 0.02 + 1e-9)),
    "five scores, many ties": _world(lambda s: np.array([0.6, 0.2, 0.08, 0.021, 0.015]), values=5),
    "jumps": _world(lambda s: np.where((s * 20).astype(int) % 2 == 0, 0.045, 0.0)),
    "score says nothing": _world(lambda s: np.full_like(s, 0.03)),
    "one score, just above the target": _world(lambda s: np.full_like(s, 0.020001), values=1),
    "all good": _world(np.zeros_like),
    "all bad": _world(np.ones_like),
    "60 labels": _acceptor(0.95, 0.25, 60, 0.05),
    "step at the target": _world(lambda s: np.where(s > 0.5, 0.0, 0.041)),
}


def simulate(world: World, runs: int, seed: int, confidence: float = 0.95) -> dict[str, Any]:
    """Calibrate on fresh labels, again and again."""
    broken, unsupported, share = 0, 0, 0.0
    for run in trange(runs, leave=False, disable=None):
        labelled = world.draw(np.random.default_rng([seed, run]))
        found = calibrate(labelled, world.target, confidence, seed=run)
        if found.threshold is None:
            unsupported += 1
            continue
        accepted, risk = world.accepting(found.threshold)
        share += accepted
        broken += risk > world.target
    test = stats.binomtest(broken, runs, 1 - confidence, alternative="greater")
    return {
        "labels": world.labels,
        "target": world.target,
        "broken": broken,
        "p_value": round(float(test.pvalue), 4),
        "unsupported": round(unsupported / runs, 4),
        "accepted": round(share / runs, 4),
        "accepted_by_best_single_test": round(world.best_test_share(confidence), 4),
        "accepted_by_oracle": round(world.oracle_share, 4),
    }


def whatif_speed(decisions: int, pairs: int, seed: int) -> dict[str, Any]:
    """Seconds of one call, the best and the median of five."""
    rng = np.random.default_rng(seed)
    complexity, quality = rng.random(decisions), rng.random(decisions)
    band = np.abs(complexity - 0.5) < 0.1
    drafted = np.where(band, rng.random(decisions) < 0.5, complexity < 0.5)
    log = Decisions(
        complexity=complexity,
        quality=np.where(drafted, quality, -np.inf),
        drafted=drafted,
        accepted=drafted & (quality >= 0.7),
        propensity=np.where(band, 0.5, 1.0),
        acceptance_propensity=np.ones(decisions),
        latency_s=rng.random(decisions),
        draft_latency_s=np.where(drafted, rng.random(decisions), np.nan),
        good=np.where(rng.random(decisions) < 0.1, rng.random(decisions) < 0.9, np.nan),
    )
    took: list[float] = []
    for _ in range(5):
        asked = rng.random((2, pairs))
        start = time.perf_counter()
        whatif(log, *asked)
        took.append(time.perf_counter() - start)
    return {
        "decisions": decisions,
        "pairs": pairs,
        "best_s": round(min(took), 4),
        "median_s": round(sorted(took)[2], 4),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, simulate, print. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.risk", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="calibrations per world")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args(arguments)
    worlds = {name: simulate(world, options.runs, options.seed) for name, world in WORLDS.items()}
    broken, runs = sum(found["broken"] for found in worlds.values()), options.runs * len(worlds)
    report = {
        "environment": environment(options.seed),
        "runs": options.runs,
        "confidence": 0.95,
        "worlds": worlds,
        "pooled": {
            "broken": broken,
            "runs": runs,
            "p_value": round(float(stats.binomtest(broken, runs, 0.05, alternative="greater").pvalue), 4),
        },
        "labels_without_failure": {str(target): labels_without_failure(target) for target in (0.01, 0.02, 0.05)},
        "whatif": whatif_speed(100_000, 100, options.seed),
    }
    publish(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
