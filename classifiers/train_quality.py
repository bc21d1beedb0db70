"""Training the acceptor.

For each set of feature groups that enough drafts have, a forest of extremely randomised trees over bootstrap samples, and Platt's
calibration on scores out of fold, by forests that saw neither the draft nor a draft for a near-duplicate of its prompt: traffic
repeats itself, and a tree that has seen a prompt knows its label. Platt's rather than an isotonic one: that makes ties of whole
ranges of scores, and where they lie at the top no threshold can part good drafts from bad ones any more.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from classifiers.draft_features import OPTIONAL, Vector, draft_features
from classifiers.evaluation import calibration, duplicate_key
from classifiers.forest import Forest
from classifiers.outcomes import Outcome, OutcomesError
from classifiers.quality import Acceptor, GroupModel, Groups, log_odds
from classifiers.tasks import TYPES, Task
from classifiers.verifiers import verify

TREES = 300
FOLD_TREES = 100  # in a forest that is only calibrated and reported on: a third of the time
LEAF = 5  # rows, at least
MOST_LEAVES = 400  # a tree; more rows make larger leaves, so that an artifact stays small
FEATURES_A_SPLIT = 0.7  # of all
LEAST = 20  # good drafts, and as many bad ones, to fit or calibrate anything
ENOUGH = 200  # drafts, to fit a further set of groups or calibrate a task type
FOLDS = 5  # at most: fewer where a kind of draft has fewer prompts

Bools = NDArray[np.bool_]
Scores = NDArray[np.float64]
Rows = NDArray[np.intp]
Folds = list[tuple[Rows, Rows]]  # rows to train on, rows to test on


class _Drafts(NamedTuple):
    """What is learned from, one entry a draft."""

    features: list[dict[str, Vector]]
    good: Bools
    rejected: Bools  # by a decisive check: never seen by the acceptor
    tasks: NDArray[np.str_]
    prompts: Rows  # a number for each `duplicate_key`

    def at(self, rows: Rows) -> "_Drafts":
        features = [self.features[row] for row in rows]
        return _Drafts(features, self.good[rows], self.rejected[rows], self.tasks[rows], self.prompts[rows])

    def passed(self) -> "_Drafts":
        return self.at(np.flatnonzero(~self.rejected))

    def having(self, groups: Groups) -> Rows:
        return np.array([row for row, found in enumerate(self.features) if found.keys() >= set(groups)], dtype=np.intp)

    def columns(self, groups: Groups) -> NDArray[np.float32]:
        """Of drafts that have all these groups: (n, F)."""
        return np.stack([np.concatenate([found[group] for group in groups]) for found in self.features])

    def prompts_of_each(self) -> tuple[int, int]:
        """How many prompts good drafts have, and bad ones; near-duplicates are one."""
        return len(np.unique(self.prompts[self.good])), len(np.unique(self.prompts[~self.good]))


def fit_acceptor(outcomes: Sequence[Outcome], seed: int = 0, progress: bool = False) -> tuple[Acceptor, dict[str, Any]]:
    """Fit on the drafts that pass every decisive check, since only those reach the acceptor.

    The report holds, for each set of feature groups, what scores out of fold, calibrated on the other folds, say of drafts for
    prompts not seen: `auroc` of good against bad over all drafts, with quality 0 where a decisive check failed; `auroc_passed`, the Brier score
    and the expected calibration error over the others.

    Args:
        outcomes: those without a draft are left out.
        seed: of the trees.
        progress: show bars on stderr.

    Raises:
        OutcomesError: fewer than LEAST good or bad drafts that pass every decisive check, or too few prompts to make folds.
    """
    drafts = _drafts(outcomes, progress)
    report = {
        "drafts": len(drafts.good),
        "rejected": int(drafts.rejected.sum()),
        "rejected_though_good": int((drafts.rejected & drafts.good).sum()),
        "groups": {},
    }
    models = {}
    for groups in tqdm(list(_trainable(drafts)), "models", disable=not progress):
        models[groups], report["groups"]["+".join(groups)] = _fit(drafts.at(drafts.having(groups)), groups, seed)
    return Acceptor(models), report


def out_of_fold_quality(
    outcomes: Sequence[Outcome], folds: int = FOLDS, seed: int = 0, progress: bool = False
) -> Scores:
    """(n,) qualities of drafts as `Acceptor.judge` would give them, each from a model that saw neither it nor a near-duplicate.

    Raises:
        OutcomesError: an outcome without a draft, or too few of a kind.
    """
    if missing := sum(outcome.draft is None for outcome in outcomes):
        raise OutcomesError(f"expected a draft in every outcome, got {missing} of {len(outcomes)} without")
    drafts = _drafts(outcomes, progress)
    quality = np.zeros(len(drafts.good))
    for train, test in tqdm(_folds(drafts, folds, seed), "folds", disable=not progress):
        seen = drafts.at(train)
        acceptor = Acceptor(
            {groups: _fit(seen.at(seen.having(groups)), groups, seed)[0] for groups in _trainable(seen)}
        )
        for row in test[~drafts.rejected[test]]:
            quality[row] = acceptor.probability(drafts.features[row], str(drafts.tasks[row]))
    return quality


def _drafts(outcomes: Sequence[Outcome], progress: bool) -> _Drafts:
    features, good, rejected, tasks, prompts = [], [], [], [], []
    numbers: dict[str, int] = {}
    for outcome in tqdm(outcomes, "features", disable=not progress):
        if outcome.draft is None:
            continue
        checks = verify(outcome.draft)
        features.append(draft_features(outcome.draft, checks))
        good.append(outcome.draft_right)
        rejected.append(any(check.decisive and not check.passed for check in checks))
        tasks.append(Task(outcome.messages).type)
        prompts.append(numbers.setdefault(duplicate_key(outcome), len(numbers)))
    drafts = _Drafts(
        features, np.array(good, bool), np.array(rejected, bool), np.array(tasks, str), np.array(prompts, np.intp)
    )
    passed = drafts.good[~drafts.rejected]
    if min(passed.sum(), (~passed).sum()) < LEAST:
        raise OutcomesError(
            f"expected at least {LEAST} good and {LEAST} bad drafts that pass every decisive check, "
            f"got {passed.sum()} and {(~passed).sum()}"
        )
    return drafts


def _trainable(drafts: _Drafts) -> Iterable[Groups]:
    """The text alone, and with it every set of groups that enough drafts have."""
    for count in range(len(OPTIONAL) + 1):
        for optional in combinations(OPTIONAL, count):
            passed = drafts.at(drafts.having(groups := ("text", *optional))).passed()
            if not optional or (_enough(passed.good) and min(passed.prompts_of_each()) >= FOLDS):
                yield groups


def _folds(drafts: _Drafts, folds: int, seed: int) -> Folds:
    """Stratified by kind, near-duplicates together. Raises OutcomesError: a kind that has one prompt, or but one fold."""
    good, bad = drafts.prompts_of_each()
    if min(good, bad) < 2:
        raise OutcomesError(
            f"expected good and bad drafts for at least 2 prompts each, near-duplicates counted once, got {good} and {bad}"
        )
    split = StratifiedGroupKFold(min(folds, good, bad), shuffle=True, random_state=seed)
    found = list(split.split(drafts.good, drafts.good, drafts.prompts))
    if one_kind := sum(len(np.unique(drafts.good[train])) < 2 for train, _ in found):
        raise OutcomesError(
            f"expected good and bad drafts to train on beside each of {len(found)} folds, got one kind beside {one_kind}: "
            f"good drafts have {good} prompts, bad ones {bad}"
        )
    return found


def _enough(good: Bools) -> bool:
    return len(good) >= ENOUGH and min(good.sum(), (~good).sum()) >= LEAST


def _fit(drafts: _Drafts, groups: Groups, seed: int) -> tuple[GroupModel, dict[str, Any]]:
    passed = drafts.passed()
    x, folds = passed.columns(groups), _folds(passed, FOLDS, seed)
    settings: Any = {"max_features": FEATURES_A_SPLIT, "min_samples_leaf": max(LEAF, len(x) // MOST_LEAVES)}
    trees = ExtraTreesClassifier(FOLD_TREES, bootstrap=True, random_state=seed, **settings)
    share = np.empty(len(x))
    for train, test in folds:
        share[test] = trees.fit(x[train], passed.good[train]).predict_proba(x[test])[:, 1]
    score = log_odds(share, TREES)
    trees.set_params(n_estimators=TREES).fit(x, passed.good)
    model = GroupModel(_exported(trees), _calibrated(score, passed.good, passed.tasks).astype(np.float32))
    return model, _report(drafts, score, folds)


def _calibrated(score: Scores, good: Bools, tasks: NDArray[np.str_]) -> Scores:
    """Slope and offset for each of TYPES: its own where its labels are enough, else those of all, (len(TYPES), 2)."""
    found = np.tile(_platt(score, good), (len(TYPES), 1))
    for number, task in enumerate(TYPES):
        if _enough(good[tasks == task]):
            found[number] = _platt(score[tasks == task], good[tasks == task])
    return found


def _platt(score: Scores, good: Bools) -> Scores:
    """Slope and offset by maximum likelihood, with Platt's targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2) for 1 and 0.

    A score that says nothing, or the opposite, has slope 0: then every draft has the share of good ones.
    """
    good_count, bad_count = good.sum(), (~good).sum()
    target = np.where(good, (good_count + 1) / (good_count + 2), 1 / (bad_count + 2))
    twice = np.concatenate([score, score])[:, None]
    labels = np.repeat([1, 0], len(score))
    model = LogisticRegression(C=np.inf).fit(twice, labels, sample_weight=np.concatenate([target, 1 - target]))
    if model.coef_[0, 0] <= 0:
        return np.array([0.0, np.log(target.sum() / (1 - target).sum())])
    return np.array([model.coef_[0, 0], model.intercept_[0]])


def _report(drafts: _Drafts, score: Scores, folds: Folds) -> dict[str, Any]:
    """How good the scores out of fold of the drafts that passed are, each calibrated without its own fold."""
    good, passed, tasks = drafts.good, drafts.good[~drafts.rejected], drafts.tasks[~drafts.rejected]
    quality = np.empty(len(passed))
    for train, test in folds:
        slopes = _calibrated(score[train], passed[train], tasks[train])[
            [TYPES.index(str(task)) for task in tasks[test]]
        ]
        quality[test] = 1 / (1 + np.exp(-(slopes[:, 0] * score[test] + slopes[:, 1])))
    everywhere = np.zeros(len(good))
    everywhere[~drafts.rejected] = quality
    found = calibration(quality, passed)
    return {
        "drafts": len(good),
        "good": int(good.sum()),
        "auroc": round(float(roc_auc_score(good, everywhere)), 4),
        "auroc_passed": round(float(roc_auc_score(passed, quality)), 4),
        "brier": round(found.brier, 4),
        "brier_of_base_rate": round(found.brier_of_base_rate, 4),
        "ece": round(found.ece, 4),
        "task_types": [task for task in TYPES if _enough(passed[tasks == task])],
    }


def _exported(trees: ExtraTreesClassifier) -> Forest:
    """scikit-learn's trees one behind the other; a leaf's value is its share of good drafts."""
    found: list[Any] = [estimator.tree_ for estimator in trees.estimators_]
    sizes = [tree.node_count for tree in found]
    roots = np.cumsum([0, *sizes[:-1]])
    start = np.repeat(roots, sizes)
    children = np.concatenate([np.stack([tree.children_right, tree.children_left], axis=1) for tree in found])
    weights = np.concatenate([tree.value[:, 0, :] for tree in found])
    leaf, own = children[:, 0] < 0, np.arange(len(children))
    return Forest(
        feature=np.where(leaf, 0, np.concatenate([tree.feature for tree in found])).astype(np.int32),
        threshold=_rounded_down(np.concatenate([tree.threshold for tree in found])),
        children=np.where(leaf[:, None], own[:, None], children + start[:, None]).astype(np.int32),
        value=(weights[:, 1] / weights.sum(axis=1)).astype(np.float32),
        roots=roots.astype(np.int32),
    )


def _rounded_down(threshold: Scores) -> NDArray[np.float32]:
    """To the next float32 below, so that float32 features fall on the side they fell on in training."""
    single = threshold.astype(np.float32)
    return np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single)
