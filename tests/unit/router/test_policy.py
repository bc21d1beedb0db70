import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy import (
    Choice,
    DecisionRecord,
    Features,
    Outcome,
    Policy,
    QualityTarget,
    decide,
    judge,
    may_fall_back,
    quality_bar,
    replay,
)

POLICY = Policy(complexity_threshold=0.5, quality_threshold=0.5)
SIMPLE = Features(
    wanted="auto",
    prompt_chars=100,
    draft_state="ready",
    draft_context_tokens=1000,
    refine_state="ready",
    complexity=0.1,
)


def but(**changes: object) -> Features:
    return msgspec.structs.replace(SIMPLE, **changes)


def record(features: Features, outcome: Outcome | None, choice: Choice) -> DecisionRecord:
    return DecisionRecord(
        request_id="r",
        at_unix_s=0.0,
        model="draftgate",
        status=200,
        route=choice.route,
        reason=choice.reason,
        policy=POLICY,
        features=features,
        outcome=outcome,
        complexity_version="c",
        quality_version="q",
        prompt_tokens=1,
        completion_tokens=1,
        kept_tokens=None,
        elapsed_s=0.1,
    )


@pytest.mark.parametrize(
    ("features", "route", "reason"),
    [
        (SIMPLE, "draft", "simple"),
        (but(complexity=0.9), "direct", "complexity"),
        (but(complexity=0.5), "direct", "complexity"),
        (but(complexity=None), "draft", "simple"),
        (but(wanted="refine"), "direct", "explicit"),
        (but(wanted="draft", complexity=0.9), "draft", "explicit"),
        (but(wanted="draft", draft_state="loading"), "draft", "explicit"),
        (but(draft_state="loading"), "direct", "draft_unavailable"),
        (but(draft_state="failed", refine_state="failed"), "direct", "draft_unavailable"),
        (but(prompt_chars=8001), "direct", "context"),
        (but(prompt_chars=8000), "draft", "simple"),
        (but(prompt_chars=10**6, draft_context_tokens=0), "draft", "simple"),
        (but(prompt_chars=8001, refine_state="failed"), "direct", "context"),
        (but(complexity=0.9, refine_state="failed"), "draft", "refine_unavailable"),
        (but(needs=("tools",)), "direct", "tools"),
        (but(needs=("images", "tools"), draft_state="failed", refine_state="failed"), "direct", "images"),
        (but(needs=("tools",), wanted="refine"), "direct", "explicit"),
    ],
)
def test_hard_rules_come_before_the_score(features: Features, route: str, reason: str) -> None:
    assert decide(POLICY, features) == Choice(route, reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "outcome", "route", "reason"),
    [
        (SIMPLE, Outcome(quality=0.9), "draft", "accepted"),
        (SIMPLE, Outcome(quality=0.5), "draft", "accepted"),
        (SIMPLE, Outcome(quality=0.49), "refine", "quality"),
        (
            SIMPLE,
            Outcome(quality=0.0, failed_checks=("arithmetic", "repetition")),
            "refine",
            "verifier:arithmetic",
        ),
        (SIMPLE, Outcome(), "refine", "check_failed"),
        (SIMPLE, Outcome(problem="failed"), "direct", "draft_failed"),
        (SIMPLE, Outcome(problem="late"), "direct", "draft_late"),
        (but(wanted="draft"), Outcome(quality=0.0), "draft", "explicit"),
        (but(wanted="draft"), Outcome(), "draft", "explicit"),
        (but(refine_state="failed"), Outcome(quality=0.9), "draft", "refine_unavailable"),
        (but(refine_state="failed"), Outcome(quality=0.1), "refine", "quality"),
        (SIMPLE, Outcome(quality=0.9, refiner="failed"), "draft", "refine_failed"),
        (SIMPLE, Outcome(quality=0.1, refiner="failed"), "refine", "quality"),
    ],
)
def test_a_draft_is_accepted_at_the_threshold(features: Features, outcome: Outcome, route: str, reason: str) -> None:
    assert judge(POLICY, features, outcome) == Choice(route, reason)  # type: ignore[arg-type]


def test_threshold_zero_accepts_every_checked_draft() -> None:
    always = Policy(quality_threshold=0.0)
    bad = Outcome(quality=0.0, failed_checks=("arithmetic",))
    assert judge(always, SIMPLE, bad).route == "draft"


def test_a_format_that_was_asked_for_holds_at_any_threshold() -> None:
    unformed = Outcome(quality=0.9, failed_checks=("json_format",))
    assert judge(Policy(quality_threshold=0.0), SIMPLE, unformed) == Choice("refine", "verifier:json_format")


@pytest.mark.parametrize(
    ("asked", "bar"),
    [(None, 0.5), (0.05, 0.6), (0.02, 0.8), (0.049, 0.8), (1.0, 0.6), (0.01, 2.0), (0.0, 2.0)],
)
def test_a_quality_target_is_served_from_the_loosest_calibrated_one_that_keeps_it(
    asked: float | None, bar: float
) -> None:
    targets = (QualityTarget(bad=0.02, threshold=0.8), QualityTarget(bad=0.05, threshold=0.6))
    policy = Policy(quality_threshold=0.5, quality_targets=targets)
    assert quality_bar(policy, asked) == bar
    features = but(quality_target=asked)
    assert judge(policy, features, Outcome(quality=1.0)).route == ("draft" if bar <= 1 else "refine")
    if asked is not None:
        assert judge(policy, features, Outcome(quality=0.3)) == Choice("refine", "quality_target")


def busy(**seconds: float) -> Features:
    return but(draft_work_s=0.1, refine_work_s=1.0, **seconds)


@pytest.mark.parametrize(
    ("features", "route", "reason"),
    [
        (busy(), "draft", "simple"),  # nobody waits: the threshold alone decides
        (busy(draft_wait_s=0.5), "draft", "load"),  # 0.5 + 0.1 + 0.1 x 1.0 against 1.0
        (busy(draft_wait_s=0.9), "direct", "load"),  # 1.1 against 1.0
        (msgspec.structs.replace(busy(draft_wait_s=0.5), complexity=0.9), "direct", "load"),  # 1.5 against 1.0
        (msgspec.structs.replace(busy(refine_wait_s=4.0), complexity=0.6), "draft", "load"),  # 0.1 + 0.6 x 5 against 5
        (msgspec.structs.replace(busy(refine_wait_s=4.0), complexity=0.99), "direct", "load"),  # 5.05 against 5
        (but(draft_wait_s=9.0), "draft", "simple"),  # nothing is known of the work
    ],
)
def test_where_requests_wait_the_way_is_taken_that_is_ready_first(features: Features, route: str, reason: str) -> None:
    assert decide(POLICY, features) == Choice(route, reason)  # type: ignore[arg-type]
    unruled = Policy(complexity_threshold=0.5, load_rule=False)
    assert decide(unruled, features).reason in ("simple", "complexity")


def test_near_the_threshold_some_go_the_other_way_and_their_propensity_is_told() -> None:
    policy = Policy(complexity_threshold=0.5, explore_share=0.2, explore_band=0.1)
    assert decide(policy, but(complexity=0.45, coin=0.1)) == Choice("direct", "explore", 0.2)
    assert decide(policy, but(complexity=0.45, coin=0.2)) == Choice("draft", "simple", 0.8)
    assert decide(policy, but(complexity=0.55, coin=0.1)) == Choice("draft", "explore", 0.2)
    assert decide(policy, but(complexity=0.55, coin=0.9)) == Choice("direct", "complexity", 0.8)
    assert decide(policy, but(complexity=0.3, coin=0.0)) == Choice("draft", "simple", 1.0)


def test_only_automatic_requests_fall_back_to_a_draft() -> None:
    assert may_fall_back(but(complexity=0.9))
    assert not may_fall_back(but(complexity=0.9, needs=("tools",)))
    assert not may_fall_back(but(wanted="refine"))
    assert not may_fall_back(but(draft_state="failed"))


states = st.sampled_from(["loading", "ready", "failed", "closed"])
shares = st.floats(0, 1)
waits = st.just(0.0) | st.floats(0, 100)
policies = st.builds(
    Policy, complexity_threshold=shares, quality_threshold=shares, load_rule=st.booleans(), explore_share=shares
)


@given(policies, st.builds(but, complexity=shares), st.integers(0, 99))
def test_propensities_are_those_of_the_coin(policy: Policy, features: Features, at: int) -> None:
    """Over evenly spaced coins each route comes up as often as its propensity says."""
    choices = [decide(policy, msgspec.structs.replace(features, coin=i / 1000)) for i in range(1000)]
    told = choices[at * 10]
    assert sum(choice.route == told.route for choice in choices) == pytest.approx(1000 * told.propensity, abs=1)


features_of_any_kind = st.builds(
    Features,
    wanted=st.sampled_from(["auto", "draft", "refine"]),
    prompt_chars=st.integers(0, 20_000),
    draft_state=states,
    draft_context_tokens=st.sampled_from([0, 1000]),
    refine_state=states,
    complexity=st.none() | shares,
    needs=st.sampled_from([(), ("tools",)]),
    quality_target=st.none() | shares,
    draft_wait_s=waits,
    draft_work_s=waits,
    refine_wait_s=waits,
    refine_work_s=waits,
    coin=shares,
)
outcomes = st.builds(
    Outcome,
    problem=st.none() | st.sampled_from(["failed", "overloaded", "rejected", "late"]),
    quality=st.none() | shares,
    failed_checks=st.sampled_from([(), ("arithmetic",), ("json_format",)]),
)


@given(policies, features_of_any_kind, outcomes)
def test_every_decision_replays_from_its_encoded_record(policy: Policy, features: Features, outcome: Outcome) -> None:
    choice, tried = decide(policy, features), None
    if choice.route == "draft":
        choice, tried = judge(policy, features, outcome), outcome
    line = msgspec.json.encode(msgspec.structs.replace(record(features, tried, choice), policy=policy))
    assert replay(msgspec.json.decode(line, type=DecisionRecord)) == choice


def test_replay_under_another_policy_tells_what_it_would_have_done() -> None:
    accepted = record(SIMPLE, Outcome(quality=0.6), Choice("draft", "accepted"))
    assert replay(accepted, Policy(quality_threshold=0.7)) == Choice("refine", "quality")
    assert replay(accepted, Policy(complexity_threshold=0.05)) == Choice("direct", "complexity")


def test_replay_says_when_it_can_not_know() -> None:
    direct = record(but(complexity=0.9), None, Choice("direct", "complexity"))
    assert replay(direct, Policy(complexity_threshold=0.95)) is None
    cached = msgspec.structs.replace(direct, features=None, route="cache", reason="hit")
    assert replay(cached) is None


def test_a_draft_in_place_of_a_failed_refiner_replays() -> None:
    hard = but(complexity=0.9)
    outcome = Outcome(quality=0.9, refiner="failed")
    choice = Choice("draft", "refine_failed")
    assert replay(record(hard, outcome, choice)) == choice
