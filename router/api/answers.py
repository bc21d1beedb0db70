"""From the gateway's own words to the wire: usage, decisions, log-probabilities, whole answers."""

from collections.abc import Sequence

from msgspec import UNSET

from ar_engine.api import TokenLogprob
from router.api.schemas.answers import (
    AnswerMessage,
    ChatCompletion,
    Choice,
    ChoiceLogprobs,
    TopLogprob,
    WireFunction,
    WireLogprob,
    WireToolCall,
)
from router.api.schemas.shared import CompletionTokensDetails, DraftgateInfo, PromptTokensDetails, WireUsage
from router.serving.messages import Answer, AnswerChoice, Ask, Decision, Usage

LEAST_LOGPROB = -9999.0  # OpenAI's word for next to impossible; JSON has no -inf


def to_usage(usages: Sequence[Usage]) -> WireUsage:
    """Tokens as OpenAI words them, of several requests together."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return WireUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(usage.cached_tokens for usage in usages)),
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=sum(usage.kept_tokens or 0 for usage in usages),
            rejected_prediction_tokens=sum(usage.dropped_tokens or 0 for usage in usages),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
            draft_tokens=sum(usage.draft_tokens for usage in usages),
            refine_tokens=sum(usage.refine_tokens for usage in usages),
        ),
    )


def to_info(request_id: str, decision: Decision, usage: Usage) -> DraftgateInfo:
    """The `draftgate` object of the body."""
    return DraftgateInfo(
        request_id=request_id,
        route=decision.route,
        reason=decision.reason,
        arm=decision.arm or None,
        complexity=decision.complexity,
        quality=decision.quality,
        cached_route=decision.cached_route,
        steps=usage.steps,
        kept_tokens=usage.kept_tokens,
        sketched_tokens=usage.sketched_tokens,
    )


def to_logprobs(ask: Ask, tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
    """Log-probabilities, if they were asked for."""
    return None if ask.logprobs is None else ChoiceLogprobs([_logprob(token) for token in tokens])


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB)


def to_completion(ask: Ask, created: int, answer: Answer, fingerprint: str | None) -> ChatCompletion:
    """A whole answer."""
    assert answer.decision is not None, "an answer that was told was decided"
    return ChatCompletion(
        id=completion_id(ask),
        created=created,
        model=ask.model,
        system_fingerprint=fingerprint,
        choices=[
            Choice(
                index=at,
                message=_message(choice),
                logprobs=to_logprobs(ask, choice.logprobs),
                finish_reason=choice.finish_reason,
            )
            for at, choice in enumerate(answer.choices)
        ],
        usage=to_usage([answer.usage]),
        draftgate=to_info(ask.request_id, answer.decision, answer.usage),
    )


def completion_id(ask: Ask) -> str:
    """The id that a completion and all its chunks share."""
    return f"chatcmpl-{ask.request_id}"


def _message(choice: AnswerChoice) -> AnswerMessage:
    calls = [WireToolCall(id=call.id, function=WireFunction(call.name, call.arguments)) for call in choice.tool_calls]
    return AnswerMessage(
        content=choice.text if choice.text or not calls else None,
        tool_calls=calls or UNSET,
        reasoning_content=choice.reasoning or UNSET,
    )


def _logprob(token: TokenLogprob) -> WireLogprob:
    return WireLogprob(
        token=token.token,
        logprob=finite(token.logprob),
        bytes=list(token.token.encode()),
        top_logprobs=[
            TopLogprob(token=text, logprob=finite(logprob), bytes=list(text.encode())) for text, logprob in token.top
        ],
    )
