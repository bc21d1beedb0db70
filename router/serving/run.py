"""What the pipeline knows of one request as it goes, and the events made from it."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from ar_engine import api as ar
from classifiers.api import DraftEvidence
from diffusion_engine import api as diffusion
from router.policy import Choice, DecisionRecord, Features, Outcome, Policy
from router.serving.messages import (
    Answer,
    Ask,
    Decided,
    Decision,
    Event,
    Finished,
    TextDelta,
    Usage,
)
from router.serving.stop import cut

NOTHING = Usage(prompt_tokens=0, completion_tokens=0)


@dataclass
class Run:
    """One request under way."""

    ask: Ask
    timeout_s: float
    features: Features | None = None
    outcome: Outcome | None = None
    choice: Choice | None = None
    draft: diffusion.DraftResult | None = None
    sketch: diffusion.DraftResult | None = None  # never shown, and never changes a word of the refiner's
    usage: Usage = NOTHING  # by the engines; a cached answer uses nothing
    told: bool = False  # the client knows the route, it can't change any more
    started: float = field(default_factory=time.perf_counter)  # uvloop's own clock has whole milliseconds

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.timeout_s - self.elapsed_s

    @property
    def seed(self) -> int:
        """The client's seed; without one, sampling varies and greedy decoding doesn't care."""
        if self.ask.seed is not None:
            return self.ask.seed
        return secrets.randbits(31) if self.ask.temperature else 0

    def decision(self) -> Decision:
        """The choice, as the client sees it."""
        assert self.choice is not None, "a decision is told after it was made"
        return Decision(
            route=self.choice.route,
            reason=self.choice.reason,
            complexity=self.features.complexity if self.features else None,
            quality=self.outcome.quality if self.outcome else None,
        )

    def draft_request(self, candidates: int, time_s: float) -> diffusion.DraftRequest:
        """The request to the draft engine."""
        return diffusion.DraftRequest(
            request_id=self.ask.request_id,
            messages=self.ask.messages,
            max_tokens=self.ask.max_tokens,
            seed=self.seed,
            max_steps=self.ask.max_steps,
            give_up=self.ask.wanted != "draft",
            candidates=candidates,
            deadline_s=time_s,
        )

    def sketch_request(self, steps: int, time_s: float) -> diffusion.DraftRequest:
        """The request for a sketch: any draft that somebody waits for comes before it."""
        return diffusion.DraftRequest(
            request_id=self.ask.request_id,
            messages=self.ask.messages,
            max_tokens=self.ask.max_tokens,
            seed=self.seed,
            max_steps=steps,
            give_up=False,
            priority=1,
            deadline_s=time_s,
        )

    def refine_request(self) -> ar.RefineRequest:
        """The request to the refiner; a rejected draft travels along, or else a sketch."""
        draft = self.draft or self.sketch
        return ar.RefineRequest(
            request_id=self.ask.request_id,
            messages=self.ask.messages,
            draft=draft
            and ar.Draft(
                text=draft.text,
                token_ids=draft.token_ids,
                tokenizer_fingerprint=draft.tokenizer_fingerprint,
            ),
            mode="exact" if self.draft is None and self.sketch else None,
            max_tokens=self.ask.max_tokens,
            temperature=self.ask.temperature,
            top_p=self.ask.top_p,
            seed=self.seed,
            stop=self.ask.stop,
            deadline_s=self.left_s,
        )

    def record(self, policy: Policy, status: int, versions: tuple[str, str]) -> DecisionRecord:
        """The decision line; `versions` are those of the complexity and the quality model."""
        return DecisionRecord(
            request_id=self.ask.request_id,
            at_unix_s=time.time(),
            model=self.ask.model,
            status=status,
            route=self.choice.route if self.choice else None,
            reason=self.choice.reason if self.choice else "undecided",
            policy=policy,
            features=self.features,
            outcome=self.outcome,
            complexity_version=versions[0],
            quality_version=versions[1],
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            kept_tokens=self.usage.kept_tokens,
            sketched_tokens=self.usage.sketched_tokens,
            elapsed_s=self.elapsed_s,
        )


def evidence_of(ask: Ask, draft: diffusion.DraftResult) -> DraftEvidence:
    """What the quality model may see: the draft as the client would get it."""
    text, stopped = cut(draft.text, ask.stop)
    return DraftEvidence(
        messages=ask.messages,
        text=text,
        # A canvas that was given up may spell a stop string by chance.
        finish_reason="stop" if stopped and draft.finish_reason != "unsettled" else draft.finish_reason,
        steps=draft.signals.steps,
        converged=draft.signals.converged,
        token_entropy=draft.signals.token_entropy,
        token_logprobs=draft.token_logprobs,
        late_flips=draft.signals.late_flips,
    )


def drafted(run: Run) -> Iterator[Event]:
    """The events of an accepted draft."""
    draft = run.draft
    assert draft is not None, "only a draft that exists can be accepted"
    text, stopped = cut(draft.text, run.ask.stop)
    run.told = True
    run.usage = Usage(
        prompt_tokens=draft.prompt_tokens,
        completion_tokens=len(draft.token_ids),
        steps=sum(draft.signals.steps),
    )
    yield Decided(run.decision())
    yield TextDelta(text)
    yield Finished(
        finish_reason="stop" if stopped or draft.finish_reason == "stop" else "length",
        usage=run.usage,
        decision=run.decision(),
    )


def refined_usage(
    result: ar.RefineResult, draft: diffusion.DraftResult | None, sketch: diffusion.DraftResult | None
) -> Usage:
    """Tokens of a refined or direct answer; what the refiner took of a draft counts as accepted prediction."""
    taken = result.kept_tokens + result.reused_draft_tokens
    usage = Usage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        sketched_tokens=taken if sketch and draft is None else None,
    )
    if draft is None:
        return usage
    return replace(
        usage,
        kept_tokens=taken,
        dropped_tokens=max(0, len(draft.token_ids) - taken),
        steps=sum(draft.signals.steps),
    )


def remembered(run: Run, kept: Answer) -> Iterator[Event]:
    """The events of an answer from the cache."""
    run.choice = Choice("cache", "hit")
    decision = Decision(
        route="cache",
        reason="hit",
        complexity=kept.decision.complexity,
        quality=kept.decision.quality,
        cached_route=kept.decision.route,
    )
    yield Decided(decision)
    yield TextDelta(kept.text)
    yield Finished(finish_reason=kept.finish_reason, usage=kept.usage, decision=decision)
