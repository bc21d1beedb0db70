"""The promise of a calibration holds for errors of any shape, and costs little acceptance."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.risk import WORLDS, World
from classifiers.risk import Labelled, RiskError, calibrate, clopper_pearson, labels_without_failure

SEED = 31


def broken(world: World, runs: int, **options) -> int:
    """Runs in which what is accepted is in truth worse than the target."""
    count = 0
    for run in range(runs):
        found = calibrate(world.draw(np.random.default_rng([SEED, run])), world.target, seed=run, **options)
        count += found.threshold is not None and world.accepting(found.threshold)[1] > world.target
    return count


def rejects(count: int, runs: int, share: float = 0.05) -> bool:
    return bool(stats.binomtest(count, runs, share, alternative="greater").pvalue < 0.01)


@pytest.mark.parametrize("name", WORLDS)
def test_promise_holds_for_errors_of_any_shape(name):
    assert not rejects(broken(WORLDS[name], 200), 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_promise_holds_over_two_thousand_calibrations(name):
    assert not rejects(broken(WORLDS[name], 2000), 2000)


@pytest.mark.parametrize("name", ["plateau at the target", "jumps", "one score, just above the target"])
@pytest.mark.parametrize("thresholds", [[0.9, 0.7, 0.5, 0.3, 0.1], [0.1], [0.2, 0.8]], ids=["falling", "one", "rising"])
def test_promise_holds_for_thresholds_fixed_beforehand(name, thresholds):
    assert not rejects(broken(WORLDS[name], 200, thresholds=thresholds), 200)


def test_level_is_used_where_a_single_hypothesis_is_tested():
    # A test that never rejects keeps every promise; this one must reject about as often as it may.
    world = WORLDS["one score, just above the target"]
    largest = stats.binom.ppf(0.05, 2000, 0.02) - 1
    expected = float(stats.binom.cdf(largest, 2000, 0.020001))
    assert 0.02 < expected < 0.05
    found = stats.binomtest(broken(world, 1000, thresholds=[0.5]), 1000, expected)
    assert found.pvalue > 0.01


def test_good_acceptor_keeps_as_much_as_a_test_that_knew_the_best_threshold():
    world = WORLDS["well behaved: AUROC .95, 25 % bad"]
    shares = []
    for run in range(100):
        found = calibrate(world.draw(np.random.default_rng([SEED, run])), world.target, seed=run)
        shares.append(world.accepting(found.threshold)[0] if found.threshold is not None else 0.0)
    assert np.mean(shares) > world.best_test_share(0.95)


def test_more_labels_approach_the_oracle():
    world = WORLDS["well behaved: AUROC .95, 25 % bad"]._replace(labels=50_000)
    found = calibrate(world.draw(np.random.default_rng(SEED)), world.target)
    assert found.threshold is not None
    assert world.accepting(found.threshold)[0] > 0.9 * world.oracle_share


def test_all_good_labels_accept_nearly_all():
    found = calibrate(Labelled(np.linspace(0, 1, 400), np.ones(400)), 0.02)
    assert found.share > 0.9
    assert found.bad == 0


def test_ties_are_accepted_together():
    quality = np.repeat([0.9, 0.5, 0.1], 300)
    found = calibrate(Labelled(quality, quality > 0.3), 0.02, thresholds=[0.9, 0.5, 0.1])
    assert (found.threshold, found.accepted, found.bad) == (0.5, 600, 0)


def test_counts_describe_the_threshold():
    rng = np.random.default_rng(SEED)
    quality = rng.random(3000)
    good = rng.random(3000) < 0.9 + 0.1 * quality
    found = calibrate(Labelled(quality, good), 0.08, 0.9, thresholds=[0.8, 0.4, 0.2])
    assert found.threshold is not None
    assert found.accepted == (quality >= found.threshold).sum()
    assert found.bad == (~good[quality >= found.threshold]).sum()
    assert found.upper == pytest.approx(stats.beta.ppf(0.9, found.bad + 1, found.accepted - found.bad))
    assert found.upper <= 0.08
    assert found.share_low < found.share == found.accepted / found.tested < found.share_high


def test_a_failed_threshold_passes_no_level_on():
    # 100 labels at the top can't support 2 %: the next one has its own half of the level, which 150 good labels miss and 200 meet.
    def supported(n):
        quality = np.r_[np.full(100, 0.9), np.full(n - 100, 0.5)]
        return calibrate(Labelled(quality, np.ones(n)), 0.02, thresholds=[0.9, 0.5]).supported

    assert not supported(150)
    assert supported(200)


def test_scouts_are_spent():
    found = calibrate(Labelled(np.linspace(0, 1, 800), np.ones(800)), 0.02)
    assert (found.labels, found.tested) == (800, 700)


def test_same_labels_and_seed_give_the_same_threshold():
    labelled = WORLDS["jumps"]._replace(target=0.04).draw(np.random.default_rng(SEED))
    assert calibrate(labelled, 0.04, seed=3) == calibrate(labelled, 0.04, seed=3)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 30, 140])
def test_too_few_labels_say_how_many_would_do(n):
    found = calibrate(Labelled(np.linspace(0, 1, n), np.ones(n)), 0.02)
    assert not found.supported
    assert found.threshold is None
    assert found.needed is not None
    assert found.needed >= 149
    assert str(found.needed) in found.reason


def test_needed_labels_are_enough_in_most_cases():
    world = WORLDS["well behaved: AUROC .95, 25 % bad"]._replace(labels=300)
    enough = []
    for run in range(60):
        rng = np.random.default_rng([SEED, run])
        found = calibrate(world.draw(rng), world.target)
        if found.needed is not None:
            enough.append(calibrate(world._replace(labels=found.needed).draw(rng), world.target).supported)
    assert np.mean(enough) > 0.7


@pytest.mark.parametrize("risk", [0.1, 1.0])
def test_no_number_of_labels_helps_where_every_threshold_is_too_bad(risk):
    rng = np.random.default_rng(SEED)
    found = calibrate(Labelled(rng.random(2000), rng.random(2000) >= risk), 0.02)
    assert not found.supported
    assert found.needed is None
    assert "more labels won't help" in found.reason


@pytest.mark.parametrize(
    ("labelled", "target", "options", "words"),
    [
        (Labelled([0.5], [True]), 0.0, {}, "target above 0"),
        (Labelled([0.5], [True]), 1.0, {}, "target above 0"),
        (Labelled([0.5], [True]), math.nan, {}, "target above 0"),
        (Labelled([0.5], [True]), 0.1, {"confidence": 1.0}, "confidence above 0"),
        (Labelled([0.5, 0.6], [True]), 0.1, {}, r"\(2,\) and \(1,\)"),
        (Labelled([93.0], [True]), 0.1, {}, "0 to 1, got 93"),
        (Labelled([math.nan], [True]), 0.1, {}, "0 to 1, got nan"),
        (Labelled([0.5], [0.7]), 0.1, {}, "True and False"),
        (Labelled([0.5], [True]), 0.1, {"thresholds": []}, "thresholds"),
        (Labelled([0.5], [True]), 0.1, {"thresholds": [math.nan]}, "thresholds"),
    ],
)
def test_bad_input_is_named(labelled, target, options, words):
    with pytest.raises(RiskError, match=words):
        calibrate(labelled, target, **options)


def test_clopper_pearson_is_scipys_exact_interval():
    bad, n = np.array([0, 1, 7, 20]), np.array([10, 30, 90, 20])
    low, high = clopper_pearson(bad, n, 0.9)
    for i in range(4):
        expected = stats.binomtest(int(bad[i]), int(n[i])).proportion_ci(0.9, method="exact")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high))


def test_clopper_pearson_without_labels_knows_nothing():
    assert [float(end) for end in clopper_pearson(0, 0)] == [0.0, 1.0]


def test_one_sided_bound_of_no_failure_is_the_rule_of_three():
    assert clopper_pearson(0, 149, sided=1)[1] == pytest.approx(1 - 0.05 ** (1 / 149))


@pytest.mark.parametrize(("bad", "n", "sided"), [(-1, 5, 2), (6, 5, 2), (1, 5, 3)])
def test_impossible_counts_are_refused(bad, n, sided):
    with pytest.raises(RiskError, match="expected"):
        clopper_pearson(bad, n, sided=sided)


@pytest.mark.parametrize(("target", "labels"), [(0.01, 299), (0.02, 149), (0.05, 59), (0.5, 5)])
def test_labels_without_failure_are_the_fewest(target, labels):
    assert labels_without_failure(target) == labels
    assert clopper_pearson(0, labels, sided=1)[1] <= target < clopper_pearson(0, labels - 1, sided=1)[1]
