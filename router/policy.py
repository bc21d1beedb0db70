"""Which route a request takes, and why. Pure functions: no clock, no I/O, no engine.

`decide` chooses before anything is generated, `judge` after a draft was tried. Both read only what
the decision record keeps, so `replay` can repeat a decision, or ask what another policy would do.

Reasons are stable machine words:
* draft    accepted | explicit | refine_unavailable | refine_failed
           | refine_overloaded | refine_rejected
* refine   quality | verifier:<name> | check_failed
* direct   complexity | explicit | context | draft_unavailable
           | draft_failed | draft_overloaded | draft_rejected | draft_late
* cache    hit
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Route = Literal["cache", "draft", "refine", "direct"]
Wanted = Literal["auto", "draft", "refine"]
EngineState = Literal["loading", "ready", "failed", "closed"]
DraftProblem = Literal["failed", "overloaded", "rejected", "late"]
RefineProblem = Literal["failed", "overloaded", "rejected"]

Share = Annotated[float, Meta(ge=0.0, le=1.0)]

# No tokenizer packs ordinary text denser than this, so a longer prompt can't fit the context.
# What fits by this measure is counted exactly by the engine, which refuses what is too long.
MOST_CHARS_PER_TOKEN = 8


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The two thresholds between a fast answer and a careful one."""

    complexity_threshold: Share = 0.5  # at or above: no draft is judged
    quality_threshold: Share = 0.7  # below: the draft is refined
    candidates: Annotated[int, Meta(ge=1, le=8)] = 1  # drafts of a request, of which the best is judged
    sketch_steps: Annotated[int, Meta(ge=0, le=64)] = 4  # of a draft that only helps the refiner; 0: none is made


class Features(Struct, frozen=True, kw_only=True):
    """All that `decide` looks at."""

    wanted: Wanted
    prompt_chars: int
    draft_state: EngineState
    draft_context_tokens: int  # 0: unknown
    refine_state: EngineState
    complexity: float | None = None  # None: scoring broke


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of trying a draft."""

    problem: DraftProblem | None = None  # no draft came
    quality: float | None = None  # None: no draft, or checking it broke
    failed_checks: tuple[str, ...] = ()
    refiner: RefineProblem | None = None  # the refiner had already failed, the draft is second best


class Choice(Struct, frozen=True):
    """The route to take next."""

    route: Route
    reason: str


def decide(policy: Policy, features: Features) -> Choice:
    """Draft or go direct. Hard rules come before the score."""
    if features.wanted == "refine":
        return Choice("direct", "explicit")
    if features.wanted == "draft":
        return Choice("draft", "explicit")
    if features.draft_state != "ready":
        return Choice("direct", "draft_unavailable")
    room = features.draft_context_tokens * MOST_CHARS_PER_TOKEN
    if room and features.prompt_chars > room:
        return Choice("direct", "context")
    if features.refine_state != "ready":
        return Choice("draft", "refine_unavailable")
    if features.complexity is not None and features.complexity >= policy.complexity_threshold:
        return Choice("direct", "complexity")
    return Choice("draft", "simple")


def judge(policy: Policy, features: Features, outcome: Outcome) -> Choice:
    """Accept the draft, or say who answers instead."""
    if outcome.problem is not None:
        return Choice("direct", f"draft_{outcome.problem}")
    if features.wanted == "draft":
        return Choice("draft", "explicit")
    if outcome.quality is None:
        return Choice("refine", "check_failed")
    if outcome.quality < policy.quality_threshold:
        if outcome.failed_checks:
            return Choice("refine", f"verifier:{outcome.failed_checks[0]}")
        return Choice("refine", "quality")
    if outcome.refiner is not None:
        return Choice("draft", f"refine_{outcome.refiner}")
    if features.refine_state != "ready":
        return Choice("draft", "refine_unavailable")
    return Choice("draft", "accepted")


def may_fall_back(features: Features) -> bool:
    """May a draft stand in, if it passes its check, when the refiner failed without one?"""
    return features.wanted == "auto" and features.draft_state == "ready"


class DecisionRecord(Struct, frozen=True, kw_only=True):
    """One request's decision and cost. Holds no text of the conversation."""

    request_id: str
    at_unix_s: float
    model: str
    status: int  # HTTP status; 499 when the client left
    route: Route | None  # None: it ended before a route was chosen
    reason: str
    policy: Policy
    features: Features | None  # None: answered from the cache
    outcome: Outcome | None  # None: no draft was tried
    complexity_version: str
    quality_version: str
    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int | None  # None: no draft was refined
    sketched_tokens: int | None = None  # None: there was no sketch
    elapsed_s: float


def replay(record: DecisionRecord, policy: Policy | None = None) -> Choice | None:
    """Repeat a decision from its record, under its own policy or another.

    Returns: None when the record can't tell: it came from the cache, or the other policy asks
        for a draft that was never made.
    """
    if record.features is None:
        return None
    policy = policy or record.policy
    choice = decide(policy, record.features)
    if record.outcome is None:
        return None if choice.route == "draft" else choice
    if choice.route == "draft" or record.outcome.refiner is not None:
        return judge(policy, record.features, record.outcome)
    return choice
