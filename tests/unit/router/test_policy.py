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
    decide,
    judge,
    may_fall_back,
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


def test_only_automatic_requests_fall_back_to_a_draft() -> None:
    assert may_fall_back(but(complexity=0.9))
    assert not may_fall_back(but(wanted="refine"))
    assert not may_fall_back(but(draft_state="failed"))


states = st.sampled_from(["loading", "ready", "failed", "closed"])
shares = st.floats(0, 1)
features_of_any_kind = st.builds(
    Features,
    wanted=st.sampled_from(["auto", "draft", "refine"]),
    prompt_chars=st.integers(0, 20_000),
    draft_state=states,
    draft_context_tokens=st.sampled_from([0, 1000]),
    refine_state=states,
    complexity=st.none() | shares,
)
outcomes = st.builds(
    Outcome,
    problem=st.none() | st.sampled_from(["failed", "overloaded", "rejected", "late"]),
    quality=st.none() | shares,
    failed_checks=st.sampled_from([(), ("arithmetic",)]),
)


@given(features_of_any_kind, outcomes)
def test_every_decision_replays_from_its_encoded_record(features: Features, outcome: Outcome) -> None:
    choice, tried = decide(POLICY, features), None
    if choice.route == "draft":
        choice, tried = judge(POLICY, features, outcome), outcome
    line = msgspec.json.encode(record(features, tried, choice))
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
