"""How good a router score is, measured as RouteLLM does, with intervals, and on rows that its model has not seen.

Of n requests with a score (higher: more in need of the refiner), let gain = refine_right - draft_right. Sending the share x
of highest score to the refiner recovers

    PGR(x) = (gain summed over the first x n rows) / (gain summed over all rows)

of the quality gap between drafts and refiner; PGR(0) = 0 and PGR(1) = 1. Rows of equal score count by the expected value over
all their orders, so a score with many ties is neither lucky nor unlucky. Source: Ong et al., RouteLLM, arXiv 2406.18665,
section 3; `routellm/evals/evaluate.py` of lm-sys/RouteLLM.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from classifiers.outcomes import Outcome
from classifiers.text import text_of

Scores = NDArray[np.float64]  # (n,)
Scorer = Callable[[Sequence[Outcome]], Scores]  # higher: more in need of the refiner
Recipe = Callable[[Sequence[Outcome]], Scorer]  # from training rows

STEPS = 10  # of x, in APGR
MEASURES = ("apgr", "cpt50", "cpt80", "auroc_needed", "auroc_draft_wrong")
_WORD = re.compile(r"\w+")
_DIGIT = re.compile(r"\d+")


class EvaluationError(ValueError):
    """Rows or scores from which nothing can be measured."""


class Interval(Struct, frozen=True):
    """A measured value and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`0.651 (0.630-0.672)`."""
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


class Calibration(Struct, frozen=True):
    """Do probabilities hold what they say? Bins hold equally many rows, ties apart.

    brier = mean (p - y)^2; ece = sum over bins of (rows / n) |observed - predicted|, the expected calibration error.
    """

    brier: float
    brier_of_base_rate: float  # what always saying the mean would get
    ece: float
    predicted: list[float]  # per bin: mean probability
    observed: list[float]  # per bin: share in which it happened
    low: list[float]  # per bin: 95 % Clopper-Pearson interval of `observed`
    high: list[float]
    rows: list[int]  # per bin


class Latency(Struct, frozen=True):
    """Wall-clock milliseconds of one call, batch 1, one thread."""

    p50_ms: float
    p99_ms: float
    calls: int


class _Ranking(NamedTuple):
    """Rows by falling score, in blocks of equal score."""

    order: NDArray[np.intp]  # (n,)
    starts: NDArray[np.intp]  # (k,), of each block in `order`

    @classmethod
    def of(cls, score: Scores) -> "_Ranking":
        order = np.argsort(-score, kind="stable")
        return cls(order, np.flatnonzero(np.diff(score[order], prepend=np.inf)))

    def summed(self, values: NDArray) -> Scores:
        """(n,) to (k,): the sum in each block."""
        return np.add.reduceat(values[self.order], self.starts, dtype=np.float64)


def pgr(score: ArrayLike, draft_right: ArrayLike, refine_right: ArrayLike, share: ArrayLike) -> Scores:
    """PGR at these shares of refined requests, 0..1. Raises EvaluationError."""
    rows = _Rows(score, draft_right, refine_right)
    return np.interp(np.asarray(share, dtype=float), *rows.curve(np.ones(rows.n)))


def apgr(score: ArrayLike, draft_right: ArrayLike, refine_right: ArrayLike) -> float:
    """Trapezoid integral of PGR over x = 0, 0.1, ... 1; 0.5 for a random score. Raises EvaluationError."""
    rows = _Rows(score, draft_right, refine_right)
    return _apgr(*rows.curve(np.ones(rows.n)))


def cpt(score: ArrayLike, draft_right: ArrayLike, refine_right: ArrayLike, recovered: float) -> float:
    """Call-performance threshold: the smallest share x with PGR(x) >= recovered. Raises EvaluationError."""
    rows = _Rows(score, draft_right, refine_right)
    return _cpt(*rows.curve(np.ones(rows.n)), recovered)


def measure(
    score: ArrayLike, draft_right: ArrayLike, refine_right: ArrayLike, bootstraps: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """Every one of MEASURES. AUROC is of the event "needed" (draft wrong and refiner right) and of "draft wrong".

    Intervals are the 2.5 and 97.5 percentiles over rows drawn anew with replacement; a draw without a gap or without one of
    the classes says nothing and is left out.

    Args:
        score: (n,), higher where the refiner is needed more.
        draft_right: (n,) bool.
        refine_right: (n,) bool.
        bootstraps: how many draws.
        seed: of the draws.

    Raises:
        EvaluationError: other shapes, scores that aren't finite, no gap, or only one class.
    """
    rows = _Rows(score, draft_right, refine_right)
    value = rows.measured(np.ones(rows.n))
    if np.isnan(value).any():
        raise EvaluationError("expected rows with draft_right false and true, and some the refiner alone got right")
    return _intervals(value, np.stack([rows.measured(weight) for weight in _draws(rows.n, bootstraps, seed)]))


def difference(
    score: ArrayLike,
    other: ArrayLike,
    draft_right: ArrayLike,
    refine_right: ArrayLike,
    bootstraps: int = 300,
    seed: int = 0,
) -> dict[str, Interval]:
    """MEASURES of one score less those of another, over the same draws of rows: is the one really better?"""
    a, b = (_Rows(each, draft_right, refine_right) for each in (score, other))
    ones = np.ones(a.n)
    draws = [a.measured(weight) - b.measured(weight) for weight in _draws(a.n, bootstraps, seed)]
    return _intervals(a.measured(ones) - b.measured(ones), np.stack(draws))


def calibration(probability: ArrayLike, happened: ArrayLike, bins: int = 10) -> Calibration:
    """Brier score, expected calibration error and reliability curve of P(happened), (n,) each.

    Source: Brier, Monthly Weather Review 78, 1950; Naeini et al., AAAI 2015 (with bins of equal mass).
    """
    p, y = np.asarray(probability, dtype=float), np.asarray(happened, dtype=float)
    if p.ndim != 1 or p.shape != y.shape or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise EvaluationError(f"expected a probability 0..1 for each row, got {p.shape} for {y.shape}")
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, p, side="left")
    rows = np.bincount(at)
    held = rows > 0
    rows, predicted, observed = rows[held], np.bincount(at, p)[held], np.bincount(at, y)[held]
    exact = [binomtest(int(k), int(n)).proportion_ci(0.95) for k, n in zip(observed, rows, strict=True)]
    return Calibration(
        brier=float(np.mean((p - y) ** 2)),
        brier_of_base_rate=float(y.mean() * (1 - y.mean())),
        ece=float(np.abs(observed - predicted).sum() / len(p)),
        predicted=(predicted / rows).tolist(),
        observed=(observed / rows).tolist(),
        low=[float(each.low) for each in exact],
        high=[float(each.high) for each in exact],
        rows=rows.tolist(),
    )


def labels_of(outcomes: Sequence[Outcome]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """draft_right and refine_right, (n,) each. Raises EvaluationError where refine_right is missing."""
    missing = sum(outcome.refine_right is None for outcome in outcomes)
    if missing or not outcomes:
        raise EvaluationError(f"expected rows with refine_right, got {missing} of {len(outcomes)} without")
    return np.array([o.draft_right for o in outcomes]), np.array([bool(o.refine_right) for o in outcomes])


def baselines(outcomes: Sequence[Outcome], fold: NDArray[np.intp]) -> dict[str, Scores]:
    """Scores that any router must be compared with: prompt length, task mean (when there are groups), oracle.

    Prompt length is the characters of the whole conversation. Task mean is the share of its group that needed the refiner,
    in the other folds; it knows the group's name, which no router does. The oracle, refine_right - draft_right, is the best
    there can be, above 1 where the refiner breaks what was right.
    """
    draft, refine = labels_of(outcomes)
    found = {"prompt length": np.array([float(len(prompt_text(outcome))) for outcome in outcomes])}
    if len({outcome.group for outcome in outcomes}) > 1:
        found["task mean"] = out_of_fold(_task_mean, outcomes, fold)
    return found | {"oracle": refine.astype(float) - draft}


def stratified_folds(
    outcomes: Sequence[Outcome], folds: int = 5, seed: int = 0, dataset: Sequence[str] | None = None
) -> NDArray[np.intp]:
    """(n,) folds with equal shares of needed rows, and of each dataset when their names are given.

    Near-duplicates, prompts of the same words with other numbers or in another order, share a fold: else a model would be
    praised for its memory.

    Raises:
        EvaluationError: fewer rows of a kind, or prompts that aren't near-duplicates, than folds.
    """
    strata = np.array([f"{o.needed} {dataset[i] if dataset else ''}" for i, o in enumerate(outcomes)])
    least = np.unique(strata, return_counts=True)[1].min(initial=len(outcomes))
    if least < folds:
        raise EvaluationError(f"expected at least {folds} rows, needed and not, of each dataset, got {least}")
    keys = [duplicate_key(outcome) for outcome in outcomes]
    if len(set(keys)) < folds:
        raise EvaluationError(f"expected at least {folds} prompts that aren't near-duplicates, got {len(set(keys))}")
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return _numbered(split.split(strata, strata, keys), len(outcomes))


def group_folds(outcomes: Sequence[Outcome], folds: int = 5, seed: int = 0) -> NDArray[np.intp]:
    """(n,) folds that split no group, for scores of groups never seen. Raises EvaluationError: fewer groups than folds."""
    groups = [outcome.group for outcome in outcomes]
    if len(set(groups)) < folds:
        raise EvaluationError(f"expected at least {folds} groups, got {len(set(groups))}")
    split = GroupKFold(folds, shuffle=True, random_state=seed)
    return _numbered(split.split(groups, groups, groups), len(outcomes))


def held_out(recipe: Recipe, train: Sequence[Outcome], test: Sequence[Outcome]) -> Scores:
    """(n,) scores of `test` by a model trained on those rows of `train` that are no near-duplicates of any of them.

    Raises:
        EvaluationError: no row is left to train on.
    """
    asked = {duplicate_key(outcome) for outcome in test}
    kept = [outcome for outcome in train if duplicate_key(outcome) not in asked]
    if not kept:
        raise EvaluationError(f"expected other rows than near-duplicates to train on, got none among {len(train)}")
    return np.asarray(recipe(kept)(test), dtype=float)


def out_of_fold(recipe: Recipe, outcomes: Sequence[Outcome], fold: NDArray[np.intp]) -> Scores:
    """(n,) scores, each `held_out` from the other folds; with a fold a dataset, by a model that never saw the dataset."""
    scores = np.empty(len(outcomes))
    for one in tqdm(np.unique(fold), desc="folds", unit="model", disable=None, leave=False):
        train, test = np.flatnonzero(fold != one).tolist(), np.flatnonzero(fold == one).tolist()
        if not train:
            raise EvaluationError("expected at least 2 folds, got 1")
        scores[test] = held_out(recipe, [outcomes[i] for i in train], [outcomes[i] for i in test])
    return scores


def latency(call: Callable[[Any], Any], inputs: Sequence[Any], calls: int = 500, warm_up: int = 20) -> Latency:
    """Time `call` on one input after the other, round and round."""
    taken = []
    with threadpool_limits(1):
        for i in range(warm_up + calls):
            one = inputs[i % len(inputs)]
            start = perf_counter()
            call(one)
            taken.append(perf_counter() - start)
    p50, p99 = np.quantile(taken[warm_up:], (0.5, 0.99)) * 1e3
    return Latency(p50_ms=float(p50), p99_ms=float(p99), calls=calls)


def prompts_of(outcomes: Sequence[Outcome], characters: int = 2000, count: int = 100, seed: int = 0) -> list[str]:
    """Texts of this length, joined from prompts drawn at random: realistic words at the length that is promised for."""
    rng, texts = np.random.default_rng(seed), [prompt_text(outcome) for outcome in outcomes]
    if not any(texts):
        raise EvaluationError("expected prompts with text, got none")
    found = []
    for _ in range(count):
        text = ""
        while len(text) < characters:
            text += texts[rng.integers(len(texts))] + "\n"
        found.append(text[:characters])
    return found


class _Rows:
    """Checked scores and labels, ranked once and measured under any weights of the rows."""

    def __init__(self, score: ArrayLike, draft_right: ArrayLike, refine_right: ArrayLike) -> None:
        values = np.asarray(score, dtype=float)
        draft, refine = (np.asarray(right, dtype=bool) for right in (draft_right, refine_right))
        if values.ndim != 1 or not values.shape == draft.shape == refine.shape or not np.isfinite(values).all():
            shapes = (values.shape, draft.shape, refine.shape)
            raise EvaluationError(f"expected a finite score and both labels for each row, got shapes {shapes}")
        self.n = len(values)
        self._gain = refine.astype(float) - draft
        if not self._gain.sum() > 0:
            raise EvaluationError(f"expected a refiner that is right more often than the draft, got {self._gain.sum()}")
        self._wrong, self._needed = ~draft, ~draft & refine
        self._ranking = _Ranking.of(values)

    def curve(self, weight: NDArray) -> tuple[Scores, Scores]:
        """Shares and PGR at the ends of the blocks, from (0, 0) to (1, 1)."""
        rows = np.cumsum(np.append(0.0, self._ranking.summed(weight)))
        gain = np.cumsum(np.append(0.0, self._ranking.summed(weight * self._gain)))
        with np.errstate(invalid="ignore", divide="ignore"):
            return rows / rows[-1], gain / gain[-1] if gain[-1] > 0 else gain * np.nan

    def measured(self, weight: NDArray) -> Scores:
        """(len(MEASURES),), NaN where the weighted rows can't tell."""
        x, recovered = self.curve(weight)
        return np.array(
            [
                _apgr(x, recovered),
                _cpt(x, recovered, 0.5),
                _cpt(x, recovered, 0.8),
                _auroc(self._ranking, self._needed, weight),
                _auroc(self._ranking, self._wrong, weight),
            ]
        )


def _apgr(x: Scores, recovered: Scores) -> float:
    grid = np.linspace(0, 1, STEPS + 1)
    return float(np.trapezoid(np.interp(grid, x, recovered), grid))


def _cpt(x: Scores, recovered: Scores, wanted: float) -> float:
    if np.isnan(recovered[-1]):
        return np.nan
    at = int(np.argmax(recovered >= wanted - 1e-12))
    if at == 0:
        return 0.0
    (x0, x1), (y0, y1) = x[at - 1 : at + 1], recovered[at - 1 : at + 1]
    return float(x0 + (x1 - x0) * (wanted - y0) / (y1 - y0))


def _auroc(ranking: _Ranking, event: NDArray[np.bool_], weight: NDArray) -> float:
    """Mann-Whitney's U from the sums of each block."""
    yes, no = ranking.summed(weight * event), ranking.summed(weight * ~event)
    if not yes.sum() or not no.sum():
        return np.nan
    below = no.sum() - np.cumsum(no)  # blocks come by falling score
    return float(yes @ (below + no / 2) / (yes.sum() * no.sum()))


def _draws(n: int, bootstraps: int, seed: int) -> Iterator[Scores]:
    """How often each of n rows is drawn, (n,), `bootstraps` times."""
    rng = np.random.default_rng(seed)
    return (np.bincount(rng.integers(n, size=n), minlength=n).astype(float) for _ in range(bootstraps))


def _intervals(value: Scores, draws: Scores) -> dict[str, Interval]:
    draws = draws[~np.isnan(draws).any(axis=1)]
    if not len(draws):
        raise EvaluationError("expected more rows: no resample of them holds a gap and both classes")
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return {
        name: Interval(float(v), float(a), float(b)) for name, v, a, b in zip(MEASURES, value, low, high, strict=True)
    }


def _numbered(splits: Iterable[tuple[NDArray, NDArray]], n: int) -> NDArray[np.intp]:
    fold = np.empty(n, dtype=np.intp)
    for number, (_, test) in enumerate(splits):
        fold[test] = number
    return fold


def _task_mean(train: Sequence[Outcome]) -> Scorer:
    overall = float(np.mean([outcome.needed for outcome in train]))
    needed: dict[str, list[bool]] = {}
    for outcome in train:
        needed.setdefault(outcome.group, []).append(outcome.needed)
    means = {group: float(np.mean(of)) for group, of in needed.items()}
    return lambda rows: np.array([means.get(outcome.group, overall) for outcome in rows])


def prompt_text(outcome: Outcome) -> str:
    """All that was said, a turn a line."""
    return "\n".join(text_of(message) for message in outcome.messages)


def duplicate_key(outcome: Outcome) -> str:
    """The same for prompts of the same words, whatever their numbers, order and marks."""
    return " ".join(sorted(set(_WORD.findall(_DIGIT.sub("0", prompt_text(outcome).lower())))))
