"""Which acceptance threshold keeps a promise such as "at most 2 % of accepted drafts are bad, with 95 % confidence".

The promise. Let R(t) = P(bad | quality >= t) over the requests to come. `calibrate` returns a threshold t with R(t) > target in at most a share
of 1 - confidence of all calibration sets it could have been given. That holds for every sample size and every acceptor, calibrated or
not, whose risk falls, rises or jumps with its score; it needs two things: that labelled requests and those to come are independent draws from
the same traffic, and that the acceptor was not trained on these labels. It says nothing of traffic that has changed since, nor of labels that are wrong.

How. The null hypothesis of a threshold is R(t) > target. Of n accepted labels k are bad; given n, k is binomial with R(t), so

    p(t) = P(Bin(n, target) <= k)          which is at most 1 - confidence just where Clopper and Pearson's upper bound is at most the target

is an exact p-value. Many thresholds are tried, so the chance of one false rejection among all of them is held by the fallback procedure (Wiens
2003; Wiens and Dmitrienko 2005): hypotheses in an order fixed beforehand, the j-th with a level delta_j, sum delta_j = 1 - confidence; a rejected one
hands its level on to the next. With all of it on the first this is fixed-sequence testing (Bauer 1991), as in Learn then Test
(Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv:2110.01052, section 2.3): go on until the first that fails.

Order and levels may not depend on the labels that are tested, nor may a threshold be one of their own quantiles. So a random eighth of the
labels, the scouts, is spent on a plan: thresholds at the scouts' quantiles, and a third of the level on each of three that are likely to pass. A
bad plan costs acceptance, never the promise. Who knows good thresholds without these labels, from the scores of earlier traffic for
example, passes them and spends no scouts; then every threshold begins with an equal share of the level, since nobody knows where to start.

A promise is for one calibration. Trying again with more labels until it passes is another procedure: give the i-th try the confidence
1 - (1 - confidence) / 2^i, and all of them together keep it.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray
from scipy import stats

SCOUTS = 8  # one label in so many plans; the others test. Fewer plan badly, more are missed in the test
STEPS = 20  # thresholds that a plan has at most: finer steps stop sooner, by chance; coarser ones overshoot
STARTS = 3  # thresholds that begin with a level of their own; with one, an unlucky start in seven ended with nothing
LIKELY = 0.8  # a start passes with at least this part of the best one's probability
POWER = 0.8  # probability that `Calibration.needed` labels are enough
MOST_LABELS = 10_000_000  # accepted ones; a risk that is told from the target by no fewer is as good as on it

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


class RiskError(ValueError):
    """Labels, a target or thresholds that no calibration can work with."""


class Labelled(NamedTuple):
    """Drafts of known quality; row i of both is one draft."""

    quality: ArrayLike  # (n,) what the acceptor says, 0..1
    good: ArrayLike  # (n,) bool


class Calibration(Struct, frozen=True, kw_only=True):
    """An acceptance threshold, or why there is none. Counts are of the labels that tested, not of those that planned."""

    threshold: float | None  # accept a draft whose quality is at or above; None: the labels don't support the target
    target: float  # of P(bad | accepted)
    confidence: float
    labels: int  # in all
    tested: int  # of these, the ones that tested
    accepted: int  # of these, at the threshold; without one, at the threshold that came closest
    bad: int  # of these
    upper: float  # Clopper-Pearson's one-sided bound on P(bad | accepted) from these two; the promise is the target, this describes
    share: float  # accepted / tested
    share_low: float  # its two-sided Clopper-Pearson interval, at the same confidence
    share_high: float
    needed: (
        int | None
    )  # without a threshold: labels in all that would support one with probability POWER; None: no number would
    reason: str  # for people

    @property
    def supported(self) -> bool:
        """Is there a threshold?"""
        return self.threshold is not None


class _Plan(NamedTuple):
    """Thresholds in the order of testing, and what part of the level each begins with."""

    thresholds: Floats  # (m,)
    shares: Floats  # (m,) sum to 1


def calibrate(
    labelled: Labelled,
    target: float,
    confidence: float = 0.95,
    *,
    thresholds: ArrayLike | None = None,
    seed: int = 0,
) -> Calibration:
    """Pick the threshold that accepts most among those whose risk is at most the target, with confidence.

    P(R(threshold) > target) <= 1 - confidence over the labels; the module's docstring has the procedure, its one assumption and its sources.

    Args:
        labelled: quality (n,) and good (n,), independent draws from the traffic that the threshold is for, none of them seen by the acceptor
            in training. Labels must not have been chosen by their quality, nor weighted: shadow every draft with the same probability. Labels of accepted drafts alone are draws from the
            accepted traffic: they can raise the threshold, not lower it, and `share` is then of what was accepted.
        target: largest P(bad | accepted), above 0 and below 1.
        confidence: above 0 and below 1.
        thresholds: (m,) chosen without these labels, in the order of testing, which should be falling. None: scouts choose them.
        seed: of the scouts' choice. Trying several seeds and keeping the best breaks the promise.

    Raises:
        RiskError: something is not as said here.
    """
    quality, good = _checked(labelled)
    for name, value in (("target", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise RiskError(f"expected a {name} above 0 and below 1, got {value}")
    level, starts = 1 - confidence, STARTS if thresholds is None else np.size(thresholds)
    if thresholds is None:
        scouts = np.zeros(len(quality), dtype=bool)
        scouts[np.random.default_rng(seed).permutation(len(quality))[: len(quality) // SCOUTS]] = True
        plan = _planned(quality[scouts], good[scouts], int((~scouts).sum()), target, level)
        tested = ~scouts
    else:
        tested = np.ones(len(quality), dtype=bool)
        plan = _equal(thresholds)
    accepted, bad = _counts(plan.thresholds, quality[tested], good[tested])
    p_values = np.where(accepted > 0, stats.binom.cdf(bad, accepted, target), 1.0)
    passed = _fallback(p_values, plan.shares * level)
    found = _described(plan.thresholds, accepted, bad, passed, p_values, int(tested.sum()), confidence)
    if found["threshold"] is not None:
        needed, reason = None, _supported(found, target, confidence)
    else:
        needed, best = _needed(quality, good, 1 - 1 / SCOUTS if thresholds is None else 1.0, target, level / starts)
        reason = _unsupported(needed, best, len(quality), target, confidence)
    return Calibration(target=target, confidence=confidence, labels=len(quality), needed=needed, reason=reason, **found)


def clopper_pearson(bad: ArrayLike, n: ArrayLike, confidence: float = 0.95, sided: int = 2) -> tuple[Floats, Floats]:
    """Exact interval of a binomial probability (Clopper and Pearson 1934): quantiles of beta distributions.

    low = Beta(bad, n - bad + 1) at a, high = Beta(bad + 1, n - bad) at 1 - a, with a = (1 - confidence) / sided; n = 0 gives (0, 1).

    Args:
        bad: (...) of n.
        n: (...) broadcasts with bad.
        confidence: of the interval, or of each of its ends where sided is 1.
        sided: 2 for an interval, 1 for two one-sided bounds.

    Returns: low (...), high (...).

    Raises:
        RiskError: counts below 0, more bad than n, or sided neither 1 nor 2.
    """
    k, size = np.broadcast_arrays(np.asarray(bad, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if sided not in (1, 2):
        raise RiskError(f"expected sided 1 or 2, got {sided}")
    if not 0 < confidence < 1:
        raise RiskError(f"expected a confidence above 0 and below 1, got {confidence}")
    if not ((k >= 0) & (k <= size)).all():
        raise RiskError(f"expected 0 <= bad <= n, got bad {bad} of n {n}")
    tail = (1 - confidence) / sided
    with np.errstate(invalid="ignore"):  # Beta(0, .) and Beta(., 0) have no quantiles; their limits are 0 and 1
        low = np.where(k > 0, stats.beta.ppf(tail, k, size - k + 1), 0.0)
        high = np.where(k < size, stats.beta.ppf(1 - tail, k + 1, size - k), 1.0)
    return low, high


def labels_without_failure(target: float, confidence: float = 0.95) -> int:
    """Fewest accepted labels that can support a target, all of them good: the least n with (1 - target)^n <= 1 - confidence."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-target) - 1e-12)


def _checked(labelled: Labelled) -> tuple[Floats, Bools]:
    quality, good = np.asarray(labelled[0], dtype=np.float64), np.asarray(labelled[1])
    if quality.ndim != 1 or quality.shape != good.shape:
        raise RiskError(f"expected quality (n,) and good (n,), got {quality.shape} and {good.shape}")
    if not np.isin(good, (0, 1)).all():
        raise RiskError(f"expected good of True and False, got {good.dtype} with other values")
    if not ((quality >= 0) & (quality <= 1)).all():
        raise RiskError("expected quality from 0 to 1, got " + str(quality[~((quality >= 0) & (quality <= 1))][0]))
    return quality, good.astype(bool)


def _counts(thresholds: Floats, quality: Floats, good: Bools) -> tuple[Counts, Counts]:
    """How many drafts each threshold accepts, (m,), and how many of them are bad, (m,)."""
    order = np.argsort(-quality, kind="stable")
    bad = np.concatenate([[0], np.cumsum(~good[order])])
    accepted = np.searchsorted(-quality[order], -thresholds, side="right")
    return accepted, bad[accepted]


def _equal(thresholds: ArrayLike) -> _Plan:
    given = np.asarray(thresholds, dtype=np.float64)
    if given.ndim != 1 or not given.size or not np.isfinite(given).all():
        raise RiskError(f"expected thresholds (m,) of finite numbers, m > 0, got {thresholds}")
    return _Plan(given, np.full(len(given), 1 / len(given)))


def _planned(quality: Floats, good: Bools, tested: int, target: float, level: float) -> _Plan:
    """Thresholds towards more acceptance, with starts spread evenly over those that are likely to pass.

    Of n scouts accepted k were bad: with Jeffreys' prior the risk is Beta(k + 1/2, n - k + 1/2), and the bad among the labels that will test
    beta-binomial. A threshold passes when they are at most the largest count that passes.
    """
    if not len(quality):
        return _Plan(np.zeros(1), np.ones(1))
    grid = _quantiles(quality)
    accepted, bad = _counts(grid, quality, good)
    expected = np.round(accepted * tested / len(quality)).astype(np.int64)
    passing = stats.betabinom.cdf(_most_bad(expected, target, level), expected, bad + 0.5, accepted - bad + 0.5)
    likely = np.flatnonzero(passing >= LIKELY * passing.max())
    starts = np.unique(likely[np.linspace(0, len(likely) - 1, STARTS).round().astype(int)])
    shares = np.zeros(len(grid))
    shares[starts] = 1 / len(starts)
    return _Plan(grid, shares)


def _quantiles(quality: Floats) -> Floats:
    """At most STEPS thresholds, falling; the last accepts all."""
    return np.unique(np.quantile(quality, np.linspace(0, 1, STEPS + 1)[:-1], method="inverted_cdf"))[::-1]


def _most_bad(n: Counts, target: float, level: float) -> Counts:
    """Largest k with P(Bin(n, target) <= k) <= level, or -1."""
    k = stats.binom.ppf(level, n, target).astype(np.int64)
    return np.where(stats.binom.cdf(k, n, target) <= level, k, k - 1)


def _fallback(p_values: Floats, levels: Floats) -> Bools:
    """Which hypotheses are rejected, (m,): each at its own level and that of its predecessor, if that was rejected."""
    rejected, handed_on = np.zeros(len(p_values), dtype=bool), 0.0
    for j, (p, own) in enumerate(zip(p_values, levels, strict=True)):
        level = own + handed_on
        rejected[j] = level > 0 and p <= level
        handed_on = level if rejected[j] else 0.0
    return rejected


def _described(
    thresholds: Floats, accepted: Counts, bad: Counts, passed: Bools, p_values: Floats, tested: int, confidence: float
) -> dict[str, Any]:
    """The fields of a Calibration that come from one threshold."""
    lowest = np.where(passed, thresholds, np.inf)
    j = int(np.argmin(lowest if passed.any() else p_values))
    n, k = int(accepted[j]), int(bad[j])
    low, high = clopper_pearson(n, tested, confidence)
    return {
        "threshold": float(thresholds[j]) if passed.any() else None,
        "tested": tested,
        "accepted": n,
        "bad": k,
        "upper": float(clopper_pearson(k, n, confidence, sided=1)[1]),
        "share": n / max(tested, 1),
        "share_low": float(low),
        "share_high": float(high),
    }


def _needed(quality: Floats, good: Bools, testing: float, target: float, level: float) -> tuple[int | None, float]:
    """How many labels would do, and the lowest risk seen, each over all thresholds; a plan, so it may look at every label.

    The risk at a threshold is taken as (k + 1.5) / (n + 2/target): three quarters of the target before any label is seen, k/n after many. Less of
    such a prior promises too much, since the best of many thresholds is taken. Where even so the labels at hand should have been enough,
    twice as many are asked for.

    Args:
        quality: (n,)
        good: (n,)
        testing: share of labels that test.
        target: see `calibrate`.
        level: with which a threshold begins.
    """
    accepted, bad = _counts(_quantiles(quality) if len(quality) else np.zeros(1), quality, good)
    accepted = np.maximum(accepted, 1)  # without labels: a threshold that would accept all
    risk = (bad + 1.5) / (accepted + 2 / target)
    sizes = np.unique(np.geomspace(1, MOST_LABELS, 400).astype(np.int64))
    enough = stats.binom.cdf(_most_bad(sizes, target, level), sizes, risk[:, None]) >= POWER
    share = accepted / max(len(quality), 1) * testing
    total = np.where(enough.any(axis=1), sizes[enough.argmax(axis=1)] / share, np.inf).min()
    lowest = float((bad / accepted).min())
    if np.isinf(total):
        return None, lowest
    if total <= len(quality):
        total = 2 * len(quality)
    digits = 10 ** max(len(str(int(total))) - 2, 0)
    return math.ceil(total / digits) * digits, lowest


def _supported(found: dict[str, Any], target: float, confidence: float) -> str:
    return (
        f"Accept drafts of quality {found['threshold']} and above: with {confidence:.4g} confidence at most {target:.4g} of them are bad. "
        f"Of {found['accepted']} accepted labels {found['bad']} were bad; {found['share']:.1%} of drafts are accepted."
    )


def _unsupported(needed: int | None, best: float, labels: int, target: float, confidence: float) -> str:
    if needed is None:
        return (
            f"No threshold keeps the share of bad drafts at {target:.4g}, and more labels won't help: the lowest share seen above any "
            f"threshold is {best:.4g}, of {labels} labels. A higher target would do, or a better acceptor."
        )
    return (
        f"So many labels ({labels}) are too few to say with {confidence:.4g} confidence that at most {target:.4g} of accepted drafts are bad: "
        f"about {needed} would probably do."
    )
