"""Which route a request takes, and why. Pure functions: no clock, no I/O, no engine, no dice.

`decide` chooses before anything is generated, `judge` after a draft was tried. Both read only what
the decision record keeps, so `replay` can repeat a decision, or ask what another policy would do.

Reasons are stable machine words:
* draft    accepted | explicit | refine_unavailable | refine_failed
           | refine_overloaded | refine_rejected
* refine   quality | quality_target | verifier:<name> | check_failed
* direct   complexity | load | explore | explicit | context | tools | images | logprobs | draft_unavailable
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
FORMAT_CHECK = "json_format"  # the verifier of a request's response_format
NOTHING_PASSES = 2.0  # a threshold above any quality


class QualityTarget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `draftgate calibrate` found: the threshold at which at most a share `bad` of accepted drafts is bad."""

    bad: Share
    threshold: Share


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds between a fast answer and a careful one, and what may move a request across them."""

    complexity_threshold: Share = 0.5  # at or above: no draft is judged
    quality_threshold: Share = 0.7  # below: the draft is refined
    quality_targets: tuple[QualityTarget, ...] = ()  # what a request's `quality_target` is served from
    candidates: Annotated[int, Meta(ge=1, le=8)] = 1  # drafts of a request, of which the best is judged
    sketch_steps: Annotated[int, Meta(ge=0, le=64)] = 4  # of a draft that only helps the refiner; 0: none is made
    load_rule: bool = True  # where requests wait: whichever way the answer is ready first
    explore_share: Share = 0.0  # of requests near the complexity threshold that go the other way ...
    explore_band: Share = 0.1  # ... if they are this near


class Features(Struct, frozen=True, kw_only=True):
    """All that `decide` looks at."""

    wanted: Wanted
    needs: tuple[str, ...] = ()  # what only the refiner can do
    prompt_chars: int
    draft_state: EngineState
    draft_context_tokens: int  # 0: unknown
    refine_state: EngineState
    complexity: float | None = None  # None: scoring broke
    quality_target: float | None = None  # None: the policy's threshold holds
    draft_wait_s: float = 0.0  # in the queue, as far as can be told
    draft_work_s: float = 0.0  # of a draft, in this company; 0: nothing is known yet
    refine_wait_s: float = 0.0
    refine_work_s: float = 0.0
    coin: float = 1.0  # thrown for this request, in [0, 1): explore below `explore_share`


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of trying a draft."""

    problem: DraftProblem | None = None  # no draft came
    quality: float | None = None  # None: no draft, or checking it broke. Of several choices, the worst one's
    failed_checks: tuple[str, ...] = ()
    refiner: RefineProblem | None = None  # the refiner had already failed, the draft is second best


class Choice(Struct, frozen=True):
    """The route to take next."""

    route: Route
    reason: str
    propensity: float = 1.0  # with which this policy takes this route for these features


def decide(policy: Policy, features: Features) -> Choice:
    """Draft or go direct. Hard rules come before the score, queues before the threshold."""
    if features.wanted == "refine":
        return Choice("direct", "explicit")
    if features.wanted == "draft":
        return Choice("draft", "explicit")
    if features.needs:
        return Choice("direct", features.needs[0])
    if features.draft_state != "ready":
        return Choice("direct", "draft_unavailable")
    room = features.draft_context_tokens * MOST_CHARS_PER_TOKEN
    if room and features.prompt_chars > room:
        return Choice("direct", "context")
    if features.refine_state != "ready":
        return Choice("draft", "refine_unavailable")
    if features.complexity is None:
        return Choice("draft", "simple")
    if policy.load_rule and (sooner := _sooner(features, features.complexity)):
        return Choice(sooner, "load")
    return _by_complexity(policy, features.complexity, features.coin)


def _sooner(features: Features, complexity: float) -> Route | None:
    """Where the answer is ready first, if requests wait anywhere.

    Both ways keep the quality: a draft is checked, and refined if it fails, which complexity is the probability of. So expect

        draft:  draft_wait + draft_work + complexity (refine_wait + refine_work)
        direct: refine_wait + refine_work

    None: nobody waits, or too little is known.
    """
    if not (features.draft_wait_s or features.refine_wait_s) or not (features.draft_work_s and features.refine_work_s):
        return None
    direct_s = features.refine_wait_s + features.refine_work_s
    draft_s = features.draft_wait_s + features.draft_work_s + complexity * direct_s
    return "draft" if draft_s < direct_s else "direct"


def _by_complexity(policy: Policy, complexity: float, coin: float) -> Choice:
    simple = complexity < policy.complexity_threshold
    near = abs(complexity - policy.complexity_threshold) <= policy.explore_band
    share = policy.explore_share if near else 0.0
    if coin < share:
        return Choice("direct" if simple else "draft", "explore", share)
    return Choice("draft", "simple", 1 - share) if simple else Choice("direct", "complexity", 1 - share)


def quality_bar(policy: Policy, quality_target: float | None) -> float:
    """The least quality of a draft that is accepted.

    Of the calibrated targets the loosest counts that keeps the one asked for. Where there is none nothing is accepted: every answer is the
    refiner's, which keeps any target.
    """
    if quality_target is None:
        return policy.quality_threshold
    kept = [target for target in policy.quality_targets if target.bad <= quality_target]
    return max(kept, key=lambda target: target.bad).threshold if kept else NOTHING_PASSES


def judge(policy: Policy, features: Features, outcome: Outcome) -> Choice:
    """Accept the draft, or say who answers instead."""
    if outcome.problem is not None:
        return Choice("direct", f"draft_{outcome.problem}")
    if features.wanted == "draft":
        return Choice("draft", "explicit")
    if outcome.quality is None:
        return Choice("refine", "check_failed")
    if FORMAT_CHECK in outcome.failed_checks:  # what was promised holds at any threshold
        return Choice("refine", f"verifier:{FORMAT_CHECK}")
    if outcome.quality < quality_bar(policy, features.quality_target):
        if outcome.failed_checks:
            return Choice("refine", f"verifier:{outcome.failed_checks[0]}")
        return Choice("refine", "quality" if features.quality_target is None else "quality_target")
    if outcome.refiner is not None:
        return Choice("draft", f"refine_{outcome.refiner}")
    if features.refine_state != "ready":
        return Choice("draft", "refine_unavailable")
    return Choice("draft", "accepted")


def may_fall_back(features: Features) -> bool:
    """May a draft stand in, if it passes its check, when the refiner failed without one?"""
    return features.wanted == "auto" and features.draft_state == "ready" and not features.needs


class DecisionRecord(Struct, frozen=True, kw_only=True):
    """One request's decision and cost. Holds no text of the conversation."""

    request_id: str
    at_unix_s: float
    tenant: str = ""
    model: str
    arm: str = ""
    conversation: str = ""  # a hash
    priority: int = 0
    status: int  # HTTP status; 499 when the client left
    route: Route | None  # None: it ended before a route was chosen
    reason: str
    propensity: float = 1.0  # with which `decide` took the way it took
    cached_route: Route | None = None
    policy: Policy
    features: Features | None  # None: it ended before any were known
    outcome: Outcome | None  # None: no draft was tried
    complexity_version: str
    quality_version: str
    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int | None  # None: no draft was refined
    sketched_tokens: int | None = None  # None: there was no sketch
    steps: int | None = None  # denoising steps of the draft; None: none was made
    draft_s: float | None = None  # that the draft took, queue and check included; None: none was made
    first_token_s: float | None = None  # from arrival to the answer's first word; None: there was none
    elapsed_s: float


def replay(record: DecisionRecord, policy: Policy | None = None) -> Choice | None:
    """Repeat a decision from its record, under its own policy or another.

    Returns: None when the record can't tell: the request ended too soon, or the other policy asks
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
