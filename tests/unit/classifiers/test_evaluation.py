"""What a score is worth: against values worked out by hand, scikit-learn, and scores whose worth is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from classifiers import evaluation
from classifiers.evaluation import EvaluationError, Scorer
from classifiers.outcomes import Outcome

# Ten rows by falling score; the refiner alone is right in the 1st, 2nd and 4th, the draft alone in the 5th.
SCORE = np.linspace(1, 0.1, 10)
DRAFT = np.array([0, 0, 1, 0, 1, 1, 0, 1, 1, 1], dtype=bool)
REFINE = np.array([1, 1, 1, 1, 0, 1, 0, 1, 1, 1], dtype=bool)
BY_HAND = np.array([0, 1, 2, 2, 3, 2, 2, 2, 2, 2, 2]) / 2


def outcome(text: str, needed: bool = False, group: str = "") -> Outcome:
    messages = ({"role": "user", "content": text},)
    return Outcome(messages=messages, draft_right=not needed, refine_right=True, group=group)


def rows(count: int) -> list[Outcome]:
    """Different words each, a quarter of them needed, in four groups."""
    return [outcome(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}", i % 4 == 0, f"group {i % 5}") for i in range(count)]


def random_rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n).round(1), rng.random(n) < 0.6, rng.random(n) < 0.8


def remember(train: Sequence[Outcome]) -> Scorer:
    """1 for what was seen in training."""
    seen = set(map(evaluation.duplicate_key, train))
    return lambda asked: np.array([float(evaluation.duplicate_key(one) in seen) for one in asked])


def test_the_share_recovered_is_the_one_worked_out_by_hand():
    assert evaluation.pgr(SCORE, DRAFT, REFINE, np.linspace(0, 1, 11)) == pytest.approx(BY_HAND)
    assert evaluation.apgr(SCORE, DRAFT, REFINE) == pytest.approx(
        (BY_HAND[0] / 2 + BY_HAND[1:10].sum() + BY_HAND[10] / 2) / 10
    )


@pytest.mark.parametrize(("recovered", "share"), [(0.5, 0.1), (0.8, 0.16), (1.0, 0.2), (1.5, 0.4)])
def test_the_threshold_is_the_first_share_that_recovers_so_much(recovered: float, share: float):
    assert evaluation.cpt(SCORE, DRAFT, REFINE, recovered) == pytest.approx(share)


def test_only_the_order_of_scores_counts():
    assert evaluation.apgr(np.exp(5 * SCORE), DRAFT, REFINE) == evaluation.apgr(SCORE, DRAFT, REFINE)


def test_equal_scores_recover_what_random_ones_do_on_average():
    flat = np.zeros(10)
    assert evaluation.apgr(flat, DRAFT, REFINE) == pytest.approx(0.5)
    assert evaluation.cpt(flat, DRAFT, REFINE, 0.8) == pytest.approx(0.8)


def test_ties_count_by_the_mean_over_their_orders():
    score, draft, refine = random_rows(200)
    rng = np.random.default_rng(1)
    grid = np.linspace(0, 1, 11)
    broken = [evaluation.pgr(score + 1e-6 * rng.random(200), draft, refine, grid) for _ in range(400)]
    assert evaluation.pgr(score, draft, refine, grid) == pytest.approx(np.mean(broken, axis=0), abs=0.03)


def test_the_oracle_is_above_one_where_the_refiner_breaks_what_was_right():
    assert evaluation.apgr(REFINE.astype(float) - DRAFT, DRAFT, REFINE) > 1


def test_auroc_is_that_of_scikit_learn_for_both_targets():
    score, draft, refine = random_rows(500)
    found = evaluation.measure(score, draft, refine, bootstraps=10)
    assert found["auroc_needed"].value == pytest.approx(roc_auc_score(~draft & refine, score))
    assert found["auroc_draft_wrong"].value == pytest.approx(roc_auc_score(~draft, score))


def test_measures_are_their_own_functions_and_inside_their_intervals():
    score, draft, refine = random_rows(500)
    found = evaluation.measure(score, draft, refine)
    assert tuple(found) == evaluation.MEASURES
    assert found["apgr"].value == evaluation.apgr(score, draft, refine)
    assert found["cpt80"].value == evaluation.cpt(score, draft, refine, 0.8)
    assert all(each.low < each.value < each.high for each in found.values())


def test_a_resample_is_measured_as_its_rows_would_be():
    score, draft, refine = random_rows(300)
    drawn = np.random.default_rng(7).integers(300, size=300)
    again = evaluation.measure(score[drawn], draft[drawn], refine[drawn], bootstraps=2)
    one = evaluation.measure(score, draft, refine, bootstraps=1, seed=7)  # its only draw is both ends
    assert [each.low for each in one.values()] == pytest.approx([each.value for each in again.values()])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside = 0
    for seed in range(100):
        score, draft, refine = random_rows(300, seed)
        found = evaluation.measure(score, draft, refine, bootstraps=100, seed=seed)["auroc_draft_wrong"]
        inside += found.low <= 0.5 <= found.high
    assert 88 <= inside <= 100  # binomial(100, 0.95), less what percentile intervals miss


def test_the_same_seed_draws_the_same_and_another_does_not():
    of = [evaluation.measure(*random_rows(200), bootstraps=20, seed=seed) for seed in (1, 1, 2)]
    assert of[0] == of[1]
    assert of[0]["apgr"].low != of[2]["apgr"].low


def test_a_score_differs_from_itself_by_nothing_and_pairs_draws():
    score, draft, refine = random_rows(400)
    same = evaluation.difference(score, 2 * score, draft, refine, bootstraps=50)["apgr"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = evaluation.difference(refine.astype(float) - draft, score, draft, refine, bootstraps=50)["apgr"]
    assert better.low > 0


@pytest.mark.parametrize(
    ("score", "draft", "refine", "said"),
    [
        ([0.1], [True, False], [True, True], "score and both labels"),
        ([np.nan, 0.1], [True, False], [True, True], "finite"),
        ([0.2, 0.1], [True, False], [True, False], "right more often"),
        ([0.2, 0.1], [True, False], [False, True], "right more often"),
        ([0.2, 0.1], [False, False], [True, True], "draft_right false and true"),
    ],
)
def test_what_cant_be_measured_is_refused(score: list, draft: list, refine: list, said: str):
    with pytest.raises(EvaluationError, match=said):
        evaluation.measure(score, draft, refine, bootstraps=5)


def test_calibration_is_worked_out_by_hand_in_bins_of_equal_mass():
    found = evaluation.calibration([0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8], [0, 0, 0, 1, 1, 1, 1, 1], bins=2)
    assert (found.rows, found.observed) == ([4, 4], [0.25, 1.0])
    assert found.predicted == pytest.approx([0.1, 0.8])
    assert found.ece == pytest.approx((0.15 + 0.2) / 2)
    assert found.brier_of_base_rate == pytest.approx(5 / 8 * 3 / 8)
    assert found.low[0] < 0.25 < found.high[0]


def test_a_probability_that_holds_has_a_small_error_and_one_that_shouts_a_large_one():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    happened = rng.random(20_000) < p
    honest, shouting = evaluation.calibration(p, happened), evaluation.calibration(p > 0.5, happened)
    assert honest.ece < 0.02 < 0.2 < shouting.ece
    assert honest.brier == pytest.approx(brier_score_loss(happened, p))


@pytest.mark.parametrize("probability", [[0.1, 1.2], [0.1], [np.nan, 0.1], []])
def test_what_is_no_probability_is_refused(probability: list):
    with pytest.raises(EvaluationError, match="probability"):
        evaluation.calibration(probability, [0, 1])


def test_no_row_is_scored_by_a_model_that_saw_it_or_its_near_duplicate():
    near = [outcome(f"{a} boxes of {b} pens", needed=i % 2 == 0) for i, (a, b) in enumerate(((3, 14), (4, 5), (9, 2)))]
    data = [*rows(60), *near, outcome("pens of 7, boxes of 8!")]
    fold = evaluation.stratified_folds(data, folds=3)
    assert not evaluation.out_of_fold(remember, data, fold).any()
    assert len(set(fold[60:])) == 1


def test_folds_hold_equal_shares_of_needed_rows_and_of_datasets():
    names = ["small" if i % 8 < 2 else "large" for i in range(320)]
    fold = evaluation.stratified_folds(rows(320), 4, dataset=names)
    for each in range(4):
        held = [i for i in range(320) if fold[i] == each]
        assert abs(sum(names[i] == "small" for i in held) - 20) <= 1
        assert abs(sum(i % 4 == 0 for i in held) - 20) <= 1


def test_folds_follow_their_seed():
    assert (evaluation.stratified_folds(rows(50), seed=1) == evaluation.stratified_folds(rows(50), seed=1)).all()
    assert (evaluation.stratified_folds(rows(50), seed=1) != evaluation.stratified_folds(rows(50), seed=2)).any()


def test_a_fold_a_group_leaves_that_group_unseen():
    data = rows(40)

    def known_groups(train: Sequence[Outcome]) -> Scorer:
        groups = {one.group for one in train}
        return lambda asked: np.array([float(one.group in groups) for one in asked])

    assert not evaluation.out_of_fold(known_groups, data, evaluation.group_folds(data)).any()
    assert evaluation.out_of_fold(known_groups, data, evaluation.stratified_folds(data)).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: evaluation.stratified_folds(rows(8)), "at least 5 rows"),
        (lambda: evaluation.group_folds(rows(40), folds=6), "at least 6 groups"),
        (lambda: evaluation.out_of_fold(remember, rows(4), np.zeros(4, dtype=int)), "at least 2 folds"),
        (lambda: evaluation.labels_of([Outcome(messages=(), draft_right=True)]), "1 of 1 without"),
        (lambda: evaluation.labels_of([]), "rows"),
        (lambda: evaluation.prompts_of([outcome("")]), "prompts with text"),
    ],
)
def test_too_little_is_refused(make, said: str):
    with pytest.raises(EvaluationError, match=said):
        make()


def test_the_task_mean_knows_the_other_folds_only():
    data = [outcome(f"x{chr(97 + i)}", needed=i % 2 == 0, group="a" if i < 10 else "b") for i in range(20)]
    fold = np.arange(20) % 2  # all needed rows are in fold 0
    found = evaluation.baselines(data, fold)["task mean"]
    assert (found == fold).all()


def test_baselines_are_length_and_oracle_and_the_task_where_there_are_groups():
    data = [outcome("four", needed=True), outcome("longer")]
    found = evaluation.baselines(data, np.array([0, 1]))
    assert {name: values.tolist() for name, values in found.items()} == {"prompt length": [4, 6], "oracle": [1, 0]}


def test_prompts_have_the_asked_length_and_the_words_of_the_data():
    found = evaluation.prompts_of(rows(30), characters=200, count=7)
    assert [len(text) for text in found] == [200] * 7
    assert set(found[0].split("\n")[:-1]) <= {evaluation.prompt_text(one) for one in rows(30)}
    assert found == evaluation.prompts_of(rows(30), characters=200, count=7)


def test_latency_calls_each_input_in_turn():
    seen: list[int] = []
    found = evaluation.latency(seen.append, [1, 2, 3], calls=4, warm_up=1)
    assert seen == [1, 2, 3, 1, 2]
    assert found.calls == 4
    assert 0 < found.p50_ms <= found.p99_ms


def test_near_duplicates_in_another_group_are_not_learned_from():
    data = [outcome(word, group=group) for group in "ab" for word in ("same words", f"only {group}")]
    fold = evaluation.group_folds(data, folds=2)
    assert not evaluation.out_of_fold(remember, data, fold).any()


def test_fewer_prompts_than_folds_are_refused():
    data = [outcome(f"{i} boxes", needed=i % 2 == 0) for i in range(40)]
    with pytest.raises(EvaluationError, match=r"expected at least 5 prompts .*, got 1"):
        evaluation.stratified_folds(data)


def test_rows_with_nothing_else_to_learn_from_are_refused():
    with pytest.raises(EvaluationError, match="none among 1"):
        evaluation.held_out(remember, [outcome("the same")], [outcome("the same")])
