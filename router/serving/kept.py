"""What is known of a request already, judged by the policy of today: a changed threshold flushes nothing."""

from typing import NamedTuple

from router.policy import Choice, Features, Outcome, Policy, decide, judge
from router.serving.messages import Answer, Ask, Kept
from router.serving.run import Run, answer_of


class Settled(NamedTuple):
    """An answer that is there, and why it is this one."""

    answer: Answer
    choice: Choice
    features: Features
    outcome: Outcome | None


def settle(ask: Ask, kept: Kept, policy: Policy, complexity: float | None, quality_version: str) -> Settled | None:
    """The kept answer that the policy would give, or None where something is still to be made.

    An answer of the refiner serves whatever the policy asks for but an explicit draft: nothing is better or sooner.
    """
    features = _quiet(ask, complexity)
    choice, outcome = decide(policy, features), outcome_of(kept, quality_version)
    if choice.route == "draft" and outcome and len(kept.drafts) == ask.n:
        choice = judge(policy, features, outcome)
        if choice.route == "draft":
            return Settled(answer_of(ask, kept.drafts), choice, features, outcome)
    if kept.refined is None or kept.refined.decision is None or ask.wanted == "draft":
        return None
    made = kept.refined.decision
    return Settled(kept.refined, Choice(made.route, made.reason), features, outcome)


def _quiet(ask: Ask, complexity: float | None) -> Features:
    """The features of a request that needs no engine."""
    return Features(
        wanted=ask.wanted,
        needs=ask.needs,
        prompt_chars=ask.prompt_chars,
        draft_state="ready",
        draft_context_tokens=0,
        refine_state="ready",
        complexity=complexity,
        quality_target=ask.quality_target,
    )


def outcome_of(kept: Kept, quality_version: str) -> Outcome | None:
    """What is thought of the kept drafts; None where nobody has judged them, or another acceptor."""
    if not kept.drafts or kept.quality_version != quality_version:
        return None
    return Outcome(quality=kept.quality, failed_checks=kept.failed_checks)


def kept_of(run: Run, before: Kept | None, complexity_version: str, quality_version: str) -> Kept:
    """What is worth keeping of a run, and of what was known before it."""
    outcome, features = run.outcome, run.features
    # what a deadline cut short would come out otherwise another time
    drafts = run.drafts if all(draft.finish_reason != "deadline" for draft in run.drafts) else ()
    refined = run.answer if run.choice and run.choice.route in ("refine", "direct") else None
    return Kept(
        request_id=run.ask.request_id,
        complexity=features.complexity if features else None,
        complexity_version=complexity_version,
        drafts=drafts,
        quality=outcome.quality if outcome else None,
        failed_checks=outcome.failed_checks if outcome else (),
        quality_version=quality_version if outcome and outcome.quality is not None else "",
        refined=refined or (before.refined if before else None),
    )
