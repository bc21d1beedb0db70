"""What a log can say of other thresholds, checked in worlds whose truth is known."""

import math

import msgspec
import numpy as np
import pytest
from scipy import stats

from classifiers.whatif import Decisions, DecisionsError, LoggedDecision, WhatIf, read_decisions, whatif

SEED = 12
N = 2000


class World:
    """Requests with the cost and the answer of every route; a policy that logs one of them."""

    def __init__(self, rng: np.random.Generator, n: int):
        self.complexity = rng.random(n)
        self.quality = np.clip(rng.beta(4, 1.5, n) - 0.3 * self.complexity * rng.random(n), 0, 1)
        self.draft_good = rng.random(n) < self.quality
        self.other_good = rng.random(n) < 0.95 - 0.1 * self.complexity
        self.draft_s = 0.2 + 0.1 * rng.random(n)
        self.refine_s = self.draft_s + 1 + self.complexity + 0.3 * rng.random(n)
        self.direct_s = 1.2 + self.complexity + 0.3 * rng.random(n)
        self.rng = rng

    def logged(self, drafting, accepting, labelled: float = 1.0) -> Decisions:
        """Logged by a policy that drafts, and then accepts, with these probabilities, (n,) or one for all."""
        n = len(self.complexity)
        drafting, accepting = np.broadcast_to(drafting, n), np.broadcast_to(accepting, n)
        drafted = self.rng.random(n) < drafting
        accepted = drafted & (self.rng.random(n) < accepting)
        good = np.where(accepted, self.draft_good, self.other_good)
        return Decisions(
            complexity=self.complexity,
            quality=np.where(drafted, self.quality, -np.inf),
            drafted=drafted,
            accepted=accepted,
            propensity=np.where(drafted, drafting, 1 - drafting),
            acceptance_propensity=np.where(drafted, np.where(accepted, accepting, 1 - accepting), 1.0),
            latency_s=np.where(accepted, self.draft_s, np.where(drafted, self.refine_s, self.direct_s)),
            draft_latency_s=np.where(drafted, self.draft_s, np.nan),
            good=np.where(self.rng.random(n) < labelled, good, np.nan),
        )

    def at_thresholds(self, labelled: float = 1.0) -> Decisions:
        return self.logged(self.complexity < 0.5, self.quality >= 0.7, labelled)

    def banded(self, labelled: float = 1.0) -> Decisions:
        near = np.abs(self.complexity - 0.5) < 0.15
        close = np.abs(self.quality - 0.7) < 0.1
        return self.logged(
            np.where(near, 0.6, self.complexity < 0.5), np.where(close, 0.4, self.quality >= 0.7), labelled
        )

    def truth(self, complexity: float, quality: float) -> list[float]:
        direct = self.complexity >= complexity
        accepted = ~direct & (self.quality >= quality)
        latency = np.where(direct, self.direct_s, np.where(accepted, self.draft_s, self.refine_s))
        good = np.where(accepted, self.draft_good, self.other_good)
        return [
            float(one.mean()) for one in (direct, accepted, ~direct & ~accepted, latency, good)
        ]  # in the order of WhatIf


PAIRS = [(0.5, 0.7), (0.45, 0.75), (0.6, 0.65)]  # within both bands
BEYOND = [(0.9, 0.7), (0.5, 0.95), (0.1, 0.2), (1.1, 0.0)]


def asked(log: Decisions, pairs, **options) -> WhatIf:
    complexity, quality = np.array(pairs).T
    return whatif(log, complexity, quality, **options)


@pytest.fixture(scope="module")
def truth():
    world = World(np.random.default_rng(99), 1_000_000)
    return {pair: world.truth(*pair) for pair in PAIRS + BEYOND}


def covered(truth, pairs, runs, log, **options) -> np.ndarray:
    """How often each interval holds the truth, (5, P)."""
    expected = np.array([truth[pair] for pair in pairs]).T
    count = np.zeros(expected.shape)
    for run in range(runs):
        found = asked(log(World(np.random.default_rng([SEED, run]), N)), pairs, **options)
        for i, estimate in enumerate(found):
            count[i] += (estimate.low <= expected[i]) & (expected[i] <= estimate.high)
    return count


@pytest.mark.parametrize("estimator", ["snips", "ips"])
@pytest.mark.parametrize("labelled", [1.0, 0.3])
def test_intervals_within_a_random_band_hold_the_truth_as_often_as_they_say(truth, estimator, labelled):
    runs = 200
    count = covered(truth, PAIRS, runs, lambda world: world.banded(labelled), estimator=estimator)
    assert all(stats.binomtest(int(k), runs, 0.95, alternative="less").pvalue > 1e-3 for k in count.flat)
    assert count.mean() < 0.98 * runs  # nor are they too wide


def test_intervals_of_a_fully_random_log_hold_the_truth_everywhere(truth):
    runs, pairs = 150, PAIRS + BEYOND
    count = covered(truth, pairs, runs, lambda world: world.logged(0.5, 0.5))
    assert all(stats.binomtest(int(k), runs, 0.95, alternative="less").pvalue > 1e-3 for k in count.flat)


def test_intervals_hold_the_truth_where_the_log_cannot_tell(truth):
    count = covered(truth, BEYOND, 100, lambda world: world.at_thresholds(0.5))
    assert (count >= 88).all()
    beyond = asked(World(np.random.default_rng(SEED), N).at_thresholds(), BEYOND)
    assert (beyond.quality.unsupported > 0.05).all()
    assert (beyond.quality.high - beyond.quality.low > beyond.quality.unsupported).all()


@pytest.mark.parametrize("estimator", ["snips", "ips"])
def test_the_policy_that_was_logged_is_known_exactly(estimator):
    world = World(np.random.default_rng(SEED), N)
    found = asked(world.at_thresholds(), [(0.5, 0.7)], estimator=estimator)
    for estimate, expected in zip(found, world.truth(0.5, 0.7), strict=True):
        assert estimate.value[0] == pytest.approx(expected)
        assert estimate.low[0] < expected < estimate.high[0]
        assert estimate.unsupported[0] == pytest.approx(0, abs=1e-12)
        assert estimate.effective[0] == pytest.approx(N)


def test_route_of_every_draft_that_was_made_is_known_at_any_quality_threshold():
    world = World(np.random.default_rng(SEED), N)
    found = asked(world.at_thresholds(), [(0.5, 0.3)])
    for estimate, expected in zip(found[:3], world.truth(0.5, 0.3)[:3], strict=True):
        assert estimate.value[0] == pytest.approx(expected)
    assert found.latency_s.value[0] == pytest.approx(
        world.truth(0.5, 0.3)[3]
    )  # an accepted draft leaves when it was judged
    newly_accepted = (world.complexity < 0.5) & (world.quality >= 0.3) & (world.quality < 0.7)
    assert found.quality.unsupported[0] == pytest.approx(newly_accepted.mean())
    assert found.latency_s.unsupported[0] == pytest.approx(0, abs=1e-12)


def test_share_that_the_log_cannot_speak_for_is_counted():
    world = World(np.random.default_rng(SEED), N)
    found = asked(world.at_thresholds(), [(0.8, 0.7), (0.2, 0.7), (0.5, 0.9)])
    never_drafted = ((world.complexity >= 0.5) & (world.complexity < 0.8)).mean()
    never_direct = ((world.complexity >= 0.2) & (world.complexity < 0.5)).mean()
    never_refined = ((world.complexity < 0.5) & (world.quality >= 0.7) & (world.quality < 0.9)).mean()
    assert found.latency_s.unsupported == pytest.approx([never_drafted, never_direct, never_refined])
    assert found.quality.unsupported == pytest.approx([never_drafted, never_direct, never_refined])
    assert found.draft.unsupported == pytest.approx([never_drafted, 0, 0], abs=1e-12)
    assert found.direct.unsupported == pytest.approx([0, 0, 0], abs=1e-12)


def test_estimates_are_unbiased_where_shares_differ_by_propensity(truth):
    # Requests of the band weigh 1/0.6 or 1/0.4; without weights the mean would be off by several of these tolerances.
    found = [asked(World(np.random.default_rng([SEED, run]), N).banded(), PAIRS) for run in range(150)]
    for i, tolerance in enumerate((0.003, 0.003, 0.003, 0.006, 0.004)):
        mean = np.mean([one[i].value for one in found], axis=0)
        assert mean == pytest.approx([truth[pair][i] for pair in PAIRS], abs=tolerance)


def test_scaled_weights_vary_less():
    found = {"snips": [], "ips": []}
    for run in range(60):
        log = World(np.random.default_rng([SEED, run]), N).logged(0.5, 0.5)
        for estimator, values in found.items():
            values.append(asked(log, [(0.5, 0.7)], estimator=estimator).latency_s.value[0])
    assert np.std(found["snips"]) < np.std(found["ips"])


def test_no_label_of_a_route_leaves_its_quality_open():
    log = World(np.random.default_rng(SEED), N).at_thresholds()
    log = log._replace(good=np.where(log.accepted, log.good, np.nan))
    found = asked(log, [(0.5, 0.7)]).quality
    assert math.isnan(found.value[0])
    assert found.unsupported[0] == pytest.approx(1 - log.accepted.mean())
    assert found.high[0] - found.low[0] > found.unsupported[0]


def test_a_few_labels_that_agree_are_no_certainty():
    log = World(np.random.default_rng(SEED), N).at_thresholds()
    few = np.full(N, np.nan)
    for route in (log.accepted, log.drafted & ~log.accepted, ~log.drafted):
        few[np.flatnonzero(route)[:3]] = 1.0
    found = asked(log._replace(good=few), [(0.5, 0.7)]).quality
    assert found.value[0] == pytest.approx(1.0)
    assert found.low[0] < 0.75
    assert found.high[0] == 1.0


def test_log_without_drafts_says_nothing_of_drafts():
    log = World(np.random.default_rng(SEED), N).logged(0.0, 0.0)
    found = asked(log, [(0.4, 0.5), (0.0, 0.5)])
    share = (log.complexity < 0.4).mean()
    assert np.isnan(found.draft.value[0])
    assert (found.draft.low[0], found.draft.unsupported[0]) == (0.0, pytest.approx(share))
    assert found.direct.value == pytest.approx([1 - share, 1])
    assert found.quality.unsupported == pytest.approx([share, 0])


def test_unknown_scores_draft_and_refine():
    rows = [
        LoggedDecision(route="refine", complexity=None, latency_s=2.0, draft_latency_s=0.5, good=True),
        LoggedDecision(route="direct", complexity=0.9, latency_s=1.0, good=True),
    ]
    found = whatif(Decisions.of(rows), [0.5, 0.0], [0.0, 0.0])
    assert found.refine.value == pytest.approx([0.5, 0.5])
    assert found.latency_s.value == pytest.approx([1.5, 1.5])


def test_a_grid_is_its_pairs():
    log = World(np.random.default_rng(SEED), N).banded(0.5)
    complexity, quality = np.linspace(0.3, 0.7, 5), np.linspace(0.5, 0.9, 3)
    grid = whatif(log, complexity[:, None], quality)
    pairs = whatif(log, np.repeat(complexity, 3), np.tile(quality, 5))
    for of_grid, of_pairs in zip(grid, pairs, strict=True):
        assert of_grid.value.shape == (5, 3)
        for one, other in zip(of_grid, of_pairs, strict=True):
            assert one.ravel() == pytest.approx(other, nan_ok=True)


def test_parts_of_a_large_question_come_back_in_order(monkeypatch):
    log = World(np.random.default_rng(SEED), 300).banded()
    rng = np.random.default_rng(SEED)
    complexity, quality = rng.random((2, 40))
    whole = whatif(log, complexity, quality)
    monkeypatch.setattr("classifiers.whatif.MOST_CELLS", 50)
    for one, other in zip(whatif(log, complexity, quality), whole, strict=True):
        assert one.value == pytest.approx(other.value, nan_ok=True)
        assert one.high == pytest.approx(other.high)


def test_wider_confidence_gives_wider_intervals():
    log = World(np.random.default_rng(SEED), N).banded()
    wide, narrow = (asked(log, PAIRS, confidence=confidence).latency_s for confidence in (0.99, 0.8))
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(np.full(3, stats.norm.ppf(0.995) / stats.norm.ppf(0.9)))


def test_decisions_are_read_from_json_lines(tmp_path):
    rows = [
        LoggedDecision(route="draft", complexity=0.2, quality=0.9, latency_s=0.3, draft_latency_s=0.3, good=True),
        LoggedDecision(route="direct", complexity=0.8, propensity=0.5, latency_s=1.5),
    ]
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\n\n".join(map(msgspec.json.encode, rows)) + b"\n")
    read, built = read_decisions(file), Decisions.of(rows)
    for one, other in zip(read, built, strict=True):
        np.testing.assert_array_equal(one, other)
    assert read.drafted.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"route": "direct", "complexity": 0.5, "latency_s": 1, "propensity": 0}', "line 1.*propensity"),
        ('{"route": "cache", "complexity": 0.5, "latency_s": 1}', "line 1.*route"),
        ('{"route": "direct", "complexity": 7, "latency_s": 1}', "line 1.*complexity"),
        ('{"route": "draft", "complexity": 0.5, "latency_s": 1}', "draft_latency_s with route 'draft'"),
        ("{", "line 1"),
        ("", "got none"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, words):
    file = tmp_path / "log.jsonl"
    file.write_text(text)
    with pytest.raises(DecisionsError, match=words):
        read_decisions(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DecisionsError, match=r"log\.jsonl: can't be read"):
        read_decisions(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("thresholds", "options", "words"),
    [
        (([0.5, 0.6], [0.1, 0.2, 0.3]), {}, "broadcast"),
        (([math.nan], [0.5]), {}, "nan"),
        (([0.5], [0.5]), {"estimator": "dr"}, "snips or ips, got 'dr'"),
        (([0.5], [0.5]), {"confidence": 1.0}, "confidence"),
    ],
)
def test_bad_questions_are_refused(thresholds, options, words):
    log = World(np.random.default_rng(SEED), 10).banded()
    with pytest.raises(DecisionsError, match=words):
        whatif(log, *thresholds, **options)
