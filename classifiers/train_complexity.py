"""Training the complexity model.

The score is a ridge regression of what the refiner gains, refine_right - draft_right in {-1, 0, 1}: routing by the expected gain is
what APGR rewards, more directly than a classifier of "draft wrong and refiner right" does. Gains are taken within each source, or
else the model would learn to tell sources apart, and small sources count more than their size. Platt's calibration on out-of-fold
scores then makes it P(draft wrong and refiner right), over all sources together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import lsqr
from scipy.spatial.distance import cdist
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from classifiers.complexity import CLIP, Complexity, Weights
from classifiers.conversation import Features, features
from classifiers.evaluation import duplicate_key
from classifiers.ngrams import COLUMNS
from classifiers.outcomes import Outcome, OutcomesError

FOLDS = 5
RIDGE = 10.0
NGRAM_WEIGHT = 0.12**0.5  # of an n-gram beside a bump: what the ridge holds back more
BUMPS = 512
ROWS_A_BUMP = 4  # at least
SHARPNESS = 2.5  # over the median squared distance between two conversations
ITERATIONS = 100


def fit_complexity(outcomes: Sequence[Outcome], seed: int = 0, progress: bool = False) -> Complexity:
    """Fit on all outcomes, and calibrate on scores of models that did not see them.

    Args:
        outcomes: with `refine_right`; at least FOLDS that needed the refiner, and as many that did not.
        seed: of the folds and of the choice of bumps.
        progress: show a bar on stderr.

    Raises:
        OutcomesError: too few of a kind, or the refiner's side is missing.
    """
    needed = needed_of(outcomes)
    found = [features(outcome.messages) for outcome in tqdm(outcomes, "features", disable=not progress)]
    gain = np.array([float(bool(one.refine_right)) - one.draft_right for one in outcomes])
    sources = np.array([one.source for one in outcomes])
    keys = [duplicate_key(outcome) for outcome in outcomes]
    if len(set(keys)) < FOLDS:
        raise OutcomesError(f"expected at least {FOLDS} different prompts, got {len(set(keys))}")
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(gain, needed, keys)
    raw = np.empty(len(gain))
    for train, test in tqdm(folds, "folds", total=FOLDS, disable=not progress):
        model = _fit([found[i] for i in train], gain[train], sources[train], seed)
        raw[test] = [model.raw(found[i]) for i in test]
    platt = LogisticRegression(C=np.inf).fit(raw[:, None], needed)
    calibration = np.array(
        [max(platt.coef_[0, 0], 0.0), platt.intercept_[0]], np.float32
    )  # a score that misleads says nothing
    return Complexity(_fit(found, gain, sources, seed).weights._replace(calibration=calibration))


def needed_of(outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    """(n,): was the draft wrong where the refiner was right? Raises OutcomesError."""
    if missing := sum(one.refine_right is None for one in outcomes):
        raise OutcomesError(f"expected refine_right in every outcome, got {missing} of {len(outcomes)} without")
    needed = np.array([one.needed for one in outcomes], bool)
    if min(needed.sum(), (~needed).sum()) < FOLDS:
        raise OutcomesError(
            f"expected at least {FOLDS} outcomes that needed the refiner and {FOLDS} that did not, got {needed.sum()} of {len(needed)}"
        )
    return needed


def _fit(found: Sequence[Features], gain: NDArray[np.float64], sources: NDArray[np.str_], seed: int) -> Complexity:
    _, source, sizes = np.unique(sources, return_inverse=True, return_counts=True)
    weight = (sizes.max() / sizes[source]) ** 0.5  # a small source is heard beside a large one
    centred = gain - (np.bincount(source, gain) / sizes)[source]  # what separates sources is no difficulty
    counts = np.stack([one.counts for one in found])
    mean, spread = counts.mean(axis=0), counts.std(axis=0)
    scale = np.where(spread > 1e-3, spread, 1.0).astype(
        np.float32
    )  # what hardly varied in training must not be blown up later
    z = np.clip((counts - mean) / scale, -CLIP, CLIP)
    centres, sharpness = _centres(z, weight, seed)
    whiten = _whitening(centres, sharpness)
    bumped = np.exp(-sharpness * cdist(z, centres, "sqeuclidean")) @ whiten
    design = sparse.hstack([_hashed(found) * NGRAM_WEIGHT, sparse.csr_matrix(bumped)]).tocsr()
    root = weight**0.5
    weights: Any = lsqr(sparse.diags(root) @ design, root * centred, damp=RIDGE**0.5, iter_lim=ITERATIONS)[0]
    arrays = (
        weights[:COLUMNS] * NGRAM_WEIGHT, mean, scale, centres, whiten @ weights[COLUMNS:], [sharpness], [gain.mean()], [1.0, 0.0],
    )  # fmt: skip
    return Complexity(Weights(*(np.asarray(array, np.float32) for array in arrays)))


def _centres(z: NDArray[np.float32], weight: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float32], float]:
    """Centres of the bumps by k-means, and how sharp they are."""
    count = max(1, min(BUMPS, len(z) // ROWS_A_BUMP))
    clustering = MiniBatchKMeans(count, random_state=seed, batch_size=4096, max_iter=30)
    means: Any = clustering.fit(z, sample_weight=weight)
    some = np.random.default_rng(seed).permutation(len(z))[:1000]
    typical = float(np.median(cdist(z[some], z[some], "sqeuclidean")))
    return means.cluster_centers_.astype(np.float32), SHARPNESS / max(typical, 1e-6)


def _whitening(centres: NDArray[np.float32], sharpness: float) -> NDArray[np.float64]:
    """K^-1/2 of the bumps' kernel matrix, so that the ridge sees the kernel and not the crowd of centres (Nystroem)."""
    values, vectors = np.linalg.eigh(np.exp(-sharpness * cdist(centres, centres, "sqeuclidean")))
    kept = values > 1e-6
    return vectors[:, kept] / np.sqrt(values[kept])


def _hashed(found: Sequence[Features]) -> sparse.csr_matrix:
    indptr = np.cumsum([0, *(len(one.columns) for one in found)])
    columns = np.concatenate([one.columns for one in found])
    matrix = sparse.csr_matrix((np.concatenate([one.values for one in found]), columns, indptr), (len(found), COLUMNS))
    matrix.sum_duplicates()
    return matrix
