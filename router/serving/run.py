"""What the pipeline knows of one request as it goes, and what is asked of the engines for it."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from ar_engine import api as ar
from classifiers.api import DraftEvidence
from diffusion_engine import api as diffusion
from router.policy import Choice, DecisionRecord, Features, Outcome, Policy, Route
from router.serving.messages import (
    Answer,
    AnswerChoice,
    Ask,
    ChoiceEnd,
    Decided,
    Decision,
    Delta,
    Event,
    Finished,
    Texts,
    Usage,
    text_of,
)
from router.serving.stop import cut

NOTHING = Usage(prompt_tokens=0, completion_tokens=0)


@dataclass
class Run:
    """One request under way."""

    ask: Ask
    timeout_s: float
    seed: int
    arm: str = ""
    features: Features | None = None
    outcome: Outcome | None = None
    choice: Choice | None = None
    cached_route: Route | None = None  # the answer was there already; this is how it was made
    propensity: float = 1.0  # of what `decide` said
    drafts: tuple[diffusion.DraftResult, ...] = ()  # one for each choice
    sketch: diffusion.DraftResult | None = None  # never shown, and never changes a word of the refiner's
    draft_s: float | None = None  # that drafting and checking took
    first_token_s: float | None = None
    usage: Usage = NOTHING  # by the engines; a cached answer uses nothing
    told: bool = False  # the client knows the route, it can't change any more
    answer: Answer | None = None  # what was said, once it is whole
    started: float = field(default_factory=time.perf_counter)  # uvloop's own clock has whole milliseconds

    @classmethod
    def of(cls, ask: Ask, timeout_s: float) -> "Run":
        """Begin one. Without a seed sampling varies, and greedy decoding doesn't care."""
        seed = ask.seed if ask.seed is not None else secrets.randbits(31) if ask.temperature else 0
        return cls(ask, timeout_s, seed)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.timeout_s - self.elapsed_s

    @property
    def drafts_accepted(self) -> bool:
        """Is a draft the answer?"""
        return self.choice is not None and self.choice.route == "draft"

    @property
    def prefix_key(self) -> str:
        """Under which engines share the work on equal prefixes: within a tenant only, lest one can time what another asked."""
        return self.ask.tenant

    def decision(self) -> Decision:
        """The choice, as the client sees it."""
        assert self.choice is not None, "a decision is told after it was made"
        cached = self.cached_route is not None
        return Decision(
            route="cache" if cached else self.choice.route,
            reason="hit" if cached else self.choice.reason,
            arm=self.arm,
            complexity=self.features.complexity if self.features else None,
            quality=self.outcome.quality if self.outcome else None,
            cached_route=self.cached_route,
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
            template=self.ask.template,
            prefix_key=self.prefix_key,
            priority=self.ask.priority,
            updates=self.ask.provisional,
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
            prefix_key=self.prefix_key,
            priority=self.ask.priority + 1,
            deadline_s=time_s,
        )

    def refine_request(self, response_format: bool) -> ar.RefineRequest:
        """The request to the refiner; a rejected draft travels along, or else a sketch.

        Args:
            response_format: whether the engine can hold an answer to one; else the answer is checked when it is there.
        """
        ask = self.ask
        draft = self.drafts[0] if self.drafts else self.sketch
        return ar.RefineRequest(
            request_id=ask.request_id,
            messages=ask.messages,
            draft=draft
            and ar.Draft(
                text=draft.text,
                token_ids=draft.token_ids,
                tokenizer_fingerprint=draft.tokenizer_fingerprint,
            ),
            mode="exact" if not self.drafts and self.sketch else ask.refine_mode,
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            top_p=ask.top_p,
            presence_penalty=ask.presence_penalty,
            frequency_penalty=ask.frequency_penalty,
            seed=self.seed,
            stop=ask.stop,
            logprobs=ask.logprobs,
            n=ask.n,
            tools=ask.tools,
            tool_choice=ask.tool_choice,
            response_format=ask.response_format if response_format else None,
            reasoning=ask.reasoning,
            prefix_key=self.prefix_key,
            priority=ask.priority,
            deadline_s=self.left_s,
        )

    def texts(self) -> Texts:
        """What was said, as far as it got."""
        asked = text_of(self.ask.messages[-1].get("content")) if self.ask.messages else ""
        return Texts(asked, self.answer.choices[0].text if self.answer else "")

    def record(self, policy: Policy, status: int, versions: tuple[str, str]) -> DecisionRecord:
        """The decision line; `versions` are those of the complexity and the quality model."""
        decision = self.decision() if self.choice else None
        return DecisionRecord(
            request_id=self.ask.request_id,
            at_unix_s=time.time(),
            tenant=self.ask.tenant,
            model=self.ask.model,
            arm=self.arm,
            conversation=self.ask.conversation,
            priority=self.ask.priority,
            status=status,
            route=decision.route if decision else None,
            reason=decision.reason if decision else "undecided",
            propensity=self.propensity,
            cached_route=self.cached_route,
            policy=policy,
            features=self.features,
            outcome=self.outcome,
            complexity_version=versions[0],
            quality_version=versions[1],
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            kept_tokens=self.usage.kept_tokens,
            sketched_tokens=self.usage.sketched_tokens,
            steps=self.usage.steps,
            draft_s=self.draft_s,
            first_token_s=self.first_token_s,
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
        response_format=ask.response_format,
    )


def answer_of(ask: Ask, drafts: Sequence[diffusion.DraftResult]) -> Answer:
    """Drafts, as the client gets them."""
    choices: list[AnswerChoice] = []
    for draft in drafts:
        text, stopped = cut("".join(draft.filled) if ask.template else draft.text, ask.stop)
        ended = stopped or draft.finish_reason == "stop"
        choices.append(AnswerChoice(text=text, finish_reason="stop" if ended else "length"))
    tokens = sum(len(draft.token_ids) for draft in drafts)
    if ask.template:  # the rest was given
        tokens = sum(part for part in ask.template if isinstance(part, int)) * len(drafts)
    usage = Usage(
        prompt_tokens=drafts[0].prompt_tokens,
        completion_tokens=tokens,
        cached_tokens=drafts[0].signals.reused_tokens,
        draft_tokens=tokens,
        steps=sum(sum(draft.signals.steps) for draft in drafts),
    )
    return Answer(choices=tuple(choices), usage=usage)


def refined_usage(run: Run, results: Sequence[ar.RefineResult]) -> Usage:
    """Tokens of a refined or direct answer; what the refiner took of a draft counts as accepted prediction."""
    taken = sum(result.kept_tokens + result.reused_draft_tokens for result in results)
    written = sum(result.completion_tokens for result in results)
    usage = Usage(
        prompt_tokens=results[0].prompt_tokens,
        completion_tokens=written,
        cached_tokens=min(result.reused_tokens for result in results),
        draft_tokens=sum(len(draft.token_ids) for draft in run.drafts),
        reasoning_tokens=sum(result.reasoning_tokens for result in results),
        refine_tokens=max(0, written - taken),
        sketched_tokens=taken if run.sketch and not run.drafts else None,
    )
    if not run.drafts:
        return usage
    return replace(
        usage,
        kept_tokens=taken,
        dropped_tokens=max(0, usage.draft_tokens - taken),
        steps=sum(sum(draft.signals.steps) for draft in run.drafts),
    )


def told(run: Run, answer: Answer) -> Iterator[Event]:
    """The events of an answer that is whole already."""
    run.told = True
    run.answer = replace(answer, decision=run.decision())
    yield Decided(run.decision())
    for at, choice in enumerate(answer.choices):
        yield Delta(
            choice=at,
            text=choice.text,
            reasoning=choice.reasoning,
            tool_calls=choice.tool_calls,
            logprobs=choice.logprobs,
        )
        yield ChoiceEnd(choice=at, finish_reason=choice.finish_reason)
    yield Finished(usage=answer.usage, decision=run.decision())
